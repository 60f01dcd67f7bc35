//! Identifiers and the data that consensus is about.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Add;

use bytes::Bytes;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// One Raft consensus group. Group 0 is the meta group.
    GroupId,
    "{}"
);
id!(
    /// One store: a process with one data directory. Random and never zero.
    StoreId,
    "{:016x}"
);
id!(
    /// A Raft term (Raft thesis 3.3). 0 is "before the first election".
    Term,
    "{}"
);
id!(
    /// A position in the log. The first entry ever is at 1; 0 is "before the first entry".
    LogIndex,
    "{}"
);
id!(
    /// Names a doubt of a replica about its own log (`doubt.rs`); never zero, and another one at each start.
    DoubtId,
    "{:x}"
);
id!(
    /// Names one batch of state that the host must make durable; see `Group::persisted`.
    Ticket,
    "{}"
);

impl LogIndex {
    /// The position before the first entry.
    pub const ZERO: Self = Self(0);

    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The position before this one; stays at 0.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Add<u64> for LogIndex {
    type Output = Self;
    fn add(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

impl Term {
    /// The term before the first election.
    pub const ZERO: Self = Self(0);

    /// The next term.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A group's member on a store. `number` is never reused within the group, so a replica that was removed, or whose
/// disk was wiped, can never act under its old identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The store that hosts the replica.
    pub store: StoreId,
    /// Distinguishes this replica from earlier ones of the same group on the same store.
    pub number: u64,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.number)
    }
}

/// Names a command for prerequisites, idempotence and completion (128 bits, chosen by whoever proposes).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u128);

impl EntryId {
    /// The id of entries that no client asked for (no-op, leave of a joint configuration).
    pub const NONE: Self = Self(0);
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its position.
    pub index: LogIndex,
    /// The term of the leader that created it.
    pub term: Term,
    /// The id of the command, or [`EntryId::NONE`].
    pub id: EntryId,
    /// What it says.
    pub payload: Payload,
}

/// A fixed charge for what an entry costs beyond its data (indexes, framing), in bytes. It keeps a window in bytes
/// meaningful when the entries are tiny.
pub const ENTRY_OVERHEAD_BYTES: u64 = 48;

impl Entry {
    /// The bytes that every window and budget counts for this entry.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        ENTRY_OVERHEAD_BYTES
            + match &self.payload {
                Payload::Command(data) => data.len() as u64,
                Payload::Configuration(c) => {
                    16 * (c.voters.len() + c.outgoing_voters.len() + c.learners.len() + c.next_learners.len())
                        as u64
                }
                Payload::Noop | Payload::ElectionTimer { .. } => 0,
            }
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Starts a leader's term (Raft thesis 6.4); means nothing to the state machine.
    Noop,
    /// A command for the state machine.
    Command(Bytes),
    /// The group's configuration from this entry on (in force when appended, Raft thesis 4.1).
    Configuration(Configuration),
    /// A new election timer, in force when committed.
    ElectionTimer {
        /// Milliseconds.
        millis: u64,
    },
}

/// Who belongs to the group. A joint configuration (Raft thesis 4.3) has `outgoing_voters`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// The voters; in a joint configuration, the incoming ones.
    pub voters: BTreeSet<ReplicaId>,
    /// The voters of the old configuration; empty unless the configuration is joint.
    pub outgoing_voters: BTreeSet<ReplicaId>,
    /// Members that receive the log and neither vote nor count.
    pub learners: BTreeSet<ReplicaId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub next_learners: BTreeSet<ReplicaId>,
    /// Whether the leader leaves the joint configuration by itself once it is committed.
    pub auto_leave: bool,
}

impl Configuration {
    /// A configuration of these voters alone.
    pub fn of_voters(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether two quorums are needed.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing_voters.is_empty()
    }

    /// Whether `id` votes, in either half.
    #[must_use]
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.outgoing_voters.contains(&id)
    }

    /// How many members it has, without gathering them; in a joint configuration some count twice.
    #[must_use]
    pub fn size(&self) -> usize {
        self.voters.len() + self.outgoing_voters.len() + self.learners.len() + self.next_learners.len()
    }

    /// Everybody that receives the log, each once, in order.
    #[must_use]
    pub fn members(&self) -> BTreeSet<ReplicaId> {
        self.voters
            .iter()
            .chain(&self.outgoing_voters)
            .chain(&self.learners)
            .chain(&self.next_learners)
            .copied()
            .collect()
    }
}

/// What must never be forgotten (Raft thesis figure 3.1, persistent state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// The latest term this replica has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub voted_for: Option<ReplicaId>,
}

/// What a snapshot stands for, and what a log begins after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot contains.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The configuration as of that entry.
    pub configuration: Configuration,
    /// The election timer as of that entry, in milliseconds.
    pub election_timer_ms: u64,
}

/// What a replica is doing (Raft thesis figure 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Answers leaders and candidates.
    Follower,
    /// Asks whether an election could be won, without disturbing anybody (thesis 9.6).
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Replicates its log to the others.
    Leader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        })
    }
}
