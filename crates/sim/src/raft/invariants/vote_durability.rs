//! Vote durability (thesis 3.8): a vote is on the disk before anybody hears of it, and one voter gives one vote per term,
//! crashes or not.

use std::collections::BTreeMap;

use pontoon_raft_core::{Body, Message, ReplicaId, Term};

use super::{Violation, violated};
use crate::raft::disk::Content;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct VoteDurability {
    votes: BTreeMap<(Term, ReplicaId), ReplicaId>,
}

impl VoteDurability {
    /// The voter has forgotten its newest votes.
    pub(super) fn lost(&mut self, id: ReplicaId, disk: &Content) {
        let stored = disk.hard_state;
        self.votes.retain(|(term, voter), candidate| {
            *voter != id
                || *term < stored.term
                || (*term == stored.term && stored.voted_for == Some(*candidate))
        });
    }

    pub(super) fn sends(&mut self, message: &Message, disk: &Content) -> Result<(), Violation> {
        let Message { from, to, term, body, .. } = message;
        let candidate = match body {
            Body::RequestVoteReply { granted: true } => *to,
            // Who asks has voted for itself.
            Body::RequestVote(_) => *from,
            _ => return Ok(()),
        };
        let stored = disk.hard_state;
        if stored.term < *term || (stored.term == *term && stored.voted_for != Some(candidate)) {
            let detail = format!("{from} votes {candidate} in {term}, stored: {stored:?}");
            return violated("vote durability", detail);
        }
        let first = *self.votes.entry((*term, *from)).or_insert(candidate);
        if first != candidate {
            return violated("one vote per term", format!("{from} votes {first} and {candidate} in {term}"));
        }
        Ok(())
    }
}
