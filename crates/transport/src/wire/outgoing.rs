//! Frames on their way out. Appends, which are most of what travels, are written from the core's types straight into the
//! stream's buffer: their entries are never copied into generated types first.

use bytes::BufMut;
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Message};
use pontoon_raft_core::types::{Entry, GroupId, Payload};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::keys::{self, FRAME_MESSAGES};
use super::{entry_to_wire, id_to_wire, message_to_wire};

/// A frame that is being built.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Everything but its messages.
    pub(crate) rest: pb::LaneFrame,
    messages: Vec<Listed>,
    /// What the messages take.
    bytes: usize,
}

#[derive(Debug)]
enum Listed {
    /// An append whose entries are there.
    Append {
        group: GroupId,
        message: Message,
        /// Of its encoding, and of the append's in it.
        len: usize,
        append_len: usize,
    },
    Other(pb::RaftMessage),
}

impl Outgoing {
    /// With room for so many messages.
    pub(crate) fn new(rest: pb::LaneFrame, messages: usize) -> Self {
        Self { rest, messages: Vec::with_capacity(messages), bytes: 0 }
    }

    /// How many messages it has.
    pub(crate) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Adds a message. An append has its entries, or none.
    pub(crate) fn push(&mut self, group: GroupId, message: Message) {
        let (listed, len) = if let Body::AppendEntries(append) = &message.body {
            let append_len = append_len(append);
            let len = head_len(group, &message) + 1 + encoded_len_varint(append_len as u64) + append_len;
            (Listed::Append { group, message, len, append_len }, len)
        } else {
            let message = message_to_wire(group, message, Vec::new());
            let len = message.encoded_len();
            (Listed::Other(message), len)
        };
        self.bytes += 1 + encoded_len_varint(len as u64) + len;
        self.messages.push(listed);
    }

    /// The length of its encoding.
    pub(crate) fn encoded_len(&self) -> usize {
        self.rest.encoded_len() + self.bytes
    }

    /// Writes it. `buffer` has room for [`Self::encoded_len`], or grows.
    pub(crate) fn encode(&self, buffer: &mut impl BufMut) {
        self.rest.encode_raw(buffer);
        for listed in &self.messages {
            match listed {
                Listed::Append { group, message, len, append_len } => {
                    if let Body::AppendEntries(append) = &message.body {
                        put_append(*group, message, append, *len, *append_len, buffer);
                    }
                }
                Listed::Other(message) => {
                    buffer.put_u8(FRAME_MESSAGES);
                    encode_varint(message.encoded_len() as u64, buffer);
                    message.encode_raw(buffer);
                }
            }
        }
    }
}

fn entries(append: &AppendEntries) -> &[Entry] {
    match &append.entries {
        Entries::Inline(entries) => entries,
        // Nothing is left of it.
        Entries::Interval { .. } => &[],
    }
}

/// How long a number's field is; zero is not written.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

fn fixed_len(number: u64) -> usize {
    if number == 0 { 0 } else { 9 }
}

/// What a message takes beside its body.
fn head_len(group: GroupId, message: &Message) -> usize {
    number_len(group.0)
        + number_len(message.from.number)
        + number_len(message.to.number)
        + number_len(message.term.0)
        + message.doubt.map_or(0, |doubt| if doubt.0 == 0 { 0 } else { 10 })
}

fn append_len(append: &AppendEntries) -> usize {
    let numbers = [append.prev_log_index.0, append.prev_log_term.0, append.leader_commit.0];
    let entries = entries(append).iter().map(|entry| {
        let len = entry_len(entry);
        1 + encoded_len_varint(len as u64) + len
    });
    numbers.into_iter().map(number_len).sum::<usize>() + entries.sum::<usize>()
}

fn entry_len(entry: &Entry) -> usize {
    let Payload::Command(data) = &entry.payload else { return entry_to_wire(entry.clone()).encoded_len() };
    let (id_high, id_low) = id_to_wire(entry.id);
    let head = number_len(entry.term.0) + fixed_len(id_high) + fixed_len(id_low);
    head + 1 + encoded_len_varint(data.len() as u64) + data.len()
}

fn put_append(
    group: GroupId,
    message: &Message,
    append: &AppendEntries,
    len: usize,
    append_len: usize,
    buffer: &mut impl BufMut,
) {
    let mut head = Head::default();
    head.length(FRAME_MESSAGES, len);
    head.number(keys::MESSAGE_GROUP, group.0);
    head.number(keys::MESSAGE_FROM, message.from.number);
    head.number(keys::MESSAGE_TO, message.to.number);
    head.number(keys::MESSAGE_TERM, message.term.0);
    if let Some(doubt) = message.doubt.filter(|doubt| doubt.0 != 0) {
        head.varint(keys::MESSAGE_DOUBT);
        head.slice(&doubt.0.to_le_bytes());
    }
    head.length(keys::MESSAGE_APPEND, append_len);
    head.number(keys::APPEND_PREV_INDEX, append.prev_log_index.0);
    head.number(keys::APPEND_PREV_TERM, append.prev_log_term.0);
    head.number(keys::APPEND_COMMIT, append.leader_commit.0);
    for entry in entries(append) {
        head.length(keys::APPEND_ENTRIES, entry_len(entry));
        if let Payload::Command(data) = &entry.payload {
            let (id_high, id_low) = id_to_wire(entry.id);
            head.number(keys::ENTRY_TERM, entry.term.0);
            head.fixed(keys::ENTRY_ID_HIGH, id_high);
            head.fixed(keys::ENTRY_ID_LOW, id_low);
            head.length(keys::ENTRY_COMMAND, data.len());
            head.flush(buffer);
            buffer.put_slice(data);
        } else {
            head.flush(buffer);
            entry_to_wire(entry.clone()).encode_raw(buffer);
        }
    }
    head.flush(buffer);
}

/// The most that is gathered before it is written: the fields of a message, of an append and of an entry.
const HEAD_BYTES: usize = 192;

/// Small fields, gathered so that the buffer is asked for room once for all of them.
struct Head {
    bytes: [u8; HEAD_BYTES],
    len: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; HEAD_BYTES], len: 0 }
    }
}

impl Head {
    fn slice(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.byte(number.to_le_bytes()[0]);
    }

    fn number(&mut self, key: u8, number: u64) {
        if number != 0 {
            self.byte(key);
            self.varint(number);
        }
    }

    fn fixed(&mut self, key: u8, number: u64) {
        if number != 0 {
            self.byte(key);
            self.slice(&number.to_le_bytes());
        }
    }

    fn length(&mut self, key: u8, len: usize) {
        self.byte(key);
        self.varint(len as u64);
    }

    fn flush(&mut self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.bytes[..self.len]);
        self.len = 0;
    }
}
