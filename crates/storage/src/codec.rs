//! Bytes of entries and of group changes. All numbers are little-endian; see `docs/src/journal-format.md`.
//!
//! Decoding never trusts a length: it is compared with what is left before anything is allocated.

use std::collections::BTreeSet;

use bytes::Bytes;
use pontoon_raft_core::types::{
    Configuration, ENTRY_OVERHEAD_BYTES, Entry, EntryId, GroupId, HardState, LogIndex, Payload, ReplicaId,
    SnapshotMeta, StoreId, Term,
};

use crate::batch::GroupWrite;

/// Bytes of an encoded entry before its data: crc u32, data length u32, term u64, id u128, kind u8.
pub(crate) const ENTRY_HEAD: usize = 33;
/// Encoded entries are shorter than this: the index keeps 30 bits of length.
pub(crate) const ENTRY_BYTES_MAX: usize = 1 << 30;

const TAG_BATCH: u8 = 0;
const TAG_GROUP: u8 = 1;
const TAG_NOTE: u8 = 2;
const TAG_LEADS: u8 = 3;

const HAS_CREATE: u8 = 1;
const HAS_HARD_STATE: u8 = 1 << 1;
const HAS_SNAPSHOT: u8 = 1 << 2;
const HAS_TRUNCATE: u8 = 1 << 3;
const HAS_ENTRIES: u8 = 1 << 4;
const HAS_COMMIT: u8 = 1 << 5;
const HAS_COMPACT: u8 = 1 << 6;
const IS_DESTROY: u8 = 1 << 7;

/// What an entry is, in two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Noop = 0,
    Command = 1,
    Configuration = 2,
    ElectionTimer = 3,
}

impl Kind {
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Noop,
            1 => Self::Command,
            2 => Self::Configuration,
            3 => Self::ElectionTimer,
            _ => return None,
        })
    }
}

/// Length and kind of an encoded entry, in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(u32);

impl Shape {
    /// Of an entry that nothing is known of.
    pub(crate) const MISSING: Self = Self((ENTRY_HEAD as u32) << 2);

    pub(crate) fn new(encoded_len: usize, kind: Kind) -> Self {
        debug_assert!(encoded_len < ENTRY_BYTES_MAX);
        Self((encoded_len as u32) << 2 | kind as u32)
    }

    pub(crate) fn encoded_len(self) -> usize {
        (self.0 >> 2) as usize
    }

    pub(crate) fn is_configuration(self) -> bool {
        self.0 & 3 == Kind::Configuration as u32
    }

    /// The same as [`Entry::size_bytes`] of the entry.
    pub(crate) fn size_bytes(self) -> u64 {
        let data = (self.encoded_len() - ENTRY_HEAD) as u64;
        ENTRY_OVERHEAD_BYTES
            + match self.0 & 3 {
                1 => data,
                // One flag byte and four counts of two bytes; the rest is 16 bytes per member.
                2 => data - 9,
                _ => 0,
            }
    }
}

/// Where an encoded entry lies within the bytes it was written with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) term: Term,
    pub(crate) offset: u32,
    pub(crate) shape: Shape,
}

/// A group's changes without the entries' contents: all that the index needs.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) group: GroupId,
    pub(crate) create: Option<ReplicaId>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) truncate_from: Option<LogIndex>,
    /// Index of the first of `slots`.
    pub(crate) first: LogIndex,
    pub(crate) slots: Vec<Slot>,
    pub(crate) commit: Option<LogIndex>,
    pub(crate) compact: Option<SnapshotMeta>,
    pub(crate) destroy: bool,
}

/// One item of a record's body.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one turn of a loop, and the large one is the usual one"
)]
pub(crate) enum Item {
    /// A batch begins.
    Batch,
    Group(Change),
    Note {
        key: String,
        value: Bytes,
    },
    /// The group's replica here leads this term.
    Leads {
        group: GroupId,
        term: Term,
    },
}

/// Bytes that do not mean anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DecodeError(pub(crate) &'static str);

// ---- writing ----

