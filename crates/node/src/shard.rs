//! A shard: the loop that owns a share of the groups.
//!
//! ```text
//! inbox -> core -> persist (one batch for all groups of the round) -> send -> apply -> reply
//! ```
//! Nothing here waits for disk, network or state machine; their answers come through the inbox. The inbox itself is not
//! bounded, because everything that enters it is: proposals and reads by the node's budgets, messages by the transport's
//! receive budget, and the rest by what the shard itself has asked for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pontoon_raft_core::Heard;
use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, ReplicaId, SnapshotMeta, StoreId, Term, Ticket};
use pontoon_raft_core::{ServerChangeDone, ServerChangeError, ServerPhase};
use pontoon_storage::LogStore;
use pontoon_transport::{ProposalOutcome, ProposalReply, ReceivePermit, RelayedProposal, Report, Transport};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use crate::apply::{ApplyHandle, SnapshotBox, Work};
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::doubts::Doubts;
use crate::error::{ProposeError, ReadError, StopReason};
use crate::failure::{FailureTest, Failures};
use crate::flow::Flow;
use crate::group_host::{Earlier, GroupHost};
use crate::hand_over::DiskHealth;
use crate::membership::MemberRequest;
use crate::proposals::RELAYED_CHARGE_BYTES;
use crate::routing::RETRY_MS;
use crate::shared::ReadResult;
use crate::status::GroupStatus;
use crate::timers::Timers;
use crate::waking::Waking;

/// How many inputs one round takes at most: enough to fill a disk sync, few enough that timers are not late.
const ROUND_INPUTS_MAX: usize = 1024;
/// How often one round looks at a group at most.
const LOOKS_PER_ROUND: usize = 4;
/// How many groups one turn of the loop ticks at most: heartbeats of all groups are due together, and commands should not wait
/// behind all of them.
const TICKS_PER_TURN: usize = 256;
/// What relayed commands of one group may hold while they wait for the sync before theirs. Their senders have budgets
/// of their own; this is for a sender that lies.
const RELAYED_BYTES_MAX: usize = 64 << 20;

/// Everything that can happen to a shard.
pub(crate) enum Input {
    /// The caller is in the group's `Waiters` already.
    Propose {
        group: GroupId,
        id: EntryId,
    },
    Read {
        group: GroupId,
        reader: oneshot::Sender<ReadResult>,
    },
    Receive {
        messages: Vec<(GroupId, Message)>,
        permit: Arc<ReceivePermit>,
    },
    Relayed {
        from: StoreId,
        proposals: Vec<RelayedProposal>,
    },
    Replies {
        replies: Vec<ProposalReply>,
    },
    Persisted {
        tickets: Vec<(GroupId, Ticket)>,
        ok: bool,
    },
    Applied {
        group: GroupId,
        index: LogIndex,
        term: Term,
    },
    MachineSynced {
        group: GroupId,
        index: LogIndex,
    },
    MachineFailed {
        group: GroupId,
    },
    SnapshotMade {
        group: GroupId,
        to: ReplicaId,
        meta: SnapshotMeta,
        reader: SnapshotBox,
    },
    SnapshotSent {
        group: GroupId,
        to: ReplicaId,
        ok: bool,
    },
    Unreachable {
        store: StoreId,
        groups: Vec<GroupId>,
    },
    LinkDown {
        store: StoreId,
        refused: bool,
    },
    LinkUp {
        store: StoreId,
    },
    /// Followers elsewhere say what they have admitted.
    Reports {
        reports: Vec<Report>,
    },
    /// Groups that waited for tokens.
    TokensFor {
        groups: Vec<GroupId>,
    },
    /// Flow control was switched: all groups are to be looked at.
    FlowSwitched,
    /// The store's disk hangs.
    DiskHangs,
    Open {
        host: Box<GroupHost>,
    },
    Close {
        group: GroupId,
        done: Option<oneshot::Sender<()>>,
    },
    Status {
        group: GroupId,
        answer: oneshot::Sender<Option<GroupStatus>>,
    },
    Transfer {
        group: GroupId,
        to: Option<StoreId>,
        answer: oneshot::Sender<Result<(), String>>,
    },
    TakeLeadership {
        group: GroupId,
        answer: oneshot::Sender<Result<(), String>>,
    },
    ElectionTimer {
        group: GroupId,
        id: EntryId,
        millis: u64,
        answer: oneshot::Sender<Result<(), String>>,
    },
    ChangeMembers {
        group: GroupId,
        request: MemberRequest,
        answer: oneshot::Sender<Result<ServerPhase, ServerChangeError>>,
    },
    /// Hand all leaderships over: the store is about to stop.
    HandOver,
}

