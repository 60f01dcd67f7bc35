//! What one group holds for one follower: entries that were sent and not admitted, and a queue that is an index interval.

use std::collections::VecDeque;
use std::ops::Range;

use pontoon_raft_core::types::LogIndex;

use crate::class::{Bytes, Class, PerClass};
use crate::pools::Held;

/// A new entry, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryCost {
    /// Where it is.
    pub index: LogIndex,
    /// What kind of work it is.
    pub class: Class,
    /// What it takes.
    pub bytes: u64,
}

/// Entries of one class that were sent in one append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The append's last entry.
    pub(crate) last: LogIndex,
    pub(crate) send: u64,
    pub(crate) eval: u64,
    /// The part of `send` beyond the tokens that there were.
    pub(crate) forced: u64,
}

/// Why a stream is sent to without tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    /// For this round: a queue must not form, or the group has no quorum without one.
    Deny,
    /// Until the queue is empty.
    Flush,
}

/// A follower that is streamed to.
///
/// ```text
///    admitted        sent, not admitted        queue              this round's entries
///  ------------)[-----------------------)[-------------------)[------------------------)
///                 `sent`, in tokens    from                                           next
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// The first entry that was not sent: the queue is `[from, next)`.
    pub(crate) from: LogIndex,
    /// Entries before it were there when the stream opened, and hold no evaluation tokens.
    pub(crate) initial: LogIndex,
    /// Elastic evaluation tokens held for the queue.
    pub(crate) queued: u64,
    /// Evaluation tokens held for entries of this round that were not sent yet, each as its own class.
    pub(crate) fresh: Bytes,
    /// What was sent and not admitted, oldest first; indexes grow.
    pub(crate) sent: PerClass<VecDeque<Sent>>,
    /// Elastic send tokens taken for the queue and not used.
    pub(crate) granted: u64,
    pub(crate) force: Option<Force>,
}

/// What a range of the log costs a stream that sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Sent at elastic priority because it waited in the queue.
    pub(crate) waited: u64,
    /// Sent at once, by class.
    pub(crate) fresh: Bytes,
    /// Evaluation tokens that travel along, by the class they are held as.
    pub(crate) eval: Bytes,
}

impl Stream {
    /// A stream of the entries from `from` on; those from `initial` on will hold evaluation tokens.
    pub(crate) fn new(from: LogIndex, initial: LogIndex) -> Self {
        Self {
            from,
            initial,
            queued: 0,
            fresh: Bytes::ZERO,
            sent: PerClass::default(),
            granted: 0,
            force: None,
        }
    }

    /// Moves `range`, which starts at `from`, out of the queue. `fresh` are this round's entries, the last of the log.
    pub(crate) fn take(
        &mut self,
        range: Range<LogIndex>,
        next: LogIndex,
        fresh: &[EntryCost],
        mean_bytes: u64,
    ) -> Cost {
        let mut cost = Cost::default();
        let fresh_start = fresh.first().map_or(next, |entry| entry.index);
        let old_end = range.end.min(fresh_start);
        if range.start < old_end {
            let without = self.initial.clamp(range.start, old_end).0 - range.start.0;
            let with = old_end.0 - range.start.0 - without;
            let queue = fresh_start.0.saturating_sub(range.start.max(self.initial).0);
            // Sizes of single entries are not kept: each takes the mean, and the last one takes what is left.
            let eval = if with == queue { self.queued } else { share(self.queued, with, queue) };
            self.queued -= eval;
            cost.waited = eval.saturating_add(without.saturating_mul(mean_bytes));
            cost.eval.elastic += eval;
        }
        for entry in fresh.iter().filter(|entry| range.contains(&entry.index)) {
            *cost.fresh.get_mut(entry.class) += entry.bytes;
            if entry.index >= self.initial {
                *cost.eval.get_mut(entry.class) += entry.bytes;
                *self.fresh.get_mut(entry.class) -= entry.bytes;
            }
        }
        self.from = range.end;
        cost
    }

