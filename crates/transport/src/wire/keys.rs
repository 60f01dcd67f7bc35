//! The keys of `peer.proto` that are written and read by hand: a field's number and how its value is written. All but one take
//! one byte on the wire.

/// The wire types of protobuf.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;

const fn key(field: u8, wire_type: u8) -> u8 {
    assert!(field < 16, "a larger number takes two bytes");
    (field << 3) | wire_type
}

pub(super) const FRAME_MESSAGES: u8 = key(3, LENGTH);

pub(super) const MESSAGE_GROUP: u8 = key(1, VARINT);
pub(super) const MESSAGE_FROM: u8 = key(2, VARINT);
pub(super) const MESSAGE_TO: u8 = key(3, VARINT);
pub(super) const MESSAGE_TERM: u8 = key(4, VARINT);
pub(super) const MESSAGE_APPEND: u8 = key(9, LENGTH);
/// Two bytes.
pub(super) const MESSAGE_DOUBT: u64 = (18 << 3) | FIXED64 as u64;

pub(super) const APPEND_PREV_INDEX: u8 = key(1, VARINT);
pub(super) const APPEND_PREV_TERM: u8 = key(2, VARINT);
pub(super) const APPEND_COMMIT: u8 = key(3, VARINT);
pub(super) const APPEND_ENTRIES: u8 = key(4, LENGTH);

pub(super) const ENTRY_TERM: u8 = key(1, VARINT);
pub(super) const ENTRY_ID_HIGH: u8 = key(2, FIXED64);
pub(super) const ENTRY_ID_LOW: u8 = key(3, FIXED64);
pub(super) const ENTRY_COMMAND: u8 = key(5, LENGTH);
