//! One follower's window: the appends that were sent and not yet acknowledged.

use std::collections::VecDeque;

use crate::types::LogIndex;

/// A sliding window bounded in messages and in bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inflights {
    /// Last index and bytes of each append, oldest first; the indexes grow.
    sent: VecDeque<(LogIndex, u64)>,
    /// The sum of the bytes in `sent`.
    bytes: u64,
}

impl Inflights {
    pub(crate) fn add(&mut self, last: LogIndex, bytes: u64) {
        assert!(
            self.sent.back().is_none_or(|(newest, _)| *newest < last),
            "appends leave in the order of the log"
        );
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Everything up to `match_index` has arrived.
    pub(crate) fn free_to(&mut self, match_index: LogIndex) {
        while let Some((last, bytes)) = self.sent.front() {
            if *last > match_index {
                break;
            }
            self.bytes -= bytes;
            self.sent.pop_front();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }

    /// Whether nothing more may be sent. An empty window is never full, so an entry larger than it still travels.
    pub(crate) fn full(&self, messages_max: usize, bytes_max: u64) -> bool {
        !self.sent.is_empty() && (self.sent.len() >= messages_max || self.bytes >= bytes_max)
    }

    pub(crate) fn messages(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_messages_and_bytes_and_frees_cumulatively() {
        let mut window = Inflights::default();
        assert!(!window.full(0, 0));
        window.add(LogIndex(3), 10);
        window.add(LogIndex(5), 20);
        assert!(window.full(2, 100) && window.full(9, 30) && !window.full(3, 31));
        window.free_to(LogIndex(4));
        assert_eq!((window.messages(), window.bytes()), (1, 20));
        window.free_to(LogIndex(9));
        assert_eq!((window.messages(), window.bytes()), (0, 0));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// An append of this many entries and bytes.
        Add(u64, u64),
        /// An acknowledgement of this share of what was ever sent, in eighths.
        Free(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1u64..5, 0u64..100).prop_map(|(entries, bytes)| Step::Add(entries, bytes)),
            3 => (0u64..9).prop_map(Step::Free),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// The window against a plain list of what was sent and not yet acknowledged.
        #[test]
        fn a_window_is_a_list(steps in prop::collection::vec(step(), 1..60), messages_max in 0usize..6, bytes_max in 0u64..200) {
            let (mut window, mut naive, mut last) = (Inflights::default(), Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Add(entries, bytes) => {
                        last += entries;
                        window.add(LogIndex(last), bytes);
                        naive.push((last, bytes));
                    }
                    Step::Free(eighths) => {
                        let index = last * eighths / 8;
                        window.free_to(LogIndex(index));
                        naive.retain(|(sent, _)| *sent > index);
                    }
                    Step::Clear => {
                        window.clear();
                        naive.clear();
                    }
                }
                let bytes: u64 = naive.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!((window.messages(), window.bytes()), (naive.len(), bytes));
                let full = !naive.is_empty() && (naive.len() >= messages_max || bytes >= bytes_max);
                prop_assert_eq!(window.full(messages_max, bytes_max), full);
            }
        }
    }
}
