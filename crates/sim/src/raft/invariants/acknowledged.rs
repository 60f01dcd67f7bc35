//! No acknowledged command is lost, and none is executed twice, even though clients retry what they were told was
//! overwritten.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft_core::{EntryId, ReplicaId};

use super::{Violation, violated};
use crate::raft::machine::Machine;

/// What clients were told.
#[derive(Clone, Debug, Default, Hash)]
pub struct Acknowledged {
    acknowledged: BTreeSet<EntryId>,
    /// The place at which each command was first executed, counted in commands.
    places: BTreeMap<EntryId, usize>,
}

impl Acknowledged {
    /// A client was told that its command is done.
    pub fn acknowledge(&mut self, id: EntryId) {
        self.acknowledged.insert(id);
    }

    /// How many were acknowledged.
    pub fn len(&self) -> usize {
        self.acknowledged.len()
    }

    /// Whether nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.acknowledged.is_empty()
    }

    /// A replica executes a command as its `place`-th: it has the same place everywhere, and only that one.
    pub fn executes(&mut self, replica: ReplicaId, id: EntryId, place: usize) -> Result<(), Violation> {
        let first = *self.places.entry(id).or_insert(place);
        if first != place {
            let detail = format!("{replica} executes command {id} as number {place}; it was number {first}");
            return violated("executed once", detail);
        }
        Ok(())
    }

    /// A replica that has everything must have executed all of it, once.
    pub fn check(&self, machine: &Machine) -> Result<(), Violation> {
        let mut executed = BTreeSet::new();
        for id in &machine.executed {
            if !executed.insert(*id) {
                return violated("executed once", format!("command {id} was executed twice"));
            }
        }
        match self.acknowledged.iter().find(|id| !executed.contains(id)) {
            Some(lost) => violated("no acknowledged command lost", format!("command {lost} is gone")),
            None => Ok(()),
        }
    }
}
