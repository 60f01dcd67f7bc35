//! What the core remembers of its log: runs of terms, configurations, how far things are. The entries themselves are
//! the host's; only those that were not handed out yet are here.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::types::{Configuration, Entry, LogIndex, Payload, ReplicaId, SnapshotMeta, Term};

/// A buffer larger than this is given back to the allocator, so that one burst is not remembered for ever.
const SPARE_ENTRIES_MAX: usize = 4096;

/// The terms of the entries, as runs: their number grows with elections, not with entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TermRuns {
    /// What the log begins after, and its term.
    base: (LogIndex, Term),
    /// First index and term of each run; both grow.
    runs: Vec<(LogIndex, Term)>,
    /// The last entry; the base's index if there is none.
    last: LogIndex,
}

impl TermRuns {
    pub(crate) fn new(base: LogIndex, term: Term) -> Self {
        Self { base: (base, term), runs: Vec::new(), last: base }
    }

    pub(crate) fn base(&self) -> (LogIndex, Term) {
        self.base
    }

    pub(crate) fn last(&self) -> LogIndex {
        self.last
    }

    pub(crate) fn last_term(&self) -> Term {
        self.runs.last().map_or(self.base.1, |(_, term)| *term)
    }

    /// The term of the entry at `index`; `None` if the log does not reach there, on either side.
    pub(crate) fn term(&self, index: LogIndex) -> Option<Term> {
        if index < self.base.0 || index > self.last {
            return None;
        }
        // The newest run first: almost every question is about it.
        if let Some((first, term)) = self.runs.last()
            && index >= *first
        {
            return Some(*term);
        }
        let after = self.runs.partition_point(|(first, _)| *first <= index);
        Some(if after == 0 { self.base.1 } else { self.runs[after - 1].1 })
    }

    pub(crate) fn push(&mut self, term: Term) -> LogIndex {
        assert!(term >= self.last_term(), "terms never fall along a log: {} then {term}", self.last_term());
        self.last = self.last.next();
        if self.runs.last().is_none_or(|(_, newest)| *newest != term) {
            self.runs.push((self.last, term));
        }
        self.last
    }

    /// Cuts the log: entries at and after `from` are gone.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.base.0,
            "entry {from} is compacted and cannot be cut: the log begins after {}",
            self.base.0
        );
        if from > self.last {
            return;
        }
        self.last = from.prev();
        while self.runs.last().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop();
        }
    }

    /// The log begins after `base` now.
    pub(crate) fn compact(&mut self, base: LogIndex) {
        let Some(term) = self.term(base) else { return };
        let after = self.runs.partition_point(|(first, _)| *first <= base);
        // The run that contains base goes on behind it, unless it ends there.
        let keep_from = after.saturating_sub(1);
        self.runs.drain(..keep_from);
        if after > 0 {
            let ends = self.runs.get(1).map_or(self.last, |(next, _)| next.prev());
            if ends <= base {
                self.runs.remove(0);
            } else {
                self.runs[0].0 = base.next();
            }
        }
        self.base = (base, term);
    }

    /// The last index at or below `index` whose term is at most `term`, with its term: where two logs may still agree.
    /// An index below the log is returned as it came, with an unknown term.
    pub(crate) fn last_at_most(&self, index: LogIndex, term: Term) -> (LogIndex, Option<Term>) {
        let index = index.min(self.last);
        let Some(own) = self.term(index) else { return (index, None) };
        if own <= term {
            return (index, Some(own));
        }
        // The first run of a larger term begins right after the place that is looked for.
        let run = self.runs.partition_point(|(_, t)| *t <= term);
        let at = self.runs.get(run).map_or(index, |(first, _)| first.prev()).min(index);
        (at, self.term(at))
    }
}

/// A log as the core sees it.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) terms: TermRuns,
    /// Every configuration since the base, with the index of its entry; the first is the one in force at the base.
    /// Never empty.
    configurations: Vec<(LogIndex, Configuration)>,
    /// Every election timer since the base; the first is the one in force at the base (0: none was ever set).
    timers: Vec<(LogIndex, u64)>,
    /// Entries that no `Persist` has carried yet: `(handed, last]`.
    unstable: Vec<Entry>,
    /// An old buffer, to be filled when `unstable` is handed out.
    spare: Vec<Entry>,
    /// The sizes of `unstable`, summed.
    unstable_bytes: u64,
    /// The last entry that a `Persist` has carried.
    handed: LogIndex,
    /// The last entry that is durable. Falls only by truncation.
    stable: LogIndex,
    /// The last entry that is known to be committed. Never falls.
    commit: LogIndex,
    /// The last entry that the state machine contains.
    applied: LogIndex,
    /// The last entry that was handed out to be applied.
    delivered: LogIndex,
    /// The next `Persist` cuts the host's log here.
    truncate_from: Option<LogIndex>,
    /// The next `Persist` replaces the host's log.
    snapshot: Option<SnapshotMeta>,
}

