//! One state of a small group, and every step that leads on from it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use pontoon_raft_core::{Configuration, EntryId, LogIndex, Proposal, ReplicaId, SnapshotMeta};

use super::digest::{Digester, Scale};
use super::model::{Bounds, Model, Sync, replica};
use super::replica::{Envelope, Replica, flush, is_stale_answer, start, sync};
use crate::raft::disk::Volume;
use crate::raft::invariants::{Invariants, Violation, violated};

/// One step. Replicas are named by their place, messages by theirs in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A message arrives; `again`: and another copy of it stays on the way.
    Deliver {
        /// Its place in the network.
        place: usize,
        /// Whether a copy stays.
        again: bool,
    },
    /// The disk has written the oldest batch.
    Sync(usize),
    /// The election timer runs out.
    Timeout(usize),
    /// The heartbeat timer runs out.
    Heartbeat(usize),
    /// A leader sleeps for two election timers.
    Pause(usize),
    /// A client writes.
    Propose(usize),
    /// A client reads.
    Read(usize),
    /// An operator changes the members.
    Change(usize),
    /// An operator moves the leadership.
    Transfer(usize, usize),
    /// The host compacts its log.
    Compact(usize),
    /// The power fails, and comes back.
    Crash(usize),
    /// The same, and the last synced batch is damaged.
    Lose(usize),
}

/// One state. Clones share what they have in common.
#[derive(Clone, Debug)]
pub struct World {
    replicas: Vec<Rc<Replica>>,
    /// Everything that was sent and may still arrive, in the order of the digests.
    network: Vec<(u64, Rc<Envelope>)>,
    invariants: Rc<Invariants>,
    left: Bounds,
    /// Elections, commands and changes so far.
    elections: usize,
    commands: u128,
    changes: usize,
}

impl World {
    /// The state in which a model begins.
    ///
    /// # Errors
    /// It breaks a property at once.
    pub fn new(model: &Model, digester: &mut DigesterPool) -> Result<Self, Violation> {
        let voters = (1..=model.voters).map(replica);
        let snapshot =
            SnapshotMeta { configuration: Configuration::of_voters(voters), ..SnapshotMeta::default() };
        let mut world = Self {
            replicas: Vec::new(),
            network: Vec::new(),
            invariants: Rc::default(),
            left: model.bounds,
            elections: 0,
            commands: 0,
            changes: 0,
        };
        for n in 1..=model.voters + model.spares {
            let known = if n <= model.voters { snapshot.clone() } else { SnapshotMeta::default() };
            let volume = Volume::new(known);
            let volume = if model.bounds.losses > 0 { volume.forgetful() } else { volume };
            let started = start(model, replica(n), volume, 1, false)?;
            world.replicas.push(Rc::new(started));
        }
        for place in 0..world.replicas.len() {
            world.act(model, place, &mut digester.0, |_, _| Ok(()))?;
        }
        Ok(world)
    }