/// One shard.
pub(crate) struct Shard {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) clock: Clock,
    pub(crate) log: LogStore,
    pub(crate) transport: Transport,
    pub(crate) apply: ApplyHandle,
    pub(crate) inbox: UnboundedReceiver<Input>,
    pub(crate) own_inbox: UnboundedSender<Input>,
    /// The inboxes of all shards.
    pub(crate) shards: Arc<[UnboundedSender<Input>]>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) failures: Arc<Failures>,
    /// Groups that tokens have come for, of all shards.
    pub(crate) wakes: BTreeSet<GroupId>,
    pub(crate) groups: HashMap<GroupId, GroupHost>,
    /// Of groups that were here since the process started, and are not now: a few bytes each.
    pub(crate) earlier: HashMap<GroupId, Earlier>,
    pub(crate) timers: Timers,
    pub(crate) dirty: Vec<GroupId>,
    /// What this round received counts against the receive budget until what it wrote is durable: a follower whose disk
    /// is slow takes less, rather than gathering it in memory.
    pub(crate) permits: Vec<Arc<ReceivePermit>>,
    pub(crate) doubts: Arc<Doubts>,
    /// Groups that a store's loss or return concerns.
    pub(crate) waking: Waking,
    /// Where the ends of changes of members are told.
    pub(crate) member_events: broadcast::Sender<(GroupId, ServerChangeDone)>,
    pub(crate) failed: bool,
}

impl Shard {
    /// Runs until every sender of the inbox but the shard's own is gone and `Close` of the node drops the rest, or the
    /// task is cancelled between two rounds: no state is lost by that which a crash would not lose.
    pub(crate) async fn run(mut self) {
        let mut inputs = Vec::with_capacity(ROUND_INPUTS_MAX);
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        let mut armed = None;
        loop {
            let next =
                [self.timers.next(), self.waking.next(), self.flow.next_pass()].into_iter().flatten().min();
            if next != armed {
                armed = next;
                if let Some(at) = next {
                    sleep.as_mut().reset(Instant::from_std(self.clock.instant(at)));
                }
            }
            tokio::select! {
                biased;
                n = self.inbox.recv_many(&mut inputs, ROUND_INPUTS_MAX) => if n == 0 { return },
                () = &mut sleep, if armed.is_some() => armed = None,
            }
            // Whoever is ready to run has its turn first and adds to this round: on an idle store nobody is, and on a
            // busy one rounds grow with the load.
            tokio::task::yield_now().await;
            while inputs.len() < ROUND_INPUTS_MAX {
                match self.inbox.try_recv() {
                    Ok(input) => inputs.push(input),
                    Err(_) => break,
                }
            }
            let now = self.clock.now();
            for input in inputs.drain(..) {
                self.handle(now, input);
            }
            let disk = DiskHealth::of(&self.log);
            self.look_at_disk(disk);
            self.wake_some(now);
            for _ in 0..TICKS_PER_TURN {
                let Some(group) = self.timers.pop_expired(now) else { break };
                if let Some(host) = self.groups.get_mut(&group) {
                    self.failures.tick(host, now, disk);
                    mark(&mut self.dirty, host);
                }
            }
            // What the inputs freed may be all that there is to look at.
            self.hand_on_tokens(now);
            // A look at a group can make another one useful (a command that its own leader took over); a few suffice,
            // and what is left after them waits for the next turn of the loop.
            for _ in 0..LOOKS_PER_ROUND {
                if self.dirty.is_empty() {
                    break;
                }
                self.finish_round(now);
            }
            self.permits.clear();
            if let Some(group) = self.dirty.first() {
                self.timers.set(*group, Some(now));
            }
        }
    }

