//! What a batch has changed so far, before it is committed: later commands of the batch must see it.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use fjall::Slice;

use crate::error::StoreError;
use crate::mvcc::keys;
use crate::mvcc::records::{Current, KeyRange, Revision};
use crate::mvcc::view::{Committed, Found, Now, View, Visit};

/// Changes that are not committed.
#[derive(Default)]
pub(crate) struct Overlay {
    /// What became of each key that was touched; `None`: deleted. Written to `current` once per batch, however often
    /// the batch writes the key.
    pub(crate) keys: BTreeMap<Bytes, Option<Current>>,
    /// The versions that were made, in order.
    records: Vec<(Revision, Slice)>,
    /// Lease and key: whether the key is attached now.
    pub(crate) attachments: BTreeMap<(i64, Bytes), bool>,
}

impl Overlay {
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.records.clear();
        self.attachments.clear();
    }

    pub(crate) fn add_record(&mut self, revision: Revision, record: Slice) {
        self.records.push((revision, record));
    }

    pub(crate) fn record(&self, revision: Revision) -> Option<&Slice> {
        let at = self.records.binary_search_by_key(&revision, |(r, _)| *r).ok()?;
        Some(&self.records[at].1)
    }
}

/// The newest state, with what the batch has done so far.
pub(crate) struct Working<'a> {
    pub(crate) committed: Committed<'a>,
    pub(crate) overlay: &'a Overlay,
}

impl View for Working<'_> {
    fn find(&self, key: &[u8]) -> Result<Option<Found>, StoreError> {
        match self.overlay.keys.get(key) {
            Some(current) => Ok(current.map(Found::from)),
            None => Now(self.committed).find(key),
        }
    }

    fn walk(&self, range: KeyRange<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let end = match range {
            KeyRange::From(_) => Bound::Unbounded,
            KeyRange::Between(_, end) => Bound::Excluded(end),
            KeyRange::One(key) => Bound::Included(key),
        };
        let mut changed =
            self.overlay.keys.range::<[u8], _>((Bound::Included(range.start()), end)).peekable();
        for item in self.committed.walk_current(range) {
            let (stored, current) = item?;
            let key = keys::after_slot(&stored);
            while let Some((k, now)) = changed.next_if(|(k, _)| &k[..] < key) {
                if let Some(now) = now
                    && !visit(k, (*now).into())?
                {
                    return Ok(());
                }
            }
            let now = match changed.next_if(|(k, _)| &k[..] == key) {
                Some((_, now)) => *now,
                None => Some(current),
            };
            if let Some(now) = now
                && !visit(key, now.into())?
            {
                return Ok(());
            }
        }
        for (key, now) in changed {
            if let Some(now) = now
                && !visit(key, (*now).into())?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn record(&self, revision: Revision) -> Result<Slice, StoreError> {
        match self.overlay.record(revision) {
            Some(record) => Ok(record.clone()),
            None => Now(self.committed).record(revision),
        }
    }
}
