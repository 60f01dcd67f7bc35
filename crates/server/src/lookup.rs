//! Names that this store does not know: is there no such keyspace, or has this store not heard of it yet?
//!
//! `keyspace create` is answered when the registry has the keyspace and one store serves it; the others follow a moment
//! later. So before anybody is told NOT_FOUND, the registry is caught up by a read barrier of the meta group, begun after
//! the question came: what was created before the question is known then.
//!
//! Names that do not exist cost little, however many are asked for: questions that wait share the next barrier, barriers
//! are [`PAUSE`] apart, and no more than [`WAITING_MAX`] questions wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pontoon_kv::outcome;
use pontoon_node::Node;
use pontoon_node::meta::{GroupKind, META_GROUP, Registry};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

/// Between the beginnings of two barriers. A client that has just been told of a keyspace hardly notices it, and a flood of
/// unknown names costs the meta group 50 rounds a second at most.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a barrier may take: an election, and less than a client's patience.
const BARRIER_MAX: Duration = Duration::from_secs(3);

/// Questions that wait at a time, so that without a quorum of the registry unknown names do not take all the places of
/// requests for known ones.
const WAITING_MAX: usize = 1024;

/// How the barriers have gone.
#[derive(Debug, Default)]
struct Last {
    /// The last one that ended; they are numbered from 1 in the order in which they begin.
    number: u64,
    /// It told all that the registry had.
    succeeded: bool,
    /// When the last one began, be it that nobody waited for its end.
    begun: Option<Instant>,
}

/// Shares barriers among those who wait for one.
#[derive(Debug, Default)]
struct Rounds {
    /// Barriers that have begun.
    begun: AtomicU64,
    /// Who holds this runs the next one, unless one that began late enough has ended meanwhile.
    last: Mutex<Last>,
}

impl Rounds {
    /// Waits for a barrier that begins after this was called; `false` if it failed.
    ///
    /// # Cancel safety
    /// A barrier whose runner is dropped is never said to have ended; the next who waits begins another one.
    async fn pass(&self, barrier: impl AsyncFnOnce() -> bool) -> bool {
        let seen = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.number > seen {
            return last.succeeded;
        }
        if let Some(begun) = last.begun {
            sleep_until(begun + PAUSE).await;
        }
        last.begun = Some(Instant::now());
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let succeeded = barrier().await;
        (last.number, last.succeeded) = (number, succeeded);
        succeeded
    }
}

/// Asks the registry for names that are not known here.
#[derive(Debug)]
pub(crate) struct Lookups {
    node: Node,
    registry: watch::Receiver<Arc<Registry>>,
    waiting: Semaphore,
    rounds: Rounds,
}

impl Lookups {
    pub(crate) fn new(node: Node, registry: watch::Receiver<Arc<Registry>>) -> Self {
        Self { node, registry, waiting: Semaphore::new(WAITING_MAX), rounds: Rounds::default() }
    }

    /// Whether there is a keyspace of that name, by all that the registry had when this was called.
    ///
    /// # Errors
    /// Too many ask, or the registry has no quorum.
    pub(crate) async fn exists(&self, name: &str) -> Result<bool, Status> {
        if self.knows(name) {
            return Ok(true);
        }
        let Ok(_place) = self.waiting.try_acquire() else {
            let status = Status::resource_exhausted("etcdserver: too many requests");
            return Err(outcome::mark(status, outcome::NOT_EXECUTED));
        };
        let barrier =
            async || matches!(timeout(BARRIER_MAX, self.node.read_barrier(META_GROUP)).await, Ok(Ok(_)));
        let succeeded = self.rounds.pass(barrier).await;
        if self.knows(name) {
            return Ok(true);
        }
        if succeeded {
            return Ok(false);
        }
        let status = Status::unavailable(format!(
            "pontoon: this store knows no keyspace {name:?}, and cannot ask whether it is new because the registry (group \
             meta) has no quorum; try again"
        ));
        Err(outcome::mark(status, outcome::NOT_EXECUTED))
    }

    fn knows(&self, name: &str) -> bool {
        self.registry.borrow().group_named(name).is_some_and(|group| group.kind() == GroupKind::Kv)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_shares_a_barrier_that_began_after_the_question() {
        let rounds = Arc::new(Rounds::default());
        let runs = Arc::new(AtomicU64::new(0));
        let ask = || {
            let (rounds, runs) = (Arc::clone(&rounds), Arc::clone(&runs));
            tokio::spawn(async move {
                let barrier = async || {
                    runs.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    true
                };
                assert!(rounds.pass(barrier).await);
            })
        };
        let first = ask();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        // These come while the first barrier is on its way: it may have read before they came.
        let late: Vec<_> = (0..500).map(|_| ask()).collect();
        first.await.unwrap();
        let start = Instant::now();
        for asked in late {
            asked.await.unwrap();
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2, "one more for all of them");
        assert_eq!(start.elapsed(), Duration::from_millis(20), "barriers keep their distance");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runner_that_goes_away_and_one_that_fails() {
        let rounds = Arc::new(Rounds::default());
        let gone = {
            let rounds = Arc::clone(&rounds);
            tokio::spawn(async move { rounds.pass(async || std::future::pending().await).await })
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        let ran = Arc::new(AtomicBool::new(false));
        let next = {
            let (rounds, ran) = (Arc::clone(&rounds), Arc::clone(&ran));
            tokio::spawn(async move { rounds.pass(async || !ran.swap(true, Ordering::SeqCst)).await })
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        gone.abort();
        assert!(next.await.unwrap(), "it ran its own");
        assert!(ran.load(Ordering::SeqCst));
        assert!(!rounds.pass(async || false).await, "what failed is told");
    }
}
