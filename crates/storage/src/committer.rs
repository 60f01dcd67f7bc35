//! Makes rounds durable: each is one record, one write and one sync.
//!
//! One thread at a time does it. Usually that is the writer thread, which takes all batches that wait; a caller that
//! would only wait for its own batch does it itself while nothing else is under way, and saves two changes of threads.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Options;
use crate::error::StoreFailed;
use crate::journal::blocks::{BLOCK, Blocks};
use crate::journal::record::{self, HEAD_BYTES, Head};
use crate::journal::segment::{RECORDS_AT, Segment};
use crate::state::{LiveSegment, Pending, Shared};
use crate::stats::Counters;

/// The memory that is kept from one round to the next; usual rounds are smaller, see `Options::round_bytes_max`.
const BUFFER_BYTES_MAX: usize = 16 << 20;

/// A round is held back so long at most: nobody shall notice more than that it takes a little longer.
const HELD_BACK_MAX: Duration = Duration::from_millis(20);

/// The writer thread: runs until the store is closed and everything submitted is answered.
pub(crate) fn run(shared: &Shared, committer: &Mutex<Committer>) {
    let mut round = Vec::new();
    while take_round(shared, &mut round) {
        let outcome = commit(committer, &round);
        for pending in round.drain(..) {
            (pending.done)(outcome.clone());
        }
    }
    let mut state = shared.lock();
    state.writer_gone = true;
    drop(state);
    shared.wake_all();
}

/// Waits for batches and takes as many as a round may hold. `false`: there will be no more.
fn take_round(shared: &Shared, round: &mut Vec<Pending>) -> bool {
    let mut state = shared.lock();
    while state.queue.is_empty() || state.committing {
        if state.stopping && !state.committing {
            return false;
        }
        state = shared.work.wait(state);
    }
    let mut bytes = 0;
    while let Some(next) = state.queue.front() {
        bytes += next.bytes.len() as u64;
        if bytes > shared.options.round_bytes_max && !round.is_empty() {
            break;
        }
        round.extend(state.queue.pop_front());
    }
    state.committing = true;
    true
}

/// Makes a round durable, or says why it will never be. The caller has set `State::committing` when it took the round
/// from the others, and does not have it any more afterwards.
pub(crate) fn commit(committer: &Mutex<Committer>, round: &[Pending]) -> Result<(), StoreFailed> {
    committer.lock().unwrap_or_else(PoisonError::into_inner).commit(round)
}

/// How long a round is held back because checkpoints are late. The journal would grow without end under a load that outruns
/// them for long, so from two segments beyond its bound on, rounds come at the checkpoints' pace, and at a quarter of it
/// with each further segment.
fn held_back(options: &Options, live_segments: usize, round: &[Pending]) -> Option<Duration> {
    let late = live_segments.checked_sub(options.live_segments_max + 2)?;
    let bytes: usize = round.iter().map(|pending| pending.bytes.len()).sum();
    let pace = options.checkpoint_bytes_per_second as f64 / 4f64.powi(late.min(8) as i32);
    Some(Duration::from_secs_f64(bytes as f64 / pace).min(HELD_BACK_MAX))
}

/// What only the thread needs that writes.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    /// Where the next record begins.
    offset: u64,
    blocks: Blocks,
}

impl Committer {
    /// The next record goes to `offset` of `segment`.
    ///
    /// # Errors
    /// The block that it begins in cannot be read.
    pub(crate) fn new(shared: Arc<Shared>, segment: Arc<Segment>, offset: u64) -> io::Result<Self> {
        let mut tail = vec![0; offset as usize % BLOCK];
        segment.file.read_at(offset - tail.len() as u64, &mut tail)?;
        Ok(Self { shared, segment, offset, blocks: Blocks::after(tail) })
    }

    fn commit(&mut self, round: &[Pending]) -> Result<(), StoreFailed> {
        let shared = Arc::clone(&self.shared);
        let (failed, live) = {
            let state = shared.lock();
            (state.failed.clone(), state.segments.len())
        };
        // Before the round begins by the clock: it is not the disk that is slow.
        if let Some(rest) = held_back(&shared.options, live, round) {
            thread::sleep(rest);
        }
        shared.counters.round_began.store(shared.micros() + 1, Relaxed);
        let outcome = failed.map_or_else(|| self.write(round), Err);
        shared.counters.round_began.store(0, Relaxed);
        let mut state = shared.lock();
        state.committing = false;
        let is_waited_for = !state.queue.is_empty() || state.stopping;
        drop(state);
        if is_waited_for {
            shared.work.notify();
        }
        outcome
    }