    /// A digest of everything that can make a difference from here on, but for what is only more of the same: what is on the way
    /// ([`World::network`]) and what may still happen ([`World::left`]).
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for replica in &self.replicas {
            replica.digest.hash(&mut hasher);
        }
        self.invariants.hash(&mut hasher);
        (self.elections, self.commands, self.changes).hash(&mut hasher);
        hasher.finish()
    }

    /// The digests of the messages on the way, in order.
    pub(super) fn network(&self) -> impl ExactSizeIterator<Item = u64> {
        self.network.iter().map(|(digest, _)| *digest)
    }

    /// How often each thing may still happen.
    pub(super) fn left(&self) -> &Bounds {
        &self.left
    }

    /// The highest index that anybody knows to be committed.
    pub fn committed_max(&self) -> LogIndex {
        self.invariants.committed_max()
    }

    /// How many replicas lead, each in a term of its own.
    pub fn leaders(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.group.is_leader()).count()
    }

    /// Every step that the model allows here.
    pub fn actions(&self, model: &Model, actions: &mut Vec<Action>) {
        actions.clear();
        for place in 0..self.network.len() {
            // Equal messages are one.
            if place > 0 && self.network[place].0 == self.network[place - 1].0 {
                continue;
            }
            actions.push(Action::Deliver { place, again: false });
            let repeatable = !model.only_snapshots_twice || self.network[place].1.machine.is_some();
            if self.left.duplicates > 0 && repeatable {
                actions.push(Action::Deliver { place, again: true });
            }
        }
        for (place, replica) in self.replicas.iter().enumerate() {
            let group = &replica.group;
            if model.sync == Sync::Later && group.log_view().look(|volume| volume.oldest_pending().is_some())
            {
                actions.push(Action::Sync(place));
            }
            if self.left.crashes > 0 {
                actions.push(Action::Crash(place));
            }
            if self.left.losses > 0 && group.log_view().look(Volume::last_round) > 0 {
                actions.push(Action::Lose(place));
            }
            if self.left.reads > 0 {
                actions.push(Action::Read(place));
            }
            if self.left.compactions > 0 && replica.machine.applied >= group.first_index() {
                actions.push(Action::Compact(place));
            }
            if !group.is_leader() {
                if self.left.timeouts > 0
                    && group.term().0 < model.term_max
                    && group.next_deadline().is_some()
                    && self.may_stand(model, place)
                {
                    actions.push(Action::Timeout(place));
                }
                continue;
            }
            if self.left.heartbeats > 0 && group.next_deadline().is_some() {
                actions.push(Action::Heartbeat(place));
            }
            if self.left.pauses > 0 {
                actions.push(Action::Pause(place));
            }
            if self.left.proposals > 0 && group.last_index().0 < model.log_max {
                actions.push(Action::Propose(place));
            }
            if self.left.changes > 0 && group.last_index().0 < model.log_max {
                actions.push(Action::Change(place));
            }
            if self.left.transfers > 0 {
                let others = (0..self.replicas.len()).filter(|to| *to != place);
                actions.extend(others.map(|to| Action::Transfer(place, to)));
            }
        }
    }

    fn may_stand(&self, model: &Model, place: usize) -> bool {
        match model.campaigners.get(self.elections) {
            Some(next) => *next == place as u64 + 1,
            None if model.campaigners.is_empty() => {
                // Until somebody stands the replicas are mirror images of each other.
                place == 0 || self.elections > 0 || !model.is_symmetric()
            }
            None => false,
        }
    }

    /// The state after `action`; `None`: the action is refused, or changes nothing that matters.
    ///
    /// # Errors
    /// A property is broken there, or the core panicked.
    pub fn after(
        &self,
        model: &Model,
        action: Action,
        digester: &mut DigesterPool,
    ) -> Result<Option<Self>, Violation> {
        let mut next = self.clone();
        match catch_unwind(AssertUnwindSafe(|| next.perform(model, action, &mut digester.0))) {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(None),
            Ok(Err(violation)) => return Err(violation),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
                return violated("no panic", text.to_owned());
            }
        }
        if let Action::Deliver { place, .. } = action {
            let to = self.place(self.network[place].1.message.to);
            // An unchanged receiver sends nothing that was not there, or it was an answer: then the network grew.
            let gone = usize::from(next.left == self.left);
            let nothing_sent = next.network.len() + gone == self.network.len();
            if nothing_sent && next.replicas[to].digest == self.replicas[to].digest {
                return Ok(None);
            }
        }
        Ok(Some(next))
    }

    fn place(&self, id: ReplicaId) -> usize {
        self.replicas.iter().position(|replica| replica.group.id() == id).expect("only members speak")
    }

    fn perform(&mut self, model: &Model, action: Action, digester: &mut Digester) -> Result<bool, Violation> {
        match action {
            Action::Deliver { place, again } => self.deliver(model, place, again, digester)?,
            Action::Sync(place) => {
                self.act(model, place, digester, sync)?;
            }
            Action::Timeout(place) => {
                self.left.timeouts -= 1;
                self.elections += 1;
                self.tick(model, place, 0, digester)?;
            }
            Action::Heartbeat(place) => {
                self.left.heartbeats -= 1;
                self.tick(model, place, 0, digester)?;
            }
            Action::Pause(place) => {
                self.left.pauses -= 1;
                let pause = 2 * self.replicas[place].group.election_timer_ms();
                self.tick(model, place, pause, digester)?;
            }
            Action::Propose(place) => {
                self.left.proposals -= 1;
                self.commands += 1;
                let proposal = Proposal::new(EntryId(self.commands), vec![0; 8]);
                return self.ask(model, place, digester, |replica| {
                    replica.group.propose(replica.now, [proposal]).is_ok()
                });
            }
            Action::Change(place) => {
                let Some(change) = model.change(self.changes) else { return Ok(false) };
                self.left.changes -= 1;
                self.changes += 1;
                return self.ask(model, place, digester, |replica| {
                    replica.group.propose_configuration(replica.now, EntryId::NONE, &change).is_ok()
                });
            }
            Action::Transfer(place, to) => {
                self.left.transfers -= 1;
                let to = self.replicas[to].group.id();
                return self.ask(model, place, digester, |replica| {
                    replica.group.transfer_leadership(replica.now, Some(to)).is_ok()
                });
            }
            Action::Read(place) => {
                self.left.reads -= 1;
                let floor = self.invariants.committed_max();
                let id = self.replicas[place].group.id();
                let context = Rc::make_mut(&mut self.invariants).reads.ask(id, floor);
                self.act(model, place, digester, |replica, _| {
                    replica.group.read_index(replica.now, context);
                    Ok(())
                })?;
            }
            Action::Compact(place) => {
                self.left.compactions -= 1;
                return self.compact(model, place, digester);
            }
            Action::Crash(place) => {
                self.left.crashes -= 1;
                self.crash(model, place, false, digester)?;
            }
            Action::Lose(place) => {
                self.left.losses -= 1;
                self.crash(model, place, true, digester)?;
            }
        }
        Ok(true)
    }

    /// Lets the replica's clock go on to its next deadline, or by `pause`.
    fn tick(
        &mut self,
        model: &Model,
        place: usize,
        pause: u64,
        digester: &mut Digester,
    ) -> Result<(), Violation> {
        self.act(model, place, digester, |replica, _| {
            let due = replica.group.next_deadline().unwrap_or(0);
            replica.now = if pause > 0 { replica.now + pause } else { replica.now.max(due) };
            replica.group.tick(replica.now);
            Ok(())
        })
    }

    /// Asks for something that may be refused, and then has changed nothing.
    fn ask(
        &mut self,
        model: &Model,
        place: usize,
        digester: &mut Digester,
        ask: impl FnOnce(&mut Replica) -> bool,
    ) -> Result<bool, Violation> {
        let mut accepted = false;
        self.act(model, place, digester, |replica, _| {
            accepted = ask(replica);
            Ok(())
        })?;
        Ok(accepted)
    }

    fn deliver(
        &mut self,
        model: &Model,
        place: usize,
        again: bool,
        digester: &mut Digester,
    ) -> Result<(), Violation> {
        let envelope = if again {
            self.left.duplicates -= 1;
            Rc::clone(&self.network[place].1)
        } else {
            self.network.remove(place).1
        };
        let to = self.place(envelope.message.to);
        self.act(model, to, digester, |replica, invariants| {
            if let Some(machine) = &envelope.machine {
                replica.arrived.insert(machine.applied, machine.clone());
            }
            let before = replica.group.term();
            // A refusal is an answer like any other.
            let _ = replica.group.step(replica.now, envelope.message.clone());
            invariants.received(&envelope.message, before, replica.group.term())
        })
    }

    fn compact(&mut self, model: &Model, place: usize, digester: &mut Digester) -> Result<bool, Violation> {
        let applied = self.replicas[place].machine.applied;
        let Some(meta) = self.replicas[place].group.snapshot_meta(applied) else { return Ok(false) };
        self.act(model, place, digester, |replica, _| {
            let machine = replica.machine.clone();
            replica.group.log_view().change(|volume| {
                // It is as durable as what was written last, or as the next write.
                volume.compact(volume.newest_round(), meta, machine);
                if model.sync == Sync::AtOnce {
                    volume.synced(u64::MAX);
                }
            });
            replica.group.compacted(applied.next());
            Ok(())
        })?;
        Ok(true)
    }

    /// What was not synced is lost. (Had some of it reached the disk, that would be a sync before.)
    fn crash(
        &mut self,
        model: &Model,
        place: usize,
        loses: bool,
        digester: &mut Digester,
    ) -> Result<(), Violation> {
        let replica = &self.replicas[place];
        let id = replica.group.id();
        let mut volume = replica.group.log_view().look(Clone::clone);
        volume.crash(0);
        let invariants = Rc::make_mut(&mut self.invariants);
        if loses {
            volume.lose_last();
            invariants.lost(id, volume.durable());
        }
        // A doubt that is not settled outlives the crash.
        let doubt = loses || replica.group.in_doubt();
        let restarted = start(model, id, volume, replica.lives + 1, doubt)?;
        self.replicas[place] = Rc::new(restarted);
        let invariants = Rc::make_mut(&mut self.invariants);
        invariants.restarted(id);
        invariants.reads.died(id);
        self.act(model, place, digester, |_, _| Ok(()))
    }

    /// Lets a replica do something, and its host everything that follows from it.
    fn act(
        &mut self,
        model: &Model,
        place: usize,
        digester: &mut Digester,
        act: impl FnOnce(&mut Replica, &mut Invariants) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let replica = Rc::make_mut(&mut self.replicas[place]);
        let invariants = Rc::make_mut(&mut self.invariants);
        act(replica, invariants)?;
        let id = replica.group.id();
        invariants.stepped(id, &replica.group)?;
        let mut sent = Vec::new();
        flush(model, replica, invariants, &mut sent)?;
        let scale = Scale {
            now: replica.now,
            timer_ms: replica.group.election_timer_ms(),
            durable: replica.durable.0,
            timeless: model.is_timeless(),
        };
        let arrived: Vec<_> = replica.arrived.keys().collect();
        let mut hasher = DefaultHasher::new();
        (digester.digest(&replica.group, scale), &replica.machine, arrived).hash(&mut hasher);
        replica.digest = hasher.finish();
        for envelope in sent {
            let mut hasher = DefaultHasher::new();
            envelope.hash(&mut hasher);
            let digest = hasher.finish();
            let at = self.network.partition_point(|(other, _)| *other < digest);
            self.network.insert(at, (digest, Rc::new(envelope)));
        }
        if model.forget_stale {
            let replicas = &self.replicas;
            self.network.retain(|(_, envelope)| !is_stale_answer(replicas, &envelope.message));
        }
        Ok(())
    }

    /// The step in words.
    pub fn describe(&self, action: Action) -> String {
        let name = |place: usize| place + 1;
        match action {
            Action::Deliver { place, again } => {
                let envelope = &self.network[place].1;
                let state =
                    envelope.machine.as_ref().map_or(String::new(), |m| format!(" with state {}", m.applied));
                format!("{}{state}{}", envelope.message, if again { " (a first time)" } else { "" })
            }
            Action::Sync(place) => format!("{}'s disk writes its oldest batch", name(place)),
            Action::Timeout(place) => format!("{} times out", name(place)),
            Action::Heartbeat(place) => format!("{} sends heartbeats", name(place)),
            Action::Pause(place) => format!("{} sleeps for two election timers", name(place)),
            Action::Propose(place) => format!("{} is asked to write", name(place)),
            Action::Read(place) => format!("{} is asked to read", name(place)),
            Action::Change(place) => format!("{} is asked to change the members", name(place)),
            Action::Transfer(place, to) => format!("{} is asked to hand over to {}", name(place), name(to)),
            Action::Compact(place) => format!("{} compacts its log", name(place)),
            Action::Crash(place) => format!("{} loses power and starts again", name(place)),
            Action::Lose(place) => {
                format!("{} loses power and its last synced batch, and starts in doubt", name(place))
            }
        }
    }

    /// One line for each replica.
    pub fn show(&self) -> String {
        let lines = self.replicas.iter().map(|replica| {
            let log: Vec<_> = replica.group.log_view().look(|volume| {
                let entries = volume.cached().entries.iter();
                entries.map(|entry| format!("{}@{}", entry.index, entry.term)).collect()
            });
            format!("  {} [{}]\n", replica.group.status(), log.join(" "))
        });
        lines.collect()
    }
}

/// What digests are computed with; one for a whole search.
#[derive(Debug, Default)]
pub struct DigesterPool(Digester);
