//! What a node can be told.

use std::sync::Arc;
use std::time::Duration;

use pontoon_flow::{BacklogLimits, Limits as FlowLimits, Mode as FlowMode};
use pontoon_raft_core::types::StoreId;

use crate::failure::Failures;

/// Settings of a [`Node`](crate::Node). All have defaults but the identity.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This store.
    pub store: StoreId,
    /// How many shards step groups. More than the cores there are gains nothing; with fewer, a burst in one group
    /// delays more of the others. Default: the cores, at most 8.
    pub shards: usize,
    /// How many threads apply committed entries. A group's entries are always applied by the same one. Default: the
    /// cores, at most 4.
    pub apply_threads: usize,
    /// The election timer of new groups, in milliseconds (100 to 600,000). Existing groups keep theirs, which lives in
    /// their logs. Default 1000.
    pub election_timer_ms: u64,
    /// How long a proposal waits for its outcome before its caller hears `TimedOut`. Default 7 s: as etcd's, five
    /// seconds and two election timers. Longer while a leader elsewhere says that the command is in progress.
    pub propose_timeout: Duration,
    /// How long a linearizable read waits for confirmation. Default 7 s.
    pub read_timeout: Duration,
    /// The most proposals of this store that may wait for their outcome; the next is refused. Too small refuses bursts
    /// that the disk would have taken in one sync; too large lets a stuck group hold memory. Default 16,384.
    pub proposals_max: usize,
    /// The most bytes that those proposals may hold. Default 64 MiB.
    pub proposal_bytes_max: usize,
    /// The most reads of this store that may wait. Default 65,536.
    pub reads_max: usize,
    /// A group's log is cut when it has grown by this many bytes since the last time. Too small costs syncs of the
    /// state machine; too large costs journal space and restart time. Default 16 MiB.
    pub compact_after_bytes: u64,
    /// ... or by this many entries. Default 50,000.
    pub compact_after_entries: u64,
    /// What a follower that was briefly away finds in the log rather than needing a snapshot, in bytes. Default 4 MiB.
    pub keep_bytes: u64,
    /// A leader keeps at most this much of the log for a slow follower; past it, the follower gets a snapshot.
    /// Default 64 MiB.
    pub keep_bytes_for_slow_follower: u64,
    /// A group that has had nothing to do for this long stops its timers and heartbeats. Default 3 s.
    pub quiesce_after: Option<Duration>,
    /// What flow control governs; it can be switched while the store runs. Off: a slow follower is sent what its connection takes.
    /// Default: elastic work only.
    pub flow: FlowMode,
    /// The token pools for each destination store; can be changed while the store runs.
    pub flow_limits: FlowLimits,
    /// What may wait to be applied by a replica here before its leader hears that entries are admitted no longer.
    pub flow_backlog: BacklogLimits,
    /// Which failures are made on purpose, if that is allowed. Default: forbidden.
    pub failures: Arc<Failures>,
}

impl NodeConfig {
    /// The defaults for this store.
    #[must_use]
    pub fn new(store: StoreId) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            shards: cores.div_ceil(2).min(8),
            apply_threads: cores.min(4),
            election_timer_ms: 1000,
            propose_timeout: Duration::from_secs(7),
            read_timeout: Duration::from_secs(7),
            proposals_max: 16_384,
            proposal_bytes_max: 64 << 20,
            reads_max: 65_536,
            compact_after_bytes: 16 << 20,
            compact_after_entries: 50_000,
            keep_bytes: 4 << 20,
            keep_bytes_for_slow_follower: 64 << 20,
            quiesce_after: Some(Duration::from_secs(3)),
            flow: FlowMode::default(),
            flow_limits: FlowLimits::default(),
            flow_backlog: BacklogLimits::default(),
            failures: Failures::new(false),
        }
    }
}
