//! Linearizable reads (thesis 6.4): a read's index is not below what anybody knew to be committed when it was asked for;
//! and each question has exactly one answer.

use std::collections::BTreeMap;

use pontoon_raft_core::{LogIndex, ReadOutcome, ReplicaId};

use super::{Violation, violated};

/// The reads that wait.
#[derive(Clone, Debug, Default, Hash)]
pub struct LinearizableReads {
    /// Who asked, and the highest committed index then.
    waiting: BTreeMap<u64, (ReplicaId, LogIndex)>,
    asked: u64,
    /// How many were answered with an index.
    pub served: u64,
}

impl LinearizableReads {
    /// A replica is asked. Returns the read's context.
    pub fn ask(&mut self, id: ReplicaId, committed: LogIndex) -> u64 {
        self.asked += 1;
        self.waiting.insert(self.asked, (id, committed));
        self.asked
    }

    /// A read ends.
    pub fn ends(&mut self, id: ReplicaId, outcome: ReadOutcome) -> Result<(), Violation> {
        let Some((asked, floor)) = self.waiting.remove(&outcome.context) else {
            return violated("one answer per read", format!("{id} answers {} again", outcome.context));
        };
        if asked != id {
            return violated("one answer per read", format!("{id} answers what {asked} was asked"));
        }
        if let Some(index) = outcome.index {
            self.served += 1;
            if index < floor {
                let detail = format!("{id} reads at {index}, though {floor} was committed when it was asked");
                return violated("linearizable reads", detail);
            }
        }
        Ok(())
    }

    /// A replica died, and its readers with it.
    pub fn died(&mut self, id: ReplicaId) {
        self.waiting.retain(|_, (asked, _)| *asked != id);
    }

    /// Reads without an answer.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}
