//! The state of one replica; `step` compares terms, then hands over to a role.

use std::collections::BTreeMap;

use crate::candidate::{Cause, Election};
use crate::commands::{LastCommand, Overwritten};
use crate::config::Config;
use crate::doubt::OwnDoubt;
use crate::error::StepError;
use crate::follower::Follower;
use crate::leader::Leader;
use crate::log::Log;
use crate::log_view::LogView;
use crate::message::{AppendReply, Body, Message};
use crate::outbox::Outbox;
use crate::pcg::Pcg;
use crate::ready::{Dropped, Persist, ReadOutcome, Ready, StateChange};
use crate::server_change::ServerChangeDone;
use crate::tickets::Tickets;
use crate::types::{DoubtId, HardState, LogIndex, ReplicaId, Role, Term, Ticket};

/// Terms and indexes of messages stay below this, so that counting on from them never overflows; no cluster lives long
/// enough to reach it.
pub(crate) const NUMBER_MAX: u64 = u64::MAX >> 1;

/// A heartbeat is never closer to the next than this: a shorter interval is mostly overhead.
const HEARTBEAT_MS_MIN: u64 = 20;

/// What a replica is doing. Only the fields of the role exist.
///
/// ```text
///                timeout              quorum would vote            quorum voted
///   Follower --------------> PreCandidate ----------> Candidate ----------------> Leader
///      ^  ^                       |                       |                         |
///      |  +-----------------------+-----------------------+                         |
///      |     leader seen, newer term, or the election is lost                       |
///      +----------------------------------------------------------------------------+
///                    newer term, no quorum heard, or removed from the group
/// ```
#[derive(Clone, Debug)]
pub(crate) enum RoleState {
    Follower(Follower),
    PreCandidate(Election),
    Candidate(Election),
    Leader(Box<Leader>),
}

/// One replica.
#[derive(Clone, Debug)]
pub(crate) struct Raft {
    pub(crate) config: Config,
    /// Term and vote as they will be durable soon.
    pub(crate) hard_state: HardState,
    /// `hard_state` differs from what the last `Persist` with a hard state carried.
    pub(crate) hard_state_dirty: bool,
    pub(crate) log: Log,
    pub(crate) tickets: Tickets,
    pub(crate) outbox: Outbox,
    pub(crate) role: RoleState,
    pub(crate) rng: Pcg,
    /// The latest time that was told.
    pub(crate) now: u64,
    /// The election timer T in force.
    pub(crate) election_timer_ms: u64,
    /// When an election starts, unless a leader is heard before.
    pub(crate) election_deadline: u64,
    /// Silent, because there is nothing to do.
    pub(crate) quiesced: bool,
    pub(crate) reads: Vec<ReadOutcome>,
    pub(crate) dropped: Vec<Dropped>,
    /// Role, term, leader or configuration changed since the last `Ready`.
    pub(crate) state_changed: bool,
    pub(crate) last_command: LastCommand,
    pub(crate) overwritten: Overwritten,
    /// With leases: when a leader was last heard, in whatever term; the start, as long as none was. It binds this voter.
    pub(crate) bound_since: Option<u64>,
    /// How many bytes of entries the transport takes for whom; who is not in here has no bound.
    pub(crate) credits: BTreeMap<ReplicaId, u64>,
    /// Changes of servers that ended since the last `Ready`.
    pub(crate) server_changes: Vec<ServerChangeDone>,
    /// The storage failed: nothing is said or done any more.
    pub(crate) failed: bool,
    /// The log may lack what was acknowledged.
    pub(crate) doubt: Option<OwnDoubt>,
    /// Somebody's vote was in doubt: the next election asks everybody whose word unanimity needs.
    pub(crate) met_doubt: bool,
}

impl Raft {
    pub(crate) fn new(config: Config, hard_state: HardState, log: Log, doubt: bool, now: u64) -> Self {
        let mut rng = Pcg::new(config.seed, config.id.store.0 ^ config.id.number);
        let doubt = doubt.then(|| OwnDoubt::new(DoubtId(rng.next_u64().max(1))));
        let mut raft = Self {
            role: RoleState::Follower(Follower::default()),
            hard_state,
            hard_state_dirty: false,
            log,
            tickets: Tickets::default(),
            outbox: Outbox::default(),
            rng,
            now,
            election_timer_ms: 0,
            election_deadline: 0,
            quiesced: false,
            reads: Vec::new(),
            dropped: Vec::new(),
            state_changed: true,
            last_command: LastCommand::Unknown,
            overwritten: Overwritten::default(),
            bound_since: config.lease_margin_ms.map(|_| now),
            credits: BTreeMap::new(),
            server_changes: Vec::new(),
            failed: false,
            doubt,
            met_doubt: false,
            config,
        };
        raft.role = RoleState::Follower(raft.new_follower(None));
        raft.refresh_election_timer();
        raft.reset_election_deadline();
        raft.campaign_if_alone();
        raft
    }

