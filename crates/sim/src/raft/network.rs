//! A simulated network: loses, delays, doubles, reorders, and cuts links one way or both. All groups share its links.

use std::collections::BTreeSet;

use pontoon_raft_core::StoreId;

use super::profile::Profile;
use super::rng::Rng;

/// Which links are cut, and how bad the rest is.
#[derive(Debug, Default)]
pub struct Network {
    /// Cut links, by direction.
    cut: BTreeSet<(StoreId, StoreId)>,
    /// The weather is over.
    pub healed: bool,
}

impl Network {
    /// Whether anything from `from` reaches `to`.
    pub fn connected(&self, from: StoreId, to: StoreId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: StoreId, to: StoreId) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    /// Mends one direction.
    pub fn join(&mut self, from: StoreId, to: StoreId) {
        self.cut.remove(&(from, to));
    }

    /// Mends every link.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// The delays after which copies of a message arrive; none: it is lost.
    pub fn arrivals(&self, rng: &mut Rng, profile: &Profile, from: StoreId, to: StoreId) -> Vec<u64> {
        if self.healed {
            // In order, as on a good stream: small windows catch up only so.
            return vec![2];
        }
        if !self.connected(from, to) || rng.chance(profile.loss) {
            return Vec::new();
        }
        let delay = |rng: &mut Rng| {
            let usual = rng.between(1, profile.delay_ms_max);
            if rng.chance(profile.straggling) {
                usual + rng.below(20 * profile.delay_ms_max + 200)
            } else {
                usual
            }
        };
        let mut arrivals = vec![delay(rng)];
        if rng.chance(profile.duplication) {
            arrivals.push(delay(rng));
        }
        arrivals
    }
}
