//! What can be refused, sorted by who can act.

use crate::command_status::CommandStatus;
use crate::confchange::InvalidChange;
use crate::log_view::LogReadError;
use crate::server_change::ServerPhase;
use crate::types::{EntryId, LogIndex, ReplicaId, Term};

/// A replica cannot start from what its storage remembers: the storage is damaged, or not this replica's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The indexes contradict each other.
    #[error(
        "the stored indexes contradict each other: snapshot {snapshot}, applied {applied}, last {last}; expected \
         snapshot <= applied <= last; the log lost its end, rejoin this replica as a new learner"
    )]
    Indexes {
        /// What the log begins after.
        snapshot: LogIndex,
        /// What the state machine contains.
        applied: LogIndex,
        /// The last entry.
        last: LogIndex,
    },
    /// An entry that must be there cannot be read.
    #[error("the log cannot be read")]
    Read(#[from] LogReadError),
    /// The log is not one run of entries with terms that never fall.
    #[error("entry {found} of term {term} stands where entry {expected} belongs; the log is damaged")]
    Entries {
        /// The index that belongs there.
        expected: LogIndex,
        /// The index that is there.
        found: LogIndex,
        /// Its term.
        term: Term,
    },
    /// The log is ahead of the stored term.
    #[error("the log ends in term {log}, after the stored term {stored}; the hard state is lost")]
    TermBehindLog {
        /// The stored term.
        stored: Term,
        /// The last entry's term.
        log: Term,
    },
}

/// A proposal was refused; nothing of it was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader.
    #[error("this replica is not the leader")]
    NotLeader {
        /// Who is, if known.
        leader: Option<ReplicaId>,
    },
    /// Wait until some of what is there commits.
    #[error("{bytes} bytes wait for commit already; wait")]
    Overloaded {
        /// What waits.
        bytes: u64,
    },
    /// Leadership is on its way to another replica; retry there.
    #[error("leadership is being transferred to {to}; retry there")]
    Transferring {
        /// The next leader.
        to: ReplicaId,
    },
    /// The command depends on another one being the last.
    #[error("the last command is {current}, not the prerequisite")]
    BadPrerequisite {
        /// The last command in the log.
        current: EntryId,
    },
    /// The storage failed; only a restart helps.
    #[error("this replica's storage failed; restart it")]
    Failed,
    /// The log has used up its indexes.
    #[error("the log is full")]
    LogFull,
}

impl ProposeError {
    /// How the command stands by that.
    #[must_use]
    pub fn status(&self) -> CommandStatus {
        match self {
            // The next leader takes it.
            Self::NotLeader { .. } | Self::Transferring { .. } => CommandStatus::NotLeader,
            Self::Overloaded { .. } => CommandStatus::Overloaded,
            Self::BadPrerequisite { .. } => CommandStatus::BadPrerequisite,
            Self::Failed => CommandStatus::IoError,
            Self::LogFull => CommandStatus::Shutdown,
        }
    }
}

/// A change of the configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// See [`ProposeError`].
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// One change at a time: wait.
    #[error("the configuration at {index} is not committed yet; wait")]
    Pending {
        /// Where it stands.
        index: LogIndex,
    },
    /// The leader is too new to know what is committed (the bug of 2015 in single-server changes): wait.
    #[error("this leader has not committed an entry of its own term yet; wait")]
    NotReady,
    /// The change makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidChange),
    /// The voters that can be reached would be no quorum of the new configuration.
    #[error("{reachable} of the {voters} new voters can be reached: the group would lose its quorum")]
    WouldLoseQuorum {
        /// New voters that were heard within the election timer.
        reachable: usize,
        /// All new voters.
        voters: usize,
    },
}

