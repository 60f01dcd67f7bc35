//! What a follower does with its leader's messages (thesis 3.5, 5.3).

use crate::error::StepError;
use crate::log_view::LogView;
use crate::message::{AppendEntries, AppendReply, Body, Entries, Heartbeat};
use crate::raft::{Raft, RoleState};
use crate::read_index::AskedReads;
use crate::types::{Entry, LogIndex, ReplicaId, SnapshotMeta};

/// A follower's own fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    /// The leader of this term, once heard.
    pub(crate) leader: Option<ReplicaId>,
    /// When it was heard last, or taken for heard.
    heard_at: u64,
    /// The newest heartbeat round: an older wish to be silent is void.
    round: u64,
    /// The highest index acknowledged to this leader.
    acknowledged: LogIndex,
    /// Reads that wait for the leader's word.
    pub(crate) asked: AskedReads,
}

impl Follower {
    pub(crate) fn new(leader: Option<ReplicaId>, now: u64, first_batch: u64) -> Self {
        Self { leader, heard_at: now, asked: AskedReads::new(first_batch), ..Self::default() }
    }

    /// After a silence the leader gets a whole timer to be heard.
    pub(crate) fn woken(&mut self, now: u64) {
        self.heard_at = now;
    }
}

impl Raft {
    /// Whether there is a leader that voters must protect (thesis 4.2.3).
    pub(crate) fn hears_leader(&self) -> bool {
        if !self.config.check_quorum {
            return false;
        }
        match &self.role {
            // It has heard a quorum within the timer, or would have stepped down.
            RoleState::Leader(_) => true,
            RoleState::Follower(f) => {
                f.leader.is_some() && self.now < f.heard_at.saturating_add(self.election_timer_ms)
            }
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => false,
        }
    }

    /// Whether a candidate that the leader did not send is turned away.
    pub(crate) fn protects_leader(&self) -> bool {
        self.hears_leader() || self.bound_until().is_some()
    }

    /// `from` speaks as the leader of this term.
    pub(crate) fn heard_leader(&mut self, from: ReplicaId) -> Result<(), StepError> {
        let term = self.term();
        match &mut self.role {
            RoleState::Leader(_) => return Err(StepError::TwoLeaders { from, term, leader: self.id() }),
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => self.become_follower(term, Some(from)),
            RoleState::Follower(follower) => {
                match follower.leader {
                    None => {
                        follower.leader = Some(from);
                        self.state_changed = true;
                    }
                    Some(leader) if leader != from => {
                        return Err(StepError::TwoLeaders { from, term, leader });
                    }
                    Some(_) => {}
                }
                follower.heard_at = self.now;
            }
        }
        self.bound_since = self.config.lease_margin_ms.map(|_| self.now);
        self.reset_election_deadline();
        Ok(())
    }

    pub(crate) fn handle_append(
        &mut self,
        view: &dyn LogView,
        from: ReplicaId,
        append: AppendEntries,
    ) -> Result<(), StepError> {
        let AppendEntries { prev_log_index, prev_log_term, leader_commit, entries } = append;
        let entries = match entries {
            Entries::Inline(entries) => entries,
            Entries::Interval { .. } => Vec::new(),
        };
        let empty = entries.is_empty();
        let commit = self.log.commit();
        let matched = if prev_log_index < commit {
            // What is committed here is in the leader's log too (thesis 3.6.3): only what lies above is news.
            let end = entries.last().map_or(prev_log_index, |entry| entry.index);
            let known = entries.iter().take_while(|entry| entry.index <= commit).count();
            for entry in &entries[..known] {
                self.check_against_committed(entry)?;
            }
            self.append_all(view, entries.into_iter().skip(known))?;
            end.max(commit)
        } else if self.log.terms.term(prev_log_index) == Some(prev_log_term) {
            let end = entries.last().map_or(prev_log_index, |entry| entry.index);
            self.append_all(view, entries.into_iter())?;
            end
        } else {
            // The last place where both logs may agree: one round trip per conflicting term (thesis 3.5).
            let (hint_index, hint_term) = self.log.terms.last_at_most(prev_log_index, prev_log_term);
            let reply = AppendReply::Rejected {
                prev_log_index,
                hint_index,
                hint_term: hint_term.unwrap_or_default(),
            };
            self.send(from, Body::AppendReply(reply));
            return Ok(());
        };
        // Clamped to what is proved to match: a commit index may be ahead of these entries.
        let rose = self.log.commit_to(leader_commit.min(matched));
        if rose {
            self.after_commit();
        }
        let RoleState::Follower(follower) = &mut self.role else { return Ok(()) };
        // An append without entries that raised the commit index, and whose place was acknowledged before, was sent
        // for the sake of the commit index: nobody waits for an answer. Should the earlier one be lost, the leader asks
        // again, and that raises nothing.
        let acknowledged = matched <= follower.acknowledged;
        follower.acknowledged = follower.acknowledged.max(matched);
        if !(empty && rose && acknowledged) {
            self.send(from, Body::AppendReply(AppendReply::Accepted { match_index: matched }));
        }
        Ok(())
    }

