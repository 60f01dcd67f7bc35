//! Which writes were executed, and with what answer: so that one that comes again is answered and not repeated.
//!
//! This is replicated state like the keys: it changes only by commands, in the same engine batch as they, is in images
//! and in the hash, and is the same on every store after the same entry.
//!
//! Records are kept by *generation*. New ones go to the current generation; when that is full it becomes the previous
//! one, and what was the previous one is forgotten. So at least the last [`GENERATION_WRITES_MAX`] named writes (or
//! [`GENERATION_BYTES_MAX`] of them) are remembered, and at most twice as many. The *floor* is the entry at which the previous
//! generation began: a name whose position is before it may be that of a forgotten write, and is refused.
//!
//! | key in the table `once` | value |
//! |---|---|
//! | slot | [`Window`] |
//! | slot, generation, name | the answer; empty if it was larger than [`ANSWER_BYTES_MAX`] |
//!
//! Records of forgotten generations are removed in the background; no reader looks at them.

use std::collections::HashMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use fjall::{Iter, OwnedWriteBatch, Readable};
use pontoon_raft_core::types::LogIndex;

use crate::engine::Tables;
use crate::error::{EtcdError, StoreError};
use crate::mvcc::keys;
use crate::write_id::{WRITE_ID_BYTES, WriteId};

/// Named writes of a generation: at 20,000 a second, which is more than one keyspace takes, what was written in the
/// last 6 s is remembered. That is longer than a client's patience by default. Part of the replicated state's rules:
/// another number needs another kind of command.
const GENERATION_WRITES_MAX: u64 = 128 * 1024;

/// What the records of a generation may take, in bytes of keys and answers: the bound for large answers. Also a rule.
const GENERATION_BYTES_MAX: u64 = 16 << 20;

/// The largest answer that is kept. An ordinary one has ten bytes; larger ones carry former values. Also a rule.
const ANSWER_BYTES_MAX: usize = 4096;

/// Answers that a batch may gather before it is committed.
const ADDED_BYTES_MAX: usize = 4 << 20;

/// A record's key without the slot.
const SUFFIX_BYTES: usize = 8 + WRITE_ID_BYTES;
const FORMAT: u8 = 1;
const WINDOW_BYTES: usize = 1 + 5 * 8;

/// What is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    /// The current generation's number.
    generation: u64,
    /// The entry that began it.
    began: LogIndex,
    /// The entry that began the previous one: everything executed since is remembered.
    floor: LogIndex,
    /// Records of the current generation.
    writes: u64,
    /// Their bytes.
    bytes: u64,
}

impl Window {
    fn encode(&self) -> [u8; WINDOW_BYTES] {
        let mut out = [FORMAT; WINDOW_BYTES];
        let fields = [self.generation, self.began.0, self.floor.0, self.writes, self.bytes];
        for (place, field) in out[1..].chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::damaged("once: the window has a wrong length or version");
        let (&FORMAT, fields) = bytes.split_first().ok_or_else(damaged)? else { return Err(damaged()) };
        let (fields, []) = fields.as_chunks::<8>() else { return Err(damaged()) };
        let &[generation, began, floor, writes, bytes] = fields else { return Err(damaged()) };
        Ok(Self {
            generation: u64::from_le_bytes(generation),
            began: LogIndex(u64::from_le_bytes(began)),
            floor: LogIndex(u64::from_le_bytes(floor)),
            writes: u64::from_le_bytes(writes),
            bytes: u64::from_le_bytes(bytes),
        })
    }

    /// The first generation that is remembered.
    fn oldest(&self) -> u64 {
        self.generation.saturating_sub(1)
    }
}

fn record_key(slot: u64, generation: u64, id: WriteId) -> Vec<u8> {
    let mut key = generation_key(slot, generation);
    key.extend_from_slice(&id.to_bytes());
    key
}

