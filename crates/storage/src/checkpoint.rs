//! A background thread that moves what is still needed of the oldest segment to the cold tier, and gives the segment
//! free. Only this thread writes to the cold tier.
//!
//! The order is what makes a crash at any point harmless: copy (as of a batch that is durable), make the cold tier
//! durable, move the journal's begin in `MARKER`, and only then let go of the segment.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pontoon_raft_core::types::{GroupId, LogIndex};

use crate::codec;
use crate::cold::{self, Changes, Meta, Tombstone};
use crate::index::{CLEAN, ColdGarbage, GroupIndex, Place};
use crate::journal::segment::Segment;
use crate::state::Shared;
use crate::stats::Counters;

mod rewrite;

/// Bytes that are copied and applied at a time; the pace is kept between these pieces.
const CHUNK_BYTES: usize = 256 << 10;
/// How many keys are removed at a time: their old values are looked at, so it is about as much work as a piece of copies.
const CHUNK_KEYS: usize = 1024;
/// So many times as quick a checkpoint goes for each segment that the journal has grown past its bound.
const HURRY: u32 = 4;
/// How often a checkpoint that has no room on the disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The store failed or is being closed.
struct Stopped;

/// Runs until the store is closed or has failed.
pub(crate) fn run(shared: &Shared) {
    while let Some(oldest) = wait_for_work(shared) {
        let outcome = Checkpoint::new(shared, oldest).run().and_then(|()| rewrite::if_bloated(shared));
        match outcome {
            Ok(()) => {}
            Err(Failure::Stopped) => return,
            Err(Failure::Io(what)) => {
                shared.fail(&format!("the checkpoint failed: {what}"));
                return;
            }
        }
    }
}

enum Failure {
    Stopped,
    Io(String),
}

impl From<Stopped> for Failure {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

fn io(action: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |e| Failure::Io(format!("{action}: {e}"))
}

/// What a checkpoint gives free: the oldest segment, and the batches in it.
struct Oldest {
    segment: Arc<Segment>,
    batches: Range<u64>,
}

/// Waits until there are too many live segments, and returns the oldest.
fn wait_for_work(shared: &Shared) -> Option<Oldest> {
    let mut state = shared.lock();
    loop {
        if state.stopping || state.failed.is_some() {
            return None;
        }
        if state.segments.len() <= shared.options.live_segments_max {
            state = shared.checkpoint_work.wait(state);
            continue;
        }
        let mut live = state.segments.values();
        let (first, next) = live.next().zip(live.next()).expect("there are several");
        let batches = first.first_batch..next.first_batch;
        let oldest = Oldest { segment: Arc::clone(&first.segment), batches };
        drop(live);
        drop(state);
        // The cold tier grows a little. An error of it would be final, so it is not even tried on a full disk.
        let free = shared.disk.free_bytes().unwrap_or(u64::MAX);
        if free >= shared.options.space_reserve_bytes / 4 {
            return Some(oldest);
        }
        tracing::warn!(free, "no room for a checkpoint; will try again");
        shared.space.at_best_low();
        state = shared.lock();
        state = shared.checkpoint_work.wait_for(state, RETRY).0;
    }
}

struct Checkpoint<'a> {
    shared: &'a Shared,
    oldest: Arc<Segment>,
    /// The batches in it.
    batches: Range<u64>,
    changes: Changes,
    /// `changes` describe the store as of this batch or earlier; they are applied when it is durable.
    as_of: u64,
    /// The entries that are in the cold tier once this checkpoint is done, each group's together.
    moved: Vec<(GroupId, LogIndex, Place)>,
    wrote: bool,
    pace: Pace,
}

/// When the next piece may be written.
struct Pace {
    /// The last one was.
    since: Instant,
    /// How long the work rests after it, while the journal is within its bound.
    rest: Duration,
}

