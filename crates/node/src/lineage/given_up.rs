//! Stores that were given up when a cluster was recovered without its quorum.
//!
//! The registry cannot tell of them in time: a recovered store has to refuse them before it opens a group, and the
//! registry follows only when the meta group has a leader again. Until then one that is back from the dead, with the old
//! majority, could lead by the old configuration and take the place of what was recovered. So the recovery notes them in
//! the directory, and they are refused as removed ones are: for good, from the first hello on.

use std::collections::BTreeSet;

use bytes::{Buf as _, BufMut as _};
use pontoon_raft_core::types::StoreId;
use pontoon_storage::{LogStore, NoteError};

use super::LineageError;

const NOTE: &str = "given-up";
const NOTE_VERSION: u8 = 1;

/// What such a store is told.
pub(super) const REASON: &str = "it was given up for lost when its cluster was recovered without it";

/// Notes, durably, that these stores must never be taken again.
///
/// # Errors
/// The note cannot be read or written.
pub fn give_up_stores(log: &LogStore, stores: &BTreeSet<StoreId>) -> Result<(), LineageError> {
    let mut all = read(log)?;
    let before = all.len();
    all.extend(stores);
    if all.len() == before {
        return Ok(());
    }
    let mut note = vec![NOTE_VERSION];
    all.iter().for_each(|store| note.put_u64_le(store.0));
    write(log, &note)?;
    Ok(())
}

fn write(log: &LogStore, note: &[u8]) -> Result<(), NoteError> {
    log.put_note(NOTE, note)
}

/// The stores that were given up.
pub(super) fn read(log: &LogStore) -> Result<BTreeSet<StoreId>, LineageError> {
    let Some(note) = log.note(NOTE) else { return Ok(BTreeSet::new()) };
    let mut bytes = &note[..];
    if bytes.len() % 8 != 1 || bytes.get_u8() != NOTE_VERSION {
        return Err(LineageError::Unreadable { key: NOTE.to_owned() });
    }
    let mut stores = BTreeSet::new();
    while bytes.has_remaining() {
        stores.insert(StoreId(bytes.get_u64_le()));
    }
    Ok(stores)
}