    fn handle(&mut self, now: u64, input: Input) {
        match input {
            Input::Propose { group, id } => self.on(group, |host| host.arrived.push(id)),
            Input::Read { group, reader } => match self.groups.get_mut(&group) {
                Some(host) => {
                    host.readers.push(reader);
                    mark(&mut self.dirty, host);
                }
                None => drop(reader.send(Err(ReadError::NoReplica { group }))),
            },
            // A failure test: nothing of the groups is heard.
            Input::Receive { .. } | Input::Relayed { .. } | Input::Replies { .. } | Input::Reports { .. }
                if self.failures.is_deaf() => {}
            Input::Receive { messages, permit } => {
                for (group, message) in messages {
                    self.receive(now, group, message);
                }
                self.permits.push(permit);
            }
            Input::Relayed { from, proposals } => self.relayed(from, proposals),
            Input::Replies { replies } => self.replies(replies),
            Input::Persisted { tickets, ok } => self.persisted(now, tickets, ok),
            Input::Applied { group, index, term } => self.applied(group, index, term),
            Input::MachineSynced { group, index } => self.on(group, |host| {
                host.syncing = false;
                host.synced = host.synced.max(index);
            }),
            Input::MachineFailed { group } => self.on(group, |host| host.core.persist_failed()),
            Input::SnapshotMade { group, to, meta, reader } => self.send_snapshot(group, to, meta, reader),
            Input::SnapshotSent { group, to, ok } => self.on(group, |host| {
                host.sending.retain(|(replica, _)| *replica != to);
                host.core.snapshot_sent(now, to, ok);
            }),
            Input::Unreachable { store, groups } => {
                for group in groups {
                    self.on(group, |host| {
                        for peer in peers_on(host, store) {
                            host.core.unreachable(now, peer);
                        }
                    });
                }
            }
            Input::LinkDown { store, refused } => self.link_down(now, store, refused),
            Input::LinkUp { store } => self.link_up(store),
            Input::Reports { reports } => self.reports(now, reports),
            Input::TokensFor { groups } => {
                for group in groups {
                    self.tokens_for(group);
                }
            }
            Input::DiskHangs => self.disk_hangs(),
            Input::FlowSwitched => {
                let all: Vec<_> = self.groups.keys().copied().collect();
                for group in all {
                    self.on(group, |_| ());
                }
            }
            Input::Open { mut host } => {
                let group = host.shared.id;
                if let Some(earlier) = self.earlier.remove(&group) {
                    host.come_after(earlier);
                }
                self.groups.insert(group, *host);
                self.on(group, |_| ());
            }
            Input::Close { group, done } => {
                if let Some(mut host) = self.groups.remove(&group) {
                    host.flow.close(group, &self.flow);
                    self.earlier.insert(group, host.earlier());
                    host.shared.stop(StopReason::Closed);
                    self.timers.set(group, None);
                    self.apply.send(host.shared.worker, Work::Close(group, done));
                }
            }
            Input::Status { group, answer } => {
                let status = self.groups.get(&group).map(|host| GroupStatus::of(host, now));
                let _ = answer.send(status);
            }
            Input::Transfer { group, to, answer } => {
                let result = match self.groups.get_mut(&group) {
                    Some(host) => transfer(host, now, to),
                    None => Err(format!("group {group} has no replica on this store")),
                };
                let _ = answer.send(result);
                self.on(group, |_| ());
            }
            Input::TakeLeadership { group, answer } => {
                let disk = DiskHealth::of(&self.log);
                let mut result = Err(format!("group {group} has no replica on this store"));
                self.on(group, |host| {
                    result = if disk.hangs(host) {
                        Err(format!("the disk of this store hangs, so it cannot lead group {group} now; try another store"))
                    } else {
                        host.asked_to_lead = true;
                        host.core.campaign(now);
                        Ok(())
                    };
                });
                let _ = answer.send(result);
            }
            Input::ElectionTimer { group, id, millis, answer } => {
                let mut result = Err(format!("group {group} has no replica on this store"));
                self.on(group, |host| {
                    let proposed = host.core.propose_election_timer(now, id, millis);
                    result = proposed.map(|_| ()).map_err(|error| error.to_string());
                });
                let _ = answer.send(result);
            }
            // Without the group here the sender is dropped, which is the answer.
            Input::ChangeMembers { group, request, answer } => {
                let failures = Arc::clone(&self.failures);
                self.on(group, |host| {
                    failures.asked_to_change(host);
                    let _ = answer.send(request.ask(host, now));
                });
            }
            Input::HandOver => {
                let led: Vec<_> =
                    self.groups.iter().filter(|(_, h)| h.core.is_leader()).map(|(id, _)| *id).collect();
                for group in led {
                    self.on(group, |host| {
                        if let Err(error) = host.core.transfer_leadership(now, None) {
                            tracing::debug!(group = %host.shared.id, %error, "leadership stays here");
                        }
                    });
                }
            }
        }
    }

