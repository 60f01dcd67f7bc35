//! The public handle.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use pontoon_raft_core::log_view::{LogReadError, LogView};
use pontoon_raft_core::types::{Entry, GroupId, LogIndex, ReplicaId, Term};

use crate::batch::{Batch, BatchSeq, GroupState, GroupWrite};
use crate::checkpoint;
use crate::codec::{self, Change, Slot};
use crate::cold;
use crate::committer::{self, Committer};
use crate::config::Options;
use crate::disk::{Disk, RealDisk};
use crate::error::{InitializeError, NoteError, OpenError, StoreFailed};
use crate::header::Header;
use crate::index::{CLEAN, GroupIndex};
use crate::lock::Lock;
use crate::reader;
use crate::recovery::{self, RecoveryReport};
use crate::space::{NoSpace, Space};
use crate::spares;
use crate::state::{Done, Note, Pending, Shared, State};
use crate::stats::Stats;

/// Notes' keys are at most this long.
const NOTE_KEY_BYTES_MAX: usize = 256;
/// Notes' values are at most this long: one value of the cold tier.
const NOTE_VALUE_BYTES_MAX: usize = cold::VALUE_BYTES_MAX;
/// A record's body is at most this long, whatever a batch holds.
const BATCH_BYTES_MAX: usize = 512 << 20;

/// A durable log for many Raft groups. Clones are handles to the same store; when the last one is dropped, the store is
/// closed in order.
///
/// See the crate's documentation for what it promises.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    committer: Arc<Mutex<Committer>>,
    threads: Mutex<Threads>,
    /// Makes `initialize` one at a time; `None` after closing.
    _lock: Option<Lock>,
    initialize: Mutex<()>,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("disk", &self.inner.shared.disk).finish_non_exhaustive()
    }
}

