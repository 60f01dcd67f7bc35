//! What the tests of the store share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod format;
pub(crate) mod hostile;
pub(crate) mod power;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_raft_core::types::*;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{Batch, GroupWrite, LogStore, OpenError, Options, RecoveryReport, StoreFailed};

pub(crate) fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

/// An entry whose contents follow from where it is, so that any reader can check them.
pub(crate) fn entry(group: u64, index: u64, term: u64, len: usize) -> Entry {
    Entry {
        index: LogIndex(index),
        term: Term(term),
        id: EntryId((u128::from(group) << 64) | u128::from(index)),
        payload: Payload::Command(Bytes::from(fill(group, index, term, len))),
    }
}

pub(crate) fn fill(group: u64, index: u64, term: u64, len: usize) -> Vec<u8> {
    let mut x = group.wrapping_mul(31).wrapping_add(index).wrapping_mul(31).wrapping_add(term) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

pub(crate) fn meta(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta {
        index: LogIndex(index),
        term: Term(term),
        configuration: Configuration::of_voters([replica(1), replica(2), replica(3)]),
        election_timer_ms: 1000,
    }
}

pub(crate) fn hard_state(term: u64) -> Option<HardState> {
    Some(HardState { term: Term(term), voted_for: None })
}

pub(crate) fn write(group: u64) -> GroupWrite {
    GroupWrite { group: GroupId(group), ..GroupWrite::default() }
}

pub(crate) fn create(group: u64) -> GroupWrite {
    GroupWrite { create: Some(replica(1)), snapshot: Some(meta(0, 0)), ..write(group) }
}

pub(crate) fn append(group: u64, first: u64, count: u64, term: u64, len: usize) -> GroupWrite {
    GroupWrite {
        hard_state: hard_state(term),
        entries: (first..first + count).map(|i| entry(group, i, term, len)).collect(),
        ..write(group)
    }
}

pub(crate) fn of(groups: Vec<GroupWrite>) -> Batch {
    Batch { groups }
}

/// Submits and waits until it is durable.
pub(crate) fn put(store: &LogStore, groups: Vec<GroupWrite>) -> Result<(), StoreFailed> {
    store.commit(of(groups)).map(drop)
}

pub(crate) fn index_range(from: u64, to: u64) -> std::ops::Range<LogIndex> {
    LogIndex(from)..LogIndex(to)
}

/// All entries of a group, however many reads it takes.
pub(crate) fn all_entries(store: &LogStore, group: u64) -> Vec<Entry> {
    let Some(state) = store.group(GroupId(group)) else { return Vec::new() };
    let mut out = Vec::new();
    let mut at = state.first_index;
    while at <= state.last_index {
        let part = store.entries(GroupId(group), at..state.last_index.next(), 64 << 10).expect("readable");
        assert!(!part.is_empty());
        at = at + part.len() as u64;
        out.extend(part);
    }
    out
}

/// Small segments, so that a test meets many of them.
pub(crate) fn small() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 16 << 10;
    options.live_segments_max = 3;
    options.cache_bytes = 4 << 10;
    options.space_reserve_bytes = 0;
    options.checkpoint_bytes_per_second = 1 << 30;
    options.cold_cache_bytes = 1 << 20;
    // The simple cold tier is rewritten often; sled, whose smallest file is 8 MiB, after every checkpoint.
    options.cold_slack_bytes = 32 << 10;
    options
}

/// The same for sled, which is rewritten when it needs a second segment of its own.
pub(crate) fn small_sled() -> Options {
    let mut options = small();
    options.cold_slack_bytes = 12 << 20;
    options
}

pub(crate) fn open_memory(
    disk: &MemoryDisk,
    options: Options,
) -> Result<(LogStore, RecoveryReport), OpenError> {
    LogStore::open_on(Arc::new(disk.clone()), options)
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_dir(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

/// A directory for tests that ask nothing of the disk: in memory if there is such a place.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A group as a naive second version keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelGroup {
    pub(crate) hard_state: HardState,
    pub(crate) commit: u64,
    pub(crate) snapshot: SnapshotMeta,
    pub(crate) entries: BTreeMap<u64, Entry>,
}

impl ModelGroup {
    pub(crate) fn last_index(&self) -> u64 {
        self.entries.last_key_value().map_or(self.snapshot.index.0, |(i, _)| *i)
    }
    pub(crate) fn last_term(&self) -> u64 {
        self.entries.last_key_value().map_or(self.snapshot.term.0, |(_, e)| e.term.0)
    }
}

/// All groups, and the numbers of replicas that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) groups: BTreeMap<u64, ModelGroup>,
    pub(crate) destroyed: BTreeMap<u64, ReplicaId>,
    pub(crate) replicas: BTreeMap<u64, ReplicaId>,
}

impl Model {
    pub(crate) fn apply(&mut self, w: &GroupWrite) {
        let id = w.group.0;
        if let Some(replica) = w.create
            && !self.groups.contains_key(&id)
        {
            self.groups.insert(id, ModelGroup::default());
            self.replicas.insert(id, replica);
        }
        let Some(g) = self.groups.get_mut(&id) else { return };
        if let Some(hard_state) = w.hard_state {
            g.hard_state = hard_state;
        }
        if let Some(meta) = &w.snapshot {
            g.entries.clear();
            g.commit = meta.index.0;
            g.snapshot = meta.clone();
        }
        if let Some(from) = w.truncate_from {
            g.entries.retain(|i, _| *i < from.0);
        }
        for e in &w.entries {
            g.entries.insert(e.index.0, e.clone());
        }
        if let Some(commit) = w.commit {
            g.commit = g.commit.max(commit.0.min(g.last_index()));
        }
        if let Some(meta) = &w.compact
            && meta.index > g.snapshot.index
        {
            g.entries.retain(|i, _| *i > meta.index.0);
            g.commit = g.commit.max(meta.index.0);
            g.snapshot = meta.clone();
        }
        if w.destroy {
            self.groups.remove(&id);
            self.destroyed.insert(id, self.replicas[&id]);
        }
    }

