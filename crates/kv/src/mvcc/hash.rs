//! Hashes by which stores compare their states.
//!
//! The hash of a set of versions is the sum of their hashes. So what a compaction gave up, but the background has not
//! removed yet, is taken off by subtraction, and the result does not depend on how far the removal has come.

use fjall::Readable;

use crate::error::StoreError;
use crate::mvcc::compaction;
use crate::mvcc::keys;
use crate::mvcc::once;
use crate::mvcc::records::{Revision, Version};
use crate::mvcc::state::Picture;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// One round of multiply and fold (as in wyhash): every bit of the input reaches every bit of the result.
fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a ^ SEED) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// A 64-bit hash that stays the same across versions and machines.
fn hash_bytes(mut state: u64, bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        state = mix(state, u64::from_le_bytes(*chunk));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), bytes.len() as u64)
}

fn version_hash(r: Revision, record: &[u8]) -> u64 {
    hash_bytes(mix(r.main.cast_unsigned(), u64::from(r.sub)), record)
}

/// 64 bits to the 32 that the API has room for.
pub(crate) fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

/// The hash of the versions up to a revision which is not compacted.
pub(crate) fn versions(picture: &Picture<'_>, upto: i64) -> Result<u64, StoreError> {
    let (t, slot) = (picture.tables, picture.slot);
    let mut hash = 0u64;
    let from = Revision { main: 0, sub: 0 };
    for guard in picture.snapshot.range(&t.history, compaction::between(slot, from, upto)) {
        let (key, record) = guard.into_inner()?;
        hash = hash.wrapping_add(version_hash(keys::revision_of(&key)?, &record));
    }
    let cursor = compaction::cursor(&picture.snapshot, t, slot)?.revision;
    if let Some(given_up) = compaction::left(slot, cursor, picture.meta.compact_revision) {
        for guard in picture.snapshot.range(&t.history, given_up) {
            let (key, record) = guard.into_inner()?;
            let version = Version::decode(&record)?;
            if let Some(old) = version.superseded
                && let Some(record) = picture.snapshot.get(&t.history, keys::history_key(slot, old))?
            {
                hash = hash.wrapping_sub(version_hash(old, &record));
            }
            if version.deletion {
                hash = hash.wrapping_sub(version_hash(keys::revision_of(&key)?, &record));
            }
        }
    }
    Ok(hash)
}

/// The hash of all there is to a keyspace.
pub(crate) fn everything(picture: &Picture<'_>) -> Result<u64, StoreError> {
    let mut hash = versions(picture, picture.meta.revision)?;
    hash = mix(hash, picture.meta.revision.cast_unsigned());
    hash = mix(hash, picture.meta.compact_revision.cast_unsigned());
    for guard in picture.snapshot.prefix(&picture.tables.lease, keys::slot_prefix(picture.slot)) {
        let (key, value) = guard.into_inner()?;
        hash = hash_bytes(hash_bytes(hash, keys::after_slot(&key)), &value);
    }
    for record in once::remembered(&picture.snapshot, picture.tables, picture.slot)? {
        let (key, value) = record?;
        hash = hash_bytes(hash_bytes(hash, &key), &value);
    }
    for guard in picture.snapshot.prefix(&picture.tables.control, keys::slot_prefix(picture.slot)) {
        let (key, value) = guard.into_inner()?;
        hash = hash_bytes(hash_bytes(hash, keys::after_slot(&key)), &value);
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_small_differences_apart() {
        let r = Revision { main: 1, sub: 0 };
        let mut seen = std::collections::HashSet::new();
        for bytes in [&b""[..], &[0], &[0, 0], &[0; 8], &[0; 9], b"abcdefgh", b"abcdefghi", b"abcdefgi"] {
            assert!(seen.insert(fold(version_hash(r, bytes))));
            assert!(seen.insert(fold(version_hash(Revision { main: 1, sub: 1 }, bytes))));
        }
    }

    #[test]
    fn the_hash_never_changes() {
        // Stores of different versions compare it: if this fails, give the hash another name.
        assert_eq!(version_hash(Revision { main: 2, sub: 1 }, b"pontoon keyspace"), PINNED);
    }

    const PINNED: u64 = 17_224_957_199_991_762_059;
}