    fn check_against_committed(&self, entry: &Entry) -> Result<(), StepError> {
        // Below the log there is nothing left to compare with.
        if entry.index >= self.log.first() && self.log.terms.term(entry.index) != Some(entry.term) {
            return Err(StepError::ContradictsCommitted { index: entry.index });
        }
        Ok(())
    }

    /// Appends entries whose predecessor matches; those that are there already are left alone, and what contradicts them
    /// is cut off.
    fn append_all(
        &mut self,
        view: &dyn LogView,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<(), StepError> {
        let mut configuration_changed = false;
        let result = self.try_append_all(view, entries, &mut configuration_changed);
        if configuration_changed {
            self.configuration_changed();
        }
        result
    }

    fn try_append_all(
        &mut self,
        view: &dyn LogView,
        entries: impl Iterator<Item = Entry>,
        configuration_changed: &mut bool,
    ) -> Result<(), StepError> {
        for entry in entries {
            if entry.index <= self.log.last() {
                if self.log.terms.term(entry.index) == Some(entry.term) {
                    continue;
                }
                if entry.index <= self.log.commit() {
                    return Err(StepError::ContradictsCommitted { index: entry.index });
                }
                *configuration_changed |= self.truncate(view, entry.index);
            }
            if entry.term < self.log.terms.last_term() {
                return Err(StepError::EntryTerm { index: entry.index, term: entry.term });
            }
            self.last_command.appended(&entry);
            *configuration_changed |= self.log.append(entry);
        }
        Ok(())
    }

    fn truncate(&mut self, view: &dyn LogView, from: LogIndex) -> bool {
        self.overwritten.cut(&self.log, view, from);
        self.last_command.truncated();
        self.tickets.truncated(from);
        if let RoleState::Follower(follower) = &mut self.role {
            follower.acknowledged = follower.acknowledged.min(from.prev());
        }
        self.log.truncate(from)
    }

    pub(crate) fn handle_heartbeat(&mut self, from: ReplicaId, heartbeat: Heartbeat) {
        // In doubt the log may not match any more where the leader believes that it does; appends will tell.
        if self.doubt.is_none() && self.log.commit_to(heartbeat.leader_commit) {
            self.after_commit();
        }
        let nothing_to_do = self.doubt.is_none()
            && !self.log.has_work()
            && self.log.last() == self.log.stable()
            && self.log.last() == self.log.commit()
            && self.log.last() == heartbeat.leader_commit;
        let RoleState::Follower(follower) = &mut self.role else { return };
        let fresh = heartbeat.round > follower.round;
        follower.round = follower.round.max(heartbeat.round);
        if heartbeat.quiesce && fresh && nothing_to_do && follower.asked.is_empty() {
            // No answer: it would wake the leader.
            self.quiesced = true;
            return;
        }
        // An old wish to be silent is not worth an answer that wakes somebody.
        if heartbeat.quiesce && !fresh && self.quiesced {
            return;
        }
        self.wake();
        self.send(from, Body::HeartbeatReply { round: heartbeat.round });
    }

    /// A snapshot has arrived whole (thesis 5.3).
    pub(crate) fn handle_install_snapshot(
        &mut self,
        view: &dyn LogView,
        from: ReplicaId,
        snapshot: SnapshotMeta,
    ) {
        let index = snapshot.index;
        let accepted = |match_index| Body::AppendReply(AppendReply::Accepted { match_index });
        if index <= self.log.commit() {
            // Stale: all of it is here.
            return self.send(from, accepted(self.log.commit()));
        }
        if self.log.terms.term(index) == Some(snapshot.term) {
            // The log reaches there and matches: it is worth more than the snapshot, which only proves a commit index.
            if self.log.commit_to(index) {
                self.after_commit();
            }
            return self.send(from, accepted(index));
        }
        self.overwritten.replaced(&self.log, view, index, &mut self.dropped);
        self.last_command.truncated();
        self.tickets.replaced();
        self.log.restore(snapshot);
        self.refresh_election_timer();
        self.configuration_changed();
        self.send(from, accepted(index));
    }

    /// The host saw the leader's store die.
    pub(crate) fn leader_lost(&mut self) {
        if matches!(self.role, RoleState::Leader(_)) {
            return;
        }
        self.wake();
        let RoleState::Follower(follower) = &mut self.role else { return };
        if follower.leader.take().is_none() {
            return;
        }
        self.state_changed = true;
        follower.asked.fail(&mut self.reads);
        // Sooner than the timer, and not all at once.
        let timer = self.election_timer_ms;
        self.election_deadline = self.now.saturating_add(self.rng.between(timer / 20, timer / 4));
    }
}
