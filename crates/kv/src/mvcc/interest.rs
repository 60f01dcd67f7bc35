//! Who wants to hear of which keys. Pure.

use std::collections::HashMap;

use bytes::Bytes;

use super::records::KeyRange;

/// For each key or range those who asked for it. Finding them costs their number and a few steps, however many others there
/// are.
#[derive(Debug)]
pub(crate) struct Interests<T> {
    ones: HashMap<Bytes, Vec<T>>,
    /// Sorted by start and end, each once, when `settled`.
    ranges: Vec<Range<T>>,
    /// Of the balanced tree that the sorted ranges are: the end that reaches farthest in the part whose root is the range
    /// of this position.
    farthest: Vec<End>,
    settled: bool,
    /// Ranges that nobody wants any more.
    empty: usize,
}

#[derive(Debug)]
struct Range<T> {
    start: Bytes,
    end: End,
    who: Vec<T>,
}

/// The first key behind a range; the last of all stands for no end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Never,
}

impl End {
    fn is_behind(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < &end[..],
            Self::Never => true,
        }
    }
}

impl<T> Default for Interests<T> {
    fn default() -> Self {
        Self { ones: HashMap::new(), ranges: Vec::new(), farthest: Vec::new(), settled: true, empty: 0 }
    }
}

impl<T> Interests<T> {
    /// Adds somebody who wants the keys that `key` and `range_end` mean, as etcd reads them.
    pub(crate) fn insert(&mut self, key: &Bytes, range_end: &Bytes, who: T) {
        let end = match KeyRange::new(key, range_end) {
            KeyRange::One(_) => {
                self.ones.entry(key.clone()).or_default().push(who);
                return;
            }
            KeyRange::From(_) => End::Never,
            KeyRange::Between(..) => End::Before(range_end.clone()),
        };
        if self.settled
            && let Ok(at) = self.position(key, &end)
        {
            if self.ranges[at].who.is_empty() {
                self.empty -= 1;
            }
            self.ranges[at].who.push(who);
            return;
        }
        self.ranges.push(Range { start: key.clone(), end, who: vec![who] });
        self.settled = false;
    }

    /// Takes the one away for whom `is_meant` holds; `false` if he is not there.
    pub(crate) fn remove(&mut self, key: &Bytes, range_end: &Bytes, is_meant: impl Fn(&T) -> bool) -> bool {
        let take = |who: &mut Vec<T>| match who.iter().position(&is_meant) {
            Some(at) => {
                who.swap_remove(at);
                true
            }
            None => false,
        };
        let end = match KeyRange::new(key, range_end) {
            KeyRange::One(_) => {
                let Some(who) = self.ones.get_mut(key) else { return false };
                let taken = take(who);
                if who.is_empty() {
                    self.ones.remove(key);
                }
                return taken;
            }
            KeyRange::From(_) => End::Never,
            KeyRange::Between(..) => End::Before(range_end.clone()),
        };
        self.settle();
        let Ok(at) = self.position(key, &end) else { return false };
        let taken = take(&mut self.ranges[at].who);
        if taken && self.ranges[at].who.is_empty() {
            self.empty += 1;
            // What is empty costs a step now and then, so it may stay until it is the greater part.
            self.settled = self.empty * 2 <= self.ranges.len();
        }
        taken
    }

    /// Calls `tell` for each who wants this key.
    pub(crate) fn of_key(&mut self, key: &[u8], mut tell: impl FnMut(&T)) {
        self.ones.get(key).into_iter().flatten().for_each(&mut tell);
        self.settle();
        let mut parts = vec![(0, self.ranges.len())];
        while let Some((first, behind)) = parts.pop() {
            let root = first + (behind - first) / 2;
            if first == behind || !self.farthest[root].is_behind(key) {
                continue;
            }
            parts.push((first, root));
            let range = &self.ranges[root];
            if range.start[..] <= *key {
                if range.end.is_behind(key) {
                    range.who.iter().for_each(&mut tell);
                }
                parts.push((root + 1, behind));
            }
        }
    }

    /// Takes everybody away.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        let taken = std::mem::take(self);
        taken.ones.into_values().flatten().chain(taken.ranges.into_iter().flat_map(|range| range.who))
    }

    fn position(&self, start: &Bytes, end: &End) -> Result<usize, usize> {
        self.ranges.binary_search_by(|range| range.start.cmp(start).then_with(|| range.end.cmp(end)))
    }

    /// Makes the tree new if ranges have come or many have gone.
    fn settle(&mut self) {
        if self.settled {
            return;
        }
        self.ranges.retain(|range| !range.who.is_empty());
        self.ranges.sort_by(|a, b| a.start.cmp(&b.start).then_with(|| a.end.cmp(&b.end)));
        self.ranges.dedup_by(|later, earlier| {
            let same = later.start == earlier.start && later.end == earlier.end;
            if same {
                earlier.who.append(&mut later.who);
            }
            same
        });
        self.farthest = self.ranges.iter().map(|range| range.end.clone()).collect();
        reach(&mut self.farthest, 0, self.ranges.len());
        (self.settled, self.empty) = (true, 0);
    }
}

/// Makes each root's end the farthest of its part; as deep as the logarithm of the number of ranges.
fn reach(ends: &mut [End], first: usize, behind: usize) -> Option<usize> {
    if first == behind {
        return None;
    }
    let root = first + (behind - first) / 2;
    for part in [reach(ends, first, root), reach(ends, root + 1, behind)].into_iter().flatten() {
        if ends[part] > ends[root] {
            ends[root] = ends[part].clone();
        }
    }
    Some(root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(0u8..4, 1..4).prop_map(Bytes::from)
    }

    fn interest() -> impl Strategy<Value = (Bytes, Bytes)> {
        let ends = prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(&[0])), keys()];
        (keys(), ends)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert((Bytes, Bytes)),
        Remove(prop::sample::Index),
        Ask(Bytes),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => interest().prop_map(Step::Insert),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
            2 => keys().prop_map(Step::Ask),
        ]
    }

    proptest! {
        #[test]
        fn finds_those_whom_a_look_at_each_finds(steps in prop::collection::vec(step(), 1..200)) {
            let mut interests = Interests::default();
            let mut naive: Vec<(u32, Bytes, Bytes)> = Vec::new();
            for (n, step) in (0..).zip(steps) {
                match step {
                    Step::Insert((key, end)) => {
                        interests.insert(&key, &end, n);
                        naive.push((n, key, end));
                    }
                    Step::Remove(index) if !naive.is_empty() => {
                        let (who, key, end) = naive.swap_remove(index.index(naive.len()));
                        prop_assert!(interests.remove(&key, &end, |w| *w == who));
                        prop_assert!(!interests.remove(&key, &end, |w| *w == who));
                    }
                    Step::Remove(_) => {}
                    Step::Ask(key) => {
                        let mut found = Vec::new();
                        interests.of_key(&key, |who| found.push(*who));
                        found.sort_unstable();
                        let wants = |(_, start, end): &&(u32, Bytes, Bytes)| KeyRange::new(start, end).contains(&key);
                        let mut expected: Vec<_> = naive.iter().filter(wants).map(|(who, ..)| *who).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
            }
            let mut all: Vec<_> = interests.drain().collect();
            all.sort_unstable();
            let mut expected: Vec<_> = naive.iter().map(|(who, ..)| *who).collect();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
