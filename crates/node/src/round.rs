//! One round of a shard: what the groups that were touched want is gathered, and then done once for all of them.

use std::sync::Arc;

use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::ready::StateChange;
use pontoon_raft_core::relay::Relay;
use pontoon_raft_core::types::{GroupId, LogIndex, Role, StoreId, Term};
use pontoon_storage::{Batch, GroupWrite};
use pontoon_transport::Report;

use crate::apply::Work;
use crate::flow::{self, Happened};
use crate::group_host::{Election, GroupHost};
use crate::hand_over::{DiskHealth, look_for_room};
use crate::retention::{compaction, wants_sync};
use crate::routing::{ask_relayed, finish_read, start_reads};
use crate::shard::{Input, Shard, mark, set_timer};

impl Shard {
    /// Gathers what the round's groups want, then acts once for all of them.
    pub(crate) fn finish_round(&mut self, now: u64) {
        let mut batch = Batch::default();
        let mut tickets = Vec::new();
        let mut outgoing = Outgoing::default();
        let mut applies = Vec::new();
        let disk = DiskHealth::of(&self.log);
        let no_space = self.log.no_space();
        for group in std::mem::take(&mut self.dirty) {
            let Some(host) = self.groups.get_mut(&group) else { continue };
            host.dirty = false;
            self.waking.tell(host, now);
            if host.retry_at.is_some_and(|at| at <= now) {
                host.retry_at = None;
            }
            flow::begin(host, &self.flow, now);
            if !self.failed {
                look_for_room(host, now, disk);
                self.failures.look(host, now);
                self.failures.route(host, &self.transport, &self.flow, now, no_space.as_ref());
                ask_relayed(host, &self.transport, now);
                start_reads(host, now);
            } else {
                // Everybody who waited has been answered.
                host.relay = Relay::default();
            }
            let mut write = GroupWrite { group, ..GroupWrite::default() };
            let mut writes = false;
            flow::plan(host, &self.flow, now);
            let mut ready = host.core.ready();
            let mut happened = Happened::default();
            if host.in_doubt && !host.core.in_doubt() {
                host.in_doubt = false;
                self.doubts.settled(group);
            }
            if let Some(change) = ready.state_change.take() {
                note_state_change(host, &change, now);
                if !host.arrived.is_empty() {
                    self.failures.route(host, &self.transport, &self.flow, now, no_space.as_ref());
                    // What the leader's own core took over comes with a second look.
                    if host.core.has_ready() {
                        mark(&mut self.dirty, host);
                    }
                }
            }
            if let Some(persist) = ready.persist.take() {
                writes = true;
                if let Some(meta) = &persist.snapshot {
                    host.note_reset(meta);
                    host.restoring = Some((persist.ticket, meta.clone()));
                }
                if host.core.is_leader() && !persist.entries.is_empty() {
                    self.failures.appends(host, &persist.entries);
                    host.appending = Some(persist.ticket);
                    write.leads = note_leader(host);
                }
                host.note_appended(persist.truncate_from, &persist.entries);
                happened.appended(&host.flow, &persist.entries);
                tickets.push((group, persist.ticket));
                write.hard_state = persist.hard_state;
                write.snapshot = persist.snapshot;
                write.truncate_from = persist.truncate_from;
                write.entries = persist.entries;
                write.commit = Some(persist.commit);
            }
            if let Some(committed) = &ready.committed {
                self.failures.committed(host, committed);
            }
            for message in ready.messages {
                if self.failures.keeps_back(&message) {
                    continue;
                }
                if let Body::InstallSnapshot(_) = message.body {
                    if !host.sending.iter().any(|(replica, _)| *replica == message.to) {
                        host.sending.push((message.to, LogIndex::ZERO));
                        self.apply.send(host.shared.worker, Work::Snapshot(group, message.to));
                    }
                } else {
                    happened.sent(&mut host.flow, &message);
                    outgoing.push(group, message);
                }
            }
            if let Some(report) = flow::end(host, &self.flow, now, &happened, &mut self.wakes) {
                outgoing.reports.push(report);
            }
            for read in ready.reads {
                finish_read(host, read.context, read.index, now);
            }
            for done in ready.server_changes {
                tracing::info!(%group, replica = %done.replica, added = done.add, outcome = ?done.outcome, "a change of members ended");
                // Nobody may be listening.
                let _ = self.member_events.send((group, done));
            }
            for dropped in ready.dropped {
                // Overwritten here does not yet mean dead everywhere; `applied_term` decides that. Nothing to do.
                tracing::trace!(%group, id = %dropped.id, "an entry was overwritten");
            }
            if let Some(meta) = compaction(host, &self.config) {
                writes = true;
                host.note_cut(&meta);
                write.compact = Some(meta);
            }
            if writes {
                batch.groups.push(write);
            }
            if let Some(range) = ready.committed {
                applies.push((host.shared.worker, Work::Apply(group, range)));
            }
            if wants_sync(host, &self.config) {
                host.syncing = true;
                host.synced_total = host.size.total();
                applies.push((host.shared.worker, Work::Sync(group)));
            }
            if host.core.has_ready() {
                mark(&mut self.dirty, host);
            }
            host.shared.set_commit(host.core.commit_index());
            host.shared.set_members(host.core.configuration().size());
            set_timer(&mut self.timers, host);
        }
        if !batch.groups.is_empty() {
            // Before the messages: from here on the transport can read the entries that they speak of.
            let inbox = self.own_inbox.clone();
            let permits = std::mem::take(&mut self.permits);
            self.log.submit(
                batch,
                Box::new(move |result| {
                    drop(permits);
                    let _ = inbox.send(Input::Persisted { tickets, ok: result.is_ok() });
                }),
            );
        }
        for (store, messages) in outgoing.by_store {
            let sends = self.failures.sends(&messages, |group| {
                self.groups.get(&group).filter(|host| host.core.is_leader()).map(|host| host.relayed_upto)
            });
            self.transport.send_all(store, messages);
            self.failures.sent(&self.transport, store, &sends);
            for group in sends.entries {
                let failures = Arc::clone(&self.failures);
                self.on(group, |host| failures.after_sending(host, now));
            }
        }
        for report in outgoing.reports {
            self.transport.send_reports(report.to.store, [report]);
        }
        self.hand_on_tokens(now);
        for (worker, work) in applies {
            self.apply.send(worker, work);
        }
    }
}

