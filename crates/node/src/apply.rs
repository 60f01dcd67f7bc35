//! Apply workers: threads that own the state machines and feed them committed entries in order.
//!
//! A state machine may wait for its disk, so it never runs on a shard. A group's entries, snapshots and restores all go
//! through one worker, in the order in which the shard asked for them. The queue holds index ranges, not entries, so a
//! state machine that lags costs no memory: its backlog stays in the log.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use pontoon_raft_core::log_view::LogReadError;
use pontoon_raft_core::types::{GroupId, LogIndex, Payload, ReplicaId, SnapshotMeta, Term};
use pontoon_storage::LogStore;
use tokio::sync::mpsc::UnboundedSender;

use crate::error::{ProposeError, StopReason};
use crate::link_timers::LinkTimers;
use crate::proposals::EntryIds;
use crate::shard::Input;
use crate::shared::GroupShared;
use crate::state_machine::{Committed, MachineError, SnapshotReader, SnapshotSink, StateMachine};

/// How much of the log one call of `StateMachine::apply` gets, in bytes: enough to spread its fixed costs, little
/// enough that no other group of the worker waits long.
const APPLY_BYTES_MAX: u64 = 1 << 20;

/// A group as its worker keeps it.
pub(crate) struct Applier {
    pub(crate) shared: Arc<GroupShared>,
    pub(crate) machine: Box<dyn StateMachine>,
    /// Where to report.
    pub(crate) inbox: UnboundedSender<Input>,
    /// Describes the state as of `shared.applied()`.
    pub(crate) meta: SnapshotMeta,
}

/// What a worker is asked to do.
pub(crate) enum Work {
    Open(Box<Applier>),
    /// Apply these committed entries.
    Apply(GroupId, Range<LogIndex>),
    /// Make the state durable, so that the log may be cut.
    Sync(GroupId),
    /// Make an image for this replica.
    Snapshot(GroupId, ReplicaId),
    /// Open a staging place for a received image.
    Stage(GroupId, LogIndex, Sender<Result<Box<dyn SnapshotSink>, MachineError>>),
    /// The log begins after this snapshot now: make the staged image the state.
    Activate(GroupId, SnapshotMeta),
    /// Drop the state machine; the sender is dropped when that is done.
    Close(GroupId, Option<tokio::sync::oneshot::Sender<()>>),
    /// The node stops: the thread ends after what it was given before.
    Stop,
}

