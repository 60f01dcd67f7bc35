//! What replicas of one group say to each other: one variant per RPC of the thesis, and the extensions' own.

use std::fmt;

use crate::types::{DoubtId, Entry, LogIndex, ReplicaId, SnapshotMeta, Term};

/// One message between two replicas of the same group. The group's id is the host's to add.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who says it.
    pub from: ReplicaId,
    /// Whom it is for.
    pub to: ReplicaId,
    /// The sender's term; in a pre-vote and in its granted reply, the term that would follow.
    pub term: Term,
    /// The sender may have lost the last record of its log: what it says proves nothing of what it said before, and counts
    /// only as `doubt.rs` tells.
    pub doubt: Option<DoubtId>,
    /// What it says.
    pub body: Body,
}

/// What a [`Message`] says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// "Would you vote for me in the next term?" (thesis 9.6); changes nobody's term.
    PreVote(VoteRequest),
    /// The answer to [`Body::PreVote`].
    PreVoteReply {
        /// Whether the vote would be given.
        granted: bool,
    },
    /// RequestVote (thesis 3.4).
    RequestVote(VoteRequest),
    /// The answer to [`Body::RequestVote`].
    RequestVoteReply {
        /// Whether the vote was given; it is durable by now.
        granted: bool,
    },
    /// AppendEntries (thesis 3.5).
    AppendEntries(AppendEntries),
    /// The answer to [`Body::AppendEntries`] and [`Body::InstallSnapshot`].
    AppendReply(AppendReply),
    /// "I am still the leader": carries no entries and checks no log.
    Heartbeat(Heartbeat),
    /// The answer to [`Body::Heartbeat`].
    HeartbeatReply {
        /// The heartbeat's `round`, for ReadIndex (thesis 6.4) and check-quorum.
        round: u64,
    },
    /// InstallSnapshot (thesis 5.3). Leaving the core it is a request to the host to stream its newest snapshot, at or
    /// above this index, to `to`; entering a core it says that such a snapshot has arrived whole and is checked.
    InstallSnapshot(SnapshotMeta),
    /// "Start an election at once" (thesis 3.10).
    TimeoutNow,
    /// A follower asks the leader for a read index (thesis 6.4).
    ReadIndex {
        /// The follower's name for its batch of waiting reads.
        context: u64,
    },
    /// The answer to [`Body::ReadIndex`], once a quorum has confirmed the leader.
    ReadIndexReply {
        /// The request's context.
        context: u64,
        /// Reads may be served once this index is applied; `None`: ask again, leadership could not be confirmed.
        index: Option<LogIndex>,
    },
    /// The leader tells a follower, with each heartbeat, in which doubt it knows it (`doubt.rs`).
    DoubtCheck {
        /// Which doubt.
        doubt: DoubtId,
        /// The follower has all that it may have lost, and forgotten votes can do no harm.
        settled: bool,
    },
    /// The answer to [`Body::DoubtCheck`] of a follower that is not in that doubt any more.
    DoubtSettled {
        /// Which doubt.
        doubt: DoubtId,
    },
}

/// What a candidate shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VoteRequest {
    /// Index of the candidate's last entry.
    pub last_log_index: LogIndex,
    /// Term of the candidate's last entry.
    pub last_log_term: Term,
    /// The current leader asked for this election: voters do not protect it (thesis 4.2.3).
    pub leadership_transfer: bool,
}

/// Entries that follow `prev_log_index`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppendEntries {
    /// The entry that must be there before these.
    pub prev_log_index: LogIndex,
    /// That entry's term.
    pub prev_log_term: Term,
    /// Everything up to here is committed.
    pub leader_commit: LogIndex,
    /// The entries.
    pub entries: Entries,
}

/// The entries of an [`AppendEntries`]: an interval while it waits, the entries themselves once on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entries {
    /// Leaving the core: the entries `(prev_log_index, last]` of the sender's log. Whoever builds the frame reads them,
    /// and drops the message if the entry at `last` is missing or has another term: by log matching, one equal term at
    /// `last` proves the whole interval unchanged. `last == prev_log_index` means no entries (and nothing to check).
    Interval {
        /// The last entry's index.
        last: LogIndex,
        /// The last entry's term.
        last_term: Term,
    },
    /// Entering a core: contiguous, the first at `prev_log_index + 1`.
    Inline(Vec<Entry>),
}

