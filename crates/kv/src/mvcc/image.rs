//! A keyspace's state as a stream of bytes, for another store.
//!
//! ```text
//! "PNKV" version=2
//! applied term revision compact_revision cursor.main cursor.sub   each 8 bytes, little-endian
//! { tag key_length value_length key value }*                      lengths as varints; see `Tag`
//! 0 frames crc32c                                                 8 and 4 bytes; the checksum covers all before it
//! ```
//!
//! The stream holds versions, leases and the writes that are remembered; the receiver derives `current` and `index` from the versions, which come in
//! order of their revisions.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fjall::{Iter, OwnedWriteBatch, Readable};
use pontoon_node::state_machine::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink};
use pontoon_raft_core::types::{GroupId, LogIndex, Term};

use crate::background::Job;
use crate::engine::{Engine, Tables};
use crate::error::StoreError;
use crate::mvcc::compaction;
use crate::mvcc::keys;
use crate::mvcc::once::{self, Remembered};
use crate::mvcc::records::{self, Current, HISTORY_KEY_BYTES, Revision, Version, is_milestone};
use crate::mvcc::slot::{self, Cursor, SlotMeta, SlotState};

const MAGIC: &[u8; 4] = b"PNKV";
const FORMAT: u8 = 2;
const HEADER_LEN: usize = 5 + 6 * 8;

const TAG_END: u8 = 0;
const TAG_VERSION: u8 = 1;
const TAG_LEASE: u8 = 2;
const TAG_ONCE: u8 = 3;

/// No frame of ours is larger; a length beyond this is damage.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// Makes the stream from a snapshot of the database.
pub(crate) struct ImageReader {
    versions: Option<Iter>,
    leases: Option<Iter>,
    once: Remembered,
    ended: bool,
    frames: u64,
    crc: u32,
    buffer: BytesMut,
    /// Keeps the database open.
    _engine: Engine,
}

impl ImageReader {
    pub(crate) fn new(engine: &Engine, slot: u64) -> Result<Self, StoreError> {
        let tables = engine.tables();
        let snapshot = tables.db.snapshot();
        let meta = compaction::meta_in(&snapshot, tables, slot)?
            .ok_or_else(|| StoreError::damaged(format!("meta: slot {slot} has no record")))?;
        let cursor = compaction::cursor(&snapshot, tables, slot)?;
        let mut buffer = BytesMut::with_capacity(SNAPSHOT_CHUNK_BYTES_MAX * 2);
        buffer.put_slice(MAGIC);
        buffer.put_u8(FORMAT);
        for field in [
            meta.applied.0,
            meta.term.0,
            meta.revision.cast_unsigned(),
            meta.compact_revision.cast_unsigned(),
            cursor.revision.main.cast_unsigned(),
            u64::from(cursor.revision.sub),
        ] {
            buffer.put_u64_le(field);
        }
        let crc = crc32c::crc32c(&buffer);
        let once = once::remembered(&snapshot, tables, slot)?;
        let slot = keys::slot_prefix(slot);
        Ok(Self {
            once,
            versions: Some(snapshot.prefix(&tables.history, slot)),
            leases: Some(snapshot.prefix(&tables.lease, slot)),
            ended: false,
            frames: 0,
            crc,
            buffer,
            _engine: engine.clone(),
        })
    }

    /// Adds one frame to the buffer.
    fn fill(&mut self) -> Result<(), StoreError> {
        let next = |iter: &mut Option<Iter>| {
            let item = iter.as_mut().and_then(Iterator::next);
            if item.is_none() {
                *iter = None;
            }
            item
        };
        if let Some(guard) = next(&mut self.versions) {
            let (key, value) = guard.into_inner()?;
            self.frame(TAG_VERSION, keys::after_slot(&key), &value);
        } else if let Some(guard) = next(&mut self.leases) {
            let (key, value) = guard.into_inner()?;
            self.frame(TAG_LEASE, keys::after_slot(&key), &value);
        } else if let Some(record) = self.once.next() {
            let (key, value) = record?;
            self.frame(TAG_ONCE, &key, &value);
        } else {
            let start = self.buffer.len();
            self.buffer.put_u8(TAG_END);
            self.buffer.put_u64_le(self.frames);
            self.crc = crc32c::crc32c_append(self.crc, &self.buffer[start..]);
            self.buffer.put_u32_le(self.crc);
            self.ended = true;
        }
        Ok(())
    }

