//! A store whose log may lack its last acknowledged record: which of its groups have not settled that yet. See
//! `pontoon_raft_core`'s `doubt.rs` for what a replica in doubt does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pontoon_raft_core::types::GroupId;
use pontoon_storage::LogStore;

/// The doubt of one store.
#[derive(Debug)]
pub(crate) struct Doubts {
    log: LogStore,
    /// Replicas start in doubt.
    doubt: AtomicBool,
    /// The groups that the log held at the start and that are not settled: opened or not. (One whose very creation was lost
    /// took no part in anything.)
    open: Mutex<HashSet<GroupId>>,
}

impl Doubts {
    pub(crate) fn new(log: &LogStore) -> Arc<Self> {
        let doubt = log.in_doubt();
        let open: HashSet<_> = if doubt { log.groups().into_iter().collect() } else { HashSet::new() };
        if doubt {
            tracing::warn!(
                groups = open.len(),
                "the log's last record was torn or damaged: the replicas here do not count until leaders that do not need \
                 them have brought them up to date"
            );
        }
        let doubts =
            Arc::new(Self { log: log.clone(), doubt: AtomicBool::new(doubt), open: Mutex::new(open) });
        doubts.settle_if_done();
        doubts
    }

    /// Whether a replica that is opened now starts in doubt.
    pub(crate) fn in_doubt(&self) -> bool {
        self.doubt.load(Ordering::Acquire)
    }

    /// A group has settled its doubt, or is gone for good.
    pub(crate) fn settled(self: &Arc<Self>, group: GroupId) {
        if self.in_doubt() && self.open().remove(&group) {
            self.settle_if_done();
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashSet<GroupId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle_if_done(self: &Arc<Self>) {
        if !self.in_doubt() || !self.open().is_empty() {
            return;
        }
        let doubts = Arc::clone(self);
        // It writes and syncs a file, which a shard must not wait for.
        tokio::task::spawn_blocking(move || match doubts.log.settle_doubt() {
            Ok(()) => {
                doubts.doubt.store(false, Ordering::Release);
                tracing::info!(
                    "all groups are up to date again: the doubt about the log's last record is settled"
                );
            }
            // The store has failed, and every shard hears that from its own writes.
            Err(error) => tracing::error!(%error, "cannot note that the doubt is settled"),
        });
    }
}
