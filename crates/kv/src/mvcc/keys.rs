//! How keys look in the engine. All integers are big-endian, so that byte order is number order.
//!
//! Every key begins with its slot, in as few bytes as keep the order: the engine keeps keys of up to 20 bytes in place,
//! and each comparison of its skip lists then touches one cache line less.

use std::ops::Deref;

use crate::error::StoreError;
use crate::mvcc::records::Revision;

/// Bytes on the stack: the keys that have a bounded length.
#[derive(Clone, Copy)]
pub(crate) struct ShortKey {
    bytes: [u8; 9 + 12],
    len: u8,
}

impl ShortKey {
    fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

impl Deref for ShortKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for ShortKey {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// What all keys of a slot begin with: how many bytes its number takes, and these bytes.
pub(crate) fn slot_prefix(slot: u64) -> ShortKey {
    let number = slot.to_be_bytes();
    let zeros = (slot.leading_zeros() / 8) as usize;
    let mut key = ShortKey { bytes: [0; 21], len: 0 };
    key.push(&[(8 - zeros) as u8]);
    key.push(&number[zeros..]);
    key
}

/// A key without its slot.
pub(crate) fn after_slot(key: &[u8]) -> &[u8] {
    key.split_first().and_then(|(&len, rest)| rest.get(usize::from(len)..)).unwrap_or_default()
}

/// The key of a version in `history`.
pub(crate) fn history_key(slot: u64, r: Revision) -> ShortKey {
    let mut key = slot_prefix(slot);
    key.push(&r.main.to_be_bytes());
    key.push(&r.sub.to_be_bytes());
    key
}

/// The revision in the last 12 bytes of a `history` or `index` key.
pub(crate) fn revision_of(key: &[u8]) -> Result<Revision, StoreError> {
    let fields = || {
        let (_, tail) = key.split_last_chunk::<12>()?;
        let main = i64::from_be_bytes(tail[..8].try_into().ok()?);
        let sub = u32::from_be_bytes(tail[8..].try_into().ok()?);
        Some(Revision { main, sub })
    };
    fields().ok_or_else(|| StoreError::damaged("a key is too short to hold a revision"))
}

/// The key of a lease's record, or what the keys of its attachments begin with.
pub(crate) fn lease_key(slot: u64, kind: u8, id: i64) -> ShortKey {
    let mut key = slot_prefix(slot);
    key.push(&[kind]);
    key.push(&id.to_be_bytes());
    key
}

/// Writes the key of `current` into `out`.
pub(crate) fn current_key(out: &mut Vec<u8>, slot: u64, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&slot_prefix(slot));
    out.extend_from_slice(key);
}

/// Appends `key` so that order is kept and no key is a prefix of another: 0 becomes 0, 255.
fn escape(out: &mut Vec<u8>, key: &[u8]) {
    let mut rest = key;
    while let Some(at) = rest.iter().position(|&b| b == 0) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[0, 255]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// What ends a key in `index`: less than any continuation of the key.
const END_OF_KEY: [u8; 2] = [0, 1];

/// Writes slot and escaped key, without the end mark: a bound in `index` for keys at or after `key`.
pub(crate) fn index_bound(out: &mut Vec<u8>, slot: u64, key: &[u8]) {
    out.clear();
    out.extend_from_slice(&slot_prefix(slot));
    escape(out, key);
}

/// Writes what all versions of `key` in `index` begin with.
pub(crate) fn index_prefix(out: &mut Vec<u8>, slot: u64, key: &[u8]) {
    index_bound(out, slot, key);
    out.extend_from_slice(&END_OF_KEY);
}

/// Writes the key of a version in `index`.
pub(crate) fn index_key(out: &mut Vec<u8>, slot: u64, key: &[u8], r: Revision) {
    index_prefix(out, slot, key);
    out.extend_from_slice(&r.main.to_be_bytes());
    out.extend_from_slice(&r.sub.to_be_bytes());
}

/// What an `index` key begins with before its revision: equal for all versions of a key.
pub(crate) fn key_part_of_index(index_key: &[u8]) -> &[u8] {
    &index_key[..index_key.len().saturating_sub(12)]
}

/// Writes the plain key out of an `index` key.
pub(crate) fn key_of_index(out: &mut Vec<u8>, index_key: &[u8]) -> Result<(), StoreError> {
    out.clear();
    let damaged = || StoreError::damaged("index: a key without its end mark");
    let escaped = after_slot(key_part_of_index(index_key));
    let mut rest = escaped.strip_suffix(&END_OF_KEY).ok_or_else(damaged)?;
    while let Some(at) = rest.iter().position(|&b| b == 0) {
        out.extend_from_slice(&rest[..=at]);
        rest = rest.get(at + 2..).ok_or_else(damaged)?;
    }
    out.extend_from_slice(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(254), Just(255)], 1..6)
    }

    fn slot() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64).prop_map(|(n, shift)| n >> shift)
    }

    proptest! {
        #[test]
        fn slots_keep_their_order_and_no_prefix_begins_another(a in slot(), b in slot()) {
            let (x, y) = (slot_prefix(a), slot_prefix(b));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert!(a == b || !y.starts_with(&x));
        }

        #[test]
        fn history_keys_keep_the_order_of_slots_then_revisions(
            a in slot(), b in slot(), r in 0i64.., s in 0i64.., sub: u32,
        ) {
            let (r, s) = (Revision { main: r, sub }, Revision { main: s, sub: 7 });
            let (x, y) = (history_key(a, r), history_key(b, s));
            prop_assert_eq!(x.cmp(&y), (a, r).cmp(&(b, s)));
            prop_assert_eq!(revision_of(&x).unwrap(), r);
            prop_assert_eq!(after_slot(&x).len(), 12);
        }

        #[test]
        fn index_keys_keep_the_order_of_keys_then_revisions(
            slot in slot(), a in small_key(), b in small_key(), r: u8, s: u8,
        ) {
            let (mut x, mut y, mut plain) = (Vec::new(), Vec::new(), Vec::new());
            let (r, s) = (Revision { main: i64::from(r), sub: 0 }, Revision { main: i64::from(s), sub: 7 });
            index_key(&mut x, slot, &a, r);
            index_key(&mut y, slot, &b, s);
            prop_assert_eq!(x.cmp(&y), (&a, r).cmp(&(&b, s)));
            prop_assert_eq!(key_part_of_index(&x) == key_part_of_index(&y), a == b);
            key_of_index(&mut plain, &x).unwrap();
            prop_assert_eq!(&plain, &a);
            prop_assert_eq!(revision_of(&x).unwrap(), r);
            // A bound without the end mark splits keys exactly.
            index_bound(&mut y, slot, &b);
            prop_assert_eq!(x >= y, a >= b);
        }

        #[test]
        fn damaged_keys_do_not_panic(bytes: Vec<u8>) {
            let _ = key_of_index(&mut Vec::new(), &bytes);
            let _ = revision_of(&bytes);
            let _ = after_slot(&bytes);
        }
    }
}
