//! Sets of keys as unions of ranges: what a user may touch.

/// A half-open range of keys; without an end it goes on to the last key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// The key that follows directly, as an exclusive end.
fn after(key: &[u8]) -> Vec<u8> {
    let mut end = key.to_vec();
    end.push(0);
    end
}

/// The end of a range in the API's terms: empty for one key, a zero byte for "to the last key".
fn end_of(key: &[u8], range_end: &[u8]) -> Option<Vec<u8>> {
    match range_end {
        [] => Some(after(key)),
        [0] => None,
        end => Some(end.to_vec()),
    }
}

/// A set of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySet {
    /// In order; no two touch each other.
    spans: Vec<Span>,
}

impl KeySet {
    /// The union of ranges in the API's terms. Ranges that touch each other become one, so that a request may reach over
    /// several permissions.
    pub(crate) fn union<'a>(ranges: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut spans: Vec<Span> = ranges
            .into_iter()
            .map(|(key, range_end)| Span { start: key.to_vec(), end: end_of(key, range_end) })
            .filter(|span| span.end.as_ref().is_none_or(|end| *end > span.start))
            .collect();
        spans.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            let Some(last) = merged.last_mut() else {
                merged.push(span);
                continue;
            };
            match (&last.end, &span.end) {
                (None, _) => {}
                (Some(end), _) if *end < span.start => merged.push(span),
                (Some(_), None) => last.end = None,
                (Some(end), Some(further)) if further > end => last.end.clone_from(&span.end),
                _ => {}
            }
        }
        Self { spans: merged }
    }

    /// Whether every key of a range in the API's terms is in the set. A range that holds nothing counts as its first
    /// key: who may not touch that is told so, whatever the end.
    pub(crate) fn contains(&self, key: &[u8], range_end: &[u8]) -> bool {
        let end = end_of(key, range_end).filter(|end| &end[..] > key);
        let to_the_last = end.is_none() && range_end == [0];
        let end = end.unwrap_or_else(|| after(key));
        let at = self.spans.partition_point(|span| &span.start[..] <= key);
        let Some(span) = at.checked_sub(1).map(|at| &self.spans[at]) else { return false };
        match &span.end {
            None => true,
            Some(last) => !to_the_last && end <= *last,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(&str, &str)]) -> KeySet {
        KeySet::union(ranges.iter().map(|(k, e)| (k.as_bytes(), e.as_bytes())))
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let set = set(&[("a", "c"), ("c", "e"), ("k", ""), ("x", "\0")]);
        for (key, end, inside) in [
            ("a", "", true),
            ("a", "e", true),
            ("b", "d", true),
            ("e", "", false),
            ("d", "f", false),
            ("k", "", true),
            ("k\0", "", false),
            ("k", "l", false),
            ("x", "\0", true),
            ("zzz", "\0", true),
            ("w", "\0", false),
            ("\0", "\0", false),
            // Empty ranges.
            ("b", "a", true),
            ("f", "a", false),
        ] {
            assert_eq!(set.contains(key.as_bytes(), end.as_bytes()), inside, "{key:?} {end:?}");
        }
        assert!(!KeySet::default().contains(b"a", b""));
        assert!(self::set(&[("", "\0")]).contains(b"\0", b"\0"));
        assert!(!self::set(&[("b", "a")]).contains(b"b", b""), "a permission that holds nothing");
    }

    fn bound() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..4, 0..3)
    }

    /// All keys of up to three bytes out of five, which has one between any two bounds.
    fn keys() -> Vec<Vec<u8>> {
        let mut all = vec![vec![]];
        for length in 0..4 {
            let longer: Vec<_> = all
                .iter()
                .filter(|k| k.len() == length)
                .flat_map(|k| (0..5).map(|b| [&k[..], &[b]].concat()))
                .collect();
            all.extend(longer);
        }
        all
    }

    fn covers(key: &[u8], range_end: &[u8], probe: &[u8]) -> bool {
        match range_end {
            [] => probe == key,
            [0] => probe >= key,
            end => key <= probe && probe < end,
        }
    }

    proptest! {
        #[test]
        fn as_a_naive_set(ranges in prop::collection::vec((bound(), bound()), 0..5), ask in (bound(), bound())) {
            let set = KeySet::union(ranges.iter().map(|(k, e)| (&k[..], &e[..])));
            let (key, end) = ask;
            let mut asked: Vec<_> = keys().into_iter().filter(|k| covers(&key, &end, k)).collect();
            if asked.is_empty() {
                asked.push(key.clone());
            }
            let naive = asked.iter().all(|k| ranges.iter().any(|(s, e)| covers(s, e, k)));
            prop_assert_eq!(set.contains(&key, &end), naive);
        }
    }
}
