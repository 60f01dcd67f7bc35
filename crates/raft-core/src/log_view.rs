//! What the core reads of its log: everything it has ever asked the host to persist.

use std::ops::Range;

use crate::types::{Entry, LogIndex};

/// Read access to one group's log, as the host keeps it.
///
/// Entries become readable when the host takes a `Persist` over, before they are durable: the leader sends them to
/// followers in parallel with its own disk write (thesis 10.2.1). The core calls nothing here for entries that it has
/// not handed out.
pub trait LogView {
    /// Reads entries of `range` in order, until their [`Entry::size_bytes`] would pass `bytes_max`; always at least
    /// one if the range is not empty.
    ///
    /// # Errors
    /// An entry of the range is not there (compacted, or damaged).
    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError>;

    /// The end (half-open) of the longest run that starts at `range.start`, stays within `range` and holds at most
    /// `bytes_max`; at least one entry if the range is not empty. Reads no entry: sizes are in the index.
    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex;
}

/// An entry could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogReadError {
    /// The log begins after it.
    #[error("entry {index} is compacted: the log begins at {first}; the reader needs a snapshot")]
    Compacted {
        /// What was asked for.
        index: LogIndex,
        /// What is there.
        first: LogIndex,
    },
    /// The log ends before it.
    #[error("entry {index} is not in the log, which ends at {last}")]
    Missing {
        /// What was asked for.
        index: LogIndex,
        /// What is there.
        last: LogIndex,
    },
    /// The storage failed.
    #[error("cannot read entry {index}: {reason}")]
    Storage {
        /// What was asked for.
        index: LogIndex,
        /// The storage's own words.
        reason: String,
    },
}