/// What the next `Persist` says about the log.
#[derive(Debug)]
pub(crate) struct LogWork {
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) truncate_from: Option<LogIndex>,
    pub(crate) entries: Vec<Entry>,
}

impl Log {
    pub(crate) fn new(snapshot: &SnapshotMeta) -> Self {
        Self {
            terms: TermRuns::new(snapshot.index, snapshot.term),
            configurations: vec![(snapshot.index, snapshot.configuration.clone())],
            timers: vec![(snapshot.index, snapshot.election_timer_ms)],
            unstable: Vec::new(),
            spare: Vec::new(),
            unstable_bytes: 0,
            handed: snapshot.index,
            stable: snapshot.index,
            commit: snapshot.index,
            applied: snapshot.index,
            delivered: snapshot.index,
            truncate_from: None,
            snapshot: None,
        }
    }

    /// Learns an entry that is durable already; only while starting.
    pub(crate) fn recover(&mut self, entry: &Entry) {
        let index = self.terms.push(entry.term);
        self.note(index, &entry.payload);
        self.handed = index;
        self.stable = index;
    }

    /// Where things stood before the restart.
    pub(crate) fn recovered(&mut self, commit: LogIndex, applied: LogIndex) {
        self.commit = commit;
        self.applied = applied;
        self.delivered = applied;
    }

    pub(crate) fn last(&self) -> LogIndex {
        self.terms.last()
    }

    pub(crate) fn handed(&self) -> LogIndex {
        self.handed
    }

    pub(crate) fn stable(&self) -> LogIndex {
        self.stable
    }

    pub(crate) fn commit(&self) -> LogIndex {
        self.commit
    }

    pub(crate) fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(crate) fn first(&self) -> LogIndex {
        self.terms.base().0.next()
    }

    pub(crate) fn unstable(&self) -> &[Entry] {
        &self.unstable
    }

    pub(crate) fn unstable_bytes(&self) -> u64 {
        self.unstable_bytes
    }

    /// The configuration in force: that of the last configuration entry, committed or not (thesis 4.1).
    pub(crate) fn configuration(&self) -> &Configuration {
        &self.newest_configuration().1
    }

    /// Where the configuration in force was written.
    pub(crate) fn configuration_index(&self) -> LogIndex {
        self.newest_configuration().0
    }

    /// Whether `id` votes in the last committed configuration, or in one that came between and is not committed.
    pub(crate) fn votes_until_commit(&self, id: ReplicaId) -> bool {
        let committed =
            self.configurations.partition_point(|(index, _)| *index <= self.commit).saturating_sub(1);
        self.configurations[committed..].iter().any(|(_, configuration)| configuration.is_voter(id))
    }

    /// Everybody who votes in the last committed configuration, or in one that came after it.
    pub(crate) fn voters_until_commit(&self) -> BTreeSet<ReplicaId> {
        let committed =
            self.configurations.partition_point(|(index, _)| *index <= self.commit).saturating_sub(1);
        let configurations = self.configurations[committed..].iter().map(|(_, configuration)| configuration);
        configurations.flat_map(|c| c.voters.iter().chain(&c.outgoing_voters)).copied().collect()
    }

    fn newest_configuration(&self) -> &(LogIndex, Configuration) {
        self.configurations.last().expect("the base's configuration is always there")
    }

    /// The election timer in force: the last committed one.
    pub(crate) fn election_timer_ms(&self) -> u64 {
        self.timers.iter().rev().find(|(index, _)| *index <= self.commit).map_or(0, |(_, millis)| *millis)
    }

    /// Where the election timer in force was written; the base if it is older.
    pub(crate) fn election_timer_index(&self) -> LogIndex {
        self.timers
            .iter()
            .rev()
            .find(|(index, _)| *index <= self.commit)
            .map_or(LogIndex::ZERO, |(index, _)| *index)
    }

    /// The election timer that waits for commit.
    pub(crate) fn pending_timer(&self) -> Option<u64> {
        self.timers.last().filter(|(index, _)| *index > self.commit).map(|(_, millis)| *millis)
    }

    /// What the log begins after.
    pub(crate) fn base_snapshot(&self) -> SnapshotMeta {
        let (index, term) = self.terms.base();
        SnapshotMeta {
            index,
            term,
            configuration: self.configurations[0].1.clone(),
            election_timer_ms: self.timers[0].1,
        }
    }

