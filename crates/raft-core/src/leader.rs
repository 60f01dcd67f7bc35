//! What a leader does on its own: heartbeats, commit, check-quorum, quiescence, changes of the configuration.

use std::collections::{BTreeMap, VecDeque};

use crate::candidate::Cause;
use crate::confchange::{self, ConfigurationChange};
use crate::error::{ConfigurationError, ProposeError};
use crate::group::Proposal;
use crate::lease::Lease;
use crate::log_view::LogView;
use crate::message::{Body, Heartbeat};
use crate::quorum::joint;
use crate::raft::{NUMBER_MAX, Raft, RoleState};
use crate::read_index::LeaderReads;
use crate::server_change::ServerChanges;
use crate::tracker::{Progress, SendState};
use crate::transfer::Transfer;
use crate::types::{Configuration, Entry, EntryId, LogIndex, Payload, ReplicaId};

/// A leader's own fields.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    /// Everybody else who receives the log.
    pub(crate) followers: BTreeMap<ReplicaId, Progress>,
    /// When leadership began, or a silence ended: who was not heard since has had less than a timer to speak.
    pub(crate) since: u64,
    /// The newest heartbeat round.
    pub(crate) round: u64,
    heartbeat_due: u64,
    pub(crate) reads: LeaderReads,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) lease: Lease,
    /// Servers that are being added or removed.
    pub(crate) changes: ServerChanges,
    /// The term's no-op: what is committed is known once this is.
    pub(crate) first_index: LogIndex,
    /// Proposals that wait for commit: last index and bytes of each batch.
    uncommitted: VecDeque<(LogIndex, u64)>,
    /// The sum of the bytes in `uncommitted`.
    pub(crate) uncommitted_bytes: u64,
    /// When something was last asked of this group.
    busy_at: u64,
    /// There may be something to send.
    pub(crate) dirty: bool,
    /// A configuration without this replica is committed: its last duty is to say so (thesis 4.2.2).
    pub(crate) resigns: bool,
}

impl Leader {
    /// Something happened: the group is not idle, and there may be something to send.
    pub(crate) fn touched(&mut self, now: u64) {
        self.busy_at = now;
        self.dirty = true;
    }

    pub(crate) fn woken(&mut self, now: u64) {
        self.since = now;
        self.heartbeat_due = now;
        self.touched(now);
    }

    /// Whether this leader knows what is committed.
    pub(crate) fn commits(&self, commit: LogIndex) -> bool {
        commit >= self.first_index
    }

    pub(crate) fn has_work(&self) -> bool {
        self.dirty
    }
}

impl Raft {
    pub(crate) fn become_leader(&mut self) {
        self.end_role();
        let now = self.now;
        let first_index = self.log.last().next();
        self.role = RoleState::Leader(Box::new(Leader {
            followers: BTreeMap::new(),
            since: now,
            round: 0,
            heartbeat_due: self.next_heartbeat(),
            reads: LeaderReads::default(),
            transfer: None,
            lease: Lease::default(),
            changes: ServerChanges::new(),
            first_index,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            busy_at: now,
            dirty: true,
            resigns: false,
        }));
        self.state_changed = true;
        self.sync_followers();
        // Only an entry of the own term can be committed by counting, and it commits all before it (thesis 3.6.2).
        self.append_own(EntryId::NONE, Payload::Noop);
    }

    /// Appends an entry of this leader. Returns whether the configuration changed.
    pub(crate) fn append_own(&mut self, id: EntryId, payload: Payload) -> LogIndex {
        let entry = Entry { index: self.log.last().next(), term: self.term(), id, payload };
        let index = entry.index;
        self.last_command.appended(&entry);
        if self.log.append(entry) {
            self.configuration_changed();
            // Fewer voters may make a quorum of what was too few.
            self.maybe_commit();
        }
        if let RoleState::Leader(leader) = &mut self.role {
            leader.touched(self.now);
        }
        index
    }

    /// Keeps a progress for each other member.
    pub(crate) fn sync_followers(&mut self) {
        let (id, next, now) = (self.id(), self.log.last().next(), self.now);
        let members = self.log.configuration().members();
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.followers.retain(|follower, _| members.contains(follower));
        for member in members.iter().filter(|member| **member != id) {
            leader.followers.entry(*member).or_insert_with(|| Progress::new(next, now));
        }
        if leader.transfer.is_some_and(|transfer| !members.contains(&transfer.to)) {
            leader.transfer = None;
        }
        leader.dirty = true;
    }

