//! The few records of `meta`: one per slot, one for how far old versions are physically removed from it, and one per
//! group that names its live slot.
//!
//! Each record has one writer: the slot's is written by the apply worker, in the same batch as the data it speaks of;
//! the cursor by the background thread, in the same batch as the removals.

use pontoon_raft_core::types::{GroupId, LogIndex, Term};

use crate::error::StoreError;
use crate::mvcc::records::Revision;

/// First byte of the keys of [`SlotMeta`] records.
pub(crate) const META_PREFIX: u8 = b's';
const CURSOR_PREFIX: u8 = b'c';
const GROUP_PREFIX: u8 = b'g';
const FORMAT: u8 = 1;

/// What a slot is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// It is the group's state.
    Live,
    /// An image is being written to it; garbage after a restart.
    Staging,
    /// It holds a whole image, durably, and waits to become live.
    Staged,
    /// Nobody reads it any more.
    Dead,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotMeta {
    pub(crate) state: SlotState,
    pub(crate) group: GroupId,
    /// The last log entry in it.
    pub(crate) applied: LogIndex,
    /// That entry's term.
    pub(crate) term: Term,
    /// The keyspace's revision; 1 when it is new.
    pub(crate) revision: i64,
    /// What was compacted up to, logically; -1 if nothing ever was.
    pub(crate) compact_revision: i64,
    /// Bytes of all versions ever written to the slot; see [`Cursor::freed_bytes`].
    pub(crate) written_bytes: u64,
}

const META_LEN: usize = 1 + 1 + 6 * 8;

impl SlotMeta {
    pub(crate) fn new(group: GroupId, state: SlotState) -> Self {
        Self {
            state,
            group,
            applied: LogIndex::ZERO,
            term: Term::ZERO,
            revision: 1,
            compact_revision: -1,
            written_bytes: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; META_LEN] {
        let mut out = [0; META_LEN];
        out[0] = FORMAT;
        out[1] = match self.state {
            SlotState::Live => 1,
            SlotState::Staging => 2,
            SlotState::Staged => 3,
            SlotState::Dead => 4,
        };
        let fields = [
            self.group.0,
            self.applied.0,
            self.term.0,
            self.revision.cast_unsigned(),
            self.compact_revision.cast_unsigned(),
            self.written_bytes,
        ];
        for (place, field) in out[2..].chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::damaged("meta: a slot's record has a wrong length, version or state");
        if bytes.len() != META_LEN || bytes[0] != FORMAT {
            return Err(damaged());
        }
        let state = match bytes[1] {
            1 => SlotState::Live,
            2 => SlotState::Staging,
            3 => SlotState::Staged,
            4 => SlotState::Dead,
            _ => return Err(damaged()),
        };
        let field = |n: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[2 + 8 * n..10 + 8 * n]);
            u64::from_le_bytes(le)
        };
        Ok(Self {
            state,
            group: GroupId(field(0)),
            applied: LogIndex(field(1)),
            term: Term(field(2)),
            revision: field(3).cast_signed(),
            compact_revision: field(4).cast_signed(),
            written_bytes: field(5),
        })
    }
}

/// Every change up to here has been looked at by the removal of compacted versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) revision: Revision,
    /// Bytes of the versions that were removed from the slot.
    pub(crate) freed_bytes: u64,
}

const CURSOR_LEN: usize = 1 + 8 + 4 + 8;

impl Cursor {
    pub(crate) fn encode(&self) -> [u8; CURSOR_LEN] {
        let mut out = [0; CURSOR_LEN];
        out[0] = FORMAT;
        out[1..9].copy_from_slice(&self.revision.main.to_le_bytes());
        out[9..13].copy_from_slice(&self.revision.sub.to_le_bytes());
        out[13..].copy_from_slice(&self.freed_bytes.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let fields = || {
            let (&format, rest) = bytes.split_first()?;
            let (main, rest) = rest.split_first_chunk()?;
            let (sub, rest) = rest.split_first_chunk()?;
            let freed: &[u8; 8] = rest.try_into().ok()?;
            (format == FORMAT).then_some(Self {
                revision: Revision { main: i64::from_le_bytes(*main), sub: u32::from_le_bytes(*sub) },
                freed_bytes: u64::from_le_bytes(*freed),
            })
        };
        fields().ok_or_else(|| StoreError::damaged("meta: a compaction cursor has a wrong length or version"))
    }
}

fn key(prefix: u8, slot: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..].copy_from_slice(&slot.to_be_bytes());
    key
}

pub(crate) fn meta_key(slot: u64) -> [u8; 9] {
    key(META_PREFIX, slot)
}

pub(crate) fn cursor_key(slot: u64) -> [u8; 9] {
    key(CURSOR_PREFIX, slot)
}

/// The key of the record that names a group's live slot.
pub(crate) fn group_key(group: GroupId) -> [u8; 9] {
    key(GROUP_PREFIX, group.0)
}

/// What that record says.
pub(crate) fn decode_group(bytes: &[u8]) -> Result<u64, StoreError> {
    let slot = bytes.try_into().ok().map(u64::from_be_bytes);
    slot.ok_or_else(|| StoreError::damaged("meta: a group's record has a wrong length"))
}

pub(crate) fn slot_of_meta_key(key: &[u8]) -> Result<u64, StoreError> {
    let slot = key.get(1..).and_then(|rest| rest.try_into().ok()).map(u64::from_be_bytes);
    slot.ok_or_else(|| StoreError::damaged("meta: a key of a wrong length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let mut meta = SlotMeta::new(GroupId(7), SlotState::Staged);
        meta.applied = LogIndex(9);
        meta.written_bytes = u64::MAX;
        assert_eq!(SlotMeta::decode(&meta.encode()).unwrap(), meta);
        assert!(SlotMeta::decode(&meta.encode()[1..]).is_err());
        let cursor = Cursor { revision: Revision { main: 5, sub: 6 }, freed_bytes: 7 };
        assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        assert_eq!(slot_of_meta_key(&meta_key(258)).unwrap(), 258);
    }
}
