//! A log as a stream of bytes, for another store: the container of `mvcc/frames.rs` with entries in it.

use std::io;

use bytes::{Bytes, BytesMut};
use fjall::{Iter, OwnedWriteBatch, Readable as _};
use pontoon_node::state_machine::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex};

use super::state::{Picture, entry_key, id_key, last_of, split_record};
use crate::background::Job;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::mvcc::frames::{self, Frame, Header, Parser, TAG_LOG_ENTRY, bad};
use crate::mvcc::image::StagingFlag;
use crate::mvcc::keys;
use crate::mvcc::records::Revision;
use crate::mvcc::slot::{self, SlotMeta, SlotState};

/// Makes the stream from a snapshot of the database.
pub(super) struct LogImageReader {
    entries: Option<Iter>,
    ended: bool,
    frames: u64,
    crc: u32,
    buffer: BytesMut,
    /// Keeps the database open.
    _engine: Engine,
}

impl LogImageReader {
    pub(super) fn new(engine: &Engine, picture: &Picture<'_>) -> Result<Self, StoreError> {
        let Picture { tables, snapshot, slot, meta } = picture;
        let mut buffer = BytesMut::with_capacity(SNAPSHOT_CHUNK_BYTES_MAX * 2);
        let header = Header {
            applied: meta.applied,
            term: meta.term,
            revision: last_of(meta).0.cast_signed(),
            compact_revision: meta.compact_revision,
            cursor: Revision::default(),
        };
        header.put(&mut buffer);
        let crc = crc32c::crc32c(&buffer);
        let entries = Some(snapshot.prefix(&tables.history, keys::slot_prefix(*slot)));
        Ok(Self { entries, ended: false, frames: 0, crc, buffer, _engine: engine.clone() })
    }

    /// Adds one frame to the buffer.
    fn fill(&mut self) -> Result<(), StoreError> {
        let Some(guard) = self.entries.as_mut().and_then(Iterator::next) else {
            self.entries = None;
            self.crc = frames::put_end(&mut self.buffer, self.frames, self.crc);
            self.ended = true;
            return Ok(());
        };
        let (key, value) = guard.into_inner()?;
        let start = self.buffer.len();
        let index = keys::revision_of(&key)?.main.to_be_bytes();
        frames::put_frame(&mut self.buffer, TAG_LOG_ENTRY, &index, &value);
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer[start..]);
        self.frames += 1;
        Ok(())
    }
}

impl SnapshotReader for LogImageReader {
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

/// Receives the stream into a slot of its own.
pub(super) struct LogImageSink {
    engine: Engine,
    slot: u64,
    index: LogIndex,
    meta: SlotMeta,
    /// The last entry that the header promises.
    promised: LogIndex,
    last: LogIndex,
    flag: StagingFlag,
    parser: Parser,
    have_header: bool,
    finished: bool,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
}

impl LogImageSink {
    pub(super) fn new(engine: &Engine, group: GroupId, index: LogIndex) -> Result<Self, StoreError> {
        let tables = engine.tables();
        let slot = engine.take_slot();
        let mut meta = SlotMeta::new(group, SlotState::Staging);
        meta.applied = index;
        tables.meta.insert(slot::meta_key(slot), meta.encode())?;
        Ok(Self {
            slot,
            index,
            meta,
            promised: LogIndex::ZERO,
            last: LogIndex::ZERO,
            flag: StagingFlag::default(),
            parser: Parser::default(),
            have_header: false,
            finished: false,
            batch: tables.db.batch(),
            batch_bytes: 0,
            engine: engine.clone(),
        })
    }

    pub(super) fn flag(&self) -> StagingFlag {
        self.flag.clone()
    }

    fn check_flag(&self) -> io::Result<()> {
        if self.flag.is_cancelled() {
            return Err(io::Error::other("another image has taken the place of this one"));
        }
        Ok(())
    }

    fn header(&mut self, header: Header) -> io::Result<()> {
        if header.applied != self.index {
            return Err(bad(format_args!("as of entry {}, expected {}", header.applied, self.index)));
        }
        self.meta.term = header.term;
        self.promised = LogIndex(header.revision.cast_unsigned());
        self.have_header = true;
        Ok(())
    }

    fn entry(&mut self, frame: &Frame) -> io::Result<()> {
        if frame.tag != TAG_LOG_ENTRY {
            return Err(bad(format_args!("a record of kind {} in the image of a log", frame.tag)));
        }
        let index = frame.key().try_into().map(u64::from_be_bytes).map_err(bad)?;
        let index = LogIndex(index);
        if index <= self.last || index > self.index {
            return Err(bad("entries are not in order"));
        }
        let (id, _) = split_record(frame.value()).map_err(bad)?;
        if id == EntryId::NONE {
            return Err(bad("an entry without an id"));
        }
        self.last = index;
        let tables = self.engine.tables();
        self.batch.insert(&tables.history, &entry_key(self.slot, index)[..], frame.value());
        self.batch.insert(&tables.index, id_key(self.slot, id), index.0.to_be_bytes());
        self.meta.revision = index.0.cast_signed();
        self.meta.written_bytes += frame.value().len() as u64;
        self.batch_bytes += frame.bytes.len();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::replace(&mut self.batch, self.engine.tables().db.batch());
        self.batch_bytes = 0;
        Ok(batch.commit()?)
    }
}

impl SnapshotSink for LogImageSink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.check_flag()?;
        if self.parser.ended() {
            return Err(bad("it goes on after its end"));
        }
        self.parser.feed(&chunk);
        if !self.have_header {
            let Some(header) = self.parser.header()? else { return Ok(()) };
            self.header(header)?;
        }
        while let Some(frame) = self.parser.next()? {
            self.entry(&frame)?;
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
        if self.last != self.promised {
            return Err(bad("its last entry is not the one that was announced"));
        }
        self.check_flag()?;
        self.meta.state = SlotState::Staged;
        let meta = self.meta.encode();
        self.batch.insert(&self.engine.tables().meta, slot::meta_key(self.slot), meta);
        self.flush().map_err(io::Error::other)?;
        self.engine.tables().persist().map_err(io::Error::other)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for LogImageSink {
    fn drop(&mut self) {
        if !self.finished {
            self.engine.submit(Job::Clear { slot: self.slot });
        }
    }
}
