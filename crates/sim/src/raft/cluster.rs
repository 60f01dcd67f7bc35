//! The stores, the groups on them, the network between them, and the queue of what happens when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use pontoon_raft_core::{Configuration, GroupId, Message, ReplicaId, SnapshotMeta, StoreId};

use super::clients::Clients;
use super::invariants::{Invariants, Violation, violated};
use super::machine::Machine;
use super::network::Network;
use super::profile::Profile;
use super::rng::Rng;
use super::store::Store;
use super::trace::Trace;

/// More than this within one millisecond is a loop: the busiest groups here need some hundreds.
pub(super) const EVENTS_AT_ONCE_MAX: u64 = 20_000;

/// More than this in a run is a storm of messages that feed each other. Usual runs have some ten thousand; the worst that is
/// still bounded sends a window of 256 one-entry appends to each follower again at every heartbeat (seed 2016411).
const EVENTS_MAX: u64 = 1_500_000;

/// What each further group may add to both: many groups are as busy as few, each at its time.
const EVENTS_PER_GROUP: (u64, u64) = (500, 100_000);

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A replica's deadline, and for which time of the store's clock it was scheduled.
    Tick(StoreId, GroupId, u64),
    /// The host asks a replica what to do.
    Flush(StoreId, GroupId, u64),
    /// The disk has written a round.
    Synced(StoreId, u64),
    /// A queued append becomes a frame: the entries are read now.
    Frame(u64, GroupId, Message),
    /// A message arrives.
    Arrive(GroupId, Message),
    /// A snapshot arrives whole.
    Snapshot(u64, GroupId, Message, Box<Machine>),
    /// The sender hears how its snapshot went.
    SnapshotSent(StoreId, u64, GroupId, StoreId, bool),
    /// A store sees that another one died.
    LinkDown(StoreId, StoreId),
    /// A store comes back.
    Restart(StoreId),
    /// A link goes down and up, so many times more.
    Flap(StoreId, StoreId, u64),
    /// Clients write and read.
    Request,
    /// Something goes wrong.
    Fault,
}

/// One group, over all its replicas.
#[derive(Debug, Default)]
pub(super) struct GroupState {
    pub(super) invariants: Invariants,
    pub(super) clients: Clients,
    /// The stores that have a replica, member or not.
    pub(super) stores: Vec<StoreId>,
}

/// Stores and groups under test.
#[derive(Debug)]
pub struct Cluster {
    pub(super) seed: u64,
    pub(super) rng: Rng,
    pub(super) profile: Profile,
    pub(super) network: Network,
    pub(super) stores: BTreeMap<StoreId, Store>,
    pub(super) groups: BTreeMap<GroupId, GroupState>,
    /// What happened.
    pub trace: Trace,
    /// Milliseconds since the start.
    pub now: u64,
    /// Events so far.
    pub events: u64,
    /// Events within this millisecond.
    calm: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    /// The events in the queue, by their number.
    scheduled: BTreeMap<u64, Event>,
    numbers: u64,
}

/// Every group's replica on a store.
pub(super) fn replica(store: StoreId) -> ReplicaId {
    ReplicaId { store, number: 1 }
}

