//! One record: what one round made durable.
//!
//! ```text
//!  0  magic        u32
//!  4  body length  u32
//!  8  first batch  u64
//! 16  segment      u64   the id of the segment it was written to: stale records of an earlier use do not match
//! 24  body crc32c  u32
//! 28  head crc32c  u32   of the 28 bytes before
//! 32  body
//! ```
//! The next record begins at the next multiple of eight. Until it is written, 32 zero bytes stand there.

/// Bytes before a record's body, and zero bytes that stand after the last record.
pub(crate) const HEAD_BYTES: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"PTJ1");

/// What a record's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) body_len: u32,
    pub(crate) first_batch: u64,
    pub(crate) segment: u64,
    pub(crate) body_crc: u32,
}

/// What stands at a place where a record may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A whole record with good checksums, of the right segment.
    Record(Head),
    /// The zero bytes after the last record, or the end of the segment.
    End,
    /// Neither.
    Bad(&'static str),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.first_batch.to_le_bytes());
        out[16..24].copy_from_slice(&self.segment.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// A head with the right magic and a good checksum, of any segment.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEAD_BYTES
            || u32_at(bytes, 0) != MAGIC
            || u32_at(bytes, 28) != crc32c::crc32c(&bytes[..28])
        {
            return None;
        }
        Some(Self {
            body_len: u32_at(bytes, 4),
            first_batch: u64_at(bytes, 8),
            segment: u64_at(bytes, 16),
            body_crc: u32_at(bytes, 24),
        })
    }

    /// The bytes from this record's begin to the next one's.
    pub(crate) fn stride(&self) -> usize {
        stride(self.body_len as usize)
    }
}

/// The bytes from the begin of a record with such a body to the begin of the next.
pub(crate) fn stride(body_len: usize) -> usize {
    (HEAD_BYTES + body_len).next_multiple_of(8)
}

/// Looks at the record that begins at `offset` of a segment's bytes.
pub(crate) fn look(segment_bytes: &[u8], offset: usize, segment: u64) -> Found {
    let Some(rest) = segment_bytes.get(offset..).filter(|rest| rest.len() >= HEAD_BYTES) else {
        return Found::End;
    };
    if rest[..HEAD_BYTES].iter().all(|b| *b == 0) {
        return Found::End;
    }
    let Some(head) = Head::decode(rest) else {
        return Found::Bad("the record's head is unreadable");
    };
    if head.segment != segment {
        return Found::Bad("the record's head is of an earlier use of the file");
    }
    let Some(body) = rest.get(HEAD_BYTES..HEAD_BYTES + head.body_len as usize) else {
        return Found::Bad("the record is longer than its segment");
    };
    if crc32c::crc32c(body) != head.body_crc {
        return Found::Bad("the record's body does not match its checksum");
    }
    Found::Record(head)
}

/// The first whole record of `segment` that begins after `offset`, at any multiple of eight.
pub(crate) fn find_after(segment_bytes: &[u8], offset: usize, segment: u64) -> Option<(usize, Head)> {
    let mut at = (offset + 8).next_multiple_of(8);
    while at + HEAD_BYTES <= segment_bytes.len() {
        if u32_at(segment_bytes, at) == MAGIC
            && let Found::Record(head) = look(segment_bytes, at, segment)
        {
            return Some((at, head));
        }
        at += 8;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_round_trip_and_every_flip_is_seen() {
        let head = Head { body_len: 7, first_batch: 42, segment: 3, body_crc: 9 };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_an_earlier_use_is_not_taken() {
        let body = [5; 16];
        let head = Head { body_len: 16, first_batch: 1, segment: 3, body_crc: crc32c::crc32c(&body) };
        let mut bytes = head.encode().to_vec();
        bytes.extend(body);
        bytes.extend([0; 64]);
        assert_eq!(look(&bytes, 0, 3), Found::Record(head));
        assert!(matches!(look(&bytes, 0, 4), Found::Bad(_)));
        assert_eq!(look(&bytes, head.stride(), 3), Found::End);
    }
}
