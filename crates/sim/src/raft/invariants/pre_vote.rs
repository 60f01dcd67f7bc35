//! Pre-vote (thesis 9.6): asking whether an election could be won changes nobody's term, neither the asker's nor that of
//! whoever is asked.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use pontoon_raft_core::{Body, Group, LogView, Message, ReplicaId, Role, Term};

use super::{Violation, violated};

#[derive(Clone, Debug, Default)]
pub(super) struct PreVote {
    seen: BTreeMap<ReplicaId, Term>,
}

/// It repeats what the replicas' own states say.
impl Hash for PreVote {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl PreVote {
    pub(super) fn stepped<L: LogView>(&mut self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        let before = self.seen.insert(id, group.term());
        if group.role() == Role::PreCandidate && before.is_some_and(|term| term != group.term()) {
            return violated(
                "pre-vote",
                format!("{id} asks for pre-votes and goes to term {}", group.term()),
            );
        }
        Ok(())
    }

    pub(super) fn restarted(&mut self, id: ReplicaId) {
        self.seen.remove(&id);
    }
}

/// `message` took its receiver from one term to another.
pub(super) fn received(message: &Message, before: Term, after: Term) -> Result<(), Violation> {
    let allowed = match message.body {
        Body::PreVote(_) => before,
        // Whoever has asked becomes a candidate when enough have said yes.
        Body::PreVoteReply { granted: true } => before.next(),
        _ => return Ok(()),
    };
    if after > allowed {
        return violated(
            "pre-vote",
            format!("\"{message}\" took its receiver from term {before} to {after}"),
        );
    }
    Ok(())
}
