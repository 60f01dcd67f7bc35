//! Everything that can be set, with its unit, default and effect.

use std::time::Duration;

use pontoon_raft_core::types::StoreId;
use pontoon_tls::ClientTls;

use crate::identity::Identity;

/// Who this store is, and the limits of its links.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// The cluster's id; peers of another cluster are refused.
    pub cluster: u64,
    /// This store; not zero.
    pub store: StoreId,
    /// This store's name, for the peers' logs.
    pub name: String,
    /// Where peers reach this store, for the peers' status.
    pub advertise: String,
    /// Which data directory this process runs on, for peers that remember it. Default: says nothing of it.
    pub identity: Option<Identity>,
    /// The election timer in milliseconds, from which the probe interval is derived until
    /// `Transport::set_election_timer` says otherwise. Default 1000.
    pub election_timer_ms: u64,
    /// With it, links are dialled with TLS: this store shows its certificate and trusts only stores of the authority. Default:
    /// plaintext. The peer listener has to be made to fit (`pontoon_tls::accept`).
    pub tls: Option<ClientTls>,
    /// The limits.
    pub limits: Limits,
}

impl TransportConfig {
    /// A configuration with default limits.
    pub fn new(cluster: u64, store: StoreId, name: impl Into<String>) -> Self {
        Self {
            cluster,
            store,
            name: name.into(),
            advertise: String::new(),
            identity: None,
            election_timer_ms: 1000,
            tls: None,
            limits: Limits::default(),
        }
    }
}

/// The limits of a store's links. All stores of a cluster should have the same `message_bytes_max`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages that wait for one store on one lane. Default 10,000. Too small: bursts of many groups are dropped and
    /// their groups probe again; too large: what is sent after a stall is old. Live: `set_backlog_threshold`.
    pub queue_messages_max: usize,
    /// Bytes held for one store on one lane. Default 8 MiB. Half is for what waits: relayed proposals, mostly, for
    /// entries are not in the queue and do not count there. The other half is for what was given to the connection
    /// and not acknowledged by the peer's process, so it should be at least the link's bandwidth times its round trip; of that a
    /// slow link gets no more than it carries in about 50 ms, or 256 KiB.
    /// A single larger message is sent nevertheless. Live: `set_backlog_threshold`.
    pub queue_bytes_max: usize,
    /// Where a frame of the log lane ends if more is waiting. Default 256 KiB: large enough that a message's share
    /// of the frame's cost vanishes. The control lane uses a quarter.
    pub batch_bytes: usize,
    /// The most that several messages in one frame may take together. Default 1 MiB.
    pub frame_bytes_max: usize,
    /// The largest single message, and so the largest frame, in both directions. Default 16 MiB. A peer can make us
    /// reserve this much per connection.
    pub message_bytes_max: usize,
    /// Bytes of messages received from all peers and not yet processed. Default 64 MiB. Too small: appends are
    /// dropped and sent again while this store is merely busy.
    pub receive_bytes_max: u64,
    /// Snapshots that are sent at the same time, to different stores. Default 2.
    pub snapshot_sends_max: usize,
    /// A snapshot stream that moves nothing for this long is given up; a receiver keeps what it has of one that broke for as long.
    /// Default 20 s.
    pub snapshot_stall: Duration,
    /// A snapshot stream that takes longer than this is given up. Default 30 min.
    pub snapshot_duration_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_messages_max: 10_000,
            queue_bytes_max: 8 << 20,
            batch_bytes: 256 << 10,
            frame_bytes_max: 1 << 20,
            message_bytes_max: 16 << 20,
            receive_bytes_max: 64 << 20,
            snapshot_sends_max: 2,
            snapshot_stall: Duration::from_secs(20),
            snapshot_duration_max: Duration::from_secs(30 * 60),
        }
    }
}
