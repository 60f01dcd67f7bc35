//! What goes through the log, and what comes back: one byte of format, one of kind, then etcd's own request message.
//! The entry's id travels beside the command, in the log entry.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pontoon_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    TxnRequest,
};
use prost::Message;

use crate::auth::{AuthChange, Caller};
use crate::error::EtcdError;
use crate::mvcc::restore::RestoreStep;

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
/// A user's name, the auth revision, then a whole command.
const KIND_OF_USER: u8 = 9;
const KIND_ALARM: u8 = 10;
const KIND_QUOTA: u8 = 11;
const KIND_AUTO_COMPACT: u8 = 12;
const KIND_AUTH: u8 = 13;
const KIND_RESTORE: u8 = 14;

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
    /// Raises an alarm, or takes it back.
    Alarm(AlarmRequest),
    /// A store has found the keyspace over its quota, or the leader has found that there is room again.
    Quota {
        /// Whether it is over the quota.
        over: bool,
        /// The store that says so.
        member: u64,
    },
    /// Forgets the past, by the store's own rule: nothing happens if that was done already.
    AutoCompact {
        /// Up to this revision.
        revision: i64,
    },
    /// Changes users or roles.
    Auth(AuthChange),
    /// Fills a new keyspace from a saved one.
    Restore(RestoreStep),
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
            Self::Alarm(r) => encode(KIND_ALARM, r),
            Self::Quota { over, member } => {
                let mut out = BytesMut::with_capacity(2 + 9);
                out.put_slice(&[FORMAT, KIND_QUOTA, u8::from(*over)]);
                out.put_u64_le(*member);
                out.freeze()
            }
            Self::AutoCompact { revision } => {
                let mut out = BytesMut::with_capacity(2 + 8);
                out.put_slice(&[FORMAT, KIND_AUTO_COMPACT]);
                out.put_i64_le(*revision);
                out.freeze()
            }
            Self::Auth(change) => {
                let mut out = BytesMut::from(&[FORMAT, KIND_AUTH][..]);
                change.encode(&mut out);
                out.freeze()
            }
            Self::Restore(step) => {
                let mut out = BytesMut::from(&[FORMAT, KIND_RESTORE][..]);
                step.encode(&mut out);
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
            KIND_ALARM => AlarmRequest::decode(body).map(Self::Alarm),
            KIND_QUOTA if body.len() == 9 => {
                Ok(Self::Quota { over: body.get_u8() == 1, member: body.get_u64_le() })
            }
            KIND_AUTO_COMPACT if body.len() == 8 => Ok(Self::AutoCompact { revision: body.get_i64_le() }),
            KIND_AUTH => return AuthChange::decode(body).map(Self::Auth),
            KIND_RESTORE => return RestoreStep::decode(body).map(Self::Restore),
            _ => return Err(EtcdError::UnknownCommand),
        };
        command.map_err(|_| EtcdError::UnknownCommand)
    }
}

/// The bytes for the log: a command of this caller. One that nobody in particular sends stays as it is.
pub(crate) fn of_caller(caller: &Caller, command: Bytes) -> Bytes {
    let Caller::User { name, revision } = caller else { return command };
    let mut out = BytesMut::with_capacity(2 + 10 + name.len() + command.len());
    out.put_slice(&[FORMAT, KIND_OF_USER]);
    out.put_u64_le(*revision);
    // Names have a bound far below that.
    out.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
    out.put_slice(name.as_bytes());
    out.put_slice(&command);
    out.freeze()
}

/// Takes the caller off what [`of_caller`] made.
pub(crate) fn split_caller(command: &Bytes) -> Result<(Caller, Bytes), EtcdError> {
    let [FORMAT, KIND_OF_USER, rest @ ..] = &command[..] else {
        return Ok((Caller::Nobody, command.clone()));
    };
    let caller = || {
        let (revision, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let name = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
        let name = std::str::from_utf8(name).ok()?;
        Some((name, u64::from_le_bytes(*revision)))
    };
    let (name, revision) = caller().ok_or(EtcdError::UnknownCommand)?;
    let caller = Caller::User { name: name.into(), revision };
    Ok((caller, command.slice(2 + 10 + name.len()..)))
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
        let secret = [7; crate::auth::SECRET_BYTES];
        for command in [
            Command::Alarm(AlarmRequest { action: 1, member_id: 7, alarm: 1 }),
            Command::Quota { over: true, member: 9 },
            Command::AutoCompact { revision: 5 },
            Command::Auth(AuthChange::Enable { secret }),
            Command::Auth(AuthChange::Disable),
            Command::Restore(RestoreStep::Begin { revision: 9, compact_revision: -1, attempt: 7 }),
            Command::Restore(RestoreStep::Piece { number: 1, frames: "frames".into() }),
            Command::Restore(RestoreStep::End { pieces: 2 }),
            Command::Restore(RestoreStep::GiveUp { attempt: 7, pieces: 1 }),
        ] {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
        for bad in [
            &b""[..],
            &[1],
            &[2, 1],
            &[1, 99],
            &[1, 1, 255],
            &[1, 7],
            &[1, 7, 0],
            &[1, 13],
            &[1, 13, 1],
            &[1, 14, 9],
        ] {
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
    fn a_command_says_whose_it_is() {
        let command = Command::Compact(CompactionRequest { revision: 7, physical: true }).encode();
        let user = Caller::User { name: "alice".into(), revision: 5 };
        let stamped = of_caller(&user, command.clone());
        assert_eq!(split_caller(&stamped), Ok((user, command.clone())));
        assert_eq!(of_caller(&Caller::Nobody, command.clone()), command);
        assert_eq!(split_caller(&command), Ok((Caller::Nobody, command.clone())));
        for length in 2..17 {
            assert!(split_caller(&stamped.slice(..length)).is_err(), "{length}");
        }
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
