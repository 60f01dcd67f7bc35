//! Puts large messages together that come in pieces.
//!
//! What the first piece says is believed as far as there is credit for it, which is a promise of memory; without credit memory
//! grows with what has come. A message has its place in
//! the receive budget piece by piece, and its credit from its first piece on. One that never ends keeps what it has until its
//! stream is over, within the bounds of its peer: eight messages, of at most the largest message each, and its credit or its
//! share of the budget.

use std::sync::Arc;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{GroupId, StoreId};

use crate::credit_book::Account;
use crate::error::WireError;
use crate::receive_budget::{PeerShare, ReceiveBudget, ReceivePermit};
use crate::send_queue::LARGE_MAX;
use crate::wire::pieces::{Whole, whole};
use crate::wire::{self, Ends};

/// An encoding is at most so much longer than its charge says: headers, beyond those that are charged.
const SLACK_BYTES: u64 = 64 << 10;

/// The largest message that [`pass_gate`] takes.
const GATE_BYTES_MAX: u64 = 16 << 20;

/// A message of which the first piece has come.
#[derive(Debug)]
struct Partial {
    number: u64,
    of: pb::PieceOf,
    total: usize,
    /// What has come, even if it was thrown away.
    come: usize,
    data: Vec<u8>,
    charge: u64,
    /// There was no room for it. It has no credit, so losing it is this side's business.
    dropped: bool,
    permit: ReceivePermit,
}

/// What holds the bytes of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purse<'a> {
    pub(crate) budget: &'a Arc<ReceiveBudget>,
    pub(crate) share: &'a Arc<PeerShare>,
    pub(crate) account: Option<&'a Account>,
}

/// What a piece led to.
#[derive(Debug)]
pub(crate) enum Added {
    /// More is to come.
    Part,
    /// It was the last one.
    Whole(Box<Whole>, ReceivePermit),
    /// It was the last one of a message for which there was no room.
    Dropped,
}

/// The unfinished messages of one stream.
#[derive(Debug)]
pub(crate) struct Assembler {
    partial: Vec<Partial>,
    /// The number of the last one that began.
    last: u64,
    message_bytes_max: usize,
}

fn bad(why: &'static str) -> WireError {
    WireError::Piece { why }
}

impl Assembler {
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self { partial: Vec::new(), last: 0, message_bytes_max }
    }

    /// What has come of messages that are not whole.
    pub(crate) fn bytes(&self) -> usize {
        self.partial.iter().map(|partial| partial.data.len()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// The stream cannot be understood any more: it is to be closed.
    pub(crate) fn add(
        &mut self,
        piece: &pb::Piece,
        ends: Ends,
        purse: Purse<'_>,
    ) -> Result<Added, WireError> {
        if piece.data.is_empty() {
            return Err(bad("holds nothing"));
        }
        let at = match self.partial.iter().position(|partial| partial.number == piece.message) {
            Some(at) => at,
            None => self.begin(piece, purse)?,
        };
        let partial = &mut self.partial[at];
        if piece.offset != partial.come as u64 {
            return Err(bad("does not follow the one before it"));
        }
        if piece.data.len() > partial.total - partial.come {
            return Err(bad("goes beyond the end of its message"));
        }
        partial.take(&piece.data, purse);
        if partial.come < partial.total {
            return Ok(Added::Part);
        }
        self.partial.swap_remove(at).finish(ends)
    }

    /// Returns the new one's place.
    fn begin(&mut self, piece: &pb::Piece, purse: Purse<'_>) -> Result<usize, WireError> {
        if piece.message <= self.last {
            return Err(bad("is of a message that is over"));
        }
        if self.partial.len() >= LARGE_MAX {
            return Err(WireError::TooMany { what: "unfinished messages", max: LARGE_MAX });
        }
        let total = usize::try_from(piece.total).ok().filter(|total| *total <= self.message_bytes_max);
        let total = total.ok_or(WireError::OutOfRange {
            what: "the length of a message in pieces",
            found: piece.total,
            min: 1,
            max: self.message_bytes_max as u64,
        })?;
        let of = piece.of();
        let mut permit = purse.budget.take(purse.share, 0, None);
        if of == pb::PieceOf::Append
            && let Some(account) = purse.account
        {
            let charge = account
                .received(piece.charge)
                .ok_or_else(|| bad("begins a message without credit for it"))?;
            permit.charge(charge);
            if piece.total > piece.charge.saturating_add(SLACK_BYTES) {
                return Err(bad("begins a message that is longer than its charge"));
            }
        }
        self.last = piece.message;
        // What the peer has credit for is promised to it. At once, for a large buffer that grows is copied, and whoever copies
        // megabytes holds up heartbeats; nor is memory used before something is written to it.
        let data = if permit.has_credit() { Vec::with_capacity(total) } else { Vec::new() };
        self.partial.push(Partial {
            number: piece.message,
            of,
            total,
            come: 0,
            data,
            charge: piece.charge,
            dropped: false,
            permit,
        });
        Ok(self.partial.len() - 1)
    }
}

impl Partial {
    fn take(&mut self, data: &[u8], purse: Purse<'_>) {
        self.come += data.len();
        if self.dropped {
            return;
        }
        let has_credit = self.permit.has_credit();
        if !has_credit && !purse.budget.has_room(purse.share, data.len() as u64, false) {
            (self.dropped, self.data, self.permit) = (true, Vec::new(), ReceivePermit::default());
            return;
        }
        self.permit.grow(data.len() as u64);
        if self.data.capacity() - self.data.len() < data.len() {
            // Twice what there is, so that copies cost no more than what comes; but no more than the whole.
            let more = self.data.len().max(data.len()).min(self.total - self.data.len());
            self.data.reserve_exact(more);
        }
        self.data.extend_from_slice(data);
    }

    fn finish(mut self, ends: Ends) -> Result<Added, WireError> {
        if self.dropped {
            return Ok(Added::Dropped);
        }
        let whole = whole(self.of, Bytes::from(self.data), ends)?;
        if let Whole::Append(_, message) = &whole {
            let charge = crate::receive::charge_bytes(message);
            if self.permit.has_credit() && charge != self.charge {
                return Err(bad("began a message with another charge than it has"));
            }
            let rest = charge.saturating_sub(self.permit.bytes());
            self.permit.grow(rest);
        }
        Ok(Added::Whole(Box::new(whole), self.permit))
    }
}

/// Passes the bytes of one frame through the gate, as if `from` had sent them to `to` on a new stream, and returns its Raft
/// messages. For those who want to see what the gate lets in, such as the fuzz target.
///
/// # Errors
/// The frame is refused.
pub fn pass_gate(encoded: Bytes, from: StoreId, to: StoreId) -> Result<Vec<(GroupId, Message)>, WireError> {
    let ends = Ends { from, to };
    let mut frame = wire::open(&encoded, ends)?;
    let (budget, share) = (Arc::new(ReceiveBudget::new(GATE_BYTES_MAX)), Arc::default());
    let purse = Purse { budget: &budget, share: &share, account: None };
    let mut assembler = Assembler::new(usize::try_from(GATE_BYTES_MAX).unwrap_or(usize::MAX));
    for piece in &frame.pieces {
        if let Added::Whole(whole, _) = assembler.add(piece, ends, purse)?
            && let Whole::Append(group, message) = *whole
        {
            frame.messages.push((group, message));
        }
    }
    Ok(frame.messages)
}

#[cfg(test)]
mod tests;
