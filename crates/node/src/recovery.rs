//! Going on without a quorum: when so many stores are gone for good that groups can elect nobody, what is left is given a
//! configuration of its own.
//!
//! That is outside of Raft, and it may lose what was acknowledged: with a quorum of a group's voters, entries may be gone
//! that nobody else ever had. So it is done by hand, on stopped stores, after a plan that says for each group what is left
//! and whether more may have been.
//!
//! # What is done, and why the dead stay dead
//! - Of the copies of a group on the stores that survive, the one with the best log (thesis 3.6.1: last term, then last
//!   index) gets two entries more, in and out of a joint configuration, to that of the voters that survive: the chain of
//!   configurations has no gap, as whoever checks the records later expects. A configuration is in force when it is
//!   appended, so these voters elect, and all that the best log has becomes committed. The other survivors follow by Raft's
//!   ordinary means: their logs are no better, so they cannot be elected, and are corrected.
//! - These entries' term, the *epoch*, is [`EPOCH_STEP`] higher than any that a survivor has seen: a leader of the old
//!   majority is of an older term, whatever it did before it died.
//! - Each survivor notes which stores were given up and refuses them for good, from its next start on and before it opens
//!   a group ([`give_up_stores`](crate::lineage::give_up_stores)). One that comes back, with an old quorum or alone, is told
//!   so before it votes, and never starts again. (Those who meet no survivor cannot know.)
//! - The meta group's log gets the removal of the stores after its configuration, and the record of the recovery. From there
//!   on it is an ordinary kick: their replicas and then they themselves get tombstones.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft_core::confchange::{self, ConfigurationChange};
use pontoon_raft_core::quorum::{VoteResult, joint};
use pontoon_raft_core::types::{
    Configuration, Entry, EntryId, GroupId, HardState, LogIndex, Payload, ReplicaId, StoreId, Term,
};
use pontoon_storage::records::{Event, GroupRecords};
use pontoon_storage::{Batch, GroupWrite};

use crate::meta::MetaCommand;

/// How far an epoch is above all terms before: more elections than a majority can have held unseen, and less than would
/// ever use the terms up.
pub const EPOCH_STEP: u64 = 1 << 20;

/// What is left of a group on one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The replica.
    pub replica: ReplicaId,
    /// Its term and vote.
    pub hard_state: HardState,
    /// How far it knew the log to be committed.
    pub commit: LogIndex,
    /// The last entry.
    pub last_index: LogIndex,
    /// Its term.
    pub last_term: Term,
    /// The configuration in force.
    pub configuration: Configuration,
}

impl Left {
    /// Reads it off the records of a stopped store; `None` if the group does not live there.
    #[must_use]
    pub fn of(records: &GroupRecords) -> Option<Self> {
        let state = records.state.as_ref()?;
        let mut log = Walk::default();
        records.history.iter().for_each(|recorded| log.take(&recorded.event));
        let (_, configuration) = log.configurations.pop()?;
        let last_term = log.terms.last().map_or(state.snapshot.term, |(_, term)| *term);
        Some(Self {
            replica: state.replica,
            hard_state: state.hard_state,
            commit: state.commit,
            last_index: state.last_index,
            last_term,
            configuration,
        })
    }

    fn log(&self) -> (Term, LogIndex) {
        (self.last_term, self.last_index)
    }
}

/// What a history says of configurations and terms: each with the index from which on it holds, in order.
#[derive(Default)]
struct Walk {
    configurations: Vec<(LogIndex, Configuration)>,
    terms: Vec<(LogIndex, Term)>,
}

impl Walk {
    fn begin(&mut self, index: LogIndex, term: Term, configuration: &Configuration) {
        self.configurations = vec![(index, configuration.clone())];
        self.terms = vec![(index, term)];
    }

