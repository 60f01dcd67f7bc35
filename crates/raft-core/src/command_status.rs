//! How a command stands, and how it ended: one vocabulary for everything in here that answers for a command. The words are
//! those of Open vSwitch's ovsdb, and one of ours.
//!
//! | who answers | by |
//! |---|---|
//! | the leader's core, when a command is proposed | [`ProposeError::status`](crate::ProposeError::status) |
//! | a core whose log held the command | [`Dropped`](crate::Dropped) |
//! | the leader's host, to the host that relayed it | [`Verdict::status`](crate::relay::Verdict::status) |
//! | the host whose caller waits | [`Attempt::heard`](crate::Attempt::heard), [`Attempt::given_up`](crate::Attempt::given_up) |
//!
//! A command ends with [`Success`](CommandStatus::Success) when its id is applied, whoever led, fell or came back meanwhile; no
//! change of roles ends it by itself. What an answer of another host means for one that waits is for [`Attempt::heard`](crate::Attempt::heard) to say.
//! Where ovsdb says "lost leadership" of a command that *probably* was not replicated when its time is up, this says "time-out",
//! for nothing is known; "lost leadership" is said with proof only.

use std::fmt;

/// How a command stands.
///
/// ```
/// use pontoon_raft_core::{CommandStatus, EntryId, ProposeError};
///
/// let status = ProposeError::BadPrerequisite { current: EntryId(7) }.status();
/// assert_eq!(status.to_string(), "bad prerequisite");
/// assert_eq!(status.executed(), Some(false)); // It may be asked again, with another prerequisite.
/// assert_eq!(CommandStatus::TimedOut.executed(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandStatus {
    /// It waits, or is in a log and not committed yet.
    InProgress,
    /// It is committed and was executed.
    Success,
    /// Nobody who leads has taken it. It is in no log; ask the leader, or wait for one.
    NotLeader,
    /// The command that it depends on is not the last one. It is in no log.
    BadPrerequisite,
    /// The leader that took it fell, and another entry is committed in its place: it is in no log any more.
    LostLeadership,
    /// The host stops, or takes no more commands for good. It may still be executed, if a leader had taken it before.
    Shutdown,
    /// The host's storage failed. It may still be executed.
    IoError,
    /// Nothing was heard of it in time. It may still be executed.
    TimedOut,
    /// The leader has no room for it at present: too much waits. It is in no log. (ovsdb bounds nothing here, and has no such
    /// word.)
    Overloaded,
}

impl CommandStatus {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::InProgress,
        Self::Success,
        Self::NotLeader,
        Self::BadPrerequisite,
        Self::LostLeadership,
        Self::Shutdown,
        Self::IoError,
        Self::TimedOut,
        Self::Overloaded,
    ];

    /// Whether the command has ended: nothing else will be said of it.
    #[must_use]
    pub fn is_final(self) -> bool {
        self != Self::InProgress
    }

    /// Whether the command was executed, as far as the status tells; `None`: that is open. After `Some(false)` the same command
    /// may be asked again without being executed twice.
    #[must_use]
    pub fn executed(self) -> Option<bool> {
        match self {
            Self::Success => Some(true),
            Self::NotLeader | Self::BadPrerequisite | Self::LostLeadership | Self::Overloaded => Some(false),
            Self::InProgress | Self::Shutdown | Self::IoError | Self::TimedOut => None,
        }
    }
}

impl fmt::Display for CommandStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProgress => "in progress",
            Self::Success => "success",
            Self::NotLeader => "not leader",
            Self::BadPrerequisite => "bad prerequisite",
            Self::LostLeadership => "lost leadership",
            Self::Shutdown => "shutdown",
            Self::IoError => "I/O error",
            Self::TimedOut => "time-out",
            Self::Overloaded => "overloaded",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ProposeError;
    use crate::relay::Verdict;
    use crate::types::{EntryId, ReplicaId};

    #[test]
    fn each_status_is_listed_and_named_once() {
        let mut names: Vec<_> = CommandStatus::ALL.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9);
        assert!(CommandStatus::ALL.iter().all(|status| status.is_final() || status.executed().is_none()));
    }

    /// A refusal appends nothing; so its status must not leave open whether the command was executed, but where the whole host is
    /// out of service.
    #[test]
    fn refusals_are_certain() {
        let refusals = [
            (ProposeError::NotLeader { leader: None }, CommandStatus::NotLeader),
            (ProposeError::Transferring { to: ReplicaId::default() }, CommandStatus::NotLeader),
            (ProposeError::Overloaded { bytes: 1 }, CommandStatus::Overloaded),
            (ProposeError::BadPrerequisite { current: EntryId::NONE }, CommandStatus::BadPrerequisite),
            (ProposeError::Failed, CommandStatus::IoError),
            (ProposeError::LogFull, CommandStatus::Shutdown),
        ];
        for (refusal, status) in refusals {
            assert_eq!(refusal.status(), status);
            let out_of_service = matches!(status, CommandStatus::IoError | CommandStatus::Shutdown);
            assert_eq!(status.executed() == Some(false), !out_of_service, "{status}");
        }
        assert_eq!(Verdict::NotTaken.status(), Some(CommandStatus::NotLeader));
        assert_eq!(Verdict::InProgress.status(), Some(CommandStatus::InProgress));
        assert_eq!((Verdict::Take.status(), Verdict::Silent.status()), (None, None));
    }
}
