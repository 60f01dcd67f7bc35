//! The states that were seen, and those that are seen with them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::model::Bounds;
use super::world::World;

/// A digest is its own hash.
#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only digests are hashed");
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// What of a state is only more or less of the same.
#[derive(Debug)]
struct Rest {
    left: Bounds,
    /// Digests of messages, in order.
    network: Box<[u64]>,
}

impl Rest {
    /// Whether whatever can follow from `other` can follow from this one.
    fn covers(&self, other: &Self) -> bool {
        self.left.covers(&other.left) && contains(&self.network, &other.network)
    }
}

/// Whether the multiset `most` contains `least`; both are in order.
fn contains(most: &[u64], least: &[u64]) -> bool {
    if least.len() > most.len() {
        return false;
    }
    let mut most = most.iter();
    least.iter().all(|wanted| most.find(|found| *found >= wanted) == Some(wanted))
}

/// The states that were seen. Of those with the same replicas only the ones are kept that no other one covers.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<u64, Vec<Rest>, BuildHasherDefault<Identity>>);

impl Seen {
    /// Whether nothing that was seen covers `world`, which is seen from now on.
    pub(super) fn is_news(&mut self, world: &World) -> bool {
        let rest = Rest { left: *world.left(), network: world.network().collect() };
        let known = self.0.entry(world.digest()).or_default();
        if known.iter().any(|known| known.covers(&rest)) {
            return false;
        }
        known.retain(|known| !rest.covers(known));
        known.push(rest);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against counting.
        #[test]
        fn a_multiset_contains_another(
            mut most in prop::collection::vec(0u64..5, 0..8),
            mut least in prop::collection::vec(0u64..5, 0..6),
        ) {
            most.sort_unstable();
            least.sort_unstable();
            let count = |of: &[u64], n| of.iter().filter(|m| **m == n).count();
            let expected = (0..5).all(|n| count(&least, n) <= count(&most, n));
            prop_assert_eq!(contains(&most, &least), expected);
        }
    }

    #[test]
    fn more_of_anything_covers_less() {
        let rest = |timeouts, crashes, network: &[u64]| Rest {
            left: Bounds { timeouts, crashes, ..Bounds::default() },
            network: network.into(),
        };
        assert!(rest(1, 1, &[3, 4]).covers(&rest(1, 1, &[3, 4])));
        assert!(rest(2, 1, &[3, 4, 4]).covers(&rest(1, 1, &[4])));
        assert!(!rest(2, 0, &[3, 4]).covers(&rest(1, 1, &[])));
        assert!(!rest(1, 1, &[3, 4]).covers(&rest(1, 1, &[4, 4])));
    }
}