    fn append(&mut self, index: LogIndex, term: Term, configuration: Option<&Configuration>) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
        if let Some(configuration) = configuration {
            self.configurations.push((index, configuration.clone()));
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Created(_) | Event::Destroyed => *self = Self::default(),
            Event::AsOf(base) => {
                self.begin(base.snapshot.index, base.snapshot.term, &base.snapshot.configuration);
                let mut index = base.snapshot.index;
                for mark in &base.entries {
                    index = index.next();
                    if let Some(mark) = mark {
                        self.append(index, mark.term, mark.configuration.as_deref());
                    }
                }
            }
            Event::Snapshot(meta) => self.begin(meta.index, meta.term, &meta.configuration),
            Event::Truncate(from) => {
                self.configurations.retain(|(index, _)| index < from);
                self.terms.retain(|(index, _)| index < from);
            }
            Event::Append { first, entries } => {
                for (mark, n) in entries.iter().zip(0..) {
                    self.append(*first + n, mark.term, mark.configuration.as_deref());
                }
            }
            Event::HardState(_) | Event::Commit(_) | Event::Leads(_) | Event::Compact(_) => {}
        }
    }
}

/// What is to become of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its voters that survive can elect a leader by themselves.
    Intact,
    /// It gets a new configuration.
    Forced(Box<Forced>),
    /// Not a replica survives: the group is gone, and can only be deleted.
    Gone,
    /// These stores survive and have voters of it; without their directories nobody can tell whose log is best.
    Missing(BTreeSet<StoreId>),
}

/// A new configuration for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// Whose log is best.
    pub best: Left,
    /// Who votes from now on.
    pub voters: BTreeSet<ReplicaId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<ReplicaId>,
    /// The term of the entry that says so.
    pub epoch: Term,
    /// The voters that were lost could have committed entries by themselves, of which nothing is left.
    pub may_have_lost: bool,
}

/// Decides about one group: `left` is what the given directories have of it, `hosts` the stores that have a replica of it by
/// the registry, `lost` those that are given up.
#[must_use]
pub fn decide(left: &[Left], hosts: &BTreeSet<StoreId>, lost: &BTreeSet<StoreId>) -> Fate {
    // A replica that was added and has not heard who the members are knows nothing.
    let known = left.iter().filter(|l| l.configuration.members().contains(&l.replica));
    let votes = |l: &&Left| l.configuration.is_voter(l.replica);
    let best = known.clone().filter(votes).max_by_key(|l| l.log());
    let Some(best) = best.or_else(|| known.max_by_key(|l| l.log())) else {
        let elsewhere: BTreeSet<_> = hosts
            .iter()
            .copied()
            .filter(|host| !lost.contains(host) && left.iter().all(|l| l.replica.store != *host))
            .collect();
        return if elsewhere.is_empty() { Fate::Gone } else { Fate::Missing(elsewhere) };
    };
    let configuration = &best.configuration;
    let is_lost = |replica: ReplicaId| lost.contains(&replica.store);
    if joint::vote(configuration, |replica| Some(!is_lost(replica))) == VoteResult::Won {
        return Fate::Intact;
    }
    let all_voters = || configuration.voters.iter().chain(&configuration.outgoing_voters).copied();
    let surviving: BTreeSet<_> = all_voters().filter(|replica| !is_lost(*replica)).collect();
    let given: BTreeSet<_> = left.iter().map(|l| l.replica).collect();
    let missing: BTreeSet<_> = surviving.difference(&given).map(|replica| replica.store).collect();
    if !missing.is_empty() {
        return Fate::Missing(missing);
    }
    let voters = if surviving.is_empty() { BTreeSet::from([best.replica]) } else { surviving };
    let all_learners = configuration.learners.iter().chain(&configuration.next_learners).copied();
    let learners = all_learners.filter(|replica| !is_lost(*replica) && !voters.contains(replica)).collect();
    let term = left.iter().map(|l| l.hard_state.term.max(l.last_term)).max().unwrap_or_default();
    let may_have_lost = joint::vote(configuration, |replica| Some(is_lost(replica))) == VoteResult::Won;
    Fate::Forced(Box::new(Forced {
        best: best.clone(),
        voters,
        learners,
        epoch: Term(term.0 + EPOCH_STEP),
        may_have_lost,
    }))
}