    /// Notes an append up to `last`.
    pub(crate) fn note_sent(&mut self, last: LogIndex, cost: &Cost, mut forced: u64) {
        for class in Class::ALL {
            let waited = if class == Class::Elastic { cost.waited } else { 0 };
            let send = waited + cost.fresh.get(class);
            let eval = *cost.eval.get(class);
            if send > 0 || eval > 0 {
                let by_force = forced.min(send);
                forced -= by_force;
                self.sent.get_mut(class).push_back(Sent { last, send, eval, forced: by_force });
            }
        }
    }

    /// The follower has admitted `class` up to `index`: what that frees.
    pub(crate) fn admit(&mut self, class: Class, index: LogIndex) -> Held {
        let mut held = Held::default();
        let sent = self.sent.get_mut(class);
        while let Some(oldest) = sent.front().filter(|oldest| oldest.last <= index) {
            *held.send.get_mut(class) += oldest.send;
            *held.eval.get_mut(class) += oldest.eval;
            held.forced += oldest.forced;
            sent.pop_front();
        }
        held
    }

    /// Everything it holds, but what was granted.
    pub(crate) fn held(&self) -> Held {
        let mut held = Held { eval: self.fresh, ..Held::default() };
        held.eval.elastic += self.queued;
        for class in Class::ALL {
            for sent in self.sent.get(class) {
                *held.send.get_mut(class) += sent.send;
                *held.eval.get_mut(class) += sent.eval;
                held.forced += sent.forced;
            }
        }
        held
    }

    pub(crate) fn has_sent(&self) -> bool {
        Class::ALL.into_iter().any(|class| !self.sent.get(class).is_empty())
    }
}

/// `of * part / whole`, without overflow; `whole` is not 0.
fn share(of: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(of) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(of).min(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, class: Class, bytes: u64) -> EntryCost {
        EntryCost { index: LogIndex(index), class, bytes }
    }

    #[test]
    fn a_queue_is_taken_in_parts_and_nothing_is_lost() {
        // Entries 5 to 9 were there, 10 to 12 wait with 100 bytes, 13 and 14 are new.
        let mut stream = Stream::new(LogIndex(5), LogIndex(10));
        stream.queued = 100;
        stream.fresh = Bytes { regular: 7, elastic: 9 };
        let fresh = [at(13, Class::Regular, 7), at(14, Class::Elastic, 9)];
        let next = LogIndex(15);
        let cost = stream.take(LogIndex(5)..LogIndex(8), next, &fresh, 10);
        assert_eq!(cost, Cost { waited: 30, ..Cost::default() });
        let cost = stream.take(LogIndex(8)..LogIndex(11), next, &fresh, 10);
        assert_eq!((cost.waited, cost.eval.elastic), (20 + 33, 33));
        let cost = stream.take(LogIndex(11)..LogIndex(14), next, &fresh, 10);
        assert_eq!((cost.waited, cost.fresh), (67, Bytes { regular: 7, elastic: 0 }));
        assert_eq!(cost.eval, Bytes { regular: 7, elastic: 67 });
        assert_eq!((stream.queued, stream.fresh), (0, Bytes { regular: 0, elastic: 9 }));
    }

    #[test]
    fn admission_is_cumulative_and_by_class() {
        let mut stream = Stream::new(LogIndex(1), LogIndex(1));
        let cost = Cost { fresh: Bytes { regular: 5, elastic: 6 }, ..Cost::default() };
        stream.note_sent(LogIndex(4), &cost, 7);
        stream.note_sent(LogIndex(8), &cost, 0);
        let held = stream.admit(Class::Elastic, LogIndex(7));
        assert_eq!(held, Held { send: Bytes::of(Class::Elastic, 6), forced: 2, ..Held::default() });
        assert_eq!(stream.admit(Class::Elastic, LogIndex(3)), Held::default(), "a regress is nothing");
        assert_eq!(stream.admit(Class::Regular, LogIndex(99)).send.regular, 10);
        assert_eq!(stream.held().send, Bytes::of(Class::Elastic, 6));
    }
}