/// What the keys of a generation begin with.
fn generation_key(slot: u64, generation: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + SUFFIX_BYTES);
    key.extend_from_slice(&keys::slot_prefix(slot));
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// What is to become of a named write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Execute it, and call [`Once::remember`].
    New,
    /// It was executed; this was the answer.
    Done(Bytes),
    /// Nobody can say, or it was executed and the answer is not kept.
    Refused(EtcdError),
}

/// The writing half, part of a [`Writer`](crate::mvcc::writer::Writer).
pub(crate) struct Once {
    slot: u64,
    window: Window,
    /// What the batch at hand adds.
    added: HashMap<WriteId, Bytes>,
    /// The batch at hand changes the window or adds records.
    changed: bool,
    /// Bytes of answers in `added`.
    added_bytes: usize,
    /// Generations that can be removed.
    forgotten: Option<Range<u64>>,
}

impl Once {
    pub(crate) fn open(tables: &Tables, slot: u64) -> Result<Self, StoreError> {
        let window = window(&tables.db.snapshot(), tables, slot)?;
        // A restart may have come before the removal was finished.
        let forgotten = (window.oldest() > 0).then_some(0..window.oldest());
        Ok(Self { slot, window, added: HashMap::new(), changed: false, added_bytes: 0, forgotten })
    }

    /// A position before this one is refused.
    pub(crate) fn floor(&self) -> LogIndex {
        self.window.floor
    }

    /// Judges the write of the entry at `index`.
    pub(crate) fn judge(&self, tables: &Tables, id: WriteId, index: LogIndex) -> Result<Verdict, StoreError> {
        if let Err(e) = judge_position(id, self.window.floor) {
            return Ok(Verdict::Refused(e));
        }
        if id.position >= index {
            // Nobody can have been told of a position that is not applied. If it were believed, the name would never
            // become too old.
            return Ok(Verdict::Refused(EtcdError::WriteIdAhead));
        }
        let found = |answer: &[u8]| match answer {
            [] => Verdict::Refused(EtcdError::AnswerNotKept),
            answer => Verdict::Done(Bytes::copy_from_slice(answer)),
        };
        if let Some(answer) = self.added.get(&id) {
            return Ok(found(answer));
        }
        let lookup = |generation| tables.once.get(record_key(self.slot, generation, id));
        if let Some(answer) = lookup(self.window.generation)? {
            return Ok(found(&answer));
        }
        // What was executed behind a position in this generation is in this generation.
        if id.position < self.window.began
            && let Some(answer) = lookup(self.window.oldest())?
        {
            return Ok(found(&answer));
        }
        Ok(Verdict::New)
    }

    /// The entry at `index` was executed with this answer.
    pub(crate) fn remember(
        &mut self,
        tables: &Tables,
        batch: &mut OwnedWriteBatch,
        id: WriteId,
        index: LogIndex,
        answer: &Bytes,
    ) {
        let w = &mut self.window;
        if w.writes >= GENERATION_WRITES_MAX || w.bytes >= GENERATION_BYTES_MAX {
            *w = Window { generation: w.generation + 1, began: index, floor: w.began, writes: 0, bytes: 0 };
            let just_now = w.oldest().saturating_sub(1);
            let before = self.forgotten.as_ref().map_or(just_now, |before| before.start);
            self.forgotten = (w.oldest() > 0).then_some(before..w.oldest());
        }
        let kept = if answer.len() <= ANSWER_BYTES_MAX { answer.clone() } else { Bytes::new() };
        w.writes += 1;
        w.bytes += (SUFFIX_BYTES + kept.len()) as u64;
        batch.insert(&tables.once, record_key(self.slot, w.generation, id), &kept[..]);
        self.added_bytes += kept.len();
        self.added.insert(id, kept);
        self.changed = true;
    }

    /// The batch is about to be committed.
    pub(crate) fn finish(&mut self, tables: &Tables, batch: &mut OwnedWriteBatch) {
        if std::mem::take(&mut self.changed) {
            batch.insert(&tables.once, &keys::slot_prefix(self.slot)[..], self.window.encode());
        }
    }

