//! The two ends of a snapshot stream, as the transport sees them.

use std::io;

use bytes::Bytes;

/// The sending end: a consistent image of a state machine, read in pieces. It must not stall later applies.
pub trait SnapshotReader: Send {
    /// The next piece, at most [`SNAPSHOT_CHUNK_BYTES_MAX`]; `None` at the end. May block on disk: called from a thread
    /// that may wait.
    ///
    /// # Errors
    /// The image cannot be read; the stream is given up and the leader will start another.
    fn read(&mut self) -> io::Result<Option<Bytes>>;
}

/// The receiving end: a staging place beside the live state.
pub trait SnapshotSink: Send {
    /// Adds a piece, in order; its checksum has been verified. May block on disk.
    ///
    /// # Errors
    /// The disk refuses; the stream is given up.
    fn write(&mut self, chunk: Bytes) -> io::Result<()>;

    /// All pieces are there: makes the staged image durable, but not yet live. Dropping a sink without calling this
    /// throws the staged image away.
    ///
    /// # Errors
    /// The image is incomplete or cannot be made durable.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// The largest piece of a snapshot, in bytes: large enough that a message's overhead vanishes, small enough that a
/// few of them in flight cost no memory worth counting.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 256 * 1024;