    /// What a snapshot at `index` must carry.
    pub(crate) fn snapshot_meta(&self, index: LogIndex) -> Option<SnapshotMeta> {
        if index > self.commit {
            return None;
        }
        let term = self.terms.term(index)?;
        let configuration = self.configurations.iter().rev().find(|(at, _)| *at <= index)?.1.clone();
        let election_timer_ms = self.timers.iter().rev().find(|(at, _)| *at <= index)?.1;
        Some(SnapshotMeta { index, term, configuration, election_timer_ms })
    }

    /// Remembers what an entry changes. Returns whether the configuration changed.
    fn note(&mut self, index: LogIndex, payload: &Payload) -> bool {
        match payload {
            Payload::Configuration(configuration) => {
                self.configurations.push((index, configuration.clone()));
                true
            }
            Payload::ElectionTimer { millis } => {
                self.timers.push((index, *millis));
                false
            }
            Payload::Noop | Payload::Command(_) => false,
        }
    }

    /// Appends an entry, whose index must follow. Returns whether the configuration changed.
    pub(crate) fn append(&mut self, entry: Entry) -> bool {
        let index = self.terms.push(entry.term);
        assert_eq!(index, entry.index, "entries follow each other without a gap");
        self.unstable_bytes += entry.size_bytes();
        let configuration_changed = self.note(index, &entry.payload);
        self.unstable.push(entry);
        configuration_changed
    }

    /// Cuts the log: entries at and after `from` are void. Returns whether the configuration changed.
    pub(crate) fn truncate(&mut self, from: LogIndex) -> bool {
        assert!(
            from > self.commit,
            "committed entries are never cut: {from} is not above commit {}",
            self.commit
        );
        self.terms.truncate(from);
        while self.unstable.last().is_some_and(|entry| entry.index >= from) {
            if let Some(entry) = self.unstable.pop() {
                self.unstable_bytes -= entry.size_bytes();
            }
        }
        if from <= self.handed {
            self.handed = from.prev();
            // A snapshot that waits replaces the whole log anyway; then nothing behind it was handed out.
            self.truncate_from = Some(self.truncate_from.map_or(from, |earlier| earlier.min(from)));
        }
        self.stable = self.stable.min(from.prev());
        self.timers.retain(|(index, _)| *index < from || *index <= self.commit);
        let before = self.configurations.len();
        self.configurations.retain(|(index, _)| *index < from);
        before != self.configurations.len()
    }

    /// A snapshot takes the place of the whole log.
    pub(crate) fn restore(&mut self, snapshot: SnapshotMeta) {
        assert!(
            snapshot.index > self.commit,
            "a snapshot at {} is behind commit {}",
            snapshot.index,
            self.commit
        );
        *self = Self::new(&snapshot);
        // Nothing of it is durable before its ticket is.
        self.stable = LogIndex::ZERO;
        self.snapshot = Some(snapshot);
    }

    /// Whether the next `Persist` replaces the host's log.
    pub(crate) fn has_replacement(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Entries before `first` are gone from the host's log.
    pub(crate) fn compact(&mut self, first: LogIndex) {
        let base = first.prev();
        if base <= self.terms.base().0 {
            return;
        }
        assert!(
            base <= self.commit.min(self.stable),
            "only committed, durable entries can be compacted: {base}"
        );
        self.terms.compact(base);
        keep_from(&mut self.configurations, base);
        keep_from(&mut self.timers, base);
    }

    /// Raises the commit index, at most to the last entry. Returns whether it rose.
    pub(crate) fn commit_to(&mut self, index: LogIndex) -> bool {
        let index = index.min(self.last());
        if index <= self.commit {
            return false;
        }
        self.commit = index;
        true
    }

    /// Entries up to `index` are durable.
    pub(crate) fn stable_to(&mut self, index: LogIndex) {
        assert!(index <= self.handed, "entry {index} cannot be durable: only {} was handed out", self.handed);
        self.stable = self.stable.max(index);
    }

    pub(crate) fn applied_to(&mut self, index: LogIndex) {
        assert!(
            index <= self.delivered,
            "entry {index} cannot be applied: only {} was handed out",
            self.delivered
        );
        self.applied = self.applied.max(index);
    }

    fn deliverable(&self) -> LogIndex {
        self.commit.min(self.stable)
    }

    pub(crate) fn has_committed(&self) -> bool {
        self.deliverable() > self.delivered
    }

    /// The entries to apply next: committed, durable here, and not handed out before.
    pub(crate) fn take_committed(&mut self) -> Option<Range<LogIndex>> {
        let end = self.deliverable();
        if end <= self.delivered {
            return None;
        }
        let range = self.delivered.next()..end.next();
        self.delivered = end;
        Some(range)
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.unstable.is_empty() || self.truncate_from.is_some() || self.snapshot.is_some()
    }

    /// Takes an old buffer back.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<Entry>) {
        buffer.clear();
        if (self.spare.capacity()..=SPARE_ENTRIES_MAX).contains(&buffer.capacity()) {
            self.spare = buffer;
        }
    }

