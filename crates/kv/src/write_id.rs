//! The name that a client gives to a write, so that it may be sent again when its answer was lost.
//!
//! It travels as the gRPC metadata `pontoon-eid`: 32 hexadecimal digits. The first 16 are the *position*: how far the
//! keyspace's log was applied, as the store told before the write was sent for the first time (metadata
//! `pontoon-position` of an answer). The other 16 are the client's choice, at random. All attempts at one write carry
//! the same name; what is in the log is the command with this name in front.
//!
//! The position is what makes old names recognisable. Whoever executed this write did so behind its position; so if
//! everything that was executed behind it is still remembered, a name that is not remembered was never executed. And if
//! it is not, the write is refused (`mvcc/once.rs`).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use pontoon_raft_core::types::LogIndex;

use crate::command::{FORMAT, KIND_NAMED};

/// A write's name; the same in all attempts at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId {
    /// An entry that the keyspace had applied before the first attempt.
    pub position: LogIndex,
    /// Chosen at random by the client.
    pub nonce: u64,
}

/// Bytes of a name in the log and in the engine.
pub(crate) const WRITE_ID_BYTES: usize = 16;

impl WriteId {
    /// Reads the 32 digits; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        // `from_str_radix` would take a sign.
        if text.len() != 2 * WRITE_ID_BYTES || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let digits = std::str::from_utf8(text).ok()?;
        let (position, nonce) = digits.split_at(WRITE_ID_BYTES);
        Some(Self {
            position: LogIndex(u64::from_str_radix(position, 16).ok()?),
            nonce: u64::from_str_radix(nonce, 16).ok()?,
        })
    }

    /// In the order of positions.
    pub(crate) fn to_bytes(self) -> [u8; WRITE_ID_BYTES] {
        ((u128::from(self.position.0) << 64) | u128::from(self.nonce)).to_be_bytes()
    }

    fn from_bytes(bytes: [u8; WRITE_ID_BYTES]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self { position: LogIndex((both >> 64) as u64), nonce: both as u64 }
    }

    /// The bytes for the log: a command with this name.
    #[must_use]
    pub fn name(self, command: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(2 + WRITE_ID_BYTES + command.len());
        out.put_u8(FORMAT);
        out.put_u8(KIND_NAMED);
        out.put_slice(&self.to_bytes());
        out.put_slice(command);
        out.freeze()
    }

    /// Takes the name off what [`name`](Self::name) made; a command without one stays as it is.
    pub(crate) fn split(command: &Bytes) -> (Option<Self>, Bytes) {
        if let [FORMAT, KIND_NAMED, rest @ ..] = &command[..]
            && let Some((&id, _)) = rest.split_first_chunk()
        {
            return (Some(Self::from_bytes(id)), command.slice(2 + WRITE_ID_BYTES..));
        }
        (None, command.clone())
    }
}

/// The 32 digits.
impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.position.0, self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_everything_else_is_not() {
        let id = WriteId { position: LogIndex(0xabc), nonce: u64::MAX - 1 };
        assert_eq!(id.to_string(), "0000000000000abcfffffffffffffffe");
        assert_eq!(WriteId::parse(id.to_string().as_bytes()), Some(id));
        assert_eq!(WriteId::parse(id.to_string().to_uppercase().as_bytes()), Some(id));
        let long = "0".repeat(33);
        for bad in
            ["", "0", &long, "+000000000000abcfffffffffffffffe", "0000000000000abc fffffffffffffff", "\u{e9}"]
        {
            assert_eq!(WriteId::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(WriteId::parse(&[0xff; 32]), None);
    }

    #[test]
    fn a_name_is_taken_off_what_has_one() {
        let id = WriteId { position: LogIndex(7), nonce: 9 };
        let plain = Bytes::from_static(&[FORMAT, 1, 2, 3]);
        assert_eq!(WriteId::split(&id.name(&plain)), (Some(id), plain.clone()));
        assert_eq!(WriteId::split(&plain), (None, plain));
        // Cut short: the command's decoder refuses it.
        let cut = id.name(&[]).slice(..17);
        assert_eq!(WriteId::split(&cut), (None, cut.clone()));
    }
}
