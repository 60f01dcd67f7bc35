//! How a store drives its replicas: every call into the core, and everything that the core asks for.

use pontoon_raft_core::{
    AppendEntries, Body, Entries, Entry, Group, GroupId, LogIndex, LogView, Message, Payload, Ready, StoreId,
};

use super::cluster::{Cluster, EVENTS_AT_ONCE_MAX, Event, replica};
use super::disk::Written;
use super::invariants::{Violation, violated};
use super::machine::Machine;
use super::store::Replica;

impl Cluster {
    /// Lets a replica do something, in a given life of its store if that matters, and its host everything that follows.
    /// `act` is told the time of the store's own clock.
    pub(super) fn act(
        &mut self,
        id: StoreId,
        group: GroupId,
        life: Option<u64>,
        act: impl FnOnce(&mut Replica, u64),
    ) -> Result<(), Violation> {
        let store = self.stores.get_mut(&id).expect("every store is there");
        let local = store.local(self.now);
        if !store.up || life.is_some_and(|life| life != store.life) {
            return Ok(());
        }
        let this = store.life;
        let Some(host) = store.replicas.get_mut(&group) else { return Ok(()) };
        act(host, local);
        let Some(core) = &host.group else { return Ok(()) };
        let state = self.groups.get_mut(&group).expect("every group is there");
        state.invariants.stepped(replica(id), core)?;
        // Sometimes a host gathers several inputs before it acts.
        if self.rng.chance(150) {
            let delay = self.rng.below(5);
            self.after(delay, Event::Flush(id, group, this));
            return Ok(());
        }
        self.flush(id, group)
    }

    /// Carries out what a replica asks for.
    pub(super) fn flush(&mut self, id: StoreId, group: GroupId) -> Result<(), Violation> {
        // What is done here may give the replica more to do (reads of a single voter, for example).
        for round in 0.. {
            let host = self.stores.get_mut(&id).and_then(|store| store.replicas.get_mut(&group));
            let Some(core) = host.and_then(|host| host.group.as_mut()) else { return Ok(()) };
            if !core.has_ready() {
                break;
            }
            if round > EVENTS_AT_ONCE_MAX {
                return violated("no livelock", format!("{id} always wants more: {:?}", core.status()));
            }
            let ready = core.ready();
            self.carry_out(id, group, ready)?;
        }
        self.schedule_tick(id, group);
        self.compact(id, group);
        Ok(())
    }

    fn carry_out(&mut self, id: StoreId, group: GroupId, ready: Ready) -> Result<(), Violation> {
        let store = self.stores.get_mut(&id).expect("every store is there");
        let host = store.replicas.get_mut(&group).expect("it was asked");
        let state = self.groups.get_mut(&group).expect("every group is there");
        let Some(core) = &mut host.group else { return Ok(()) };
        let (who, invariants) = (replica(id), &mut state.invariants);
        // A look at every replica of the store, so only when it matters.
        let settled = store.doubt && !core.in_doubt();
        invariants.stepped(who, core)?;
        host.disk.cached(|disk| invariants.ready(who, core, ready.persist.as_ref(), disk))?;
        self.trace.note(&(group, who, core.term(), core.role(), core.commit_index(), core.last_index()));
        if let Some(persist) = ready.persist {
            let joint = |entry: &Entry| match &entry.payload {
                Payload::Configuration(configuration) => configuration.is_joint(),
                _ => false,
            };
            if core.is_leader() && persist.entries.iter().any(joint) {
                self.trace.count("joint configurations");
            }
            let restored = persist.snapshot.as_ref().map(|snapshot| {
                self.trace.count("snapshots installed");
                host.machine = host.arrived.remove(&snapshot.index).expect("only what arrived is installed");
                host.machine.clone()
            });
            store.disk.gather(group, persist.ticket);
            host.disk.persist(store.disk.round(), persist, restored);
        }
        for message in &ready.messages {
            host.disk.durable(|disk| invariants.sends(message, core, disk))?;
        }
        for read in ready.reads {
            invariants.reads.ends(who, read)?;
            match read.index {
                Some(index) => {
                    host.reads.insert((index, read.context));
                }
                None => state.clients.read_failed(read.context),
            }
        }
        for dropped in ready.dropped {
            if host.waiting.remove(&dropped.id) {
                self.trace.count("commands retried");
                state.clients.retry(dropped.id);
            }
        }
        if let Some(range) = ready.committed {
            let entries = host.disk.entries(range.clone(), u64::MAX).expect("what is committed can be read");
            for entry in &entries {
                host.disk.durable(|disk| invariants.applies(who, entry, disk))?;
                if let Some((command, outcome)) = host.machine.apply(entry) {
                    invariants.acknowledged.executes(who, command, host.machine.executed.len())?;
                    if host.waiting.remove(&command) {
                        invariants.acknowledged.acknowledge(command);
                        state.clients.written(command, outcome);
                    }
                }
            }
            core.applied(range.end.prev());
        }
        // Reads wait until their index is applied.
        while let Some((index, context)) = host.reads.first().copied()
            && index <= host.machine.applied
        {
            host.reads.pop_first();
            state.clients.read(context, &host.machine);
        }
        for message in ready.messages {
            self.post(group, message)?;
        }
        self.write_round(id);
        if settled && self.store_mut(id).note_settled() {
            self.trace.count("doubts settled");
        }
        Ok(())
    }

