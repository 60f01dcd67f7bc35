//! A queue in which each waits at most once, and from which anybody may leave.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(crate) struct Fifo<K> {
    by_turn: BTreeMap<u64, K>,
    turns: BTreeMap<K, u64>,
    next: u64,
}

impl<K> Default for Fifo<K> {
    fn default() -> Self {
        Self { by_turn: BTreeMap::new(), turns: BTreeMap::new(), next: 0 }
    }
}

impl<K: Ord + Copy> Fifo<K> {
    /// Goes to the end, or stays where it is.
    pub(crate) fn join(&mut self, key: K) {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.turns.entry(key) {
            vacant.insert(self.next);
            self.by_turn.insert(self.next, key);
            self.next += 1;
        }
    }

    pub(crate) fn pop(&mut self) -> Option<K> {
        let (_, key) = self.by_turn.pop_first()?;
        self.turns.remove(&key);
        Some(key)
    }

    pub(crate) fn leave(&mut self, key: K) {
        if let Some(turn) = self.turns.remove(&key) {
            self.by_turn.remove(&turn);
        }
    }

    pub(crate) fn contains(&self, key: K) -> bool {
        self.turns.contains_key(&key)
    }

    pub(crate) fn len(&self) -> usize {
        self.turns.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.by_turn.values().copied()
    }
}
