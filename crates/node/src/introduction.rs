//! What a node has to do with the rule of [`crate::lineage`]: meeting the others before it takes part, and stopping when
//! it is refused for good.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft_core::types::StoreId;
use pontoon_transport::{Direction, Identity, Lane, LinkErrorKind};

use crate::lineage::{Fenced, LineageError};
use crate::node::Node;

/// How much longer than an election timer a restarted store waits for those that turn it away: as long as they take a
/// connection for alive that has gone silent, and a try more.
const ROLL_CALL_MARGIN: Duration = Duration::from_secs(3);
/// ... and no more than this for a longer timer: what is really gone is found by then, by the keep-alive of its connection.
const ROLL_CALL_TIMER_MAX: Duration = Duration::from_secs(12);

impl Node {
    /// This store's data directory, as it says in its hellos.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lineages().identity()
    }

    /// Meets the other stores of this store's first configuration, which `to` has by their names and which must be peers
    /// already; to be called before the first group is opened. A new directory waits until each of them has taken it once,
    /// however long that is: before, an empty directory under an old name could not be told from a new store. Any other
    /// one waits until each has taken it or cannot be reached, for an election timer and 3 s, and for 15 s, at most. Does
    /// not return if somebody refuses the directory for good: see [`Self::fenced`].
    ///
    /// # Errors
    /// It cannot be noted that this store has been introduced.
    pub async fn introduce(&self, to: &BTreeMap<StoreId, String>) -> Result<(), LineageError> {
        let lineages = self.lineages();
        if lineages.is_introduced() {
            let timer = Duration::from_millis(self.config().election_timer_ms);
            let patience = timer.min(ROLL_CALL_TIMER_MAX) + ROLL_CALL_MARGIN;
            let _ = tokio::time::timeout(patience, self.roll_call(to)).await;
        } else {
            lineages.introduce(to).await?;
        }
        if lineages.is_fenced() {
            // Whoever waits for `fenced` hears it.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Waits until every store has taken this one, or has been dialled in vain.
    async fn roll_call(&self, to: &BTreeMap<StoreId, String>) {
        loop {
            let welcomed_by = self.lineages().welcomed_by();
            let links = self.transport().links();
            let absent = |store: &StoreId| {
                links.iter().any(|l| {
                    l.store == *store
                        && l.direction == Direction::Outbound
                        && l.lane == Lane::Control
                        && l.attempts > 0
                        // Whoever has rejected this store may refuse it for good at the next attempt.
                        && l.last_error_kind != Some(LinkErrorKind::Rejected)
                })
            };
            if to.keys().all(|store| welcomed_by.contains(store) || absent(store)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until somebody proves that this store's directory must not act as it any more: it is empty, an older copy or
    /// a clone. Its links are shut down by then, and it will not start again; end the process.
    pub async fn fenced(&self) -> Fenced {
        self.lineages().fenced().await
    }

    /// Compares the registry with what is known of a store: its lineage (0: unknown) and its latest start. What the
    /// registry says of this store itself may fence it. May wait for the disk.
    pub fn learn_start(&self, store: StoreId, lineage: u64, start: u64) {
        self.lineages().learn(self.store(), store, lineage, start);
        if self.lineages().is_fenced() {
            self.transport().shutdown();
        }
    }

    /// The stores that are no members any more, and why. Whoever speaks for one from now on is told so, and stops for good.
    pub fn set_removed_stores(&self, removed: BTreeMap<StoreId, String>) {
        self.lineages().set_removed(removed);
    }

    /// Whether a store is no member any more: by [`Node::set_removed_stores`], or because a recovery has given it up.
    #[must_use]
    pub fn is_removed(&self, store: StoreId) -> bool {
        self.lineages().removed(store).is_some()
    }

    /// Where the other stores say, in their greetings, that they are to be dialled: what a running process says is newer than
    /// any registry. What they say is not checked here.
    #[must_use]
    pub fn advertised(&self) -> tokio::sync::watch::Receiver<BTreeMap<StoreId, String>> {
        self.lineages().advertised()
    }

    /// Marks this store as one that is no member any more: its links are shut down, and its directory never starts again.
    /// [`Node::fenced`] tells when that is noted.
    pub fn mark_removed(&self, reason: String) {
        self.lineages().fence(Fenced { by: None, reason, removed: true });
        self.transport().shutdown();
    }

    /// The stores of which a process was refused since one was last taken, and why.
    #[must_use]
    pub fn refused_stores(&self) -> BTreeMap<StoreId, String> {
        self.lineages().refused()
    }
}