    fn frame(&mut self, tag: u8, key: &[u8], value: &[u8]) {
        let start = self.buffer.len();
        let mut lengths = Vec::with_capacity(16);
        records::put_varint(&mut lengths, key.len() as u64);
        records::put_varint(&mut lengths, value.len() as u64);
        self.buffer.put_u8(tag);
        self.buffer.put_slice(&lengths);
        self.buffer.put_slice(key);
        self.buffer.put_slice(value);
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer[start..]);
        self.frames += 1;
    }
}

impl SnapshotReader for ImageReader {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        while !self.ended && self.buffer.len() < SNAPSHOT_CHUNK_BYTES_MAX {
            self.fill().map_err(io::Error::other)?;
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let len = self.buffer.len().min(SNAPSHOT_CHUNK_BYTES_MAX);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }
}

/// Stops an image that is being received when another one takes its place.
#[derive(Clone, Default)]
pub(crate) struct StagingFlag(Arc<AtomicBool>);

impl StagingFlag {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Receives the stream into a slot of its own.
pub(crate) struct ImageSink {
    engine: Engine,
    tables: Tables,
    slot: u64,
    index: LogIndex,
    meta: SlotMeta,
    cursor: Cursor,
    flag: StagingFlag,
    buffer: BytesMut,
    have_header: bool,
    ended: bool,
    finished: bool,
    frames: u64,
    last: Revision,
    crc: u32,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
    /// What the batch makes of `current`: a key may come several times.
    currents: BTreeMap<Vec<u8>, Option<Current>>,
    key: Vec<u8>,
}

fn bad(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image of a keyspace is damaged: {what}"))
}

impl ImageSink {
    pub(crate) fn new(engine: &Engine, group: GroupId, index: LogIndex) -> Result<Self, StoreError> {
        let tables = engine.tables().clone();
        let slot = engine.take_slot();
        let mut meta = SlotMeta::new(group, SlotState::Staging);
        meta.applied = index;
        tables.meta.insert(slot::meta_key(slot), meta.encode())?;
        Ok(Self {
            engine: engine.clone(),
            slot,
            index,
            meta,
            cursor: Cursor::default(),
            flag: StagingFlag::default(),
            buffer: BytesMut::new(),
            have_header: false,
            ended: false,
            finished: false,
            frames: 0,
            last: Revision::default(),
            crc: 0,
            batch: tables.db.batch(),
            batch_bytes: 0,
            currents: BTreeMap::new(),
            key: Vec::new(),
            tables,
        })
    }

    pub(crate) fn flag(&self) -> StagingFlag {
        self.flag.clone()
    }

    fn header(&mut self) -> io::Result<()> {
        let header = self.buffer.split_to(HEADER_LEN);
        self.crc = crc32c::crc32c(&header);
        if !header.starts_with(MAGIC) {
            return Err(bad("it is none"));
        }
        if header[4] != FORMAT {
            return Err(bad(format_args!("version {}, this store reads {FORMAT}", header[4])));
        }
        let mut fields = &header[5..];
        self.meta.applied = LogIndex(fields.get_u64_le());
        self.meta.term = Term(fields.get_u64_le());
        self.meta.revision = fields.get_i64_le();
        self.meta.compact_revision = fields.get_i64_le();
        self.cursor.revision.main = fields.get_i64_le();
        self.cursor.revision.sub = u32::try_from(fields.get_u64_le()).map_err(bad)?;
        if self.meta.applied != self.index {
            return Err(bad(format_args!("as of entry {}, expected {}", self.meta.applied, self.index)));
        }
        self.have_header = true;
        Ok(())
    }