pub(crate) fn put_u16(out: &mut Vec<u8>, v: u16) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_bytes(out: &mut Vec<u8>, v: &[u8]) {
    put_u32(out, v.len() as u32);
    out.extend_from_slice(v);
}
pub(crate) fn put_replica(out: &mut Vec<u8>, v: ReplicaId) {
    put_u64(out, v.store.0);
    put_u64(out, v.number);
}
pub(crate) fn put_hard_state(out: &mut Vec<u8>, v: HardState) {
    put_u64(out, v.term.0);
    out.push(u8::from(v.voted_for.is_some()));
    put_replica(out, v.voted_for.unwrap_or_default());
}
pub(crate) fn put_configuration(out: &mut Vec<u8>, v: &Configuration) {
    out.push(u8::from(v.auto_leave));
    for set in [&v.voters, &v.outgoing_voters, &v.learners, &v.next_learners] {
        put_u16(out, u16::try_from(set.len()).expect("a configuration has at most 65535 members of a kind"));
        for replica in set {
            put_replica(out, *replica);
        }
    }
}
pub(crate) fn put_snapshot(out: &mut Vec<u8>, v: &SnapshotMeta) {
    put_u64(out, v.index.0);
    put_u64(out, v.term.0);
    put_u64(out, v.election_timer_ms);
    put_configuration(out, &v.configuration);
}

/// The checksum of an encoded entry covers the group and the index it belongs to, so that a stale place can never
/// yield another entry's bytes.
fn entry_crc(group: GroupId, index: LogIndex, after_crc: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&group.0.to_le_bytes());
    place[8..].copy_from_slice(&index.0.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), after_crc)
}

