//! The states of the machine and what it may ask of its caller.

use std::fmt;

/// What a [`Reconnect`](crate::Reconnect) machine is doing.
///
/// ```text
///            enable                        connecting                       connected
///   +------+ ------> +---------+ run: Connect ------> +------------+ --------------> +--------+
///   | Void |         | Backoff | <------------------- | Connecting |                 | Active | <--+
///   +------+         +---------+   connect_failed,    +------------+                 +--------+    |
///      ^                ^    ^     disconnected          |                            |   | run:   |
///      | disable;       |    |                           | force_reconnect            |   | Probe  | activity
///      | no tries left  |    |                           v                            |   v        |
///   (any state)         |    |   disconnected       +-----------+  force_reconnect    | +------+   |
///                       |    +--------------------- | Reconnect | <-------------------+-| Idle |---+
///                       |                           +-----------+                     | +------+
///                       |                           run: Disconnect                   |   | run: Disconnect
///                       +-------------------------------------------------------------+---+
///                       |                          disconnected
///                  +-----------+
///                  | Listening |   passive side: entered by `listening`, left by `connected` (through
///                  +-----------+   Connecting, so that it counts as an attempt) or by `listen_error`
/// ```
///
/// [`Active`](Self::Active) and [`Idle`](Self::Idle) are the two *connected* states. `connecting`, `connected`,
/// `connect_failed` and `listening` report facts and so are obeyed in every state, also in [`Void`](Self::Void).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Disabled: nothing is asked until `enable`. The first state.
    Void,
    /// Waiting for the back-off to pass; then [`Action::Connect`].
    Backoff,
    /// An attempt is in progress; [`Action::Disconnect`] when it takes longer than the back-off (at least a second).
    Connecting,
    /// Connected, and heard from recently; [`Action::Probe`] after the probe interval without activity.
    Active,
    /// Connected, a probe is unanswered; [`Action::Disconnect`] after another probe interval.
    Idle,
    /// The caller was told to drop the connection or the attempt and has not yet reported that it did.
    Reconnect,
    /// Passive: waiting for a peer to connect, for as long as it takes.
    Listening,
}

impl State {
    /// All states, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Void,
        Self::Backoff,
        Self::Connecting,
        Self::Active,
        Self::Idle,
        Self::Reconnect,
        Self::Listening,
    ];

    /// Whether there is a connection: true in [`Active`](Self::Active) and [`Idle`](Self::Idle) only.
    #[must_use]
    pub const fn is_connected(self) -> bool {
        matches!(self, Self::Active | Self::Idle)
    }

    /// The name in capitals, as Open vSwitch writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Void => "VOID",
            Self::Backoff => "BACKOFF",
            Self::Connecting => "CONNECTING",
            Self::Active => "ACTIVE",
            Self::Idle => "IDLE",
            Self::Reconnect => "RECONNECT",
            Self::Listening => "LISTENING",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the caller must do now; the answer of [`Reconnect::run`](crate::Reconnect::run).
///
/// `Connect` and `Disconnect` are repeated by every `run` until the caller reports what it did; `Probe` is said once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start an attempt and report `connecting` (or at once `connected` or `connect_failed`). In passive mode:
    /// start to listen, and report `listening`.
    Connect,
    /// Report `disconnected` (or `connect_failed`), then drop the connection or the attempt.
    Disconnect,
    /// Send something that the peer must answer, on this very connection.
    Probe,
}

impl Action {
    /// The name in small letters: `connect`, `disconnect` or `probe`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Disconnect => "disconnect",
            Self::Probe => "probe",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