impl Cluster {
    /// Fresh groups, all stores up.
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(seed, &mut rng);
        let mut stores = BTreeMap::new();
        for n in 1..=profile.stores {
            let (slow, fast) = profile.clocks;
            let store = Store::new(StoreId(n), rng.between(slow, fast), rng.below(10_000));
            stores.insert(StoreId(n), store);
        }
        let ids: Vec<StoreId> = stores.keys().copied().collect();
        let mut groups = BTreeMap::new();
        for n in 0..profile.groups {
            let group = GroupId(n + 1);
            let mut places: Vec<StoreId> = ids.clone();
            // Replicas are spread: each group begins at another store.
            let turn = usize::try_from(n).expect("small") % places.len();
            places.rotate_left(turn);
            places.truncate(usize::try_from(profile.voters + profile.spares).expect("small"));
            let voters = usize::try_from(profile.voters).expect("small");
            let configuration = Configuration::of_voters(places[..voters].iter().copied().map(replica));
            let known = SnapshotMeta { configuration, ..SnapshotMeta::default() };
            for (place, store) in places.iter().enumerate() {
                // A replica that is to join knows nobody.
                let snapshot = if place < voters { known.clone() } else { SnapshotMeta::default() };
                stores.get_mut(store).expect("it is one of them").add(group, snapshot, profile.doubts);
            }
            groups.insert(group, GroupState { stores: places, ..GroupState::default() });
        }
        let mut cluster = Self {
            seed,
            rng,
            profile,
            network: Network::default(),
            stores,
            groups,
            trace: Trace::new(keep_trace),
            now: 0,
            events: 0,
            calm: 0,
            queue: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            numbers: 0,
        };
        for id in ids {
            cluster.after(0, Event::Restart(id));
        }
        cluster.after(10, Event::Request);
        cluster.after(500, Event::Fault);
        cluster
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.numbers += 1;
        self.queue.push(Reverse((self.now + delay, self.numbers)));
        self.scheduled.insert(self.numbers, event);
    }

    pub(super) fn store(&self, id: StoreId) -> &Store {
        &self.stores[&id]
    }

    pub(super) fn store_mut(&mut self, id: StoreId) -> &mut Store {
        self.stores.get_mut(&id).expect("every store is there")
    }

    pub(super) fn group_mut(&mut self, group: GroupId) -> &mut GroupState {
        self.groups.get_mut(&group).expect("every group is there")
    }

    pub(super) fn life(&self, store: StoreId) -> u64 {
        self.stores[&store].life
    }

    /// Lets the next event happen. Returns whether there was one before `until`.
    pub(super) fn step(&mut self, until: u64) -> Result<bool, Violation> {
        let Some(Reverse((at, number))) = self.queue.peek().copied() else { return Ok(false) };
        if at > until {
            self.now = until;
            return Ok(false);
        }
        self.queue.pop();
        self.calm = if at > self.now { 0 } else { self.calm + 1 };
        self.now = at;
        self.events += 1;
        let (at_once, in_all) = EVENTS_PER_GROUP;
        let at_once_max = EVENTS_AT_ONCE_MAX + at_once * self.profile.groups;
        if self.calm > at_once_max {
            let detail = format!("more than {at_once_max} events within one millisecond");
            return violated("no livelock", detail);
        }
        let events_max = EVENTS_MAX + in_all * self.profile.groups;
        if self.events > events_max {
            return violated("no storm", format!("more than {events_max} events"));
        }
        if let Some(event) = self.scheduled.remove(&number) {
            self.happen(event)?;
        }
        Ok(true)
    }

    /// When a paused store wakes, everything that came meanwhile happens.
    fn postponed(&mut self, event: &Event) -> bool {
        let subject = match event {
            Event::Tick(id, ..) | Event::Flush(id, ..) | Event::LinkDown(id, _) => *id,
            Event::Arrive(_, message) | Event::Snapshot(_, _, message, _) => message.to.store,
            Event::SnapshotSent(id, ..) => *id,
            // The disk does not pause, but its word is heard late.
            Event::Synced(id, _) => *id,
            Event::Frame(..) | Event::Restart(_) | Event::Flap(..) | Event::Request | Event::Fault => {
                return false;
            }
        };
        let paused_until = self.store(subject).paused_until;
        if paused_until > self.now {
            self.after(paused_until - self.now, event.clone());
            return true;
        }
        false
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let now = self.now;
        self.trace.line(|| format!("{now:>7} {}", describe(&event)));
        if self.postponed(&event) {
            return Ok(());
        }
        match event {
            Event::Tick(id, group, at) => self.act(id, group, None, |replica, now| {
                // Another one was scheduled since, or another life began.
                if replica.tick_at != Some(at) {
                    return;
                }
                replica.tick_at = None;
                if let Some(group) = &mut replica.group {
                    group.tick(now);
                }
            }),
            Event::Flush(id, group, life) => {
                if self.life(id) == life {
                    self.flush(id, group)
                } else {
                    Ok(())
                }
            }
            Event::Synced(id, life) => self.synced(id, life),
            Event::Frame(life, group, message) => self.frame(life, group, message),
            Event::Arrive(group, message) => {
                self.trace.note(&(group, &message));
                let mut terms = None;
                self.act(message.to.store, group, None, |replica, now| {
                    if let Some(group) = &mut replica.group {
                        let before = group.term();
                        // Refusals are part of the weather.
                        let _ = group.step(now, message.clone());
                        terms = Some((before, group.term()));
                    }
                })?;
                let Some((before, after)) = terms else { return Ok(()) };
                self.groups[&group].invariants.received(&message, before, after)
            }
            Event::Snapshot(sender_life, group, message, machine) => {
                self.snapshot_arrives(sender_life, group, message, *machine)
            }
            Event::SnapshotSent(id, life, group, to, ok) => {
                self.act(id, group, Some(life), |replica, now| {
                    if let Some(group) = &mut replica.group {
                        group.snapshot_sent(now, super::cluster::replica(to), ok);
                    }
                })
            }
            Event::LinkDown(id, dead) => self.link_down(id, dead),
            Event::Restart(id) => self.restart(id),
            Event::Flap(a, b, times) => {
                self.flap(a, b, times);
                Ok(())
            }
            Event::Request => self.request(),
            Event::Fault => self.fault(),
        }
    }

    fn link_down(&mut self, id: StoreId, dead: StoreId) -> Result<(), Violation> {
        let groups: Vec<GroupId> = self.store(id).replicas.keys().copied().collect();
        for group in groups {
            self.act(id, group, None, |replica, now| {
                if let Some(group) = &mut replica.group
                    && group.leader() == Some(super::cluster::replica(dead))
                {
                    group.leader_lost(now);
                }
            })?;
        }
        Ok(())
    }

    /// The power fails on one store.
    pub(super) fn crash(&mut self, id: StoreId) -> Result<(), Violation> {
        if !self.store(id).up {
            return Ok(());
        }
        let store = self.stores.get_mut(&id).expect("every store is there");
        let survived = store.crash(&mut self.rng, self.profile.doubts);
        let torn = store.torn;
        self.trace.note(&(id, torn));
        self.trace.count("power cuts");
        if torn {
            self.trace.count("torn records");
        }
        for (group, written) in survived {
            let state = self.group_mut(group);
            state.invariants.written(replica(id), &written)?;
            state.invariants.reads.died(replica(id));
            state.clients.died(id);
        }
        if self.profile.doubts {
            self.maybe_lose_last_record(id);
        }
        let others: Vec<_> = self.stores.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            // The others see their connections break, sooner or later.
            let delay =
                if self.rng.chance(700) { self.rng.between(1, 50) } else { self.rng.between(500, 3_000) };
            self.after(delay, Event::LinkDown(other, id));
        }
        Ok(())
    }

    /// Sometimes the last acknowledged record turns out to be damaged: as long as fewer than a quorum of a group's voters suffer
    /// that at once, nothing may be lost. (Where members change that is not counted so easily; there, records are only torn.)
    fn maybe_lose_last_record(&mut self, id: StoreId) {
        if self.profile.membership || !self.rng.chance(300) {
            return;
        }
        let losers = |group: &GroupId| {
            let hosts = self.stores.values().filter_map(|store| store.replicas.get(group));
            hosts.filter(|host| host.lost).count() as u64
        };
        let groups = self.store(id).last_record();
        let bearable = groups.iter().all(|group| losers(group) < (self.profile.voters - 1) / 2);
        if groups.is_empty() || !bearable {
            return;
        }
        self.store_mut(id).lose_last_record();
        self.trace.count("lost records");
        self.trace.note(&(id, &groups));
        for group in groups {
            let content = self.stores[&id].replicas[&group].disk.durable(Clone::clone);
            self.group_mut(group).invariants.lost(replica(id), &content);
        }
    }

    pub(super) fn restart(&mut self, id: StoreId) -> Result<(), Violation> {
        if self.store(id).disk.failed {
            // Whoever starts it again ends it first.
            self.crash(id)?;
        }
        if self.store(id).up {
            return Ok(());
        }
        let (seed, now) = (self.seed, self.now);
        let profile = self.profile.clone();
        let store = self.store_mut(id);
        store.start(&profile, seed, now);
        let groups: Vec<GroupId> = store.replicas.keys().copied().collect();
        if store.doubt {
            self.trace.count("starts in doubt");
        }
        for group in groups {
            self.group_mut(group).invariants.restarted(replica(id));
            self.act(id, group, None, |_, _| {})?;
        }
        Ok(())
    }
}

fn describe(event: &Event) -> String {
    match event {
        Event::Arrive(group, message) => format!("group {group}: {message}"),
        Event::Snapshot(_, group, message, machine) => {
            format!("group {group}: {message} with state {}", machine.applied)
        }
        event => format!("{event:?}"),
    }
}
