//! Elections (thesis 3.4): asking for votes, giving them, counting them.

use crate::doubt::{self, Answers};
use crate::message::{Body, VoteRequest};
use crate::quorum::VoteResult;
use crate::raft::{NUMBER_MAX, Raft, RoleState};
use crate::types::{DoubtId, HardState, ReplicaId};

/// The answers of one (pre-)election.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    pub(crate) votes: Answers,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) granted: bool,
    /// Who gave it is in doubt: a yes counts only if everybody says so.
    pub(crate) doubt: Option<DoubtId>,
}

impl Election {
    pub(crate) fn of(own: ReplicaId, doubt: Option<DoubtId>) -> Self {
        Self { votes: [(own, Answer { granted: true, doubt })].into() }
    }

    /// The first answer counts: a repeated message cannot change it. Who does not vote is not counted.
    pub(crate) fn answer(&mut self, from: ReplicaId, granted: bool, doubt: Option<DoubtId>) {
        self.votes.entry(from).or_insert(Answer { granted, doubt });
    }
}

/// Why an election starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No leader was heard for too long.
    Timeout,
    /// The host wants this replica to lead.
    Host,
    /// The leader wants this replica to lead.
    Leader,
}

impl Raft {
    /// A lone voter needs nobody's vote, so it need not wait for a timer either.
    pub(crate) fn campaign_if_alone(&mut self) {
        let configuration = self.log.configuration();
        if !configuration.is_joint() && configuration.voters.len() == 1 && self.is_voter() {
            self.become_candidate(false);
        }
    }

    /// The timer ran out, or somebody wants this replica to lead, whatever the others hear.
    pub(crate) fn start_election(&mut self, cause: Cause) {
        if !self.may_campaign() || matches!(self.role, RoleState::Leader(_)) {
            return;
        }
        if self.doubt.is_some() && cause != Cause::Timeout {
            // It would disturb a leader that lives, and nearly always lose.
            return;
        }
        if cause != Cause::Leader
            && let Some(until) = self.bound_until()
        {
            // Its answers were a promise to stand no sooner (`lease.rs`).
            self.election_deadline = until;
            return;
        }
        // Under leases only the leader itself can lift the protection that voters give it.
        let overrides = match cause {
            Cause::Timeout => false,
            Cause::Host => self.config.lease_margin_ms.is_none(),
            Cause::Leader => true,
        };
        if self.config.pre_vote && !overrides {
            self.become_pre_candidate();
        } else {
            self.become_candidate(overrides);
        }
    }

    pub(crate) fn become_candidate(&mut self, leadership_transfer: bool) {
        if self.term().0 + 1 >= NUMBER_MAX {
            // Only a lying peer brings the term here. Without a next term there is no election.
            self.reset_election_deadline();
            return;
        }
        self.end_role();
        self.set_hard_state(HardState { term: self.term().next(), voted_for: Some(self.id()) });
        self.role = RoleState::Candidate(Election::of(self.id(), self.doubt.map(|own| own.id)));
        self.state_changed = true;
        self.set_candidate_deadline();
        let request = self.vote_request(leadership_transfer);
        for peer in self.other_voters() {
            self.send(peer, Body::RequestVote(request));
        }
        self.count_votes();
    }

    /// An election that nobody answers is given up after a while, in a time of each replica's own.
    pub(crate) fn set_candidate_deadline(&mut self) {
        let timer = self.election_timer_ms;
        self.election_deadline = self.now.saturating_add(self.rng.between(timer / 2, timer));
    }

    pub(crate) fn other_voters(&self) -> Vec<ReplicaId> {
        if self.met_doubt || self.doubt.is_some() {
            // It may take everybody's word.
            return self.log.voters_until_commit().into_iter().filter(|id| *id != self.id()).collect();
        }
        let configuration = self.log.configuration();
        configuration
            .voters
            .union(&configuration.outgoing_voters)
            .copied()
            .filter(|id| *id != self.id())
            .collect()
    }

    pub(crate) fn vote_request(&self, leadership_transfer: bool) -> VoteRequest {
        VoteRequest {
            last_log_index: self.log.last(),
            last_log_term: self.log.terms.last_term(),
            leadership_transfer,
        }
    }

    /// Whether the candidate's log is at least as good as ours (thesis 3.6.1).
    pub(crate) fn is_up_to_date(&self, request: &VoteRequest) -> bool {
        (request.last_log_term, request.last_log_index) >= (self.log.terms.last_term(), self.log.last())
    }

    /// Somebody asks for the vote in the current term. A learner answers too: it may be a voter by now and not know it.
    pub(crate) fn handle_request_vote(&mut self, from: ReplicaId, request: VoteRequest) {
        let free = match self.hard_state.voted_for {
            Some(candidate) => candidate == from,
            None => self.leader().is_none(),
        };
        let bound = !request.leadership_transfer && self.bound_until().is_some();
        let granted = free && !bound && self.is_up_to_date(&request);
        if granted {
            self.set_hard_state(HardState { voted_for: Some(from), ..self.hard_state });
            self.reset_election_deadline();
        }
        self.send(from, Body::RequestVoteReply { granted });
    }

    pub(crate) fn handle_request_vote_reply(
        &mut self,
        from: ReplicaId,
        granted: bool,
        doubt: Option<DoubtId>,
    ) {
        let RoleState::Candidate(election) = &mut self.role else { return };
        if !self.log.votes_until_commit(from) {
            return;
        }
        self.met_doubt |= doubt.is_some();
        election.answer(from, granted, doubt);
        self.count_votes();
    }

    fn count_votes(&mut self) {
        let RoleState::Candidate(election) = &self.role else { return };
        let everybody = self.log.voters_until_commit();
        match doubt::election_result(election, self.log.configuration(), &everybody, self.id()) {
            VoteResult::Won => {
                let election = election.clone();
                self.become_leader();
                self.elected_with_doubts(&election, &everybody);
            }
            VoteResult::Lost => self.lose_election(),
            VoteResult::Pending => {}
        }
    }

    /// A quorum said no. Nobody leads as far as is known, so the next try comes soon.
    pub(crate) fn lose_election(&mut self) {
        self.become_follower(self.term(), None);
        self.retry_election_soon();
    }
}