    /// Runs `f` on a group and looks at it at the end of the round.
    pub(crate) fn on(&mut self, group: GroupId, f: impl FnOnce(&mut GroupHost)) {
        if let Some(host) = self.groups.get_mut(&group) {
            f(host);
            mark(&mut self.dirty, host);
        }
    }

    fn receive(&mut self, now: u64, group: GroupId, message: Message) {
        // A message for a group that is not (or no longer, or not yet) here: its sender will try again if it matters.
        let Some(host) = self.groups.get_mut(&group) else { return };
        if DiskHealth::of(&self.log).declines(host, &message.body) {
            tracing::debug!(%group, message = %message.body, "the disk is in no state for this message");
            return;
        }
        self.failures.received(&message);
        host.asked_to_lead |= matches!(message.body, Body::TimeoutNow);
        if let Err(error) = host.core.step(now, message) {
            tracing::debug!(%group, %error, "refused a message");
        }
        mark(&mut self.dirty, host);
    }

    fn relayed(&mut self, from: StoreId, proposals: Vec<RelayedProposal>) {
        for p in proposals {
            let refusal = match self.groups.get_mut(&p.group) {
                None => Some(ProposalOutcome::NotLeader { leader: None }),
                Some(_) if self.failed => Some(ProposalOutcome::NotLeader { leader: None }),
                Some(host) if host.relayed_bytes + p.data.len() > RELAYED_BYTES_MAX => {
                    Some(ProposalOutcome::Overloaded)
                }
                Some(_) => None,
            };
            if let Some(outcome) = refusal {
                if p.asks {
                    // Whether the command itself was taken earlier is not known here.
                    continue;
                }
                self.transport.send_proposal_reply(
                    from,
                    ProposalReply { group: p.group, id: p.id, term: p.term, number: p.at.number, outcome },
                );
                continue;
            }
            self.on(p.group, |host| {
                host.relayed_bytes += p.data.len() + RELAYED_CHARGE_BYTES;
                host.relayed.push((from, p));
            });
        }
    }

    fn replies(&mut self, replies: Vec<ProposalReply>) {
        let retry_at = self.clock.now() + RETRY_MS;
        for reply in replies {
            let Some(host) = self.groups.get_mut(&reply.group) else { continue };
            // The answer to an earlier attempt comes late: the command may be in the log by the one that came after it.
            let mut waiters = host.shared.waiters.lock();
            let waiter = waiters.get_mut(&reply.id);
            let Some(waiter) = waiter.filter(|waiter| waiter.is_of(reply.term, reply.number)) else {
                continue;
            };
            let (now, status) = (self.clock.now(), reply.outcome.status());
            match waiter.attempt.heard(reply.term, status) {
                Heard::Late => {}
                Heard::HandOn => {
                    host.relay.over(reply.number);
                    host.arrived.push(reply.id);
                    host.retry_at = Some(host.retry_at.map_or(retry_at, |at| at.min(retry_at)));
                }
                // Its fate is told by this store's own log.
                Heard::Wait => {
                    host.relay.in_progress(now, reply.id, reply.term, reply.number);
                    let patience = Duration::from_millis(2 * host.core.election_timer_ms());
                    waiter.alive_until = Some(Instant::now() + patience);
                }
                Heard::End(status) => {
                    tracing::debug!(group = %reply.group, %status, outcome = ?reply.outcome, "the leader's store refuses a command");
                    if let Some(waiter) = waiters.remove(&reply.id) {
                        let _ = waiter.reply.send(Err(ProposeError::refused(reply.outcome)));
                    }
                }
            }
            drop(waiters);
            // Not marked dirty: the retry waits for a new leader or for `retry_at`.
            set_timer(&mut self.timers, host);
        }
    }

