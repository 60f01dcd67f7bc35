//! What goes wrong, and what operators do meanwhile.

use pontoon_raft_core::{ConfigurationChange, EntryId, GroupId, MemberChange, ReplicaId, StoreId};

use super::cluster::{Cluster, Event, replica};
use super::invariants::Violation;

/// The shortest disturbance of a disk that costs a leader its place with the shortest timers.
const HANG_MS_MIN: u64 = 100;

impl Cluster {
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if self.network.healed {
            return Ok(());
        }
        let every = if self.profile.usurpers { 150 } else { self.profile.fault_every_ms };
        let next = self.rng.between(1, every);
        self.after(next, Event::Fault);
        let ids: Vec<_> = self.stores.keys().copied().collect();
        let Some(id) = self.rng.pick(&ids) else { return Ok(()) };
        let group = self.any_group();
        if self.profile.usurpers && self.rng.chance(800) {
            return self.usurp(group);
        }
        match self.rng.below(12) {
            0 | 1 if self.profile.crashes => self.power_cut(id, 4_000)?,
            2 if self.profile.crashes => {
                // Everybody at once, as when the building goes dark.
                for id in ids {
                    self.power_cut(id, 2_000)?;
                }
            }
            3 | 4 if self.profile.partitions => self.partition(&ids, group),
            5 => self.network.mend(),
            6 if self.profile.pauses => {
                let until = self.now + self.rng.between(50, 5_000);
                self.store_mut(id).paused_until = until;
                self.trace.count("pauses");
            }
            7 => return self.hand_over(group),
            8 if self.profile.membership => return self.change_members(group),
            9 => return self.disturb(id, group),
            10 if self.profile.disk_faults => return self.disk_fault(id),
            11 if self.profile.partitions => {
                // A bad contact: up and down, until somebody mends it.
                if let Some(other) = self.rng.pick(&ids) {
                    self.trace.count("flapping links");
                    let times = self.rng.between(2, 20);
                    self.flap(id, other, times);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn power_cut(&mut self, id: StoreId, down_ms_max: u64) -> Result<(), Violation> {
        self.crash(id)?;
        let down = self.rng.between(1, down_ms_max);
        self.after(down, Event::Restart(id));
        Ok(())
    }

    /// The disk hangs for a while, or a write fails, which is final until the store starts again.
    fn disk_fault(&mut self, id: StoreId) -> Result<(), Violation> {
        if self.rng.chance(600) {
            let until = self.now + self.rng.between(HANG_MS_MIN, 6_000);
            self.store_mut(id).disk.hangs_until = until;
            self.trace.count("hung disks");
            return Ok(());
        }
        let store = self.store_mut(id);
        if !store.up {
            return Ok(());
        }
        store.disk.failed = true;
        self.trace.count("failed disks");
        let store = self.store(id);
        let groups: Vec<GroupId> = store.replicas.keys().copied().collect();
        for group in groups {
            self.act(id, group, None, |host, _| {
                if let Some(core) = &mut host.group {
                    core.persist_failed();
                }
            })?;
        }
        // Somebody notices, and replaces the cable.
        let noticed = self.rng.between(10, 5_000);
        self.after(noticed, Event::Restart(id));
        Ok(())
    }

    /// One direction or both of a link change, and will again.
    pub(super) fn flap(&mut self, a: StoreId, b: StoreId, times: u64) {
        if self.network.healed || times == 0 {
            return;
        }
        if self.network.connected(a, b) {
            self.network.cut(a, b);
            if self.rng.chance(500) {
                self.network.cut(b, a);
            }
        } else {
            self.network.join(a, b);
            self.network.join(b, a);
        }
        let next = self.rng.between(5, 400);
        self.after(next, Event::Flap(a, b, times - 1));
    }

    /// The leader falls, or is cut off from some; soon another one stands, whom only some can hear.
    fn usurp(&mut self, group: GroupId) -> Result<(), Violation> {
        if let Some(leader) = self.leader(group) {
            self.write(leader.store, group, 1)?;
            if self.rng.chance(500) {
                self.power_cut(leader.store, 200)?;
            }
        }
        self.network.mend();
        let ids = self.groups[&group].stores.clone();
        let lonely: Vec<_> = ids.iter().copied().filter(|_| self.rng.chance(350)).collect();
        for a in &lonely {
            for b in &ids {
                self.network.cut(*a, *b);
                self.network.cut(*b, *a);
            }
        }
        let Some(next) = self.rng.pick(&ids) else { return Ok(()) };
        self.act(next, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                core.campaign(now);
            }
        })
    }

    fn partition(&mut self, ids: &[StoreId], group: GroupId) {
        self.trace.count("partitions");
        match self.rng.below(3) {
            // Two halves.
            0 => {
                let half: Vec<_> = ids.iter().copied().filter(|_| self.rng.chance(500)).collect();
                for a in ids {
                    for b in ids {
                        if half.contains(a) != half.contains(b) {
                            self.network.cut(*a, *b);
                        }
                    }
                }
            }
            // Some links, in one direction.
            1 => {
                for a in ids {
                    for b in ids {
                        if self.rng.chance(250) {
                            self.network.cut(*a, *b);
                        }
                    }
                }
            }
            // One store, deaf or dumb or both; often one that leads.
            _ => {
                let leader = self.leader(group).map(|leader| leader.store);
                let Some(one) = leader.filter(|_| self.rng.chance(600)).or_else(|| self.rng.pick(ids)) else {
                    return;
                };
                let (deaf, dumb) = (self.rng.chance(700), self.rng.chance(700));
                for other in ids {
                    if deaf {
                        self.network.cut(*other, one);
                    }
                    if dumb {
                        self.network.cut(one, *other);
                    }
                }
            }
        }
    }

    /// Whoever leads the newest term, as far as anybody believes.
    pub(super) fn leader(&self, group: GroupId) -> Option<ReplicaId> {
        let stores = self.groups[&group].stores.iter();
        let cores = stores.filter_map(|store| self.stores[store].replicas[&group].group.as_ref());
        cores.filter(|core| core.is_leader()).max_by_key(|core| core.term()).map(|core| core.id())
    }

    fn hand_over(&mut self, group: GroupId) -> Result<(), Violation> {
        let Some(leader) = self.leader(group) else { return Ok(()) };
        let to = self.rng.pick(&self.groups[&group].stores).filter(|_| self.rng.chance(700)).map(replica);
        let mut accepted = false;
        self.act(leader.store, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                accepted = core.transfer_leadership(now, to).is_ok();
            }
        })?;
        if accepted {
            self.trace.count("transfers");
        }
        Ok(())
    }

    fn disturb(&mut self, id: StoreId, group: GroupId) -> Result<(), Violation> {
        if self.profile.credits && self.rng.chance(500) {
            let stores = self.groups[&group].stores.clone();
            let bytes = if self.rng.chance(200) { None } else { Some(self.rng.below(2_000)) };
            let Some(peer) = self.rng.pick(&stores).map(replica) else { return Ok(()) };
            return self.act(id, group, None, |host, now| {
                if let Some(core) = &mut host.group {
                    core.send_credit(now, peer, bytes);
                }
            });
        }
        let what = self.rng.below(4);
        let millis = self.rng.between(50, 2_500);
        if what < 3 {
            return self.act(id, group, None, |host, now| {
                if let Some(core) = &mut host.group {
                    match what {
                        0 => core.campaign(now),
                        1 => core.wake(now),
                        _ => core.leader_lost(now),
                    }
                }
            });
        }
        let Some(leader) = self.leader(group) else { return Ok(()) };
        let mut accepted = false;
        self.act(leader.store, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                accepted = core.propose_election_timer(now, EntryId::NONE, millis).is_ok();
            }
        })?;
        if accepted {
            self.trace.count("changes of the timer");
        }
        Ok(())
    }

    fn change_members(&mut self, group: GroupId) -> Result<(), Violation> {
        let Some(leader) = self.leader(group) else { return Ok(()) };
        let mut members = self.groups[&group].stores.clone();
        if self.profile.server_changes {
            let Some(server) = self.rng.pick(&members).map(replica) else { return Ok(()) };
            let add = self.rng.chance(600);
            return self.act(leader.store, group, None, |host, now| {
                if let Some(core) = &mut host.group {
                    let _ = if add { core.add_server(now, server) } else { core.remove_server(now, server) };
                }
            });
        }
        let mut changes = Vec::new();
        for _ in 0..self.rng.between(1, 3) {
            let Some(id) = self.rng.pick(&members) else { break };
            members.retain(|other| *other != id);
            let id = replica(id);
            changes.push(match self.rng.below(5) {
                0 => MemberChange::Remove(id),
                1 => MemberChange::AddLearner(id),
                _ => MemberChange::AddVoter(id),
            });
        }
        let change = match self.rng.below(8) {
            0 => ConfigurationChange::EnterJoint(changes),
            1 | 2 => ConfigurationChange::Leave,
            _ => ConfigurationChange::Change(changes),
        };
        let mut accepted = false;
        self.act(leader.store, group, None, |host, now| {
            if let Some(core) = &mut host.group {
                accepted = core.propose_configuration(now, EntryId::NONE, &change).is_ok();
            }
        })?;
        if accepted {
            self.trace.count("changes of members");
        }
        Ok(())
    }
}
