//! What a follower has acknowledged in a term it keeps in that term: the leader counts on it, and a leader's log only grows
//! (thesis 3.5). Crashes are no excuse, unless the disk has lost what was synced.

use std::collections::BTreeMap;

use pontoon_raft_core::{AppendReply, Body, Group, LogIndex, LogView, Message, ReplicaId, Term};

use super::{Violation, violated};

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct KeptAcknowledgements(BTreeMap<ReplicaId, (Term, LogIndex)>);

impl KeptAcknowledgements {
    pub(super) fn sends(&mut self, message: &Message) {
        if let Body::AppendReply(AppendReply::Accepted { match_index }) = message.body {
            let (term, index) = self.0.entry(message.from).or_default();
            if message.term > *term {
                (*term, *index) = (message.term, match_index);
            } else if message.term == *term {
                *index = (*index).max(match_index);
            }
        }
    }

    pub(super) fn lost(&mut self, id: ReplicaId) {
        self.0.remove(&id);
    }

    pub(super) fn stepped<L: LogView>(&self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        match self.0.get(&id) {
            Some((term, index)) if *term == group.term() && group.last_index() < *index => violated(
                "kept acknowledgements",
                format!("{id} acknowledged {index} in term {term}, its log ends at {}", group.last_index()),
            ),
            _ => Ok(()),
        }
    }
}