impl LogStore {
    /// Opens the store in directory `dir`, which belongs to this process until the store is closed. A directory that is
    /// empty or not there becomes a new store.
    ///
    /// # Errors
    /// Another process has the directory, or what is in it does not add up. Nothing can be read or written then: see
    /// [`OpenError`] for what to do.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, RecoveryReport), OpenError> {
        let place = dir.display().to_string();
        let disk = RealDisk::new(dir).map_err(OpenError::io("open directory", place))?;
        let lock = Lock::acquire(dir)?;
        Self::start(Arc::new(disk), options, Some(lock))
    }

    /// Opens a store on another [`Disk`]; there is no lock. On one that is no directory of the operating system, a simple
    /// cold tier takes the place of sled. For tests and simulations.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, RecoveryReport), OpenError> {
        Self::start(disk, options, None)
    }

    fn start(
        disk: Arc<dyn Disk>,
        options: Options,
        lock: Option<Lock>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let recovered = recovery::open(disk, options.bounded())?;
        let shared = Arc::new(recovered.shared);
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(f).map_err(OpenError::io("start thread", name))
        };
        let name = recovered.segment.name.clone();
        let committer = Committer::new(Arc::clone(&shared), recovered.segment, recovered.offset)
            .map_err(OpenError::io("read", name))?;
        let committer = Arc::new(Mutex::new(committer));
        let for_writer = (Arc::clone(&shared), Arc::clone(&committer));
        let for_spares = Arc::clone(&shared);
        let next_file = recovered.next_file;
        let for_checkpoint = Arc::clone(&shared);
        let writer = spawn("log-writer", Box::new(move || committer::run(&for_writer.0, &for_writer.1)))?;
        let others = vec![
            spawn("log-spares", Box::new(move || spares::run(&for_spares, next_file)))?,
            spawn("log-checkpoint", Box::new(move || checkpoint::run(&for_checkpoint)))?,
        ];
        let threads = Mutex::new(Threads { writer: Some(writer), others });
        let inner = Inner { shared, committer, threads, _lock: lock, initialize: Mutex::new(()) };
        Ok((Self { inner: Arc::new(inner) }, recovered.report))
    }

    /// Hands a batch to the writer. Never waits for the disk. What the batch says is readable from now on; it is
    /// durable when `done` is called with `Ok`. `done` runs on the writer's thread, in submit order, and must not block
    /// there.
    ///
    /// The store does not bound what is waiting (see [`Stats::pending_bytes`]): whoever submits bounds its own input.
    ///
    /// A batch that breaks a rule of the log (a gap, a term that goes down, a vote that changes, a group that is not
    /// there) can only come from an error in the program. The store fails then, as it does when the disk fails, and
    /// says which rule it was.
    pub fn submit(&self, batch: Batch, done: Done) -> BatchSeq {
        let shared = &self.inner.shared;
        let encoded = Encoded::of(&batch);
        let mut state = shared.lock();
        let number = encoded.apply(&batch, &mut state);
        self.enqueue(state, encoded.pending(number, done));
        BatchSeq(number)
    }

    /// Makes a batch durable, and returns when it is: [`submit`](Self::submit) for who has nothing else to do meanwhile.
    /// While no other batch is under way, the calling thread writes to the disk itself, without waking another one;
    /// batches that come from several threads at once share rounds.
    ///
    /// It waits for the disk, so it must not be called from a `done`, nor where a thread serves other tasks.
    ///
    /// # Errors
    /// The store has failed, or fails now, or was closed: whether the batch is durable is not known.
    pub fn commit(&self, batch: Batch) -> Result<BatchSeq, StoreFailed> {
        let shared = &self.inner.shared;
        let encoded = Encoded::of(&batch);
        let mut state = shared.lock();
        let number = encoded.apply(&batch, &mut state);
        let is_alone = state.queue.is_empty() && !state.committing && !state.stopping;
        if is_alone {
            state.committing = true;
            drop(state);
            committer::commit(&self.inner.committer, &[encoded.pending(number, Box::new(|_| ()))])?;
        } else {
            let (sender, receiver) = mpsc::sync_channel(1);
            let done = Box::new(move |outcome| {
                let _ = sender.send(outcome); // the receiver waits below
            });
            self.enqueue(state, encoded.pending(number, done));
            receiver.recv().unwrap_or_else(|_| Err(closed_error()))?;
        }
        Ok(BatchSeq(number))
    }

    /// Gives a batch to the writer thread; answers it at once if there is none any more.
    fn enqueue(&self, mut state: MutexGuard<'_, State>, pending: Pending) {
        if state.writer_gone {
            // Nobody is left to answer in order.
            drop(state);
            (pending.done)(Err(closed_error()));
        } else {
            state.queue.push_back(pending);
            drop(state);
            self.inner.shared.work.notify();
        }
    }

    /// Reads entries of `range` in order, until their `size_bytes` would pass `bytes_max`; always at least one if the
    /// range is not empty. Never waits for the writer.
    ///
    /// Their data are slices of what they were read from, a whole batch at most or a mebibyte: whoever keeps a small part
    /// for long copies it.
    ///
    /// # Errors
    /// An entry of the range is not there, or cannot be read.
    pub fn entries(
        &self,
        group: GroupId,
        range: Range<LogIndex>,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogReadError> {
        reader::entries(&self.inner.shared, group, range, bytes_max)
    }

    /// The end (half-open) of the longest run of entries that starts at `range.start`, stays within `range` and the log,
    /// and holds at most `bytes_max`; at least one entry if there is one. Reads no entry.
    pub fn extent(&self, group: GroupId, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        self.inner.shared.lock().groups.get(&group).map_or(range.start, |g| g.extent(&range, bytes_max))
    }

    /// The term of the entry at `index`, or of what the log begins after.
    pub fn term(&self, group: GroupId, index: LogIndex) -> Option<Term> {
        self.inner.shared.lock().groups.get(&group)?.term(index)
    }

    /// The state of a group, as submitted.
    pub fn group(&self, group: GroupId) -> Option<GroupState> {
        Some(self.inner.shared.lock().groups.get(&group)?.state())
    }

    /// The groups that exist, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> = self.inner.shared.lock().groups.keys().copied().collect();
        groups.sort_unstable();
        groups
    }

    /// The replica of `group` that was destroyed here last, if the group does not live here again.
    pub fn tombstone(&self, group: GroupId) -> Option<ReplicaId> {
        let state = self.inner.shared.lock();
        if state.groups.contains_key(&group) {
            return None;
        }
        Some(state.tombs.get(&group)?.replica)
    }

    /// Whether `group` was destroyed here and does not live here again.
    pub fn is_tombstoned(&self, group: GroupId) -> bool {
        self.tombstone(group).is_some()
    }

    /// Whose data this is; `None` until [`initialize`](Self::initialize).
    pub fn header(&self) -> Option<Header> {
        self.inner.shared.lock().header.clone()
    }

    /// Says whose data this is, durably. The name and the addresses of an earlier header are replaced.
    ///
    /// # Errors
    /// The directory belongs to another cluster or store, or cannot be written.
    pub fn initialize(&self, header: Header) -> Result<(), InitializeError> {
        let _one_at_a_time = self.inner.initialize.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &self.inner.shared;
        let present = {
            let state = shared.lock();
            if let Some(failed) = &state.failed {
                return Err(failed.clone().into());
            }
            state.header.clone()
        };
        header.check(present.as_ref())?;
        if present.as_ref() != Some(&header) {
            header.write(&*shared.disk)?;
            shared.lock().header = Some(header);
        }
        Ok(())
    }

    /// Keeps a small value under a name, durably. Waits for the disk, so it must not be called from a `done`.
    ///
    /// # Errors
    /// Key or value are too long, or the store has failed.
    pub fn put_note(&self, key: &str, value: &[u8]) -> Result<(), NoteError> {
        if key.len() > NOTE_KEY_BYTES_MAX || value.len() > NOTE_VALUE_BYTES_MAX {
            return Err(NoteError::TooLong {
                key: key.len(),
                value: value.len(),
                key_max: NOTE_KEY_BYTES_MAX,
                value_max: NOTE_VALUE_BYTES_MAX,
            });
        }
        let mut bytes = Vec::with_capacity(16 + key.len() + value.len());
        codec::encode_batch_begin(&mut bytes);
        codec::encode_note(&mut bytes, key, value);
        let bytes = Bytes::from(bytes);
        let (sender, receiver) = mpsc::channel();
        let shared = &self.inner.shared;
        {
            let mut state = shared.lock();
            if let Some(failed) = &state.failed {
                return Err(failed.clone().into());
            }
            if state.writer_gone {
                return Err(closed_error().into());
            }
            let number = state.number(&bytes);
            let note =
                state.notes.entry(key.to_owned()).or_insert(Note { value: Bytes::new(), dirty: CLEAN });
            note.value = Bytes::copy_from_slice(value);
            note.dirty = note.dirty.min(number);
            let done = Box::new(move |outcome| {
                let _ = sender.send(outcome); // the receiver waits below
            });
            self.enqueue(state, Pending { number, bytes, entries: 0, done });
        }
        Ok(receiver.recv().unwrap_or_else(|_| Err(closed_error()))?)
    }

    /// The last batch that is durable. Grows over all openings of the store; right after opening it is what was found on
    /// the disk.
    pub fn durable_batch(&self) -> BatchSeq {
        BatchSeq(self.inner.shared.lock().durable)
    }

    /// The value kept under a name.
    pub fn note(&self, key: &str) -> Option<Bytes> {
        Some(self.inner.shared.lock().notes.get(key)?.value.clone())
    }

    /// Says that what [`RecoveryReport::doubt`] warned of is settled: every replica here has caught up with a leader
    /// that was elected without it. Durable when it returns.
    ///
    /// # Errors
    /// The store has failed, or fails now.
    pub fn settle_doubt(&self) -> Result<(), StoreFailed> {
        let shared = &self.inner.shared;
        shared
            .marker
            .update(&*shared.disk, |marker| marker.doubt = false)
            .map_err(|e| shared.fail(&format!("writing MARKER failed: {e}")))
    }

    /// Whether the last record was torn or damaged at some opening, and this has not been settled.
    pub fn in_doubt(&self) -> bool {
        self.inner.shared.marker.get().doubt
    }

    /// Counters, and how the store is.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let mut stats = Stats { recovery_seconds: shared.recovery_seconds, ..Stats::default() };
        shared.counters.fill(&mut stats);
        stats.sync_pending_micros = shared.round_micros();
        let state = shared.lock();
        stats.pending_bytes = state.pending_bytes;
        stats.cached_bytes = state.recent.bytes();
        stats.groups = state.groups.len() as u64;
        stats.live_segments = state.segments.len() as u64;
        stats.spare_segments = state.spares.len() as u64;
        stats.space_low = shared.space.get() != Space::Enough;
        stats.failed = state.failed.as_ref().map(|failed| failed.reason.to_string());
        stats
    }

    /// What the index takes in memory, in bytes: for each group what is known of it, and where its entries are; and where
    /// the journal's batches are. Without the recent batches themselves, see [`Stats::cached_bytes`]. Looks at every group,
    /// so it is for reports and not for each second.
    pub fn index_bytes(&self) -> u64 {
        let state = self.inner.shared.lock();
        let table = state.groups.capacity() * (size_of::<(GroupId, Box<GroupIndex>)>() + 1) * 8 / 7;
        let groups = state.groups.values().map(|g| size_of::<GroupIndex>() + g.heap_bytes()).sum::<usize>();
        (table + groups + state.batch_table_bytes()) as u64
    }

    /// How much room the disk had when it was last looked at, at most a second or so ago. Takes no lock.
    pub fn space(&self) -> Space {
        self.inner.shared.space.get()
    }

    /// Why writes should be refused, if that is so: [`space`](Self::space) in words.
    pub fn no_space(&self) -> Option<NoSpace> {
        let shared = &self.inner.shared;
        let reserve_mib = shared.options.space_reserve_bytes >> 20;
        (self.space() != Space::Enough).then(|| NoSpace { dir: shared.disk.place(), reserve_mib })
    }

    /// Why the store takes no writes any more, if that is so.
    pub fn failed(&self) -> Option<StoreFailed> {
        self.inner.shared.lock().failed.clone()
    }

    /// For how many microseconds the round that is being written has been at it; 0 while none is. Takes no lock.
    pub fn sync_pending_micros(&self) -> u64 {
        match self.inner.shared.counters.round_began.load(Relaxed) {
            0 => 0,
            _ => self.inner.shared.round_micros(),
        }
    }

    /// One group's log, as the core reads it.
    pub fn reader(&self, group: GroupId) -> GroupLog {
        GroupLog { store: self.clone(), group }
    }

    /// Writes what is waiting and closes the store. Later submissions through other handles are refused.
    pub fn close(self) {
        self.inner.close();
    }
}

