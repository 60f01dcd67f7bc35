//! What should happen next so that groups follow stores. Pure: the registry and what is seen of the stores give the next few
//! wishes; the groups' leaders carry them out (`replicas.rs`), and then there is a next plan. Nothing is remembered between
//! two plans, so whoever leads the meta group goes on where the last leader died.
//!
//! In this order, for each group:
//! - replicas on stores that go are removed: of a kicked store that is not there as soon as another voter is left, of one that
//!   is, or that leaves, when enough voters are on stores that stay. So a group has fewer voters than wished only where a
//!   store was lost, until a new one has caught up;
//! - a group with too few replicas gets one on the store with the fewest;
//! - a group with too many voters loses one, where there are the most;
//! - if all have enough, one of the fullest store gets another place on the emptiest, if that makes them more equal.
//!
//! The meta group is on all stores, with a vote on up to [`VOTERS_MAX`](super::VOTERS_MAX) of them. It is the last that a
//! store which goes loses: until then the store hears what the registry wishes, and can hand over what it leads.

use std::collections::{BTreeMap, BTreeSet};

use super::commands::meta_command::{Change, ForgetStore, MoveReplica, Step};
use super::records::{GroupRecord, Registry, ReplicaRecord, ReplicaState, StoreRecord, StoreState};

/// New replicas that catch up at the same time, over all groups: each costs its leader's disk and network.
const MOVES_MAX: usize = 4;
/// Steps of one plan: a round of commands that the meta group takes in one go.
const STEPS_MAX: usize = 64;

/// What the leader of the meta group sees of the stores.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The stores that are in touch, its own too.
    pub alive: BTreeSet<u64>,
}

/// The next steps. None: all is as it should be, or waits for somebody.
#[must_use]
pub fn plan(registry: &Registry, observed: &Observed) -> Vec<Change> {
    let mut planner = Planner::new(registry, observed);
    planner.meta();
    for group in registry.groups.values() {
        planner.group(group);
    }
    planner.level();
    planner.forget();
    planner.steps.truncate(STEPS_MAX);
    planner.steps
}

struct Planner<'a> {
    registry: &'a Registry,
    observed: &'a Observed,
    /// Stores that take replicas, with how many each will have.
    load: BTreeMap<u64, usize>,
    /// New replicas under way.
    moves: usize,
    /// Some group lacks replicas, or has one too many: no time to move more about.
    busy: bool,
    steps: Vec<Change>,
}

fn is(replica: &ReplicaRecord, states: &[ReplicaState]) -> bool {
    states.contains(&replica.state())
}

impl<'a> Planner<'a> {
    fn new(registry: &'a Registry, observed: &'a Observed) -> Self {
        let takes = registry.stores.values().filter(|s| s.stays() && !s.learner);
        let mut load: BTreeMap<_, _> = takes.map(|s| (s.store, 0)).collect();
        let mut moves = 0;
        for replica in registry.groups.values().flat_map(|g| &g.replicas) {
            if is(replica, &[ReplicaState::Voter, ReplicaState::Joining])
                && let Some(n) = load.get_mut(&replica.store)
            {
                *n += 1;
            }
            // One on a store that is away must not keep the others waiting.
            moves +=
                usize::from(is(replica, &[ReplicaState::Joining]) && observed.alive.contains(&replica.store));
        }
        Self { registry, observed, load, moves, busy: false, steps: Vec::new() }
    }

    fn step(&mut self, group: &GroupRecord, store: u64, number: u64, step: Step) {
        let change = MoveReplica {
            group: group.group,
            store,
            number,
            step: step as i32,
            version: self.version(group),
        };
        self.steps.push(Change::MoveReplica(change));
    }

    /// The version that the record will have when the steps before this one are done.
    fn version(&self, group: &GroupRecord) -> u64 {
        let of_it = |c: &&Change| matches!(c, Change::MoveReplica(m) if m.group == group.group);
        group.version + self.steps.iter().rev().take_while(of_it).count() as u64
    }

    fn remove(&mut self, group: &GroupRecord, replica: &ReplicaRecord) {
        if let Some(n) = self.load.get_mut(&replica.store) {
            *n = n.saturating_sub(1);
        }
        self.step(group, replica.store, replica.number, Step::Remove);
    }

    fn place(&mut self, group: &GroupRecord, store: u64) {
        *self.load.entry(store).or_default() += 1;
        self.moves += 1;
        self.step(group, store, group.next_number, Step::Place);
    }

    fn takes(&self, store: u64) -> bool {
        self.load.contains_key(&store)
    }

    /// The emptiest store that has no replica of the group and could take one now.
    fn room_for(&self, group: &GroupRecord) -> Option<u64> {
        let fits =
            |(store, _): &(&u64, &usize)| self.observed.alive.contains(store) && group.on(**store).is_none();
        self.load.iter().filter(fits).min_by_key(|(store, n)| (**n, **store)).map(|(store, _)| *store)
    }

