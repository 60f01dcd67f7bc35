//! What can go wrong, sorted by who can act.

use tonic::Status;

/// Why a client cannot be made: fix the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The list of remotes is empty.
    #[error("no remotes: name at least one store as HOST:PORT")]
    NoRemotes,
    /// A remote is no address.
    #[error("remote {remote:?} is neither HOST:PORT nor an http or https URI")]
    Remote {
        /// As it was given.
        remote: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// A remote has no port.
    #[error("remote {remote:?} names no port: write HOST:PORT")]
    Port {
        /// As it was given.
        remote: String,
    },
    /// The number of channels is out of bounds.
    #[error("{channels} channels per store: the number must be from 1 to {max}")]
    Channels {
        /// As it was given.
        channels: usize,
        /// The upper bound.
        max: usize,
    },
    /// A name that no keyspace can have.
    #[error("{name:?} is no keyspace name: use 1 to 63 lower-case letters, digits and inner hyphens")]
    Keyspace {
        /// As it was given.
        name: String,
    },
}

/// What is certain about a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had no effect and may be made again, unchanged.
    NotExecuted,
    /// It may have had its effect, or may still have it. Reads have no effect; a write must be checked before it is
    /// made again.
    Unknown,
    /// It had no effect, and will have none if it is made again unchanged.
    Refused,
    /// It had its effect, once; only its answer is lost.
    Executed,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No connection to a suitable store was found before the deadline.
    #[error("no suitable store among {remotes} remotes before the deadline ({reason}); nothing was sent")]
    NotConnected {
        /// How many remotes there are.
        remotes: usize,
        /// Why the latest attempt failed.
        reason: String,
    },
    /// Stores were reached, but none executed it before the deadline.
    #[error("not executed after {attempts} attempts: {}; it can be tried again", status.message())]
    NotExecuted {
        /// How often it was sent.
        attempts: u32,
        /// The latest answer.
        #[source]
        status: Box<Status>,
    },
    /// It was sent, and what became of it is not known.
    #[error("outcome unknown after {attempts} attempts: {}; a write may have been applied", status.message())]
    OutcomeUnknown {
        /// How often it was sent.
        attempts: u32,
        /// What came instead of an answer.
        #[source]
        status: Box<Status>,
    },
    /// A write was executed, once, by an attempt whose answer was lost; the keyspace does not keep answers of that size.
    #[error("executed, but its answer is lost: {}", .0.message())]
    Executed(#[source] Box<Status>),
    /// The store says no.
    #[error("refused: {}", .0.message())]
    Refused(#[source] Box<Status>),
}

impl CallError {
    /// What is certain about the call.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotConnected { .. } | Self::NotExecuted { .. } => Outcome::NotExecuted,
            Self::OutcomeUnknown { .. } => Outcome::Unknown,
            Self::Refused(_) => Outcome::Refused,
            Self::Executed(_) => Outcome::Executed,
        }
    }

    /// Whether the same call can be made again without a second thought.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        self.outcome() == Outcome::NotExecuted
    }

    /// The latest answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::NotConnected { .. } => None,
            Self::NotExecuted { status, .. }
            | Self::OutcomeUnknown { status, .. }
            | Self::Executed(status)
            | Self::Refused(status) => Some(status),
        }
    }
}
