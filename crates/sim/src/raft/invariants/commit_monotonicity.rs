//! Commit monotonicity: a replica's commit index never falls while it lives, and its order of tickets never breaks.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use pontoon_raft_core::{Group, LogIndex, LogView, Persist, ReplicaId, Term, Ticket};

use super::{Violation, violated};

#[derive(Clone, Debug, Default)]
pub(super) struct CommitMonotonicity {
    seen: BTreeMap<ReplicaId, (Term, LogIndex)>,
    tickets: BTreeMap<ReplicaId, Ticket>,
}

/// Nothing here outlives a replica's life, so it says nothing that the replicas' own states do not say.
impl Hash for CommitMonotonicity {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl CommitMonotonicity {
    pub(super) fn stepped<L: LogView>(&mut self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        let now = (group.term(), group.commit_index());
        let before = self.seen.insert(id, now).unwrap_or_default();
        if now.0 < before.0 || now.1 < before.1 {
            return violated("commit monotonicity", format!("{id} fell from {before:?} to {now:?}"));
        }
        if now.1 > group.last_index() {
            return violated(
                "commit monotonicity",
                format!("{id} commits {}, ends at {}", now.1, group.last_index()),
            );
        }
        Ok(())
    }

    pub(super) fn persists(&mut self, id: ReplicaId, persist: &Persist) -> Result<(), Violation> {
        let before = self.tickets.insert(id, persist.ticket).unwrap_or_default();
        if persist.ticket.0 != before.0 + 1 {
            return violated("order of tickets", format!("{id} issued {before}, then {}", persist.ticket));
        }
        Ok(())
    }

    pub(super) fn restarted(&mut self, id: ReplicaId) {
        self.seen.remove(&id);
        self.tickets.remove(&id);
    }
}
