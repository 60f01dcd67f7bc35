//! Where commands and reads of one group go next: into the core here, to the leader's store, or back to wait.

use std::sync::Arc;

use pontoon_flow::Class;
use pontoon_raft_core::relay::Verdict;
use pontoon_raft_core::types::{LogIndex, StoreId};
use pontoon_raft_core::{Proposal, ProposeError as CoreProposeError};
use pontoon_storage::NoSpace;
use pontoon_transport::{NotQueued, ProposalOutcome, ProposalReply, QueueFull, RelayedProposal, Transport};

use crate::error::{ProposeError, ReadError};
use crate::flow::{Flow, Gate};
use crate::group_host::{GroupHost, HeldCommand, ReadBatch};
use crate::hand_over::Room;
use crate::line::Look;
use crate::proposals::RELAYED_CHARGE_BYTES;

/// How long a command or read that found no leader waits before it looks again, if nothing changes meanwhile.
pub(crate) const RETRY_MS: u64 = 50;

/// Hands commands that wait to the leader: the core here, or the leader's store.
/// `no_space`: why none may be proposed here.
pub(crate) fn route_commands(
    host: &mut GroupHost,
    transport: &Transport,
    flow: &Flow,
    now: u64,
    no_space: Option<&NoSpace>,
) {
    if let Some(no_space) = no_space
        && host.core.is_leader()
    {
        return keep_off(host, transport, flow, now, no_space);
    }
    if host.core.is_leader() && host.appending.is_some() {
        // They go with the next sync; its predecessor's end brings the group back here.
        return;
    }
    let mut gate = Gate::default();
    take_relayed(host, transport, flow, &mut gate, now, None);
    if host.arrived.is_empty() || host.retry_at.is_some_and(|at| at > now && !host.core.is_leader()) {
        return;
    }
    host.retry_at = None;
    let Some(leader) = host.core.leader() else {
        // Those whose callers have given up must not gather while there is no quorum.
        let waiters = host.shared.waiters.lock();
        host.arrived.retain(|id| waiters.contains_key(id));
        drop(waiters);
        if host.arrived.is_empty() {
            return;
        }
        host.core.wake(now);
        host.retry_at = Some(now + RETRY_MS);
        return;
    };
    let term = host.core.term();
    let mut waiters = host.shared.waiters.lock();
    let mut ids = std::mem::take(&mut host.arrived);
    if host.core.is_leader() {
        let (mut proposals, mut classes) = (Vec::new(), Vec::new());
        let mut look = Look::new(&flow.line, now);
        ids.retain(|id| {
            let Some(waiter) = waiters.get_mut(id) else { return false };
            let (class, bytes) = (waiter.class, waiter.data.len());
            if !gate.passes(&mut host.flow, flow, class, bytes) {
                if look.waits(&mut waiter.spot, class, bytes) {
                    host.arrived.push(*id);
                } else if let Some(waiter) = waiters.remove(id) {
                    let what = "what the followers' stores take now";
                    let _ = waiter.reply.send(Err(ProposeError::Overloaded { what }));
                }
                return false;
            }
            waiter.spot = None;
            proposals.push(Proposal { id: *id, data: waiter.data.clone(), prerequisite: None });
            classes.push(waiter.class);
            true
        });
        host.shared.set_waits_for_room(!host.arrived.is_empty());
        if !host.arrived.is_empty() {
            host.flow.waits(now);
        }
        if proposals.is_empty() {
            return;
        }
        match host.core.propose(now, proposals) {
            Ok(range) => {
                host.flow.note_proposed(range, classes.into_iter());
                for id in &ids {
                    if let Some(waiter) = waiters.get_mut(id) {
                        waiter.attempt.handed_on(term);
                        waiter.number = 0;
                    }
                }
            }
            Err(CoreProposeError::Overloaded { .. }) => {
                for id in &ids {
                    if let Some(waiter) = waiters.remove(id) {
                        let _ = waiter.reply.send(Err(ProposeError::Overloaded {
                            what: "the group's budget of uncommitted bytes",
                        }));
                    }
                }
            }
            Err(error) => {
                tracing::debug!(group = %host.shared.id, %error, "commands wait");
                // In the order in which they came: those that wait for tokens behind.
                ids.append(&mut host.arrived);
                host.arrived = ids;
                host.retry_at = Some(now + RETRY_MS);
            }
        }
    } else {
        // A quiesced follower asks nobody; if its leader is gone it must find out now.
        host.core.wake(now);
        for id in ids {
            let Some(waiter) = waiters.get_mut(&id) else { continue };
            let at = host.relay.sent(now, id, term, host.core.election_timer_ms());
            let (class, data) = (waiter.class, waiter.data.clone());
            let relayed = RelayedProposal { group: host.shared.id, term, id, at, asks: false, class, data };
            match transport.send_proposal(leader.store, relayed) {
                Ok(()) => {
                    waiter.attempt.handed_on(term);
                    waiter.number = at.number;
                    waiter.spot = None;
                }
                Err(QueueFull { why: NotQueued::Messages { .. } | NotQueued::Bytes { .. }, .. }) => {
                    if let Some(waiter) = waiters.remove(&id) {
                        let _ = waiter
                            .reply
                            .send(Err(ProposeError::Overloaded { what: "the queue to the leader's store" }));
                    }
                }
                // The link is down: wait for it, or for another leader.
                Err(_) => {
                    host.arrived.push(id);
                    host.retry_at = Some(now + RETRY_MS);
                }
            }
        }
    }
}

