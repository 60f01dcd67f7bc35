//! How keys and values look in the engine; `mvcc/keys.rs` makes the keys.
//!
//! | fjall keyspace | key | value |
//! |---|---|---|
//! | `current` | slot, key | [`Current`]: what is there now; deleted keys are absent |
//! | `history` | slot, main, sub | [`Version`]: one change of one key, deletions included |
//! | `index`   | slot, escaped key, main, sub | nothing: a deletion, or a version that [`is_milestone`] |
//!
//! A put writes two records, every sixteenth overwrite of a key a third. Each version names the one that it superseded.
//! A read at the current revision never touches `index`. A read in the past finds there the first milestone after its
//! revision, or else the current version, and follows the names from it: sixteen steps at most. And compaction walks
//! `history` by revision, so that what it costs depends on how much happened since the last one, not on how much there
//! is.

use bytes::Bytes;

use crate::error::StoreError;

/// The position of one change: the keyspace's revision, and the place within the transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

/// The largest key. The engine takes 64 KiB, the index needs twice the key in the worst case.
pub(crate) const KEY_BYTES_MAX: usize = 32 * 1024 - 64;

/// What `history` keys cost beside the value, for the accounting of sizes. The same on all stores, whatever the slot.
pub(crate) const HISTORY_KEY_BYTES: usize = 16;

/// Whether the `version`-th version of a key has an `index` record. The number decides how many steps a read in the
/// past takes at most, and which share of overwrites pays for the record. Deletions always have one.
pub(crate) fn is_milestone(version: i64) -> bool {
    version % 16 == 0
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads a varint and moves `input` behind it.
pub(crate) fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            // The tenth byte has room for one bit only.
            return (shift < 63 || byte <= 1).then_some(n);
        }
    }
    None
}

fn take_i64(input: &mut &[u8]) -> Option<i64> {
    take_varint(input).map(u64::cast_signed)
}

/// What `current` says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) revision: Revision,
    pub(crate) create: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

impl Current {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.revision.main.cast_unsigned());
        put_varint(out, u64::from(self.revision.sub));
        // The distance is shorter than the number.
        put_varint(out, self.revision.main.wrapping_sub(self.create).cast_unsigned());
        put_varint(out, self.version.cast_unsigned());
        put_varint(out, self.lease.cast_unsigned());
    }

    pub(crate) fn decode(mut input: &[u8]) -> Result<Self, StoreError> {
        let mut fields = || {
            let main = take_i64(&mut input)?;
            let sub = u32::try_from(take_varint(&mut input)?).ok()?;
            let create = main.wrapping_sub(take_i64(&mut input)?);
            let version = take_i64(&mut input)?;
            let lease = take_i64(&mut input)?;
            Some(Self { revision: Revision { main, sub }, create, version, lease })
        };
        fields().ok_or_else(|| StoreError::damaged("current: a record is cut short"))
    }
}

const FLAG_DELETION: u8 = 1;
const FLAG_SUPERSEDES: u8 = 2;