impl Forced {
    /// From the configuration in force to the new one.
    fn configurations(&self) -> Vec<Configuration> {
        let mut chain = Vec::new();
        let mut outgoing_voters = self.best.configuration.voters.clone();
        if self.best.configuration.is_joint()
            && let Ok(left) = confchange::apply(&self.best.configuration, &ConfigurationChange::Leave)
        {
            outgoing_voters.clone_from(&left.voters);
            chain.push(left);
        }
        let new = Configuration {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            ..Configuration::default()
        };
        chain.push(Configuration { outgoing_voters, ..new.clone() });
        chain.push(new);
        chain
    }

    /// What is written to the directory of the best log: the configurations, and after them, for the meta group, commands.
    #[must_use]
    pub fn write(&self, group: GroupId, commands: &[(EntryId, MetaCommand)]) -> GroupWrite {
        let configurations =
            self.configurations().into_iter().map(|c| (EntryId::NONE, Payload::Configuration(c)));
        let commands = commands.iter().map(|(id, command)| (*id, Payload::Command(command.to_bytes())));
        let first = self.best.last_index.next();
        let entries = configurations
            .chain(commands)
            .zip(0..)
            .map(|((id, payload), n)| Entry { index: first + n, term: self.epoch, id, payload })
            .collect();
        GroupWrite {
            group,
            // As if it had been elected: nobody else leads in this term.
            hard_state: Some(HardState { term: self.epoch, voted_for: Some(self.best.replica) }),
            entries,
            leads: Some(self.epoch),
            ..GroupWrite::default()
        }
    }
}

