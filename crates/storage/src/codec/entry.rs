//! One log entry as bytes, and where it lies.

use bytes::{Buf, Bytes};
use pontoon_raft_core::types::{ENTRY_OVERHEAD_BYTES, Entry, EntryId, GroupId, LogIndex, Payload, Term};

use super::primitive::{DecodeError, Decoder, put_configuration, put_u64};

/// Bytes of an encoded entry before its data: crc u32, data length u32, term u64, id u128, kind u8.
pub(crate) const ENTRY_HEAD: usize = 33;
/// Encoded entries are shorter than this: the index keeps 30 bits of length.
pub(crate) const ENTRY_BYTES_MAX: usize = 1 << 30;

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

/// The checksum of an encoded entry covers the group and the index it belongs to, so that a stale place can never
/// yield another entry's bytes.
fn entry_crc(group: GroupId, index: LogIndex, after_crc: &[u8]) -> u32 {
    let mut place = [0; PLACE];
    put_place(&mut place, group, index);
    crc32c::crc32c_append(crc32c::crc32c(&place), after_crc)
}

/// Bytes of a group and an index, as the checksum covers them.
const PLACE: usize = 16;

fn put_place(out: &mut [u8; PLACE], group: GroupId, index: LogIndex) {
    out[..8].copy_from_slice(&group.0.to_le_bytes());
    out[8..].copy_from_slice(&index.0.to_le_bytes());
}

/// Appends an entry to `out`.
pub(crate) fn encode_entry(out: &mut Vec<u8>, group: GroupId, entry: &Entry) -> Shape {
    let mut small = Vec::new();
    let (kind, data): (_, &[u8]) = match &entry.payload {
        Payload::Noop => (Kind::Noop, &[]),
        Payload::Command(data) => (Kind::Command, data),
        Payload::Configuration(c) => {
            put_configuration(&mut small, c);
            (Kind::Configuration, &small)
        }
        Payload::ElectionTimer { millis } => {
            put_u64(&mut small, *millis);
            (Kind::ElectionTimer, &small)
        }
    };
    // The head is put together beside, behind what only the checksum covers: this is where a busy store spends its time.
    let mut head = [0; PLACE + ENTRY_HEAD - 4];
    let (place, fields) = head.split_first_chunk_mut::<PLACE>().expect("it is longer");
    put_place(place, group, entry.index);
    fields[..4].copy_from_slice(&(data.len() as u32).to_le_bytes());
    fields[4..12].copy_from_slice(&entry.term.0.to_le_bytes());
    fields[12..28].copy_from_slice(&entry.id.0.to_le_bytes());
    fields[28] = kind as u8;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), data);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&head[PLACE..]);
    out.extend_from_slice(data);
    Shape::new(ENTRY_HEAD + data.len(), kind)
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
pub(crate) fn decode_entry(bytes: Bytes, group: GroupId, index: LogIndex) -> Result<Entry, DecodeError> {
    checked_entry(&bytes, group, index)?;
    parse_entry(bytes, index)
}

/// The same without the check, for bytes that never left this process's memory.
pub(crate) fn parse_entry(mut bytes: Bytes, index: LogIndex) -> Result<Entry, DecodeError> {
    let mut d = Decoder::new(&bytes);
    d.take(4)?;
    let data_len = d.u32()? as usize;
    let term = Term(d.u64()?);
    let id = EntryId(u128::from_le_bytes(d.array()?));
    let kind = Kind::from_bits(d.u8()?).ok_or(DecodeError("the entry is of an unknown kind"))?;
    if data_len != d.left() {
        return Err(DecodeError("the entry's length does not match its place"));
    }
    let payload = match kind {
        Kind::Noop => Payload::Noop,
        Kind::Command => {
            bytes.advance(ENTRY_HEAD);
            return Ok(Entry { index, term, id, payload: Payload::Command(bytes) });
        }
        Kind::Configuration => Payload::Configuration(d.configuration()?),
        Kind::ElectionTimer => Payload::ElectionTimer { millis: d.u64()? },
    };
    if !d.is_empty() {
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
