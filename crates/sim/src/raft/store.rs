//! One simulated store: a process with one disk and one clock, which drives the replicas of many groups.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft_core::{
    Config, EntryId, Group, GroupId, InitialState, LogIndex, ReplicaId, SnapshotMeta, StoreId, Ticket,
};

use super::disk::{Disk, Written};
use super::machine::Machine;
use super::profile::Profile;
use super::rng::Rng;

/// A replica and what its host keeps for it.
#[derive(Debug)]
pub struct Replica {
    /// Its part of the store's disk.
    pub disk: Disk,
    /// The replica, while the store lives.
    pub group: Option<Group<Disk>>,
    /// The state.
    pub machine: Machine,
    /// The next tick that is scheduled, in the store's own time.
    pub tick_at: Option<u64>,
    /// Commands whose clients wait here.
    pub waiting: BTreeSet<EntryId>,
    /// Reads whose index is known and not applied yet.
    pub reads: BTreeSet<(LogIndex, u64)>,
    /// Snapshots that arrived and were not installed.
    pub arrived: BTreeMap<LogIndex, Machine>,
    /// It has lost its last record, and that is not settled.
    pub lost: bool,
}

/// The one disk of a store: it writes the batches of all groups in rounds, one after the other. A round is one record: it
/// is there as a whole or, torn, not at all.
#[derive(Debug, Default)]
pub struct StoreDisk {
    /// The round that gathers.
    open: u64,
    /// Its batches.
    gathered: BTreeMap<GroupId, Ticket>,
    /// The round that is being written, and its batches.
    writing: Option<(u64, BTreeMap<GroupId, Ticket>)>,
    /// Nothing is written before this time.
    pub hangs_until: u64,
    /// A write failed. That is final for this life of the store.
    pub failed: bool,
    /// The last round that is durable; 0: none.
    durable: u64,
}

impl StoreDisk {
    /// The number of the round that a write joins.
    pub fn round(&self) -> u64 {
        self.open
    }

    /// A batch joins the round that gathers.
    pub fn gather(&mut self, group: GroupId, ticket: Ticket) {
        self.gathered.insert(group, ticket);
    }

    /// Begins to write what has gathered, if it is idle. Returns whether it begins.
    pub fn begin(&mut self) -> bool {
        if self.failed || self.writing.is_some() || self.gathered.is_empty() {
            return false;
        }
        self.writing = Some((self.open, std::mem::take(&mut self.gathered)));
        self.open += 1;
        true
    }

    /// The round is written. Returns its number and its batches.
    pub fn end(&mut self) -> Option<(u64, BTreeMap<GroupId, Ticket>)> {
        let written = if self.failed { None } else { self.writing.take() };
        if let Some((round, _)) = &written {
            self.durable = *round;
        }
        written
    }

    /// The power fails. Returns the last round that survives, and whether the one after it is torn.
    fn crash(&mut self, rng: &mut Rng) -> (u64, bool) {
        let writing = self.writing.take();
        let before = writing.as_ref().map_or(self.open, |(round, _)| *round);
        let survives = writing.is_some() && rng.chance(400);
        let torn = writing.is_some() && !survives && rng.chance(500);
        let last = if survives { before + 1 } else { before };
        let durable = if survives { before } else { self.durable };
        *self = Self { open: self.open + 1, durable, ..Self::default() };
        (last, torn)
    }
}

/// A store.
#[derive(Debug)]
pub struct Store {
    /// Which one.
    pub id: StoreId,
    /// Whether it runs.
    pub up: bool,
    /// Grows with each start and each death: what was under way for an earlier life is void.
    pub life: u64,
    /// Does nothing before this time.
    pub paused_until: u64,
    /// Milliseconds that its clock counts in a second.
    clock_permille: u64,
    /// What its clock shows at the beginning.
    clock_origin: u64,
    /// Its disk.
    pub disk: StoreDisk,
    /// The last crash left a torn record: what it held, nobody can know.
    pub torn: bool,
    /// The last record was torn, or lost though it was acknowledged, and that is not settled: the replicas start in doubt.
    pub doubt: bool,
    /// Its replicas.
    pub replicas: BTreeMap<GroupId, Replica>,
}

impl Store {
    /// A store without replicas, not yet running.
    pub fn new(id: StoreId, clock_permille: u64, clock_origin: u64) -> Self {
        Self {
            id,
            up: false,
            life: 0,
            paused_until: 0,
            clock_permille,
            clock_origin,
            disk: StoreDisk::default(),
            torn: false,
            doubt: false,
            replicas: BTreeMap::new(),
        }
    }

