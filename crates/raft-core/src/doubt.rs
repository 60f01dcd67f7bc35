//! Replicas that may have lost the last record of their log ("in doubt"): how they take part without doing harm, and how the
//! doubt is settled.
//!
//! A log whose last record is not whole was usually torn while it was written, and then nobody heard of what it held. But
//! damage of the last *acknowledged* record looks the same. A replica that starts from such a log
//! ([`InitialState::doubt`](crate::InitialState)) may have forgotten entries that it acknowledged, votes that it gave, terms
//! that it saw. (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, show what comes of
//! believing such a log.)
//!
//! # What a replica in doubt does
//! - Everything it says carries the doubt's name ([`Message::doubt`](crate::Message)), which is new at each start.
//! - It counts for nothing: not for commit, not for read indexes and leases, not for check-quorum, not as heir.
//! - It may vote and stand (after the others, and only at its own timer), but a vote in doubt helps only an election that is
//!   *unanimous*: every voter of every configuration since the last committed one says yes, itself included.
//! - It takes entries and executes what is committed. It learns the commit index from appends alone, which prove where the logs
//!   match; a heartbeat's is clamped to what the leader remembers of acknowledgements, and those may be what was lost.
//!
//! # How the doubt ends
//! The leader forgets what the replica acknowledged before, and appends an entry E after it has heard of the doubt. Once E is
//! committed *by others* and the replica has it, the leader says so, the replica makes sure that it gives no second vote in this
//! term, and answers. Why that suffices:
//! - *Lost entries.* A leader has all that was committed before its term, and the replica has the leader's log up to E, which is
//!   behind everything that it ever acknowledged to this leader.
//! - *Forgotten votes.* A candidate C that has the replica's forgotten vote in a later term asked for it before the replica
//!   started, so C's log lacks E. C's quorum meets E's in somebody else, who refuses C or, having voted first, could not have
//!   taken E. So nobody is elected by that vote any more, and what the replica acknowledges from here on is safe. Votes of
//!   earlier terms mean nothing, and in the present one it gives none.
//!
//! After a *unanimous* election everybody's log was compared with the new leader's, so that has every entry which at least one
//! voter still has; and who asked for a forgotten vote in a later term would have refused. So the leader itself is settled at once,
//! and the others as soon as they have its first entry, committed or not.
//!
//! # What this rests on
//! Where all voters are in doubt at once (a power cut of the whole cluster), or the others are too few for a quorum, the group waits
//! until every voter is there: each entry that was acknowledged must have survived on one of them, which is so while fewer than
//! a quorum have really lost it. A group with a single voter has nobody to ask: it goes on at once with what is left. A lost
//! record that held a change from one or two voters to more hides a voter whose word may be needed; that one case is not covered.

use std::collections::{BTreeMap, BTreeSet};

use crate::candidate::{Answer, Election};
use crate::error::StepError;
use crate::message::Body;
use crate::quorum::{VoteResult, joint};
use crate::raft::{Raft, RoleState};
use crate::types::{Configuration, DoubtId, EntryId, HardState, LogIndex, Payload, ReplicaId, Ticket};

/// This replica's own doubt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnDoubt {
    pub(crate) id: DoubtId,
    /// The leader has settled it; that is so once this is durable.
    settled_with: Option<Ticket>,
}

impl OwnDoubt {
    pub(crate) fn new(id: DoubtId) -> Self {
        Self { id, settled_with: None }
    }
}

/// What a leader knows of a follower in doubt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FollowerDoubt {
    pub(crate) id: DoubtId,
    /// An entry that was appended after the doubt was heard of; `None`: with the next heartbeat.
    settles_at: Option<LogIndex>,
    /// The election of this leader was unanimous: that entry need not be committed.
    unanimous: bool,
    /// When it was heard of. Settling takes a few heartbeats, so for a timer from then on check-quorum is patient.
    pub(crate) since: u64,
}

/// How an election ends where some answers are in doubt.
pub(crate) fn election_result(
    election: &Election,
    configuration: &Configuration,
    everybody: &BTreeSet<ReplicaId>,
    own: ReplicaId,
) -> VoteResult {
    let granted = |id: &ReplicaId| election.votes.get(id).is_some_and(|answer| answer.granted);
    let firm = joint::vote(configuration, |id| {
        let answer = election.votes.get(&id)?;
        (!answer.granted || answer.doubt.is_none()).then_some(answer.granted)
    });
    // Who is in doubt must not lead by the others' votes alone: its log would be good enough, its memory of votes not.
    let in_doubt = election.votes.get(&own).is_some_and(|answer| answer.doubt.is_some());
    match firm {
        VoteResult::Won if !in_doubt => VoteResult::Won,
        VoteResult::Won | VoteResult::Pending if is_unanimous(election, everybody) => VoteResult::Won,
        VoteResult::Won | VoteResult::Pending => {
            // One refusal is enough against unanimity.
            let refused =
                in_doubt && everybody.iter().any(|id| election.votes.contains_key(id) && !granted(id));
            if refused { VoteResult::Lost } else { VoteResult::Pending }
        }
        VoteResult::Lost => VoteResult::Lost,
    }
}

fn is_unanimous(election: &Election, everybody: &BTreeSet<ReplicaId>) -> bool {
    !everybody.is_empty()
        && everybody.iter().all(|id| election.votes.get(id).is_some_and(|answer| answer.granted))
}

