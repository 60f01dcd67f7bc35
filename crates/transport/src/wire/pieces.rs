//! Large messages: their encoding as a list of slices, so that the commands in it need not be copied, and the gate for what
//! was put together again.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{Entry, GroupId, Payload};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::scan::{APPEND_ENTRIES, MESSAGE_APPEND};
use super::{Ends, Keep, entry_to_wire, message_from_wire, message_to_wire, proposal_from_wire, scan};
use crate::api::RelayedProposal;
use crate::error::WireError;

// Field numbers of peer.proto.
const ENTRY_COMMAND: u32 = 5;
const PROPOSAL_DATA: u32 = 4;

/// Smaller data is copied to what is around it: a slice of its own costs as much.
const SLICE_BYTES_MIN: usize = 4096;

/// A list of slices that grows.
#[derive(Default)]
struct Rope {
    slices: VecDeque<Bytes>,
    last: BytesMut,
}

impl Rope {
    /// A field of bytes, by reference if that is worth it.
    fn data(&mut self, field: u32, data: &Bytes) {
        encode_key(field, WireType::LengthDelimited, &mut self.last);
        encode_varint(data.len() as u64, &mut self.last);
        if data.len() < SLICE_BYTES_MIN {
            self.last.put_slice(data);
        } else {
            self.slices.push_back(self.last.split().freeze());
            self.slices.push_back(data.clone());
        }
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        if !self.last.is_empty() {
            self.slices.push_back(self.last.freeze());
        }
        self.slices
    }
}

/// How long a field of bytes is.
fn data_len(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64) + len
}

/// Encodes an append with these entries, as `message_to_wire` and `encode` would.
pub(crate) fn append(group: GroupId, message: Message, entries: &[Entry]) -> VecDeque<Bytes> {
    let mut rope = Rope::default();
    let head = message_to_wire(group, message, Vec::new());
    rope.last.reserve(head.encoded_len());
    // A buffer that grows has always room.
    let _ = head.encode(&mut rope.last);
    for entry in entries {
        // Fields of a message that come in several parts are joined when they are decoded: so says protobuf.
        let (head, command) = match &entry.payload {
            Payload::Command(data) => {
                let head = Entry { payload: Payload::Noop, ..entry.clone() };
                (pb::Entry { payload: None, ..entry_to_wire(head) }, Some(data))
            }
            _ => (entry_to_wire(entry.clone()), None),
        };
        let entry_len = head.encoded_len() + command.map_or(0, |data| data_len(ENTRY_COMMAND, data.len()));
        encode_key(MESSAGE_APPEND, WireType::LengthDelimited, &mut rope.last);
        encode_varint(data_len(APPEND_ENTRIES, entry_len) as u64, &mut rope.last);
        encode_key(APPEND_ENTRIES, WireType::LengthDelimited, &mut rope.last);
        encode_varint(entry_len as u64, &mut rope.last);
        let _ = head.encode(&mut rope.last);
        if let Some(data) = command {
            rope.data(ENTRY_COMMAND, data);
        }
    }
    rope.finish()
}

/// Encodes a proposal.
pub(crate) fn proposal(mut proposal: RelayedProposal) -> VecDeque<Bytes> {
    let data = std::mem::take(&mut proposal.data);
    let mut rope = Rope::default();
    let _ = super::proposal_to_wire(proposal).encode(&mut rope.last);
    rope.data(PROPOSAL_DATA, &data);
    rope.finish()
}

/// What a large message is.
#[derive(Debug)]
pub(crate) enum Whole {
    Append(GroupId, Message),
    Proposal(RelayedProposal),
}

/// Decodes and checks a message that has come whole.
pub(crate) fn whole(of: pb::PieceOf, encoded: Bytes, ends: Ends) -> Result<Whole, WireError> {
    let malformed = |e: prost::DecodeError| WireError::Malformed { reason: e.to_string() };
    let keep = Keep { frame_bytes: encoded.len() };
    match of {
        pb::PieceOf::Append => {
            scan::whole_message(&encoded)?;
            let message = pb::RaftMessage::decode(encoded).map_err(malformed)?;
            if !matches!(message.body, Some(pb::raft_message::Body::Append(_))) {
                return Err(WireError::Missing { what: "the append of a message in pieces" });
            }
            message_from_wire(message, ends, keep).map(|(group, message)| Whole::Append(group, message))
        }
        pb::PieceOf::Proposal => {
            let proposal = pb::RelayedProposal::decode(encoded).map_err(malformed)?;
            proposal_from_wire(proposal, keep).map(Whole::Proposal)
        }
        pb::PieceOf::Unspecified => Err(WireError::Missing { what: "what a message in pieces is" }),
    }
}