    /// Of these replicas the one on the fullest store; of equals the one that came last.
    fn on_the_fullest<'r>(
        &self,
        replicas: impl Iterator<Item = &'r ReplicaRecord>,
    ) -> Option<&'r ReplicaRecord> {
        replicas.max_by_key(|r| (self.load.get(&r.store).copied().unwrap_or(usize::MAX), r.number, r.store))
    }

    fn group(&mut self, group: &GroupRecord) {
        let wished = group.voters_wished(self.load.len());
        let good = group.voters().filter(|r| self.takes(r.store)).count();
        // Taken from as steps are planned, so that no plan removes the last voter.
        let mut voters = group.voters().count();
        for replica in &group.replicas {
            if self.takes(replica.store) || is(replica, &[ReplicaState::Removing]) {
                continue;
            }
            self.busy = true;
            if !is(replica, &[ReplicaState::Voter]) {
                self.remove(group, replica);
                continue;
            }
            let host = self.registry.stores.get(&replica.store);
            let leaves = host.is_some_and(|s| s.state() == StoreState::Leaving);
            let serves = leaves || self.observed.alive.contains(&replica.store);
            if (voters > 1 && !serves) || (good >= wished.max(1)) {
                voters -= 1;
                self.remove(group, replica);
            }
        }
        let coming =
            |r: &&ReplicaRecord| self.takes(r.store) && is(r, &[ReplicaState::Voter, ReplicaState::Joining]);
        let here = group.replicas.iter().filter(coming).count();
        if here < wished {
            self.busy = true;
            if self.moves < MOVES_MAX
                && let Some(store) = self.room_for(group)
            {
                self.place(group, store);
            }
        } else if good > wished {
            self.busy = true;
            if let Some(replica) = self.on_the_fullest(group.voters().filter(|r| self.takes(r.store))) {
                self.remove(group, replica);
            }
        } else if here > wished {
            // On its way to another store: what will go is taken for gone.
            self.busy = true;
        }
    }

    /// Makes the fullest and the emptiest store more equal, by one group at a time.
    fn level(&mut self) {
        if self.busy || self.moves > 0 {
            return;
        }
        let reachable = |store: &u64| self.observed.alive.contains(store);
        let emptiest = self.load.iter().filter(|(s, _)| reachable(s)).min_by_key(|(s, n)| (**n, **s));
        let Some((&to, &low)) = emptiest else { return };
        // Several at once, as long as each of them helps.
        let mut low = low;
        for group in self.registry.groups.values() {
            if self.moves >= MOVES_MAX {
                return;
            }
            let fullest = self.on_the_fullest(group.voters().filter(|r| self.takes(r.store)));
            let high = fullest.and_then(|r| Some((r.store, *self.load.get(&r.store)?)));
            if let Some((from, high)) = high
                && group.on(to).is_none()
                && high >= low + 2
                && self.load.values().all(|n| *n <= high)
            {
                self.place(group, to);
                low += 1;
                if let Some(n) = self.load.get_mut(&from) {
                    *n -= 1;
                }
            }
        }
    }

    fn meta(&mut self) {
        let registry = self.registry;
        let Some(meta) = &registry.meta else { return };
        let host = |r: &ReplicaRecord| registry.stores.get(&r.store);
        let stays = |r: &&ReplicaRecord| {
            let state = host(r).map(StoreRecord::state);
            matches!(state, Some(StoreState::Member | StoreState::Joining))
        };
        let votes = |r: &&ReplicaRecord| is(r, &[ReplicaState::Voter, ReplicaState::Joining]);
        let wished = meta.voters_wished(self.load.len());
        let here = meta.replicas.iter().filter(stays).filter(votes).count();
        // A learner that may vote, and is there to catch up.
        let heir = meta.replicas.iter().find(|r| {
            is(r, &[ReplicaState::Learner]) && self.takes(r.store) && self.observed.alive.contains(&r.store)
        });
        if here < wished
            && let Some(heir) = heir
        {
            self.step(meta, heir.store, heir.number, Step::Promote);
        }
        let good = meta.voters().filter(stays).count();
        for replica in meta.replicas.iter().filter(|r| !stays(r) && !is(r, &[ReplicaState::Removing])) {
            let (store, kicked) =
                (replica.store, host(replica).is_none_or(|s| s.state() == StoreState::Kicked));
            let idle = registry.replicas_on(store) == 0;
            let away = kicked && !self.observed.alive.contains(&store);
            if good > 0 && (idle || away) {
                self.step(meta, store, replica.number, Step::Remove);
            }
        }
    }

    fn forget(&mut self) {
        for store in self.registry.stores.values().filter(|s| s.goes()) {
            if self.registry.all_groups().all(|g| g.on(store.store).is_none()) {
                self.steps.push(Change::ForgetStore(ForgetStore { store: store.store }));
            }
        }
    }
}

#[cfg(test)]
mod tests;