impl Raft {
    /// The election that made this replica the leader tells who is in doubt.
    pub(crate) fn elected_with_doubts(&mut self, election: &Election, everybody: &BTreeSet<ReplicaId>) {
        let unanimous = is_unanimous(election, everybody);
        if unanimous && self.doubt.take().is_some() {
            self.state_changed = true;
        }
        let since = self.now;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let first = leader.first_index;
        for (id, Answer { doubt, .. }) in &election.votes {
            if let (Some(doubt), Some(progress)) = (doubt, leader.followers.get_mut(id)) {
                // The term's first entry comes after their answers.
                progress.doubt =
                    Some(FollowerDoubt { id: *doubt, settles_at: Some(first), unanimous, since });
            }
        }
    }

    /// A message of the present term said that its sender is in doubt. Returns whether it may count: whether it is not in doubt,
    /// and speaks after any doubt that is known.
    pub(crate) fn hear_doubt(&mut self, from: ReplicaId, doubt: Option<DoubtId>) -> bool {
        let (next, now) = (self.log.last().next(), self.now);
        let RoleState::Leader(leader) = &mut self.role else { return true };
        let Some(progress) = leader.followers.get_mut(&from) else { return true };
        let known = progress.doubt.map(|known| known.id);
        if doubt == known {
            return true;
        }
        match doubt {
            // Said before the doubt began, or before this leader knows that it has ended.
            None => false,
            // Said before it ended.
            Some(doubt) if progress.settled_doubt == Some(doubt) => false,
            Some(doubt) => {
                let doubt = FollowerDoubt { id: doubt, settles_at: None, unanimous: false, since: now };
                progress.opened_in_doubt(doubt, next, now);
                leader.touched(now);
                true
            }
        }
    }

    /// With each heartbeat: takes the followers' doubts a step on.
    pub(crate) fn advance_doubts(&mut self) {
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.followers.values().all(|progress| progress.doubt.is_none()) {
            return;
        }
        // At most one entry for each heartbeat, whatever the followers say.
        let new =
            |progress: &crate::tracker::Progress| progress.doubt.is_some_and(|d| d.settles_at.is_none());
        if leader.followers.values().any(new) {
            let index = self.append_own(EntryId::NONE, Payload::Noop);
            let RoleState::Leader(leader) = &mut self.role else { return };
            for doubt in leader.followers.values_mut().filter_map(|progress| progress.doubt.as_mut()) {
                doubt.settles_at.get_or_insert(index);
            }
        }
        let commit = self.log.commit();
        let RoleState::Leader(leader) = &self.role else { return };
        let checks = leader.followers.iter().filter_map(|(id, progress)| {
            let FollowerDoubt { id: doubt, settles_at, unanimous, .. } = progress.doubt?;
            let at = settles_at?;
            let settled = progress.match_index >= at && (unanimous || commit >= at);
            Some((*id, Body::DoubtCheck { doubt, settled }))
        });
        for (to, check) in checks.collect::<Vec<_>>() {
            self.send(to, check);
        }
    }

    /// The leader says what it knows of this replica's doubt.
    pub(crate) fn handle_doubt_check(&mut self, from: ReplicaId, doubt: DoubtId, settled: bool) {
        match &self.doubt {
            // Over: the leader has not heard it, or somebody else settled it.
            None => self.send(from, Body::DoubtSettled { doubt }),
            Some(own) if own.id == doubt && settled && own.settled_with.is_none() => {
                if self.hard_state.voted_for.is_none() {
                    // A vote of this term may be what was lost: there must not be a second one.
                    self.set_hard_state(HardState { voted_for: Some(from), ..self.hard_state });
                }
                let ticket = self.hard_state_ticket();
                self.doubt = Some(OwnDoubt { id: doubt, settled_with: Some(ticket) });
                self.end_own_doubt();
            }
            Some(_) => {}
        }
    }

    /// Ends the doubt if what it ends with is durable.
    pub(crate) fn end_own_doubt(&mut self) {
        let Some(OwnDoubt { id, settled_with: Some(ticket) }) = self.doubt else { return };
        if ticket > self.tickets.durable() {
            return;
        }
        self.doubt = None;
        self.state_changed = true;
        if let (RoleState::Follower(_), Some(leader)) = (&self.role, self.leader()) {
            self.send(leader, Body::DoubtSettled { doubt: id });
        }
    }

    /// A follower is in doubt no more: what it has acknowledged since it started counts.
    pub(crate) fn handle_doubt_settled(&mut self, from: ReplicaId, doubt: DoubtId) -> Result<(), StepError> {
        let now = self.now;
        let RoleState::Leader(leader) = &mut self.role else { return Ok(()) };
        let progress = leader.followers.get_mut(&from).ok_or(StepError::UnknownSender { from })?;
        if progress.doubt.is_none_or(|known| known.id != doubt) {
            return Ok(());
        }
        progress.doubt = None;
        progress.settled_doubt = Some(doubt);
        progress.heard_at = Some(now);
        leader.touched(now);
        self.maybe_commit();
        self.confirm_reads();
        Ok(())
    }
}

/// The answers of an election, each with the doubt of who gave it.
pub(crate) type Answers = BTreeMap<ReplicaId, Answer>;
