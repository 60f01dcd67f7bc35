//! What the threads of a store share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use pontoon_raft_core::types::{Entry, GroupId, LogIndex, ReplicaId};

use crate::codec::{Change, Slot};
use crate::cold::tier::ColdTier;
use crate::config::Options;
use crate::disk::Disk;
use crate::error::StoreFailed;
use crate::header::Header;
use crate::index::{CLEAN, ColdGarbage, GroupIndex, PENDING, Place};
use crate::journal::segment::Segment;
use crate::marker::MarkerFile;
use crate::space::SpaceSeen;
use crate::stats::Counters;

/// Called when a batch is durable, or will never be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StoreFailed>) + Send>;

/// A batch on its way to the disk.
pub(crate) struct Pending {
    pub(crate) seq: u64,
    /// The record's body, with room for the head before it.
    pub(crate) buffer: Vec<u8>,
    /// What the index is told when the batch is written.
    pub(crate) writes: Vec<PendingWrite>,
    pub(crate) note: Option<String>,
    pub(crate) done: Done,
}

/// One group's part of a [`Pending`].
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub(crate) group: GroupId,
    pub(crate) first: LogIndex,
    /// Offsets count from the begin of the body.
    pub(crate) slots: Vec<Slot>,
}

/// A group that was destroyed.
#[derive(Debug)]
pub(crate) struct Tomb {
    pub(crate) replica: ReplicaId,
    pub(crate) dirty: u32,
}

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) value: Bytes,
    pub(crate) dirty: u32,
}

/// A segment that is needed, and the batch that its first record begins, or will begin, with.
#[derive(Debug)]
pub(crate) struct LiveSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) first_batch: u64,
}

/// Why a spare segment could not be made.
#[derive(Debug)]
pub(crate) struct SpareError {
    pub(crate) what: String,
    /// The writer was waiting for it: the reserve was to be used, too.
    pub(crate) urgent: bool,
}

/// Entries in memory, in the order they came: which to give up first.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) bytes: i64,
    order: VecDeque<(GroupId, LogIndex)>,
}

/// How many remembered runs of cached entries there may be: idle groups' few entries leave the cache after this many
/// writes of others, so that they don't keep the list growing.
const CACHE_RUNS_MAX: usize = 64 << 10;

/// How many buffers are kept to be filled again, and how long each may be: enough for those who submit at a time. A
/// fresh buffer for each batch costs more than what is written into it.
const BUFFERS: usize = 8;
const BUFFER_BYTES_MAX: usize = 256 << 10;

/// Everything behind the store's one lock. It is held for short times only, never during I/O.
pub(crate) struct State {
    /// Boxed: the table has room for more groups than there are.
    pub(crate) groups: HashMap<GroupId, Box<GroupIndex>>,
    pub(crate) tombs: HashMap<GroupId, Tomb>,
    pub(crate) notes: BTreeMap<String, Note>,
    pub(crate) header: Option<Header>,
    pub(crate) queue: VecDeque<Pending>,
    /// Bytes of submitted batches that are not durable.
    pub(crate) pending_bytes: u64,
    /// The number of the next batch.
    pub(crate) next_seq: u64,
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
    pub(crate) cache: Cache,
    pub(crate) garbage: Vec<ColdGarbage>,
    pub(crate) failed: Option<StoreFailed>,
    pub(crate) stopping: bool,
    pub(crate) writer_gone: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("groups", &self.groups.len())
            .field("next_seq", &self.next_seq)
            .finish_non_exhaustive()
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
    buffers: Mutex<Vec<Vec<u8>>>,
    /// There is a batch to write, or the end has come.
    pub(crate) work: Condvar,
    /// There may be a spare to make.
    pub(crate) spare_work: Condvar,
    /// There may be a segment to checkpoint.
    pub(crate) checkpoint_work: Condvar,
    /// `durable`, `spares` or `failed` changed.
    pub(crate) progress: Condvar,
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
            buffers: Mutex::default(),
            work: Condvar::new(),
            spare_work: Condvar::new(),
            checkpoint_work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No caller's code runs under the lock, so a poisoned one holds no half-done change of theirs.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty buffer with room for `bytes`.
    pub(crate) fn take_buffer(&self, bytes: usize) -> Vec<u8> {
        let mut buffer =
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.clear();
        buffer.reserve(bytes);
        buffer
    }

    /// Takes back a buffer that was written.
    pub(crate) fn give_buffer(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_BYTES_MAX {
            let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            if buffers.len() < BUFFERS {
                buffers.push(buffer);
            }
        }
    }