    fn persisted(&mut self, now: u64, tickets: Vec<(GroupId, Ticket)>, ok: bool) {
        if !ok {
            self.fail();
            return;
        }
        for (group, ticket) in tickets {
            let Some(host) = self.groups.get_mut(&group) else { continue };
            if let Some((_, meta)) = host.restoring.take_if(|(restore, _)| *restore <= ticket) {
                self.failures.crash_if(FailureTest::CrashBeforeSendingInstallSnapshotReply);
                // Before the core hears of it, and so before it hands out entries that follow the snapshot.
                self.apply.send(host.shared.worker, Work::Activate(group, meta));
            }
            host.core.persisted(now, ticket);
            if host.appending.is_some_and(|appending| appending <= ticket) {
                host.appending = None;
            }
            mark(&mut self.dirty, host);
        }
    }

    fn applied(&mut self, group: GroupId, index: LogIndex, term: Term) {
        let Some(host) = self.groups.get_mut(&group) else { return };
        host.core.applied(index);
        host.flow.note_applied(index);
        if term > host.applied_term {
            host.applied_term = term;
            // What was handed to an earlier leader and is not applied by now never will be: try again.
            for (id, waiter) in host.shared.waiters.lock().iter_mut() {
                if waiter.attempt.settled(term) {
                    host.arrived.push(*id);
                }
            }
        }
        mark(&mut self.dirty, host);
    }

    fn send_snapshot(&mut self, group: GroupId, to: ReplicaId, meta: SnapshotMeta, reader: SnapshotBox) {
        let Some(host) = self.groups.get_mut(&group) else { return };
        if !host.core.is_leader() {
            host.sending.retain(|(replica, _)| *replica != to);
            return;
        }
        let index = meta.index;
        let message = Message {
            from: host.core.id(),
            to,
            term: host.core.term(),
            doubt: None,
            body: Body::InstallSnapshot(meta),
        };
        tracing::info!(%group, %to, %index, "sends a snapshot");
        host.sending.retain(|(replica, _)| *replica != to);
        host.sending.push((to, index));
        self.transport.send_snapshot(to.store, group, message, reader.0);
    }

    /// The log store has failed: this store neither votes nor acknowledges from here on.
    fn fail(&mut self) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!(
                "the log store failed; this store takes no part in any group until it is restarted"
            );
        }
        for host in self.groups.values_mut() {
            host.core.persist_failed();
            host.shared.stop(StopReason::DiskFailed);
            mark(&mut self.dirty, host);
        }
    }
}

/// Puts a group on the list of those to look at.
pub(crate) fn mark(dirty: &mut Vec<GroupId>, host: &mut GroupHost) {
    if !std::mem::replace(&mut host.dirty, true) {
        dirty.push(host.shared.id);
    }
}

pub(crate) fn set_timer(timers: &mut Timers, host: &GroupHost) {
    let deadlines =
        [host.core.next_deadline(), host.retry_at, host.relay.next_deadline(), host.flow.next_deadline()];
    let hold = host.hand_over.hold_until.unwrap_or(0);
    timers.set(host.shared.id, deadlines.into_iter().flatten().min().map(|at| at.max(hold)));
}

pub(crate) fn peers_on(host: &GroupHost, store: StoreId) -> Vec<ReplicaId> {
    host.core.configuration().members().into_iter().filter(|r| r.store == store).collect()
}

fn transfer(host: &mut GroupHost, now: u64, to: Option<StoreId>) -> Result<(), String> {
    let to = match to {
        None => None,
        Some(store) => Some(
            *peers_on(host, store)
                .first()
                .ok_or_else(|| format!("store {store} has no replica of group {}", host.shared.id))?,
        ),
    };
    host.core.transfer_leadership(now, to).map_err(|error| error.to_string())
}