/// A round's messages by destination: one visit to each send queue. There are few stores, so a list will do.
#[derive(Default)]
struct Outgoing {
    by_store: Vec<(StoreId, Vec<(GroupId, Message)>)>,
    reports: Vec<Report>,
}

impl Outgoing {
    fn push(&mut self, group: GroupId, message: Message) {
        let store = message.to.store;
        match self.by_store.iter_mut().find(|(to, _)| *to == store) {
            Some((_, messages)) => messages.push((group, message)),
            None => self.by_store.push((store, vec![(group, message)])),
        }
    }
}

/// The term to be noted with a leader's first entry in it: which of the stores led is in no log.
fn note_leader(host: &mut GroupHost) -> Option<Term> {
    let term = host.core.term();
    (std::mem::replace(&mut host.led, term) != term).then_some(term)
}

fn note_state_change(host: &mut GroupHost, change: &StateChange, now: u64) {
    let group = host.shared.id;
    let leader = change.leader.map(|l| l.store);
    let was = (host.shared.term(), host.shared.leader());
    let is_other = was != (change.term.0, leader);
    if is_other || !matches!(change.role, Role::Candidate | Role::Leader) {
        let asked = std::mem::take(&mut host.asked_to_lead);
        host.election = Election::next(host.election, change.role, asked, now);
    }
    host.shared.set_leadership(change.term.0, leader);
    if is_other {
        let leader = leader.map_or_else(|| "none".to_owned(), |l| l.to_string());
        tracing::info!(%group, role = %change.role, term = %change.term, %leader, "leadership");
    }
    // A leader is known again, or a new one: whoever waits for it need not wait for the retry.
    if change.leader.is_some() {
        host.retry_at = None;
    }
}