    /// Lets the disk begin its next round, if it is idle.
    pub(super) fn write_round(&mut self, id: StoreId) {
        let slowest = if self.network.healed { 5 } else { self.profile.sync_ms_max };
        let (now, store) = (self.now, self.stores.get_mut(&id).expect("every store is there"));
        if store.disk.begin() {
            let delay = store.disk.hangs_until.saturating_sub(now) + self.rng.between(0, slowest);
            let life = store.life;
            self.after(delay, Event::Synced(id, life));
        }
    }

    /// A round of all groups is on the disk.
    pub(super) fn synced(&mut self, id: StoreId, life: u64) -> Result<(), Violation> {
        let store = self.stores.get_mut(&id).expect("every store is there");
        if store.life != life {
            return Ok(());
        }
        let Some((round, batches)) = store.disk.end() else { return Ok(()) };
        for (group, ticket) in batches {
            let written = self.stores[&id].replicas[&group].disk.synced(round);
            self.group_mut(group).invariants.written(replica(id), &written)?;
            self.act(id, group, Some(life), |replica, now| {
                if let Some(group) = &mut replica.group {
                    group.persisted(now, ticket);
                }
            })?;
        }
        self.write_round(id);
        Ok(())
    }

    fn schedule_tick(&mut self, id: StoreId, group: GroupId) {
        let now = self.now;
        let store = self.stores.get_mut(&id).expect("every store is there");
        let local = store.local(now);
        let Some(host) = store.replicas.get_mut(&group) else { return };
        let Some(deadline) = host.group.as_ref().and_then(Group::next_deadline) else { return };
        let at = deadline.max(local);
        // A tick that comes too early is harmless, so a later deadline needs no other.
        if host.tick_at.is_none_or(|scheduled| scheduled > at) {
            host.tick_at = Some(at);
            let delay = store.until(now, at);
            self.after(delay, Event::Tick(id, group, at));
        }
    }

    /// Drops the log's begin when it is long enough.
    fn compact(&mut self, id: StoreId, group: GroupId) {
        if !self.profile.compaction || !self.rng.chance(100) {
            return;
        }
        let store = self.stores.get_mut(&id).expect("every store is there");
        let Some(host) = store.replicas.get_mut(&group) else { return };
        let Some(core) = &mut host.group else { return };
        let applied = host.machine.applied;
        if applied.0 < core.first_index().0 + self.profile.log_entries_max {
            return;
        }
        if let Some(meta) = core.snapshot_meta(applied) {
            host.disk.compact(store.disk.round(), meta, host.machine.clone());
            core.compacted(applied.next());
            self.trace.count("compactions");
        }
    }

