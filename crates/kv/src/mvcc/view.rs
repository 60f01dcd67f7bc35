//! Ways to look at a slot: as it is now, as it was at a revision, as it is in the middle of a batch.

use std::ops::Bound;

use fjall::{Iter, Readable, Slice, Snapshot};

use crate::engine::Tables;
use crate::error::StoreError;
use crate::mvcc::keys;
use crate::mvcc::records::{Current, KEY_BYTES_MAX, KeyRange, Revision, Version};

/// A version that a view shows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) revision: Revision,
    /// Known without reading the version's record, if it is the newest.
    pub(crate) current: Option<Current>,
}

impl From<Current> for Found {
    fn from(current: Current) -> Self {
        Self { revision: current.revision, current: Some(current) }
    }
}

/// Called for each key in order; false ends the walk.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], Found) -> Result<bool, StoreError> + 'v;

/// One consistent picture of the keys.
pub(crate) trait View {
    fn find(&self, key: &[u8]) -> Result<Option<Found>, StoreError>;

    /// Visits the keys of a range in order.
    fn walk(&self, range: KeyRange<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// The record of a version that this view showed.
    fn record(&self, revision: Revision) -> Result<Slice, StoreError>;
}

/// What is committed in one slot.
#[derive(Clone, Copy)]
pub(crate) struct Committed<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) slot: u64,
}

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Keys longer than any stored key cannot be looked up; the same set of stored keys lies before and after their first
/// bytes. The flag says that something was cut.
fn cut(key: &[u8]) -> (&[u8], bool) {
    if key.len() > KEY_BYTES_MAX { (&key[..KEY_BYTES_MAX], true) } else { (key, false) }
}

fn next_slot(slot: u64) -> Bound<Vec<u8>> {
    Bound::Excluded(keys::slot_prefix(slot + 1).to_vec())
}

fn current_bounds(slot: u64, range: KeyRange<'_>) -> Bounds {
    let bound = |key: &[u8]| {
        let mut out = Vec::with_capacity(9 + key.len());
        keys::current_key(&mut out, slot, key);
        out
    };
    let start = match cut(range.start()) {
        (key, false) => Bound::Included(bound(key)),
        (key, true) => Bound::Excluded(bound(key)),
    };
    let end = match range {
        KeyRange::From(_) => next_slot(slot),
        KeyRange::One(key) => Bound::Included(bound(cut(key).0)),
        KeyRange::Between(_, end) => match cut(end) {
            (key, false) => Bound::Excluded(bound(key)),
            (key, true) => Bound::Included(bound(key)),
        },
    };
    (start, end)
}

fn index_bounds(slot: u64, range: KeyRange<'_>) -> Bounds {
    let before = |key: &[u8]| {
        let mut out = Vec::with_capacity(16 + key.len());
        keys::index_bound(&mut out, slot, key);
        out
    };
    // After every version of the key.
    let after = |key: &[u8]| {
        let mut out = Vec::with_capacity(32 + key.len());
        keys::index_prefix(&mut out, slot, key);
        out.extend_from_slice(&[255; 12]);
        out
    };
    let start = match cut(range.start()) {
        (key, false) => Bound::Included(before(key)),
        (key, true) => Bound::Excluded(after(key)),
    };
    let end = match range {
        KeyRange::From(_) => next_slot(slot),
        KeyRange::One(key) => Bound::Included(after(cut(key).0)),
        KeyRange::Between(_, end) => match cut(end) {
            (key, false) => Bound::Excluded(before(key)),
            (key, true) => Bound::Included(after(key)),
        },
    };
    (start, end)
}

impl Committed<'_> {
    pub(crate) fn current(&self, key: &[u8]) -> Result<Option<Current>, StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let mut stored = Vec::with_capacity(9 + key.len());
        keys::current_key(&mut stored, self.slot, key);
        let record = self.snapshot.get(&self.tables.current, &stored)?;
        record.map(|r| Current::decode(&r)).transpose()
    }

    pub(crate) fn walk_current(&self, range: KeyRange<'_>) -> CurrentKeys {
        CurrentKeys(self.snapshot.range(&self.tables.current, current_bounds(self.slot, range)))
    }
}

/// The keys of `current`, in order, with the slot's number still before them.
pub(crate) struct CurrentKeys(Iter);

impl Iterator for CurrentKeys {
    type Item = Result<(Slice, Current), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let guard = self.0.next()?;
        Some(guard.into_inner().map_err(StoreError::from).and_then(|(key, record)| {
            let current = Current::decode(&record)?;
            Ok((key, current))
        }))
    }
}

/// The newest state that is committed.
pub(crate) struct Now<'a>(pub(crate) Committed<'a>);

impl View for Now<'_> {
    fn find(&self, key: &[u8]) -> Result<Option<Found>, StoreError> {
        Ok(self.0.current(key)?.map(Found::from))
    }

    fn walk(&self, range: KeyRange<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        for item in self.0.walk_current(range) {
            let (key, current) = item?;
            if !visit(keys::after_slot(&key), current.into())? {
                break;
            }
        }
        Ok(())
    }

    fn record(&self, revision: Revision) -> Result<Slice, StoreError> {
        let key = keys::history_key(self.0.slot, revision);
        self.0.snapshot.get(&self.0.tables.history, key)?.ok_or_else(|| {
            StoreError::damaged(format!("history: revision {}.{} is missing", revision.main, revision.sub))
        })
    }
}