    pub(crate) fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        on.wait(state).unwrap_or_else(PoisonError::into_inner)
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
        self.work.notify_all();
        self.spare_work.notify_all();
        self.checkpoint_work.notify_all();
        self.progress.notify_all();
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
    /// Checks a batch against the rules, group by group, and carries it out in the index. On an error nothing is
    /// changed for the group at fault, but groups before it are; the store fails as a whole then.
    pub(crate) fn apply(&mut self, seq: u64, change: &Change, entries: Vec<Entry>) -> Result<(), String> {
        let id = change.group;
        if !self.groups.contains_key(&id) {
            let tomb = self.tombs.get(&id);
            match (change.create, tomb) {
                (Some(replica), Some(tomb)) if replica.number <= tomb.replica.number => {
                    return Err(format!(
                        "group {id}: replica {replica} cannot be created, {} was destroyed before: replica numbers are never reused",
                        tomb.replica
                    ));
                }
                (Some(replica), _) => {
                    self.groups.insert(id, Box::new(GroupIndex::new(replica)));
                }
                // A late write of somebody who has not heard yet.
                (None, Some(_)) => return Ok(()),
                (None, None) => {
                    return Err(format!("group {id} does not exist here: create it in its first write"));
                }
            }
        }
        let group = self.groups.get_mut(&id).expect("looked up or inserted above");
        group.check(change).map_err(|rule| format!("group {id}: {rule}"))?;
        let place = |slot: &Slot| Place { segment: PENDING, offset: seq as u32, shape: slot.shape };
        self.cache.bytes += group.apply(change, entries, place, &mut self.garbage);
        if let Some(last) = change.slots.len().checked_sub(1) {
            self.cache.order.push_back((id, change.first + last as u64));
        }
        if change.destroy {
            self.cache.bytes -= group.clear(id, &mut self.garbage);
            let (replica, dirty) = (group.replica, group.dirty);
            self.groups.remove(&id);
            let older = self.tombs.get(&id).map_or(CLEAN, |tomb| tomb.dirty);
            self.tombs.insert(id, Tomb { replica, dirty: dirty.min(older) });
        }
        Ok(())
    }

    /// A round is durable: tells the index where its batches lie. `body_at` is where each one's body begins.
    pub(crate) fn written(&mut self, segment: u32, pending: &Pending, body_at: u64) {
        // The last first: of two writes to one index in a batch, the later one's place counts.
        for write in pending.writes.iter().rev() {
            if let Some(group) = self.groups.get_mut(&write.group) {
                group.dirty = group.dirty.min(segment);
                let places = write.slots.iter().map(|slot| Place {
                    segment,
                    offset: body_at as u32 + slot.offset,
                    shape: slot.shape,
                });
                group.written(pending.seq, write.first, places);
            }
            // Also when the group lives again: until sled has its newer state, it must not lose the older news.
            if let Some(tomb) = self.tombs.get_mut(&write.group) {
                tomb.dirty = tomb.dirty.min(segment);
            }
        }
        if let Some(note) = pending.note.as_ref().and_then(|key| self.notes.get_mut(key)) {
            note.dirty = note.dirty.min(segment);
        }
    }

    /// Gives up cached entries until the cache is within its bound.
    pub(crate) fn evict(&mut self, bytes_max: u64) {
        while let Some(&(group, last)) = self.cache.order.front() {
            let stale = self.groups.get(&group).is_none_or(|g| g.tail_first() > last);
            if !stale && self.cache.bytes <= bytes_max as i64 && self.cache.order.len() <= CACHE_RUNS_MAX {
                break;
            }
            if let Some(group) = self.groups.get_mut(&group) {
                let (bytes, all) = group.evict(last);
                self.cache.bytes -= bytes;
                if !all {
                    break;
                }
            }
            self.cache.order.pop_front();
        }
    }

    /// The id that the next spare gets.
    pub(crate) fn next_segment(&self) -> u32 {
        let newest = self.segments.last_key_value().map_or(0, |(id, _)| *id);
        self.spares.back().map_or(newest, |spare| spare.id) + 1
    }

    pub(crate) fn newest_segment(&self) -> &LiveSegment {
        self.segments.last_key_value().expect("there is always a segment to write to").1
    }

    /// The oldest segment with changes that sled lacks is at or before `segment`.
    pub(crate) fn is_dirty(dirty: u32, segment: u32) -> bool {
        dirty != CLEAN && dirty <= segment
    }
}