    /// Adds a fresh replica.
    pub fn add(&mut self, group: GroupId, snapshot: SnapshotMeta, forgetful: bool) {
        let replica = Replica {
            disk: Disk::new(snapshot, forgetful),
            group: None,
            machine: Machine::default(),
            tick_at: None,
            waiting: BTreeSet::new(),
            reads: BTreeSet::new(),
            arrived: BTreeMap::new(),
            lost: false,
        };
        self.replicas.insert(group, replica);
    }

    /// What the store's clock shows at `now`.
    pub fn local(&self, now: u64) -> u64 {
        self.clock_origin + now * self.clock_permille / 1_000
    }

    /// How long it takes from `now` until the store's clock shows `local`.
    pub fn until(&self, now: u64, local: u64) -> u64 {
        let at = (local.saturating_sub(self.clock_origin) * 1_000).div_ceil(self.clock_permille);
        at.saturating_sub(now)
    }

    /// Starts all replicas from what the disk remembers.
    pub fn start(&mut self, profile: &Profile, seed: u64, now: u64) {
        self.life += 1;
        self.up = true;
        self.paused_until = 0;
        let (local, id, doubt) = (self.local(now), ReplicaId { store: self.id, number: 1 }, self.doubt);
        for (group, replica) in &mut self.replicas {
            replica.tick_at = None;
            let initial = replica.disk.durable(|content| {
                replica.machine = content.machine.clone();
                // A state from the log's begin: what is between comes from the log again.
                InitialState {
                    hard_state: content.hard_state,
                    commit: content.commit.min(content.last()),
                    applied: content.machine.applied.max(content.snapshot.index),
                    snapshot: content.snapshot.clone(),
                    last_index: content.last(),
                    doubt,
                }
            });
            let config = Config {
                id,
                seed: seed ^ (self.life << 32) ^ (group.0 << 8) ^ self.id.0,
                append_bytes_max: profile.append_bytes_max,
                inflight_messages_max: profile.inflight_messages_max,
                pre_vote: profile.pre_vote,
                quiesce_after_ms: profile.quiesce_after_ms,
                align_heartbeats: profile.align_heartbeats,
                lease_margin_ms: profile.lease_margin_ms,
                ..Config::default()
            };
            let started = Group::new(config, initial, replica.disk.clone(), local);
            replica.group = Some(started.expect("the disk kept its promises"));
        }
    }

    /// The power fails: what was not written is lost. Returns the entries that turn out to be durable.
    /// `doubts`: a torn record leaves the store in doubt.
    pub fn crash(&mut self, rng: &mut Rng, doubts: bool) -> BTreeMap<GroupId, Vec<Written>> {
        self.up = false;
        self.life += 1;
        let (round, torn) = self.disk.crash(rng);
        self.torn = torn;
        self.doubt |= torn && doubts;
        let mut survived = BTreeMap::new();
        for (group, replica) in &mut self.replicas {
            replica.group = None;
            replica.waiting.clear();
            replica.reads.clear();
            replica.arrived.clear();
            survived.insert(*group, replica.disk.crash(round));
        }
        survived
    }

    /// The groups that the last durable record is about, if there is one.
    pub fn last_record(&self) -> Vec<GroupId> {
        let round = self.disk.durable;
        let of = |(group, replica): (&GroupId, &Replica)| {
            (round > 0 && replica.disk.last_round() == round).then_some(*group)
        };
        self.replicas.iter().filter_map(of).collect()
    }

    /// The last durable record is damaged, and nobody can tell it from a torn one. Called after a crash.
    pub fn lose_last_record(&mut self) {
        for group in self.last_record() {
            if let Some(replica) = self.replicas.get_mut(&group) {
                replica.disk.lose_last();
                replica.lost = true;
            }
        }
        self.doubt = true;
        self.disk.durable = 0;
    }

    /// Notes which replicas are in doubt no more. Returns whether that ended the store's doubt.
    pub fn note_settled(&mut self) -> bool {
        let mut settled = self.doubt && self.up;
        for replica in self.replicas.values_mut() {
            let in_doubt = replica.group.as_ref().is_none_or(Group::in_doubt);
            replica.lost &= in_doubt;
            settled &= !in_doubt;
        }
        self.doubt &= !settled;
        settled
    }
}
