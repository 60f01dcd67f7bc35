//! The one writer thread: takes all batches that wait, writes them as one record, syncs once, answers all.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::error::StoreFailed;
use crate::journal::record::{self, HEAD_BYTES, Head};
use crate::journal::segment::{RECORDS_AT, Segment};
use crate::state::{LiveSegment, Pending, Shared};
use crate::stats::Counters;

/// The writer's own state.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    /// Where the next record begins.
    offset: u64,
    /// Holds a round of several batches; kept for its memory.
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
            let outcome = self.commit(&mut round);
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
            state = self.shared.wait(&self.shared.work, state);
        }
        let mut bytes = 0;
        while let Some(next) = state.queue.front() {
            bytes += next.buffer.len() as u64;
            if bytes > self.shared.options.round_bytes_max && !round.is_empty() {
                break;
            }
            round.extend(state.queue.pop_front());
        }
        true
    }

    fn commit(&mut self, round: &mut [Pending]) -> Result<(), StoreFailed> {
        let failed = self.shared.lock().failed.clone();
        match failed {
            Some(failed) => Err(failed),
            None => self.write(round),
        }
    }

    /// Writes and syncs one record, then tells the index.
    fn write(&mut self, round: &mut [Pending]) -> Result<(), StoreFailed> {
        let shared = Arc::clone(&self.shared);
        // One batch alone is written from its own buffer; several are copied together.
        let mut buffer;
        if let [only] = round {
            buffer = mem::take(&mut only.buffer);
        } else {
            buffer = mem::take(&mut self.buffer);
            buffer.clear();
            buffer.resize(HEAD_BYTES, 0);
            for pending in &*round {
                buffer.extend_from_slice(&pending.buffer[HEAD_BYTES..]);
            }
        }
        let body_len = buffer.len() - HEAD_BYTES;
        let stride = record::stride(body_len);
        if body_len > u32::MAX as usize / 2 {
            return Err(shared.fail("a batch is larger than a record can be"));
        }
        let needed = (stride + HEAD_BYTES) as u64;
        let first_batch = round[0].seq;
        if self.offset + needed > self.segment.bytes {
            self.next_segment(RECORDS_AT + needed, first_batch)?;
        }
        let head = Head {
            body_len: body_len as u32,
            first_batch,
            segment: u64::from(self.segment.id),
            body_crc: crc32c::crc32c(&buffer[HEAD_BYTES..]),
        };
        buffer[..HEAD_BYTES].copy_from_slice(&head.encode());
        // The padding, and the zero bytes that say "no record yet" to whoever scans this later.
        buffer.resize(stride + HEAD_BYTES, 0);
        let began = Instant::now();
        if let Err(e) = self.segment.file.write_at(self.offset, &buffer) {
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
        Counters::add(&counters.bytes_written, buffer.len() as u64);
        counters.last_sync_micros.store(micros, Relaxed);
        counters.sync_micros_max.fetch_max(micros, Relaxed);

        let mut state = shared.lock();
        let mut body_at = self.offset + HEAD_BYTES as u64;
        let mut entries = 0;
        let single = round.len() == 1;
        for pending in &*round {
            state.written(self.segment.id, pending, body_at);
            let len = if single { body_len } else { pending.buffer.len() - HEAD_BYTES } as u64;
            body_at += len;
            state.pending_bytes -= len;
            state.durable = pending.seq;
            entries += pending.writes.iter().map(|w| w.slots.len() as u64).sum::<u64>();
        }
        if state.cache.bytes > 0 {
            state.evict(shared.options.cache_bytes);
        }
        drop(state);
        shared.progress.notify_all();
        Counters::add(&counters.entries, entries);
        self.offset += stride as u64;
        if single {
            shared.give_buffer(buffer);
        } else {
            round.iter_mut().for_each(|pending| shared.give_buffer(mem::take(&mut pending.buffer)));
            // A giant round's memory is not kept.
            if buffer.capacity() <= 16 << 20 {
                self.buffer = buffer;
            }
        }
        Ok(())
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
            shared.spare_work.notify_all();
            state = shared.wait(&shared.progress, state);
        }
        let spare = state.spares.pop_front().expect("looked at above");
        tracing::debug!(segment = spare.id, first_batch, "segment begins");
        state.spare_wanted = None;
        state.segments.insert(spare.id, LiveSegment { segment: Arc::clone(&spare), first_batch });
        drop(state);
        shared.spare_work.notify_all();
        shared.checkpoint_work.notify_all();
        self.segment = spare;
        self.offset = RECORDS_AT;
        Ok(())
    }
}