/// Adding or removing a server was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerChangeError {
    /// See [`ProposeError`].
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Nothing to do: it is a voter.
    #[error("the server is present already")]
    AlreadyPresent,
    /// Nothing to do: it is no member. Whoever wanted it removed may count that as success.
    #[error("the server is gone already")]
    AlreadyGone,
    /// The same was asked for before; wait for its end.
    #[error("in progress already: {phase}")]
    InProgress {
        /// How far it is.
        phase: ServerPhase,
    },
    /// The opposite is in the log and cannot be called off; wait for its end.
    #[error("the opposite change is being committed; wait")]
    Committing,
    /// A group without a voter could never do anything again.
    #[error("the last server cannot be removed")]
    LastVoter,
    /// The voters that can be reached would be no quorum of what is left.
    #[error("{reachable} of the {voters} voters left can be reached: the group would lose its quorum")]
    WouldLoseQuorum {
        /// Voters that were heard within the election timer.
        reachable: usize,
        /// All voters that would be left.
        voters: usize,
    },
}

/// A change of the election timer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerError {
    /// See [`ProposeError`].
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Out of bounds.
    #[error("an election timer of {millis} ms is outside {min} to {max} ms")]
    OutOfRange {
        /// What was asked for.
        millis: u64,
        /// The shortest.
        min: u64,
        /// The longest.
        max: u64,
    },
    /// A timer may at most double at once, or followers with the old one would depose the leader.
    #[error("the election timer may at most double per change: {current} to {millis} ms")]
    TooFast {
        /// The timer in force.
        current: u64,
        /// What was asked for.
        millis: u64,
    },
    /// One change at a time: wait.
    #[error("another change of the election timer is not committed yet; wait")]
    Pending,
}

/// A transfer of leadership was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Ask the leader.
    #[error("this replica is not the leader")]
    NotLeader {
        /// Who is, if known.
        leader: Option<ReplicaId>,
    },
    /// Only voters lead.
    #[error("{0} is not a voter of this group")]
    NotVoter(ReplicaId),
    /// There is nobody else.
    #[error("no other voter can be reached")]
    Nobody,
    /// Another transfer is under way.
    #[error("leadership is being transferred to {to} already")]
    InProgress {
        /// The next leader.
        to: ReplicaId,
    },
    /// The storage failed; only a restart helps.
    #[error("this replica's storage failed; restart it")]
    Failed,
}

/// A message was refused. The state is unchanged, except that its sender's term may have been taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It is for somebody else.
    #[error("the message is for {to}")]
    Misaddressed {
        /// Whom it is for.
        to: ReplicaId,
    },
    /// It claims to come from this very replica.
    #[error("the message claims to come from its receiver")]
    FromSelf,
    /// The sender is no member of the group, and only members say this.
    #[error("{from} is not a member of this group")]
    UnknownSender {
        /// The sender.
        from: ReplicaId,
    },
    /// A number is so large that counting on from it would overflow.
    #[error("the message holds a term or an index out of range")]
    OutOfRange,
    /// A term no replica can have.
    #[error("the message has term 0")]
    NoTerm,
    /// The entries are not contiguous.
    #[error("the entries have a gap: expected index {expected}, found {found}")]
    Gap {
        /// The index that belongs there.
        expected: LogIndex,
        /// The index that is there.
        found: LogIndex,
    },
    /// The entries' terms fall, or are above their leader's.
    #[error("entry {index} has the impossible term {term}")]
    EntryTerm {
        /// The entry.
        index: LogIndex,
        /// Its term.
        term: Term,
    },
    /// An interval came in where entries belong.
    #[error("the append names entries up to {last} and does not contain them")]
    Unread {
        /// The last entry named.
        last: LogIndex,
    },
    /// Two leaders in one term.
    #[error("{from} claims to lead term {term}, which {leader} leads")]
    TwoLeaders {
        /// Who claims.
        from: ReplicaId,
        /// The term.
        term: Term,
        /// Who leads it.
        leader: ReplicaId,
    },
    /// The leader's entry contradicts a committed one.
    #[error("entry {index} contradicts a committed entry")]
    ContradictsCommitted {
        /// The entry.
        index: LogIndex,
    },
    /// It acknowledges what was never sent.
    #[error("the message acknowledges what was never sent")]
    NeverSent,
    /// The storage failed; only a restart helps.
    #[error("this replica's storage failed; restart it")]
    Failed,
}