    /// Gives a message to the network.
    fn post(&mut self, group: GroupId, message: Message) -> Result<(), Violation> {
        let life = self.life(message.from.store);
        match &message.body {
            Body::AppendEntries(AppendEntries { entries: Entries::Interval { .. }, .. }) => {
                // Appends wait as intervals in the link's queue.
                let wait = if !self.network.healed && self.rng.chance(200) { self.rng.below(50) } else { 0 };
                if wait == 0 {
                    return self.frame(life, group, message);
                }
                self.after(wait, Event::Frame(life, group, message));
            }
            Body::InstallSnapshot(wanted) => self.stream_snapshot(life, group, wanted.index, &message),
            _ => self.transmit(group, message),
        }
        Ok(())
    }

    /// Reads the entries of an interval, unless it is void by now.
    pub(super) fn frame(&mut self, life: u64, group: GroupId, mut message: Message) -> Result<(), Violation> {
        let store = self.store(message.from.store);
        if store.life != life {
            return Ok(());
        }
        if let Body::AppendEntries(append) = &mut message.body
            && let Entries::Interval { last, last_term } = append.entries
            && last > append.prev_log_index
        {
            let range = append.prev_log_index.next()..last.next();
            let Ok(entries) = store.replicas[&group].disk.entries(range, u64::MAX) else { return Ok(()) };
            if entries.last().map(|entry| entry.term) != Some(last_term) {
                return Ok(());
            }
            let written = [Written::new(append.prev_log_term, &entries)];
            self.group_mut(group).invariants.written(message.from, &written)?;
            append.entries = Entries::Inline(entries);
        }
        self.transmit(group, message);
        Ok(())
    }

    fn transmit(&mut self, group: GroupId, message: Message) {
        let (from, to) = (message.from.store, message.to.store);
        let arrivals = self.network.arrivals(&mut self.rng, &self.profile, from, to);
        if arrivals.is_empty() && self.rng.chance(300) {
            let store = self.stores.get_mut(&from).expect("every store is there");
            let local = store.local(self.now);
            if let Some(core) = store.replicas.get_mut(&group).and_then(|host| host.group.as_mut()) {
                core.unreachable(local, message.to);
            }
            let life = store.life;
            self.after(1, Event::Flush(from, group, life));
        }
        for delay in arrivals {
            self.after(delay, Event::Arrive(group, message.clone()));
        }
    }

    /// Streams the sender's newest state.
    fn stream_snapshot(&mut self, life: u64, group: GroupId, wanted: LogIndex, message: &Message) {
        let (from, to) = (message.from.store, message.to.store);
        let host = &self.stores[&from].replicas[&group];
        let meta = host.group.as_ref().and_then(|core| core.snapshot_meta(host.machine.applied));
        let machine = host.machine.clone();
        let delay = self.rng.between(1, 300);
        let arrives = !self.network.arrivals(&mut self.rng, &self.profile, from, to).is_empty();
        match meta {
            Some(meta) if meta.index >= wanted && arrives => {
                let message = Message { body: Body::InstallSnapshot(meta), ..message.clone() };
                self.after(delay, Event::Snapshot(life, group, message, Box::new(machine)));
            }
            _ => self.after(delay, Event::SnapshotSent(from, life, group, to, false)),
        }
    }

    pub(super) fn snapshot_arrives(
        &mut self,
        sender_life: u64,
        group: GroupId,
        message: Message,
        machine: Machine,
    ) -> Result<(), Violation> {
        let (from, to) = (message.from.store, message.to.store);
        let ok = self.store(to).up;
        self.trace.note(&(group, &message));
        self.act(to, group, None, |host, now| {
            host.arrived.insert(machine.applied, machine);
            if let Some(core) = &mut host.group {
                let _ = core.step(now, message);
            }
        })?;
        let delay = self.rng.between(0, 50);
        self.after(delay, Event::SnapshotSent(from, sender_life, group, to, ok));
        Ok(())
    }
}
