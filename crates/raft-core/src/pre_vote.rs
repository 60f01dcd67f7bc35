//! Asking before an election whether it could be won (thesis 9.6), so that a replica that comes back from a partition
//! disturbs nobody.

use crate::candidate::Election;
use crate::doubt;
use crate::message::{Body, VoteRequest};
use crate::quorum::VoteResult;
use crate::raft::{Raft, RoleState};
use crate::types::{DoubtId, ReplicaId, Term};

impl Raft {
    /// Starts to ask. No term changes, nothing becomes durable.
    pub(crate) fn become_pre_candidate(&mut self) {
        self.end_role();
        self.role = RoleState::PreCandidate(Election::of(self.id(), self.doubt.map(|own| own.id)));
        self.state_changed = true;
        self.set_candidate_deadline();
        let (term, request) = (self.term().next(), self.vote_request(false));
        for peer in self.other_voters() {
            self.send_in_term(peer, term, Body::PreVote(request));
        }
        self.count_pre_votes();
    }

    /// Yes, if this replica would vote so: the term would be new, the log is good enough, and it hears no leader.
    pub(crate) fn handle_pre_vote(&mut self, from: ReplicaId, term: Term, request: VoteRequest) {
        let protects = !request.leadership_transfer && self.protects_leader();
        if term > self.term() && !protects && self.is_up_to_date(&request) {
            // In the candidate's coming term: it counts only answers to the question it asked.
            self.send_in_term(from, term, Body::PreVoteReply { granted: true });
        } else {
            self.send(from, Body::PreVoteReply { granted: false });
        }
    }

    pub(crate) fn handle_pre_vote_reply(
        &mut self,
        from: ReplicaId,
        term: Term,
        granted: bool,
        doubt: Option<DoubtId>,
    ) {
        let own = self.term();
        let RoleState::PreCandidate(election) = &mut self.role else { return };
        if granted && term != own.next() {
            return;
        }
        if !self.log.votes_until_commit(from) {
            return;
        }
        self.met_doubt |= doubt.is_some();
        election.answer(from, granted, doubt);
        self.count_pre_votes();
    }

    fn count_pre_votes(&mut self) {
        let RoleState::PreCandidate(election) = &self.role else { return };
        let everybody = self.log.voters_until_commit();
        match doubt::election_result(election, self.log.configuration(), &everybody, self.id()) {
            VoteResult::Won => self.become_candidate(false),
            VoteResult::Lost => self.lose_election(),
            VoteResult::Pending => {}
        }
    }
}
