//! What the threads of a store share.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pontoon_raft_core::types::ReplicaId;

use crate::codec::Change;
use crate::cold::tier::ColdTier;
use crate::config::Options;
use crate::disk::Disk;
use crate::error::StoreFailed;
use crate::header::Header;
use crate::index::{CLEAN, ColdGarbage, GroupIndex, GroupMap};
use crate::journal::segment::Segment;
use crate::marker::MarkerFile;
use crate::recent::Recent;
use crate::space::SpaceSeen;
use crate::stats::Counters;

/// Called when a batch is durable, or will never be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StoreFailed>) + Send>;

/// A batch on its way to the disk.
pub(crate) struct Pending {
    pub(crate) number: u64,
    /// Its part of a record's body.
    pub(crate) bytes: Bytes,
    /// How many entries are in it.
    pub(crate) entries: u64,
    pub(crate) done: Done,
}

/// A group that was destroyed.
#[derive(Debug)]
pub(crate) struct Tomb {
    pub(crate) replica: ReplicaId,
    pub(crate) dirty: u64,
}

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) value: Bytes,
    pub(crate) dirty: u64,
}

/// A segment that is needed, and what is in it.
#[derive(Debug)]
pub(crate) struct LiveSegment {
    pub(crate) segment: Arc<Segment>,
    /// The batch that its first record begins, or will begin, with.
    pub(crate) first_batch: u64,
    /// Where each batch begins in it.
    batches: Vec<u32>,
}

impl LiveSegment {
    pub(crate) fn new(segment: Arc<Segment>, first_batch: u64) -> Self {
        Self { segment, first_batch, batches: Vec::new() }
    }

    /// The next batch begins here.
    pub(crate) fn push_batch(&mut self, offset: u32) {
        // By a quarter of what there is: a table that doubles would take twice what it needs.
        if self.batches.len() == self.batches.capacity() {
            self.batches.reserve_exact((self.batches.len() / 4).max(64));
        }
        self.batches.push(offset);
    }

    /// Where a batch begins that was written to it.
    pub(crate) fn location(&self, batch: u64) -> Option<(&Arc<Segment>, u64)> {
        let at = self.batches.get(usize::try_from(batch.checked_sub(self.first_batch)?).ok()?)?;
        Some((&self.segment, u64::from(*at)))
    }
}

/// Why a spare segment could not be made.
#[derive(Debug)]
pub(crate) struct SpareError {
    pub(crate) what: String,
    /// The writer was waiting for it: the reserve was to be used, too.
    pub(crate) urgent: bool,
}

/// Everything behind the store's one lock. It is held for short times only, never during I/O.
pub(crate) struct State {
    /// Boxed: the table has room for more groups than there are.
    pub(crate) groups: GroupMap<Box<GroupIndex>>,
    pub(crate) tombs: GroupMap<Tomb>,
    pub(crate) notes: BTreeMap<String, Note>,
    pub(crate) header: Option<Header>,
    pub(crate) queue: VecDeque<Pending>,
    /// A thread has taken a round and makes it durable. The next one is begun after that, so rounds are in order.
    pub(crate) committing: bool,
    /// Bytes of submitted batches that are not durable.
    pub(crate) pending_bytes: u64,
    /// The number of the next batch.
    pub(crate) next_batch: u64,
    /// All batches to this one are durable.
    pub(crate) durable: u64,
    pub(crate) segments: BTreeMap<u32, LiveSegment>,
    /// Ready to be written, in the order of their ids, which follow the newest live segment's.
    pub(crate) spares: VecDeque<Arc<Segment>>,
    /// The writer needs a segment of at least this size.
    pub(crate) spare_wanted: Option<u64>,
    /// Why the last spare could not be made.
    pub(crate) spare_error: Option<SpareError>,
    /// Not needed any more; their files can be used again when no reader has them.
    pub(crate) retired: Vec<Arc<Segment>>,
    pub(crate) recent: Recent,
    pub(crate) garbage: Vec<ColdGarbage>,
    pub(crate) failed: Option<StoreFailed>,
    pub(crate) stopping: bool,
    pub(crate) writer_gone: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("groups", &self.groups.len())
            .field("next_batch", &self.next_batch)
            .finish_non_exhaustive()
    }
}

/// Something that threads wait for, beside the store's lock. Waking nobody costs no call of the system.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    condvar: Condvar,
    /// Changed under the store's lock only, so whoever changes what is waited for under the lock sees who waits for it.
    waiting: AtomicUsize,
}

