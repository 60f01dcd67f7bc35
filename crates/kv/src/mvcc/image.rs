//! A keyspace's state as a stream of bytes, for another store; see `frames.rs` for how it looks.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use fjall::{Iter, OwnedWriteBatch, Readable};
use pontoon_node::state_machine::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink};
use pontoon_raft_core::types::{GroupId, LogIndex};

use crate::background::Job;
use crate::engine::{Engine, Tables};
use crate::error::StoreError;
use crate::mvcc::compaction;
use crate::mvcc::control::Control;
use crate::mvcc::frames::{
    self, Frame, Header, Parser, TAG_CONTROL, TAG_LEASE, TAG_ONCE, TAG_VERSION, bad, check_version,
};
use crate::mvcc::keys;
use crate::mvcc::once::{self, Remembered};
use crate::mvcc::records::{Current, HISTORY_KEY_BYTES, Revision, Version, is_milestone};
use crate::mvcc::slot::{self, Cursor, SlotMeta, SlotState};
use crate::mvcc::state::Picture;

/// Makes the stream from a snapshot of the database.
pub(crate) struct ImageReader {
    versions: Option<Iter>,
    leases: Option<Iter>,
    once: Remembered,
    control: Option<Iter>,
    ended: bool,
    frames: u64,
    crc: u32,
    buffer: BytesMut,
    /// Keeps the database open.
    _engine: Engine,
}

impl ImageReader {
    pub(crate) fn new(engine: &Engine, picture: &Picture<'_>) -> Result<Self, StoreError> {
        let Picture { tables, snapshot, slot, meta } = picture;
        let slot = *slot;
        let cursor = compaction::cursor(snapshot, tables, slot)?;
        let mut buffer = BytesMut::with_capacity(SNAPSHOT_CHUNK_BYTES_MAX * 2);
        let header = Header {
            applied: meta.applied,
            term: meta.term,
            revision: meta.revision,
            compact_revision: meta.compact_revision,
            cursor: cursor.revision,
        };
        header.put(&mut buffer);
        let crc = crc32c::crc32c(&buffer);
        let once = once::remembered(snapshot, tables, slot)?;
        let slot = keys::slot_prefix(slot);
        Ok(Self {
            once,
            versions: Some(snapshot.prefix(&tables.history, slot)),
            leases: Some(snapshot.prefix(&tables.lease, slot)),
            control: Some(snapshot.prefix(&tables.control, slot)),
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
        } else if let Some(guard) = next(&mut self.control) {
            let (key, value) = guard.into_inner()?;
            self.frame(TAG_CONTROL, keys::after_slot(&key), &value);
        } else {
            self.crc = frames::put_end(&mut self.buffer, self.frames, self.crc);
            self.ended = true;
        }
        Ok(())
    }

    fn frame(&mut self, tag: u8, key: &[u8], value: &[u8]) {
        let start = self.buffer.len();
        frames::put_frame(&mut self.buffer, tag, key, value);
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

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
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
    parser: Parser,
    have_header: bool,
    finished: bool,
    last: Revision,
    /// Whether the records of `control` make sense; they are judged as they come.
    control: Control,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
    /// What the batch makes of `current`: a key may come several times.
    currents: BTreeMap<Vec<u8>, Option<Current>>,
    key: Vec<u8>,
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
            parser: Parser::default(),
            have_header: false,
            finished: false,
            last: Revision::default(),
            control: Control::default(),
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

    fn header(&mut self, header: Header) -> io::Result<()> {
        self.meta.applied = header.applied;
        self.meta.term = header.term;
        self.meta.revision = header.revision;
        self.meta.compact_revision = header.compact_revision;
        self.cursor.revision = header.cursor;
        if self.meta.applied != self.index {
            return Err(bad(format_args!("as of entry {}, expected {}", self.meta.applied, self.index)));
        }
        self.have_header = true;
        Ok(())
    }

    fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let (key, value) = (frame.key(), frame.value());
        match frame.tag {
            TAG_VERSION => self.version(key, value)?,
            TAG_LEASE => {
                self.key_in_slot(key)?;
                self.batch.insert(&self.tables.lease, &self.key[..], value);
            }
            TAG_ONCE => once::restore(&self.tables, &mut self.batch, self.slot, key, value).map_err(bad)?,
            TAG_CONTROL => {
                self.control.load(key, value).map_err(bad)?;
                self.key_in_slot(key)?;
                self.batch.insert(&self.tables.control, &self.key[..], value);
            }
            tag => return Err(bad(format_args!("a record of unknown kind {tag}"))),
        }
        self.batch_bytes += frame.bytes.len();
        Ok(())
    }

    fn key_in_slot(&mut self, suffix: &[u8]) -> io::Result<()> {
        self.key.clear();
        self.key.extend_from_slice(&keys::slot_prefix(self.slot));
        self.key.extend_from_slice(suffix);
        if self.key.len() > usize::from(u16::MAX) {
            return Err(bad("a key is too long"));
        }
        Ok(())
    }

    fn version(&mut self, suffix: &[u8], record: &[u8]) -> io::Result<()> {
        let t = &self.tables;
        let version = check_version(suffix, record, &mut self.last, self.meta.revision)?;
        let revision = self.last;
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
        if self.flag.is_cancelled() {
            return Err(io::Error::other("another image has taken the place of this one"));
        }
        if self.parser.ended() {
            return Err(bad("it goes on after its end"));
        }
        self.parser.feed(&chunk);
        if !self.have_header {
            let Some(header) = self.parser.header()? else { return Ok(()) };
            self.header(header)?;
        }
        while let Some(frame) = self.parser.next()? {
            self.frame(&frame)?;
            if self.batch_bytes >= SNAPSHOT_CHUNK_BYTES_MAX {
                self.flush().map_err(io::Error::other)?;
            }
        }
        if self.parser.ended() && !self.parser.rest().is_empty() {
            return Err(bad("it goes on after its end"));
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if !self.parser.ended() {
            return Err(bad("its end is missing"));
        }
        if self.flag.is_cancelled() {
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
