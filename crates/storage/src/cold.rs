//! The cold tier: what outlives its segment. A small ordered map with real durability, of which there are two: sled,
//! and a plain log of batches on a [`Disk`] that power cuts are simulated with.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use pontoon_raft_core::types::{GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

use crate::codec::{self, DecodeError, Decoder};
use crate::index::GroupIndex;

pub(crate) mod contents;
pub(crate) mod plain;
pub(crate) mod sled;
pub(crate) mod tier;

/// Values are at most this long; larger entries are cut into pieces. sled keeps up to 16 values in one leaf, and puts a
/// leaf over a quarter of its segment size into a file that it never syncs: 16 x 32 KiB stay far below that.
pub(crate) const VALUE_BYTES_MAX: usize = 32 << 10;

const TAG_META: u8 = b'm';
const TAG_ENTRY: u8 = b'e';
const TAG_TOMBSTONE: u8 = b't';
const TAG_NOTE: u8 = b'n';
const TAG_CHECKPOINT: u8 = b'c';
const TAG_JOURNAL: u8 = b'j';
const TAG_CONTENTS: u8 = b's';

/// Changes that are carried out together.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// `None`: the key is removed.
    map: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Bytes of keys and values.
    pub(crate) bytes: usize,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
    /// The last value counts.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.map.insert(key, Some(value));
    }
    /// A value that is put under the same key, before or after, stays: what is removed is always older.
    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.map.entry(key).or_insert(None);
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.map.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }
    pub(crate) fn into_map(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.map
    }
}

/// What is called with each key and value of a scan.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), DecodeError>;

/// An ordered map on disk.
pub(crate) trait Cold: Send + Sync + fmt::Debug {
    /// Carries out all of `changes` or, after a crash, none.
    fn apply(&self, changes: Changes) -> io::Result<()>;
    /// Makes everything applied durable: it survives a power cut.
    fn sync(&self) -> io::Result<()>;
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// The first keys, at most `max`, from `from` to `to` (half-open).
    fn keys(&self, from: &[u8], to: &[u8], max: usize) -> io::Result<Vec<Vec<u8>>>;
    /// The first keys behind `after` and their values, until they have `bytes_max`; at least one if there is one.
    fn page(&self, after: &[u8], bytes_max: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;
    /// Visits all keys in order.
    fn scan(&self, visit: Visit<'_>) -> io::Result<()>;
    /// How much room it takes.
    fn disk_bytes(&self) -> io::Result<u64>;
}

// ---- keys ----

fn group_key(tag: u8, group: GroupId) -> Vec<u8> {
    let mut key = Vec::with_capacity(21);
    key.push(tag);
    key.extend_from_slice(&group.0.to_be_bytes());
    key
}
pub(crate) fn meta_key(group: GroupId) -> Vec<u8> {
    group_key(TAG_META, group)
}
pub(crate) fn tombstone_key(group: GroupId) -> Vec<u8> {
    group_key(TAG_TOMBSTONE, group)
}
/// The first piece has the bare key, later ones a number behind it, so that pieces lie together and in order.
pub(crate) fn entry_key(group: GroupId, index: LogIndex, piece: u32) -> Vec<u8> {
    let mut key = group_key(TAG_ENTRY, group);
    key.extend_from_slice(&index.0.to_be_bytes());
    if piece > 0 {
        key.extend_from_slice(&piece.to_be_bytes());
    }
    key
}
pub(crate) fn note_key(key: &str) -> Vec<u8> {
    let mut out = vec![TAG_NOTE];
    out.extend_from_slice(key.as_bytes());
    out
}
pub(crate) fn checkpoint_key() -> Vec<u8> {
    vec![TAG_CHECKPOINT]
}
pub(crate) fn journal_key() -> Vec<u8> {
    vec![TAG_JOURNAL]
}

pub(crate) fn contents_key() -> Vec<u8> {
    vec![TAG_CONTENTS]
}

/// What a key names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Meta(GroupId),
    Tombstone(GroupId),
    Entry(GroupId, LogIndex, u32),
    Note(String),
    Checkpoint,
    Journal,
    Contents,
}

pub(crate) fn parse_key(key: &[u8]) -> Result<Key, DecodeError> {
    const UNKNOWN: DecodeError = DecodeError("a key is of an unknown kind");
    let number = |at: usize| {
        let bytes = key.get(at..at + 8).ok_or(UNKNOWN)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    };
    match (key.first().copied(), key.len()) {
        (Some(TAG_META), 9) => Ok(Key::Meta(GroupId(number(1)?))),
        (Some(TAG_TOMBSTONE), 9) => Ok(Key::Tombstone(GroupId(number(1)?))),
        (Some(TAG_ENTRY), 17 | 21) => {
            let piece = key.get(17..21).map_or(0, |b| u32::from_be_bytes(b.try_into().expect("four bytes")));
            match number(9)? {
                index if index <= codec::INDEX_MAX => {
                    Ok(Key::Entry(GroupId(number(1)?), LogIndex(index), piece))
                }
                _ => Err(DecodeError("an index is too large")),
            }
        }
        (Some(TAG_NOTE), _) => match std::str::from_utf8(&key[1..]) {
            Ok(text) => Ok(Key::Note(text.to_owned())),
            Err(_) => Err(DecodeError("a note's key is not UTF-8")),
        },
        (Some(TAG_CHECKPOINT), 1) => Ok(Key::Checkpoint),
        (Some(TAG_JOURNAL), 1) => Ok(Key::Journal),
        (Some(TAG_CONTENTS), 1) => Ok(Key::Contents),
        _ => Err(UNKNOWN),
    }
}

// ---- values ----

/// A group as of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Everything up to this batch is in it.
    pub(crate) as_of: u64,
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    pub(crate) commit: LogIndex,
    pub(crate) snapshot: SnapshotMeta,
    pub(crate) last_index: LogIndex,
    pub(crate) last_term: Term,
}

