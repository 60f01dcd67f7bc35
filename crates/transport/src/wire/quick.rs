//! The quick way through the gate for what is most of all that travels: an append with commands, as we write it.
//!
//! It reads the encoding once and makes the core's types of it, without the generated ones in between. It takes only what is in
//! order in every respect; whatever is unusual or wrong is left to the way that knows all of protobuf and names what is wrong.
//! So it must never take what that one would refuse, nor take it for something else.

use bytes::Bytes;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Message};
use pontoon_raft_core::types::{DoubtId, Entry, GroupId, LogIndex, Payload, ReplicaId, Term};

use super::scan::ENTRIES_MAX;
use super::{Ends, Keep, NUMBER_MAX, id_from_wire, keys};

/// What is not read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        if *first < 0x80 {
            self.0 = rest;
            return Some(u64::from(*first));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (i, byte) in self.0.iter().take(10).enumerate() {
            // The tenth byte has the last bit of 64.
            if i == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }

    /// A number that an honest peer may say.
    #[inline]
    fn number(&mut self) -> Option<u64> {
        self.varint().filter(|number| *number <= NUMBER_MAX)
    }

    #[inline]
    fn fixed(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    #[inline]
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// The next field's key, if it takes one byte; 0, which is none, if it takes more.
    #[inline]
    fn key(&mut self) -> Option<u8> {
        Some(u8::try_from(self.varint()?).unwrap_or(0))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a `RaftMessage` that lies in `frame`, of which `entries` were read before; `None` if it is for the other way.
pub(super) fn append(
    encoded: &[u8],
    frame: &Bytes,
    ends: Ends,
    keep: Keep,
    entries: &mut usize,
) -> Option<(GroupId, Message)> {
    let (mut group, mut from, mut to, mut term, mut doubt) = (0, 0, 0, 0, 0);
    let mut body = None;
    let mut fields = Cursor(encoded);
    while !fields.is_empty() {
        let key = fields.varint()?;
        if key == keys::MESSAGE_DOUBT {
            doubt = fields.fixed()?;
            continue;
        }
        match u8::try_from(key).ok()? {
            keys::MESSAGE_GROUP => group = fields.varint()?,
            keys::MESSAGE_FROM => from = fields.varint()?,
            keys::MESSAGE_TO => to = fields.varint()?,
            keys::MESSAGE_TERM => term = fields.number()?,
            // In several parts it would have to be put together.
            keys::MESSAGE_APPEND if body.is_none() => body = Some(fields.bytes()?),
            _ => return None,
        }
    }
    let append = append_entries(body?, frame, term, keep, entries)?;
    let message = Message {
        from: ReplicaId { store: ends.from, number: from },
        to: ReplicaId { store: ends.to, number: to },
        term: Term(term),
        doubt: Some(DoubtId(doubt)).filter(|doubt| doubt.0 != 0),
        body: Body::AppendEntries(append),
    };
    Some((GroupId(group), message))
}

fn append_entries(
    encoded: &[u8],
    frame: &Bytes,
    term: u64,
    keep: Keep,
    before: &mut usize,
) -> Option<AppendEntries> {
    let (mut prev, mut prev_term, mut commit) = (0, 0, 0);
    let mut fields = Cursor(encoded);
    while fields.0.first().is_some_and(|key| *key != keys::APPEND_ENTRIES) {
        match fields.key()? {
            keys::APPEND_PREV_INDEX => prev = fields.number()?,
            keys::APPEND_PREV_TERM => prev_term = fields.varint()?,
            keys::APPEND_COMMIT => commit = fields.number()?,
            _ => return None,
        }
    }
    if prev_term > term {
        return None;
    }
    // The rest are entries. They are counted before there is memory for them.
    let (mut rest, mut count) = (Cursor(fields.0), 0);
    while !rest.is_empty() {
        if rest.key()? != keys::APPEND_ENTRIES {
            return None;
        }
        rest.bytes()?;
        count += 1;
    }
    if *before + count > ENTRIES_MAX {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    let (mut index, mut last_term) = (prev, prev_term);
    while !fields.is_empty() {
        fields.key()?;
        // Far from an overflow: the first one is bounded, and so is their number.
        index += 1;
        let entry = entry(fields.bytes()?, frame, index, keep)?;
        if entry.term.0 < last_term.max(1) || entry.term.0 > term {
            return None;
        }
        last_term = entry.term.0;
        entries.push(entry);
    }
    *before += count;
    Some(AppendEntries {
        prev_log_index: LogIndex(prev),
        prev_log_term: Term(prev_term),
        leader_commit: LogIndex(commit),
        entries: Entries::Inline(entries),
    })
}

#[inline]
fn entry(encoded: &[u8], frame: &Bytes, index: u64, keep: Keep) -> Option<Entry> {
    let (mut term, mut id_high, mut id_low) = (0, 0, 0);
    let mut command = None;
    let mut fields = Cursor(encoded);
    while !fields.is_empty() {
        match fields.key()? {
            keys::ENTRY_TERM => term = fields.varint()?,
            keys::ENTRY_ID_HIGH => id_high = fields.fixed()?,
            keys::ENTRY_ID_LOW => id_low = fields.fixed()?,
            keys::ENTRY_COMMAND => command = Some(fields.bytes()?),
            _ => return None,
        }
    }
    Some(Entry {
        index: LogIndex(index),
        term: Term(term),
        id: id_from_wire(id_high, id_low),
        payload: Payload::Command(keep.part(command?, frame)),
    })
}
