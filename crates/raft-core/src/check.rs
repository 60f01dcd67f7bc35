//! What of a message can be refused without looking at the state. Everything in it may be a lie; what passes here can be
//! counted on from, compared and appended without overflow.

use crate::error::StepError;
use crate::message::{AppendEntries, AppendReply, Body, Entries, Message};
use crate::raft::{NUMBER_MAX, Raft};
use crate::types::{LogIndex, Payload, Term};

impl Raft {
    /// What can be refused without looking at the state.
    pub(crate) fn check(&self, message: &Message) -> Result<(), StepError> {
        if message.to != self.id() {
            return Err(StepError::Misaddressed { to: message.to });
        }
        if message.from == self.id() {
            return Err(StepError::FromSelf);
        }
        if message.term == Term::ZERO {
            return Err(StepError::NoTerm);
        }
        let (index, term) = match &message.body {
            Body::PreVote(v) | Body::RequestVote(v) => (v.last_log_index, v.last_log_term),
            Body::AppendEntries(append) => {
                check_entries(message.term, append)?;
                (append.prev_log_index.max(append.leader_commit), append.prev_log_term)
            }
            Body::AppendReply(AppendReply::Accepted { match_index }) => (*match_index, Term::ZERO),
            Body::AppendReply(AppendReply::Rejected { prev_log_index, hint_index, hint_term }) => {
                ((*prev_log_index).max(*hint_index), *hint_term)
            }
            Body::Heartbeat(heartbeat) => {
                (heartbeat.leader_commit.max(LogIndex(heartbeat.round)), Term::ZERO)
            }
            Body::InstallSnapshot(snapshot) => {
                if snapshot.term > message.term {
                    return Err(StepError::EntryTerm { index: snapshot.index, term: snapshot.term });
                }
                (snapshot.index, snapshot.term)
            }
            Body::ReadIndexReply { index, .. } => (index.unwrap_or_default(), Term::ZERO),
            Body::HeartbeatReply { round } => (LogIndex(*round), Term::ZERO),
            Body::PreVoteReply { .. }
            | Body::RequestVoteReply { .. }
            | Body::TimeoutNow
            | Body::DoubtCheck { .. }
            | Body::DoubtSettled { .. }
            | Body::ReadIndex { .. } => (LogIndex::ZERO, Term::ZERO),
        };
        if index.0 >= NUMBER_MAX || term.0 >= NUMBER_MAX || message.term.0 >= NUMBER_MAX {
            return Err(StepError::OutOfRange);
        }
        Ok(())
    }
}

/// Entries must be contiguous, and their terms neither fall nor pass their leader's.
fn check_entries(term: Term, append: &AppendEntries) -> Result<(), StepError> {
    let prev = append.prev_log_index;
    if prev.0 >= NUMBER_MAX || append.prev_log_term > term {
        return Err(StepError::OutOfRange);
    }
    match &append.entries {
        Entries::Interval { last, .. } if *last == prev => Ok(()),
        Entries::Interval { last, .. } => Err(StepError::Unread { last: *last }),
        Entries::Inline(entries) => {
            let (mut expected, mut newest) = (prev.next(), append.prev_log_term);
            for entry in entries {
                if entry.index != expected {
                    return Err(StepError::Gap { expected, found: entry.index });
                }
                if entry.term < newest || entry.term > term {
                    return Err(StepError::EntryTerm { index: entry.index, term: entry.term });
                }
                if let Payload::ElectionTimer { millis } = entry.payload
                    && millis == 0
                {
                    return Err(StepError::OutOfRange);
                }
                newest = entry.term;
                expected = expected.next();
            }
            if expected.0 >= NUMBER_MAX {
                return Err(StepError::OutOfRange);
            }
            Ok(())
        }
    }
}
