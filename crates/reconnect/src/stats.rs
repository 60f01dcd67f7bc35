//! What a machine tells about itself.

use crate::state::State;

/// A picture of one machine at one moment; made by [`Reconnect::stats`](crate::Reconnect::stats).
///
/// All times are milliseconds of the caller's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The state.
    pub state: State,
    /// How long the machine has been in `state`. `Active` begins anew when a probe is answered.
    pub state_ms: u64,
    /// The present back-off: the wait before the next attempt, and the patience for it.
    pub backoff_ms: u64,
    /// Changes by one at each change between connected and not connected, so it is odd exactly while connected.
    pub seqno: u64,
    /// Attempts that ended, however they ended.
    pub attempts: u64,
    /// Of these, the ones that led to a connection.
    pub successes: u64,
    /// For how long there was a connection, all connections together, the present one included.
    pub connected_ms: u64,
    /// Since when the present or latest connection was made; `None`: there never was one.
    pub since_connect_ms: Option<u64>,
    /// Since the latest loss of a live connection; `None`: none was lost. A forced drop does not count.
    pub since_disconnect_ms: Option<u64>,
    /// When the machine was made.
    pub created: u64,
    /// When the peer was last heard, in whatever state; `created` if never.
    pub last_activity: u64,
    /// When the present or latest connection was made.
    pub last_connected: Option<u64>,
    /// When a live connection was last reported lost.
    pub last_disconnected: Option<u64>,
    /// Tries that are left; `None`: unlimited.
    pub max_tries: Option<u64>,
    /// Failures that will not be followed by a wait, plus one; 0 and 1 are the same.
    pub free_tries: u64,
    /// Whether the machine waits for its peer to connect.
    pub passive: bool,
    /// The lower limit of the back-off.
    pub min_backoff_ms: u64,
    /// The upper limit of the back-off.
    pub max_backoff_ms: u64,
    /// After how long a silence a probe is sent; 0: never.
    pub probe_interval_ms: u64,
}

impl Stats {
    /// Whether there was a connection at that moment.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.state.is_connected()
    }
}