/// Appends an entry to `out`.
pub(crate) fn encode_entry(out: &mut Vec<u8>, group: GroupId, entry: &Entry) -> Shape {
    let start = out.len();
    out.extend_from_slice(&[0; 8]); // crc and length, filled in below
    put_u64(out, entry.term.0);
    out.extend_from_slice(&entry.id.0.to_le_bytes());
    let kind = match &entry.payload {
        Payload::Noop => Kind::Noop,
        Payload::Command(_) => Kind::Command,
        Payload::Configuration(_) => Kind::Configuration,
        Payload::ElectionTimer { .. } => Kind::ElectionTimer,
    };
    out.push(kind as u8);
    match &entry.payload {
        Payload::Noop => {}
        Payload::Command(data) => out.extend_from_slice(data),
        Payload::Configuration(c) => put_configuration(out, c),
        Payload::ElectionTimer { millis } => put_u64(out, *millis),
    }
    let len = out.len() - start;
    out[start + 4..start + 8].copy_from_slice(&((len - ENTRY_HEAD) as u32).to_le_bytes());
    let crc = entry_crc(group, entry.index, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    Shape::new(len, kind)
}

/// Begins a batch in a record's body.
pub(crate) fn encode_batch_begin(out: &mut Vec<u8>) {
    out.push(TAG_BATCH);
}

/// Appends a group's changes to a record's body. Slots' offsets count from `base` in `out`.
pub(crate) fn encode_group(out: &mut Vec<u8>, base: usize, write: &GroupWrite) -> Change {
    out.push(TAG_GROUP);
    put_u64(out, write.group.0);
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    out.push(
        flag(write.create.is_some(), HAS_CREATE)
            | flag(write.hard_state.is_some(), HAS_HARD_STATE)
            | flag(write.snapshot.is_some(), HAS_SNAPSHOT)
            | flag(write.truncate_from.is_some(), HAS_TRUNCATE)
            | flag(!write.entries.is_empty(), HAS_ENTRIES)
            | flag(write.commit.is_some(), HAS_COMMIT)
            | flag(write.compact.is_some(), HAS_COMPACT)
            | flag(write.destroy, IS_DESTROY),
    );
    if let Some(v) = write.create {
        put_replica(out, v);
    }
    if let Some(v) = write.hard_state {
        put_hard_state(out, v);
    }
    if let Some(v) = &write.snapshot {
        put_snapshot(out, v);
    }
    if let Some(v) = write.truncate_from {
        put_u64(out, v.0);
    }
    if let Some(v) = write.commit {
        put_u64(out, v.0);
    }
    if let Some(v) = &write.compact {
        put_snapshot(out, v);
    }
    let mut slots = Vec::with_capacity(write.entries.len());
    let first = write.entries.first().map_or(LogIndex::ZERO, |e| e.index);
    if !write.entries.is_empty() {
        put_u64(out, first.0);
        put_u32(out, write.entries.len() as u32);
        for entry in &write.entries {
            let offset = (out.len() - base) as u32;
            let shape = encode_entry(out, write.group, entry);
            slots.push(Slot { term: entry.term, offset, shape });
        }
    }
    if let Some(term) = write.leads {
        out.push(TAG_LEADS);
        put_u64(out, write.group.0);
        put_u64(out, term.0);
    }
    Change {
        group: write.group,
        create: write.create,
        hard_state: write.hard_state,
        snapshot: write.snapshot.clone(),
        truncate_from: write.truncate_from,
        first,
        slots,
        commit: write.commit,
        compact: write.compact.clone(),
        destroy: write.destroy,
    }
}

/// Appends a note to a record's body.
pub(crate) fn encode_note(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.push(TAG_NOTE);
    put_bytes(out, key.as_bytes());
    put_bytes(out, value);
}

/// About how many bytes `write` takes, to allocate once.
pub(crate) fn encoded_len_hint(write: &GroupWrite) -> usize {
    160 + write
        .entries
        .iter()
        .map(|e| {
            ENTRY_HEAD
                + match &e.payload {
                    Payload::Command(data) => data.len(),
                    _ => 64,
                }
        })
        .sum::<usize>()
}

// ---- reading ----

/// Reads numbers off the front of bytes.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    all: &'a [u8],
    pos: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(all: &'a [u8]) -> Self {
        Self { all, pos: 0 }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.pos == self.all.len()
    }
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.all[self.pos..];
        if n > rest.len() {
            return Err(DecodeError("the bytes end too early"));
        }
        self.pos += n;
        Ok(&rest[..n])
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u32()? as usize;
        self.take(n)
    }
    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let bytes = self.bytes()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| DecodeError("a text is not UTF-8"))?.to_owned())
    }
    pub(crate) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError("a yes-or-no byte is neither 0 nor 1")),
        }
    }
    pub(crate) fn replica(&mut self) -> Result<ReplicaId, DecodeError> {
        Ok(ReplicaId { store: StoreId(self.u64()?), number: self.u64()? })
    }
    pub(crate) fn hard_state(&mut self) -> Result<HardState, DecodeError> {
        let term = Term(self.u64()?);
        let voted = self.flag()?;
        let replica = self.replica()?;
        Ok(HardState { term, voted_for: voted.then_some(replica) })
    }
    pub(crate) fn configuration(&mut self) -> Result<Configuration, DecodeError> {
        let auto_leave = self.flag()?;
        let mut sets = [const { BTreeSet::new() }; 4];
        for set in &mut sets {
            for _ in 0..self.u16()? {
                set.insert(self.replica()?);
            }
        }
        let [voters, outgoing_voters, learners, next_learners] = sets;
        Ok(Configuration { voters, outgoing_voters, learners, next_learners, auto_leave })
    }
    pub(crate) fn snapshot(&mut self) -> Result<SnapshotMeta, DecodeError> {
        Ok(SnapshotMeta {
            index: LogIndex(self.u64()?),
            term: Term(self.u64()?),
            election_timer_ms: self.u64()?,
            configuration: self.configuration()?,
        })
    }

    fn slots(&mut self, first: LogIndex) -> Result<Vec<Slot>, DecodeError> {
        let count = self.u32()? as usize;
        if count == 0 || count > (self.all.len() - self.pos) / ENTRY_HEAD {
            return Err(DecodeError("the number of entries does not fit the bytes that are left"));
        }
        if first.0.checked_add(count as u64).is_none() {
            return Err(DecodeError("an index is too large"));
        }
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = self.pos as u32;
            let head = self.take(ENTRY_HEAD)?;
            let data_len = u32::from_le_bytes(head[4..8].try_into().expect("four bytes")) as usize;
            let term = Term(u64::from_le_bytes(head[8..16].try_into().expect("eight bytes")));
            let kind = Kind::from_bits(head[32]).ok_or(DecodeError("an entry is of an unknown kind"))?;
            self.take(data_len)?;
            if kind == Kind::Configuration && data_len < 9 {
                return Err(DecodeError("a configuration entry is too short"));
            }
            if ENTRY_HEAD + data_len >= ENTRY_BYTES_MAX {
                return Err(DecodeError("an entry is too long"));
            }
            slots.push(Slot { term, offset, shape: Shape::new(ENTRY_HEAD + data_len, kind) });
        }
        Ok(slots)
    }

    /// The next item of a record's body.
    pub(crate) fn item(&mut self) -> Result<Item, DecodeError> {
        match self.u8()? {
            TAG_BATCH => Ok(Item::Batch),
            TAG_NOTE => {
                let key = self.text()?;
                Ok(Item::Note { key, value: Bytes::copy_from_slice(self.bytes()?) })
            }
            TAG_LEADS => Ok(Item::Leads { group: GroupId(self.u64()?), term: Term(self.u64()?) }),
            TAG_GROUP => {
                let group = GroupId(self.u64()?);
                let flags = self.u8()?;
                let has = |bit: u8| flags & bit != 0;
                let create = if has(HAS_CREATE) { Some(self.replica()?) } else { None };
                let hard_state = if has(HAS_HARD_STATE) { Some(self.hard_state()?) } else { None };
                let snapshot = if has(HAS_SNAPSHOT) { Some(self.snapshot()?) } else { None };
                let truncate_from = if has(HAS_TRUNCATE) { Some(LogIndex(self.u64()?)) } else { None };
                let commit = if has(HAS_COMMIT) { Some(LogIndex(self.u64()?)) } else { None };
                let compact = if has(HAS_COMPACT) { Some(self.snapshot()?) } else { None };
                let mut first = LogIndex::ZERO;
                let mut slots = Vec::new();
                if has(HAS_ENTRIES) {
                    first = LogIndex(self.u64()?);
                    slots = self.slots(first)?;
                }
                let destroy = has(IS_DESTROY);
                Ok(Item::Group(Change {
                    group,
                    create,
                    hard_state,
                    snapshot,
                    truncate_from,
                    first,
                    slots,
                    commit,
                    compact,
                    destroy,
                }))
            }
            _ => Err(DecodeError("an item is of an unknown kind")),
        }
    }
}

