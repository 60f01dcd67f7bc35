//! What goes through the log, and what comes back: one byte of format, one of kind, then etcd's own request message.
//! The entry's id travels beside the command, in the log entry.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pontoon_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest,
};
use prost::Message;

use crate::error::EtcdError;

/// The first byte of every command and of every reply. A store that meets another one answers "unknown command".
pub(crate) const FORMAT: u8 = 1;

const KIND_PUT: u8 = 1;
const KIND_DELETE_RANGE: u8 = 2;
const KIND_TXN: u8 = 3;
const KIND_COMPACT: u8 = 4;
const KIND_LEASE_GRANT: u8 = 5;
const KIND_LEASE_REVOKE: u8 = 6;
const KIND_LEASE_EXPIRE: u8 = 7;
/// A write's name, then a whole command; see `write_id.rs`.
pub(crate) const KIND_NAMED: u8 = 8;

const REPLY_OK: u8 = 0;
const REPLY_ERROR: u8 = 1;

/// A change of a keyspace.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Writes one key.
    Put(PutRequest),
    /// Deletes a key or a range.
    DeleteRange(DeleteRangeRequest),
    /// Compares, then does one of two lists.
    Txn(TxnRequest),
    /// Forgets the past.
    Compact(CompactionRequest),
    /// Makes a lease; its id has been chosen.
    LeaseGrant(LeaseGrantRequest),
    /// Ends a lease and deletes its keys.
    LeaseRevoke(LeaseRevokeRequest),
    /// The same, because its time is over by the clock of the leader of a term; nothing happens in another term.
    LeaseExpire {
        /// The lease.
        id: i64,
        /// The term of the leader that says so.
        term: u64,
    },
}

fn encode(kind: u8, message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + message.encoded_len());
    out.put_u8(FORMAT);
    out.put_u8(kind);
    message.encode_raw(&mut out);
    out.freeze()
}

impl Command {
    /// The command of a put, without taking the request.
    #[must_use]
    pub fn encode_put(request: &PutRequest) -> Bytes {
        encode(KIND_PUT, request)
    }

    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Put(r) => encode(KIND_PUT, r),
            Self::DeleteRange(r) => encode(KIND_DELETE_RANGE, r),
            Self::Txn(r) => encode(KIND_TXN, r),
            Self::Compact(r) => encode(KIND_COMPACT, r),
            Self::LeaseGrant(r) => encode(KIND_LEASE_GRANT, r),
            Self::LeaseRevoke(r) => encode(KIND_LEASE_REVOKE, r),
            Self::LeaseExpire { id, term } => {
                let mut out = BytesMut::with_capacity(2 + 16);
                out.put_slice(&[FORMAT, KIND_LEASE_EXPIRE]);
                out.put_i64_le(*id);
                out.put_u64_le(*term);
                out.freeze()
            }
        }
    }

    /// Reads a command. Keys and values share the bytes given.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, EtcdError> {
        let (&[FORMAT, kind], _) = bytes.split_first_chunk::<2>().ok_or(EtcdError::UnknownCommand)? else {
            return Err(EtcdError::UnknownCommand);
        };
        let mut body = bytes.slice(2..);
        let command = match kind {
            KIND_PUT => PutRequest::decode(body).map(Self::Put),
            KIND_DELETE_RANGE => DeleteRangeRequest::decode(body).map(Self::DeleteRange),
            KIND_TXN => TxnRequest::decode(body).map(Self::Txn),
            KIND_COMPACT => CompactionRequest::decode(body).map(Self::Compact),
            KIND_LEASE_GRANT => LeaseGrantRequest::decode(body).map(Self::LeaseGrant),
            KIND_LEASE_REVOKE => LeaseRevokeRequest::decode(body).map(Self::LeaseRevoke),
            KIND_LEASE_EXPIRE if body.len() == 16 => {
                Ok(Self::LeaseExpire { id: body.get_i64_le(), term: body.get_u64_le() })
            }
            _ => return Err(EtcdError::UnknownCommand),
        };
        command.map_err(|_| EtcdError::UnknownCommand)
    }
}

/// Appends a reply to `buffer` and splits it off.
pub(crate) fn encode_reply(buffer: &mut BytesMut, result: &Result<impl Message, EtcdError>) -> Bytes {
    match result {
        Ok(message) => {
            buffer.reserve(2 + message.encoded_len());
            buffer.put_u8(FORMAT);
            buffer.put_u8(REPLY_OK);
            message.encode_raw(buffer);
        }
        Err(e) => {
            buffer.put_u8(FORMAT);
            buffer.put_u8(REPLY_ERROR);
            buffer.put_u8(e.number());
        }
    }
    buffer.split().freeze()
}

/// What a reply says: the response, with only `header.revision` set, or why there is none.
///
/// # Errors
/// The outer error: these bytes are no reply of this version.
pub fn decode_reply<M: Message + Default>(mut reply: Bytes) -> Result<Result<M, EtcdError>, BadReply> {
    match *reply {
        [FORMAT, REPLY_OK, ..] => {
            let body = reply.split_off(2);
            M::decode(body).map(Ok).map_err(|_| BadReply)
        }
        [FORMAT, REPLY_ERROR, number] => EtcdError::from_number(number).map(Err).ok_or(BadReply),
        _ => Err(BadReply),
    }
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state machine's reply does not decode; the command was executed")]
pub struct BadReply;

#[cfg(test)]
mod tests {
    use pontoon_proto::etcdserverpb::{PutResponse, ResponseHeader};

    use super::*;

    #[test]
    fn commands_and_replies_round_trip() {
        let put = Command::Put(PutRequest { key: "k".into(), value: "v".into(), ..Default::default() });
        assert_eq!(Command::decode(&put.encode()), Ok(put));
        let compact = Command::Compact(CompactionRequest { revision: 7, physical: true });
        assert_eq!(Command::decode(&compact.encode()), Ok(compact));
        let expire = Command::LeaseExpire { id: -7, term: 3 };
        assert_eq!(Command::decode(&expire.encode()), Ok(expire));
        for bad in [&b""[..], &[1], &[2, 1], &[1, 99], &[1, 1, 255], &[1, 7], &[1, 7, 0]] {
            assert_eq!(Command::decode(&Bytes::copy_from_slice(bad)), Err(EtcdError::UnknownCommand));
        }

        let mut buffer = BytesMut::new();
        let header = Some(ResponseHeader { revision: 9, ..Default::default() });
        let ok = PutResponse { header, prev_kv: None };
        let reply = encode_reply(&mut buffer, &Ok(ok.clone()));
        assert_eq!(decode_reply::<PutResponse>(reply), Ok(Ok(ok)));
        let reply = encode_reply(&mut buffer, &Err::<PutResponse, _>(EtcdError::Compacted));
        assert_eq!(decode_reply::<PutResponse>(reply), Ok(Err(EtcdError::Compacted)));
        assert_eq!(decode_reply::<PutResponse>(Bytes::new()), Err(BadReply));
    }

    #[test]
    fn error_numbers_are_unique() {
        for n in 0..=255 {
            if let Some(e) = EtcdError::from_number(n) {
                assert_eq!(e.number(), n);
            }
        }
        assert_eq!(EtcdError::from_number(17), Some(EtcdError::LeaseTtlTooLarge));
    }
}
