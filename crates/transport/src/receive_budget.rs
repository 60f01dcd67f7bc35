//! Bytes received and not yet processed: one budget per store, shared by its peers so that a flooding one leaves room
//! for the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pontoon_raft_core::types::Entry;

use crate::credit_book::Charge;

/// The charge for a message beyond its payload: its place in queues, and the entry headers around small commands.
pub(crate) const MESSAGE_CHARGE_BYTES: u64 = 128;

/// What an append with these entries is charged. Both ends of a link count in it, so it is part of the protocol
/// (`peer.proto`, `LaneReply.credit`).
pub(crate) fn charge(entries: &[Entry]) -> u64 {
    MESSAGE_CHARGE_BYTES + entries.iter().map(Entry::size_bytes).sum::<u64>()
}

/// The store's budget.
///
/// A peer may hold at most twice what is left: alone it gets two thirds of the budget, and however many others flood,
/// something remains for a newcomer (dynamic thresholds, as shared-memory switches use them).
#[derive(Debug)]
pub(crate) struct ReceiveBudget {
    max: u64,
    used: AtomicU64,
}

/// One peer's share.
#[derive(Debug, Default)]
pub(crate) struct PeerShare {
    used: AtomicU64,
}

impl PeerShare {
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }
}

/// Holds a part of the receive budget until it is dropped.
#[derive(Debug, Default)]
pub struct ReceivePermit {
    held: Option<(Arc<ReceiveBudget>, Arc<PeerShare>)>,
    bytes: u64,
    /// What its sender had credit for.
    charge: Option<Charge>,
}

impl ReceivePermit {
    /// A permit that holds nothing, for tests of [`Inbound`](crate::Inbound) implementations.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// The bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl ReceivePermit {
    /// Takes more, whether or not there is room.
    pub(crate) fn grow(&mut self, bytes: u64) {
        if let Some((budget, share)) = &self.held {
            budget.used.fetch_add(bytes, Ordering::AcqRel);
            share.used.fetch_add(bytes, Ordering::AcqRel);
            self.bytes += bytes;
        }
    }

    /// What it holds is what its sender had this credit for.
    pub(crate) fn charge(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.charge.is_some()
    }
}

impl Drop for ReceivePermit {
    fn drop(&mut self) {
        // Before the credit that it frees is used.
        if let Some((budget, share)) = &self.held {
            budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
            share.used.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        drop(self.charge.take());
    }
}

impl ReceiveBudget {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0) }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Whether `share` may take `bytes` more. Control messages pass `reserve`: they may overdraw the budget by half,
    /// because dropping them costs elections, but not without end.
    ///
    /// Two peers that ask at the same moment may both be let in: the excess is one frame per connection.
    pub(crate) fn has_room(&self, share: &PeerShare, bytes: u64, reserve: bool) -> bool {
        let max = if reserve { self.max + self.max / 2 } else { self.max };
        let left = max.saturating_sub(self.used());
        let own = share.used();
        // An empty store takes one message whatever its size, or it could never be taken at all.
        left == max || bytes <= left && own.saturating_add(bytes) <= left.saturating_mul(2)
    }

    /// Takes `bytes`, whether or not there is room. `charge`: what of them the sender had credit for.
    pub(crate) fn take(
        self: &Arc<Self>,
        share: &Arc<PeerShare>,
        bytes: u64,
        charge: Option<Charge>,
    ) -> ReceivePermit {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        share.used.fetch_add(bytes, Ordering::AcqRel);
        ReceivePermit { held: Some((Arc::clone(self), Arc::clone(share))), bytes, charge }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_room_and_everything_returns() {
        let budget = Arc::new(ReceiveBudget::new(9_000));
        let (flood, other) = (Arc::new(PeerShare::default()), Arc::new(PeerShare::default()));
        let mut held = Vec::new();
        while budget.has_room(&flood, 100, false) {
            held.push(budget.take(&flood, 100, None));
        }
        assert_eq!(budget.used(), 6_000);
        assert!(budget.has_room(&other, 1_000, false));
        assert!(budget.has_room(&flood, 100, true), "control messages have a reserve");
        drop(held);
        assert_eq!(budget.used(), 0);
        assert_eq!(flood.used(), 0);
    }
}
