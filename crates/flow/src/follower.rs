//! The follower's side: how far it has admitted what a leader sent.

use std::collections::VecDeque;

use pontoon_raft_core::types::{LogIndex, Term};

use crate::class::PerClass;

/// How far a follower has admitted its leader's entries, in one term. Cumulative: of two reports of a term the larger one
/// holds, whatever was lost, repeated or reordered on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The term of the leader whose entries these are. Nothing about another leader's log follows from it.
    pub term: Term,
    /// Up to here, for each class.
    pub upto: PerClass<LogIndex>,
}

/// What may wait to be applied before entries are admitted no longer, in bytes of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BacklogLimits {
    /// With regular entries. Default 16 MiB. Too small: a state machine that writes in bursts slows its leader down. Too
    /// large: a replica that takes over has much to apply before it can answer.
    pub regular_bytes: u64,
    /// With elastic entries. Default 4 MiB: background work stops first.
    pub elastic_bytes: u64,
}

impl Default for BacklogLimits {
    fn default() -> Self {
        Self { regular_bytes: 16 << 20, elastic_bytes: 4 << 20 }
    }
}

/// Marks in the log's running total are this far apart, in bytes: it bounds both their number and the error.
const MARK_BYTES: u64 = 64 << 10;

/// Follows one replica's log: an entry is admitted when it is durable here as its leader's, and when what waits to be
/// applied, up to and including it, stays within the bound of its class.
///
/// No class is needed for a single entry, so followers know nothing of classes, and entries carry none.
#[derive(Clone, Debug)]
pub struct LogTracker {
    limits: BacklogLimits,
    term: Term,
    /// Acknowledged to the leader of `term`, durably.
    accepted: LogIndex,
    applied: LogIndex,
    /// (last entry, total including it) about every [`MARK_BYTES`] behind `applied`.
    marks: VecDeque<(LogIndex, u64)>,
    /// Bytes appended, ever.
    total: u64,
    /// The total at `applied`, or a little less.
    applied_total: u64,
    told: Option<Admitted>,
}

impl LogTracker {
    /// A replica that has applied everything up to `applied`, and whose log holds nothing beyond it that counts.
    #[must_use]
    pub const fn new(applied: LogIndex, limits: BacklogLimits) -> Self {
        Self {
            limits,
            term: Term::ZERO,
            accepted: LogIndex::ZERO,
            applied,
            marks: VecDeque::new(),
            total: 0,
            applied_total: 0,
            told: None,
        }
    }

    /// An entry was appended to the log.
    pub fn appended(&mut self, index: LogIndex, bytes: u64) {
        self.total = self.total.saturating_add(bytes);
        let before = self.marks.len().checked_sub(2).map_or(self.applied_total, |at| self.marks[at].1);
        match self.marks.back_mut() {
            Some(mark) if self.total - before <= MARK_BYTES => *mark = (index, self.total),
            _ => self.marks.push_back((index, self.total)),
        }
    }

    /// The log is cut: the entries from `from` on are gone.
    pub fn truncated(&mut self, from: LogIndex) {
        let mut cut = None;
        while self.marks.back().is_some_and(|(last, _)| *last >= from) {
            cut = self.marks.pop_back();
        }
        // What is cut still counts until everything is applied: too much is harmless, for the new leader's entries follow.
        let kept = from.prev();
        if let Some((_, at)) = cut
            && kept > self.applied
            && self.marks.back().is_none_or(|(last, _)| *last < kept)
        {
            self.marks.push_back((kept, at));
        }
        self.accepted = self.accepted.min(from.prev());
    }

    /// A snapshot took the log's place.
    pub fn reset(&mut self, index: LogIndex) {
        self.marks.clear();
        self.applied = self.applied.max(index);
        self.applied_total = self.total;
        self.accepted = self.accepted.min(index);
    }

