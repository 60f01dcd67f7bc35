//! The stream of bytes that a keyspace's state is: how it is put together and taken apart again.
//!
//! ```text
//! "PNKV" version=2
//! applied term revision compact_revision cursor.main cursor.sub   each 8 bytes, little-endian
//! { tag key_length value_length key value }*                      lengths as varints; see `Tag`
//! 0 frames crc32c                                                 8 and 4 bytes; the checksum covers all before it
//! ```
//!
//! The stream holds versions, leases, the writes that are remembered, and records of `control`; the receiver derives
//! `current` and `index` from the versions, which come in order of their revisions.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pontoon_raft_core::types::{LogIndex, Term};

use crate::mvcc::records::{self, KEY_BYTES_MAX, Revision, Version};

const MAGIC: &[u8; 4] = b"PNKV";
const FORMAT: u8 = 2;
const HEADER_LEN: usize = 5 + 6 * 8;

/// The revision that a saved keyspace is of, by its first bytes; `None` if they are not those of one.
#[must_use]
pub fn saved_revision(head: &[u8]) -> Option<i64> {
    let known = head.starts_with(MAGIC) && head.get(MAGIC.len()) == Some(&FORMAT);
    let revision = head.get(MAGIC.len() + 1 + 2 * 8..MAGIC.len() + 1 + 3 * 8)?;
    known.then(|| i64::from_le_bytes(revision.try_into().unwrap_or_default()))
}

pub(crate) const TAG_END: u8 = 0;
pub(crate) const TAG_VERSION: u8 = 1;
pub(crate) const TAG_LEASE: u8 = 2;
pub(crate) const TAG_ONCE: u8 = 3;
pub(crate) const TAG_CONTROL: u8 = 4;
/// An entry of a log; an image has either these or the ones above.
pub(crate) const TAG_LOG_ENTRY: u8 = 5;

/// No frame of ours is larger; a length beyond this is damage.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// What the stream says before its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The log entry that it is as of.
    pub(crate) applied: LogIndex,
    /// That entry's term.
    pub(crate) term: Term,
    /// The keyspace's revision.
    pub(crate) revision: i64,
    /// What it is compacted to; -1 if it never was.
    pub(crate) compact_revision: i64,
    /// How far compacted versions are gone from the stream.
    pub(crate) cursor: Revision,
}

impl Header {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        out.put_u8(FORMAT);
        for field in [
            self.applied.0,
            self.term.0,
            self.revision.cast_unsigned(),
            self.compact_revision.cast_unsigned(),
            self.cursor.main.cast_unsigned(),
            u64::from(self.cursor.sub),
        ] {
            out.put_u64_le(field);
        }
    }
}

/// Appends one record.
pub(crate) fn put_frame(out: &mut BytesMut, tag: u8, key: &[u8], value: &[u8]) {
    let mut lengths = Vec::with_capacity(16);
    records::put_varint(&mut lengths, key.len() as u64);
    records::put_varint(&mut lengths, value.len() as u64);
    out.put_u8(tag);
    out.put_slice(&lengths);
    out.put_slice(key);
    out.put_slice(value);
}

/// Appends the end of a stream with that many records, whose checksum was `crc` before; returns what it is now.
pub(crate) fn put_end(out: &mut BytesMut, frames: u64, crc: u32) -> u32 {
    let start = out.len();
    out.put_u8(TAG_END);
    out.put_u64_le(frames);
    let crc = crc32c::crc32c_append(crc, &out[start..]);
    out.put_u32_le(crc);
    crc
}

/// What is wrong with a stream.
pub(crate) fn bad(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image of a keyspace is damaged: {what}"))
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    /// Tag, lengths, key and value as they are in the stream.
    pub(crate) bytes: Bytes,
    key_at: usize,
    value_at: usize,
}

impl Frame {
    pub(crate) fn key(&self) -> &[u8] {
        &self.bytes[self.key_at..self.value_at]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.bytes[self.value_at..]
    }
}

