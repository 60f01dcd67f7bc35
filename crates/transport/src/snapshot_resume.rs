//! How a snapshot goes on after its connection broke: what the sender keeps until it is answered for, and what the receiver has.
//! No I/O here.
//!
//! An image travels in segments, each a call of its own. The receiver's answer to a segment says that all of it is staged; only
//! then the sender forgets it. When a call breaks, the receiver keeps what it has for a while, and the sender begins the segment
//! again with the image's name: what is there already is checked and passed over. So a broken connection costs at most one
//! segment, and memory is bounded by one segment for each snapshot that is sent.

use bytes::Bytes;

/// A segment, in bytes: large enough that a round trip for each does not show, small enough to keep in memory.
pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;

/// A piece of an image.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) data: Bytes,
    pub(crate) crc32c: u32,
}

/// Where one end is in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes before it.
    pub(crate) offset: u64,
    /// CRC32C of all of them.
    pub(crate) crc32c: u32,
}

impl Place {
    pub(crate) fn after(self, data: &[u8]) -> Self {
        Self { offset: self.offset + data.len() as u64, crc32c: crc32c::crc32c_append(self.crc32c, data) }
    }
}

/// The sender's end.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// The receiver has answered for everything before.
    answered: Place,
    /// The pieces after that which were read, oldest first.
    kept: Vec<Piece>,
    kept_bytes: u64,
    /// The next of them to be sent, and where the image is before it.
    next: usize,
    sent: Place,
}

impl Outgoing {
    /// Begins a call: everything that is not answered for is sent (again). Returns where the call begins.
    pub(crate) fn begin(&mut self) -> Place {
        (self.next, self.sent) = (0, self.answered);
        self.answered
    }

    /// The next piece that was read before, with its offset.
    pub(crate) fn next_kept(&mut self) -> Option<(u64, Piece)> {
        let piece = self.kept.get(self.next)?.clone();
        self.next += 1;
        let offset = self.sent.offset;
        self.sent = self.sent.after(&piece.data);
        Some((offset, piece))
    }

    /// Whether the segment is full: nothing more is read before it is answered for.
    pub(crate) fn is_full(&self) -> bool {
        self.kept_bytes >= SEGMENT_BYTES
    }

    /// A piece was read from the image.
    pub(crate) fn read(&mut self, piece: Piece) {
        self.kept_bytes += piece.data.len() as u64;
        self.kept.push(piece);
    }

    /// Where this call has come to.
    pub(crate) fn sent(&self) -> Place {
        self.sent
    }

    /// The receiver answers for everything that was sent.
    pub(crate) fn answered(&mut self) {
        self.answered = self.sent;
        self.kept.clear();
        self.kept_bytes = 0;
        self.next = 0;
    }
}

/// What the receiver should do with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Stage it.
    New,
    /// It is staged already.
    Known,
    /// It does not follow.
    Misplaced,
}

/// The receiver's end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Incoming {
    has: Place,
}

impl Incoming {
    pub(crate) fn has(&self) -> Place {
        self.has
    }

    /// Whether a call that begins at `offset` can go on from here: it must not leave anything out.
    pub(crate) fn continues(&self, offset: u64) -> bool {
        offset <= self.has.offset
    }

    /// A piece arrives whose own checksum is right.
    pub(crate) fn piece(&mut self, offset: u64, data: &[u8]) -> Arrived {
        if offset == self.has.offset {
            self.has = self.has.after(data);
            Arrived::New
        } else if offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.has.offset) {
            Arrived::Known
        } else {
            Arrived::Misplaced
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(data: Vec<u8>) -> Piece {
        Piece { crc32c: crc32c::crc32c(&data), data: data.into() }
    }

    proptest! {
        // Images of some segments are large for a debug build.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However often calls break, and wherever: the receiver gets each byte once, in order, and the sender keeps one segment.
        #[test]
        fn every_byte_arrives_once(
            sizes in prop::collection::vec(0usize..1_500_000, 0..12),
            breaks in prop::collection::vec((0usize..8, any::<bool>()), 0..10),
        ) {
            let image: Vec<Piece> =
                sizes.iter().enumerate().map(|(n, size)| piece(vec![n as u8; *size])).collect();
            let mut source = image.iter().cloned();
            let (mut outgoing, mut incoming, mut staged) = (Outgoing::default(), Incoming::default(), Vec::new());
            let mut breaks = breaks.into_iter();
            loop {
                // After so many pieces the call breaks, or its answer is lost.
                let (pieces_max, answer_lost) = breaks.next().unwrap_or((usize::MAX, false));
                prop_assert!(incoming.continues(outgoing.begin().offset));
                let (mut ended, mut broken) = (false, false);
                for n in 0.. {
                    if n == pieces_max {
                        broken = true;
                        break;
                    }
                    let (offset, next) = match outgoing.next_kept() {
                        Some(next) => next,
                        None if outgoing.is_full() => break,
                        None => match source.next() {
                            Some(read) => {
                                outgoing.read(read);
                                outgoing.next_kept().expect("it was read")
                            }
                            None => {
                                ended = true;
                                break;
                            }
                        },
                    };
                    match incoming.piece(offset, &next.data) {
                        Arrived::New => staged.extend_from_slice(&next.data),
                        Arrived::Known => {}
                        Arrived::Misplaced => prop_assert!(false, "misplaced at {offset}"),
                    }
                }
                prop_assert!(outgoing.kept_bytes < SEGMENT_BYTES + 1_500_000);
                if broken {
                    continue;
                }
                prop_assert_eq!(outgoing.sent(), incoming.has());
                if answer_lost {
                    continue;
                }
                if ended {
                    break;
                }
                outgoing.answered();
            }
            let whole: Vec<u8> = image.iter().flat_map(|piece| piece.data.iter().copied()).collect();
            prop_assert_eq!(incoming.has(), Place::default().after(&whole));
            prop_assert!(staged == whole);
        }
    }

    #[test]
    fn what_does_not_follow_is_told() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.piece(0, b"abcd"), Arrived::New);
        assert_eq!(incoming.piece(0, b"abcd"), Arrived::Known);
        assert_eq!(incoming.piece(2, b"cdef"), Arrived::Misplaced, "half of it is new");
        assert_eq!(incoming.piece(5, b"f"), Arrived::Misplaced, "a gap");
        assert_eq!(incoming.piece(u64::MAX, b"f"), Arrived::Misplaced);
        assert!(incoming.continues(4) && !incoming.continues(5));
    }
}