/// The threads, and the way to them.
#[derive(Debug)]
pub(crate) struct ApplyPool {
    queues: Vec<Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl ApplyPool {
    pub(crate) fn start(
        threads: usize,
        log: &LogStore,
        ids: &Arc<EntryIds>,
        link_timers: &LinkTimers,
    ) -> std::io::Result<Self> {
        let mut pool = Self { queues: Vec::new(), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let (queue, work) = channel();
            let worker = Worker {
                log: log.clone(),
                ids: Arc::clone(ids),
                link_timers: link_timers.clone(),
                groups: HashMap::new(),
            };
            let thread =
                std::thread::Builder::new().name(format!("apply-{n}")).spawn(move || worker.run(&work))?;
            pool.queues.push(queue);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(crate) fn handle(&self) -> ApplyHandle {
        ApplyHandle { queues: self.queues.clone().into() }
    }

    /// Ends the threads after what they have been given, and waits for that.
    pub(crate) fn stop(self) {
        for queue in &self.queues {
            let _ = queue.send(Work::Stop);
        }
        for thread in self.threads {
            // A worker that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

/// Sends work to the worker that owns a group.
#[derive(Clone, Debug)]
pub(crate) struct ApplyHandle {
    queues: Arc<[Sender<Work>]>,
}

impl ApplyHandle {
    pub(crate) fn workers(&self) -> usize {
        self.queues.len()
    }

    pub(crate) fn send(&self, worker: usize, work: Work) {
        // Fails only if the worker panicked; its groups are stopped then, which is all that can be said.
        let _ = self.queues[worker].send(work);
    }
}

struct Worker {
    log: LogStore,
    ids: Arc<EntryIds>,
    link_timers: LinkTimers,
    groups: HashMap<GroupId, Applier>,
}

impl Worker {
    fn run(mut self, work: &Receiver<Work>) {
        while let Ok(work) = work.recv() {
            match work {
                Work::Open(applier) => {
                    self.link_timers.set(applier.shared.id, applier.meta.election_timer_ms);
                    self.groups.insert(applier.shared.id, *applier);
                }
                Work::Apply(group, range) => self.with(group, |worker, applier| worker.apply(applier, range)),
                Work::Sync(group) => self.with(group, |_, applier| {
                    let index = applier.machine.sync()?;
                    let _ = applier.inbox.send(Input::MachineSynced { group, index });
                    Ok(())
                }),
                Work::Snapshot(group, to) => self.with(group, |_, applier| {
                    let reader = applier.machine.snapshot()?;
                    let meta = applier.meta.clone();
                    let _ = applier.inbox.send(Input::SnapshotMade {
                        group,
                        to,
                        meta,
                        reader: SnapshotBox(reader),
                    });
                    Ok(())
                }),
                Work::Stage(group, index, answer) => {
                    let staged = match self.groups.get_mut(&group) {
                        Some(applier) => applier.machine.stage(index),
                        None => Err(MachineError::new(format!("group {group} is not open"))),
                    };
                    let _ = answer.send(staged);
                }
                Work::Activate(group, meta) => self.with(group, |worker, applier| {
                    if meta.index > applier.shared.applied() {
                        applier.machine.activate(meta.index)?;
                        applier.meta = meta;
                        worker.link_timers.set(group, applier.meta.election_timer_ms);
                        give_up_attempts(&applier.shared, applier.meta.term);
                        applier.shared.set_applied(applier.meta.index);
                    }
                    let (index, term) = (applier.meta.index, applier.meta.term);
                    let _ = applier.inbox.send(Input::Applied { group, index, term });
                    Ok(())
                }),
                Work::Close(group, done) => {
                    self.groups.remove(&group);
                    self.link_timers.remove(group);
                    drop(done);
                }
                Work::Stop => return,
            }
        }
    }

    /// Runs `f` on a group; an error is the end of the replica, not of the worker.
    fn with(&mut self, group: GroupId, f: impl FnOnce(&Self, &mut Applier) -> Result<(), MachineError>) {
        let Some(mut applier) = self.groups.remove(&group) else { return };
        match f(self, &mut applier) {
            Ok(()) => {
                self.groups.insert(group, applier);
            }
            Err(error) => {
                tracing::error!(%group, error = &error as &dyn std::error::Error, "the replica stops: its state machine failed");
                applier.shared.stop(StopReason::MachineFailed);
                let _ = applier.inbox.send(Input::MachineFailed { group });
            }
        }
    }

    fn apply(&self, applier: &mut Applier, range: Range<LogIndex>) -> Result<(), MachineError> {
        let group = applier.shared.id;
        let mut next = range.start.max(applier.shared.applied().next());
        while next < range.end {
            let entries = match self.log.entries(group, next..range.end, APPLY_BYTES_MAX) {
                Ok(entries) => entries,
                Err(LogReadError::Compacted { first, .. }) => {
                    // A snapshot took the place of the log while this waited in the queue; `Activate` follows.
                    tracing::debug!(%group, %next, %first, "entries were replaced by a snapshot");
                    return Ok(());
                }
                Err(error) => return Err(MachineError::with_source("cannot read committed entries", error)),
            };
            let mut batch = Vec::with_capacity(entries.len());
            {
                let waiters = applier.shared.waiters.lock();
                for entry in entries {
                    let command = match entry.payload {
                        Payload::Command(data) => Some(data),
                        Payload::Configuration(configuration) => {
                            applier.meta.configuration = configuration;
                            None
                        }
                        Payload::ElectionTimer { millis } => {
                            applier.meta.election_timer_ms = millis;
                            self.link_timers.set(group, millis);
                            None
                        }
                        Payload::Noop => None,
                    };
                    let wants_reply = self.ids.is_ours(entry.id) && waiters.contains_key(&entry.id);
                    batch.push(Committed {
                        index: entry.index,
                        term: entry.term,
                        id: entry.id,
                        command,
                        wants_reply,
                    });
                }
            }
            let Some(last) = batch.last() else {
                return Err(MachineError::new(format!("the log gave no entries from {next}")));
            };
            let (index, term) = (last.index, last.term);
            let replies = applier.machine.apply(&batch)?;
            applier.meta.index = index;
            applier.meta.term = term;
            applier.shared.set_applied(index);
            Self::answer(applier, &batch, replies);
            let _ = applier.inbox.send(Input::Applied { group, index, term });
            next = index.next();
        }
        Ok(())
    }

    fn answer(applier: &Applier, batch: &[Committed], replies: Vec<bytes::Bytes>) {
        let mut waiters = applier.shared.waiters.lock();
        for (committed, reply) in batch.iter().zip(replies) {
            if committed.wants_reply
                && let Some(waiter) = waiters.remove(&committed.id)
            {
                let _ = waiter.reply.send(Ok(reply));
            }
        }
    }
}

/// A snapshot has taken the place of entries that were not seen one by one: whether a command that had been handed to a
/// leader is among them cannot be told. Its caller hears that, and it is not tried again.
fn give_up_attempts(shared: &GroupShared, term: Term) {
    let mut waiters = shared.waiters.lock();
    for (_, waiter) in waiters.extract_if(|_, waiter| waiter.attempt.skipped(term)) {
        let _ = waiter.reply.send(Err(ProposeError::TimedOut));
    }
}

/// A snapshot reader on its way through a channel whose messages are `Debug`.
pub(crate) struct SnapshotBox(pub(crate) Box<dyn SnapshotReader>);

impl std::fmt::Debug for SnapshotBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapshotReader")
    }
}

/// What a machine's state stands for at start-up: the log's own snapshot description, moved on by the configurations
/// and election timers between it and the machine's applied index.
pub(crate) fn meta_at(
    log: &LogStore,
    group: GroupId,
    snapshot: &SnapshotMeta,
    applied: LogIndex,
) -> Result<SnapshotMeta, LogReadError> {
    let mut meta = snapshot.clone();
    let mut next = snapshot.index.next();
    while next <= applied {
        for entry in log.entries(group, next..applied.next(), APPLY_BYTES_MAX)? {
            meta.index = entry.index;
            meta.term = entry.term;
            match entry.payload {
                Payload::Configuration(configuration) => meta.configuration = configuration,
                Payload::ElectionTimer { millis } => meta.election_timer_ms = millis,
                Payload::Command(_) | Payload::Noop => {}
            }
        }
        next = meta.index.next();
    }
    Ok(meta)
}