/// The checksum of an encoded entry, if the bytes are the entry of that group at that index.
pub(crate) fn checked_entry(bytes: &[u8], group: GroupId, index: LogIndex) -> Result<u32, DecodeError> {
    let crc = Decoder::new(bytes).u32()?;
    if crc == entry_crc(group, index, &bytes[4..]) {
        Ok(crc)
    } else {
        Err(DecodeError("the entry's checksum does not match"))
    }
}

/// Decodes an entry that lies alone in `bytes`, and checks that it is the entry of that group at that index.
pub(crate) fn decode_entry(bytes: &Bytes, group: GroupId, index: LogIndex) -> Result<Entry, DecodeError> {
    let mut d = Decoder::new(bytes);
    let crc = d.u32()?;
    if crc != entry_crc(group, index, &bytes[4..]) {
        return Err(DecodeError("the entry's checksum does not match"));
    }
    let data_len = d.u32()? as usize;
    let term = Term(d.u64()?);
    let id = EntryId(u128::from_le_bytes(d.array()?));
    let kind = Kind::from_bits(d.u8()?).ok_or(DecodeError("the entry is of an unknown kind"))?;
    if data_len != bytes.len() - ENTRY_HEAD {
        return Err(DecodeError("the entry's length does not match its place"));
    }
    let payload = match kind {
        Kind::Noop => Payload::Noop,
        Kind::Command => Payload::Command(bytes.slice(ENTRY_HEAD..)),
        Kind::Configuration => Payload::Configuration(d.configuration()?),
        Kind::ElectionTimer => Payload::ElectionTimer { millis: d.u64()? },
    };
    if kind != Kind::Command && !d.is_empty() {
        return Err(DecodeError("the entry has bytes left over"));
    }
    Ok(Entry { index, term, id, payload })
}

/// Term and shape of an encoded entry, without its contents.
pub(crate) fn entry_slot(bytes: &[u8]) -> Result<Slot, DecodeError> {
    if bytes.len() < ENTRY_HEAD || bytes.len() >= ENTRY_BYTES_MAX {
        return Err(DecodeError("the entry is too short or too long"));
    }
    let term = Term(u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")));
    let kind = Kind::from_bits(bytes[32]).ok_or(DecodeError("the entry is of an unknown kind"))?;
    Ok(Slot { term, offset: 0, shape: Shape::new(bytes.len(), kind) })
}

/// `bytes` with its checksum before it, as small files and sled values are kept.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    put_u32(&mut out, crc32c::crc32c(bytes));
    out.extend_from_slice(bytes);
    out
}