/// One change of one key, as `history` has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version<'a> {
    /// The key was deleted; `create`, `version`, `lease` and `value` are empty.
    pub(crate) deletion: bool,
    pub(crate) create: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    /// The version that this one superseded; none if the key was not there.
    pub(crate) superseded: Option<Revision>,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Version<'a> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        if self.deletion {
            flags |= FLAG_DELETION;
        }
        if self.superseded.is_some() {
            flags |= FLAG_SUPERSEDES;
        }
        out.push(flags);
        put_varint(out, self.create.cast_unsigned());
        put_varint(out, self.version.cast_unsigned());
        put_varint(out, self.lease.cast_unsigned());
        if let Some(r) = self.superseded {
            put_varint(out, r.main.cast_unsigned());
            put_varint(out, u64::from(r.sub));
        }
        put_varint(out, self.key.len() as u64);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }

    pub(crate) fn decode(record: &'a [u8]) -> Result<Self, StoreError> {
        let mut input = record;
        let mut fields = || {
            let (&flags, rest) = input.split_first()?;
            input = rest;
            let create = take_i64(&mut input)?;
            let version = take_i64(&mut input)?;
            let lease = take_i64(&mut input)?;
            let superseded = if flags & FLAG_SUPERSEDES != 0 {
                let main = take_i64(&mut input)?;
                Some(Revision { main, sub: u32::try_from(take_varint(&mut input)?).ok()? })
            } else {
                None
            };
            let key_len = usize::try_from(take_varint(&mut input)?).ok()?;
            let (key, value) = input.split_at_checked(key_len)?;
            (flags & !(FLAG_DELETION | FLAG_SUPERSEDES) == 0).then_some(Self {
                deletion: flags & FLAG_DELETION != 0,
                create,
                version,
                lease,
                superseded,
                key,
                value,
            })
        };
        fields().ok_or_else(|| StoreError::damaged("history: a record is cut short"))
    }
}

/// A `history` record as the API shows it. The bytes are copied once: a record may be a slice of a whole block.
pub(crate) fn key_value(
    revision: Revision,
    record: &[u8],
    with_value: bool,
) -> Result<pontoon_proto::mvccpb::KeyValue, StoreError> {
    let v = Version::decode(record)?;
    let tail = record.len() - v.key.len() - v.value.len();
    let end = if with_value { record.len() } else { tail + v.key.len() };
    let bytes = Bytes::copy_from_slice(&record[tail..end]);
    let key = bytes.slice(..v.key.len());
    let value = bytes.slice(v.key.len()..);
    Ok(pontoon_proto::mvccpb::KeyValue {
        key,
        create_revision: v.create,
        mod_revision: revision.main,
        version: v.version,
        value,
        lease: v.lease,
    })
}

/// The keys that a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyRange<'a> {
    /// One key.
    One(&'a [u8]),
    /// From the first, without the second.
    Between(&'a [u8], &'a [u8]),
    /// From this on.
    From(&'a [u8]),
}

impl<'a> KeyRange<'a> {
    /// etcd's reading of `key` and `range_end`.
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }

    pub(crate) fn start(&self) -> &'a [u8] {
        match self {
            Self::One(k) | Self::Between(k, _) | Self::From(k) => k,
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(k) => *k == key,
            Self::Between(from, end) => *from <= key && key < *end,
            Self::From(from) => *from <= key,
        }
    }

    /// No key can be in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Between(from, end) if from >= end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(254), Just(255)], 1..6)
    }

    proptest! {
        #[test]
        fn varints_round_trip(n: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, n);
            let mut input = &out[..];
            prop_assert_eq!(take_varint(&mut input), Some(n));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn records_round_trip(key in small_key(), value: Vec<u8>, main in 1i64.., sub: u32, lease: i64, again: bool) {
            let current = Current { revision: Revision { main, sub }, create: main / 2, version: 3, lease };
            let mut out = Vec::new();
            current.encode(&mut out);
            prop_assert_eq!(Current::decode(&out).unwrap(), current);
            out.clear();
            let superseded = again.then_some(Revision { main, sub });
            let v = Version { deletion: false, create: 5, version: 6, lease, superseded, key: &key, value: &value };
            v.encode(&mut out);
            let kv = key_value(Revision { main, sub }, &out, true).unwrap();
            prop_assert_eq!((&kv.key[..], &kv.value[..], kv.lease), (&key[..], &value[..], lease));
            prop_assert_eq!(Version::decode(&out).unwrap().superseded, superseded);
            for cut in 0..out.len() - value.len() {
                prop_assert!(Version::decode(&out[..cut]).is_err());
            }
        }

        #[test]
        fn damaged_records_do_not_panic(bytes: Vec<u8>) {
            let _ = Version::decode(&bytes);
            let _ = Current::decode(&bytes);
        }
    }
}
