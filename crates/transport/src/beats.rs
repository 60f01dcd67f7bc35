//! Heartbeats of many groups, and the answers to them, as one message.
//!
//! A store with a thousand busy groups says a thousand heartbeats at once, each a handful of small numbers. So they wait
//! in a send queue as one message and travel as columns of numbers ([`pb::Beats`]), in their place among the other
//! messages: what a group says stays in order. To the host nothing of this shows: it sends and receives heartbeats.

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{Body, Heartbeat, Message};
use pontoon_raft_core::types::{GroupId, LogIndex, ReplicaId, Term};

use crate::error::WireError;
use crate::send_queue::Item;
use crate::wire::{Ends, number};

/// The most beats in one message: with more, one of them would fill a frame of the control lane.
const BEATS_MAX: usize = 1024;
/// About what a beat takes on the wire.
pub(crate) const BEAT_BYTES: usize = 14;

// The kinds of `peer.proto`.
const HEARTBEAT: u32 = 0;
const QUIESCE: u32 = 1;
const ANSWER: u32 = 2;

/// One heartbeat, or the answer to one; the stores are those of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) group: GroupId,
    from_number: u64,
    to_number: u64,
    term: Term,
    round: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Heartbeat { leader_commit: LogIndex, quiesce: bool },
    Answer,
}

impl Beat {
    /// The beat that `message` is, if it is one. A replica in doubt says more than fits into a beat.
    pub(crate) fn of(group: GroupId, message: &Message) -> Option<Self> {
        let (round, what) = match &message.body {
            _ if message.doubt.is_some() => return None,
            Body::Heartbeat(Heartbeat { leader_commit, round, quiesce }) => {
                (*round, What::Heartbeat { leader_commit: *leader_commit, quiesce: *quiesce })
            }
            Body::HeartbeatReply { round } => (*round, What::Answer),
            _ => return None,
        };
        Some(Self {
            group,
            from_number: message.from.number,
            to_number: message.to.number,
            term: message.term,
            round,
            what,
        })
    }

    /// The message that it stands for.
    pub(crate) fn message(self, ends: Ends) -> (GroupId, Message) {
        let body = match self.what {
            What::Heartbeat { leader_commit, quiesce } => {
                Body::Heartbeat(Heartbeat { leader_commit, round: self.round, quiesce })
            }
            What::Answer => Body::HeartbeatReply { round: self.round },
        };
        let message = Message {
            from: ReplicaId { store: ends.from, number: self.from_number },
            to: ReplicaId { store: ends.to, number: self.to_number },
            term: self.term,
            doubt: None,
            body,
        };
        (self.group, message)
    }
}

/// Adds a beat to what is to be sent: heartbeats that follow each other become one message.
pub(crate) fn gather(items: &mut Vec<Item>, beat: Beat) {
    match items.last_mut() {
        Some(Item::Beats(beats)) if beats.len() < BEATS_MAX => beats.push(beat),
        _ => items.push(Item::Beats(vec![beat])),
    }
}

/// Puts beats into columns, behind the frame's first `after` messages.
pub(crate) fn to_wire(after: usize, beats: &[Beat]) -> pb::Beats {
    let kind = |beat: &Beat| match beat.what {
        What::Heartbeat { quiesce: false, .. } => HEARTBEAT,
        What::Heartbeat { quiesce: true, .. } => QUIESCE,
        What::Answer => ANSWER,
    };
    let commit = |beat: &Beat| match beat.what {
        What::Heartbeat { leader_commit, .. } => Some(leader_commit.0),
        What::Answer => None,
    };
    // Most replicas are the first of their group on their store.
    let numbers = |of: fn(&Beat) -> u64| {
        if beats.iter().all(|beat| of(beat) == 1) { Vec::new() } else { beats.iter().map(of).collect() }
    };
    pb::Beats {
        after: u32::try_from(after).unwrap_or(u32::MAX),
        groups: beats.iter().map(|beat| beat.group.0).collect(),
        terms: beats.iter().map(|beat| beat.term.0).collect(),
        rounds: beats.iter().map(|beat| beat.round).collect(),
        kinds: if beats.iter().all(|beat| kind(beat) == HEARTBEAT) {
            Vec::new()
        } else {
            beats.iter().map(kind).collect()
        },
        commits: beats.iter().filter_map(commit).collect(),
        from_numbers: numbers(|beat| beat.from_number),
        to_numbers: numbers(|beat| beat.to_number),
    }
}

/// Checks columns, whose sizes `scan` has bounded, and adds what they say to `messages`.
pub(crate) fn from_wire(
    beats: &pb::Beats,
    ends: Ends,
    messages: &mut Vec<(GroupId, Message)>,
) -> Result<(), WireError> {
    let n = beats.groups.len();
    let full = |what, length: usize| if length == n { Ok(()) } else { Err(WireError::Columns { what }) };
    let full_or_empty = |what, length: usize| if length == 0 { Ok(()) } else { full(what, length) };
    full("terms", beats.terms.len())?;
    full("rounds", beats.rounds.len())?;
    full_or_empty("kinds", beats.kinds.len())?;
    full_or_empty("sending replicas", beats.from_numbers.len())?;
    full_or_empty("receiving replicas", beats.to_numbers.len())?;
    let mut commits = beats.commits.iter();
    messages.reserve(n);
    for (i, group) in beats.groups.iter().enumerate() {
        let kind = beats.kinds.get(i).copied().unwrap_or(HEARTBEAT);
        let what = match kind {
            HEARTBEAT | QUIESCE => {
                let commit = commits.next().ok_or(WireError::Columns { what: "commit indexes" })?;
                What::Heartbeat {
                    leader_commit: LogIndex(number("a commit index", *commit)?),
                    quiesce: kind == QUIESCE,
                }
            }
            ANSWER => What::Answer,
            _ => return Err(WireError::Missing { what: "a beat's kind" }),
        };
        let beat = Beat {
            group: GroupId(*group),
            from_number: beats.from_numbers.get(i).copied().unwrap_or(1),
            to_number: beats.to_numbers.get(i).copied().unwrap_or(1),
            term: Term(number("a term", beats.terms[i])?),
            round: number("a round", beats.rounds[i])?,
            what,
        };
        messages.push(beat.message(ends));
    }
    if commits.next().is_some() {
        return Err(WireError::Columns { what: "commit indexes" });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