/// Takes one whole record off a buffer that does not begin with the end; `None` if there is none yet.
pub(crate) fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    let Some(&tag) = buffer.first() else { return Ok(None) };
    let mut rest = &buffer[1..];
    let (Some(key_len), Some(value_len)) = (records::take_varint(&mut rest), records::take_varint(&mut rest))
    else {
        // Two varints take 20 bytes at most.
        return if buffer.len() > 21 { Err(bad("a length is endless")) } else { Ok(None) };
    };
    if key_len > FRAME_BYTES_MAX || value_len > FRAME_BYTES_MAX {
        return Err(bad("a record is too large"));
    }
    let key_at = buffer.len() - rest.len();
    let (value_at, end) = (key_at + key_len as usize, key_at + (key_len + value_len) as usize);
    if buffer.len() < end {
        return Ok(None);
    }
    Ok(Some(Frame { tag, bytes: buffer.split_to(end).freeze(), key_at, value_at }))
}

/// Checks that a version has a place after `last` and up to `newest`, and moves `last` on.
pub(crate) fn check_version<'a>(
    suffix: &[u8],
    record: &'a [u8],
    last: &mut Revision,
    newest: i64,
) -> io::Result<Version<'a>> {
    let revision = crate::mvcc::keys::revision_of(suffix).map_err(bad)?;
    let version = Version::decode(record).map_err(bad)?;
    if suffix.len() != 12 || revision <= *last || revision.main > newest {
        return Err(bad("revisions are not in order"));
    }
    if version.key.is_empty() || version.key.len() > KEY_BYTES_MAX {
        return Err(bad("a key's length is out of bounds"));
    }
    *last = revision;
    Ok(version)
}

/// Takes a stream apart that comes in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: BytesMut,
    header: Option<Header>,
    ended: bool,
    frames: u64,
    crc: u32,
}

impl Parser {
    /// Takes bytes in.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What the stream begins with, once it is there.
    pub(crate) fn header(&mut self) -> io::Result<Option<Header>> {
        if self.header.is_none() && self.buffer.len() >= HEADER_LEN {
            let bytes = self.buffer.split_to(HEADER_LEN);
            self.crc = crc32c::crc32c(&bytes);
            if !bytes.starts_with(MAGIC) {
                return Err(bad("it is none"));
            }
            if bytes[4] != FORMAT {
                return Err(bad(format_args!("version {}, this store reads {FORMAT}", bytes[4])));
            }
            let mut fields = &bytes[5..];
            self.header = Some(Header {
                applied: LogIndex(fields.get_u64_le()),
                term: Term(fields.get_u64_le()),
                revision: fields.get_i64_le(),
                compact_revision: fields.get_i64_le(),
                cursor: Revision {
                    main: fields.get_i64_le(),
                    sub: u32::try_from(fields.get_u64_le()).map_err(bad)?,
                },
            });
        }
        Ok(self.header)
    }

    /// The next record, once it is there whole. Only after the header.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        if self.ended || self.header.is_none() {
            return Ok(None);
        }
        if self.buffer.first() == Some(&TAG_END) {
            if self.buffer.len() < 13 {
                return Ok(None);
            }
            let end = self.buffer.split_to(13);
            self.crc = crc32c::crc32c_append(self.crc, &end[..9]);
            if (&end[1..9]).get_u64_le() != self.frames || (&end[9..]).get_u32_le() != self.crc {
                return Err(bad("the checksum or the number of records is wrong"));
            }
            self.ended = true;
            return Ok(None);
        }
        let Some(frame) = take_frame(&mut self.buffer)? else { return Ok(None) };
        self.crc = crc32c::crc32c_append(self.crc, &frame.bytes);
        self.frames += 1;
        Ok(Some(frame))
    }

    /// Whether the end was there, and the checksum right.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// What came after the end, or was not looked at yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buffer
    }
}