/// The committed state as it was at a revision that is not compacted.
pub(crate) struct Past<'a> {
    pub(crate) committed: Committed<'a>,
    pub(crate) revision: i64,
}

impl Past<'_> {
    /// The first milestone of the key after this revision, if there is one.
    fn milestone(&self, key: &[u8]) -> Result<Option<Revision>, StoreError> {
        let mut start = Vec::with_capacity(32 + key.len());
        keys::index_prefix(&mut start, self.committed.slot, key);
        let mut end = start.clone();
        start.extend_from_slice(&self.revision.to_be_bytes());
        start.extend_from_slice(&[255; 4]);
        end.extend_from_slice(&[255; 12]);
        let bounds = (Bound::Excluded(start), Bound::Included(end));
        let first = self.committed.snapshot.range(&self.committed.tables.index, bounds).next();
        first.map(|guard| keys::revision_of(&guard.key()?)).transpose()
    }

    /// The version that this revision shows, from a later version of the same key. Each step reads a version after this
    /// revision, so none that a compaction has removed.
    fn before(&self, later: Revision) -> Result<Option<Found>, StoreError> {
        let mut at = later;
        loop {
            let record = self.record(at)?;
            match Version::decode(&record)?.superseded {
                None => return Ok(None),
                Some(revision) if revision.main <= self.revision => {
                    return Ok(Some(Found { revision, current: None }));
                }
                Some(revision) if revision < at => at = revision,
                Some(_) => {
                    return Err(StoreError::damaged("history: a version supersedes a later one"));
                }
            }
        }
    }

    /// What this revision shows of a key of which these are known.
    fn shown(
        &self,
        milestone: Option<Revision>,
        current: Option<Current>,
    ) -> Result<Option<Found>, StoreError> {
        match (milestone, current) {
            (_, Some(current)) if current.revision.main <= self.revision => Ok(Some(current.into())),
            (Some(later), _) => self.before(later),
            (None, Some(current)) => self.before(current.revision),
            (None, None) => Ok(None),
        }
    }
}

/// Walks `index`: for each key that has milestones there, the first one after a revision.
struct IndexKeys {
    entries: Iter,
    revision: i64,
    /// The entry that ended the group before.
    ahead: Option<Slice>,
}

struct IndexKey {
    key: Vec<u8>,
    milestone: Option<Revision>,
}

impl IndexKeys {
    fn entry(&mut self) -> Result<Option<Slice>, StoreError> {
        if let Some(entry) = self.ahead.take() {
            return Ok(Some(entry));
        }
        Ok(self.entries.next().map(|guard| guard.key()).transpose()?)
    }

    fn next(&mut self) -> Result<Option<IndexKey>, StoreError> {
        let Some(first) = self.entry()? else { return Ok(None) };
        let mut group = IndexKey { key: Vec::new(), milestone: None };
        keys::key_of_index(&mut group.key, &first)?;
        let mut stored = first.clone();
        loop {
            let revision = keys::revision_of(&stored)?;
            if revision.main > self.revision && group.milestone.is_none() {
                group.milestone = Some(revision);
            }
            match self.entry()? {
                Some(next) if keys::key_part_of_index(&next) == keys::key_part_of_index(&first) => {
                    stored = next;
                }
                other => {
                    self.ahead = other;
                    return Ok(Some(group));
                }
            }
        }
    }
}

impl View for Past<'_> {
    fn find(&self, key: &[u8]) -> Result<Option<Found>, StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let current = self.committed.current(key)?;
        match current {
            Some(current) if current.revision.main <= self.revision => Ok(Some(current.into())),
            current => self.shown(self.milestone(key)?, current),
        }
    }

    fn walk(&self, range: KeyRange<'_>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let bounds = index_bounds(self.committed.slot, range);
        let entries = self.committed.snapshot.range(&self.committed.tables.index, bounds);
        let mut index = IndexKeys { entries, revision: self.revision, ahead: None };
        let mut currents = self.committed.walk_current(range);
        let mut old = index.next()?;
        let mut new = currents.next().transpose()?;
        loop {
            let order = match (&old, &new) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some((new, _))) => old.key[..].cmp(keys::after_slot(new)),
            };
            let newest = if order.is_ge() { new.take() } else { None };
            let indexed = if order.is_le() { old.take() } else { None };
            let shown = self.shown(
                indexed.as_ref().and_then(|index| index.milestone),
                newest.as_ref().map(|(_, current)| *current),
            )?;
            let key = match (&newest, &indexed) {
                (Some((stored, _)), _) => keys::after_slot(stored),
                (None, Some(index)) => &index.key,
                (None, None) => return Ok(()),
            };
            if let Some(found) = shown
                && !visit(key, found)?
            {
                return Ok(());
            }
            if newest.is_some() {
                new = currents.next().transpose()?;
            }
            if indexed.is_some() {
                old = index.next()?;
            }
        }
    }

    fn record(&self, revision: Revision) -> Result<Slice, StoreError> {
        Now(self.committed).record(revision)
    }
}
