//! Maps and sets by group. Group ids are given out by this cluster and not by those who send to it, so they need no hash that
//! resists being chosen badly; and there are several look-ups for each message that is sent.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use pontoon_raft_core::types::GroupId;

pub(crate) type GroupMap<V> = HashMap<GroupId, V, BuildHasherDefault<GroupHasher>>;
pub(crate) type GroupSet = HashSet<GroupId, BuildHasherDefault<GroupHasher>>;

/// 2^64 divided by the golden ratio: numbers that follow each other end far from each other.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies.
#[derive(Debug, Default)]
pub(crate) struct GroupHasher(u64);

impl Hasher for GroupHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(SPREAD);
    }

    fn finish(&self) -> u64 {
        // A map looks at both ends, and a product's low bits know nothing of the high ones of its factor.
        self.0 ^ self.0.rotate_left(32)
    }
}