impl Signal {
    /// Gives up the lock until somebody notifies, or for no reason.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.waiting.fetch_add(1, Relaxed);
        let state = self.condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Relaxed);
        state
    }

    /// The same for at most `time`; `true`: it has passed.
    pub(crate) fn wait_for<'a>(
        &self,
        state: MutexGuard<'a, State>,
        time: Duration,
    ) -> (MutexGuard<'a, State>, bool) {
        self.waiting.fetch_add(1, Relaxed);
        let (state, waited) = self.condvar.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Relaxed);
        (state, waited.timed_out())
    }

    /// Wakes all who wait. What they wait for was changed under the lock.
    pub(crate) fn notify(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// What the handle, the writer and the background threads have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) cold: ColdTier,
    pub(crate) marker: MarkerFile,
    pub(crate) journal: u64,
    pub(crate) counters: Counters,
    pub(crate) space: SpaceSeen,
    pub(crate) opened: Instant,
    pub(crate) recovery_seconds: f64,
    state: Mutex<State>,
    /// There is a batch to write, or the end has come.
    pub(crate) work: Signal,
    /// There may be a spare to make.
    pub(crate) spare_work: Signal,
    /// There may be a segment to checkpoint.
    pub(crate) checkpoint_work: Signal,
    /// `durable`, `spares` or `failed` changed.
    pub(crate) progress: Signal,
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "called once, by recovery, with what it found")]
    pub(crate) fn new(
        options: Options,
        disk: Arc<dyn Disk>,
        cold: ColdTier,
        marker: MarkerFile,
        journal: u64,
        opened: Instant,
        recovery_seconds: f64,
        state: State,
    ) -> Self {
        Self {
            options,
            disk,
            cold,
            marker,
            journal,
            counters: Counters::default(),
            space: SpaceSeen::default(),
            opened,
            recovery_seconds,
            state: Mutex::new(state),
            work: Signal::default(),
            spare_work: Signal::default(),
            checkpoint_work: Signal::default(),
            progress: Signal::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No caller's code runs under the lock, so a poisoned one holds no half-done change of theirs.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the store takes no writes. The first reason stays.
    pub(crate) fn fail(&self, reason: &str) -> StoreFailed {
        let mut state = self.lock();
        let failed = state.failed.get_or_insert_with(|| StoreFailed::new(reason)).clone();
        drop(state);
        tracing::error!(reason, "the log store has failed and takes no more writes");
        self.wake_all();
        failed
    }

    pub(crate) fn wake_all(&self) {
        self.work.notify();
        self.spare_work.notify();
        self.checkpoint_work.notify();
        self.progress.notify();
    }

    pub(crate) fn micros(&self) -> u64 {
        self.opened.elapsed().as_micros() as u64
    }

    /// For how long the running round has been at it.
    pub(crate) fn round_micros(&self) -> u64 {
        match self.counters.round_began.load(Relaxed) {
            0 => 0,
            began => (self.micros() + 1).saturating_sub(began),
        }
    }
}

impl State {
    /// Checks a change of batch `batch` against the rules, and carries it out in the index. On an error nothing is changed
    /// for the group at fault, but groups before it are; the store fails as a whole then.
    pub(crate) fn apply(&mut self, batch: u64, change: &Change<'_>) -> Result<(), String> {
        let id = change.group;
        // Also when the group lives again: until sled has its newer state, it must not lose the older news.
        let destroyed = self.tombs.get_mut(&id).map(|tomb| {
            tomb.dirty = tomb.dirty.min(batch);
            tomb.replica
        });
        let group = match (self.groups.entry(id), change.create, destroyed) {
            (Occupied(group), ..) => group.into_mut(),
            (Vacant(_), Some(replica), Some(destroyed)) if replica.number <= destroyed.number => {
                return Err(format!(
                    "group {id}: replica {replica} cannot be created, {destroyed} was destroyed before: replica numbers are never reused"
                ));
            }
            (Vacant(room), Some(replica), _) => room.insert(Box::new(GroupIndex::new(replica))),
            // A late write of somebody who has not heard yet.
            (Vacant(_), None, Some(_)) => return Ok(()),
            (Vacant(_), None, None) => {
                return Err(format!("group {id} does not exist here: create it in its first write"));
            }
        };
        group.check(change).map_err(|rule| format!("group {id}: {rule}"))?;
        group.apply(change, batch, 0, &mut self.garbage);
        if change.destroy {
            group.clear(id, &mut self.garbage);
            let (replica, dirty) = (group.replica, group.dirty);
            self.groups.remove(&id);
            let older = self.tombs.get(&id).map_or(CLEAN, |tomb| tomb.dirty);
            self.tombs.insert(id, Tomb { replica, dirty: dirty.min(older) });
        }
        Ok(())
    }

    /// Whether what is submitted may become durable.
    pub(crate) fn takes_writes(&self) -> bool {
        self.failed.is_none() && !self.writer_gone
    }

    /// Gives the next number to a batch, and keeps its bytes for readers.
    pub(crate) fn number(&mut self, bytes: &Bytes) -> u64 {
        let number = self.next_batch;
        self.next_batch += 1;
        // Later ones of a store that has failed are answered, and forgotten.
        if self.takes_writes() {
            self.pending_bytes += bytes.len() as u64;
            self.recent.push(bytes.clone());
        }
        number
    }

    /// Where a batch begins that was written: its segment, and the offset there.
    pub(crate) fn location(&self, batch: u64) -> Option<(&Arc<Segment>, u64)> {
        self.segments.values().rev().find(|live| live.first_batch <= batch)?.location(batch)
    }

    /// What the tables of the journal's batches take in memory, in bytes.
    pub(crate) fn batch_table_bytes(&self) -> usize {
        self.segments.values().map(|live| live.batches.capacity() * size_of::<u32>()).sum()
    }

    /// The id that the next spare gets.
    pub(crate) fn next_segment(&self) -> u32 {
        let newest = self.segments.last_key_value().map_or(0, |(id, _)| *id);
        self.spares.back().map_or(newest, |spare| spare.id) + 1
    }

    pub(crate) fn newest_segment(&self) -> &LiveSegment {
        self.segments.last_key_value().expect("there is always a segment to write to").1
    }
}
