//! Physical removal of what the logical compaction has given up.
//!
//! A compaction to revision C gives up every version that was superseded at or before C, and every deletion at or
//! before C. Both are found by walking the changes up to C in order: each names what it superseded.

use std::ops::Bound;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fjall::Readable;
use tokio::sync::watch;

use crate::engine::Tables;
use crate::error::StoreError;
use crate::mvcc::keys::{self, ShortKey};
use crate::mvcc::records::{HISTORY_KEY_BYTES, Revision, Version, is_milestone};
use crate::mvcc::slot::{self, Cursor, SlotMeta};

/// What the background thread has to know of a keyspace.
#[derive(Debug)]
pub(crate) struct Physical {
    /// The live slot.
    pub(crate) slot: AtomicU64,
    /// The logical compaction revision, once its record is written.
    pub(crate) wanted: AtomicI64,
    /// The revision up to which old versions are gone.
    done: watch::Sender<i64>,
    awaited: AtomicUsize,
    /// A slot, and the bytes of the versions that were removed from it.
    freed: Mutex<(u64, u64)>,
}

impl Physical {
    pub(crate) fn new(slot: u64, wanted: i64, freed_bytes: u64) -> Self {
        Self {
            freed: Mutex::new((slot, freed_bytes)),
            slot: AtomicU64::new(slot),
            wanted: AtomicI64::new(wanted),
            done: watch::Sender::new(i64::MIN),
            awaited: AtomicUsize::new(0),
        }
    }

    /// Another slot is live.
    pub(crate) fn moved(&self, slot: u64, wanted: i64, freed_bytes: u64) {
        *self.freed.lock().unwrap_or_else(PoisonError::into_inner) = (slot, freed_bytes);
        self.slot.store(slot, Ordering::Release);
        self.wanted.store(wanted, Ordering::Release);
    }

    /// Bytes of the versions that were removed from the live slot.
    pub(crate) fn freed_bytes(&self) -> u64 {
        self.freed.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// A step has come so far in a slot, which may not be the live one any more.
    fn note_freed(&self, slot: u64, bytes: u64) {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if freed.0 == slot {
            freed.1 = bytes;
        }
    }

    /// Whether somebody waits for the end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) > 0
    }

    /// Waits until the versions given up by a compaction to `revision` are gone.
    pub(crate) async fn wait(&self, revision: i64) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.awaited.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.awaited);
        // An error would mean that the sender is gone, and we hold it.
        let _ = self.done.subscribe().wait_for(|done| *done >= revision).await;
    }
}

pub(crate) fn cursor(reader: &impl Readable, tables: &Tables, slot: u64) -> Result<Cursor, StoreError> {
    let record = reader.get(&tables.meta, slot::cursor_key(slot))?;
    Ok(record.map(|bytes| Cursor::decode(&bytes)).transpose()?.unwrap_or_default())
}

pub(crate) fn meta_in(
    reader: &impl Readable,
    tables: &Tables,
    slot: u64,
) -> Result<Option<SlotMeta>, StoreError> {
    reader.get(&tables.meta, slot::meta_key(slot))?.map(|bytes| SlotMeta::decode(&bytes)).transpose()
}

/// Where the cursor stands when everything that a compaction to this revision has given up is gone.
fn end(revision: i64) -> Revision {
    Revision { main: revision, sub: u32::MAX }
}

/// The changes that a compaction to `revision` covers and the background has not come to, if there may be any. It may
/// rest in the midst of a transaction.
pub(crate) fn left(slot: u64, cursor: Revision, revision: i64) -> Option<(Bound<ShortKey>, Bound<ShortKey>)> {
    (cursor < end(revision)).then(|| between(slot, cursor, revision))
}

/// The changes after a cursor, up to and including a revision.
pub(crate) fn between(slot: u64, after: Revision, upto: i64) -> (Bound<ShortKey>, Bound<ShortKey>) {
    (Bound::Excluded(keys::history_key(slot, after)), Bound::Included(keys::history_key(slot, end(upto))))
}

/// One step; true if there is more to do.
pub(crate) fn step(tables: &Tables, physical: &Physical, records_max: usize) -> Result<bool, StoreError> {
    let slot = physical.slot.load(Ordering::Acquire);
    let wanted = physical.wanted.load(Ordering::Acquire);
    let snapshot = tables.db.snapshot();
    let mut cursor = cursor(&snapshot, tables, slot)?;
    let mut batch = tables.db.batch();
    let mut index_key = Vec::new();
    let mut more = false;
    if let Some(left) = left(slot, cursor.revision, wanted) {
        for (seen, guard) in snapshot.range(&tables.history, left).enumerate() {
            if seen == records_max {
                more = true;
                break;
            }
            let (key, record) = guard.into_inner()?;
            let revision = keys::revision_of(&key)?;
            let version = Version::decode(&record)?;
            let mut remove = |r: Revision, bytes: usize, indexed: bool| {
                batch.remove(&tables.history, &keys::history_key(slot, r)[..]);
                if indexed {
                    keys::index_key(&mut index_key, slot, version.key, r);
                    batch.remove(&tables.index, &index_key[..]);
                }
                cursor.freed_bytes += (bytes + HISTORY_KEY_BYTES) as u64;
            };
            if let Some(old) = version.superseded
                && let Some(record) = snapshot.get(&tables.history, keys::history_key(slot, old))?
            {
                remove(old, record.len(), is_milestone(Version::decode(&record)?.version));
            }
            if version.deletion {
                remove(revision, record.len(), true);
            }
            cursor.revision = revision;
        }
        if !more {
            cursor.revision = end(wanted);
        }
        batch.insert(&tables.meta, slot::cursor_key(slot), cursor.encode());
        batch.commit()?;
        physical.note_freed(slot, cursor.freed_bytes);
    }
    if !more {
        physical.done.send_if_modified(|done| {
            let further = *done < wanted;
            *done = wanted.max(*done);
            further
        });
    }
    Ok(more)
}
