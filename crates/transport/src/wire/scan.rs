//! Counts what a frame holds before any of it is decoded.
//!
//! An empty message takes two bytes on the wire and a hundred in memory, so decoding first and counting later would
//! let a peer multiply its bytes. This walk over the encoding allocates nothing.

use crate::error::WireError;

/// Raft messages, proposals and replies in one frame; we send a quarter of it.
pub(crate) const ITEMS_MAX: usize = 16_384;
/// Numbers in the columns of one frame's beats: eight for each.
pub(crate) const COLUMNS_MAX: usize = 8 * ITEMS_MAX;
/// Entries in one frame; we send at most one per 48 bytes of 1 MiB.
pub(crate) const ENTRIES_MAX: usize = 65_536;

// Field numbers of peer.proto.
pub(super) const FRAME_MESSAGES: u64 = 3;
const FRAME_PROPOSALS: u64 = 4;
const FRAME_REPLIES: u64 = 5;
const FRAME_ADMITTED: u64 = 7;
const FRAME_BEATS: u64 = 8;
const FRAME_PIECES: u64 = 10;
const BEATS_GROUPS: u64 = 2;
pub(super) const MESSAGE_APPEND: u32 = 9;
pub(super) const APPEND_ENTRIES: u32 = 4;

/// A field's value.
pub(super) enum Value<'a> {
    Scalar,
    Bytes(&'a [u8]),
}

/// Walks over the fields of a message.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

fn malformed(reason: &str) -> WireError {
    WireError::Malformed { reason: reason.to_owned() }
}

impl<'a> Fields<'a> {
    pub(super) fn new(encoded: &'a [u8]) -> Self {
        Self { rest: encoded }
    }

    /// How many bytes come after the last field.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (i, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i).min(63);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(malformed("a varint does not end"))
    }

    fn skip(&mut self, n: u64) -> Result<&'a [u8], WireError> {
        let n = usize::try_from(n).ok().filter(|n| *n <= self.rest.len());
        let (head, rest) =
            self.rest.split_at(n.ok_or_else(|| malformed("a field is longer than what holds it"))?);
        self.rest = rest;
        Ok(head)
    }

    /// The number and the value of the next field.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => self.varint().map(|_| Value::Scalar)?,
            1 => self.skip(8).map(|_| Value::Scalar)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.skip(len)?)
            }
            5 => self.skip(4).map(|_| Value::Scalar)?,
            // Groups: proto3 has none.
            _ => return Err(malformed("a wire type that proto3 does not use")),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Checks the counts of an encoded `LaneFrame`, but for those within its messages ([`message`]); returns how many messages
/// it has.
pub(super) fn frame(encoded: &[u8]) -> Result<usize, WireError> {
    let (mut messages, mut items, mut columns) = (0, 0, 0);
    let mut fields = Fields::new(encoded);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (FRAME_MESSAGES, Value::Bytes(_)) => {
                items += 1;
                messages += 1;
            }
            (FRAME_BEATS, Value::Bytes(beats)) => {
                items += 1 + self::beats(beats, &mut columns)?;
            }
            (FRAME_PROPOSALS | FRAME_REPLIES | FRAME_ADMITTED | FRAME_PIECES, _) => items += 1,
            _ => {}
        }
        if items > ITEMS_MAX {
            return Err(WireError::TooMany { what: "messages", max: ITEMS_MAX });
        }
    }
    Ok(messages)
}

/// How many beats there are; adds how many numbers they take.
fn beats(encoded: &[u8], columns: &mut usize) -> Result<usize, WireError> {
    let mut fields = Fields::new(encoded);
    let mut beats = 0;
    while let Some((number, value)) = fields.next()? {
        let numbers = match value {
            Value::Scalar => 1,
            // Each number ends with the byte that says that no other follows.
            Value::Bytes(packed) => packed.iter().filter(|byte| **byte & 0x80 == 0).count(),
        };
        *columns += numbers;
        if *columns > COLUMNS_MAX {
            return Err(WireError::TooMany { what: "numbers in columns", max: COLUMNS_MAX });
        }
        if number == BEATS_GROUPS {
            beats += numbers;
        }
    }
    Ok(beats)
}

/// Checks the counts of an encoded `RaftMessage` that came in pieces.
pub(super) fn whole_message(encoded: &[u8]) -> Result<(), WireError> {
    message(encoded, &mut 0)
}

/// Checks the counts of an encoded `RaftMessage`; adds how many entries it has.
pub(super) fn message(encoded: &[u8], entries: &mut usize) -> Result<(), WireError> {
    let mut fields = Fields::new(encoded);
    while let Some((number, value)) = fields.next()? {
        let Value::Bytes(append) = value else { continue };
        if number != u64::from(MESSAGE_APPEND) {
            continue;
        }
        let mut fields = Fields::new(append);
        while let Some((number, _)) = fields.next()? {
            if number == u64::from(APPEND_ENTRIES) {
                *entries += 1;
                if *entries > ENTRIES_MAX {
                    return Err(WireError::TooMany { what: "entries", max: ENTRIES_MAX });
                }
            }
        }
    }
    Ok(())
}
