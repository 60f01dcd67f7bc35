//! All groups of one store, the network, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_flow::{
    Admitted, BacklogLimits, Class, Limits, LogTracker, Mode, PerClass, Pools, StoreView, check,
};
use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, StoreId};

use crate::group::{Append, BATCH_BYTES, Follower, Group, Sends};
use crate::rng::Rng;

/// How bad it gets, in permille of the events or messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    pub(crate) loss: u64,
    pub(crate) vector_loss: u64,
    pub(crate) duplicates: u64,
    /// Leaders, members, limits, modes.
    pub(crate) upheaval: u64,
    /// Old reports that come again.
    pub(crate) replay: u64,
}

/// How often what the simulation is about has happened: a run in which it has not shows nothing.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    waits: u64,
    elastic_waits: u64,
    queues: u64,
    forced: u64,
    disconnected: u64,
    admitted: u64,
    stale: u64,
    debts: u64,
    held_back: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, more: &Self) {
        self.waits += more.waits;
        self.elastic_waits += more.elastic_waits;
        self.queues += more.queues;
        self.forced += more.forced;
        self.disconnected += more.disconnected;
        self.admitted += more.admitted;
        self.stale += more.stale;
        self.debts += more.debts;
        self.held_back += more.held_back;
    }

    pub(crate) fn expect_all(&self, events: u64) {
        if events >= 20_000 {
            let Self {
                waits,
                elastic_waits,
                queues,
                forced,
                disconnected,
                admitted,
                stale,
                debts,
                held_back,
            } = self;
            for (what, times) in [
                ("waits", waits),
                ("elastic waits", elastic_waits),
                ("queues", queues),
                ("forced bytes", forced),
                ("disconnections", disconnected),
                ("admissions", admitted),
                ("stale reports", stale),
                ("debts", debts),
                ("admissions held back", held_back),
            ] {
                assert!(*times > 0, "no {what} in {events} events: the simulation is about nothing");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Message {
    Append(GroupId, Append),
    Accepted(GroupId, ReplicaId, u64, u64),
    Refused(GroupId, ReplicaId, u64, u64),
    Report(GroupId, ReplicaId, Admitted),
}

pub(crate) struct World {
    rng: Rng,
    profile: Profile,
    pools: Pools,
    groups: BTreeMap<GroupId, Group>,
    network: Vec<Message>,
    /// Reports of the past.
    history: Vec<(GroupId, ReplicaId, Admitted)>,
    pending: BTreeSet<GroupId>,
    now: u64,
    next_group: u64,
    next_replica: u64,
    pub(crate) totals: Totals,
}

const ME: StoreId = StoreId(1);
const STORES: u64 = 5;

impl World {
    pub(crate) fn new(mut rng: Rng, profile: Profile) -> Self {
        let mode = if rng.chance(200) { Mode::ElasticOnly } else { Mode::All };
        let limits = Limits { regular_bytes: 1 << 20, elastic_bytes: 1 << 20, forced_bytes: 2 << 20 };
        let mut world = Self {
            rng,
            profile,
            pools: Pools::new(mode, limits),
            groups: BTreeMap::new(),
            network: Vec::new(),
            history: Vec::new(),
            pending: BTreeSet::new(),
            now: 0,
            next_group: 1,
            next_replica: 1,
            totals: Totals::default(),
        };
        for _ in 0..world.rng.between(1, 6) {
            world.create();
        }
        world
    }

    fn replica(&mut self, store: StoreId) -> ReplicaId {
        self.next_replica += 1;
        ReplicaId { store, number: self.next_replica }
    }

    fn create(&mut self) {
        let id = GroupId(self.next_group);
        self.next_group += 1;
        let me = self.replica(ME);
        let mut configuration = Configuration::of_voters([me]);
        let count = self.rng.between(0, 4);
        for n in 0..count {
            let replica = self.replica(StoreId(2 + (id.0 + n) % STORES));
            if self.rng.chance(800) {
                configuration.voters.insert(replica);
            } else {
                configuration.learners.insert(replica);
            }
        }
        let followers =
            configuration.members().into_iter().filter(|r| *r != me).map(|r| (r, follower())).collect();
        let mut group = Group::new(id, me, configuration, followers);
        group.lead();
        self.groups.insert(id, group);
        self.pending.insert(id);
    }

    fn group(&mut self, id: GroupId) -> &mut Group {
        self.groups.get_mut(&id).expect("it is there")
    }

    fn pick(&mut self) -> Option<GroupId> {
        let n = self.groups.len();
        (n > 0).then(|| *self.groups.keys().nth(self.rng.place(n)).expect("it is below the length"))
    }

    /// One event, and what must hold after it.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.now += self.rng.below(20);
        self.pass();
        if self.rng.chance(self.profile.upheaval) {
            self.upheaval();
        } else {
            match self.rng.below(100) {
                0..30 => self.propose(),
                30..60 if !self.network.is_empty() => {
                    let at = self.rng.place(self.network.len());
                    let message = self.network.swap_remove(at);
                    if self.rng.chance(self.profile.duplicates) {
                        self.network.push(message.clone());
                    }
                    self.deliver(message)?;
                }
                60..75 => self.work(),
                75..80 => self.link(),
                80..85 => {
                    if let Some(id) = self.pick() {
                        self.pending.insert(id);
                    }
                }
                _ => {}
            }
            if self.rng.chance(self.profile.replay) && !self.history.is_empty() {
                let at = self.rng.place(self.history.len());
                let (group, from, admitted) = self.history[at];
                self.deliver(Message::Report(group, from, admitted))?;
            }
        }
        self.check()?;
        self.pending.extend(self.pools.take_wakes());
        if self.rng.chance(700)
            && let Some(id) = self.pending.pop_first()
        {
            self.look(id)?;
        }
        // A lossy network does not gather without end.
        while self.network.len() > 400 {
            let at = self.rng.place(self.network.len());
            self.network.swap_remove(at);
        }
        self.history.truncate(2_000);
        self.check()
    }

    /// A turn of the host's loop. Regular commands take as long as it happens.
    fn pass(&mut self) {
        let commands = self.rng.below(10);
        let micros = self.rng.between(500, 5_000);
        self.pools.pass(self.now, commands, commands * micros);
    }

    fn check(&self) -> Result<(), String> {
        let controllers = self.groups.values().filter_map(|group| group.controller.as_ref());
        check(&self.pools, controllers).map_err(|violation| violation.to_string())
    }

    fn look(&mut self, id: GroupId) -> Result<(), String> {
        let Some(group) = self.groups.get_mut(&id) else {
            self.pools.forget(id);
            return Ok(());
        };
        let before: BTreeMap<_, _> = self.pools.views().map(|view| (view.store, view)).collect();
        let asks = group.controller.as_ref().is_some_and(|controller| controller.asks(self.now));
        let appends = group.look(&mut self.pools, self.now);
        if asks {
            self.ask(id);
        }
        for append in appends {
            if !self.rng.chance(self.profile.loss) {
                self.network.push(Message::Append(id, append));
            }
        }
        let limits = self.pools.limits();
        let others: Vec<_> = self.groups[&id].others().map(|replica| replica.store).collect();
        for view in self.pools.views() {
            let was = before.get(&view.store);
            self.totals.queues += view.waiting_queues as u64;
            self.totals.waits +=
                view.counters.waits.regular - was.map_or(0, |was| was.counters.waits.regular);
            self.totals.elastic_waits +=
                view.counters.waits.elastic - was.map_or(0, |was| was.counters.waits.elastic);
            self.totals.forced += view.counters.forced - was.map_or(0, |was| was.counters.forced);
            self.totals.disconnected +=
                view.counters.disconnected.total() - was.map_or(0, |was| was.counters.disconnected.total());
            self.totals.debts += u64::from(view.send_available.regular < 0);
            if self.pools.mode() != Mode::All {
                continue;
            }
            // I11: beyond its tokens a store gets one round of one group, and what is forced; and that within its cap and a
            // round. A round is a batch for each of the group's replicas there: one may be on its way out, and another one in.
            let round =
                BATCH_BYTES * others.iter().filter(|store| **store == view.store).count().max(1) as u64;
            let unforced = |view: &StoreView| held(view, &limits).saturating_sub(view.forced_bytes);
            let most = limits.regular_bytes + round;
            if unforced(&view) > most.max(was.map_or(0, unforced)) {
                return Err(format!("I11: {view:?} is beyond {most}, before: {was:?}"));
            }
            let most = limits.forced_bytes + round;
            if view.forced_bytes > most.max(was.map_or(0, |was| was.forced_bytes)) {
                return Err(format!("I11: {view:?} forced beyond {most}"));
            }
        }
        Ok(())
    }

    /// The leader asks: whoever hears it repeats what it has admitted.
    fn ask(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(controller) = &mut group.controller {
            controller.asked(self.now);
        }
        let reports: Vec<_> = group
            .progress
            .keys()
            .filter_map(|replica| Some((*replica, group.followers.get(replica)?.tracker.admitted()?)))
            .collect();
        for (replica, admitted) in reports {
            if !self.rng.chance(self.profile.vector_loss) {
                self.network.push(Message::Report(id, replica, admitted));
            }
        }
    }

    fn propose(&mut self) {
        let Some(id) = self.pick() else { return };
        let class = if self.rng.chance(300) { Class::Elastic } else { Class::Regular };
        for _ in 0..self.rng.between(1, 8) {
            let bytes = match self.rng.below(100) {
                0..70 => self.rng.between(0, 4 << 10),
                70..95 => 64 << 10,
                _ => self.rng.between(100 << 10, 1 << 20),
            };
            let waiting = &mut self.group(id).commands[class as usize];
            if waiting.len() < 50 {
                waiting.push_back(bytes);
            }
        }
        self.pending.insert(id);
    }

    fn deliver(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Append(id, append) => self.receive(id, append),
            Message::Accepted(id, from, term, index) => {
                if let Some(group) = self.groups.get_mut(&id)
                    && group.term == term
                    && group.controller.is_some()
                    && let Some(progress) = group.progress.get_mut(&from)
                {
                    progress.accepted(index);
                    self.pending.insert(id);
                }
            }
            Message::Refused(id, from, term, hint) => {
                if let Some(group) = self.groups.get_mut(&id)
                    && group.term == term
                    && let Some(progress) = group.progress.get_mut(&from)
                    && progress.sends == Sends::Replicate
                {
                    progress.rewind(hint + 1);
                    self.pending.insert(id);
                }
            }
            Message::Report(id, from, admitted) => {
                let before: Vec<_> = self.pools.views().collect();
                let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
                if let Some(controller) = &mut group.controller {
                    let known = controller.configuration().members().contains(&from);
                    controller.admitted(&mut self.pools, self.now, from, admitted);
                    let stale = admitted.term.0 != group.term || !known;
                    let after: Vec<_> = self.pools.views().collect();
                    if stale {
                        self.totals.stale += 1;
                        if before != after {
                            return Err(format!("T13: a stale report {admitted:?} of {from} moved tokens"));
                        }
                    } else if before != after {
                        self.totals.admitted += 1;
                    }
                    self.pending.insert(id);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, id: GroupId, append: Append) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(follower) = group.followers.get_mut(&append.to) else { return };
        if append.term < follower.term || (append.term > follower.term && append.term != group.term) {
            return;
        }
        let prev = append.first - 1;
        if prev > follower.end || (append.term > follower.term && prev > group.began) {
            self.network.push(Message::Refused(id, append.to, append.term, follower.end.min(group.began)));
            return;
        }
        if append.term > follower.term {
            follower.truncate(prev);
            follower.term = append.term;
            follower.matched = prev;
        }
        if prev > follower.matched {
            self.network.push(Message::Refused(id, append.to, append.term, follower.matched));
            return;
        }
        for (index, bytes) in (append.first..).zip(&append.entries) {
            if index > follower.end {
                follower.end = index;
                follower.tracker.appended(LogIndex(index), *bytes);
            }
            follower.matched = follower.matched.max(index);
        }
    }

    /// A follower's disk or state machine goes on.
    fn work(&mut self) {
        let Some(id) = self.pick() else { return };
        let group = self.groups.get_mut(&id).expect("it was picked");
        if group.followers.is_empty() {
            return;
        }
        let at = self.rng.place(group.followers.len());
        let (replica, follower) = group.followers.iter_mut().nth(at).expect("it is below the length");
        if self.rng.chance(600) {
            follower
                .tracker
                .accepted(pontoon_raft_core::types::Term(follower.term), LogIndex(follower.matched));
            self.network.push(Message::Accepted(id, *replica, follower.term, follower.matched));
        } else {
            follower.applied += self.rng.below(follower.matched.saturating_sub(follower.applied) + 1);
            follower.tracker.applied(LogIndex(follower.applied));
        }
        if let Some(admitted) = follower.tracker.news() {
            if admitted.term.0 == follower.term && admitted.upto.regular.0 > follower.matched {
                panic!("{replica} admits {admitted:?} and matches its leader up to {}", follower.matched);
            }
            self.totals.held_back += u64::from(admitted.upto.elastic.0 < follower.matched);
            let report = (id, *replica, admitted);
            if self.history.len() < 2_000 {
                self.history.push(report);
            } else {
                let at = self.rng.place(self.history.len());
                self.history[at] = report;
            }
            if !self.rng.chance(self.profile.vector_loss) {
                self.network.push(Message::Report(id, *replica, admitted));
            }
        }
    }

    /// Something happens to a follower's stream.
    fn link(&mut self) {
        let Some(id) = self.pick() else { return };
        self.pending.insert(id);
        let group = self.groups.get_mut(&id).expect("it was picked");
        if group.controller.is_none() || group.progress.is_empty() {
            return;
        }
        let calm = !self.rng.chance(150);
        let at = self.rng.place(group.progress.len());
        let replica = *group.progress.keys().nth(at).expect("it is below the length");
        let state = group.progress[&replica].sends;
        match (state, self.rng.below(10)) {
            (Sends::Replicate, _) if calm => {}
            (Sends::Replicate, 0..5) => group.probe(replica),
            (Sends::Replicate, 5) => group.snapshot(replica),
            (Sends::Replicate, _) => {
                let progress = group.progress.get_mut(&replica).expect("it is there");
                let back = self.rng.below(5);
                progress.rewind(progress.next.saturating_sub(back));
            }
            (Sends::Probe | Sends::Snapshot, _) => group.answer(replica, self.rng.below(4)),
        }
    }

    fn upheaval(&mut self) {
        let Some(id) = self.pick() else { return self.create() };
        self.pending.insert(id);
        // Nobody is without a leader here for long, and without followers there is nothing to see.
        let kind = match &self.groups[&id] {
            group if group.controller.is_none() => 0,
            group if group.others().count() < 2 => 3,
            _ => self.rng.below(10),
        };
        match kind {
            0..3 => {
                let group = self.groups.get_mut(&id).expect("it was picked");
                match group.controller.take() {
                    Some(controller) => controller.close(&mut self.pools),
                    None => {
                        // Somebody else led meanwhile: the end of the log is another one.
                        let cut = self.rng.below(6).min(group.last());
                        group.log.truncate(usize::try_from(group.last() - cut).expect("small"));
                        group.log.extend((0..self.rng.below(6)).map(|n| (Class::Regular, n * 100)));
                        group.lead();
                    }
                }
            }
            3..7 => self.reconfigure(id),
            7 => {
                let limits = Limits {
                    regular_bytes: self.rng.between(0, 4 << 20),
                    elastic_bytes: self.rng.between(0, 4 << 20),
                    forced_bytes: self.rng.between(0, 4 << 20),
                };
                self.pools.set_limits(limits);
            }
            8 => {
                self.pools.set_mode(Mode::ALL[self.rng.place(3)]);
                self.pending.extend(self.groups.keys());
            }
            _ => {
                if self.rng.chance(300) {
                    // Destroyed.
                    let mut group = self.groups.remove(&id).expect("it was picked");
                    match group.controller.take() {
                        Some(controller) => controller.close(&mut self.pools),
                        None => self.pools.forget(id),
                    }
                    if self.groups.len() < 4 {
                        self.create();
                    }
                }
            }
        }
    }

    fn reconfigure(&mut self, id: GroupId) {
        let store = StoreId(2 + self.rng.below(STORES));
        let new = self.replica(store);
        let few = self.groups[&id].others().count() < 2;
        let kind = if few { self.rng.below(2) } else { self.rng.below(4) };
        let group = self.groups.get_mut(&id).expect("it was picked");
        let mut configuration = group.configuration.clone();
        let others: Vec<_> = group.others().collect();
        match kind {
            0 if others.len() < 5 => {
                configuration.learners.insert(new);
            }
            1 => {
                if let Some(learner) = configuration.learners.pop_first() {
                    configuration.voters.insert(learner);
                }
            }
            2 if !others.is_empty() => {
                let gone = others[self.rng.place(others.len())];
                configuration.voters.remove(&gone);
                configuration.outgoing_voters.remove(&gone);
                configuration.learners.remove(&gone);
            }
            _ if configuration.is_joint() => configuration.outgoing_voters.clear(),
            _ => {
                configuration.outgoing_voters = configuration.voters.clone();
                if let Some(other) = others.first() {
                    configuration.voters.remove(other);
                }
            }
        }
        for replica in configuration.members() {
            if replica != group.me && !group.followers.contains_key(&replica) {
                group.followers.insert(replica, follower());
            }
        }
        group.configure(configuration);
    }

    /// Nothing is lost any more, and everybody works: everything must come to its end.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.profile = Profile { loss: 0, vector_loss: 0, duplicates: 0, upheaval: 0, replay: 0 };
        if self.pools.mode() == Mode::Off {
            self.pools.set_mode(Mode::All);
        }
        let ids: Vec<_> = self.groups.keys().copied().collect();
        for id in &ids {
            let group = self.groups.get_mut(id).expect("it is there");
            if group.controller.is_none() {
                group.lead();
            }
        }
        for round in 0..3_000 {
            self.now += 50;
            self.pass();
            for id in &ids {
                let replicas: Vec<_> = self.groups[id].progress.keys().copied().collect();
                for replica in replicas {
                    let heartbeat = round % 10 == 0 && self.network.is_empty();
                    if self.group(*id).is_lost(replica, heartbeat) {
                        self.group(*id).probe(replica);
                        self.look(*id)?;
                        self.group(*id).answer(replica, 0);
                    }
                    let news = self.group(*id).catch_up(replica);
                    self.network.extend(news);
                }
                self.look(*id)?;
            }
            for message in std::mem::take(&mut self.network) {
                self.deliver(message)?;
            }
            self.pending.extend(self.pools.take_wakes());
            while let Some(id) = self.pending.pop_first() {
                self.look(id)?;
                self.check()?;
            }
            let done = self.groups.values().all(Group::is_done);
            if done && self.pools.is_full() && self.network.is_empty() {
                let full = self.pools.views().all(|view| is_full(&view, &self.pools.limits()));
                return if full { Ok(()) } else { Err("a pool is not full".to_owned()) };
            }
        }
        let stuck: Vec<_> =
            self.groups.values().filter(|group| !group.is_done()).map(Group::describe).collect();
        let views: Vec<_> = self.pools.views().collect();
        let controllers: Vec<_> =
            self.groups.values().filter_map(|g| g.controller.as_ref()).map(ToString::to_string).collect();
        Err(format!("mode {:?}, stuck {stuck:#?}, pools {views:#?}, {controllers:#?}", self.pools.mode()))
    }
}

fn follower() -> Follower {
    let limits = BacklogLimits { regular_bytes: 600 << 10, elastic_bytes: 200 << 10 };
    Follower { term: 0, end: 0, matched: 0, applied: 0, tracker: LogTracker::new(LogIndex::ZERO, limits) }
}

fn held(view: &StoreView, limits: &Limits) -> u64 {
    let left = view.send_available.regular;
    u64::try_from(i64::try_from(limits.regular_bytes).expect("small") - left)
        .expect("what is held is not negative")
}

fn is_full(view: &StoreView, limits: &Limits) -> bool {
    let full = |available: PerClass<i64>, limits: &Limits| {
        available.regular == i64::try_from(limits.regular_bytes).expect("small")
            && available.elastic == i64::try_from(limits.elastic_bytes).expect("small")
    };
    let window = Limits {
        regular_bytes: limits.regular_bytes.min(view.window_bytes),
        elastic_bytes: limits.elastic_bytes.min(view.window_bytes / 2),
        ..*limits
    };
    full(view.eval_available, &window) && full(view.send_available, limits)
}

impl Group {
    /// The follower's disk and state machine finish what they have.
    fn catch_up(&mut self, replica: ReplicaId) -> Vec<Message> {
        let id = self.id;
        let Some(follower) = self.followers.get_mut(&replica) else { return Vec::new() };
        follower.applied = follower.matched;
        follower.tracker.applied(LogIndex(follower.applied));
        follower.tracker.accepted(pontoon_raft_core::types::Term(follower.term), LogIndex(follower.matched));
        let behind = self.progress.get(&replica).is_some_and(|p| p.matched < follower.matched);
        let accepted = behind.then_some(Message::Accepted(id, replica, follower.term, follower.matched));
        let report = follower.tracker.news().map(|admitted| Message::Report(id, replica, admitted));
        accepted.into_iter().chain(report).collect()
    }
}
