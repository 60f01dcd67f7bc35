//! Numbers, ids and configurations as bytes, and back.

use std::collections::BTreeSet;

use pontoon_raft_core::types::{Configuration, HardState, LogIndex, ReplicaId, SnapshotMeta, StoreId, Term};

/// The largest index that a store takes or believes, so that what is counted from one never overflows.
pub(crate) const INDEX_MAX: u64 = 1 << 62;

/// Bytes that do not mean anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DecodeError(pub(crate) &'static str);

pub(crate) fn put_u16(out: &mut Vec<u8>, v: u16) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_le_bytes());
}
pub(crate) fn put_bytes(out: &mut Vec<u8>, v: &[u8]) {
    put_u32(out, v.len() as u32);
    out.extend_from_slice(v);
}
pub(crate) fn put_replica(out: &mut Vec<u8>, v: ReplicaId) {
    put_u64(out, v.store.0);
    put_u64(out, v.number);
}
pub(crate) fn put_hard_state(out: &mut Vec<u8>, v: HardState) {
    put_u64(out, v.term.0);
    out.push(u8::from(v.voted_for.is_some()));
    put_replica(out, v.voted_for.unwrap_or_default());
}
pub(crate) fn put_configuration(out: &mut Vec<u8>, v: &Configuration) {
    out.push(u8::from(v.auto_leave));
    for set in [&v.voters, &v.outgoing_voters, &v.learners, &v.next_learners] {
        put_u16(out, u16::try_from(set.len()).expect("a configuration has at most 65535 members of a kind"));
        for replica in set {
            put_replica(out, *replica);
        }
    }
}
pub(crate) fn put_snapshot(out: &mut Vec<u8>, v: &SnapshotMeta) {
    put_u64(out, v.index.0);
    put_u64(out, v.term.0);
    put_u64(out, v.election_timer_ms);
    put_configuration(out, &v.configuration);
}

/// Reads numbers off the front of bytes.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    all: &'a [u8],
    pos: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(all: &'a [u8]) -> Self {
        Self { all, pos: 0 }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.pos == self.all.len()
    }
    /// How many bytes were read.
    pub(crate) fn pos(&self) -> usize {
        self.pos
    }
    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.all.len() - self.pos
    }
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.all[self.pos..];
        if n > rest.len() {
            return Err(DecodeError("the bytes end too early"));
        }
        self.pos += n;
        Ok(&rest[..n])
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u32()? as usize;
        self.take(n)
    }
    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let bytes = self.bytes()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| DecodeError("a text is not UTF-8"))?.to_owned())
    }
    pub(crate) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError("a yes-or-no byte is neither 0 nor 1")),
        }
    }
    /// A log index, which other indexes can be counted from.
    pub(crate) fn index(&mut self) -> Result<LogIndex, DecodeError> {
        match self.u64()? {
            index if index <= INDEX_MAX => Ok(LogIndex(index)),
            _ => Err(DecodeError("an index is too large")),
        }
    }
    pub(crate) fn replica(&mut self) -> Result<ReplicaId, DecodeError> {
        Ok(ReplicaId { store: StoreId(self.u64()?), number: self.u64()? })
    }
    pub(crate) fn hard_state(&mut self) -> Result<HardState, DecodeError> {
        let term = Term(self.u64()?);
        let voted = self.flag()?;
        let replica = self.replica()?;
        Ok(HardState { term, voted_for: voted.then_some(replica) })
    }
    pub(crate) fn configuration(&mut self) -> Result<Configuration, DecodeError> {
        let auto_leave = self.flag()?;
        let mut sets = [const { BTreeSet::new() }; 4];
        for set in &mut sets {
            for _ in 0..self.u16()? {
                set.insert(self.replica()?);
            }
        }
        let [voters, outgoing_voters, learners, next_learners] = sets;
        Ok(Configuration { voters, outgoing_voters, learners, next_learners, auto_leave })
    }
    pub(crate) fn snapshot(&mut self) -> Result<SnapshotMeta, DecodeError> {
        Ok(SnapshotMeta {
            index: self.index()?,
            term: Term(self.u64()?),
            election_timer_ms: self.u64()?,
            configuration: self.configuration()?,
        })
    }
}

/// `bytes` with its checksum before it, as small files and sled values are kept.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    put_u32(&mut out, crc32c::crc32c(bytes));
    out.extend_from_slice(bytes);
    out
}

/// The inside of [`sealed`] bytes, if the checksum holds.
pub(crate) fn unsealed(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let (crc, rest) = bytes.split_at_checked(4).ok_or(DecodeError("too short for a checksum"))?;
    if crc != crc32c::crc32c(rest).to_le_bytes() {
        return Err(DecodeError("the checksum does not match"));
    }
    Ok(rest)
}
