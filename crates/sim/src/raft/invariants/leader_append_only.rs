//! Leader append-only (thesis figure 3.2): a leader never overwrites or deletes entries in its log.

use std::collections::BTreeMap;

use pontoon_raft_core::{Group, LogIndex, LogView, Persist, ReplicaId, Term};

use super::{Violation, violated};

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct LeaderAppendOnly {
    /// How long the log of each leader was.
    lengths: BTreeMap<ReplicaId, (Term, LogIndex)>,
    /// Who led when its host last asked what to do.
    led: BTreeMap<ReplicaId, Term>,
}

impl LeaderAppendOnly {
    pub(super) fn stepped<L: LogView>(&mut self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        if !group.is_leader() {
            self.lengths.remove(&id);
            return Ok(());
        }
        let now = (group.term(), group.last_index());
        if let Some((term, last)) = self.lengths.insert(id, now)
            && term == now.0
            && now.1 < last
        {
            return violated(
                "leader append-only",
                format!("{id} led term {term} and went from {last} to {}", now.1),
            );
        }
        Ok(())
    }

    pub(super) fn ready<L: LogView>(
        &mut self,
        id: ReplicaId,
        group: &Group<L>,
        persist: Option<&Persist>,
    ) -> Result<(), Violation> {
        let before = self.led.remove(&id);
        if !group.is_leader() {
            return Ok(());
        }
        self.led.insert(id, group.term());
        let replaces = persist.is_some_and(|p| p.truncate_from.is_some() || p.snapshot.is_some());
        if before == Some(group.term()) && replaces {
            return violated(
                "leader append-only",
                format!("{id} leads {} and replaces entries", group.term()),
            );
        }
        Ok(())
    }

    pub(super) fn restarted(&mut self, id: ReplicaId) {
        self.lengths.remove(&id);
        self.led.remove(&id);
    }
}
