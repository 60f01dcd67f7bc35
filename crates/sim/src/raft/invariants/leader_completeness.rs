//! Leader completeness (thesis figure 3.2): whoever leads has every entry that was committed in an earlier term. It does
//! not matter which is seen first, the election or the commit.

use std::collections::BTreeMap;
use std::ops::Bound;

use pontoon_raft_core::{Group, LogIndex, LogView, ReplicaId, Term};

use super::{Commit, Violation, violated};

/// The log of a leader when it was elected.
#[derive(Clone, Debug, Hash)]
struct Elected {
    leader: ReplicaId,
    /// Nobody else voted, so nobody else knows of it.
    alone: bool,
    last: LogIndex,
    /// The begin and the term of each run of entries of one term. What lies before is compacted.
    runs: Vec<(LogIndex, Term)>,
}

impl Elected {
    fn new<L: LogView>(group: &Group<L>) -> Self {
        let (last, mut runs) = (group.last_index(), Vec::<(LogIndex, Term)>::new());
        let mut index = group.first_index();
        while index <= last {
            if let Some(term) = group.entry_term(index)
                && runs.last().is_none_or(|(_, newest)| *newest != term)
            {
                runs.push((index, term));
            }
            index = index.next();
        }
        let alone = group.configuration().voters.len() == 1 && !group.configuration().is_joint();
        Self { leader: group.id(), alone, last, runs }
    }

    fn check(&self, term: Term, index: LogIndex, commit: Commit) -> Result<(), Violation> {
        let after = self.runs.partition_point(|(begin, _)| *begin <= index);
        if after == 0 {
            // Compacted, and so committed; that it was this entry, the state machines show.
            return Ok(());
        }
        let found = (index <= self.last).then(|| self.runs[after - 1].1);
        if found != Some(commit.term) {
            let detail = format!(
                "{}, leader of {term}, has {found:?} at {index}, where term {} committed an entry of term {}",
                self.leader, commit.committed_in, commit.term
            );
            return violated("leader completeness", detail);
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct LeaderCompleteness(BTreeMap<Term, Elected>);

impl LeaderCompleteness {
    pub(super) fn stepped<L: LogView>(
        &mut self,
        group: &Group<L>,
        committed: &BTreeMap<LogIndex, Commit>,
    ) -> Result<(), Violation> {
        let term = group.term();
        if !group.is_leader() || self.0.contains_key(&term) {
            return Ok(());
        }
        let elected = Elected::new(group);
        for (index, commit) in committed.range(group.first_index()..) {
            // What a newer leader has committed meanwhile, an older one that is elected late may lack: it was not committed
            // when its voters gave their votes. (Seeds 511216 and 1009619, whose story is in `tests/raft_seeds.rs`: elected in term 3 by a
            // vote that was long under way, after the leader of term 4 had committed entries of term 1. Model
            // `late-leader`.)
            if commit.committed_in < term {
                elected.check(term, *index, *commit)?;
            }
        }
        self.0.insert(term, elected);
        Ok(())
    }

    /// An entry is committed, maybe by a leader that does not know that others were elected since.
    pub(super) fn commits(&self, index: LogIndex, commit: Commit) -> Result<(), Violation> {
        let later = self.0.range((Bound::Excluded(commit.committed_in), Bound::Unbounded));
        for (term, elected) in later {
            elected.check(*term, index, commit)?;
        }
        Ok(())
    }

    /// A lone voter that lost power before its disk knew of the election never led: it may lead the same term again, and
    /// earlier ones, with another log (seed 3015085).
    pub(super) fn restarted(&mut self, id: ReplicaId) {
        self.0.retain(|_, elected| !(elected.alone && elected.leader == id));
    }
}
