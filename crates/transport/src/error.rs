//! What can be refused, and by whom.

use pontoon_raft_core::types::StoreId;

/// A message was not queued, and the caller is told at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sent to store {to}: {why}")]
pub struct QueueFull {
    /// The destination.
    pub to: StoreId,
    /// The reason.
    pub why: NotQueued,
}

/// Why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// `Transport::set_peer` was never called for the store, or the transport is shut down.
    #[error("no address is known for that store")]
    UnknownStore,
    /// The lane is between two attempts to connect.
    #[error("the link is down; try again when it is up")]
    Down,
    /// The queue holds as many messages as it may.
    #[error("the send queue holds {max} messages, its limit; wait for the peer to take some")]
    Messages {
        /// The limit.
        max: usize,
    },
    /// The queue holds as many bytes as it may.
    #[error("the send queue has no room for {bytes} more bytes under its limit of {max}; wait for the peer")]
    Bytes {
        /// The message's charge.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// No frame can hold the message.
    #[error("the message has {bytes} bytes and a frame holds {max}; make it smaller")]
    TooLarge {
        /// The message's size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// A snapshot is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another snapshot is being received; the sender should try later.
    #[error("another snapshot is being received; try later")]
    Busy,
    /// The group has no replica here, or not the one addressed.
    #[error("the addressed replica is not on this store")]
    UnknownReplica,
    /// The replica already has what the snapshot holds.
    #[error("the replica is already at or past this snapshot")]
    Stale,
    /// It cannot be staged.
    #[error("cannot stage the snapshot: {reason}")]
    Failed {
        /// In words.
        reason: String,
    },
}

/// A process is not taken for the store that it says it is ([`Inbound::meet`](crate::Inbound::meet)).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unwelcome {
    /// Whether this can never change: then it is told to stop for good. Else it may try again.
    pub final_: bool,
    /// In words, for both sides' logs.
    pub reason: String,
}

/// Foreign data broke a rule of the protocol. The frame that holds it is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or not of the shape that the `.proto` file says.
    #[error("not a well-formed frame: {reason}")]
    Malformed {
        /// In words.
        reason: String,
    },
    /// A list is longer than any honest peer makes it.
    #[error("a frame holds more than {max} {what}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A field that must be there is not, or holds a kind that this version does not know.
    #[error("{what} is missing or of an unknown kind")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// A number that no honest peer reaches.
    #[error("{what} is {found}, outside of {min} to {max}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// The columns of beats do not fit each other.
    #[error("there are not as many {what} as there must be")]
    Columns {
        /// Which.
        what: &'static str,
    },
    /// Terms must not fall within a log, nor pass the sender's own.
    #[error("entry {index} has term {found}, not between {min} and {max}")]
    EntryTerm {
        /// The entry.
        index: u64,
        /// Its term.
        found: u64,
        /// The term of the entry before.
        min: u64,
        /// The message's term.
        max: u64,
    },
    /// A piece of a large message that fits to nothing before it.
    #[error("a piece of a message {why}")]
    Piece {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A configuration that cannot be.
    #[error("a configuration {why}")]
    Configuration {
        /// What is wrong with it.
        why: &'static str,
    },
}
