//! Linearizable reads without log entries (thesis 6.4): the leader proves by a round of heartbeats that it still led
//! when the read came in. One round serves all reads that wait.

use std::collections::VecDeque;

use crate::error::StepError;
use crate::message::Body;
use crate::quorum::joint;
use crate::raft::{Raft, RoleState};
use crate::ready::ReadOutcome;
use crate::types::{LogIndex, ReplicaId};

/// The most reads that a leader keeps for followers; each stands for a whole batch there. Above it they are dropped, and
/// asked again.
const REMOTE_READS_MAX: usize = 4096;

/// A read at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    context: u64,
    /// The follower that asks; `None`: this replica's host.
    from: Option<ReplicaId>,
    since: u64,
}

/// Reads that one heartbeat round will confirm.
#[derive(Clone, Debug)]
struct Round {
    round: u64,
    /// The commit index when the round began.
    index: LogIndex,
    started_at: u64,
    reads: Vec<Waiting>,
}

/// The reads at a leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaderReads {
    /// Not yet in a round: the term's first commit or the end of the running round is awaited.
    waiting: Vec<Waiting>,
    /// Rounds in order.
    rounds: VecDeque<Round>,
}

impl LeaderReads {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }

    /// Whether a round should begin now. One at a time: while it runs, the next batch gathers.
    fn should_start(&self, now: u64, patience_ms: u64) -> bool {
        !self.waiting.is_empty()
            && self.rounds.back().is_none_or(|round| now >= round.started_at.saturating_add(patience_ms))
    }

    /// Whatever waits joins `round`.
    pub(crate) fn join(&mut self, round: u64, index: LogIndex, now: u64) {
        if !self.waiting.is_empty() {
            self.rounds.push_back(Round {
                round,
                index,
                started_at: now,
                reads: std::mem::take(&mut self.waiting),
            });
        }
    }

    /// Leadership ends: all reads fail. Returns those of others.
    pub(crate) fn fail(&mut self, outcomes: &mut Vec<ReadOutcome>) -> Vec<(ReplicaId, u64)> {
        let rounds = std::mem::take(&mut self.rounds);
        let waiting = std::mem::take(&mut self.waiting);
        let mut remote = Vec::new();
        for read in rounds.into_iter().flat_map(|round| round.reads).chain(waiting) {
            match read.from {
                Some(from) => remote.push((from, read.context)),
                None => outcomes.push(ReadOutcome { context: read.context, index: None }),
            }
        }
        remote
    }

    /// The oldest read's age begins here.
    fn oldest(&self) -> Option<u64> {
        let in_rounds = self.rounds.iter().flat_map(|round| round.reads.iter());
        in_rounds.chain(&self.waiting).map(|read| read.since).min()
    }

    fn knows(&self, from: ReplicaId, context: u64) -> bool {
        let in_rounds = self.rounds.iter().flat_map(|round| round.reads.iter());
        in_rounds.chain(&self.waiting).any(|read| read.from == Some(from) && read.context == context)
    }

    fn remote(&self) -> usize {
        let in_rounds = self.rounds.iter().flat_map(|round| round.reads.iter());
        in_rounds.chain(&self.waiting).filter(|read| read.from.is_some()).count()
    }
}

/// A follower's batch that the leader was asked about.
#[derive(Clone, Debug)]
struct Asked {
    id: u64,
    contexts: Vec<u64>,
    ask_again_at: u64,
    give_up_at: u64,
}

/// The reads at a follower.
#[derive(Clone, Debug, Default)]
pub(crate) struct AskedReads {
    /// The next batch's name. It starts at random, so that an answer to an earlier life of this replica names nothing.
    next_id: u64,
    /// The next batch.
    gathering: Vec<u64>,
    /// The batch that the leader was asked about.
    asked: Option<Asked>,
}

impl AskedReads {
    pub(crate) fn new(next_id: u64) -> Self {
        Self { next_id, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathering.is_empty() && self.asked.is_none()
    }

    /// Whether a question should go out.
    pub(crate) fn has_work(&self) -> bool {
        self.asked.is_none() && !self.gathering.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.asked.as_ref().map(|asked| asked.ask_again_at.min(asked.give_up_at))
    }

    /// All reads fail.
    pub(crate) fn fail(&mut self, outcomes: &mut Vec<ReadOutcome>) {
        let asked = self.asked.take().map(|asked| asked.contexts).unwrap_or_default();
        let contexts = asked.into_iter().chain(std::mem::take(&mut self.gathering));
        outcomes.extend(contexts.map(|context| ReadOutcome { context, index: None }));
    }
}

impl Raft {
    /// The host wants to read.
    pub(crate) fn read_index(&mut self, context: u64) {
        if !self.failed {
            self.wake();
            let now = self.now;
            match &mut self.role {
                RoleState::Leader(leader) => {
                    leader.reads.waiting.push(Waiting { context, from: None, since: now });
                    leader.touched(now);
                    return;
                }
                RoleState::Follower(follower) if follower.leader.is_some() => {
                    follower.asked.gathering.push(context);
                    return;
                }
                RoleState::Follower(_) | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {}
            }
        }
        self.reads.push(ReadOutcome { context, index: None });
    }