/// What each directory gets: one batch, which is durable as a whole or not at all. `forced` are the groups with their new
/// configurations, `commands` goes to the meta group's log if that is among them.
#[must_use]
pub fn batches(
    forced: &BTreeMap<GroupId, Forced>,
    commands: &[(EntryId, MetaCommand)],
) -> BTreeMap<StoreId, Batch> {
    let mut batches: BTreeMap<StoreId, Batch> = BTreeMap::new();
    for (group, forced) in forced {
        let commands = if *group == crate::meta::META_GROUP { commands } else { &[] };
        let batch = batches.entry(forced.best.replica.store).or_default();
        batch.groups.push(forced.write(*group, commands));
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(store: u64) -> ReplicaId {
        ReplicaId { store: StoreId(store), number: 1 }
    }

    fn left(store: u64, last_term: u64, last_index: u64, voters: &[u64]) -> Left {
        Left {
            replica: id(store),
            hard_state: HardState { term: Term(last_term + 1), voted_for: None },
            commit: LogIndex(last_index),
            last_index: LogIndex(last_index),
            last_term: Term(last_term),
            configuration: Configuration::of_voters(voters.iter().map(|v| id(*v))),
        }
    }

    fn stores(ids: &[u64]) -> BTreeSet<StoreId> {
        ids.iter().map(|id| StoreId(*id)).collect()
    }

    fn forced(fate: Fate) -> (u64, Vec<u64>, u64, bool) {
        let Fate::Forced(forced) = fate else { panic!("{fate:?}") };
        let voters = forced.voters.iter().map(|v| v.store.0).collect();
        (forced.best.replica.store.0, voters, forced.epoch.0 - EPOCH_STEP, forced.may_have_lost)
    }

    #[test]
    fn the_best_log_goes_on_with_all_voters_that_survive() {
        let three = stores(&[1, 2, 3]);
        let one = decide(&[left(3, 4, 90, &[1, 2, 3])], &three, &stores(&[1, 2]));
        assert_eq!(forced(one), (3, vec![3], 5, true));
        let two = [left(3, 4, 90, &[1, 2, 3]), left(2, 5, 80, &[1, 2, 3])];
        assert_eq!(decide(&two, &three, &stores(&[1])), Fate::Intact);
        let five = &[1, 2, 3, 4, 5];
        let two = [left(3, 4, 90, five), left(2, 5, 80, five)];
        let fate = decide(&two, &stores(five), &stores(&[1, 4, 5]));
        assert_eq!(forced(fate), (2, vec![2, 3], 6, true), "the last term counts more than the length");
        // Half of four: each committed entry was on three, so one that is left has it.
        let four = &[1, 2, 3, 4];
        let two = [left(3, 4, 90, four), left(2, 4, 95, four)];
        assert_eq!(forced(decide(&two, &stores(four), &stores(&[1, 4]))), (2, vec![2, 3], 5, false));
    }

    #[test]
    fn a_log_that_cannot_be_seen_is_asked_for() {
        let five = &[1, 2, 3, 4, 5];
        let fate = decide(&[left(3, 4, 90, five)], &stores(five), &stores(&[1, 4, 5]));
        assert_eq!(fate, Fate::Missing(stores(&[2])));
        assert_eq!(decide(&[], &stores(&[1, 2]), &stores(&[1])), Fate::Missing(stores(&[2])));
        assert_eq!(decide(&[], &stores(&[1]), &stores(&[1])), Fate::Gone);
        // A replica that was placed and has not heard from anybody yet.
        assert_eq!(decide(&[left(3, 0, 0, &[])], &stores(&[1, 3]), &stores(&[1])), Fate::Gone);
    }

    #[test]
    fn halves_of_a_joint_configuration_count_and_a_learner_is_the_last_resort() {
        let mut joint = left(3, 4, 90, &[3, 4]);
        joint.configuration.outgoing_voters = [id(1), id(2)].into();
        let all = stores(&[1, 2, 3, 4]);
        let fate = decide(&[joint.clone(), left(4, 4, 80, &[1, 2])], &all, &stores(&[1, 2]));
        let Fate::Forced(one) = &fate else { panic!("{fate:?}") };
        assert!(!one.may_have_lost, "an entry had to be on one of the incoming voters, too");
        let chain = one.configurations();
        assert!(!chain[0].is_joint() && chain[1].is_joint(), "{chain:?}");
        assert_eq!((chain.len(), &chain[1].outgoing_voters), (3, &chain[0].voters));
        assert_eq!(confchange::apply(&chain[1], &ConfigurationChange::Leave).as_ref(), Ok(&chain[2]));
        assert_eq!(forced(fate), (3, vec![3, 4], 5, false));
        let mut learner = left(9, 4, 70, &[1, 2, 3]);
        learner.configuration.learners = [id(9)].into();
        let fate = decide(&[learner], &stores(&[1, 2, 3, 9]), &stores(&[1, 2, 3]));
        assert_eq!(forced(fate), (9, vec![9], 5, true));
    }

    #[test]
    fn what_is_written_follows_the_best_log() {
        let fate = decide(&[left(3, 4, 90, &[1, 2, 3])], &stores(&[1, 2, 3]), &stores(&[1, 2]));
        let Fate::Forced(forced) = fate else { panic!("{fate:?}") };
        let commands = [(EntryId(1), MetaCommand::default()), (EntryId(2), MetaCommand::default())];
        let groups = BTreeMap::from([(GroupId(0), (*forced).clone()), (GroupId(1), *forced)]);
        let batches = batches(&groups, &commands);
        let batch = &batches[&StoreId(3)];
        assert_eq!((batches.len(), batch.groups.len()), (1, 2));
        let indexes: Vec<_> = batch.groups[0].entries.iter().map(|e| (e.index.0, e.term)).collect();
        let epoch = Term(5 + EPOCH_STEP);
        assert_eq!(indexes, [(91, epoch), (92, epoch), (93, epoch), (94, epoch)]);
        assert_eq!(batch.groups[1].entries.len(), 2);
        assert_eq!(batch.groups[0].hard_state, Some(HardState { term: epoch, voted_for: Some(id(3)) }));
    }
}