    pub(crate) fn id(&self) -> ReplicaId {
        self.config.id
    }

    pub(crate) fn term(&self) -> Term {
        self.hard_state.term
    }

    pub(crate) fn role(&self) -> Role {
        match &self.role {
            RoleState::Follower(_) => Role::Follower,
            RoleState::PreCandidate(_) => Role::PreCandidate,
            RoleState::Candidate(_) => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        match &self.role {
            RoleState::Follower(follower) => follower.leader,
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => None,
            RoleState::Leader(_) => Some(self.id()),
        }
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.log.configuration().is_voter(self.id())
    }

    /// Whether this replica may stand for election: as a voter, or because the configuration that removes it is not
    /// committed yet (thesis 4.2.2). It may be the only one that has that entry, and then nobody else can be elected:
    /// the others need its vote, and its log is longer than theirs.
    pub(crate) fn may_campaign(&self) -> bool {
        self.is_voter() || self.log.votes_until_commit(self.id())
    }

    pub(crate) fn heartbeat_ms(&self) -> u64 {
        (self.election_timer_ms / 10).max(HEARTBEAT_MS_MIN)
    }

    /// When the next heartbeats are due after some at this moment.
    pub(crate) fn next_heartbeat(&self) -> u64 {
        let interval = self.heartbeat_ms();
        let since = if self.config.align_heartbeats { self.now - self.now % interval } else { self.now };
        since.saturating_add(interval)
    }

    /// Time never runs backwards here, whatever the caller says.
    pub(crate) fn told(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// Takes a message. Everything in it may be a lie.
    pub(crate) fn step(&mut self, view: &dyn LogView, now: u64, message: Message) -> Result<(), StepError> {
        self.told(now);
        if self.failed {
            return Err(StepError::Failed);
        }
        self.check(&message)?;
        self.wake_for(&message);
        let Message { from, term, doubt, body, .. } = message;
        if term > self.term() {
            match &body {
                // Asking for a pre-vote changes nobody's term, and neither does a yes (thesis 9.6).
                Body::PreVote(_) | Body::PreVoteReply { granted: true } => {}
                // Disruptive servers (thesis 4.2.3): whoever hears a leader keeps it, and does not even take the term
                // over, unless that leader asked for the election.
                Body::RequestVote(request) if !request.leadership_transfer && self.protects_leader() => {
                    return Ok(());
                }
                Body::AppendEntries(_)
                | Body::Heartbeat(_)
                | Body::InstallSnapshot(_)
                | Body::DoubtCheck { .. } => {
                    self.become_follower(term, Some(from));
                }
                _ => self.become_follower(term, None),
            }
        } else if term < self.term() {
            self.step_stale(from, term, doubt, body);
            return Ok(());
        }
        let counts = term != self.term() || self.hear_doubt(from, doubt);
        match body {
            Body::PreVote(request) => self.handle_pre_vote(from, term, request),
            Body::PreVoteReply { granted } => self.handle_pre_vote_reply(from, term, granted, doubt),
            Body::RequestVote(request) => self.handle_request_vote(from, request),
            Body::RequestVoteReply { granted } => self.handle_request_vote_reply(from, granted, doubt),
            Body::AppendEntries(append) => {
                self.heard_leader(from)?;
                self.handle_append(view, from, append)?;
            }
            Body::Heartbeat(heartbeat) => {
                self.heard_leader(from)?;
                self.handle_heartbeat(from, heartbeat);
            }
            Body::InstallSnapshot(snapshot) => {
                self.heard_leader(from)?;
                self.handle_install_snapshot(view, from, snapshot);
            }
            // Of a life before the doubt, of which it is not known what is left.
            Body::AppendReply(_) if !counts => {}
            Body::AppendReply(reply) => self.handle_append_reply(from, reply)?,
            Body::HeartbeatReply { round } => self.handle_heartbeat_reply(from, round)?,
            Body::TimeoutNow => self.handle_timeout_now(from),
            Body::ReadIndex { context } => self.handle_read_index(from, context)?,
            Body::ReadIndexReply { context, index } => self.handle_read_index_reply(from, context, index),
            Body::DoubtCheck { doubt, settled } => {
                self.heard_leader(from)?;
                self.handle_doubt_check(from, doubt, settled);
            }
            Body::DoubtSettled { doubt } => self.handle_doubt_settled(from, doubt)?,
        }
        Ok(())
    }

    /// A message of an older term changes nothing here; but its sender must learn the term, or it would wait for ever.
    fn step_stale(&mut self, from: ReplicaId, term: Term, doubt: Option<DoubtId>, body: Body) {
        let last = self.log.last();
        match body {
            Body::PreVote(_) => self.send(from, Body::PreVoteReply { granted: false }),
            Body::RequestVote(_) => self.send(from, Body::RequestVoteReply { granted: false }),
            Body::PreVoteReply { granted } => self.handle_pre_vote_reply(from, term, granted, doubt),
            Body::Heartbeat(heartbeat) => self.send(from, Body::HeartbeatReply { round: heartbeat.round }),
            Body::AppendEntries(_) | Body::InstallSnapshot(_) => {
                let reply =
                    AppendReply::Rejected { prev_log_index: last, hint_index: last, hint_term: Term::ZERO };
                self.send(from, Body::AppendReply(reply));
            }
            Body::ReadIndex { context } => self.send(from, Body::ReadIndexReply { context, index: None }),
            _ => {}
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: u64) {
        self.told(now);
        if self.failed || self.quiesced {
            return;
        }
        match &self.role {
            RoleState::Leader(_) => self.tick_leader(),
            RoleState::Follower(_) | RoleState::PreCandidate(_) | RoleState::Candidate(_) => {
                self.tick_asked_reads();
                if self.may_campaign() && self.now >= self.election_deadline {
                    self.start_election(Cause::Timeout);
                }
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        if self.failed || self.quiesced {
            return None;
        }
        match &self.role {
            RoleState::Leader(leader) => self.leader_deadline(leader),
            RoleState::Follower(follower) => {
                let election = self.may_campaign().then_some(self.election_deadline);
                [election, follower.asked.deadline()].into_iter().flatten().min()
            }
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => Some(self.election_deadline),
        }
    }

    /// Whoever speaks to a silent group wakes it; only the wish to be silent does not, nor an answer that comes late and
    /// says nothing new.
    fn wake_for(&mut self, message: &Message) {
        if !self.quiesced {
            return;
        }
        let wakes = match (&message.body, &self.role) {
            (Body::Heartbeat(heartbeat), _) => !heartbeat.quiesce,
            (Body::HeartbeatReply { round }, RoleState::Leader(leader)) => *round >= leader.round,
            (Body::AppendReply(AppendReply::Accepted { match_index }), RoleState::Leader(leader)) => {
                leader.followers.get(&message.from).is_some_and(|p| *match_index > p.match_index)
            }
            _ => true,
        };
        if wakes {
            self.wake();
        }
    }

    pub(crate) fn wake(&mut self) {
        if !std::mem::take(&mut self.quiesced) {
            return;
        }
        self.reset_election_deadline();
        match &mut self.role {
            RoleState::Leader(leader) => leader.woken(self.now),
            RoleState::Follower(follower) => follower.woken(self.now),
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => {}
        }
    }

    /// Takes a term over, and maybe a leader. Whatever the role was, it ends here.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>) {
        assert!(term >= self.term(), "terms never fall: {} then {term}", self.term());
        self.end_role();
        if term > self.term() {
            self.set_hard_state(HardState { term, voted_for: None });
        }
        let led = matches!(self.role, RoleState::Leader(_));
        self.role = RoleState::Follower(self.new_follower(leader));
        self.state_changed = true;
        // A newer term alone does not put the own election off (thesis 3.4: only a leader or a vote given does), or a
        // candidate with an outdated log that tries again and again would keep the others from ever standing.
        if leader.is_some() || led {
            self.reset_election_deadline();
        }
    }

    fn new_follower(&mut self, leader: Option<ReplicaId>) -> Follower {
        Follower::new(leader, self.now, self.rng.next_u64())
    }

    /// What a role owes to others when it ends.
    pub(crate) fn end_role(&mut self) {
        self.quiesced = false;
        match &mut self.role {
            RoleState::Leader(_) => {
                self.abandon_server_changes();
                let RoleState::Leader(leader) = &mut self.role else { return };
                let remote = leader.reads.fail(&mut self.reads);
                for (from, context) in remote {
                    self.send(from, Body::ReadIndexReply { context, index: None });
                }
            }
            RoleState::Follower(follower) => follower.asked.fail(&mut self.reads),
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => {}
        }
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        if hard_state == self.hard_state {
            return;
        }
        let term_changed = hard_state.term != self.hard_state.term;
        self.hard_state = hard_state;
        self.hard_state_dirty = true;
        if term_changed {
            self.outbox.term_changed(hard_state.term);
        }
    }

    /// The commit index rose: what waits for that happens.
    pub(crate) fn after_commit(&mut self) {
        self.overwritten.settle(&self.log, &mut self.dropped);
        self.refresh_election_timer();
    }

    /// The configuration in force is another one.
    pub(crate) fn configuration_changed(&mut self) {
        self.state_changed = true;
        if matches!(self.role, RoleState::Leader(_)) {
            self.sync_followers();
        } else if !self.quiesced {
            self.reset_election_deadline();
        }
    }

    /// The ticket at which the current term and vote are durable.
    pub(crate) fn hard_state_ticket(&self) -> Ticket {
        if self.hard_state_dirty { self.tickets.next() } else { self.tickets.hard_state() }
    }

    /// The ticket at which everything up to `index` is durable.
    fn entries_ticket(&self, index: LogIndex) -> Ticket {
        if index > self.log.handed() || self.log.has_replacement() {
            self.tickets.next()
        } else if index <= self.log.stable() {
            Ticket(0)
        } else {
            self.tickets.proving(index)
        }
    }

    /// Says something in the current term; goes out when that term is durable.
    pub(crate) fn send(&mut self, to: ReplicaId, body: Body) {
        self.send_in_term(to, self.term(), body);
    }

    /// Says something in a term that may be hypothetical.
    pub(crate) fn send_in_term(&mut self, to: ReplicaId, term: Term, body: Body) {
        let mut needs = self.hard_state_ticket();
        if let Body::AppendReply(AppendReply::Accepted { match_index }) = &body {
            needs = needs.max(self.entries_ticket(*match_index));
        }
        let doubt = self.doubt.map(|own| own.id);
        let message = Message { from: self.id(), to, term, doubt, body };
        self.outbox.push(message, needs, self.tickets.durable(), self.hard_state.term);
    }

    pub(crate) fn persisted(&mut self, now: u64, ticket: Ticket) {
        self.told(now);
        if self.failed {
            return;
        }
        if let Some(index) = self.tickets.persisted(ticket) {
            self.log.stable_to(index);
            if matches!(self.role, RoleState::Leader(_)) {
                self.maybe_commit();
            }
        }
        self.end_own_doubt();
        self.outbox.release(self.tickets.durable());
    }

    pub(crate) fn persist_failed(&mut self) {
        if self.failed {
            return;
        }
        // A last service: a leader that can no longer write asks the best follower to take over. It claims nothing.
        let heir = self.best_heir();
        self.end_role();
        self.outbox.clear();
        if let Some(heir) = heir {
            self.send(heir, Body::TimeoutNow);
        }
        self.role = RoleState::Follower(self.new_follower(None));
        self.failed = true;
        self.state_changed = true;
    }

    pub(crate) fn has_ready(&self) -> bool {
        let leader_work = match &self.role {
            RoleState::Leader(leader) => leader.has_work(),
            RoleState::Follower(follower) => follower.asked.has_work() && follower.leader.is_some(),
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => false,
        };
        leader_work
            || self.state_changed
            || !self.outbox.is_empty()
            || !self.reads.is_empty()
            || !self.dropped.is_empty()
            || !self.server_changes.is_empty()
            || (!self.failed && (self.hard_state_dirty || self.log.has_work() || self.log.has_committed()))
    }

    /// Fills `ready` with what the host must do; what was in it is gone, its buffers are used again.
    pub(crate) fn ready_into(&mut self, view: &dyn LogView, ready: &mut Ready) {
        if !self.failed {
            match &self.role {
                RoleState::Leader(_) => self.leader_round(view),
                RoleState::Follower(_) => self.ask_reads(),
                RoleState::PreCandidate(_) | RoleState::Candidate(_) => {}
            }
        }
        if let Some(persist) = ready.persist.take() {
            self.log.recycle(persist.entries);
        }
        ready.committed = None;
        if !self.failed {
            ready.persist = self.take_persist();
            ready.committed = self.log.take_committed();
        }
        self.outbox.take_into(&mut ready.messages);
        swap_out(&mut self.reads, &mut ready.reads);
        swap_out(&mut self.dropped, &mut ready.dropped);
        swap_out(&mut self.server_changes, &mut ready.server_changes);
        ready.state_change = std::mem::take(&mut self.state_changed).then(|| StateChange {
            role: self.role(),
            term: self.term(),
            leader: self.leader(),
            configuration: self.log.configuration().clone(),
        });
    }

    fn take_persist(&mut self) -> Option<Persist> {
        if !self.hard_state_dirty && !self.log.has_work() {
            return None;
        }
        let work = self.log.take_work();
        let proves = (!work.entries.is_empty() || work.snapshot.is_some()).then(|| self.log.handed());
        let hard_state = std::mem::take(&mut self.hard_state_dirty).then_some(self.hard_state);
        Some(Persist {
            ticket: self.tickets.issue(proves, hard_state.is_some()),
            hard_state,
            snapshot: work.snapshot,
            truncate_from: work.truncate_from,
            entries: work.entries,
            commit: self.log.commit(),
        })
    }
}

/// Hands `from` over, and takes the buffer of `to` back, empty.
fn swap_out<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
    to.clear();
    std::mem::swap(from, to);
}
