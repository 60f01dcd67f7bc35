//! The steps of a replica, from the wish to have it to the news that it is gone.
//!
//! ```text
//!   Place -> Joining -> Placed -> Voter -> Remove -> Removing -> Removed -> (no record)
//!                  \------------- Remove -----------^
//! ```
//! The planner wishes (`Place`, `Remove`, `Promote`), the leader of the group carries it out and tells (`Placed`, `Removed`).
//! Each step names store and number, so a step that comes twice or late finds nothing to do.

use super::META_GROUP;
use super::commands::{MetaReply, meta_command};
use super::records::{GroupRecord, Registry, ReplicaRecord, ReplicaState, StoreState};

impl GroupRecord {
    /// A new replica, under a number that no other one of this group ever had.
    pub(super) fn add(&mut self, store: u64, state: ReplicaState) {
        self.replicas.push(ReplicaRecord::new(store, self.next_number, state));
        self.replicas.sort_unstable_by_key(|r| (r.store, r.number));
        self.next_number += 1;
    }
}

impl Registry {
    pub(super) fn move_replica(&mut self, step: meta_command::MoveReplica) -> MetaReply {
        use meta_command::Step;
        let kind = step.step();
        let meta_command::MoveReplica { group, store, number, .. } = step;
        let host = self.stores.get(&store);
        let takes = host.is_some_and(|s| s.stays() && !s.learner);
        let Some(record) = self.group_mut(group) else {
            return MetaReply::missing(format!("there is no group {group}"));
        };
        let done = MetaReply { group, store, number, ..MetaReply::default() };
        let is_wish = matches!(kind, Step::Place | Step::Remove | Step::Promote);
        if is_wish && step.version != record.version {
            return MetaReply::exists(format!("group {group} has changed since this was wished"));
        }
        let others = record.voters().any(|r| r.store != store);
        let at = record.replicas.iter().position(|r| (r.store, r.number) == (store, number));
        match (kind, at) {
            (Step::Unknown, _) => {
                return MetaReply::refused("a step of a newer version; upgrade this store");
            }
            (Step::Place, _) => {
                if record.next_number != number || record.on(store).is_some() {
                    return MetaReply::exists(format!(
                        "group {group}: the wish for a replica comes twice or late"
                    ));
                }
                if !takes {
                    return MetaReply::refused(format!("store {store:016x} takes no replicas"));
                }
                record.add(store, ReplicaState::Joining);
            }
            // It is gone already, or never was.
            (_, None) => return done,
            (Step::Placed, Some(at)) => {
                let replica = &mut record.replicas[at];
                match replica.state() {
                    ReplicaState::Joining => replica.state = ReplicaState::Voter as i32,
                    ReplicaState::JoiningLearner => replica.state = ReplicaState::Learner as i32,
                    ReplicaState::Voter | ReplicaState::Learner | ReplicaState::Removing => return done,
                }
                if group == META_GROUP.0
                    && let Some(host) = self.stores.get_mut(&store)
                    && host.state() == StoreState::Joining
                {
                    host.state = StoreState::Member as i32;
                }
            }
            (Step::Remove, Some(at)) => {
                let replica = &mut record.replicas[at];
                if replica.state() == ReplicaState::Removing {
                    return done;
                }
                if replica.state() == ReplicaState::Voter && !others {
                    return MetaReply::refused(format!(
                        "the replica of group {group} on store {store:016x} is its only voter"
                    ));
                }
                replica.state = ReplicaState::Removing as i32;
            }
            (Step::Removed, Some(at)) => {
                if record.replicas[at].state() != ReplicaState::Removing {
                    return MetaReply::refused(format!(
                        "the replica of group {group} on store {store:016x} is to stay"
                    ));
                }
                record.replicas.remove(at);
            }
            (Step::Promote, Some(at)) => {
                let replica = &mut record.replicas[at];
                match replica.state() {
                    ReplicaState::Learner | ReplicaState::JoiningLearner => {
                        replica.state = ReplicaState::Joining as i32;
                    }
                    ReplicaState::Voter | ReplicaState::Joining => return done,
                    ReplicaState::Removing => {
                        return MetaReply::refused(format!(
                            "the replica of group {group} on store {store:016x} is being removed"
                        ));
                    }
                }
            }
        }
        if let Some(record) = self.group_mut(group) {
            record.version += 1;
        }
        done
    }
}
