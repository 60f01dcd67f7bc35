//! Election safety (thesis figure 3.2): at most one leader in a term.

use std::collections::BTreeMap;

use pontoon_raft_core::{Group, LogView, ReplicaId, Term};

use super::{Violation, violated};

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct ElectionSafety(BTreeMap<Term, ReplicaId>);

impl ElectionSafety {
    pub(super) fn stepped<L: LogView>(&mut self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        if !group.is_leader() {
            return Ok(());
        }
        let first = *self.0.entry(group.term()).or_insert(id);
        if first != id {
            return violated("election safety", format!("{first} and {id} both lead term {}", group.term()));
        }
        Ok(())
    }
}
