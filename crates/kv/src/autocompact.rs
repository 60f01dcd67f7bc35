//! When the past of a keyspace is forgotten by itself: a pure rule, told the time and the revision.
//!
//! etcd's rules. *By revision*: every five minutes, all but the last N revisions. *By period*: what is older than the
//! period; up to an hour, once a period, above that once an hour. How old a revision is is known from samples, ten of
//! them in a period or an hour, which a store takes itself, whether it leads or not: so a new leader goes on where the old
//! one was.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the rule by revision is looked at.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

const HOUR: Duration = Duration::from_secs(3600);

/// The revision of a keyspace that nobody has written to: there is nothing to forget.
const NEW: i64 = 1;

/// Samples in an interval.
const SAMPLES: u32 = 10;

/// What is kept of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// So many revisions, beside the newest.
    Revisions(i64),
    /// What happened in the last so many seconds; at least one.
    Period(Duration),
}

/// The state of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct AutoCompact {
    /// When a sample was taken, and which revision there was.
    samples: VecDeque<(Instant, i64)>,
    /// When the last attempt was made, or the first look.
    last: Option<Instant>,
    /// The one before.
    before: Option<Instant>,
    /// The revision of the last attempt.
    compacted: i64,
}

impl AutoCompact {
    /// The revision to compact to now, if this store is the one to do it. To be called every now and then.
    pub(crate) fn look(
        &mut self,
        keep: Retention,
        now: Instant,
        revision: i64,
        is_leader: bool,
    ) -> Option<i64> {
        let last = *self.last.get_or_insert(now);
        let interval = match keep {
            Retention::Revisions(_) => REVISION_INTERVAL,
            Retention::Period(period) => period.min(HOUR),
        };
        let wanted = match keep {
            Retention::Revisions(n) => revision.saturating_sub(n),
            Retention::Period(period) => {
                let due =
                    self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= interval / SAMPLES);
                if due {
                    self.samples.push_back((now, revision));
                }
                // Of those that are old enough only the newest says anything.
                let old = |s: &(Instant, i64)| now.duration_since(s.0) >= period;
                while self.samples.get(1).is_some_and(old) {
                    self.samples.pop_front();
                }
                self.samples.front().filter(|s| old(s)).map_or(0, |(_, revision)| *revision)
            }
        };
        if now.duration_since(last) < interval || !is_leader || wanted <= self.compacted.max(NEW) {
            return None;
        }
        self.before = self.last.replace(now);
        self.compacted = wanted;
        Some(wanted)
    }

    /// The attempt did not come through: it is made again at the next look.
    pub(crate) fn failed(&mut self) {
        self.last = self.before;
        self.compacted = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every `step` from `begin` on, with the revision that `revision` says for the seconds since then; what was
    /// compacted, and at which second.
    fn run(
        keep: Retention,
        step: u64,
        until: u64,
        revision: impl Fn(u64) -> i64,
        leads: impl Fn(u64) -> bool,
    ) -> Vec<(u64, i64)> {
        let begin = Instant::now();
        let mut rule = AutoCompact::default();
        let mut done = Vec::new();
        for second in (0..=until).step_by(step as usize) {
            let now = begin + Duration::from_secs(second);
            if let Some(to) = rule.look(keep, now, revision(second), leads(second)) {
                done.push((second, to));
            }
        }
        done
    }

    #[test]
    fn by_revision_every_five_minutes() {
        let by = Retention::Revisions(100);
        let done = run(by, 1, 1000, |s| s as i64 + 1, |_| true);
        assert_eq!(done, [(300, 201), (600, 501), (900, 801)]);
        assert_eq!(run(by, 1, 1000, |_| 50, |_| true), [], "there are not so many");
        assert_eq!(run(by, 1, 1000, |_| 150, |_| true), [(300, 50)], "and nothing happens after that");
    }

    #[test]
    fn by_period_what_is_older() {
        let by = Retention::Period(Duration::from_secs(60));
        let done = run(by, 1, 200, |s| s as i64 + 2, |_| true);
        assert_eq!(done, [(60, 2), (120, 62), (180, 122)]);
        assert_eq!(run(by, 1, 1000, |_| 1, |_| true), [], "nobody has written to it");
        // A long one is looked at once an hour, in the first place after the whole period.
        let by = Retention::Period(Duration::from_secs(3 * 3600));
        let done = run(by, 10, 5 * 3600, |s| s as i64 + 2, |_| true);
        assert_eq!(done, [(10800, 2), (14400, 3602), (18000, 7202)]);
    }

    #[test]
    fn samples_are_bounded() {
        let begin = Instant::now();
        let mut rule = AutoCompact::default();
        let by = Retention::Period(Duration::from_secs(10 * 3600));
        for second in 0..100_000 {
            rule.look(by, begin + Duration::from_secs(second), 1, false);
        }
        assert!(rule.samples.len() <= 102, "{}", rule.samples.len());
    }

    #[test]
    fn a_new_leader_knows_what_is_old() {
        let by = Retention::Period(Duration::from_secs(60));
        assert_eq!(run(by, 1, 100, |s| s as i64 + 1, |s| s >= 90), [(90, 31)]);
        assert_eq!(run(by, 1, 1000, |s| s as i64 + 1, |_| false), []);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let mut rule = AutoCompact::default();
        let by = Retention::Period(Duration::from_secs(10));
        assert_eq!(rule.look(by, at(0), 7, true), None);
        assert_eq!(rule.look(by, at(10), 7, true), Some(7));
        rule.failed();
        assert_eq!(rule.look(by, at(11), 7, true), Some(7));
        assert_eq!(rule.look(by, at(40), 7, true), None, "done already");
    }
}