    /// What every proposal needs.
    pub(crate) fn may_propose(&self) -> Result<&Leader, ProposeError> {
        if self.failed {
            return Err(ProposeError::Failed);
        }
        let RoleState::Leader(leader) = &self.role else {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        };
        if let Some(transfer) = leader.transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        if leader.resigns {
            return Err(ProposeError::NotLeader { leader: None });
        }
        if self.log.last().0 >= NUMBER_MAX - (1 << 32) {
            return Err(ProposeError::LogFull);
        }
        Ok(leader)
    }

    /// Appends commands: all of them, or none.
    pub(crate) fn propose(
        &mut self,
        view: &dyn LogView,
        proposals: impl IntoIterator<Item = Proposal>,
    ) -> Result<std::ops::Range<LogIndex>, ProposeError> {
        let waiting = self.may_propose()?.uncommitted_bytes;
        // One batch always fits an empty log, or an entry larger than the limit could never be written.
        if waiting >= self.config.uncommitted_bytes_max {
            return Err(ProposeError::Overloaded { bytes: waiting });
        }
        self.wake();
        let (start, before) = (self.log.last().next(), self.log.unstable_bytes());
        for Proposal { id, data, prerequisite } in proposals {
            if let Some(prerequisite) = prerequisite {
                let current = self.last_command.get(&self.log, view);
                if prerequisite != current {
                    if start <= self.log.last() {
                        self.last_command.truncated();
                        self.log.truncate(start);
                    }
                    return Err(ProposeError::BadPrerequisite { current });
                }
            }
            let entry = Entry {
                index: self.log.last().next(),
                term: self.term(),
                id,
                payload: Payload::Command(data),
            };
            self.last_command.appended(&entry);
            self.log.append(entry);
        }
        let (end, bytes) = (self.log.last().next(), self.log.unstable_bytes() - before);
        if start < end
            && let RoleState::Leader(leader) = &mut self.role
        {
            leader.touched(self.now);
            leader.uncommitted.push_back((end.prev(), bytes));
            leader.uncommitted_bytes += bytes;
        }
        Ok(start..end)
    }

    pub(crate) fn propose_configuration(
        &mut self,
        id: EntryId,
        change: &ConfigurationChange,
    ) -> Result<LogIndex, ConfigurationError> {
        let leader = self.may_propose()?;
        // Without an entry of its own term a new leader does not know whether the last change is committed, and two
        // changes that overlap can split the group (the bug of 2015; thesis 4.1 forbids it this way since).
        if !leader.commits(self.log.commit()) {
            return Err(ConfigurationError::NotReady);
        }
        if self.log.configuration_index() > self.log.commit() {
            return Err(ConfigurationError::Pending { index: self.log.configuration_index() });
        }
        let new = confchange::apply(self.log.configuration(), change)?;
        self.check_reachable(&new)?;
        self.wake();
        Ok(self.append_own(id, Payload::Configuration(new)))
    }

    /// Refuses a configuration whose quorum is out of reach already.
    pub(crate) fn check_reachable(&self, new: &Configuration) -> Result<(), ConfigurationError> {
        let RoleState::Leader(leader) = &self.role else { return Ok(()) };
        if self.quiesced {
            // Everybody was there when the group fell silent, and nobody spoke since.
            return Ok(());
        }
        let alive = |id: &&ReplicaId| {
            **id == self.id()
                || leader
                    .followers
                    .get(id)
                    .filter(|p| p.doubt.is_none())
                    .and_then(|p| p.heard_at)
                    .is_some_and(|at| at.saturating_add(self.election_timer_ms) > self.now)
        };
        let (reachable, voters) = (new.voters.iter().filter(alive).count(), new.voters.len());
        if reachable > voters / 2 {
            Ok(())
        } else {
            Err(ConfigurationError::WouldLoseQuorum { reachable, voters })
        }
    }

    /// Commits what a quorum has, if it is of this term (thesis 3.6.2; figure 3.7 shows the danger).
    pub(crate) fn maybe_commit(&mut self) {
        let id = self.id();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let stable = self.log.stable().0;
        // The own entries count once they are durable, like everybody's.
        let reached = joint::reached(self.log.configuration(), |voter| {
            if voter == id { stable } else { leader.followers.get(&voter).map_or(0, |p| p.counted_match().0) }
        });
        let reached = LogIndex(reached);
        if reached <= self.log.commit() || self.log.terms.term(reached) != Some(self.hard_state.term) {
            return;
        }
        self.log.commit_to(reached);
        leader.touched(self.now);
        while let Some((last, bytes)) = leader.uncommitted.front() {
            if *last > reached {
                break;
            }
            leader.uncommitted_bytes -= bytes;
            leader.uncommitted.pop_front();
        }
        self.after_commit();
        self.configuration_committed();
    }

