//! The task that ends leases whose time is over, for all keyspaces of a store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::MissedTickBehavior;

use crate::command::Command;
use crate::consensus::Consensus;
use crate::engine::Engine;
use crate::mvcc::state::Keyspace;

/// How often deadlines are looked at. etcd's pace.
const TICK: Duration = Duration::from_millis(500);

/// A tick that comes later than this says that the process was stopped, or starved, for a while.
const LATE: Duration = Duration::from_millis(1000);

/// Leases of one keyspace that one tick ends; the others wait for the next.
const EXPIRED_MAX: usize = 500;

/// Commands of one keyspace that are on their way at a time.
const PROPOSED_MAX: usize = 16;

/// Ends leases until the future is dropped. A store needs one of it; without it leases live for ever.
///
/// The leader decides, by its own monotonic clock, and says so by a command that counts only in its term: a leader that
/// was replaced without knowing it ends nothing.
pub async fn expire_leases<C: Consensus>(engine: Engine, consensus: Arc<C>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let late = now.duration_since(last).checked_sub(LATE).unwrap_or_default();
        last = now;
        for keyspace in engine.leased() {
            let leading = consensus
                .status(keyspace.group())
                .filter(|status| status.leader == Some(consensus.store_id()))
                .map(|status| status.term);
            let mut leases = keyspace.leases();
            let Some(term) = leading else {
                leases.follow();
                continue;
            };
            if !late.is_zero() {
                leases.put_off(late);
            }
            leases.lead(term, now);
            let expired = leases.take_expired(now, EXPIRED_MAX);
            drop(leases);
            if !expired.is_empty() {
                let consensus = Arc::clone(&consensus);
                tokio::spawn(async move { end(&*consensus, &keyspace, term.0, expired).await });
            }
        }
    }
}

async fn end<C: Consensus>(consensus: &C, keyspace: &Keyspace, term: u64, expired: Vec<i64>) {
    stream::iter(expired)
        .for_each_concurrent(PROPOSED_MAX, |id| async move {
            let command = Command::LeaseExpire { id, term }.encode();
            if let Err(error) = consensus.propose(keyspace.group(), command).await {
                tracing::debug!(group = %keyspace.group(), lease = id, %error, "cannot end a lease yet");
                keyspace.leases().not_ended(id, Instant::now());
            }
        })
        .await;
}