    /// The state machine has everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index);
        while let Some((last, at)) = self.marks.front()
            && *last <= index
        {
            self.applied_total = *at;
            self.marks.pop_front();
        }
        if self.marks.is_empty() {
            self.applied_total = self.total;
        }
    }

    /// What this replica acknowledges to the leader of `term`: everything up to `index` is durable here, and that leader's.
    pub fn accepted(&mut self, term: Term, index: LogIndex) {
        if term > self.term {
            (self.term, self.accepted) = (term, LogIndex::ZERO);
        }
        if term == self.term {
            self.accepted = self.accepted.max(index);
        }
    }

    /// How far it has admitted; `None` before anything was acknowledged.
    #[must_use]
    pub fn admitted(&self) -> Option<Admitted> {
        if self.term == Term::ZERO {
            return None;
        }
        let upto = |bound: u64| {
            if self.total - self.applied_total <= bound {
                return self.accepted;
            }
            let fits = self.marks.iter().take_while(|(_, at)| at - self.applied_total <= bound).last();
            self.accepted.min(fits.map_or(self.applied, |(last, _)| (*last).max(self.applied)))
        };
        let upto =
            PerClass { regular: upto(self.limits.regular_bytes), elastic: upto(self.limits.elastic_bytes) };
        Some(Admitted { term: self.term, upto })
    }

    /// What its leader should hear, once after each change.
    pub fn news(&mut self) -> Option<Admitted> {
        let admitted = self.admitted()?;
        (self.told != Some(admitted)).then(|| {
            self.told = Some(admitted);
            admitted
        })
    }

    /// What waits to be applied, about, in bytes.
    #[must_use]
    pub const fn backlog_bytes(&self) -> u64 {
        self.total - self.applied_total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker() -> LogTracker {
        let limits = BacklogLimits { regular_bytes: 400 << 10, elastic_bytes: 100 << 10 };
        LogTracker::new(LogIndex(0), limits)
    }

    #[test]
    fn what_is_durable_is_admitted_while_the_backlog_is_short() {
        let mut tracker = tracker();
        assert_eq!(tracker.news(), None);
        tracker.appended(LogIndex(1), 100);
        tracker.accepted(Term(2), LogIndex(1));
        let admitted = tracker.news().expect("news");
        assert_eq!(
            (admitted.term, admitted.upto.regular, admitted.upto.elastic),
            (Term(2), LogIndex(1), LogIndex(1))
        );
        assert_eq!(tracker.news(), None, "once");
    }

    #[test]
    fn elastic_entries_are_held_back_first_and_applying_lets_them_go() {
        let mut tracker = tracker();
        for index in 1..=20 {
            tracker.appended(LogIndex(index), 64 << 10);
        }
        tracker.accepted(Term(1), LogIndex(20));
        let upto = tracker.admitted().expect("accepted").upto;
        assert_eq!((upto.regular, upto.elastic), (LogIndex(6), LogIndex(1)));
        tracker.applied(LogIndex(10));
        let upto = tracker.admitted().expect("accepted").upto;
        assert_eq!((upto.regular, upto.elastic), (LogIndex(16), LogIndex(11)));
        tracker.applied(LogIndex(20));
        assert_eq!(tracker.admitted().expect("accepted").upto.elastic, LogIndex(20));
        assert_eq!(tracker.backlog_bytes(), 0);
    }

    #[test]
    fn another_leader_begins_at_nothing() {
        let mut tracker = tracker();
        for index in 1..=9 {
            tracker.appended(LogIndex(index), 10);
        }
        tracker.accepted(Term(1), LogIndex(9));
        tracker.accepted(Term(2), LogIndex(4));
        assert_eq!(tracker.admitted().expect("accepted").upto.regular, LogIndex(4));
        tracker.accepted(Term(1), LogIndex(9));
        assert_eq!(tracker.admitted().expect("accepted").term, Term(2), "the old leader's comes late");
        tracker.accepted(Term(2), LogIndex(8));
        tracker.truncated(LogIndex(6));
        assert_eq!(tracker.admitted().expect("accepted").upto.regular, LogIndex(5));
    }
}
