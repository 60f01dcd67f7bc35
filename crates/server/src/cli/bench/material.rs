//! What requests are made of, built once: keys, values, keyspace names; and the random choice among them.

use bytes::Bytes;
use http::HeaderValue;

use super::Load;

/// How many different values there are; they overlap, so that they cost little memory.
const VALUES: usize = 1024;

/// The SplitMix64 generator: one addition and a few shifts per number.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The generator's `stream`-th stream of this seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        // Neighbouring streams differ in few bits; one step spreads them.
        Self(random.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, below)`.
    pub(super) fn below(&mut self, below: usize) -> usize {
        // The high half of a 128-bit product: no division, and a bias of less than below / 2^64.
        ((u128::from(self.next()) * below as u128) >> 64) as usize
    }
}

/// Keys, values and keyspaces to choose from.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) keys: Vec<Bytes>,
    /// Names of the keyspaces; empty: requests name none.
    pub(super) keyspaces: Vec<String>,
    values: Bytes,
    value_size: usize,
    headers: Vec<HeaderValue>,
}

impl Material {
    pub(super) fn new(load: &Load) -> anyhow::Result<Self> {
        let keyspaces: Vec<_> = (0..load.args.keyspaces).map(|i| format!("bench-{i}")).collect();
        let keys = (load.args.keys / load.args.keyspaces.max(1)).max(1);
        let mut random = Random::new(load.args.seed, u64::MAX);
        let values = (0..load.args.value_size + VALUES).map(|_| random.next() as u8).collect();
        Ok(Self {
            keys: (0..keys).map(|i| Bytes::from(format!("bench/{i:08}"))).collect(),
            headers: keyspaces.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
            keyspaces,
            values,
            value_size: load.args.value_size,
        })
    }

    pub(super) fn key(&self, random: &mut Random) -> Bytes {
        self.keys[random.below(self.keys.len())].clone()
    }

    pub(super) fn value(&self, random: &mut Random) -> Bytes {
        let start = random.below(VALUES);
        self.values.slice(start..start + self.value_size)
    }

    /// The metadata of a random keyspace; `None` when requests name none.
    pub(super) fn keyspace(&self, random: &mut Random) -> Option<&HeaderValue> {
        if self.headers.is_empty() { None } else { self.headers.get(random.below(self.headers.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_stay_in_bounds_and_spread() {
        let mut random = Random::new(1, 0);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10)] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn streams_differ() {
        let first = |stream| Random::new(7, stream).next();
        assert_ne!(first(0), first(1));
        assert_eq!(first(3), first(3));
    }
}
