//! What `current` says of the keys that were written lately, in memory.
//!
//! Every put has to know what it supersedes. Keys that are written are mostly written again soon, and a look-up in the
//! engine walks a skip list of cold memory; this answers from one hash table instead. It is bounded for the whole store,
//! and holds nothing that the engine does not.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::mvcc::records::Current;

/// Heads of one generation and shard; there are two generations.
const GENERATION_MAX: usize = 4096;
const SHARDS: usize = 8;
/// Longer keys are looked up in the engine, so that the bound on heads bounds the bytes too: at most 16 MiB of keys.
const KEY_BYTES_MAX: usize = 256;

/// The heads of all keyspaces of a store.
#[derive(Debug, Default)]
pub(crate) struct Heads([Mutex<Shard>; SHARDS]);

/// Two generations: what is found in the older one moves to the younger one, and when that is full the older one is
/// dropped. So a head that is used stays, without a list to keep in order.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<(u64, Bytes), Current>,
    old: HashMap<(u64, Bytes), Current>,
}

impl Heads {
    /// What is known of a key. `None` says nothing: the key may be there or not.
    pub(crate) fn find(&self, slot: u64, key: &Bytes) -> Option<Current> {
        (key.len() <= KEY_BYTES_MAX).then(|| self.shard(slot, key).find(slot, key))?
    }

    /// Notes what was committed.
    pub(crate) fn note(&self, slot: u64, key: &Bytes, head: Option<Current>) {
        if key.len() <= KEY_BYTES_MAX {
            self.shard(slot, key).note(slot, key, head);
        }
    }

    /// The checksum is used as a quick hash; the lock is held for moments and hardly ever waited for.
    fn shard(&self, slot: u64, key: &[u8]) -> MutexGuard<'_, Shard> {
        let at = (u64::from(crc32c::crc32c(key)) ^ slot) as usize % SHARDS;
        self.0[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn find(&mut self, slot: u64, key: &Bytes) -> Option<Current> {
        let key = (slot, key.clone());
        if let Some(head) = self.young.get(&key) {
            return Some(*head);
        }
        // With the key that is stored, which is a copy.
        let (key, head) = self.old.remove_entry(&key)?;
        self.add(key, head);
        Some(head)
    }

    fn note(&mut self, slot: u64, key: &Bytes, head: Option<Current>) {
        match head {
            Some(head) => {
                if let Some(known) = self.young.get_mut(&(slot, key.clone())) {
                    *known = head;
                    return;
                }
                // A copy: the key is a slice of the command, which must not be kept alive by it.
                let key = (slot, Bytes::copy_from_slice(key));
                self.old.remove(&key);
                self.add(key, head);
            }
            None => {
                let key = (slot, key.clone());
                self.young.remove(&key);
                self.old.remove(&key);
            }
        }
    }

    fn add(&mut self, key: (u64, Bytes), head: Current) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::records::Revision;

    fn head(main: i64) -> Current {
        Current { revision: Revision { main, sub: 0 }, create: 1, version: main, lease: 0 }
    }

    #[test]
    fn knows_the_newest_forgets_the_deleted_and_stays_bounded() {
        let mut shard = Shard::default();
        let key = |n: usize| Bytes::from(format!("k{n}"));
        shard.note(1, &key(0), Some(head(2)));
        shard.note(1, &key(0), Some(head(3)));
        assert_eq!(shard.find(1, &key(0)), Some(head(3)));
        assert_eq!(shard.find(2, &key(0)), None, "another slot");
        for n in 1..3 * GENERATION_MAX {
            shard.note(1, &key(n), Some(head(1)));
            assert_eq!(shard.find(1, &key(0)), Some(head(3)), "used, so it stays");
        }
        assert!(shard.young.len() + shard.old.len() <= 2 * GENERATION_MAX);
        assert_eq!(shard.find(1, &key(1)), None, "not used, so it went");
        shard.note(1, &key(0), None);
        assert_eq!(shard.find(1, &key(0)), None);
    }
}