    /// A follower wants to read.
    pub(crate) fn handle_read_index(&mut self, from: ReplicaId, context: u64) -> Result<(), StepError> {
        let now = self.now;
        let RoleState::Leader(leader) = &mut self.role else {
            self.send(from, Body::ReadIndexReply { context, index: None });
            return Ok(());
        };
        if !leader.followers.contains_key(&from) {
            return Err(StepError::UnknownSender { from });
        }
        // Asked again while the first question still waits: one answer is enough.
        if !leader.reads.knows(from, context) && leader.reads.remote() < REMOTE_READS_MAX {
            leader.reads.waiting.push(Waiting { context, from: Some(from), since: now });
            leader.touched(now);
        }
        Ok(())
    }

    /// Starts a round if reads wait for one. Not before the term's first commit: until then the leader does not know
    /// what is committed (thesis 6.4, step 1).
    pub(crate) fn start_read_round(&mut self) {
        let patience = self.heartbeat_ms();
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.reads.waiting.is_empty() {
            return;
        }
        if leader.commits(self.log.commit()) && self.holds_lease() {
            return self.answer_under_lease();
        }
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.commits(self.log.commit()) && leader.reads.should_start(self.now, patience) {
            self.broadcast_heartbeat();
        }
    }

    /// Nobody else can have committed anything: what is committed here is all there is.
    fn answer_under_lease(&mut self) {
        let index = self.log.commit();
        let RoleState::Leader(leader) = &mut self.role else { return };
        for read in std::mem::take(&mut leader.reads.waiting) {
            match read.from {
                None => self.reads.push(ReadOutcome { context: read.context, index: Some(index) }),
                Some(from) => {
                    let reply = Body::ReadIndexReply { context: read.context, index: Some(index) };
                    self.send(from, reply);
                }
            }
        }
    }

    /// Answers the reads whose round a quorum has confirmed.
    pub(crate) fn confirm_reads(&mut self) {
        let id = self.id();
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.reads.rounds.is_empty() {
            return;
        }
        let own = leader.round;
        let followers = &leader.followers;
        let confirmed = joint::reached(self.log.configuration(), |voter| {
            if voter == id {
                own
            } else {
                // Who is in doubt may have forgotten that it elected somebody else.
                followers.get(&voter).filter(|p| p.doubt.is_none()).map_or(0, |p| p.acked_round)
            }
        });
        let mut remote = Vec::new();
        while leader.reads.rounds.front().is_some_and(|round| round.round <= confirmed) {
            let Some(round) = leader.reads.rounds.pop_front() else { break };
            for read in round.reads {
                match read.from {
                    None => self.reads.push(ReadOutcome { context: read.context, index: Some(round.index) }),
                    Some(from) => remote.push((from, read.context, round.index)),
                }
            }
            leader.dirty = true;
        }
        for (from, context, index) in remote {
            self.send(from, Body::ReadIndexReply { context, index: Some(index) });
        }
    }

    /// Gives up when a read is older than two timers; with check-quorum the leader steps down long before.
    pub(crate) fn expire_reads(&mut self) {
        let patience = self.election_timer_ms * 2;
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.reads.oldest().is_some_and(|since| self.now >= since.saturating_add(patience)) {
            let remote = leader.reads.fail(&mut self.reads);
            for (from, context) in remote {
                self.send(from, Body::ReadIndexReply { context, index: None });
            }
        }
    }

    /// Asks the leader about the batch that has gathered.
    pub(crate) fn ask_reads(&mut self) {
        let (now, again, timer) = (self.now, 2 * self.heartbeat_ms(), self.election_timer_ms);
        let RoleState::Follower(follower) = &mut self.role else { return };
        let (Some(leader), true) = (follower.leader, follower.asked.has_work()) else { return };
        let reads = &mut follower.asked;
        let id = reads.next_id;
        reads.next_id = id.wrapping_add(1);
        reads.asked = Some(Asked {
            id,
            contexts: std::mem::take(&mut reads.gathering),
            ask_again_at: now.saturating_add(again),
            give_up_at: now.saturating_add(timer),
        });
        self.send(leader, Body::ReadIndex { context: id });
    }

    /// Asks again, or gives up.
    pub(crate) fn tick_asked_reads(&mut self) {
        let (now, again) = (self.now, 2 * self.heartbeat_ms());
        let RoleState::Follower(follower) = &mut self.role else { return };
        let Some(asked) = &mut follower.asked.asked else { return };
        if now >= asked.give_up_at {
            follower.asked.fail(&mut self.reads);
        } else if now >= asked.ask_again_at
            && let Some(leader) = follower.leader
        {
            asked.ask_again_at = now.saturating_add(again);
            let id = asked.id;
            self.send(leader, Body::ReadIndex { context: id });
        }
    }

    pub(crate) fn handle_read_index_reply(&mut self, from: ReplicaId, context: u64, index: Option<LogIndex>) {
        let RoleState::Follower(follower) = &mut self.role else { return };
        if follower.leader != Some(from) {
            return;
        }
        if let Some(asked) = follower.asked.asked.take_if(|asked| asked.id == context) {
            self.reads.extend(asked.contexts.into_iter().map(|context| ReadOutcome { context, index }));
        }
    }
}