    /// The batch is committed.
    pub(crate) fn committed(&mut self) {
        self.added.clear();
        self.added_bytes = 0;
    }

    /// Whether the batch should end: small commands can have large answers.
    pub(crate) fn is_large(&self) -> bool {
        self.added_bytes > ADDED_BYTES_MAX
    }

    /// What can be removed in the background.
    pub(crate) fn take_forgotten(&mut self) -> Option<Forgotten> {
        self.forgotten.take().map(|generations| Forgotten::new(self.slot, generations))
    }
}

/// Whether everything executed behind a name's position is remembered.
pub(crate) fn judge_position(id: WriteId, floor: LogIndex) -> Result<(), EtcdError> {
    if id.position < floor { Err(EtcdError::WriteIdExpired) } else { Ok(()) }
}

fn window(reader: &impl Readable, tables: &Tables, slot: u64) -> Result<Window, StoreError> {
    let record = reader.get(&tables.once, keys::slot_prefix(slot))?;
    Ok(record.map(|bytes| Window::decode(&bytes)).transpose()?.unwrap_or_default())
}

/// All that is remembered, in an order that is the same on every store: for images and hashes.
pub(crate) struct Remembered {
    window: Option<Window>,
    records: Iter,
}

pub(crate) fn remembered(
    reader: &impl Readable,
    tables: &Tables,
    slot: u64,
) -> Result<Remembered, StoreError> {
    let window = window(reader, tables, slot)?;
    let from = Bound::Included(generation_key(slot, window.oldest()));
    // No generation has this number.
    let end = Bound::Excluded(generation_key(slot, u64::MAX));
    let records = reader.range(&tables.once, (from, end));
    Ok(Remembered { window: (window != Window::default()).then_some(window), records })
}

impl Iterator for Remembered {
    /// Keys without the slot, and values.
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(window) = self.window.take() {
            return Some(Ok((Bytes::new(), Bytes::copy_from_slice(&window.encode()))));
        }
        let record = self.records.next()?.into_inner();
        Some(record.map_err(StoreError::from).map(|(key, value)| {
            (Bytes::copy_from_slice(keys::after_slot(&key)), Bytes::copy_from_slice(&value))
        }))
    }
}

/// Writes a record of an image into a slot.
pub(crate) fn restore(
    tables: &Tables,
    batch: &mut OwnedWriteBatch,
    slot: u64,
    suffix: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    match suffix.len() {
        0 => drop(Window::decode(value)?),
        len if len == SUFFIX_BYTES && value.len() <= ANSWER_BYTES_MAX => {}
        _ => return Err(StoreError::damaged("once: a record of an image has a wrong length")),
    }
    let mut key = keys::slot_prefix(slot).to_vec();
    key.extend_from_slice(suffix);
    batch.insert(&tables.once, key, value);
    Ok(())
}

/// Records to remove, and how far that has come.
#[derive(Debug)]
pub(crate) struct Forgotten {
    /// All before this key are removed: a search from the beginning would meet the marks of those again and again.
    from: Vec<u8>,
    /// The first key to keep.
    end: Vec<u8>,
}

impl Forgotten {
    fn new(slot: u64, generations: Range<u64>) -> Self {
        Self { from: generation_key(slot, generations.start), end: generation_key(slot, generations.end) }
    }

    /// Removes some of the records; true if there are more.
    pub(crate) fn remove(&mut self, tables: &Tables, records_max: usize) -> Result<bool, StoreError> {
        let mut batch = tables.db.batch();
        let mut more = false;
        for guard in tables.once.range(self.from.clone()..self.end.clone()) {
            let key = guard.key()?;
            if batch.len() >= records_max {
                self.from = key.to_vec();
                more = true;
                break;
            }
            batch.remove(&tables.once, key);
        }
        batch.commit()?;
        Ok(more)
    }
}
