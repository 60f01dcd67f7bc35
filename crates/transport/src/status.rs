//! What a link tells about itself.

use std::fmt;
use std::time::Duration;

use pontoon_raft_core::types::StoreId;

/// A class of peer traffic with a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Votes, heartbeats, acknowledgements, read indexes, answers to relayed proposals, probes.
    Control,
    /// Appends with entries, relayed proposals.
    Log,
    /// One snapshot, on a connection that lives as long as it.
    Snapshot,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Log => "log",
            Self::Snapshot => "snapshot",
        })
    }
}

/// Who dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// This store did: it sends messages here.
    Outbound,
    /// The peer did: messages arrive here.
    Inbound,
}

/// What kind of failure the last one was: few enough for a label of a metric. The text is [`LinkStatus::last_error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkErrorKind {
    /// Nobody listens at the address: the process is gone.
    Refused,
    /// No connection for another reason: no route, a name that does not resolve.
    Unreachable,
    /// The attempt took longer than the back-off allows.
    TimedOut,
    /// Whoever answered refused the hello, or is another store.
    Rejected,
    /// The stream ended or failed.
    Broken,
    /// A probe was not answered: the peer is gone, stalled, or does not read.
    Silent,
    /// This side dropped it, because the peer has restarted or moved.
    Replaced,
}

impl LinkErrorKind {
    /// The name in metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::Broken => "broken",
            Self::Silent => "silent",
            Self::Replaced => "replaced",
        }
    }
}

/// What the first message that waits in a send queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitsFor {
    /// The stream: the link is down, or being opened.
    Stream,
    /// The peer has not processed what it was sent, and lets us send no more.
    Credit,
    /// The peer's process has not acknowledged what is in flight, which is as much as may be: the link is slow, or the peer
    /// does not read.
    Acknowledgement,
    /// Its turn on the connection.
    Connection,
}

impl WaitsFor {
    /// The name in metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Credit => "credit",
            Self::Acknowledgement => "acknowledgement",
            Self::Connection => "connection",
        }
    }
}

/// One lane to or from one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The peer.
    pub store: StoreId,
    /// The name it gave in its hello; empty before the first one.
    pub name: String,
    /// Outbound: where we dial. Inbound: what the peer advertises.
    pub address: String,
    /// Who dialed.
    pub direction: Direction,
    /// Which lane.
    pub lane: Lane,
    /// Whether the stream is open and greeted.
    pub connected: bool,
    /// For how long it has been so, or has not been so.
    pub since: Duration,
    /// For how long it has been open in all, the present stream included.
    pub connected_total: Duration,
    /// Attempts to connect that ended (outbound), or hellos received (inbound).
    pub attempts: u64,
    /// Of these, the successful ones.
    pub successes: u64,
    /// Streams that were open and broke.
    pub disconnections: u64,
    /// The wait before the next attempt, as the reconnect machine has it now (outbound).
    pub backoff: Duration,
    /// After how long a silence a probe is sent; the same time again drops the connection (outbound).
    pub probe_interval: Duration,
    /// Why the last attempt failed or the last stream broke. Stays when the next attempt succeeds.
    pub last_error: Option<String>,
    /// Of which kind that was.
    pub last_error_kind: Option<LinkErrorKind>,
    /// Messages that wait (outbound).
    pub queued_messages: usize,
    /// Bytes that wait (outbound).
    pub queued_bytes: usize,
    /// Bytes given to the stream that the peer's process is not known to have read: in HTTP/2's and the kernel's
    /// buffers, or on the way (outbound). Together with `queued_bytes` at most `Limits::queue_bytes_max`, but for a
    /// single message that is larger.
    pub in_flight_bytes: usize,
    /// Bytes of large messages that are under way: outbound, those not given to the stream yet; inbound, those that have come
    /// of messages that are not whole.
    pub large_bytes: usize,
    /// What the first waiting message waits for (outbound); `None`: nothing waits.
    pub waits_for: Option<WaitsFor>,
    /// Bytes that the store has sent, on all its lanes, and that are not processed (inbound).
    pub unprocessed_bytes: u64,
    /// How much the peer lets us send before it has processed more (outbound log lane); `None`: it does not say.
    pub credit_bytes: Option<u64>,
    /// Messages given to the stream (outbound) or accepted from it (inbound).
    pub messages: u64,
    /// Frames likewise.
    pub frames: u64,
    /// Payload bytes likewise.
    pub bytes: u64,
    /// Outbound: stale appends that were not sent.
    pub cancelled: u64,
    /// Outbound: messages refused by a full queue or a closed lane, and messages in a queue whose stream broke.
    /// Inbound: appends dropped over the receive budget.
    pub dropped: u64,
    /// Inbound: frames that the wire gate refused.
    pub refused_frames: u64,
}
