//! Bytes of entries and of group changes. All numbers are little-endian; see `docs/src/journal-format.md`.
//!
//! Decoding never trusts a length: it is compared with what is left before anything is allocated.

use std::borrow::Cow;

use bytes::Bytes;
use pontoon_raft_core::types::{GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

use crate::batch::GroupWrite;

mod entry;
mod primitive;

pub(crate) use self::entry::*;
pub(crate) use self::primitive::*;

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

/// A group's changes without the entries' contents: all that the index needs. Borrowed from what is submitted, or owned
/// by what was decoded.
#[derive(Clone, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) group: GroupId,
    pub(crate) create: Option<ReplicaId>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) snapshot: Option<Cow<'a, SnapshotMeta>>,
    pub(crate) truncate_from: Option<LogIndex>,
    /// Index of the first of `slots`.
    pub(crate) first: LogIndex,
    pub(crate) slots: Cow<'a, [Slot]>,
    pub(crate) commit: Option<LogIndex>,
    pub(crate) compact: Option<Cow<'a, SnapshotMeta>>,
    pub(crate) destroy: bool,
}

impl<'a> Change<'a> {
    /// What `write` says; its entries lie in `slots`.
    pub(crate) fn of(write: &'a GroupWrite, slots: &'a [Slot]) -> Self {
        Self {
            group: write.group,
            create: write.create,
            hard_state: write.hard_state,
            snapshot: write.snapshot.as_ref().map(Cow::Borrowed),
            truncate_from: write.truncate_from,
            first: write.entries.first().map_or(LogIndex::ZERO, |e| e.index),
            slots: Cow::Borrowed(slots),
            commit: write.commit,
            compact: write.compact.as_ref().map(Cow::Borrowed),
            destroy: write.destroy,
        }
    }
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
    Group(Change<'static>),
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

/// Begins a batch in a record's body.
pub(crate) fn encode_batch_begin(out: &mut Vec<u8>) {
    out.push(TAG_BATCH);
}

/// Appends a group's changes to a batch, and to `slots` where in it the entries lie.
pub(crate) fn encode_group(out: &mut Vec<u8>, slots: &mut Vec<Slot>, write: &GroupWrite) {
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
    if let Some(first) = write.entries.first() {
        put_u64(out, first.index.0);
        put_u32(out, write.entries.len() as u32);
        for entry in &write.entries {
            let offset = out.len() as u32;
            let shape = encode_entry(out, write.group, entry);
            slots.push(Slot { term: entry.term, offset, shape });
        }
    }
    if let Some(term) = write.leads {
        out.push(TAG_LEADS);
        put_u64(out, write.group.0);
        put_u64(out, term.0);
    }
}

/// Appends a note to a record's body.
pub(crate) fn encode_note(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.push(TAG_NOTE);
    put_bytes(out, key.as_bytes());
    put_bytes(out, value);
}

impl Decoder<'_> {
    fn slots(&mut self) -> Result<Vec<Slot>, DecodeError> {
        let count = self.u32()? as usize;
        if count == 0 || count > self.left() / ENTRY_HEAD {
            return Err(DecodeError("the number of entries does not fit the bytes that are left"));
        }
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = self.pos() as u32;
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
                let snapshot = if has(HAS_SNAPSHOT) { Some(Cow::Owned(self.snapshot()?)) } else { None };
                let truncate_from = if has(HAS_TRUNCATE) { Some(self.index()?) } else { None };
                let commit = if has(HAS_COMMIT) { Some(self.index()?) } else { None };
                let compact = if has(HAS_COMPACT) { Some(Cow::Owned(self.snapshot()?)) } else { None };
                let mut first = LogIndex::ZERO;
                let mut slots = Vec::new();
                if has(HAS_ENTRIES) {
                    first = self.index()?;
                    slots = self.slots()?;
                }
                let destroy = has(IS_DESTROY);
                Ok(Item::Group(Change {
                    group,
                    create,
                    hard_state,
                    snapshot,
                    truncate_from,
                    first,
                    slots: Cow::Owned(slots),
                    commit,
                    compact,
                    destroy,
                }))
            }
            _ => Err(DecodeError("an item is of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft_core::types::{Configuration, Entry, EntryId, Payload, StoreId};
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
        let (mut bytes, mut slots) = (Vec::new(), Vec::new());
        encode_group(&mut bytes, &mut slots, &write);
        let mut d = Decoder::new(&bytes);
        let Item::Group(read) = d.item().unwrap() else { panic!("a group was written") };
        let led = d.item().unwrap();
        assert!(matches!(led, Item::Leads { group: GroupId(5), term: Term(4) }) && d.is_empty(), "{led:?}");
        assert_eq!((read.group, read.create, read.hard_state), (write.group, write.create, write.hard_state));
        assert_eq!(
            (read.snapshot.as_deref(), read.truncate_from),
            (write.snapshot.as_ref(), write.truncate_from)
        );
        assert_eq!(
            (read.commit, read.compact.as_deref(), read.destroy),
            (write.commit, write.compact.as_ref(), true)
        );
        let all = Bytes::from(bytes);
        for ((slot, written), entry) in read.slots.iter().zip(&slots).zip(&write.entries) {
            assert_eq!((slot.offset, slot.shape, slot.term), (written.offset, written.shape, written.term));
            assert_eq!(slot.shape.size_bytes(), entry.size_bytes());
            let own = all.slice(slot.offset as usize..slot.offset as usize + slot.shape.encoded_len());
            assert_eq!(decode_entry(own.clone(), write.group, entry.index).as_ref(), Ok(entry));
            assert!(
                decode_entry(own.clone(), write.group, entry.index.next()).is_err(),
                "it belongs to its index"
            );
            assert!(decode_entry(own, GroupId(6), entry.index).is_err(), "it belongs to its group");
        }
    }

    /// Data directories in the world hold these bytes: a change here is a new format version.
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let mut bytes = Vec::new();
        encode_batch_begin(&mut bytes);
        encode_group(&mut bytes, &mut Vec::new(), &GroupWrite { leads: None, ..every_field() });
        encode_note(&mut bytes, "key", b"value");
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), GOLDEN);
        let mut led = Vec::new();
        encode_group(
            &mut led,
            &mut Vec::new(),
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
            let _ = decode_entry(Bytes::from(bytes), GroupId(1), LogIndex(1));
        }

        #[test]
        fn no_damage_makes_decoding_panic(at in 0usize..400, with: u8) {
            let mut bytes = Vec::new();
            encode_group(&mut bytes, &mut Vec::new(), &every_field());
            let len = bytes.len();
            bytes[at % len] = with;
            let mut d = Decoder::new(&bytes);
            while !d.is_empty() && d.item().is_ok() {}
        }
    }
}
