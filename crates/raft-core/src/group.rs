//! The public handle of one group's replica.

use std::ops::Range;

use bytes::Bytes;

use crate::candidate::Cause;
use crate::commands::PAGE_BYTES;
use crate::confchange::ConfigurationChange;
use crate::config::{Config, InitialState};
use crate::error::{
    ConfigurationError, InitError, ProposeError, ServerChangeError, StepError, TimerError, TransferError,
};
use crate::log::Log;
use crate::log_view::LogView;
use crate::message::Message;
use crate::raft::{Raft, RoleState};
use crate::ready::Ready;
use crate::server_change::ServerPhase;
use crate::status::{FollowerState, FollowerStatus, Status};
use crate::tracker::SendState;
use crate::types::{Configuration, EntryId, LogIndex, ReplicaId, Role, Term, Ticket};

/// A command for the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Names it; [`EntryId::NONE`] if nobody waits for it.
    pub id: EntryId,
    /// What the state machine will get.
    pub data: Bytes,
    /// Append it only if this is the id of the last command in the log.
    pub prerequisite: Option<EntryId>,
}

impl Proposal {
    /// A command without a prerequisite.
    pub fn new(id: EntryId, data: impl Into<Bytes>) -> Self {
        Self { id, data: data.into(), prerequisite: None }
    }
}

/// One group's replica: call it, then carry out [`Group::ready`].
///
/// Every call that is told `now` takes milliseconds from an arbitrary origin; time that runs backwards is ignored.
///
/// A clone is a second replica in the same state: what a search through all schedules needs. Whether the two share their
/// log is up to `L`.
#[derive(Clone, Debug)]
pub struct Group<L> {
    raft: Raft,
    view: L,
}

impl<L: LogView> Group<L> {
    /// Starts a replica from what its storage remembers. Reads the log once, in pages, for terms and configurations.
    ///
    /// # Errors
    /// The storage's memory contradicts itself: it is damaged.
    pub fn new(config: Config, initial: InitialState, log: L, now: u64) -> Result<Self, InitError> {
        let InitialState { hard_state, commit, applied, snapshot, last_index, doubt } = initial;
        if applied < snapshot.index || last_index < applied {
            return Err(InitError::Indexes { snapshot: snapshot.index, applied, last: last_index });
        }
        let mut core = Log::new(&snapshot);
        let end = last_index.next();
        while core.last().next() < end {
            let entries = log.entries(core.last().next()..end, PAGE_BYTES)?;
            let before = core.last();
            for entry in &entries {
                let expected = core.last().next();
                if entry.index != expected || entry.term < core.terms.last_term() {
                    return Err(InitError::Entries { expected, found: entry.index, term: entry.term });
                }
                core.recover(entry);
            }
            if core.last() == before {
                return Err(InitError::Entries { expected: before.next(), found: before, term: Term::ZERO });
            }
        }
        let log_term = core.terms.last_term();
        if log_term > hard_state.term {
            return Err(InitError::TermBehindLog { stored: hard_state.term, log: log_term });
        }
        core.recovered(commit.max(applied).min(last_index), applied);
        Ok(Self { raft: Raft::new(config, hard_state, core, doubt, now), view: log })
    }