impl Meta {
    pub(crate) fn of(group: &GroupIndex, as_of: u64) -> Self {
        Self {
            as_of,
            replica: group.replica,
            hard_state: group.hard_state,
            commit: group.commit,
            snapshot: group.snapshot(),
            last_index: group.last_index(),
            last_term: group.last_term(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        codec::put_u64(&mut out, self.as_of);
        codec::put_replica(&mut out, self.replica);
        codec::put_hard_state(&mut out, self.hard_state);
        codec::put_u64(&mut out, self.commit.0);
        codec::put_u64(&mut out, self.last_index.0);
        codec::put_u64(&mut out, self.last_term.0);
        codec::put_snapshot(&mut out, &self.snapshot);
        codec::sealed(&out)
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(codec::unsealed(value)?);
        Ok(Self {
            as_of: d.u64()?,
            replica: d.replica()?,
            hard_state: d.hard_state()?,
            commit: d.index()?,
            last_index: d.index()?,
            last_term: Term(d.u64()?),
            snapshot: d.snapshot()?,
        })
    }
}

/// A group that was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) as_of: u64,
    pub(crate) replica: ReplicaId,
}

impl Tombstone {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        codec::put_u64(&mut out, self.as_of);
        codec::put_replica(&mut out, self.replica);
        codec::sealed(&out)
    }
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(codec::unsealed(value)?);
        Ok(Self { as_of: d.u64()?, replica: d.replica()? })
    }
}

pub(crate) fn encode_number(n: u64) -> Vec<u8> {
    codec::sealed(&n.to_le_bytes())
}
pub(crate) fn decode_number(value: &[u8]) -> Result<u64, DecodeError> {
    Decoder::new(codec::unsealed(value)?).u64()
}

/// Puts an encoded entry, in pieces if it is long. Each first piece begins with the length of the whole.
pub(crate) fn put_entry(changes: &mut Changes, group: GroupId, index: LogIndex, bytes: &[u8]) {
    let first = bytes.len().min(VALUE_BYTES_MAX);
    let mut value = Vec::with_capacity(4 + first);
    codec::put_u32(&mut value, bytes.len() as u32);
    value.extend_from_slice(&bytes[..first]);
    changes.put(entry_key(group, index, 0), value);
    for (piece, part) in bytes[first..].chunks(VALUE_BYTES_MAX).enumerate() {
        changes.put(entry_key(group, index, piece as u32 + 1), part.to_vec());
    }
}

/// How many pieces an entry of this encoded length has.
pub(crate) fn pieces(encoded_len: usize) -> u32 {
    encoded_len.div_ceil(VALUE_BYTES_MAX).max(1) as u32
}

/// Reads an encoded entry, if it is there and whole.
pub(crate) fn get_entry(cold: &dyn Cold, group: GroupId, index: LogIndex) -> io::Result<Option<Vec<u8>>> {
    let Some(first) = cold.get(&entry_key(group, index, 0))? else {
        return Ok(None);
    };
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "a cold entry is not whole");
    let mut d = Decoder::new(&first);
    let len = d.u32().map_err(|_| bad())? as usize;
    let mut bytes = first[4..].to_vec();
    for piece in 1..pieces(len) {
        let Some(part) = cold.get(&entry_key(group, index, piece))? else {
            return Err(bad());
        };
        bytes.extend_from_slice(&part);
    }
    if bytes.len() == len { Ok(Some(bytes)) } else { Err(bad()) }
}