thread_local! {
    /// Where batches are put together.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// A thread keeps at most so much of it; usual batches are smaller.
const SCRATCH_BYTES_MAX: usize = 256 << 10;

/// A batch as it goes to the disk: all that can be done before the store's lock is taken.
struct Encoded {
    bytes: Bytes,
    /// Where in `bytes` the entries lie.
    slots: Vec<Slot>,
    /// The rule that the batch breaks by itself, if it does.
    broken: Option<String>,
}

impl Encoded {
    fn of(batch: &Batch) -> Self {
        let mut slots = Vec::with_capacity(batch.groups.len());
        let mut broken = None;
        // The bytes stay in memory for readers, so there shall be no more of them than needed; and memory that was used
        // just before is written much faster than what they get.
        let bytes = SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            codec::encode_batch_begin(scratch);
            for write in &batch.groups {
                if broken.is_none() {
                    broken = gap_within(write);
                }
                codec::encode_group(scratch, &mut slots, write);
            }
            let bytes = Bytes::copy_from_slice(scratch);
            scratch.shrink_to(SCRATCH_BYTES_MAX);
            bytes
        });
        if bytes.len() > BATCH_BYTES_MAX {
            broken = Some(format!("it has {} bytes", bytes.len()));
        }
        Self { bytes, slots, broken }
    }

    /// Gives the batch its number and carries it out in the index, if the store takes writes. A rule that it breaks fails
    /// the store.
    fn apply(&self, batch: &Batch, state: &mut State) -> u64 {
        let number = state.number(&self.bytes);
        if !state.takes_writes() {
            return number;
        }
        let mut broken = self.broken.clone();
        let mut rest = self.slots.as_slice();
        for write in &batch.groups {
            let (own, others) = rest.split_at(write.entries.len());
            rest = others;
            if broken.is_none() {
                broken = state.apply(number, &Change::of(write, own)).err();
            }
        }
        if let Some(rule) = &broken {
            let reason = format!("batch {number} breaks a rule of the log: {rule}");
            tracing::error!(reason, "the log store has failed and takes no more writes");
            state.failed.get_or_insert_with(|| StoreFailed::new(reason));
        }
        number
    }

    fn pending(self, number: u64, done: Done) -> Pending {
        Pending { number, bytes: self.bytes, entries: self.slots.len() as u64, done }
    }
}

