//! The seam between consensus and what it replicates.

use bytes::Bytes;
use pontoon_raft_core::types::{EntryId, LogIndex, Term};
pub use pontoon_transport::snapshot_io::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink};

/// One committed entry, in log order.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its position. The machine's applied index becomes this.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The command's id.
    pub id: EntryId,
    /// The command; `None` for entries that mean nothing to the machine (no-op, configuration), which only move the
    /// applied index.
    pub command: Option<Bytes>,
    /// Whether somebody on this store waits for the reply. If not, an empty one may be returned.
    pub wants_reply: bool,
}

/// A replicated state machine. One apply worker owns it; reads go past it, through handles of its own.
///
/// The log is durable before `apply` is called, so `apply` need not sync. After a crash the machine may come back at any
/// earlier applied index, as a whole: state and applied index change together. What was applied since is applied again
/// from the log, in the same order. `apply` must be deterministic: the same commands give the same state on every store.
pub trait StateMachine: Send + 'static {
    /// The last entry that the state contains; 0 for a new machine.
    fn applied(&self) -> LogIndex;

    /// Applies entries in order, atomically as one batch, and returns one reply per entry (empty where nobody waits).
    ///
    /// # Errors
    /// The machine is broken (its disk failed): the replica stops. A command that makes no sense is not an error here,
    /// but a reply that says so, the same on every store.
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError>;

    /// Makes the state durable and returns its applied index; the log may then be compacted up to it.
    ///
    /// # Errors
    /// The disk refuses; the log is kept.
    fn sync(&mut self) -> Result<LogIndex, MachineError>;

    /// A consistent image of the state as of `applied()`; cheap to make, and read while later entries are applied.
    ///
    /// # Errors
    /// The machine is broken.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError>;

    /// Opens a staging place for an image as of `index`; an earlier staged image is thrown away.
    ///
    /// # Errors
    /// The disk refuses.
    fn stage(&mut self, index: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError>;

    /// Replaces the state by the finished staged image as of `index`, atomically and durably. Called after the log says
    /// that it begins there; also at start-up, if a crash came between the two.
    ///
    /// # Errors
    /// No finished image of that index is staged, or the disk refuses.
    fn activate(&mut self, index: LogIndex) -> Result<(), MachineError>;
}

/// A state machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("state machine: {what}")]
pub struct MachineError {
    /// What happened, and to which file or record.
    pub what: String,
    /// The cause, if there is one.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl MachineError {
    /// An error without a cause of its own.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }
}
