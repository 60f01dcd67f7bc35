//! Adding and removing servers as operators mean it: a new server catches up as a learner before it votes (Raft thesis 4.2.1),
//! one change follows the other, and whoever asks hears how it went. The phases and the answers are those of Open vSwitch's
//! ovsdb; the steps themselves are ordinary changes of the configuration (`leader.rs`), so nothing here can break safety.
//!
//! ```text
//!   add:     CatchUp (learner, in rounds) -> CaughtUp -> Committing -> Stable
//!   remove:  Remove (waits for its turn)              -> Committing -> gone
//! ```
//! All of it is the leader's and ends with its leadership: who asked hears [`ServerChangeOutcome::LostLeadership`] and asks the
//! next leader, which goes on with whatever the log says.

use std::collections::BTreeMap;
use std::fmt;

use crate::confchange::{self, ConfigurationChange, MemberChange};
use crate::error::{ConfigurationError, ServerChangeError};
use crate::raft::{Raft, RoleState};
use crate::types::{EntryId, LogIndex, Payload, ReplicaId};

/// Rounds of catching up before a server is given up as too slow (thesis 4.2.1 suggests a fixed number, such as ten).
const ROUNDS_MAX: u32 = 10;

/// How far the adding or removing of a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPhase {
    /// It is to be a learner, or is one and receives the log. Each round ends when it has what the log held when the round
    /// began.
    CatchUp {
        /// The round, from 1.
        round: u32,
    },
    /// A whole round took less than an election timer. It waits for its turn: one configuration at a time, and none that
    /// strands the quorum.
    CaughtUp,
    /// The configuration that adds or removes it is in the log, and not yet committed.
    Committing,
    /// It is a voter.
    Stable,
    /// It is to be removed and waits for its turn.
    Remove,
}

impl fmt::Display for ServerPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CatchUp { round } => write!(f, "catching up, round {round}"),
            Self::CaughtUp => f.write_str("caught up"),
            Self::Committing => f.write_str("committing"),
            Self::Stable => f.write_str("stable"),
            Self::Remove => f.write_str("to be removed"),
        }
    }
}

/// How the adding or removing of a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerChangeOutcome {
    /// It is committed.
    Done,
    /// The opposite was asked for before it was in the log.
    Cancelled,
    /// The new server did not catch up within ten rounds. It stays a learner.
    TooSlow,
    /// This replica no longer leads. The change may happen all the same; ask the next leader for it, which does not do it
    /// twice.
    LostLeadership,
}

/// The end of one change; see `Group::add_server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerChangeDone {
    /// The server.
    pub replica: ReplicaId,
    /// Whether it was to be added; else to be removed.
    pub add: bool,
    /// How it ended.
    pub outcome: ServerChangeOutcome,
}

/// A change under way at the leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerChange {
    add: bool,
    pub(crate) phase: ServerPhase,
    /// The round ends when the server has this entry.
    round_end: LogIndex,
    round_started: u64,
}

/// The changes under way, by server.
pub(crate) type ServerChanges = BTreeMap<ReplicaId, ServerChange>;

impl Raft {
    pub(crate) fn add_server(&mut self, replica: ReplicaId) -> Result<ServerPhase, ServerChangeError> {
        self.may_propose()?;
        let present = self.log.configuration().is_voter(replica);
        let (last, now) = (self.log.last(), self.now);
        let RoleState::Leader(leader) = &mut self.role else { return Err(ServerChangeError::AlreadyPresent) };
        match leader.changes.get(&replica) {
            Some(change) if change.add => Err(ServerChangeError::InProgress { phase: change.phase }),
            Some(change) if change.phase == ServerPhase::Committing => Err(ServerChangeError::Committing),
            // A removal that is not in the log yet is called off.
            Some(_) => {
                leader.changes.remove(&replica);
                let done = ServerChangeDone { replica, add: false, outcome: ServerChangeOutcome::Cancelled };
                self.server_changes.push(done);
                Ok(ServerPhase::Stable)
            }
            None if present => Err(ServerChangeError::AlreadyPresent),
            None => {
                let phase = ServerPhase::CatchUp { round: 1 };
                let change = ServerChange { add: true, phase, round_end: last, round_started: now };
                leader.changes.insert(replica, change);
                leader.touched(now);
                self.wake();
                Ok(phase)
            }
        }
    }

    pub(crate) fn remove_server(&mut self, replica: ReplicaId) -> Result<ServerPhase, ServerChangeError> {
        self.may_propose()?;
        let configuration = self.log.configuration();
        let member = configuration.members().contains(&replica);
        let now = self.now;
        let RoleState::Leader(leader) = &self.role else { return Err(ServerChangeError::AlreadyGone) };
        let mut cancelled = false;
        match leader.changes.get(&replica) {
            Some(change) if change.phase == ServerPhase::Committing => {
                return Err(if change.add {
                    ServerChangeError::Committing
                } else {
                    ServerChangeError::InProgress { phase: change.phase }
                });
            }
            Some(change) if !change.add => {
                return Err(ServerChangeError::InProgress { phase: change.phase });
            }
            // An addition that is not in the log yet is called off; the learner has to go all the same.
            Some(_) => cancelled = true,
            None if !member => return Err(ServerChangeError::AlreadyGone),
            None => {}
        }
        let leaves = |id: &ReplicaId| *id == replica || leader.changes.get(id).is_some_and(|c| !c.add);
        if configuration.voters.iter().all(leaves) {
            return Err(ServerChangeError::LastVoter);
        }
        if let Ok(new) = confchange::apply(
            configuration,
            &ConfigurationChange::Change(vec![MemberChange::Remove(replica)]),
        ) {
            self.check_reachable(&new)?;
        }
        if cancelled {
            let done = ServerChangeDone { replica, add: true, outcome: ServerChangeOutcome::Cancelled };
            self.server_changes.push(done);
        }
        let RoleState::Leader(leader) = &mut self.role else { return Err(ServerChangeError::AlreadyGone) };
        leader.changes.remove(&replica);
        if !member {
            leader.touched(now);
            return Ok(ServerPhase::Remove);
        }
        let change = ServerChange {
            add: false,
            phase: ServerPhase::Remove,
            round_end: LogIndex::ZERO,
            round_started: now,
        };
        leader.changes.insert(replica, change);
        leader.touched(now);
        self.wake();
        Ok(ServerPhase::Remove)
    }

