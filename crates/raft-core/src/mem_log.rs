//! A log in memory: for tests, examples, and hosts that keep nothing.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::log_view::{LogReadError, LogView};
use crate::ready::Persist;
use crate::types::{Entry, LogIndex, Term};

/// A log in memory. Clones share it, so that the host writes what the core reads.
#[derive(Clone, Debug, Default)]
pub struct MemLog(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What the log begins after, and its term.
    base: (LogIndex, Term),
    entries: Vec<Entry>,
}

impl Inner {
    fn offset(&self, index: LogIndex) -> usize {
        usize::try_from(index.0.saturating_sub(self.base.0.0 + 1))
            .unwrap_or(usize::MAX)
            .min(self.entries.len())
    }

    fn last(&self) -> LogIndex {
        self.base.0 + self.entries.len() as u64
    }

    /// How many entries of `range` fit into `bytes_max`; one at least, if it is there.
    fn fitting(&self, range: &Range<LogIndex>, bytes_max: u64) -> usize {
        let mut bytes = 0;
        let entries = self.entries[self.offset(range.start)..self.offset(range.end)].iter();
        let fits = entries.enumerate().take_while(|(i, entry)| {
            bytes += entry.size_bytes();
            *i == 0 || bytes <= bytes_max
        });
        fits.count()
    }
}

impl MemLog {
    /// A log that begins after `base`, an entry of `term`.
    pub fn new(base: LogIndex, term: Term) -> Self {
        Self(Rc::new(RefCell::new(Inner { base: (base, term), entries: Vec::new() })))
    }

    /// Writes what a `Persist` says about the log.
    pub fn write(&self, persist: &Persist) {
        let mut inner = self.0.borrow_mut();
        if let Some(snapshot) = &persist.snapshot {
            inner.base = (snapshot.index, snapshot.term);
            inner.entries.clear();
        }
        if let Some(from) = persist.truncate_from {
            let offset = inner.offset(from);
            inner.entries.truncate(offset);
        }
        inner.entries.extend_from_slice(&persist.entries);
    }

    /// Drops the entries before `first`.
    pub fn compact(&self, first: LogIndex) {
        let mut inner = self.0.borrow_mut();
        let offset = inner.offset(first);
        if let Some(entry) = offset.checked_sub(1).and_then(|last| inner.entries.get(last)) {
            inner.base = (entry.index, entry.term);
            inner.entries.drain(..offset);
        }
    }

    /// Cuts the log at `from`, as a crash does with what was not synced.
    pub fn truncate(&self, from: LogIndex) {
        let mut inner = self.0.borrow_mut();
        let offset = inner.offset(from);
        inner.entries.truncate(offset);
    }

    /// The last entry; what the log begins after if there is none.
    pub fn last(&self) -> LogIndex {
        self.0.borrow().last()
    }

    /// The entry at `index`.
    pub fn entry(&self, index: LogIndex) -> Option<Entry> {
        let inner = self.0.borrow();
        inner.entries.get(inner.offset(index)).filter(|entry| entry.index == index).cloned()
    }
}

impl LogView for MemLog {
    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError> {
        let inner = self.0.borrow();
        let (first, last) = (inner.base.0.next(), inner.last());
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        if range.start < first {
            return Err(LogReadError::Compacted { index: range.start, first });
        }
        if range.end > last.next() {
            return Err(LogReadError::Missing { index: range.end.prev(), last });
        }
        let start = inner.offset(range.start);
        Ok(inner.entries[start..start + inner.fitting(&range, bytes_max)].to_vec())
    }

    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        let inner = self.0.borrow();
        if range.start < inner.base.0.next() {
            return range.start;
        }
        range.start + inner.fitting(&range, bytes_max) as u64
    }
}
