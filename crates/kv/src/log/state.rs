//! The handle by which a log is read, beside the apply worker that appends to it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Readable as _, Snapshot};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex};
use tokio::sync::watch;

use super::image::LogImageReader;
use crate::engine::{Engine, Tables};
use crate::error::StoreError;
use crate::mvcc::records::Revision;
use crate::mvcc::slot::{self, SlotMeta};
use crate::mvcc::{compaction, keys};

/// How much an entry costs a reader beside its data, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it is.
    pub index: LogIndex,
    /// Its name.
    pub id: EntryId,
    /// What it says.
    pub data: Bytes,
}

/// A log in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// The index of the first entry; zero if there is none.
    pub first: LogIndex,
    /// The index of the last entry; zero if there is none.
    pub last: LogIndex,
    /// The last entry's id.
    pub last_id: EntryId,
    /// How far the group's Raft log is applied here.
    pub applied: LogIndex,
    /// Bytes of all entries with their ids.
    pub bytes: u64,
}

/// One log's state on this store. Reads see what is applied here, never wait for appends and never make them wait.
pub struct LogState {
    engine: Engine,
    group: GroupId,
    /// The last entry.
    last: watch::Sender<LogIndex>,
    ended: watch::Sender<bool>,
}

impl fmt::Debug for LogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogState").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A consistent picture of the live slot.
pub(super) struct Picture<'a> {
    pub(super) tables: &'a Tables,
    pub(super) snapshot: Snapshot,
    pub(super) slot: u64,
    pub(super) meta: SlotMeta,
}

impl LogState {
    pub(super) fn new(engine: Engine, group: GroupId, last: LogIndex) -> Arc<Self> {
        Arc::new(Self { engine, group, last: watch::Sender::new(last), ended: watch::Sender::new(false) })
    }

    pub(super) fn publish(&self, last: LogIndex) {
        self.last.send_if_modified(|known| std::mem::replace(known, last) != last);
    }

    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// The group that replicates it.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Follows the index of the last entry here.
    #[must_use]
    pub fn last(&self) -> watch::Receiver<LogIndex> {
        self.last.subscribe()
    }

    /// Tells when the replica here is closed: nothing new comes.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    pub(super) fn picture(&self) -> Result<Picture<'_>, StoreError> {
        let tables = self.engine.tables();
        let snapshot = tables.db.snapshot();
        let missing = || StoreError::damaged(format!("meta: group {} has no live slot", self.group));
        let record = snapshot.get(&tables.meta, slot::group_key(self.group))?.ok_or_else(missing)?;
        let slot = slot::decode_group(&record)?;
        let meta = compaction::meta_in(&snapshot, tables, slot)?.ok_or_else(missing)?;
        Ok(Picture { tables, snapshot, slot, meta })
    }

    pub(super) fn image(&self) -> Result<LogImageReader, StoreError> {
        LogImageReader::new(&self.engine, &self.picture()?)
    }

    /// Entries from index `from` on, in order: at most so many, and so many bytes, but at least one if there is one.
    ///
    /// # Errors
    /// The engine fails.
    pub fn read(
        &self,
        from: LogIndex,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let picture = self.picture()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let start = entry_key(picture.slot, from);
        let end = entry_key(picture.slot, LogIndex(u64::MAX));
        for guard in picture.snapshot.range(&picture.tables.history, start.as_ref()..=end.as_ref()) {
            let (key, record) = guard.into_inner()?;
            let entry = decode_entry(&key, &record)?;
            bytes += entry.data.len() + ENTRY_OVERHEAD_BYTES;
            if !entries.is_empty() && (entries.len() >= entries_max || bytes > bytes_max) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The log in numbers.
    ///
    /// # Errors
    /// The engine fails.
    pub fn figures(&self) -> Result<LogFigures, StoreError> {
        let picture = self.picture()?;
        let last = last_of(&picture.meta);
        let first = self.read(LogIndex::ZERO, 1, 0)?.first().map_or(LogIndex::ZERO, |entry| entry.index);
        let last_id = last_id(&picture.snapshot, picture.tables, picture.slot, last)?;
        let SlotMeta { applied, written_bytes, .. } = picture.meta;
        Ok(LogFigures { first, last, last_id, applied, bytes: written_bytes })
    }
}

/// The last entry that a slot of a log holds. The slot's record counts revisions from 1, for keyspaces; for a log they are
/// indexes, and 1 with nothing written means that there is none.
pub(super) fn last_of(meta: &SlotMeta) -> LogIndex {
    if meta.written_bytes == 0 { LogIndex::ZERO } else { LogIndex(meta.revision.cast_unsigned()) }
}

/// The key of an entry in `history`.
pub(super) fn entry_key(slot: u64, index: LogIndex) -> keys::ShortKey {
    keys::history_key(slot, Revision { main: index.0.cast_signed(), sub: 0 })
}

/// The key of an entry's index in `index`.
pub(super) fn id_key(slot: u64, id: EntryId) -> Vec<u8> {
    let mut key = keys::slot_prefix(slot).to_vec();
    key.extend_from_slice(&id.0.to_be_bytes());
    key
}

pub(super) fn encode_entry(id: EntryId, data: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(16 + data.len());
    record.extend_from_slice(&id.0.to_be_bytes());
    record.extend_from_slice(data);
    record
}

/// The id and the data of a record.
pub(super) fn split_record(record: &[u8]) -> Result<(EntryId, &[u8]), StoreError> {
    let (id, data) = record
        .split_first_chunk::<16>()
        .ok_or_else(|| StoreError::damaged("history: a log's entry is too short for its id"))?;
    Ok((EntryId(u128::from_be_bytes(*id)), data))
}

fn decode_entry(key: &[u8], record: &[u8]) -> Result<LogEntry, StoreError> {
    let index = LogIndex(keys::revision_of(key)?.main.cast_unsigned());
    let (id, data) = split_record(record)?;
    Ok(LogEntry { index, id, data: Bytes::copy_from_slice(data) })
}

/// The id of the entry at `last`; none if that is zero.
pub(super) fn last_id(
    reader: &impl fjall::Readable,
    tables: &Tables,
    slot: u64,
    last: LogIndex,
) -> Result<EntryId, StoreError> {
    if last == LogIndex::ZERO {
        return Ok(EntryId::NONE);
    }
    let record = reader
        .get(&tables.history, entry_key(slot, last))?
        .ok_or_else(|| StoreError::damaged(format!("history: a log's last entry {last} is missing")))?;
    Ok(split_record(&record)?.0)
}