    /// Leadership ends, and with it the care for changes.
    pub(crate) fn abandon_server_changes(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let outcome = ServerChangeOutcome::LostLeadership;
        let changes = std::mem::take(&mut leader.changes);
        self.server_changes.extend(changes.iter().map(|(id, change)| ServerChangeDone {
            replica: *id,
            add: change.add,
            outcome,
        }));
    }

    /// Takes each change one step on, if its time has come. Called before anything is sent, so that what happened since is
    /// known.
    pub(crate) fn advance_server_changes(&mut self) {
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.changes.is_empty() {
            return;
        }
        for (replica, change) in leader.changes.clone() {
            let end = match change.phase {
                ServerPhase::CatchUp { round } => self.advance_catch_up(replica, change, round),
                ServerPhase::CaughtUp => {
                    self.try_change(replica, MemberChange::AddVoter(replica));
                    None
                }
                ServerPhase::Remove => {
                    self.try_change(replica, MemberChange::Remove(replica));
                    None
                }
                ServerPhase::Committing => {
                    self.configuration_is_settled().then_some(ServerChangeOutcome::Done)
                }
                ServerPhase::Stable => Some(ServerChangeOutcome::Done),
            };
            if let (Some(outcome), RoleState::Leader(leader)) = (end, &mut self.role) {
                leader.changes.remove(&replica);
                self.server_changes.push(ServerChangeDone { replica, add: change.add, outcome });
            }
        }
    }

    /// The configuration in force is committed and not joint, and this leader knows it.
    fn configuration_is_settled(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        leader.commits(self.log.commit())
            && self.log.configuration_index() <= self.log.commit()
            && !self.log.configuration().is_joint()
    }

    fn advance_catch_up(
        &mut self,
        replica: ReplicaId,
        change: ServerChange,
        round: u32,
    ) -> Option<ServerChangeOutcome> {
        if !self.log.configuration().members().contains(&replica) {
            self.try_change(replica, MemberChange::AddLearner(replica));
            return None;
        }
        let (now, timer, last) = (self.now, self.election_timer_ms, self.log.last());
        let RoleState::Leader(leader) = &mut self.role else { return None };
        let matched = leader.followers.get(&replica).map(|p| p.match_index);
        // A replica that joins has nothing: an answer must have come, and it must cover the round.
        if matched.is_none_or(|index| index < change.round_end || index == LogIndex::ZERO) {
            return None;
        }
        let change = leader.changes.get_mut(&replica)?;
        if now.saturating_sub(change.round_started) < timer {
            // What it misses now, it gets within a timer: promoting it cannot hold up the commits for longer.
            change.phase = ServerPhase::CaughtUp;
            self.try_change(replica, MemberChange::AddVoter(replica));
            None
        } else if round >= ROUNDS_MAX {
            Some(ServerChangeOutcome::TooSlow)
        } else {
            change.phase = ServerPhase::CatchUp { round: round + 1 };
            (change.round_end, change.round_started) = (last, now);
            None
        }
    }

    /// Writes the configuration with this change, if the rules allow one now; else it is tried again later.
    fn try_change(&mut self, replica: ReplicaId, member: MemberChange) {
        if self.may_propose().is_err() || !self.configuration_is_settled() {
            return;
        }
        let old = self.log.configuration();
        let Ok(new) = confchange::apply(old, &ConfigurationChange::Change(vec![member])) else { return };
        if self.check_reachable(&new).is_err() {
            return;
        }
        self.append_own(EntryId::NONE, Payload::Configuration(new));
        let (now, last) = (self.now, self.log.last());
        // A lone voter has committed it already, and may have resigned by it.
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let Some(change) = leader.changes.get_mut(&replica) {
            match member {
                MemberChange::AddLearner(_) => (change.round_end, change.round_started) = (last, now),
                MemberChange::AddVoter(_) | MemberChange::Remove(_) => change.phase = ServerPhase::Committing,
            }
        }
    }
}

impl From<ConfigurationError> for ServerChangeError {
    fn from(error: ConfigurationError) -> Self {
        match error {
            ConfigurationError::Propose(error) => Self::Propose(error),
            ConfigurationError::WouldLoseQuorum { reachable, voters } => {
                Self::WouldLoseQuorum { reachable, voters }
            }
            // The change waits for these by itself.
            ConfigurationError::Pending { .. }
            | ConfigurationError::NotReady
            | ConfigurationError::Invalid(_) => Self::Committing,
        }
    }
}
