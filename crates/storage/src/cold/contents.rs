//! What the cold tier holds, as one number: kept in the tier itself, in the same batch as each change, and compared with
//! a full count when the store is opened.
//!
//! sled checks its records one by one. It does not notice a whole record that went missing, and on a disk that reorders
//! what was not synced it may reuse the place of a record whose successor never arrived. With the sum, a group that
//! vanished or went back in time is damage that is named, not a store that knows less than it promised.

use crate::codec::{self, DecodeError, Decoder};

/// A sum over all keys and values but the one it is kept under. The order does not matter, so it follows each change
/// without a look at the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    hash: u64,
    pub(crate) keys: u64,
    /// Bytes of keys and values.
    pub(crate) bytes: u64,
}

/// Of one key and its value; part of the format. It has to notice accidents, not enemies.
fn hash(key: &[u8], value: &[u8]) -> u64 {
    let mut h = key.len() as u64;
    let mut mix = |word: u64| {
        h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 32;
    };
    for part in [key, value] {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(u64::from_le_bytes(last) ^ (part.len() as u64) << 56);
    }
    h
}

impl Contents {
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.hash = self.hash.wrapping_add(hash(key, value));
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    pub(crate) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.hash = self.hash.wrapping_sub(hash(key, value));
        // Only what was added is removed. If that were ever broken, the next opening has to say so, not a panic here.
        self.keys = self.keys.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((key.len() + value.len()) as u64);
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        codec::put_u64(&mut out, self.hash);
        codec::put_u64(&mut out, self.keys);
        codec::put_u64(&mut out, self.bytes);
        codec::sealed(&out)
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(codec::unsealed(value)?);
        Ok(Self { hash: d.u64()?, keys: d.u64()?, bytes: d.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_changes_does_not_matter_and_every_difference_does() {
        let (mut a, mut b) = (Contents::default(), Contents::default());
        a.add(b"k", b"1");
        a.add(b"other", b"");
        a.remove(b"k", b"1");
        a.add(b"k", b"2");
        b.add(b"k", b"2");
        b.add(b"other", b"");
        assert_eq!(a, b);
        assert_eq!(Contents::decode(&a.encode()), Ok(a));
        // The same bytes, cut elsewhere, under another key, or with zeroes behind them.
        for (key, value) in
            [(&b"k2"[..], &b""[..]), (b"", b"k2"), (b"k", b"2\0"), (b"k\0", b"2"), (b"2", b"k")]
        {
            assert_ne!(hash(key, value), hash(b"k", b"2"));
        }
    }

    /// The number is kept on disk.
    #[test]
    fn the_hash_is_that_of_the_format() {
        assert_eq!(hash(b"e\0\0\0\0\0\0\0\x01", b"value"), GOLDEN);
    }
    const GOLDEN: u64 = 1_970_374_842_226_669_197;
}
