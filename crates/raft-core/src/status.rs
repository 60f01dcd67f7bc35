//! What a replica can tell of itself.

use std::fmt;

use crate::server_change::ServerPhase;
use crate::types::{Configuration, LogIndex, ReplicaId, Role, Term};

/// Everything about one replica, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub id: ReplicaId,
    /// What it does.
    pub role: Role,
    /// The latest term it knows.
    pub term: Term,
    /// Its vote in that term.
    pub voted_for: Option<ReplicaId>,
    /// The leader, if known.
    pub leader: Option<ReplicaId>,
    /// The first entry of its log.
    pub first_index: LogIndex,
    /// The last entry of its log.
    pub last_index: LogIndex,
    /// The last durable entry.
    pub stable_index: LogIndex,
    /// The last entry known to be committed.
    pub commit_index: LogIndex,
    /// The last applied entry.
    pub applied_index: LogIndex,
    /// The configuration in force.
    pub configuration: Configuration,
    /// Where that configuration was written; above `commit_index` the change is pending.
    pub configuration_index: LogIndex,
    /// The election timer in force, in milliseconds.
    pub election_timer_ms: u64,
    /// The election timer that is in the log and not known to be committed.
    pub election_timer_new_ms: Option<u64>,
    /// The group is silent because it has nothing to do.
    pub quiesced: bool,
    /// The storage failed.
    pub failed: bool,
    /// Its log may lack what was acknowledged: it neither leads by its own vote nor counts until that is settled.
    pub in_doubt: bool,
    /// Messages that wait for the disk.
    pub held_messages: usize,
    /// Leader only: bytes of proposals that wait for commit.
    pub uncommitted_bytes: u64,
    /// Leader only: who is to lead next.
    pub transferring_to: Option<ReplicaId>,
    /// Leader only: servers that are being added or removed.
    pub server_changes: Vec<(ReplicaId, ServerPhase)>,
    /// Leader only: the others.
    pub followers: Vec<FollowerStatus>,
}

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowerState {
    /// One append at a time, until it is known where the logs part.
    Probe,
    /// Pipelined.
    Replicate,
    /// A snapshot is under way.
    Snapshot,
}

/// One follower, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Who it is.
    pub id: ReplicaId,
    /// How it is sent to.
    pub state: FollowerState,
    /// Its log equals the leader's up to here.
    pub match_index: LogIndex,
    /// What is sent next.
    pub next_index: LogIndex,
    /// Unacknowledged appends.
    pub inflight_messages: usize,
    /// Unacknowledged bytes.
    pub inflight_bytes: u64,
    /// Milliseconds since it was last heard in this term.
    pub silent_ms: Option<u64>,
    /// It refused what it had acknowledged: its disk lost something, and it must be replaced.
    pub lost_acknowledged: bool,
    /// It started from a log that may lack what it acknowledged: it does not count until it has caught up.
    pub in_doubt: bool,
}

/// One line for people.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id, role, term, first_index, last_index, stable_index, commit_index, applied_index, ..
        } = self;
        write!(f, "{id} {role} of term {term}, leader ")?;
        match self.leader {
            Some(leader) => write!(f, "{leader}")?,
            None => f.write_str("unknown")?,
        }
        write!(
            f,
            ", log [{first_index}, {last_index}], stable {stable_index}, commit {commit_index}, applied {applied_index}"
        )?;
        if self.in_doubt {
            f.write_str(", in doubt")?;
        }
        if let Some(millis) = self.election_timer_new_ms {
            write!(f, ", election timer becomes {millis} ms")?;
        }
        for (name, ids) in [
            ("voters", &self.configuration.voters),
            ("outgoing", &self.configuration.outgoing_voters),
            ("learners", &self.configuration.learners),
            ("next learners", &self.configuration.next_learners),
        ] {
            if !ids.is_empty() {
                let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
                write!(f, ", {name} {}", ids.join(" "))?;
            }
        }
        for follower in &self.followers {
            let FollowerStatus { id, state, match_index, next_index, inflight_messages, .. } = follower;
            write!(
                f,
                "; {id} {state:?} match {match_index} next {next_index} in flight {inflight_messages}"
            )?;
            if follower.in_doubt {
                f.write_str(" in doubt")?;
            }
        }
        Ok(())
    }
}
