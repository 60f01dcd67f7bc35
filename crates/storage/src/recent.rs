//! The last batches, in memory as they were encoded: what the writer has not made durable yet, and behind that what
//! readers will ask for soon.
//!
//! Batches come and go as a whole, in order, so that neither end costs anything for the groups and entries in them.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a batch takes beyond its bytes: its place in the list, and what the allocator and the shared bytes keep.
const BATCH_OVERHEAD_BYTES: u64 = 96;

/// The last batches, by number.
#[derive(Debug)]
pub(crate) struct Recent {
    /// The number of the first that is here.
    first: u64,
    batches: VecDeque<Bytes>,
    bytes: u64,
}

impl Recent {
    /// None yet; `next` is the number of the first to come.
    pub(crate) fn new(next: u64) -> Self {
        Self { first: next, batches: VecDeque::new(), bytes: 0 }
    }

    /// Takes the next batch.
    pub(crate) fn push(&mut self, batch: Bytes) {
        self.bytes += batch.len() as u64 + BATCH_OVERHEAD_BYTES;
        self.batches.push_back(batch);
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Bytes> {
        self.batches.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// What they take in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives up the oldest until the rest takes at most `bytes_max`, but none after `durable`: the journal may not
    /// have those. Returns what is given up, to be freed outside the store's lock.
    pub(crate) fn evict(&mut self, durable: u64, bytes_max: u64) -> Vec<Bytes> {
        let mut gone = Vec::new();
        while self.bytes > bytes_max && self.first <= durable {
            let Some(batch) = self.batches.pop_front() else { break };
            self.bytes -= batch.len() as u64 + BATCH_OVERHEAD_BYTES;
            self.first += 1;
            gone.push(batch);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_what_is_not_durable_stays() {
        let mut recent = Recent::new(10);
        for n in 10..20u8 {
            recent.push(vec![n; 100].into());
        }
        assert_eq!(recent.bytes(), 10 * (100 + BATCH_OVERHEAD_BYTES));
        assert!(recent.evict(19, recent.bytes()).is_empty());
        assert_eq!(recent.evict(19, recent.bytes() - 1).len(), 1);
        assert_eq!((recent.get(10), recent.get(9), recent.get(20)), (None, None, None));
        assert_eq!(recent.get(11).unwrap()[0], 11);
        assert_eq!(recent.evict(14, 0).len(), 4, "11 to 14");
        assert_eq!(recent.get(15).unwrap()[0], 15);
        assert_eq!(recent.evict(19, 0).len(), 5);
        assert_eq!(recent.bytes(), 0);
        recent.push(Bytes::from_static(b"x"));
        assert_eq!(recent.get(20).unwrap(), "x");
    }
}