    /// Appends commands to the leader's log: all of them, or none. Returns their indexes.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub fn propose(
        &mut self,
        now: u64,
        proposals: impl IntoIterator<Item = Proposal>,
    ) -> Result<Range<LogIndex>, ProposeError> {
        self.raft.told(now);
        self.raft.propose(&self.view, proposals)
    }

    /// Changes the group's members. The change is complete once the entry is committed and, if the configuration became
    /// joint, the entry that leaves it too.
    ///
    /// # Errors
    /// See [`ConfigurationError`].
    pub fn propose_configuration(
        &mut self,
        now: u64,
        id: EntryId,
        change: &ConfigurationChange,
    ) -> Result<LogIndex, ConfigurationError> {
        self.raft.told(now);
        self.raft.propose_configuration(id, change)
    }

    /// Adds a server as operators mean it: it catches up as a learner, and votes when it is close behind (thesis 4.2.1).
    /// Whatever has to wait waits: several may be asked for at once. The end comes in [`Ready::server_changes`]; until
    /// then [`Status::server_changes`] tells the phase. The new replica starts with an empty configuration.
    ///
    /// # Errors
    /// See [`ServerChangeError`].
    pub fn add_server(&mut self, now: u64, replica: ReplicaId) -> Result<ServerPhase, ServerChangeError> {
        self.raft.told(now);
        self.raft.add_server(replica)
    }

    /// Removes a server, this one too; its addition is called off if it is not in the log yet. As [`Group::add_server`].
    ///
    /// # Errors
    /// See [`ServerChangeError`].
    pub fn remove_server(&mut self, now: u64, replica: ReplicaId) -> Result<ServerPhase, ServerChangeError> {
        self.raft.told(now);
        self.raft.remove_server(replica)
    }

    /// Changes the election timer of the whole group, in force once committed.
    ///
    /// # Errors
    /// See [`TimerError`].
    pub fn propose_election_timer(
        &mut self,
        now: u64,
        id: EntryId,
        millis: u64,
    ) -> Result<LogIndex, TimerError> {
        self.raft.told(now);
        self.raft.propose_election_timer(id, millis)
    }

    /// Takes a message of a peer. It may say anything: nothing in it can panic or overflow.
    ///
    /// # Errors
    /// The message was refused; see [`StepError`].
    pub fn step(&mut self, now: u64, message: Message) -> Result<(), StepError> {
        self.raft.step(&self.view, now, message)
    }

    /// Does what is due. Too early is harmless.
    pub fn tick(&mut self, now: u64) {
        self.raft.tick(now);
    }

    /// When to call [`Group::tick`] next; `None`: not before something else happens.
    pub fn next_deadline(&self) -> Option<u64> {
        self.raft.next_deadline()
    }

    /// The batch of this ticket is durable, and so are all before it.
    ///
    /// # Panics
    /// The ticket was never handed out.
    pub fn persisted(&mut self, now: u64, ticket: Ticket) {
        self.raft.persisted(now, ticket);
    }

    /// A write or a sync failed. That is final: what is on disk is unknown from here on.
    pub fn persist_failed(&mut self) {
        self.raft.persist_failed();
    }

    /// The state machine contains everything up to `index`.
    ///
    /// # Panics
    /// `index` was never handed out to be applied.
    pub fn applied(&mut self, index: LogIndex) {
        self.raft.log.applied_to(index);
    }

    /// Asks for an index at which a read is linearizable. Ends in exactly one `Ready::reads` with this context.
    pub fn read_index(&mut self, now: u64, context: u64) {
        self.raft.told(now);
        self.raft.read_index(context);
    }

    /// Hands leadership to `to`, or to the best follower. Proposals are refused until it is done or given up after one
    /// election timer.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn transfer_leadership(&mut self, now: u64, to: Option<ReplicaId>) -> Result<(), TransferError> {
        self.raft.told(now);
        self.raft.transfer_leadership(to)
    }

    /// Gives leadership up, whether anybody takes it or not: this leader's host can do nothing for the group at present (its
    /// disk hangs, say). The best follower is told to stand for election at once. Does nothing on others.
    pub fn resign(&mut self, now: u64) {
        self.raft.told(now);
        if self.is_leader() {
            self.raft.resign();
        }
    }

    /// Takes leadership: starts an election at once that a living leader does not prevent. Does nothing on a leader and
    /// on a replica without a vote. With leader leases a living leader does prevent it: only it can hand over.
    pub fn campaign(&mut self, now: u64) {
        self.raft.told(now);
        if !self.raft.failed {
            self.raft.start_election(Cause::Host);
        }
    }

    /// The host dropped the entries before `first_index`.
    ///
    /// # Panics
    /// Not all of them were committed and durable.
    pub fn compacted(&mut self, first_index: LogIndex) {
        self.raft.log.compact(first_index);
    }

    /// The link lost messages to `peer`: it is probed, at the pace of heartbeats.
    pub fn unreachable(&mut self, now: u64, peer: ReplicaId) {
        self.raft.told(now);
        self.raft.unreachable(peer);
    }

    /// The link to `peer` stands again: whatever was under way on the old one is not, a snapshot neither.
    pub fn link_established(&mut self, now: u64, peer: ReplicaId) {
        self.raft.told(now);
        self.raft.link_established(peer);
    }

    /// The transport takes `bytes` of entries for `peer` from now on, whatever it took before; `None`: no bound, which is so
    /// until the first call. An append takes what it carries, the last one a little more than was left. Without credit entries
    /// wait as an interval of indexes, not as bytes: heartbeats, questions and votes go on. It holds in whatever role, so a
    /// replica that becomes leader keeps to what it was told before. Sizes are [`Entry::size_bytes`](crate::Entry); for entries
    /// that are read back from the host's log, the most that they can be.
    pub fn send_credit(&mut self, now: u64, peer: ReplicaId, bytes: Option<u64>) {
        self.raft.told(now);
        self.raft.send_credit(peer, bytes);
    }

    /// The leader's store died, as far as the host can see: an election starts soon instead of after the whole timer.
    pub fn leader_lost(&mut self, now: u64) {
        self.raft.told(now);
        if !self.raft.failed {
            self.raft.leader_lost();
        }
    }

    /// Ends a silence, if there is one.
    pub fn wake(&mut self, now: u64) {
        self.raft.told(now);
        self.raft.wake();
    }

    /// A snapshot that `InstallSnapshot` asked for was streamed whole and taken (`ok`), or not.
    pub fn snapshot_sent(&mut self, now: u64, to: ReplicaId, ok: bool) {
        self.raft.told(now);
        self.raft.snapshot_sent(to, ok);
    }

    /// What the host must do now. Cheap if there is nothing.
    pub fn ready(&mut self) -> Ready {
        let mut ready = Ready::default();
        self.ready_into(&mut ready);
        ready
    }

    /// The same as [`Group::ready`] into an old `Ready`, whose buffers are used again: in the steady state nothing is
    /// allocated. What was in it is dropped, so it must have been carried out.
    pub fn ready_into(&mut self, ready: &mut Ready) {
        self.raft.ready_into(&self.view, ready);
    }

    /// Whether [`Group::ready`] would contain anything.
    pub fn has_ready(&self) -> bool {
        self.raft.has_ready()
    }

    /// Who this replica is.
    pub fn id(&self) -> ReplicaId {
        self.raft.id()
    }

    /// What it does.
    pub fn role(&self) -> Role {
        self.raft.role()
    }

    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        self.role() == Role::Leader
    }

    /// The latest term it knows.
    pub fn term(&self) -> Term {
        self.raft.term()
    }

    /// The leader, if known.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.raft.leader()
    }

    /// The last entry known to be committed.
    pub fn commit_index(&self) -> LogIndex {
        self.raft.log.commit()
    }

    /// The last entry of the log, durable or not.
    pub fn last_index(&self) -> LogIndex {
        self.raft.log.last()
    }

    /// The first entry of the log.
    pub fn first_index(&self) -> LogIndex {
        self.raft.log.first()
    }

    /// The last durable entry.
    pub fn stable_index(&self) -> LogIndex {
        self.raft.log.stable()
    }

    /// The term of the entry at `index`, or of what the log begins after.
    pub fn entry_term(&self, index: LogIndex) -> Option<Term> {
        self.raft.log.terms.term(index)
    }

    /// The configuration in force.
    pub fn configuration(&self) -> &Configuration {
        self.raft.log.configuration()
    }

    /// The configuration and the election timer as of `index`, for a snapshot that the host takes there; `None` if the
    /// log does not reach there, or `index` is not committed.
    pub fn snapshot_meta(&self, index: LogIndex) -> Option<crate::types::SnapshotMeta> {
        self.raft.log.snapshot_meta(index)
    }

    /// The election timer in force, in milliseconds.
    pub fn election_timer_ms(&self) -> u64 {
        self.raft.election_timer_ms
    }

    /// Whether the group is silent.
    pub fn is_quiesced(&self) -> bool {
        self.raft.quiesced
    }

    /// Whether the log may still lack what was acknowledged (`InitialState::doubt`): `false` once that is settled, durably. A
    /// host that started its replicas in doubt asks after each `Ready`.
    pub fn in_doubt(&self) -> bool {
        self.raft.doubt.is_some()
    }

    /// The log, as the host gave it.
    pub fn log_view(&self) -> &L {
        &self.view
    }

    /// The last entry that may be dropped, as far as the group goes: it is committed and durable, and a leader's followers do
    /// not need it. A follower is waited for down to `budget_floor` only, which the host sets so that what it keeps for slow
    /// followers stays within its byte budget (behind it they get a snapshot); but what one that was sent a snapshot will need
    /// next is kept while it is heard, or it would need another snapshot for ever. The host applies bounds of its own beside: what
    /// its state machine has made durable, and snapshots it is still streaming.
    pub fn compaction_limit(&self, budget_floor: LogIndex) -> LogIndex {
        self.raft.compaction_limit(budget_floor)
    }

    /// The others, as a leader sees them; nobody on other replicas.
    pub fn followers(&self) -> impl Iterator<Item = FollowerStatus> + '_ {
        let raft = &self.raft;
        let leader = match &raft.role {
            RoleState::Leader(leader) => Some(leader),
            _ => None,
        };
        leader.into_iter().flat_map(move |leader| {
            let status = |(id, p): (&ReplicaId, &crate::tracker::Progress)| FollowerStatus {
                id: *id,
                state: match p.state {
                    SendState::Probe { .. } => FollowerState::Probe,
                    SendState::Replicate => FollowerState::Replicate,
                    SendState::Snapshot { .. } => FollowerState::Snapshot,
                },
                match_index: p.match_index,
                next_index: p.next_index,
                inflight_messages: p.inflights.messages(),
                inflight_bytes: p.inflights.bytes(),
                silent_ms: p.heard_at.map(|at| raft.now.saturating_sub(at)),
                lost_acknowledged: p.lost_acknowledged,
                in_doubt: p.doubt.is_some(),
            };
            leader.followers.iter().map(status)
        })
    }

    /// Everything about this replica, for people.
    pub fn status(&self) -> Status {
        let raft = &self.raft;
        let leader = match &raft.role {
            RoleState::Leader(leader) => Some(leader),
            _ => None,
        };
        Status {
            id: raft.id(),
            role: raft.role(),
            term: raft.term(),
            voted_for: raft.hard_state.voted_for,
            leader: raft.leader(),
            first_index: raft.log.first(),
            last_index: raft.log.last(),
            stable_index: raft.log.stable(),
            commit_index: raft.log.commit(),
            applied_index: raft.log.applied(),
            configuration: raft.log.configuration().clone(),
            configuration_index: raft.log.configuration_index(),
            election_timer_ms: raft.election_timer_ms,
            election_timer_new_ms: raft.log.pending_timer(),
            quiesced: raft.quiesced,
            failed: raft.failed,
            in_doubt: raft.doubt.is_some(),
            held_messages: raft.outbox.held(),
            uncommitted_bytes: leader.map_or(0, |leader| leader.uncommitted_bytes),
            transferring_to: leader.and_then(|leader| leader.transfer.map(|transfer| transfer.to)),
            server_changes: leader.map_or_else(Vec::new, |leader| {
                leader.changes.iter().map(|(id, change)| (*id, change.phase)).collect()
            }),
            followers: self.followers().collect(),
        }
    }
}
