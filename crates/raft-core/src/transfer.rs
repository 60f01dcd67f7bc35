//! Handing leadership over (thesis 3.10).

use crate::candidate::Cause;
use crate::error::TransferError;
use crate::message::Body;
use crate::raft::{Raft, RoleState};
use crate::types::ReplicaId;

/// A transfer under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// The next leader.
    pub(crate) to: ReplicaId,
    /// When it is given up and proposals are taken again.
    pub(crate) deadline: u64,
}

impl Raft {
    pub(crate) fn transfer_leadership(&mut self, to: Option<ReplicaId>) -> Result<(), TransferError> {
        if self.failed {
            return Err(TransferError::Failed);
        }
        let RoleState::Leader(leader) = &self.role else {
            return Err(TransferError::NotLeader { leader: self.leader() });
        };
        let to = match to {
            Some(to) if !self.log.configuration().voters.contains(&to) => {
                return Err(TransferError::NotVoter(to));
            }
            Some(to) if to == self.id() => return Ok(()),
            Some(to) => to,
            None => self.best_heir().ok_or(TransferError::Nobody)?,
        };
        match leader.transfer {
            Some(running) if running.to == to => return Ok(()),
            Some(running) => return Err(TransferError::InProgress { to: running.to }),
            None => {}
        }
        self.wake();
        let (now, deadline) = (self.now, self.now.saturating_add(self.election_timer_ms));
        if let RoleState::Leader(leader) = &mut self.role {
            leader.transfer = Some(Transfer { to, deadline });
            leader.touched(now);
        }
        self.advance_transfer();
        Ok(())
    }

    /// The voter with the longest log among those that were heard lately.
    pub(crate) fn best_heir(&self) -> Option<ReplicaId> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let voters = &self.log.configuration().voters;
        // A silent group heard nobody for long, and that says nothing.
        let alive =
            |heard: Option<u64>| heard.is_some_and(|at| at.saturating_add(self.election_timer_ms) > self.now);
        leader
            .followers
            .iter()
            .filter(|(id, p)| {
                voters.contains(id) && p.doubt.is_none() && (self.quiesced || alive(p.heard_at))
            })
            .max_by_key(|(id, p)| (p.match_index, std::cmp::Reverse(**id)))
            .map(|(id, _)| *id)
    }

    /// Tells the next leader to start, once it has everything. Repeated with each heartbeat, for the message may be lost.
    pub(crate) fn advance_transfer(&mut self) {
        let RoleState::Leader(leader) = &self.role else { return };
        let Some(transfer) = leader.transfer else { return };
        if leader.followers.get(&transfer.to).is_some_and(|p| p.counted_match() == self.log.last()) {
            if let RoleState::Leader(leader) = &mut self.role {
                leader.lease.given_up = true;
            }
            self.send(transfer.to, Body::TimeoutNow);
        }
    }

    /// The leader wants this replica to lead.
    pub(crate) fn handle_timeout_now(&mut self, from: ReplicaId) {
        match &self.role {
            RoleState::Follower(follower) if follower.leader.is_none_or(|leader| leader == from) => {
                self.start_election(Cause::Leader);
            }
            // It is on its way already, or this is not from the leader.
            RoleState::Follower(_) | RoleState::Candidate(_) | RoleState::Leader(_) => {}
            RoleState::PreCandidate(_) => self.start_election(Cause::Leader),
        }
    }
}
