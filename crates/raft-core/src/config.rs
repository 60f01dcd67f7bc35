//! The knobs of one replica, and the state it starts from.

use crate::types::{HardState, LogIndex, ReplicaId, SnapshotMeta};

/// The shortest election timer, in milliseconds: below it, one late disk sync costs an election.
pub const ELECTION_TIMER_MS_MIN: u64 = 100;
/// The longest election timer, in milliseconds: ten minutes without a leader is no service.
pub const ELECTION_TIMER_MS_MAX: u64 = 600_000;
/// The election timer of a group whose snapshot names none.
pub const ELECTION_TIMER_MS_DEFAULT: u64 = 1_000;
/// The highest priority; see [`Config::priority`].
pub const PRIORITY_MAX: u32 = 100;

/// The knobs of one replica. None of them must be equal on all replicas of a group, but for the leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this replica is.
    pub id: ReplicaId,
    /// The election timer T in milliseconds until the log or the snapshot names another; 0 means
    /// [`ELECTION_TIMER_MS_DEFAULT`]. Heartbeats go out every T/10. Too small: elections on every hiccup of disk or
    /// network. Too large: a long time without service after a crash.
    pub election_timer_ms: u64,
    /// Where all randomness comes from. Must differ between replicas (or elections tie for ever) and between two starts
    /// of the same replica (or an answer to a read of the earlier life could be taken for one of this life).
    pub seed: u64,
    /// The most bytes of entries in one append (an entry that is larger travels alone). Too small: overhead per
    /// message. Too large: one message delays the others.
    pub append_bytes_max: u64,
    /// The most unacknowledged appends per follower. Too small: the pipe runs dry on long links.
    pub inflight_messages_max: usize,
    /// The most unacknowledged bytes per follower. Bounds what a slow follower makes others hold.
    pub inflight_bytes_max: u64,
    /// The most bytes that may wait for commit at the leader before proposals are refused as `Overloaded`.
    pub uncommitted_bytes_max: u64,
    /// Ask before an election whether it could be won (thesis 9.6). Off: a replica that comes back from a partition
    /// deposes a healthy leader.
    pub pre_vote: bool,
    /// The leader steps down when it has not heard a quorum for T, and voters who hear a leader refuse candidates
    /// (thesis 6.2, 4.2.3). Off: a cut-off leader believes in itself for ever (it still answers no read).
    pub check_quorum: bool,
    /// Answer reads without a round trip while a quorum's last answers still bind it ("leader lease", thesis 6.4.1); `None`:
    /// never, every read has a round of heartbeats. The value is the clock assumption: the most, in milliseconds, that the
    /// clocks of two stores drift apart within an election timer, plus the most that a `now` is old when it is told. The lease
    /// is shorter than the timer by this much. Too small: stale reads when a clock lies. Too large: no lease is ever held.
    /// *Must be on for all voters of the group or for none*, with `check_quorum` and one election timer; see `lease.rs`.
    pub lease_margin_ms: Option<u64>,
    /// Fall silent after this many milliseconds without anything to do; `None`: never. The host must then call
    /// `Group::leader_lost` when the leader's store dies. Too small: wake-up traffic; too large: idle heartbeats.
    pub quiesce_after_ms: Option<u64>,
    /// Heartbeats go out when `now` passes a multiple of their interval, so those of all groups of a host with one timer leave
    /// together and can share a message. The first one after an election or a silence comes sooner for that, none ever later.
    /// Off: each group counts from its own beginning.
    pub align_heartbeats: bool,
    /// How much this replica wants to lead, 0 to [`PRIORITY_MAX`]: it waits (100 - priority) % of T longer before it
    /// campaigns. 100 for all is the default.
    pub priority: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: ReplicaId::default(),
            election_timer_ms: ELECTION_TIMER_MS_DEFAULT,
            seed: 0,
            append_bytes_max: 256 << 10,
            inflight_messages_max: 256,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            pre_vote: true,
            check_quorum: true,
            lease_margin_ms: None,
            quiesce_after_ms: None,
            align_heartbeats: false,
            priority: PRIORITY_MAX,
        }
    }
}

/// What the host's storage remembers of this replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialState {
    /// The last durable term and vote.
    pub hard_state: HardState,
    /// The last noted commit index; 0 if there is no note. Too low costs nothing.
    pub commit: LogIndex,
    /// What the state machine contains, at least `snapshot.index`.
    pub applied: LogIndex,
    /// What the log begins after. A new group begins at index 0 with its initial configuration on every replica; a
    /// replica that joins an existing group begins at index 0 with an empty configuration.
    pub snapshot: SnapshotMeta,
    /// The log's last entry; `snapshot.index` if there is none.
    pub last_index: LogIndex,
    /// The log's last record may be missing, though it was acknowledged: the replica neither votes for itself nor counts until a
    /// leader has settled that (`doubt.rs`; [`Group::in_doubt`](crate::Group::in_doubt)). Too often true costs availability,
    /// wrongly false costs acknowledged entries.
    pub doubt: bool,
}
