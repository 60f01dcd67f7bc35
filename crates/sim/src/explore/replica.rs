//! One replica with its disk and its state machine, and a host that does at once whatever follows from a step.

use std::collections::BTreeMap;
use std::rc::Rc;

use pontoon_raft_core::{
    AppendEntries, Body, Config, Entries, Group, InitialState, LogIndex, LogView, Message, ReplicaId, Ticket,
};

use super::model::{Model, Sync};
use crate::raft::disk::{OwnDisk, Volume, Written};
use crate::raft::invariants::{Invariants, Violation, violated};
use crate::raft::machine::Machine;

/// A message on its way; a snapshot travels with its state.
#[derive(Debug, Hash)]
pub(super) struct Envelope {
    pub(super) message: Message,
    pub(super) machine: Option<Machine>,
}

/// A replica with its host.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) group: Group<OwnDisk>,
    pub(super) machine: Machine,
    pub(super) arrived: BTreeMap<LogIndex, Machine>,
    pub(super) now: u64,
    pub(super) durable: Ticket,
    pub(super) lives: u64,
    pub(super) digest: u64,
}

/// A replica that starts from what its disk holds.
///
/// # Errors
/// It cannot.
pub(super) fn start(
    model: &Model,
    id: ReplicaId,
    volume: Volume,
    lives: u64,
    doubt: bool,
) -> Result<Replica, Violation> {
    let content = volume.durable();
    let machine = content.machine.clone();
    let initial = InitialState {
        hard_state: content.hard_state,
        commit: content.commit.min(content.last()),
        applied: machine.applied.max(content.snapshot.index),
        snapshot: content.snapshot.clone(),
        last_index: content.last(),
        doubt,
    };
    let config = Config {
        id,
        seed: lives,
        append_bytes_max: model.append_bytes_max,
        inflight_messages_max: model.inflight_messages_max,
        pre_vote: model.pre_vote,
        check_quorum: model.check_quorum,
        ..Config::default()
    };
    let (now, durable, digest) = (0, Ticket(0), 0);
    match Group::new(config, initial, OwnDisk::new(volume), now) {
        Ok(group) => Ok(Replica { group, machine, arrived: BTreeMap::new(), now, durable, lives, digest }),
        Err(error) => violated("restart", format!("{id} cannot start: {error}")),
    }
}

/// The oldest batch that is not durable becomes so.
pub(super) fn sync(replica: &mut Replica, invariants: &mut Invariants) -> Result<(), Violation> {
    let view = replica.group.log_view();
    let Some((round, ticket)) = view.look(Volume::oldest_pending) else { return Ok(()) };
    let written = view.change(|volume| volume.synced(round));
    invariants.written(replica.group.id(), &written)?;
    replica.durable = ticket;
    replica.group.persisted(replica.now, ticket);
    Ok(())
}

/// Carries out what the replica asks for.
pub(super) fn flush(
    model: &Model,
    replica: &mut Replica,
    invariants: &mut Invariants,
    sent: &mut Vec<Envelope>,
) -> Result<(), Violation> {
    let id = replica.group.id();
    for round in 0.. {
        if !replica.group.has_ready() {
            return Ok(());
        }
        if round > 100 {
            return violated("no livelock", format!("{id} always wants more: {:?}", replica.group.status()));
        }
        let ready = replica.group.ready();
        invariants.stepped(id, &replica.group)?;
        let group = &replica.group;
        let persist = ready.persist.as_ref();
        group.log_view().look(|volume| invariants.ready(id, group, persist, volume.cached()))?;
        if let Some(persist) = ready.persist {
            let restored = persist.snapshot.as_ref().map(|snapshot| {
                replica.machine =
                    replica.arrived.remove(&snapshot.index).expect("only what arrived is installed");
                replica.machine.clone()
            });
            // Each batch is a round of its own.
            group.log_view().change(|volume| volume.persist(persist.ticket.0, persist, restored));
        }
        for message in ready.messages {
            group.log_view().look(|volume| invariants.sends(&message, group, volume.durable()))?;
            if model.connects(message.from, message.to)
                && let Some(envelope) = envelope(replica, invariants, message)?
            {
                sent.push(envelope);
            }
        }
        for read in ready.reads {
            invariants.reads.ends(id, read)?;
        }
        if let Some(range) = ready.committed {
            let view = replica.group.log_view();
            let entries = view.entries(range.clone(), u64::MAX).expect("what is committed can be read");
            for entry in &entries {
                view.look(|volume| invariants.applies(id, entry, volume.durable()))?;
                replica.machine.apply(entry);
            }
            replica.group.applied(range.end.prev());
        }
        if model.sync == Sync::AtOnce {
            sync(replica, invariants)?;
        }
    }
    Ok(())
}

/// What of a message goes on the wire.
fn envelope(
    replica: &Replica,
    invariants: &mut Invariants,
    mut message: Message,
) -> Result<Option<Envelope>, Violation> {
    let view = replica.group.log_view();
    match &mut message.body {
        Body::AppendEntries(AppendEntries { prev_log_index, prev_log_term, entries, .. }) => {
            if let Entries::Interval { last, last_term } = *entries
                && last > *prev_log_index
            {
                let Ok(read) = view.entries(prev_log_index.next()..last.next(), u64::MAX) else {
                    return Ok(None);
                };
                if read.last().map(|entry| entry.term) != Some(last_term) {
                    return Ok(None);
                }
                invariants.written(message.from, &[Written::new(*prev_log_term, &read)])?;
                *entries = Entries::Inline(read);
            }
            Ok(Some(Envelope { message, machine: None }))
        }
        Body::InstallSnapshot(wanted) => {
            let meta = replica.group.snapshot_meta(replica.machine.applied);
            let Some(meta) = meta.filter(|meta| meta.index >= wanted.index) else { return Ok(None) };
            message.body = Body::InstallSnapshot(meta);
            Ok(Some(Envelope { message, machine: Some(replica.machine.clone()) }))
        }
        _ => Ok(Some(Envelope { message, machine: None })),
    }
}

/// Whether `message` answers something of a term that its receiver has left for good.
pub(super) fn is_stale_answer(replicas: &[Rc<Replica>], message: &Message) -> bool {
    let answers = match message.body {
        Body::PreVoteReply { .. }
        | Body::RequestVoteReply { .. }
        | Body::AppendReply(_)
        | Body::HeartbeatReply { .. }
        | Body::ReadIndexReply { .. }
        | Body::DoubtSettled { .. }
        | Body::TimeoutNow => true,
        Body::PreVote(_)
        | Body::RequestVote(_)
        | Body::AppendEntries(_)
        | Body::Heartbeat(_)
        | Body::InstallSnapshot(_)
        | Body::DoubtCheck { .. }
        | Body::ReadIndex { .. } => false,
    };
    let receiver = replicas.iter().find(|replica| replica.group.id() == message.to);
    answers
        && receiver.is_some_and(|receiver| {
            receiver.group.log_view().look(|volume| message.term < volume.durable().hard_state.term)
        })
}