    /// Leaves a joint configuration, and leaves office if the group goes on without this replica.
    fn configuration_committed(&mut self) {
        let configuration = self.log.configuration();
        if self.log.configuration_index() > self.log.commit() {
            return;
        }
        if configuration.is_joint() {
            if configuration.auto_leave
                && let Ok(new) = confchange::apply(configuration, &ConfigurationChange::Leave)
            {
                self.append_own(EntryId::NONE, Payload::Configuration(new));
            }
        } else if !self.is_voter()
            && let RoleState::Leader(leader) = &mut self.role
        {
            leader.resigns = true;
        }
    }

    pub(crate) fn leader_deadline(&self, leader: &Leader) -> Option<u64> {
        if leader.followers.is_empty() && leader.reads.is_empty() && leader.transfer.is_none() {
            return None;
        }
        let transfer = leader.transfer.map_or(u64::MAX, |transfer| transfer.deadline);
        Some(leader.heartbeat_due.min(transfer))
    }

    pub(crate) fn tick_leader(&mut self) {
        let (now, next) = (self.now, self.next_heartbeat());
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.transfer.is_some_and(|transfer| now >= transfer.deadline) {
            leader.transfer = None;
        }
        if now < leader.heartbeat_due {
            return;
        }
        leader.heartbeat_due = next;
        if self.config.check_quorum && !self.hears_quorum() {
            // Somebody else may lead by now, and nothing can be committed here (thesis 6.2).
            // It stands again at once, as ovsdb's do: with pre-vote that disturbs nobody, and if nobody else stood
            // meanwhile the group has a leader again as soon as a quorum can be heard.
            self.become_follower(self.term(), None);
            if self.config.pre_vote {
                self.start_election(Cause::Timeout);
            }
            return;
        }
        if let RoleState::Leader(leader) = &mut self.role {
            // A change of servers may wait for somebody to be heard again.
            leader.dirty |= !leader.changes.is_empty();
        }
        self.expire_reads();
        if !self.try_quiesce() {
            self.advance_doubts();
            self.broadcast_heartbeat();
            self.advance_transfer();
        }
    }

    /// Whether a quorum spoke within the election timer.
    fn hears_quorum(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let heard = joint::reached(self.log.configuration(), |voter| {
            if voter == self.id() {
                self.now
            } else {
                let heard = |p: &Progress| p.heard_at.unwrap_or(0).max(leader.since);
                // A follower in doubt commits nothing: a leader with nobody else leads nothing, unless that is about to be settled.
                let followers = &leader.followers;
                followers.get(&voter).map_or(0, |p| p.doubt.map_or_else(|| heard(p), |doubt| doubt.since))
            }
        });
        self.now < heard.saturating_add(self.election_timer_ms)
    }

    /// One round of heartbeats: signs of life, the commit index, and proof of leadership for waiting reads.
    pub(crate) fn broadcast_heartbeat(&mut self) {
        let now = self.now;
        let commit = self.log.commit();
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.round += 1;
        let round = leader.round;
        if leader.commits(commit) {
            leader.reads.join(round, commit, now);
        }
        self.lease_round(round);
        self.send_heartbeats(round, false);
        self.confirm_reads();
    }

    fn send_heartbeats(&mut self, round: u64, quiesce: bool) {
        let RoleState::Leader(leader) = &self.role else { return };
        let commit = self.log.commit();
        let heartbeats: Vec<_> = leader
            .followers
            .iter()
            .map(|(id, p)| (*id, Heartbeat { leader_commit: commit.min(p.match_index), round, quiesce }))
            .collect();
        for (to, heartbeat) in heartbeats {
            self.send(to, Body::Heartbeat(heartbeat));
        }
    }

    /// Falls silent if nothing is left to do for anybody.
    fn try_quiesce(&mut self) -> bool {
        let Some(after) = self.config.quiesce_after_ms else { return false };
        let last = self.log.last();
        let RoleState::Leader(leader) = &mut self.role else { return false };
        let idle = self.now >= leader.busy_at.saturating_add(after)
            && self.log.commit() == last
            && self.log.stable() == last
            && leader.reads.is_empty()
            && leader.transfer.is_none()
            && !leader.resigns
            && leader.changes.is_empty()
            && leader
                .followers
                .values()
                .all(|p| p.match_index == last && p.state == SendState::Replicate && p.doubt.is_none());
        if !idle {
            return false;
        }
        leader.round += 1;
        let round = leader.round;
        self.send_heartbeats(round, true);
        self.quiesced = true;
        true
    }
}
