//! What callers, the shard and the apply worker of one group share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use pontoon_raft_core::types::{GroupId, LogIndex, StoreId};
use tokio::sync::oneshot;

use crate::error::{ProposeError, ReadError, StopReason};
use crate::proposals::Waiters;

/// The answer to a read barrier: everything up to here is applied on this store.
pub(crate) type ReadResult = Result<LogIndex, ReadError>;

/// One group's meeting point. Small, so that an idle group costs little.
#[derive(Debug)]
pub(crate) struct GroupShared {
    pub(crate) id: GroupId,
    /// Which shard owns it.
    pub(crate) shard: usize,
    /// Which apply worker owns its state machine.
    pub(crate) worker: usize,
    pub(crate) waiters: Waiters,
    /// Written by the apply worker after the state machine has the entries.
    applied: AtomicU64,
    /// Written by the shard; for status calls.
    commit: AtomicU64,
    /// Written by the shard; for response headers, which need no more than a recent value.
    term: AtomicU64,
    /// Written by the shard: the leader's store, 0 if unknown.
    leader: AtomicU64,
    /// Written by the shard: how many members the configuration in force has; more while it is a joint one.
    members: AtomicUsize,
    /// Written by the shard: commands wait for the followers' stores to have room.
    waits_for_room: AtomicBool,
    /// Reads whose index is confirmed and not yet applied here.
    readers: Mutex<BTreeMap<LogIndex, Vec<oneshot::Sender<ReadResult>>>>,
    /// Set once the replica cannot go on (its state machine failed, or it was closed).
    /// Why it takes nothing any more; the first reason stays.
    stopped: OnceLock<StopReason>,
}

impl GroupShared {
    pub(crate) fn new(id: GroupId, shard: usize, worker: usize, applied: LogIndex) -> Self {
        Self {
            id,
            shard,
            worker,
            waiters: Waiters::default(),
            applied: AtomicU64::new(applied.0),
            commit: AtomicU64::new(applied.0),
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            members: AtomicUsize::new(0),
            waits_for_room: AtomicBool::new(false),
            readers: Mutex::default(),
            stopped: OnceLock::new(),
        }
    }

    pub(crate) fn applied(&self) -> LogIndex {
        LogIndex(self.applied.load(Ordering::Acquire))
    }

    pub(crate) fn commit(&self) -> LogIndex {
        LogIndex(self.commit.load(Ordering::Relaxed))
    }

    pub(crate) fn set_commit(&self, index: LogIndex) {
        self.commit.store(index.0, Ordering::Relaxed);
    }

    pub(crate) fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }

    pub(crate) fn set_members(&self, members: usize) {
        self.members.store(members, Ordering::Relaxed);
    }

    pub(crate) fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    pub(crate) fn leader(&self) -> Option<StoreId> {
        Some(StoreId(self.leader.load(Ordering::Relaxed))).filter(|s| s.0 != 0)
    }

    pub(crate) fn set_leadership(&self, term: u64, leader: Option<StoreId>) {
        self.term.store(term, Ordering::Relaxed);
        self.leader.store(leader.map_or(0, |s| s.0), Ordering::Relaxed);
    }

    /// Answers `readers` once `index` is applied: now, if it is.
    pub(crate) fn read_at(
        &self,
        index: LogIndex,
        readers: impl IntoIterator<Item = oneshot::Sender<ReadResult>>,
    ) {
        let mut waiting = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked under the lock that `set_applied` takes after it has stored the index: no reader can fall between.
        let applied = self.applied();
        if index <= applied {
            drop(waiting);
            for reader in readers {
                let _ = reader.send(Ok(applied));
            }
        } else {
            waiting.entry(index).or_default().extend(readers);
        }
    }

    /// Tells that the state machine has everything up to `index`.
    pub(crate) fn set_applied(&self, index: LogIndex) {
        self.applied.store(index.0, Ordering::Release);
        let ready = {
            let mut waiting = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_empty() {
                return;
            }
            let later = waiting.split_off(&index.next());
            std::mem::replace(&mut *waiting, later)
        };
        for reader in ready.into_values().flatten() {
            let _ = reader.send(Ok(index));
        }
    }

    pub(crate) fn waits_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::Relaxed)
    }

    pub(crate) fn set_waits_for_room(&self, waits: bool) {
        self.waits_for_room.store(waits, Ordering::Relaxed);
    }

    /// Why requests are not taken any more, if that is so.
    pub(crate) fn stopped(&self) -> Option<StopReason> {
        self.stopped.get().copied()
    }

    /// Marks the replica as unable to go on and answers everybody who waits on it.
    pub(crate) fn stop(&self, reason: StopReason) {
        let reason = *self.stopped.get_or_init(|| reason);
        self.waiters.finish_all(&ProposeError::Stopped { reason });
        let readers = std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in readers.into_values().flatten() {
            let _ = reader.send(Err(ReadError::Stopped { reason }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_answered_when_its_index_is_applied_and_not_before() {
        let shared = GroupShared::new(GroupId(1), 0, 0, LogIndex(5));
        let (now, mut now_rx) = oneshot::channel();
        let (later, mut later_rx) = oneshot::channel();
        shared.read_at(LogIndex(5), [now]);
        shared.read_at(LogIndex(7), [later]);
        assert_eq!(now_rx.try_recv(), Ok(Ok(LogIndex(5))));
        shared.set_applied(LogIndex(6));
        assert!(later_rx.try_recv().is_err());
        shared.set_applied(LogIndex(9));
        assert_eq!(later_rx.try_recv(), Ok(Ok(LogIndex(9))));
    }
}
