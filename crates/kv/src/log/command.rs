//! What stands in the log of a log group, and what became of it.

use bytes::{BufMut as _, Bytes, BytesMut};
use pontoon_raft_core::types::{EntryId, LogIndex};
use prost::Message as _;

/// Begins every command; another value is one of a newer version.
const FORMAT: u8 = 1;

/// One entry to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Names it; never [`EntryId::NONE`]. Two appends of the same id are one.
    pub id: EntryId,
    /// The entry that must be the last one; [`EntryId::NONE`]: the log must be empty. `None`: whatever it is.
    pub prerequisite: Option<EntryId>,
    /// What it says.
    pub data: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Record {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    prerequisite: Option<Bytes>,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

impl Append {
    /// As a command for the group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = |id: EntryId| Bytes::copy_from_slice(&id.0.to_be_bytes());
        let record = Record {
            id: bytes(self.id),
            prerequisite: self.prerequisite.map(bytes),
            data: self.data.clone(),
        };
        let mut out = BytesMut::with_capacity(1 + record.encoded_len());
        out.put_u8(FORMAT);
        // A buffer that grows always has room.
        record.encode(&mut out).expect("BytesMut grows");
        out.freeze()
    }

    /// `None` if it is none that this version knows.
    pub(super) fn decode(command: &Bytes) -> Option<Self> {
        if command.first() != Some(&FORMAT) {
            return None;
        }
        let record = Record::decode(command.slice(1..)).ok()?;
        let id = |bytes: &Bytes| Some(EntryId(u128::from_be_bytes(bytes.as_ref().try_into().ok()?)));
        let prerequisite = match &record.prerequisite {
            None => None,
            Some(bytes) => Some(id(bytes)?),
        };
        let append = Self { id: id(&record.id)?, prerequisite, data: record.data };
        (append.id != EntryId::NONE).then_some(append)
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its index.
    pub index: LogIndex,
    /// It was there already: an earlier attempt with this id was the one.
    pub repeated: bool,
}

/// Why nothing was appended. Certain: no attempt with this id that was judged has appended anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendRefused {
    /// The log's last entry is another one.
    #[error("bad prerequisite: the log's last entry is {last}; read on from there and decide anew")]
    BadPrerequisite {
        /// The id of the last entry; [`EntryId::NONE`] if there is none.
        last: EntryId,
    },
    /// There is an entry of this id that says something else.
    #[error("the id names another entry, at index {index}: an id is for one entry; choose another")]
    IdTaken {
        /// Where that is.
        index: LogIndex,
    },
    /// A command that this version does not know.
    #[error("a command of a newer version; upgrade this store")]
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Reply {
    #[prost(enumeration = "Outcome", tag = "1")]
    outcome: i32,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(fixed64, tag = "3")]
    last_high: u64,
    #[prost(fixed64, tag = "4")]
    last_low: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum Outcome {
    Unknown = 0,
    Appended = 1,
    Repeated = 2,
    BadPrerequisite = 3,
    IdTaken = 4,
}

pub(super) fn encode_reply(result: &Result<Appended, AppendRefused>) -> Bytes {
    let reply = |outcome: Outcome, index: LogIndex, last: EntryId| Reply {
        outcome: outcome as i32,
        index: index.0,
        last_high: (last.0 >> 64) as u64,
        last_low: last.0 as u64,
    };
    let none = EntryId::NONE;
    let reply = match *result {
        Ok(Appended { index, repeated: false }) => reply(Outcome::Appended, index, none),
        Ok(Appended { index, repeated: true }) => reply(Outcome::Repeated, index, none),
        Err(AppendRefused::BadPrerequisite { last }) => reply(Outcome::BadPrerequisite, LogIndex::ZERO, last),
        Err(AppendRefused::IdTaken { index }) => reply(Outcome::IdTaken, index, none),
        Err(AppendRefused::Unknown) => reply(Outcome::Unknown, LogIndex::ZERO, none),
    };
    reply.encode_to_vec().into()
}

/// A reply that does not decode: a mistake of this build, since it comes from this process's own state machine.
#[derive(Debug, thiserror::Error)]
#[error("the log's reply cannot be decoded: {0}")]
pub struct BadLogReply(#[from] prost::DecodeError);

/// What became of an [`Append`].
///
/// # Errors
/// It is no reply of a log.
pub fn decode_reply(reply: &Bytes) -> Result<Result<Appended, AppendRefused>, BadLogReply> {
    let reply = Reply::decode(reply.clone())?;
    let index = LogIndex(reply.index);
    let last = EntryId((u128::from(reply.last_high) << 64) | u128::from(reply.last_low));
    Ok(match reply.outcome() {
        Outcome::Appended => Ok(Appended { index, repeated: false }),
        Outcome::Repeated => Ok(Appended { index, repeated: true }),
        Outcome::BadPrerequisite => Err(AppendRefused::BadPrerequisite { last }),
        Outcome::IdTaken => Err(AppendRefused::IdTaken { index }),
        Outcome::Unknown => Err(AppendRefused::Unknown),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_replies_round_trip() {
        for prerequisite in [None, Some(EntryId::NONE), Some(EntryId(u128::MAX))] {
            let append = Append { id: EntryId(7), prerequisite, data: "x".into() };
            let bytes = append.encode();
            assert_eq!(Append::decode(&bytes), Some(append));
            for cut in 0..bytes.len() {
                assert_ne!(
                    Append::decode(&bytes.slice(..cut)).map(|a| a.data),
                    Some("x".into()),
                    "cut at {cut}"
                );
            }
        }
        let nameless = Append { id: EntryId::NONE, prerequisite: None, data: Bytes::new() };
        assert_eq!(Append::decode(&nameless.encode()), None);
        assert_eq!(Append::decode(&Bytes::from_static(b"\x02...")), None);
        for result in [
            Ok(Appended { index: LogIndex(9), repeated: false }),
            Ok(Appended { index: LogIndex(9), repeated: true }),
            Err(AppendRefused::BadPrerequisite { last: EntryId(u128::MAX - 5) }),
            Err(AppendRefused::IdTaken { index: LogIndex(3) }),
            Err(AppendRefused::Unknown),
        ] {
            assert_eq!(decode_reply(&encode_reply(&result)).expect("decodes"), result);
        }
    }
}
