//! Why a proposal or a read did not succeed.

use std::sync::Arc;

use pontoon_raft_core::types::{GroupId, StoreId};

use crate::lineage::LineageError;

/// Why a proposal has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This store hosts no replica of the group.
    #[error("group {group} has no replica on this store")]
    NoReplica {
        /// The group.
        group: GroupId,
    },
    /// A queue or budget is full; nothing was proposed. Wait and try again.
    #[error("too many requests: {what} is full; nothing was written, try again later")]
    Overloaded {
        /// Which bound was met.
        what: &'static str,
    },
    /// The leader's disk has no room, and no other store takes the lead; nothing was proposed. Make room, or wait until
    /// somebody does.
    #[error("{what}")]
    NoSpace {
        /// Where, by which rule, and what to do.
        what: Arc<str>,
    },
    /// The command is certainly not executed: it never reached a leader, or another entry took its place.
    #[error("not executed: the leader changed; try again")]
    Dropped,
    /// No leader was found within the time limit; nothing was proposed.
    #[error("no leader within the time limit; nothing was written")]
    NoLeader,
    /// The outcome is unknown: the command may still be executed.
    #[error("timed out; the outcome is unknown")]
    TimedOut,
    /// The store is stopping or its disk has failed.
    #[error("this store has stopped taking requests: {reason}")]
    Stopped {
        /// Why.
        reason: &'static str,
    },
    /// The group's leader is on another store, and the request has to be made there.
    #[error("not the leader")]
    NotLeader {
        /// Where the leader is, if known.
        leader: Option<StoreId>,
    },
}

/// Why a linearizable read cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This store hosts no replica of the group.
    #[error("group {group} has no replica on this store")]
    NoReplica {
        /// The group.
        group: GroupId,
    },
    /// Too many reads wait.
    #[error("too many requests: {what} is full; try again later")]
    Overloaded {
        /// Which bound was met.
        what: &'static str,
    },
    /// Leadership could not be confirmed within the time limit.
    #[error("no leader confirmed the read within the time limit")]
    TimedOut,
    /// The store is stopping or its disk has failed.
    #[error("this store has stopped taking requests: {reason}")]
    Stopped {
        /// Why.
        reason: &'static str,
    },
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[from] std::io::Error),
    /// The start cannot be noted, or this directory may not start any more.
    #[error(transparent)]
    Lineage(#[from] LineageError),
}

/// Why this store's replica of a group cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenGroupError {
    /// The store is not in the group's first configuration.
    #[error("store {store} is not a member of group {group}")]
    NotAMember {
        /// The group.
        group: GroupId,
        /// This store.
        store: StoreId,
    },
    /// This replica, or a later one, was destroyed here: a number is never used again.
    #[error("group {group}: its replica {replica} was destroyed on this store and does not come back")]
    Destroyed {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: pontoon_raft_core::types::ReplicaId,
    },
    /// There is state but no log for it.
    #[error(
        "group {group} has state up to entry {applied} but no log: the log directory was lost or replaced; \
         wipe this data directory and rejoin as a learner"
    )]
    LogLost {
        /// The group.
        group: GroupId,
        /// What the state machine has.
        applied: pontoon_raft_core::types::LogIndex,
    },
    /// Log and state do not belong together.
    #[error(
        "group {group}: its state is at entry {applied}, its log holds {first} to {last}; they do not belong together; \
         wipe this data directory and rejoin as a learner"
    )]
    Disagree {
        /// The group.
        group: GroupId,
        /// What the state machine has.
        applied: pontoon_raft_core::types::LogIndex,
        /// Where the log begins.
        first: pontoon_raft_core::types::LogIndex,
        /// Where it ends.
        last: pontoon_raft_core::types::LogIndex,
    },
    /// The log cannot be read.
    #[error("group {group}: cannot read its log")]
    Log {
        /// The group.
        group: GroupId,
        /// The cause.
        #[source]
        source: pontoon_raft_core::log_view::LogReadError,
    },
    /// The state machine refuses.
    #[error("group {group}: its state machine cannot be opened")]
    Machine {
        /// The group.
        group: GroupId,
        /// The cause.
        #[source]
        source: crate::state_machine::MachineError,
    },
    /// The core refuses what the log says.
    #[error("group {group}: {reason}")]
    Core {
        /// The group.
        group: GroupId,
        /// The core's own words.
        reason: String,
    },
    /// The first record could not be written.
    #[error("group {group}: cannot write its first record; the log store has failed")]
    NotWritten {
        /// The group.
        group: GroupId,
    },
}
