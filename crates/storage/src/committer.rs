//! The one writer thread: takes all batches that wait, writes them as one record, syncs once, answers all.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::error::StoreFailed;
use crate::journal::record::{self, HEAD_BYTES, Head};
use crate::journal::segment::{RECORDS_AT, Segment};
use crate::state::{LiveSegment, Pending, Shared};
use crate::stats::Counters;

/// The memory that is kept from one round to the next; usual rounds are smaller, see `Options::round_bytes_max`.
const BUFFER_BYTES_MAX: usize = 16 << 20;

/// The writer's own state.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    /// Where the next record begins.
    offset: u64,
    /// Holds a record; kept for its memory.
    buffer: Vec<u8>,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, segment: Arc<Segment>, offset: u64) -> Self {
        Self { shared, segment, offset, buffer: Vec::new() }
    }

    /// Runs until the store is closed and everything submitted is answered.
    pub(crate) fn run(mut self) {
        let mut round = Vec::new();
        while self.take_round(&mut round) {
            self.shared.counters.round_began.store(self.shared.micros() + 1, Relaxed);
            let outcome = self.commit(&round);
            self.shared.counters.round_began.store(0, Relaxed);
            for pending in round.drain(..) {
                (pending.done)(outcome.clone());
            }
        }
        let mut state = self.shared.lock();
        state.writer_gone = true;
        drop(state);
        self.shared.wake_all();
    }

    /// Waits for batches and takes as many as a round may hold. `false`: there will be no more.
    fn take_round(&self, round: &mut Vec<Pending>) -> bool {
        let mut state = self.shared.lock();
        while state.queue.is_empty() {
            if state.stopping {
                return false;
            }
            state = self.shared.work.wait(state);
        }
        let mut bytes = 0;
        while let Some(next) = state.queue.front() {
            bytes += next.bytes.len() as u64;
            if bytes > self.shared.options.round_bytes_max && !round.is_empty() {
                break;
            }
            round.extend(state.queue.pop_front());
        }
        true
    }

    fn commit(&mut self, round: &[Pending]) -> Result<(), StoreFailed> {
        let failed = self.shared.lock().failed.clone();
        match failed {
            Some(failed) => Err(failed),
            None => self.write(round),
        }
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
        if let Err(e) = self.segment.file.write_at(self.offset, &self.buffer) {
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
        Counters::add(&counters.bytes_written, self.buffer.len() as u64);
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
        // A giant round's memory is not kept.
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Puts the record together.
    fn encode(&mut self, round: &[Pending], first_batch: u64, body_len: usize) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.reserve(record::stride(body_len) + HEAD_BYTES);
        buffer.resize(HEAD_BYTES, 0);
        for pending in round {
            buffer.extend_from_slice(&pending.bytes);
        }
        let head = Head {
            body_len: body_len as u32,
            first_batch,
            segment: u64::from(self.segment.id),
            body_crc: crc32c::crc32c(&buffer[HEAD_BYTES..]),
        };
        buffer[..HEAD_BYTES].copy_from_slice(&head.encode());
        // The padding, and the zero bytes that say "no record yet" to whoever scans this later.
        buffer.resize(record::stride(body_len) + HEAD_BYTES, 0);
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
        Ok(())
    }
}