/// The inside of [`sealed`] bytes, if the checksum holds.
pub(crate) fn unsealed(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let (crc, rest) = bytes.split_at_checked(4).ok_or(DecodeError("too short for a checksum"))?;
    if crc != crc32c::crc32c(rest).to_le_bytes() {
        return Err(DecodeError("the checksum does not match"));
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn every_field() -> GroupWrite {
        let replica = |n| ReplicaId { store: StoreId(n), number: 2 };
        let configuration =
            Configuration { auto_leave: true, ..Configuration::of_voters([replica(1), replica(2)]) };
        let meta = |index| SnapshotMeta {
            index: LogIndex(index),
            term: Term(3),
            configuration: configuration.clone(),
            election_timer_ms: 1000,
        };
        let entry = |index, payload| Entry { index: LogIndex(index), term: Term(4), id: EntryId(9), payload };
        GroupWrite {
            group: GroupId(5),
            create: Some(replica(1)),
            hard_state: Some(HardState { term: Term(4), voted_for: Some(replica(2)) }),
            snapshot: Some(meta(10)),
            truncate_from: Some(LogIndex(11)),
            entries: vec![
                entry(11, Payload::Noop),
                entry(12, Payload::Command(Bytes::from_static(b"put a b"))),
                entry(13, Payload::Configuration(configuration.clone())),
                entry(14, Payload::ElectionTimer { millis: 500 }),
            ],
            commit: Some(LogIndex(12)),
            leads: Some(Term(4)),
            compact: Some(meta(11)),
            destroy: true,
        }
    }

    #[test]
    fn every_field_comes_back() {
        let write = every_field();
        let mut bytes = Vec::new();
        let change = encode_group(&mut bytes, 0, &write);
        let mut d = Decoder::new(&bytes);
        let Item::Group(read) = d.item().unwrap() else { panic!("a group was written") };
        let led = d.item().unwrap();
        assert!(matches!(led, Item::Leads { group: GroupId(5), term: Term(4) }) && d.is_empty(), "{led:?}");
        assert_eq!((read.group, read.create, read.hard_state), (write.group, write.create, write.hard_state));
        assert_eq!((&read.snapshot, read.truncate_from), (&write.snapshot, write.truncate_from));
        assert_eq!((read.commit, &read.compact, read.destroy), (write.commit, &write.compact, true));
        let all = Bytes::from(bytes);
        for ((slot, written), entry) in read.slots.iter().zip(&change.slots).zip(&write.entries) {
            assert_eq!((slot.offset, slot.shape, slot.term), (written.offset, written.shape, written.term));
            assert_eq!(slot.shape.size_bytes(), entry.size_bytes());
            let own = all.slice(slot.offset as usize..slot.offset as usize + slot.shape.encoded_len());
            assert_eq!(decode_entry(&own, write.group, entry.index).as_ref(), Ok(entry));
            assert!(decode_entry(&own, write.group, entry.index.next()).is_err(), "it belongs to its index");
            assert!(decode_entry(&own, GroupId(6), entry.index).is_err(), "it belongs to its group");
        }
    }

    /// Data directories in the world hold these bytes: a change here is a new format version.
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let mut bytes = Vec::new();
        encode_batch_begin(&mut bytes);
        encode_group(&mut bytes, 0, &GroupWrite { leads: None, ..every_field() });
        encode_note(&mut bytes, "key", b"value");
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), GOLDEN);
        let mut led = Vec::new();
        encode_group(
            &mut led,
            0,
            &GroupWrite { group: GroupId(5), leads: Some(Term(4)), ..GroupWrite::default() },
        );
        assert_eq!(led[10..], [3, 5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }
    const GOLDEN: (usize, u32) = (415, 0xa910_141f);

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), tag in 0u8..3) {
            if let Some(first) = bytes.first_mut() {
                *first = tag;
            }
            let _ = Decoder::new(&bytes).item();
            let _ = entry_slot(&bytes);
            let _ = decode_entry(&Bytes::from(bytes), GroupId(1), LogIndex(1));
        }

        #[test]
        fn no_damage_makes_decoding_panic(at in 0usize..400, with: u8) {
            let mut bytes = Vec::new();
            encode_group(&mut bytes, 0, &every_field());
            let len = bytes.len();
            bytes[at % len] = with;
            let mut d = Decoder::new(&bytes);
            while !d.is_empty() && d.item().is_ok() {}
        }
    }
}