    /// Writes and syncs one record, then says where its batches are.
    fn write(&mut self, round: &[Pending]) -> Result<(), StoreFailed> {
        let shared = Arc::clone(&self.shared);
        let body_len: usize = round.iter().map(|pending| pending.bytes.len()).sum();
        if body_len > u32::MAX as usize / 2 {
            return Err(shared.fail("a batch is larger than a record can be"));
        }
        let stride = record::stride(body_len);
        let needed = (stride + HEAD_BYTES) as u64;
        let first_batch = round[0].number;
        if self.offset + needed > self.segment.bytes {
            self.next_segment(RECORDS_AT + needed, first_batch)?;
        }
        self.encode(round, first_batch, body_len);
        let began = Instant::now();
        let (bytes, before) = self.blocks.whole();
        if let Err(e) = self.segment.file.write_at(self.offset - before as u64, bytes) {
            return Err(shared.fail(&format!("writing to {} failed: {e}", self.segment.name)));
        }
        if let Err(e) = self.segment.file.sync() {
            return Err(shared.fail(&format!("syncing {} failed: {e}", self.segment.name)));
        }
        let micros = began.elapsed().as_micros() as u64;
        let counters = &shared.counters;
        Counters::add(&counters.syncs, 1);
        Counters::add(&counters.rounds, 1);
        Counters::add(&counters.batches, round.len() as u64);
        Counters::add(&counters.bytes_written, needed);
        Counters::add(&counters.entries, round.iter().map(|pending| pending.entries).sum());
        counters.last_sync_micros.store(micros, Relaxed);
        counters.sync_micros_max.fetch_max(micros, Relaxed);

        let mut state = shared.lock();
        let live = state.segments.get_mut(&self.segment.id).expect("the segment being written is live");
        let mut batch_at = self.offset as u32 + HEAD_BYTES as u32;
        for pending in round {
            live.push_batch(batch_at);
            batch_at += pending.bytes.len() as u32;
        }
        state.pending_bytes -= body_len as u64;
        state.durable = first_batch + round.len() as u64 - 1;
        let durable = state.durable;
        let _evicted = state.recent.evict(durable, shared.options.cache_bytes);
        drop(state);
        shared.progress.notify();
        self.offset += stride as u64;
        self.blocks.written(stride, BUFFER_BYTES_MAX);
        Ok(())
    }

    /// Puts the record together.
    fn encode(&mut self, round: &[Pending], first_batch: u64, body_len: usize) {
        let blocks = &mut self.blocks;
        blocks.begin(record::stride(body_len) + HEAD_BYTES);
        blocks.push(&[0; HEAD_BYTES]);
        for pending in round {
            blocks.push(&pending.bytes);
        }
        let (head, body) = blocks.pushed().split_at_mut(HEAD_BYTES);
        let said = Head {
            body_len: body_len as u32,
            first_batch,
            segment: u64::from(self.segment.id),
            body_crc: crc32c::crc32c(body),
        };
        head.copy_from_slice(&said.encode());
        // The padding, and the zero bytes that say "no record yet" to whoever scans this later.
        blocks.push(&[0; HEAD_BYTES + 8][..record::stride(body_len) - body_len]);
    }

    /// Goes on in the next segment, which usually lies ready.
    fn next_segment(&mut self, bytes: u64, first_batch: u64) -> Result<(), StoreFailed> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            if state.spares.front().is_some_and(|spare| spare.bytes >= bytes) {
                break;
            }
            let waiting = state.spare_wanted == Some(bytes);
            match state.spare_error.take() {
                // The one that was made for this very wait.
                Some(error) if waiting && error.urgent => {
                    drop(state);
                    let what = error.what;
                    return Err(
                        shared.fail(&format!("no journal segment is left and none can be made: {what}"))
                    );
                }
                _ => state.spare_wanted = Some(bytes),
            }
            shared.spare_work.notify();
            state = shared.progress.wait(state);
        }
        let spare = state.spares.pop_front().expect("looked at above");
        tracing::debug!(segment = spare.id, first_batch, "segment begins");
        state.spare_wanted = None;
        state.segments.insert(spare.id, LiveSegment::new(Arc::clone(&spare), first_batch));
        drop(state);
        shared.spare_work.notify();
        shared.checkpoint_work.notify();
        self.segment = spare;
        self.offset = RECORDS_AT;
        self.blocks.at_begin_of_block();
        Ok(())
    }
}
