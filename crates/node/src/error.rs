//! Why a proposal or a read did not succeed.

use std::sync::Arc;

use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_raft_core::{CommandStatus, ServerChangeError};
use pontoon_transport::ProposalOutcome;

use crate::lineage::LineageError;

/// Why requests are not taken any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The store is being shut down.
    #[error("it is stopping")]
    Stopping,
    /// The replica was closed: the group is deleted, or goes on elsewhere.
    #[error("the group was closed")]
    Closed,
    /// A write or a sync failed. Nothing is acknowledged until a restart.
    #[error("its disk has failed")]
    DiskFailed,
    /// The group's state machine failed. This replica applies nothing until a restart.
    #[error("its state machine has failed")]
    MachineFailed,
    /// The store of the leader, to which the command was passed on, takes none.
    #[error("the leader's store refuses commands")]
    LeaderRefuses,
    /// The operating system gave no random numbers, so nothing can be named.
    #[error("it has no random numbers")]
    NoRandomNumbers,
}

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
    /// The store takes no requests any more, or this group's replica does not. The command may still be executed, if a leader
    /// had taken it.
    #[error("this store has stopped taking requests: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The group's leader is on another store, and the request has to be made there.
    #[error("not the leader")]
    NotLeader {
        /// Where the leader is, if known.
        leader: Option<StoreId>,
    },
}

impl ProposeError {
    /// How the command stands by that; [`CommandStatus::executed`] tells whether it may be executed all the same.
    pub fn status(&self) -> CommandStatus {
        match self {
            Self::NoReplica { .. } | Self::NoLeader | Self::NotLeader { .. } => CommandStatus::NotLeader,
            Self::Overloaded { .. } | Self::NoSpace { .. } => CommandStatus::Overloaded,
            Self::Dropped => CommandStatus::LostLeadership,
            Self::TimedOut => CommandStatus::TimedOut,
            Self::Stopped { reason: StopReason::DiskFailed | StopReason::MachineFailed } => {
                CommandStatus::IoError
            }
            Self::Stopped { .. } => CommandStatus::Shutdown,
        }
    }

    /// What a caller hears whose command the leader's store refused.
    pub(crate) fn refused(outcome: ProposalOutcome) -> Self {
        match outcome {
            ProposalOutcome::NoSpace { what } => Self::NoSpace { what: what.into() },
            ProposalOutcome::Overloaded => {
                Self::Overloaded { what: "the leader's budget of uncommitted bytes" }
            }
            ProposalOutcome::Failed { .. } => Self::Stopped { reason: StopReason::LeaderRefuses },
            // These refuse nothing for good.
            ProposalOutcome::NotLeader { .. } | ProposalOutcome::NotSent => Self::NoLeader,
            ProposalOutcome::Accepted { .. } | ProposalOutcome::InProgress => Self::TimedOut,
        }
    }
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
    /// The store takes no requests any more, or this group's replica does not.
    #[error("this store has stopped taking requests: {reason}")]
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

/// Why a group's members are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeMembersError {
    /// This store hosts no replica of the group, so it does not lead it.
    #[error("group {group} has no replica on this store")]
    NoReplica {
        /// The group.
        group: GroupId,
    },
    /// The group's replica here refuses.
    #[error(transparent)]
    Refused(#[from] ServerChangeError),
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

#[cfg(test)]
mod tests {
    use pontoon_raft_core::types::LogIndex;
    use pontoon_raft_core::{Attempt, Heard, Term};

    use super::*;

    /// What the leader's store says of a command, to the end: its status, what that means for the attempt, and what the caller
    /// hears if it is the end. The caller must not be told more than the status proves.
    #[test]
    fn every_answer_of_the_leaders_store_ends_as_it_says() {
        let leader = None;
        let at = || ProposalOutcome::Accepted { index: LogIndex(1), term: Term(3) };
        let outcomes = [
            (at(), CommandStatus::InProgress, Heard::Wait),
            (ProposalOutcome::InProgress, CommandStatus::InProgress, Heard::Wait),
            (ProposalOutcome::NotLeader { leader }, CommandStatus::NotLeader, Heard::HandOn),
            (ProposalOutcome::NotSent, CommandStatus::NotLeader, Heard::HandOn),
            (ProposalOutcome::Overloaded, CommandStatus::Overloaded, Heard::End(CommandStatus::Overloaded)),
            (
                ProposalOutcome::NoSpace { what: "full".into() },
                CommandStatus::Overloaded,
                Heard::End(CommandStatus::Overloaded),
            ),
            (
                ProposalOutcome::Failed { reason: "gone".into() },
                CommandStatus::Shutdown,
                Heard::End(CommandStatus::Shutdown),
            ),
        ];
        for (outcome, status, heard) in outcomes {
            assert_eq!(outcome.status(), status, "{outcome:?}");
            let mut attempt = Attempt::default();
            attempt.handed_on(Term(3));
            assert_eq!(attempt.heard(Term(3), status), heard, "{outcome:?}");
            let told = ProposeError::refused(outcome).status();
            if let Heard::End(status) = heard {
                assert_eq!(told, status);
            }
        }
    }

    #[test]
    fn only_what_is_certain_is_called_not_executed() {
        let errors = [
            (ProposeError::NoReplica { group: GroupId(1) }, Some(false)),
            (ProposeError::Overloaded { what: "a queue" }, Some(false)),
            (ProposeError::NoSpace { what: "full".into() }, Some(false)),
            (ProposeError::Dropped, Some(false)),
            (ProposeError::NoLeader, Some(false)),
            (ProposeError::NotLeader { leader: None }, Some(false)),
            (ProposeError::TimedOut, None),
            (ProposeError::Stopped { reason: StopReason::Stopping }, None),
            (ProposeError::Stopped { reason: StopReason::DiskFailed }, None),
        ];
        for (error, executed) in errors {
            assert_eq!(error.status().executed(), executed, "{error}");
        }
        let status = |reason| ProposeError::Stopped { reason }.status();
        assert_eq!(status(StopReason::DiskFailed), CommandStatus::IoError);
        assert_eq!(status(StopReason::MachineFailed), CommandStatus::IoError);
        assert_eq!(status(StopReason::Stopping), CommandStatus::Shutdown);
    }
}
