//! Log matching (thesis figure 3.2), in its inductive form: an entry of one index and one term has one content and one
//! predecessor's term, on whichever replica. Entries that a lone voter loses in a crash, unseen by anybody, do not count:
//! it may lead the same term again, since its vote was lost with them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use pontoon_raft_core::{LogIndex, ReplicaId, Term};

use super::{Violation, violated};
use crate::raft::disk::Written;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct LogMatching(BTreeMap<(LogIndex, Term), (u64, Term)>);

impl LogMatching {
    pub(super) fn written(&mut self, id: ReplicaId, written: &Written) -> Result<(), Violation> {
        let mut prev_term = written.prev_term;
        for entry in &written.entries {
            let mut hasher = DefaultHasher::new();
            entry.hash(&mut hasher);
            let this = (hasher.finish(), prev_term);
            let known = *self.0.entry((entry.index, entry.term)).or_insert(this);
            if known != this {
                let detail =
                    format!("{id} has another entry {} of term {} than others", entry.index, entry.term);
                return violated("log matching", detail);
            }
            prev_term = entry.term;
        }
        Ok(())
    }
}
