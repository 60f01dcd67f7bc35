//! Who waits for which entry id on this store, and how much may wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pontoon_flow::Class;
use pontoon_raft_core::Attempt;
use pontoon_raft_core::types::{EntryId, Term};
use tokio::sync::oneshot;

use crate::error::ProposeError;
use crate::line::Spot;

/// What a relayed command costs beside its data.
pub(crate) const RELAYED_CHARGE_BYTES: usize = 160;

/// The reply of the state machine, or why there is none.
pub(crate) type ProposalResult = Result<Bytes, ProposeError>;

/// One command whose caller waits on this store.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Wakes the caller.
    pub(crate) reply: oneshot::Sender<ProposalResult>,
    /// What kind of work it is.
    pub(crate) class: Class,
    /// The command, kept so that it can be proposed again once it is certain that an earlier attempt came to nothing.
    pub(crate) data: Bytes,
    /// Whether it is in a leader's hands, and when it may be handed on again without being executed twice.
    pub(crate) attempt: Attempt,
    /// The number of the attempt under way, if it was relayed; see `pontoon_raft_core::relay`.
    pub(crate) number: u64,
    /// The leader said that the command is in progress: the caller is not told otherwise before this.
    pub(crate) alive_until: Option<tokio::time::Instant>,
    /// While it waits here for tokens.
    pub(crate) spot: Option<Spot>,
}

impl Waiter {
    pub(crate) fn new(reply: oneshot::Sender<ProposalResult>, class: Class, data: Bytes) -> Self {
        Self { reply, class, data, attempt: Attempt::default(), number: 0, alive_until: None, spot: None }
    }

    /// Whether an answer about this attempt says something about the command now.
    pub(crate) fn is_of(&self, term: Term, number: u64) -> bool {
        self.attempt.is_of(term) && self.number == number
    }
}

/// The waiting commands of one group. Shared by the callers, the shard and the apply worker; held for moments only.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<EntryId, Waiter>>);

impl Waiters {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<EntryId, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one caller, if it still waits.
    pub(crate) fn finish(&self, id: EntryId, result: ProposalResult) {
        if let Some(waiter) = self.lock().remove(&id) {
            // The caller may have given up meanwhile; that is its right.
            let _ = waiter.reply.send(result);
        }
    }

    /// Answers everybody.
    pub(crate) fn finish_all(&self, error: &ProposeError) {
        for (_, waiter) in self.lock().drain() {
            let _ = waiter.reply.send(Err(error.clone()));
        }
    }
}

/// Makes entry ids that no other process, and no earlier run of this one, makes.
#[derive(Debug)]
pub(crate) struct EntryIds {
    origin: u64,
    next: std::sync::atomic::AtomicU64,
}

impl EntryIds {
    /// `origin` must be unique to this run of this store.
    pub(crate) fn new(origin: u64) -> Self {
        Self { origin, next: std::sync::atomic::AtomicU64::new(1) }
    }

    pub(crate) fn next(&self) -> EntryId {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        EntryId((u128::from(self.origin) << 64) | u128::from(n))
    }

    /// A number that is different in every run of every store.
    pub(crate) fn fold(&self) -> u64 {
        self.origin
    }

    /// Whether this run made the id: nobody here can wait for one that it did not.
    pub(crate) fn is_ours(&self, id: EntryId) -> bool {
        (id.0 >> 64) as u64 == self.origin
    }
}

/// A bound on what waits: a count and bytes. Taken before anything is queued, given back when the wait ends.
#[derive(Debug)]
pub(crate) struct Budget {
    count: AtomicUsize,
    bytes: AtomicUsize,
    count_max: usize,
    bytes_max: usize,
}

impl Budget {
    pub(crate) fn new(count_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), bytes: AtomicUsize::new(0), count_max, bytes_max })
    }

    /// Takes one place of `bytes`, or nothing.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Place { budget: Arc::clone(self), bytes };
        // A single command larger than what is left may still go alone, or it could never go at all.
        (count < self.count_max && (held == 0 || held + bytes <= self.bytes_max)).then_some(place)
    }

    /// The most bytes that wait.
    pub(crate) const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What waits now: count and bytes.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// A taken place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.budget.count.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_refuses_what_does_not_fit_and_forgets_the_refused() {
        let budget = Budget::new(2, 100);
        let first = budget.take(60).expect("room");
        assert!(budget.take(60).is_none(), "bytes");
        assert_eq!(budget.held(), (1, 60), "a refusal holds nothing");
        let second = budget.take(40).expect("room");
        assert!(budget.take(0).is_none(), "count");
        drop((first, second));
        assert_eq!(budget.held(), (0, 0));
        assert!(budget.take(1000).is_some(), "one that is too large for the bound may go alone");
    }

    #[test]
    fn ids_are_distinct_and_known_as_ours() {
        let ids = EntryIds::new(7);
        let (a, b) = (ids.next(), ids.next());
        assert_ne!(a, b);
        assert!(ids.is_ours(a) && !EntryIds::new(8).is_ours(a));
    }
}
