//! One command's way into the log, for a host that answers whoever asked for it: when it may be handed to a leader, and when to
//! the next one under the same id, so that it is never executed twice.
//!
//! Three facts make it work, whoever leads, falls, comes back or is this very replica:
//! - A host hands a command to a leader *in a term*, and a leader takes it only while that is its term.
//! - Once an entry of a *later* term is applied here, the log up to there is settled: an attempt of an earlier term that was not
//!   applied by then never will be (leader completeness, thesis 3.6.3).
//! - A snapshot settles nothing: what it contains cannot be told from outside.
//!
//! An applied command completes by its id, however it came into the log; the host looks for it before it calls
//! [`Attempt::settled`]. ovsdb gives a command up with "lost leadership" or "timeout" where this tries again.
//! [`Attempt::heard`] says what the status means that somebody else answered.

use crate::command_status::CommandStatus;
use crate::types::Term;

/// What an answer about an attempt means to the host whose caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it is about another attempt.
    Late,
    /// The leader has it: go on waiting. This host's own log will tell how it ends, and with what reply.
    Wait,
    /// The attempt came to nothing: the command may be handed on again, under the same id.
    HandOn,
    /// The caller hears this, and the command is not handed on again.
    End(CommandStatus),
}

/// Where a command is, as far as its host knows.
///
/// ```
/// use pontoon_raft_core::{Attempt, Term};
///
/// let mut attempt = Attempt::default();
/// attempt.handed_on(Term(3)); // To the leader of term 3, which may be this replica.
/// assert!(!attempt.settled(Term(3))); // Its entry may still come.
/// assert!(attempt.settled(Term(4))); // It did not come before an entry of term 4, so it never will.
/// attempt.handed_on(Term(4)); // Again, under the same id.
/// assert!(!attempt.refused(Term(3))); // A late answer to the first attempt says nothing about the second.
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempt(Option<Term>);

impl Attempt {
    /// Whether it is in a leader's hands, as far as is known. If not, it certainly is not in any log, and may be handed on.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        self.0.is_some()
    }

    /// Whether it was handed on in this very term.
    #[must_use]
    pub fn is_of(self, term: Term) -> bool {
        self.0 == Some(term)
    }

    /// It goes to the leader of `term`.
    ///
    /// # Panics
    /// It is under way already: it could be executed twice.
    pub fn handed_on(&mut self, term: Term) {
        assert!(self.0.is_none(), "a command is handed on while an attempt in term {:?} is open", self.0);
        self.0 = Some(term);
    }

    /// Whoever was asked in `term` says that nothing was appended, or it certainly was not asked. Returns whether that is the
    /// attempt under way: then the command may be handed on again.
    pub fn refused(&mut self, term: Term) -> bool {
        self.0.take_if(|attempt| *attempt == term).is_some()
    }

    /// The host that was asked in `term` answers with `status`.
    pub fn heard(&mut self, term: Term, status: CommandStatus) -> Heard {
        if !self.is_of(term) {
            return Heard::Late;
        }
        match status {
            // The word of one host is not what counts, but the log: it may be a word about an entry that is lost later.
            CommandStatus::InProgress | CommandStatus::Success => Heard::Wait,
            CommandStatus::NotLeader | CommandStatus::LostLeadership => {
                self.0 = None;
                Heard::HandOn
            }
            // Asking again at once would not help, and what was appended before it cannot be told.
            CommandStatus::BadPrerequisite
            | CommandStatus::Overloaded
            | CommandStatus::Shutdown
            | CommandStatus::IoError
            | CommandStatus::TimedOut => Heard::End(status),
        }
    }

    /// The caller waits no longer: how the command stands then.
    #[must_use]
    pub fn given_up(self) -> CommandStatus {
        if self.is_under_way() { CommandStatus::TimedOut } else { CommandStatus::NotLeader }
    }

    /// An entry of `term` was applied here, and the command was not before it. Returns whether an attempt came to nothing
    /// by that: then the command may be handed on again.
    pub fn settled(&mut self, term: Term) -> bool {
        self.0.take_if(|attempt| *attempt < term).is_some()
    }

    /// A snapshot that ends with an entry of `term` took the place of entries that were not seen one by one. Returns whether
    /// the command may be among them: then its outcome stays unknown.
    #[must_use]
    pub fn skipped(self, term: Term) -> bool {
        self.0.is_some_and(|attempt| attempt <= term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every order of what can happen to an attempt of term 3.
    #[test]
    fn only_proof_opens_the_way_again() {
        let of = |term| {
            let mut attempt = Attempt::default();
            attempt.handed_on(Term(term));
            attempt
        };
        for term in 1..6 {
            let mut refused = of(3);
            assert_eq!((refused.refused(Term(term)), refused.is_under_way()), (term == 3, term != 3));
            let mut settled = of(3);
            assert_eq!((settled.settled(Term(term)), settled.is_under_way()), (term > 3, term <= 3));
            // A snapshot that ends before the attempt's term cannot contain it.
            assert_eq!(of(3).skipped(Term(term)), term >= 3);
        }
        let mut fresh = Attempt::default();
        assert!(!fresh.refused(Term(3)) && !fresh.settled(Term(3)) && !fresh.skipped(Term(3)));
    }

    /// Every status, as an answer to the attempt under way, and to another one.
    #[test]
    fn every_answer_means_something() {
        for status in CommandStatus::ALL {
            let mut attempt = Attempt::default();
            attempt.handed_on(Term(3));
            for other in [2, 4] {
                assert_eq!(attempt.heard(Term(other), status), Heard::Late, "{status} of term {other}");
            }
            let heard = attempt.heard(Term(3), status);
            // Only what certainly is in no log is handed on again.
            assert_eq!(heard == Heard::HandOn, !attempt.is_under_way(), "{status}");
            assert!(heard != Heard::HandOn || status.executed() == Some(false), "{status}");
            // What is open or done is told by the log; an end is told as it was heard.
            let waits = matches!(status, CommandStatus::InProgress | CommandStatus::Success);
            assert_eq!(heard == Heard::Wait, waits, "{status}");
            assert!(!matches!(heard, Heard::End(told) if told != status), "{status}");
            assert_eq!(
                attempt.heard(Term(3), status) == Heard::Late,
                heard == Heard::HandOn,
                "{status} twice"
            );
        }
        assert_eq!(Attempt::default().given_up(), CommandStatus::NotLeader);
        let mut attempt = Attempt::default();
        attempt.handed_on(Term(3));
        assert_eq!(attempt.given_up(), CommandStatus::TimedOut);
    }

    #[test]
    #[should_panic(expected = "while an attempt in term")]
    fn two_attempts_at_once_are_a_bug() {
        let mut attempt = Attempt::default();
        attempt.handed_on(Term(1));
        attempt.handed_on(Term(2));
    }
}