impl<'a> Checkpoint<'a> {
    fn new(shared: &'a Shared, oldest: Oldest) -> Self {
        Self {
            shared,
            oldest: oldest.segment,
            batches: oldest.batches,
            changes: Changes::default(),
            as_of: 0,
            moved: Vec::new(),
            wrote: false,
            pace: Pace::new(),
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        tracing::debug!(segment = self.oldest.id, "checkpoint begins");
        let groups = self.groups();
        for group in groups {
            self.copy_group(group)?;
        }
        self.flush()?;
        // After the groups: one that was destroyed meanwhile has left its news in its tombstone.
        self.copy_tombstones()?;
        self.copy_notes();
        self.flush()?;
        self.finish()
    }

    /// The groups with something in the oldest segment that the cold tier lacks, and those of which it counts entries that are
    /// gone: recovery must find every entry that is counted, and some of them may have been in this segment.
    fn groups(&self) -> Vec<GroupId> {
        let state = self.shared.lock();
        let mut ids: Vec<_> = state
            .groups
            .iter()
            .filter(|(_, g)| {
                g.dirty < self.batches.end || g.begins_later || !g.entries_of(&self.batches).is_empty()
            })
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids
    }

    fn copy_group(&mut self, id: GroupId) -> Result<(), Failure> {
        let mut from = LogIndex::ZERO;
        loop {
            let mut places = Vec::new();
            {
                let mut guard = self.shared.lock();
                let state = &mut *guard;
                let next_batch = state.next_batch;
                let as_of = next_batch - 1;
                let Some(group) = state.groups.get_mut(&id) else { return Ok(()) };
                self.as_of = as_of;
                if group.dirty < self.batches.end || group.begins_later {
                    put_meta(&mut self.changes, id, group, as_of);
                }
                let range = group.entries_of(&self.batches);
                let mut bytes = self.changes.bytes;
                from = from.max(range.start);
                while from < range.end && bytes < CHUNK_BYTES {
                    let place = group.place(from).expect("within the log");
                    bytes += place.shape.encoded_len();
                    let (batch, offset) = place.batch_and_offset(next_batch);
                    let (_, at) =
                        state.segments[&self.oldest.id].location(batch).expect("its batches are in it");
                    places.push((from, place, at + offset as u64));
                    from = from.next();
                }
                if places.is_empty() && from >= range.end && bytes < CHUNK_BYTES {
                    return Ok(());
                }
            }
            for (index, place, at) in places {
                self.copy_entry(id, index, place, at)?;
            }
            if self.changes.bytes >= CHUNK_BYTES {
                self.flush()?;
            }
        }
    }

    fn copy_entry(&mut self, id: GroupId, index: LogIndex, place: Place, at: u64) -> Result<(), Failure> {
        let mut bytes = vec![0; place.shape.encoded_len()];
        self.oldest.file.read_at(at, &mut bytes).map_err(io("reading the journal"))?;
        // A damaged entry must not be carried over as if nothing were.
        codec::checked_entry(&bytes, id, index).map_err(|e| {
            Failure::Io(format!("{}, offset {at}, group {id}, entry {index}: {e}", self.oldest.name))
        })?;
        cold::put_entry(&mut self.changes, id, index, &bytes);
        self.moved.push((id, index, place));
        Ok(())
    }

    fn copy_tombstones(&mut self) -> Result<(), Failure> {
        let ids: Vec<_> = {
            let state = self.shared.lock();
            state.tombs.iter().filter(|(_, t)| t.dirty < self.batches.end).map(|(id, _)| *id).collect()
        };
        for id in ids {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            let as_of = state.next_batch - 1;
            let Some(tomb) = state.tombs.get_mut(&id) else { continue };
            tomb.dirty = CLEAN;
            self.changes.put(cold::tombstone_key(id), Tombstone { as_of, replica: tomb.replica }.encode());
            match state.groups.get_mut(&id) {
                Some(group) => put_meta(&mut self.changes, id, group, as_of),
                None => self.changes.remove(cold::meta_key(id)),
            }
            self.as_of = as_of;
            drop(guard);
            if self.changes.bytes >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn copy_notes(&mut self) {
        let mut state = self.shared.lock();
        self.as_of = state.next_batch - 1;
        for (key, note) in state.notes.iter_mut().filter(|(_, note)| note.dirty < self.batches.end) {
            note.dirty = CLEAN;
            self.changes.put(cold::note_key(key), codec::sealed(&note.value));
        }
    }

    /// Applies what was gathered, and removes what nobody needs any more.
    fn flush(&mut self) -> Result<(), Failure> {
        let mut first = Changes::default();
        let garbage = {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            // Dropped by batches to this one: an entry may only go when its dropping is durable.
            self.as_of = state.next_batch - 1;
            let garbage = mem::take(&mut state.garbage);
            for part in garbage.chunk_by(|a, b| a.group == b.group) {
                let id = part[0].group;
                if let Some(group) = state.groups.get_mut(&id) {
                    // In place of an older one among the copies, too.
                    put_meta(&mut self.changes, id, group, self.as_of);
                    put_meta(&mut first, id, group, self.as_of);
                } else if let Some(tomb) = state.tombs.get(&id) {
                    let tombstone = Tombstone { as_of: self.as_of, replica: tomb.replica };
                    first.put(cold::tombstone_key(id), tombstone.encode());
                    first.remove(cold::meta_key(id));
                }
            }
            garbage
        };
        if !garbage.is_empty() {
            self.wait_durable()?;
        }
        // Nothing is removed that is still counted: a crash in between must not look like a loss.
        if !first.is_empty() {
            self.apply(first)?;
        }
        // Before the copies: an entry that is put now may have the index of one that is removed.
        for ColdGarbage { group, range } in garbage {
            self.remove(group, range)?;
        }
        let changes = mem::take(&mut self.changes);
        if changes.is_empty() {
            return Ok(());
        }
        self.wait_durable()?;
        self.apply(changes)
    }

    /// Removes cold entries, in pieces: a backlog of any length may go at once.
    fn remove(&mut self, group: GroupId, range: Range<u64>) -> Result<(), Failure> {
        let mut from = cold::entry_key(group, LogIndex(range.start), 0);
        let to = cold::entry_key(group, LogIndex(range.end), 0);
        loop {
            let keys = self.shared.cold.current().keys(&from, &to, CHUNK_KEYS);
            let keys = keys.map_err(io("reading the cold tier"))?;
            let Some(last) = keys.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
            let mut changes = Changes::default();
            keys.into_iter().for_each(|key| changes.remove(key));
            self.apply(changes)?;
        }
    }

    fn apply(&mut self, changes: Changes) -> Result<(), Failure> {
        self.pace.keep(self.shared, changes.bytes)?;
        Counters::add(&self.shared.counters.checkpoint_bytes, changes.bytes as u64);
        self.wrote = true;
        self.shared.cold.apply(changes).map_err(io("writing the cold tier"))
    }

    fn wait_durable(&self) -> Result<(), Stopped> {
        let mut state = self.shared.lock();
        while state.durable < self.as_of {
            if state.failed.is_some() || state.writer_gone {
                return Err(Stopped);
            }
            state = self.shared.progress.wait(state);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        let shared = self.shared;
        let segment = self.oldest.id;
        tracing::debug!(segment, "checkpoint copied");
        let mut checkpoint = shared.marker.get().checkpoint;
        if self.wrote {
            checkpoint += 1;
            let mut changes = Changes::default();
            changes.put(cold::checkpoint_key(), cold::encode_number(checkpoint));
            shared.cold.apply(changes).map_err(io("writing the cold tier"))?;
            shared.cold.sync().map_err(io("syncing the cold tier"))?;
            tracing::debug!(segment, checkpoint, "checkpoint synced");
        }
        // What was not copied because a later batch dropped it may go with the segment only when that batch is durable,
        // also if there was nothing to write because of it.
        self.as_of = shared.lock().next_batch - 1;
        self.wait_durable()?;
        let (start_segment, start_batch, durable) = {
            let state = shared.lock();
            let (id, next) =
                state.segments.range(self.oldest.id + 1..).next().expect("the oldest is not the newest");
            (*id, next.first_batch, state.durable)
        };
        shared
            .marker
            .update(&*shared.disk, |m| {
                m.start_segment = start_segment;
                m.start_batch = start_batch;
                m.checkpoint = checkpoint;
                // `start_batch` itself is on its way when the writer has just gone there.
                m.reached = m.reached.max(durable);
            })
            .map_err(io("writing MARKER"))?;
        tracing::debug!(segment, "checkpoint marked");

        let mut guard = shared.lock();
        let state = &mut *guard;
        for part in self.moved.chunk_by(|a, b| a.0 == b.0) {
            let mut group = state.groups.get_mut(&part[0].0);
            for (id, index, place) in part {
                if !group.as_mut().is_some_and(|g| g.moved_to_cold(*index, *place)) {
                    state.garbage.push(ColdGarbage { group: *id, range: index.0..index.0 + 1 });
                }
            }
            if let Some(group) = group {
                group.shrink();
            }
        }
        let entries = self.moved.len() as u64;
        self.moved = Vec::new();
        if let Some(live) = state.segments.remove(&self.oldest.id) {
            state.retired.push(live.segment);
        }
        drop(guard);
        Counters::add(&shared.counters.checkpoints, 1);
        Counters::add(&shared.counters.checkpoint_entries, entries);
        // Only now may the last reader's hold be the only one.
        drop(self.oldest);
        shared.spare_work.notify();
        Ok(())
    }
}

/// Says in `changes` how a group is, as of a batch.
fn put_meta(changes: &mut Changes, id: GroupId, group: &mut GroupIndex, as_of: u64) {
    changes.put(cold::meta_key(id), Meta::of(group, as_of).encode());
    group.dirty = CLEAN;
    group.begins_later = false;
}

impl Pace {
    fn new() -> Self {
        Self { since: Instant::now(), rest: Duration::ZERO }
    }

    /// Waits so long that background work stays within its pace, which is the quicker the further the journal has grown past
    /// its bound meanwhile.
    fn keep(&mut self, shared: &Shared, bytes: usize) -> Result<(), Stopped> {
        let options = &shared.options;
        loop {
            let state = shared.lock();
            if state.stopping || state.failed.is_some() {
                return Err(Stopped);
            }
            let late = state.segments.len().saturating_sub(options.live_segments_max + 1);
            drop(state);
            let rest = self.rest / HURRY.saturating_pow(late as u32);
            let left = rest.saturating_sub(self.since.elapsed());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Duration::from_millis(5)));
        }
        let seconds = bytes as f64 / options.checkpoint_bytes_per_second as f64;
        *self = Self { since: Instant::now(), rest: Duration::from_secs_f64(seconds) };
        Ok(())
    }
}