    pub(crate) fn check(&self, store: &LogStore) {
        assert_eq!(store.groups(), self.groups.keys().map(|g| GroupId(*g)).collect::<Vec<_>>());
        for (id, replica) in &self.destroyed {
            let expected = (!self.groups.contains_key(id)).then_some(*replica);
            assert_eq!(store.tombstone(GroupId(*id)), expected, "tombstone of group {id}");
        }
        for (id, g) in &self.groups {
            let state = store.group(GroupId(*id)).expect("listed above");
            assert_eq!(state.replica, self.replicas[id], "group {id}");
            assert_eq!(state.hard_state, g.hard_state, "group {id}");
            assert_eq!(state.commit.0, g.commit, "group {id}");
            assert_eq!(state.snapshot, g.snapshot, "group {id}");
            assert_eq!(state.last_index.0, g.last_index(), "group {id}");
            let expected: Vec<_> = g.entries.values().cloned().collect();
            assert_eq!(all_entries(store, *id), expected, "group {id}");
            for e in &expected {
                assert_eq!(store.term(GroupId(*id), e.index), Some(e.term), "group {id}, entry {}", e.index);
            }
            assert_eq!(store.term(GroupId(*id), g.snapshot.index), Some(g.snapshot.term));
        }
    }
}

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// From `from` to `to`, both included.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }
}

impl Model {
    /// The model that a store's contents stand for.
    pub(crate) fn of_store(store: &LogStore, groups_max: u64) -> Self {
        let mut model = Self::default();
        for id in 1..=groups_max {
            if let Some(replica) = store.tombstone(GroupId(id)) {
                model.destroyed.insert(id, replica);
                model.replicas.insert(id, replica);
            }
            let Some(state) = store.group(GroupId(id)) else { continue };
            model.replicas.insert(id, state.replica);
            let entries = all_entries(store, id).into_iter().map(|e| (e.index.0, e)).collect();
            let group = ModelGroup {
                hard_state: state.hard_state,
                commit: state.commit.0,
                snapshot: state.snapshot,
                entries,
            };
            model.groups.insert(id, group);
        }
        model
    }

    /// A legal batch, which is carried out in the model too.
    pub(crate) fn random_batch(&mut self, random: &mut Random, groups_max: u64) -> Vec<GroupWrite> {
        let mut batch = Vec::new();
        for _ in 0..random.between(1, 3) {
            let w = self.random_write(random, groups_max);
            self.apply(&w);
            batch.push(w);
        }
        batch
    }

    fn random_write(&self, random: &mut Random, groups_max: u64) -> GroupWrite {
        // Group 1 is busy, the others mostly idle: their entries outlive their segments.
        let id = if random.between(0, 9) < 7 { 1 } else { random.between(1, groups_max) };
        let Some(g) = self.groups.get(&id) else {
            let number = self.destroyed.get(&id).map_or(1, |r| r.number + 1);
            let first = if random.between(0, 1) == 0 { Some(meta(0, 0)) } else { None };
            return GroupWrite {
                create: Some(ReplicaId { number, ..replica(1) }),
                snapshot: first,
                hard_state: hard_state(1),
                ..write(id)
            };
        };
        let (term, last, base) = (g.hard_state.term.0, g.last_index(), g.snapshot.index.0);
        let entries = |random: &mut Random, first: u64, term: u64| -> Vec<Entry> {
            let count = random.between(1, 4);
            let len = match random.between(0, 99) {
                0 => 40_000,
                1..5 => 3000,
                _ => random.between(0, 300),
            };
            (first..first + count).map(|i| entry(id, i, term, len as usize)).collect()
        };
        match random.between(0, 99) {
            0..60 => GroupWrite { entries: entries(random, last + 1, term), ..write(id) },
            60..70 if last > g.commit.max(base) => {
                let from = random.between(g.commit.max(base) + 1, last);
                GroupWrite {
                    hard_state: hard_state(term + 1),
                    truncate_from: Some(LogIndex(from)),
                    entries: entries(random, from, term + 1),
                    ..write(id)
                }
            }
            70..80 => GroupWrite { commit: Some(LogIndex(random.between(0, last))), ..write(id) },
            80..90 if last > base => {
                let to = random.between(base + 1, last);
                GroupWrite { compact: Some(meta(to, g.entries[&to].term.0)), ..write(id) }
            }
            90..92 => GroupWrite {
                snapshot: Some(meta(last + random.between(0, 9), term.max(g.last_term()))),
                ..write(id)
            },
            92..97 => GroupWrite {
                hard_state: Some(HardState { term: Term(term + 1), voted_for: Some(replica(2)) }),
                ..write(id)
            },
            97 if id > 1 => GroupWrite { destroy: true, ..write(id) },
            _ => GroupWrite { entries: entries(random, last + 1, term), ..write(id) },
        }
    }
}

/// Waits for something that another thread of the store does without being asked again.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "waited too long: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Waits until the store's threads have come so far.
pub(crate) fn until_stats(store: &LogStore, reached: impl Fn(&pontoon_storage::Stats) -> bool) {
    until("of the store's counters", || reached(&store.stats()));
}
