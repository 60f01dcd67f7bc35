//! The task that looks after all keyspaces of a store: forgets their past by rule, and takes the quota's alarm back when
//! there is room again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use pontoon_raft_core::types::GroupId;
use tokio::time::MissedTickBehavior;

use crate::autocompact::{AutoCompact, Retention};
use crate::check::Limits;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::engine::Engine;

/// How often the keyspaces are looked at.
const TICK: Duration = Duration::from_millis(500);

/// What the task has done, for metrics.
#[derive(Debug, Default)]
pub struct UpkeepStats {
    /// Compactions by rule that were replicated.
    pub compactions: AtomicU64,
    /// Those that were not.
    pub failed_compactions: AtomicU64,
    /// Alarms that were taken back because there was room again.
    pub alarms_cleared: AtomicU64,
}

/// Commands that are on their way at a time.
const PROPOSED_MAX: usize = 16;

/// Looks after the keyspaces of a store until the future is dropped. The leader of each acts, by a command like any
/// other, so that every store does the same.
pub async fn look_after<C: Consensus>(
    engine: Engine,
    consensus: Arc<C>,
    limits: Limits,
    keep: Option<Retention>,
    stats: Arc<UpkeepStats>,
) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rules: HashMap<GroupId, AutoCompact> = HashMap::new();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let keyspaces = engine.keyspaces();
        rules.retain(|group, _| keyspaces.iter().any(|k| k.group() == *group));
        let mut due = Vec::new();
        for keyspace in keyspaces {
            let group = keyspace.group();
            let control = keyspace.control();
            let leads = || {
                let status = consensus.status(group);
                status.is_some_and(|status| status.leader == Some(consensus.store_id()))
            };
            if control.is_over_quota() && !limits.is_full(keyspace.size_bytes()) && leads() {
                due.push((group, Command::Quota { over: false, member: consensus.store_id().0 }));
            }
            if let Some(keep) = keep
                && control.restore().is_none()
                && let Some(revision) =
                    rules.entry(group).or_default().look(keep, now, keyspace.revision(), leads())
            {
                due.push((group, Command::AutoCompact { revision }));
            }
        }
        let consensus = &*consensus;
        let mut outcomes = stream::iter(due)
            .map(|(group, command)| async move {
                let outcome = consensus.propose(group, command.encode()).await;
                (group, command, outcome)
            })
            .buffer_unordered(PROPOSED_MAX);
        while let Some((group, command, outcome)) = outcomes.next().await {
            let compacts = matches!(command, Command::AutoCompact { .. });
            match outcome {
                Ok(_) if compacts => _ = stats.compactions.fetch_add(1, Ordering::Relaxed),
                Ok(_) => _ = stats.alarms_cleared.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    tracing::debug!(%group, ?command, %error, "cannot look after a keyspace yet");
                    if compacts {
                        stats.failed_compactions.fetch_add(1, Ordering::Relaxed);
                        if let Some(rule) = rules.get_mut(&group) {
                            rule.failed();
                        }
                    }
                }
            }
        }
    }
}