    /// What the next `Persist` carries.
    pub(crate) fn take_work(&mut self) -> LogWork {
        self.handed = self.last();
        self.unstable_bytes = 0;
        let spare = std::mem::take(&mut self.spare);
        LogWork {
            snapshot: self.snapshot.take(),
            truncate_from: self.truncate_from.take(),
            entries: std::mem::replace(&mut self.unstable, spare),
        }
    }
}

/// Drops what a later value at or below `base` has replaced.
fn keep_from<T>(values: &mut Vec<(LogIndex, T)>, base: LogIndex) {
    let in_force = values.partition_point(|(index, _)| *index <= base).saturating_sub(1);
    values.drain(..in_force);
    if values[0].0 < base {
        values[0].0 = base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(terms: &[u64]) -> TermRuns {
        let mut runs = TermRuns::new(LogIndex(10), Term(1));
        for term in terms {
            runs.push(Term(*term));
        }
        runs
    }

    #[test]
    fn finds_terms_across_runs() {
        let runs = runs(&[1, 1, 3, 3, 5]);
        let terms: Vec<_> = (9..17).map(|i| runs.term(LogIndex(i)).map(|t| t.0)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(3), Some(3), Some(5), None]);
    }

    #[test]
    fn looks_for_the_last_place_of_a_term() {
        let runs = runs(&[1, 1, 3, 3, 5]);
        assert_eq!(runs.last_at_most(LogIndex(15), Term(4)), (LogIndex(14), Some(Term(3))));
        assert_eq!(runs.last_at_most(LogIndex(13), Term(4)), (LogIndex(13), Some(Term(3))));
        assert_eq!(runs.last_at_most(LogIndex(99), Term(2)), (LogIndex(12), Some(Term(1))));
        assert_eq!(runs.last_at_most(LogIndex(15), Term(0)), (LogIndex(10), Some(Term(1))));
        assert_eq!(runs.last_at_most(LogIndex(3), Term(9)), (LogIndex(3), None));
    }

    #[test]
    fn a_run_that_ends_at_the_base_goes() {
        let mut runs = runs(&[1, 1, 3, 3, 5]);
        runs.compact(LogIndex(14));
        assert_eq!(runs.base(), (LogIndex(14), Term(3)));
        assert_eq!(runs.runs, [(LogIndex(15), Term(5))]);
        runs.compact(LogIndex(15));
        assert!(runs.runs.is_empty());
        assert_eq!((runs.last(), runs.last_term()), (LogIndex(15), Term(5)));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Truncate(u64),
        Compact(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u64..3).prop_map(Step::Push),
            1 => (0u64..30).prop_map(Step::Truncate),
            1 => (0u64..30).prop_map(Step::Compact),
        ]
    }

    proptest! {
        /// Runs of terms answer like a plain list of terms.
        #[test]
        fn term_runs_are_a_list(steps in prop::collection::vec(step(), 1..80), asked in 0u64..30, term in 0u64..40) {
            let mut runs = TermRuns::new(LogIndex(3), Term(1));
            // The naive version: the base's index, and the terms from there on.
            let (mut base, mut terms) = (3u64, vec![1u64]);
            for step in steps {
                match step {
                    Step::Push(by) => {
                        let next = terms.last().copied().unwrap_or(1) + by;
                        terms.push(next);
                        runs.push(Term(next));
                    }
                    Step::Truncate(from) if from > base => {
                        terms.truncate(usize::try_from(from - base).unwrap());
                        runs.truncate(LogIndex(from));
                    }
                    Step::Compact(to) if to > base && to < base + terms.len() as u64 => {
                        terms.drain(..usize::try_from(to - base).unwrap());
                        base = to;
                        runs.compact(LogIndex(to));
                    }
                    Step::Truncate(_) | Step::Compact(_) => {}
                }
                let naive = |index: u64| index.checked_sub(base).and_then(|i| terms.get(usize::try_from(i).unwrap()));
                for index in 0..base + terms.len() as u64 + 2 {
                    prop_assert_eq!(runs.term(LogIndex(index)).map(|t| t.0), naive(index).copied());
                }
                prop_assert_eq!(runs.last().0, base + terms.len() as u64 - 1);
                let from = asked.min(runs.last().0);
                let expected = if from < base {
                    from
                } else {
                    (base..=from).rev().find(|i| naive(*i).is_some_and(|t| *t <= term)).unwrap_or(base)
                };
                prop_assert_eq!(runs.last_at_most(LogIndex(asked), Term(term)).0.0, expected);
            }
        }
    }
}
