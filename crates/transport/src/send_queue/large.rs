//! Large messages that are sent in pieces, so that what is small need not wait for them.

use std::collections::VecDeque;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::types::GroupId;

use super::item::Item;

/// Messages that are unfinished at a time: a part of the protocol (`peer.proto`, `Piece.message`).
pub(crate) const LARGE_MAX: usize = 8;

/// One piece, and the most that a frame takes of large messages while others wait: a quarter of what they get, so that
/// both go on.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// A large message on its way.
#[derive(Debug)]
pub(crate) struct Large {
    pub(crate) group: GroupId,
    /// What it is, without its data: for whoever is to be told if it is lost.
    pub(crate) item: Item,
    pub(crate) of: pb::PieceOf,
    /// What it is charged (`LaneReply.credit`).
    pub(crate) charge: u64,
    /// What is not sent yet of its encoding.
    pub(crate) rest: VecDeque<Bytes>,
}

#[derive(Debug)]
struct UnderWay {
    large: Large,
    number: u64,
    total: usize,
    sent: usize,
}

/// The large messages of one stream that are under way. Each has its turn.
#[derive(Debug, Default)]
pub(super) struct Larges {
    under_way: VecDeque<UnderWay>,
    started: u64,
    /// Groups that have a large message, for which there was no room.
    waiting: VecDeque<GroupId>,
}

impl Larges {
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// What is not sent yet of them.
    pub(super) fn bytes(&self) -> usize {
        self.under_way.iter().map(|large| large.total - large.sent).sum()
    }

    /// Whether another one of so many bytes may be begun: one of any size, and others as far as those keep within `bytes_max`
    /// together.
    pub(super) fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        let (mut sum, mut largest) = (bytes, bytes);
        for large in &self.under_way {
            sum += large.total - large.sent;
            largest = largest.max(large.total - large.sent);
        }
        self.under_way.len() < LARGE_MAX && sum - largest <= bytes_max
    }

    /// Remembers to let `group` try again.
    pub(super) fn wait(&mut self, group: GroupId) {
        self.waiting.push_back(group);
    }

    /// Who may try again because nothing is under way any more: the large message of the one that was to be next may have
    /// become stale.
    pub(super) fn retry(&mut self) -> VecDeque<GroupId> {
        if self.under_way.is_empty() { std::mem::take(&mut self.waiting) } else { VecDeque::new() }
    }

    pub(super) fn begin(&mut self, large: Large) {
        self.started += 1;
        let total = large.rest.iter().map(Bytes::len).sum();
        self.under_way.push_back(UnderWay { large, number: self.started, total, sent: 0 });
    }

    /// The next piece, of at most so many bytes; and, if it was the last one of its message, which groups may go on.
    pub(super) fn next_piece(&mut self, bytes_max: usize) -> Option<(pb::Piece, GroupId, Vec<GroupId>)> {
        let mut turn = self.under_way.pop_front()?;
        let bytes_max = bytes_max.min(PIECE_BYTES);
        let mut data = Bytes::new();
        if let Some(front) = turn.large.rest.front_mut() {
            data = front.split_to(front.len().min(bytes_max));
            if front.is_empty() {
                turn.large.rest.pop_front();
            }
        }
        let first = turn.sent == 0;
        let piece = pb::Piece {
            message: turn.number,
            offset: turn.sent as u64,
            total: if first { turn.total as u64 } else { 0 },
            of: if first { turn.large.of.into() } else { 0 },
            charge: if first { turn.large.charge } else { 0 },
            data,
        };
        turn.sent += piece.data.len();
        let group = turn.large.group;
        let mut go_on = Vec::new();
        if turn.large.rest.is_empty() {
            go_on.push(group);
            go_on.extend(self.waiting.pop_front());
        } else {
            self.under_way.push_back(turn);
        }
        Some((piece, group, go_on))
    }

    /// Those that are not sent whole: the stream is over.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Item> + use<> {
        std::mem::take(self).under_way.into_iter().map(|large| large.large.item)
    }
}