/// How an append ended at the follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendReply {
    /// The follower's log equals the leader's up to here, durably.
    Accepted {
        /// The last index known to match.
        match_index: LogIndex,
    },
    /// The entry before was missing or of another term.
    Rejected {
        /// The append's `prev_log_index`.
        prev_log_index: LogIndex,
        /// Where the leader should look next: the follower's last index, or the last index whose term is at most
        /// the term of the refused entry (one round trip per conflicting term).
        hint_index: LogIndex,
        /// The follower's term at `hint_index`.
        hint_term: Term,
    },
}

/// A leader's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// Committed, and known to match the receiver's log.
    pub leader_commit: LogIndex,
    /// Grows with each round of heartbeats in a term; the reply returns it.
    pub round: u64,
    /// The group has nothing to do: whoever has everything up to `leader_commit` may stop its timers until any
    /// message or `Group::wake`.
    pub quiesce: bool,
}

/// The trace format: `sender -> receiver term: what`.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} term {}: {}", short(self.from), short(self.to), self.term, self.body)?;
        if self.doubt.is_some() { f.write_str(" (in doubt)") } else { Ok(()) }
    }
}

/// A replica in a trace: its store, and its number if it is not the first there.
fn short(id: ReplicaId) -> String {
    if id.number == 1 { format!("{:x}", id.store.0) } else { format!("{:x}/{}", id.store.0, id.number) }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |granted: &bool| if *granted { "granted" } else { "refused" };
        match self {
            Self::PreVote(request) => write!(f, "PreVote {request}"),
            Self::PreVoteReply { granted } => write!(f, "PreVoteReply {}", verdict(granted)),
            Self::RequestVote(request) => write!(f, "RequestVote {request}"),
            Self::RequestVoteReply { granted } => write!(f, "RequestVoteReply {}", verdict(granted)),
            Self::AppendEntries(append) => {
                let AppendEntries { prev_log_index, prev_log_term, leader_commit, entries } = append;
                write!(
                    f,
                    "AppendEntries after {prev_log_index} (term {prev_log_term}), commit {leader_commit}, "
                )?;
                match entries {
                    Entries::Interval { last, .. } if last == prev_log_index => f.write_str("no entries"),
                    Entries::Interval { last, last_term } => write!(f, "up to {last} (term {last_term})"),
                    Entries::Inline(entries) => {
                        f.write_str("entries")?;
                        entries.iter().try_for_each(|entry| write!(f, " {}@{}", entry.index, entry.term))
                    }
                }
            }
            Self::AppendReply(AppendReply::Accepted { match_index }) => {
                write!(f, "AppendReply accepted {match_index}")
            }
            Self::AppendReply(AppendReply::Rejected { prev_log_index, hint_index, hint_term }) => {
                write!(f, "AppendReply refused {prev_log_index}, hint {hint_index} (term {hint_term})")
            }
            Self::Heartbeat(Heartbeat { leader_commit, round, quiesce }) => {
                write!(
                    f,
                    "Heartbeat {round}, commit {leader_commit}{}",
                    if *quiesce { ", quiesce" } else { "" }
                )
            }
            Self::HeartbeatReply { round } => write!(f, "HeartbeatReply {round}"),
            Self::InstallSnapshot(snapshot) => {
                write!(f, "InstallSnapshot {} (term {})", snapshot.index, snapshot.term)
            }
            Self::TimeoutNow => f.write_str("TimeoutNow"),
            Self::ReadIndex { context } => write!(f, "ReadIndex {context}"),
            Self::ReadIndexReply { context, index: Some(index) } => {
                write!(f, "ReadIndexReply {context}: {index}")
            }
            Self::ReadIndexReply { context, index: None } => write!(f, "ReadIndexReply {context}: ask again"),
            // The name is a random number, and says nothing to a reader.
            Self::DoubtCheck { settled, .. } => {
                write!(f, "DoubtCheck {}", if *settled { "settled" } else { "open" })
            }
            Self::DoubtSettled { .. } => f.write_str("DoubtSettled"),
        }
    }
}

impl fmt::Display for VoteRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log {} (term {})", self.last_log_index, self.last_log_term)?;
        if self.leadership_transfer { f.write_str(", by transfer") } else { Ok(()) }
    }
}