/// This replica leads, and its disk has no room: commands wait for a leader that has, or are refused.
fn keep_off(host: &mut GroupHost, transport: &Transport, flow: &Flow, now: u64, no_space: &NoSpace) {
    take_relayed(host, transport, flow, &mut Gate::default(), now, Some(no_space));
    if host.hand_over.room != Room::Refused {
        if !host.arrived.is_empty() || !host.held.is_empty() {
            host.retry_at = Some(now + RETRY_MS);
        }
        return;
    }
    let what: Arc<str> = no_space.to_string().into();
    for id in std::mem::take(&mut host.arrived) {
        host.shared.waiters.finish(id, Err(ProposeError::NoSpace { what: Arc::clone(&what) }));
    }
}

/// Proposes what other stores relayed, if this replica leads in the term that they saw and its disk has room, and answers
/// their questions. While somebody else is asked to lead, what arrived is in progress.
fn take_relayed(
    host: &mut GroupHost,
    transport: &Transport,
    flow: &Flow,
    gate: &mut Gate,
    now: u64,
    no_space: Option<&NoSpace>,
) {
    if host.relayed.is_empty() && host.held.is_empty() {
        return;
    }
    let (term, is_leader) = (host.core.term(), host.core.is_leader());
    host.relayed_bytes = 0;
    let not_leader = ProposalOutcome::NotLeader { leader: host.core.leader() };
    let answer = |from: StoreId, p: &RelayedProposal, outcome: &ProposalOutcome| {
        let (group, id, number) = (p.group, p.id, p.at.number);
        let reply = ProposalReply { group, id, term: p.term, number, outcome: outcome.clone() };
        transport.send_proposal_reply(from, reply);
    };
    for (from, p) in std::mem::take(&mut host.relayed) {
        let ledger = host.ledgers.of(from, p.id);
        // Only in the term that the relaying store saw: see `Attempt`.
        let leads = is_leader && p.term == term;
        let verdict =
            if p.asks { ledger.asked(p.term, p.at, leads) } else { ledger.receive(p.term, p.at, leads) };
        match verdict {
            Verdict::Take => host.held.push(HeldCommand { from, command: p, spot: None }),
            Verdict::InProgress => answer(from, &p, &ProposalOutcome::InProgress),
            Verdict::NotTaken => answer(from, &p, &not_leader),
            Verdict::Silent => {}
        }
    }
    if no_space.is_some() && host.hand_over.room != Room::Refused {
        host.relayed_bytes = held_bytes(&host.held);
        return;
    }
    let (fit, late): (Vec<_>, Vec<_>) =
        std::mem::take(&mut host.held).into_iter().partition(|held| is_leader && held.command.term == term);
    let mut refuse = |refused: Vec<HeldCommand>, why: &ProposalOutcome| {
        for HeldCommand { from, command, .. } in refused {
            host.ledgers.of(from, command.id).refused(command.term, command.at.number);
            answer(from, &command, why);
        }
    };
    refuse(late, &not_leader);
    if fit.is_empty() {
        return;
    }
    if let Some(no_space) = no_space {
        return refuse(fit, &ProposalOutcome::NoSpace { what: no_space.to_string() });
    }
    let (mut begin, mut waiting, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut look = Look::new(&flow.line, now);
    for mut held in fit {
        let (class, bytes) = (held.command.class, held.command.data.len());
        if gate.passes(&mut host.flow, flow, class, bytes) {
            begin.push(held);
        } else if look.waits(&mut held.spot, class, bytes) {
            waiting.push(held);
        } else {
            refused.push(held);
        }
    }
    refuse(refused, &ProposalOutcome::Overloaded);
    if !waiting.is_empty() {
        host.relayed_bytes = held_bytes(&waiting);
        host.held = waiting;
        host.flow.waits(now);
    }
    if begin.is_empty() {
        return;
    }
    let proposals = begin.iter().map(|HeldCommand { command, .. }| Proposal {
        id: command.id,
        data: command.data.clone(),
        prerequisite: None,
    });
    match host.core.propose(now, proposals) {
        // The relaying store hears of the outcome from its own log.
        Ok(range) => {
            host.relayed_upto = range.end.prev();
            host.flow.note_proposed(range, begin.iter().map(|held| held.command.class));
        }
        Err(CoreProposeError::Overloaded { .. }) => refuse(begin, &ProposalOutcome::Overloaded),
        Err(_) => refuse(begin, &not_leader),
    }
}

fn held_bytes(held: &[HeldCommand]) -> usize {
    held.iter().map(|held| held.command.data.len() + RELAYED_CHARGE_BYTES).sum()
}

/// Asks the leader about relayed commands of which nothing was heard, and gives up those about which it says nothing.
pub(crate) fn ask_relayed(host: &mut GroupHost, transport: &Transport, now: u64) {
    if host.relay.next_deadline().is_none_or(|at| now < at) {
        return;
    }
    let (term, timer) = (host.core.term(), host.core.election_timer_ms());
    let Some(leader) = host.core.leader() else { return host.relay.later(now, timer) };
    let mut waiters = host.shared.waiters.lock();
    let is_open = |id, number| {
        waiters.get(&id).is_some_and(|waiter| waiter.attempt.is_under_way() && waiter.number == number)
    };
    let due = host.relay.due(now, timer, is_open);
    // Of attempts of earlier terms the log will tell.
    for (id, of, at) in due.ask.into_iter().filter(|(_, of, _)| *of == term) {
        let data = bytes::Bytes::new();
        let class = Class::Regular;
        let question = RelayedProposal { group: host.shared.id, term: of, id, at, asks: true, class, data };
        if let Err(error) = transport.send_proposal(leader.store, question) {
            tracing::debug!(group = %host.shared.id, %error, "cannot ask about a command");
        }
    }
    for (id, _) in due.silent.into_iter().filter(|(_, of)| *of == term) {
        if let Some(waiter) = waiters.remove(&id) {
            let _ = waiter.reply.send(Err(ProposeError::TimedOut));
        }
    }
}

/// Asks for one read index for all readers that arrived since the last time.
pub(crate) fn start_reads(host: &mut GroupHost, now: u64) {
    if host.readers.is_empty() || host.retry_at.is_some_and(|at| at > now) {
        return;
    }
    let context = host.next_read_context;
    host.next_read_context += 1;
    host.reads.push(ReadBatch { context, readers: std::mem::take(&mut host.readers) });
    host.core.read_index(now, context);
}

pub(crate) fn finish_read(host: &mut GroupHost, context: u64, index: Option<LogIndex>, now: u64) {
    let Some(at) = host.reads.iter().position(|batch| batch.context == context) else { return };
    let batch = host.reads.swap_remove(at);
    match index {
        Some(index) => host.shared.read_at(index, batch.readers),
        None => {
            // Whoever has given up is gone; the others ask again soon.
            let waiting = batch.readers.into_iter().filter(|reader| !reader.is_closed());
            if let Some(reason) = host.shared.stopped() {
                for reader in waiting {
                    let _ = reader.send(Err(ReadError::Stopped { reason }));
                }
                return;
            }
            host.readers.extend(waiting);
            if !host.readers.is_empty() {
                host.retry_at = Some(host.retry_at.map_or(now + RETRY_MS, |at| at.min(now + RETRY_MS)));
            }
        }
    }
}