/// The rule that the entries break among each other, if they do: only the first is compared with the log.
fn gap_within(write: &GroupWrite) -> Option<String> {
    let pair = write.entries.windows(2).find(|pair| pair[1].index != pair[0].index.next())?;
    let [before, after] = [pair[0].index, pair[1].index];
    Some(format!("group {}: entry {after} follows entry {before}", write.group))
}

fn closed_error() -> StoreFailed {
    StoreFailed::new("it was closed")
}

impl Inner {
    fn close(&self) {
        let mut threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(writer) = threads.writer.take() else { return };
        self.shared.lock().stopping = true;
        self.shared.wake_all();
        // A `done` that drops the last handle runs on the writer's own thread, which cannot wait for itself. The
        // journal is whole without an orderly end, too.
        if writer.thread().id() == thread::current().id() {
            return;
        }
        let mut orderly = writer.join().is_ok();
        for thread in threads.others {
            orderly &= thread.join().is_ok();
        }
        let (failed, durable) = {
            let state = self.shared.lock();
            (state.failed.is_some(), state.durable)
        };
        if orderly && !failed {
            let clean = self.shared.marker.update(&*self.shared.disk, |marker| {
                marker.reached = durable;
                marker.clean = true;
            });
            if let Err(e) = clean {
                tracing::warn!(error = %e, "cannot note the orderly end of the log store");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// One group's log: what `raft-core` reads through.
#[derive(Clone, Debug)]
pub struct GroupLog {
    store: LogStore,
    group: GroupId,
}

impl LogView for GroupLog {
    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError> {
        self.store.entries(self.group, range, bytes_max)
    }

    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        self.store.extent(self.group, range, bytes_max)
    }
}
