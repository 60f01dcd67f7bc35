//! Clients: they write commands with ids of their own, retry what was certainly not executed, and read. What they asked
//! and were told is a history, which must be linearizable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pontoon_raft_core::{EntryId, Group, GroupId, Proposal, StoreId};

use super::cluster::{Cluster, Event};
use super::invariants::{Violation, violated};
use super::machine::{Command, Machine, Outcome};
use crate::linearizability::{
    Action, Compare, Completion, KvInput, KvModel, KvOperation, KvOutput, Limits, Operation, Verdict, check,
};

/// Registers per group: few, so that operations meet.
const KEYS: u64 = 3;

/// How much work the history of one register may cost. Usual ones need some thousand steps.
const LIMITS: Limits = Limits { steps_max: 20_000_000, configurations_max: 1_000_000 };

/// A read on its way.
#[derive(Debug)]
struct Read {
    store: StoreId,
    call: u64,
    key: u8,
}

/// The clients of one group.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Every write, answered or not, and every read that was answered.
    history: Vec<KvOperation>,
    /// Where a command's write is in the history, and the command.
    writes: BTreeMap<EntryId, (usize, Command)>,
    /// The latest value that was proposed for each register.
    latest: BTreeMap<u8, u64>,
    reads: BTreeMap<u64, Read>,
    /// Commands that were certainly not executed, so that their clients try again under the same id.
    retries: Vec<EntryId>,
    /// Counts what clients do; their common clock.
    time: u64,
}

impl Clients {
    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn client(&self) -> u32 {
        u32::try_from(self.history.len()).unwrap_or(u32::MAX)
    }

    /// Somebody wants to write. The operation begins now.
    fn begin(&mut self, id: EntryId, command: Command) {
        let (key, action, value) = match command {
            Command::Put { key, value } => (key, Action::Put(value), value),
            Command::Swap { key, expected, value } => {
                (key, Action::Cas(Compare::Value(expected), value), value)
            }
        };
        self.latest.insert(key, value);
        let (call, client) = (self.tick(), self.client());
        self.writes.insert(id, (self.history.len(), command));
        self.history.push(Operation::unknown(client, call, KvInput { key: name(key), action }));
    }

    /// A command was executed where its client waits.
    pub(super) fn written(&mut self, id: EntryId, outcome: Outcome) {
        let at = self.tick();
        let Some((place, _)) = self.writes.remove(&id) else { return };
        let Outcome { before, wrote, revision } = outcome;
        let output = if wrote {
            KvOutput::Written { revision }
        } else {
            KvOutput::NotSwapped { seen: before.map(|value| (value, 0)), revision }
        };
        self.history[place].completion = Some(Completion { at, output });
    }

    /// A command was certainly not executed, and will not be.
    pub(super) fn retry(&mut self, id: EntryId) {
        self.retries.push(id);
    }

    /// A read may be served from `machine` now.
    pub(super) fn read(&mut self, context: u64, machine: &Machine) {
        let Some(Read { call, key, .. }) = self.reads.remove(&context) else { return };
        let (at, client) = (self.tick(), self.client());
        let seen = machine.registers.get(&key).map(|value| (*value, 0));
        let input = KvInput { key: name(key), action: Action::Get };
        let output = KvOutput::Got { seen, revision: machine.revision };
        self.history.push(Operation::answered(client, call, input, at, output));
    }

    /// A read must be asked again; who asked does not.
    pub(super) fn read_failed(&mut self, context: u64) {
        self.reads.remove(&context);
    }

    /// A store died, and its readers with it. What its writers asked for may still happen.
    pub(super) fn died(&mut self, store: StoreId) {
        self.reads.retain(|_, read| read.store != store);
    }

    /// Whether what the clients saw can be explained; `machine` has all that was ever executed.
    pub(super) fn check(&self, group: GroupId, machine: &Machine) -> Result<(), Violation> {
        let executed: BTreeSet<EntryId> = machine.executed.iter().copied().collect();
        // Where nobody knows the outcome but the command was not executed, nothing happened.
        let void: BTreeSet<usize> = self
            .writes
            .iter()
            .filter(|(id, _)| !executed.contains(id))
            .map(|(_, (place, _))| *place)
            .collect();
        let history: Vec<_> = (self.history.iter().enumerate())
            .filter(|(place, _)| !void.contains(place))
            .map(|(_, operation)| operation.clone())
            .collect();
        let report = check(&KvModel::CHECK_REVISIONS, &history, &LIMITS);
        match report.verdict {
            Verdict::Linearizable => Ok(()),
            Verdict::NotLinearizable(_) => violated("linearizability", format!("group {group}: {report}")),
            Verdict::Undecided(_) => violated("decidable history", format!("group {group}: {report}")),
        }
    }
}

fn name(key: u8) -> Arc<str> {
    format!("r{key}").into()
}

impl Cluster {
    pub(super) fn request(&mut self) -> Result<(), Violation> {
        let next = self.rng.between(1, self.profile.request_every_ms);
        self.after(next, Event::Request);
        // With many groups many are spoken to at once.
        for _ in 0..self.profile.groups.div_ceil(10) {
            let group = self.any_group();
            let stores = &self.groups[&group].stores;
            let Some(any) = self.rng.pick(stores) else { continue };
            // A client asks some store, which knows the leader or not. The wish to write to a deposed one is of interest.
            let core = self.stores[&any].replicas[&group].group.as_ref();
            if let Some(target) = core.and_then(Group::leader) {
                let batch = self.rng.between(1, 6);
                self.write(target.store, group, batch)?;
            }
            if self.rng.chance(400) && self.store(any).up {
                self.read(any, group)?;
            }
        }
        Ok(())
    }

    pub(super) fn any_group(&mut self) -> GroupId {
        GroupId(self.rng.between(1, self.profile.groups))
    }

    /// Proposes commands on `target`; its clients wait there.
    pub(super) fn write(&mut self, target: StoreId, group: GroupId, batch: u64) -> Result<(), Violation> {
        let padding = usize::try_from(self.rng.below(280)).expect("small");
        let mut proposals = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..batch {
            let (key, swap) = (self.rng.below(KEYS), self.rng.chance(250));
            let clients = &mut self.groups.get_mut(&group).expect("every group is there").clients;
            let key = u8::try_from(key).expect("few");
            let id = clients.retries.pop().unwrap_or_else(|| {
                let value = clients.history.len() as u64 + 1;
                let command = match clients.latest.get(&key) {
                    Some(expected) if swap => Command::Swap { key, expected: *expected, value },
                    _ => Command::Put { key, value },
                };
                let id = EntryId(u128::from(value));
                clients.begin(id, command);
                id
            });
            if let Some((_, command)) = clients.writes.get(&id) {
                proposals.push(Proposal::new(id, command.encode(padding)));
                ids.push(id);
            }
        }
        let mut accepted = false;
        self.act(target, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                accepted = core.propose(now, proposals).is_ok();
                if accepted {
                    host.waiting.extend(&ids);
                }
            }
        })?;
        if !accepted {
            self.group_mut(group).clients.retries.extend(ids);
        }
        Ok(())
    }

    /// Asks `target` for a read.
    pub(super) fn read(&mut self, target: StoreId, group: GroupId) -> Result<(), Violation> {
        let key = u8::try_from(self.rng.below(KEYS)).expect("few");
        let state = self.group_mut(group);
        let floor = state.invariants.committed_max();
        let context = state.invariants.reads.ask(super::cluster::replica(target), floor);
        let call = state.clients.tick();
        state.clients.reads.insert(context, Read { store: target, call, key });
        self.act(target, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                core.read_index(now, context);
            }
        })
    }
}