    /// Takes one whole frame off the buffer; false if there is none.
    fn frame(&mut self) -> io::Result<bool> {
        let Some(&tag) = self.buffer.first() else { return Ok(false) };
        if tag == TAG_END {
            if self.buffer.len() < 13 {
                return Ok(false);
            }
            let end = self.buffer.split_to(13);
            self.crc = crc32c::crc32c_append(self.crc, &end[..9]);
            if (&end[1..9]).get_u64_le() != self.frames || (&end[9..]).get_u32_le() != self.crc {
                return Err(bad("the checksum or the number of records is wrong"));
            }
            self.ended = true;
            return Ok(false);
        }
        let mut rest = &self.buffer[1..];
        let (Some(key_len), Some(value_len)) =
            (records::take_varint(&mut rest), records::take_varint(&mut rest))
        else {
            // Two varints take 20 bytes at most.
            return if self.buffer.len() > 21 { Err(bad("a length is endless")) } else { Ok(false) };
        };
        if key_len > FRAME_BYTES_MAX || value_len > FRAME_BYTES_MAX {
            return Err(bad("a record is too large"));
        }
        let head = self.buffer.len() - rest.len();
        let (key_end, frame_end) = (head + key_len as usize, head + (key_len + value_len) as usize);
        if self.buffer.len() < frame_end {
            return Ok(false);
        }
        let frame = self.buffer.split_to(frame_end);
        self.crc = crc32c::crc32c_append(self.crc, &frame);
        self.frames += 1;
        let (key, value) = (&frame[head..key_end], &frame[key_end..]);
        match tag {
            TAG_VERSION => self.version(key, value)?,
            TAG_LEASE => {
                self.key.clear();
                self.key.extend_from_slice(&keys::slot_prefix(self.slot));
                self.key.extend_from_slice(key);
                if self.key.len() > usize::from(u16::MAX) {
                    return Err(bad("a lease's key is too long"));
                }
                self.batch.insert(&self.tables.lease, &self.key[..], value);
            }
            TAG_ONCE => once::restore(&self.tables, &mut self.batch, self.slot, key, value).map_err(bad)?,
            _ => return Err(bad(format_args!("a record of unknown kind {tag}"))),
        }
        self.batch_bytes += frame.len();
        Ok(true)
    }

    fn version(&mut self, suffix: &[u8], record: &[u8]) -> io::Result<()> {
        let t = &self.tables;
        let revision = keys::revision_of(suffix).map_err(bad)?;
        let version = Version::decode(record).map_err(bad)?;
        if suffix.len() != 12 || revision <= self.last || revision.main > self.meta.revision {
            return Err(bad("revisions are not in order"));
        }
        if version.key.is_empty() || version.key.len() > records::KEY_BYTES_MAX {
            return Err(bad("a key's length is out of bounds"));
        }
        self.last = revision;
        self.batch.insert(&t.history, &keys::history_key(self.slot, revision)[..], record);
        self.meta.written_bytes += (record.len() + HISTORY_KEY_BYTES) as u64;
        if version.deletion || is_milestone(version.version) {
            keys::index_key(&mut self.key, self.slot, version.key, revision);
            self.batch.insert(&t.index, &self.key[..], &b""[..]);
        }
        let Version { create, lease, .. } = version;
        let current = Current { revision, create, version: version.version, lease };
        self.currents.insert(version.key.to_vec(), (!version.deletion).then_some(current));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let mut batch = std::mem::replace(&mut self.batch, self.tables.db.batch());
        self.batch_bytes = 0;
        let mut record = Vec::new();
        for (key, current) in std::mem::take(&mut self.currents) {
            keys::current_key(&mut self.key, self.slot, &key);
            match current {
                Some(current) => {
                    record.clear();
                    current.encode(&mut record);
                    batch.insert(&self.tables.current, &self.key[..], &record[..]);
                }
                None => batch.remove(&self.tables.current, &self.key[..]),
            }
        }
        Ok(batch.commit()?)
    }
}

impl SnapshotSink for ImageSink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        if self.flag.0.load(Ordering::Acquire) {
            return Err(io::Error::other("another image has taken the place of this one"));
        }
        if self.ended {
            return Err(bad("it goes on after its end"));
        }
        self.buffer.extend_from_slice(&chunk);
        if !self.have_header {
            if self.buffer.len() < HEADER_LEN {
                return Ok(());
            }
            self.header()?;
        }
        while self.frame()? {
            if self.batch_bytes >= SNAPSHOT_CHUNK_BYTES_MAX {
                self.flush().map_err(io::Error::other)?;
            }
        }
        if self.ended && !self.buffer.is_empty() {
            return Err(bad("it goes on after its end"));
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if !self.ended {
            return Err(bad("its end is missing"));
        }
        if self.flag.0.load(Ordering::Acquire) {
            return Err(io::Error::other("another image has taken the place of this one"));
        }
        self.meta.state = SlotState::Staged;
        let (meta, cursor) = (self.meta.encode(), self.cursor.encode());
        self.batch.insert(&self.tables.meta, slot::meta_key(self.slot), meta);
        self.batch.insert(&self.tables.meta, slot::cursor_key(self.slot), cursor);
        self.flush().map_err(io::Error::other)?;
        self.tables.persist().map_err(io::Error::other)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for ImageSink {
    fn drop(&mut self) {
        if !self.finished {
            self.engine.submit(Job::Clear { slot: self.slot });
        }
    }
}
