//! What can go wrong, in words an operator can act on.

use std::io;
use std::sync::Arc;

/// What to do about a directory that cannot be trusted any more.
pub(crate) const REJOIN: &str =
    "do not start this store with it: wipe this data directory and rejoin as a learner";

/// The store could not be opened. Nothing was changed on disk unless the message says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has the directory.
    #[error(
        "{dir} is in use by another process (its LOCK file is held): a data directory belongs to one process; stop the other one or choose another directory"
    )]
    Locked {
        /// The directory.
        dir: String,
    },
    /// There is no store in a directory that was to be read.
    #[error(
        "{dir} holds no log store: there is no MARKER in it, and nothing else of a store; give the data directory of a store that has been started"
    )]
    NoStore {
        /// The directory.
        dir: String,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {source}; check that the directory exists, is writable and has room")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A newer version of this software wrote the directory.
    #[error(
        "{file} has format version {found}, and this program knows up to {known}: it was written by a newer version; start that one, or wipe this data directory and rejoin as a learner"
    )]
    NewerFormat {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// What this program knows.
        known: u32,
    },
    /// A file of another store lies in the directory.
    #[error(
        "{file} belongs to another store (journal {found:016x}, expected {expected:016x}): files of two stores are mixed; {REJOIN}"
    )]
    Foreign {
        /// The file.
        file: String,
        /// The identity it carries.
        found: u64,
        /// The identity of this directory.
        expected: u64,
    },
    /// A file that must be there is not.
    #[error("{file} is missing: {rule}; {REJOIN}")]
    MissingFile {
        /// The file or segment.
        file: String,
        /// Why it must be there.
        rule: &'static str,
    },
    /// Bytes that were durable are not what they were.
    #[error(
        "{file}, offset {offset}: {what}; this is damage and no torn write, because {evidence}; {REJOIN}"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong with it.
        what: String,
        /// Why it can be no torn write.
        evidence: String,
    },
    /// A number is missing in the sequence of batches.
    #[error(
        "{file}, offset {offset}: expected batch {expected}, found batch {found}: batches are missing; {REJOIN}"
    )]
    SequenceGap {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// The batch that should begin here.
        expected: u64,
        /// The batch that does.
        found: u64,
    },
    /// The journal ends before what is known to have been durable.
    #[error(
        "the journal ends at batch {found}, but batch {reached} was durable when MARKER was written: acknowledged writes are lost; {REJOIN}"
    )]
    ShorterThanMarker {
        /// The last batch found.
        found: u64,
        /// The last batch that must be there.
        reached: u64,
    },
    /// sled came back older than it must be.
    #[error(
        "the cold tier is at checkpoint {found}, but MARKER says that checkpoint {expected} is in it: it lost acknowledged writes; {REJOIN}"
    )]
    ColdBehindMarker {
        /// What sled has.
        found: u64,
        /// What it must have.
        expected: u64,
    },
    /// sled does not hold what was written to it.
    #[error(
        "the cold tier {path} has {found_keys} keys with {found_bytes} bytes, and its own sum says {expected_keys} keys with {expected_bytes} bytes: something in it was lost or changed; {REJOIN}"
    )]
    ColdIncomplete {
        /// Where.
        path: String,
        /// Keys that are there.
        found_keys: u64,
        /// Bytes of these and of their values.
        found_bytes: u64,
        /// Keys that must be there.
        expected_keys: u64,
        /// Bytes that must be there.
        expected_bytes: u64,
    },
    /// The cold tier cannot be opened or read.
    #[error(
        "the cold tier {path} cannot be used: {reason}; if its files are intact, moving snap.* aside lets it rebuild itself, else {REJOIN}"
    )]
    Cold {
        /// Where.
        path: String,
        /// In sled's words, panics included.
        reason: String,
    },
    /// A group's log or state does not add up.
    #[error("group {group}: {what}; {REJOIN}")]
    Group {
        /// The group.
        group: u64,
        /// The broken rule.
        what: String,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// The store takes no writes any more in this process. Final: a disk that failed a write or a sync has told nobody what
/// it kept, so only a restart, which reads the disk again, can recover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store takes no more writes: {reason}; restart the process when the cause is removed")]
pub struct StoreFailed {
    /// What failed first.
    pub reason: Arc<str>,
}

impl StoreFailed {
    pub(crate) fn new(reason: impl Into<Arc<str>>) -> Self {
        Self { reason: reason.into() }
    }
}

/// The header could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitializeError {
    /// The directory is somebody else's.
    #[error(
        "this directory belongs to cluster {found_cluster:016x}, store {found_store:016x}, not to cluster {cluster:016x}, store {store:016x}: use the right directory, or an empty one"
    )]
    Foreign {
        /// Cluster that was asked for.
        cluster: u64,
        /// Store that was asked for.
        store: u64,
        /// Cluster in the header.
        found_cluster: u64,
        /// Store in the header.
        found_store: u64,
    },
    /// A field is too long.
    #[error("header field {field} has {len} bytes, at most {max} are allowed: shorten it")]
    TooLong {
        /// Its name.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The disk said no.
    #[error("cannot write the store's header: {0}")]
    Io(#[from] io::Error),
    /// The store takes no writes.
    #[error(transparent)]
    Failed(#[from] StoreFailed),
}

/// A note could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Notes are small.
    #[error(
        "a note's key may have {key_max} bytes and its value {value_max}, this one has {key} and {value}: keep larger things in files"
    )]
    TooLong {
        /// Length of the key.
        key: usize,
        /// Length of the value.
        value: usize,
        /// Limit of keys.
        key_max: usize,
        /// Limit of values.
        value_max: usize,
    },
    /// The store takes no writes.
    #[error(transparent)]
    Failed(#[from] StoreFailed),
}
