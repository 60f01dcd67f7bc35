//! State machine safety (thesis figure 3.2): no two replicas execute different entries at one index.

use std::collections::BTreeMap;

use pontoon_raft_core::{Entry, LogIndex, ReplicaId};

use super::{Violation, violated};

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct StateMachineSafety(BTreeMap<LogIndex, Entry>);

impl StateMachineSafety {
    pub(super) fn applies(&mut self, id: ReplicaId, entry: &Entry) -> Result<(), Violation> {
        let first = self.0.entry(entry.index).or_insert_with(|| entry.clone());
        if first != entry {
            return violated(
                "state machine safety",
                format!("{id} executes {entry:?}, another one {first:?}"),
            );
        }
        Ok(())
    }
}
