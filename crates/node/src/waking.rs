//! Groups that something of their store concerns, told a few at a time.
//!
//! When a store is lost, or comes back, or its own disk hangs, that concerns thousands of groups at once, most of them
//! silent. Told in one go they would all stand for election, or all probe, in the same moment, and whoever has work to do
//! would wait behind them. So each shard tells [`GROUPS_PER_STEP`] of them every [`STEP_MS`] milliseconds: first those that are
//! awake, then the silent ones. A group that somebody asks for something is told at once (`Shard::finish_round`), so nobody
//! waits for its turn.

use std::collections::{HashMap, VecDeque};

use pontoon_raft_core::types::{GroupId, StoreId};

use crate::group_host::GroupHost;
use crate::hand_over::DiskHealth;
use crate::shard::{Input, Shard, mark, peers_on};

/// How many groups are told at a time. With [`STEP_MS`] that is 6,400 a second, at some ten microseconds each.
const GROUPS_PER_STEP: usize = 64;
/// From one time to the next.
const STEP_MS: u64 = 10;

/// What a group is to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// The link to the leader's store is down; `refused`: its process is gone.
    LeaderLost { store: StoreId, refused: bool },
    /// The link to a follower's store stands again: what was under way on the old one does not arrive any more.
    LinkUp { store: StoreId },
    /// This store's disk hangs, and the group is led from here.
    DiskHangs,
}

/// Who is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Waking {
    awake: VecDeque<GroupId>,
    silent: VecDeque<GroupId>,
    /// What waits for whom. A group that was told out of turn is not here any more, though it may still be in a queue.
    news: HashMap<GroupId, Vec<News>>,
    /// When the next ones are told.
    at: u64,
    /// The disk hung when it was last looked at; see [`Shard::look_at_disk`].
    hangs: bool,
    /// This shard was the one that found out.
    found_out: bool,
}

impl Waking {
    /// When [`Shard::wake_some`] has something to do.
    pub(crate) fn next(&self) -> Option<u64> {
        (!self.news.is_empty()).then_some(self.at)
    }

    fn add(&mut self, group: GroupId, silent: bool, news: News) {
        let waiting = self.news.entry(group).or_default();
        if waiting.is_empty() {
            if silent { &mut self.silent } else { &mut self.awake }.push_back(group);
        }
        // A link that flaps says the same again.
        if !waiting.contains(&news) {
            waiting.push(news);
        }
    }

    /// The groups that are to be looked at now.
    fn step(&mut self, now: u64) -> Vec<GroupId> {
        let mut groups = Vec::new();
        if self.next().is_none_or(|at| now < at) {
            return groups;
        }
        self.at = now + STEP_MS;
        while groups.len() < GROUPS_PER_STEP {
            let Some(group) = self.awake.pop_front().or_else(|| self.silent.pop_front()) else { break };
            if self.news.contains_key(&group) {
                groups.push(group);
            }
        }
        groups
    }

    /// What waits for a group: it is told now.
    fn take(&mut self, group: GroupId) -> Vec<News> {
        let news = self.news.remove(&group).unwrap_or_default();
        if self.news.is_empty() {
            self.awake = VecDeque::new();
            self.silent = VecDeque::new();
        }
        news
    }

    /// Tells `host` what waits for it, if anything does.
    pub(crate) fn tell(&mut self, host: &mut GroupHost, now: u64) {
        if self.news.is_empty() {
            return;
        }
        for news in self.take(host.shared.id) {
            match news {
                News::LeaderLost { store, refused } => {
                    if host.core.leader().is_some_and(|leader| leader.store == store) {
                        lose_leader(host, now, refused);
                    }
                }
                News::LinkUp { store } => {
                    if host.core.is_leader() {
                        for peer in peers_on(host, store) {
                            host.core.link_established(now, peer);
                        }
                    }
                }
                // Its next heartbeat, which is due at once, finds out about the disk (`hand_over::tick`).
                News::DiskHangs => {
                    if host.core.is_leader() {
                        host.core.wake(now);
                    }
                }
            }
        }
    }
}

fn lose_leader(host: &mut GroupHost, now: u64, refused: bool) {
    if refused {
        host.core.leader_lost(now);
    } else {
        host.core.wake(now);
    }
}

impl Shard {
    pub(crate) fn link_down(&mut self, now: u64, store: StoreId, refused: bool) {
        for host in self.groups.values_mut() {
            let peers = if host.core.is_leader() { peers_on(host, store) } else { Vec::new() };
            host.flow.link_lost(&self.flow, now, &peers);
            if host.core.leader().is_none_or(|leader| leader.store != store) {
                continue;
            }
            if host.core.is_quiesced() {
                self.waking.add(host.shared.id, true, News::LeaderLost { store, refused });
            } else {
                // Its timer runs anyway; the core spreads the elections.
                lose_leader(host, now, refused);
                mark(&mut self.dirty, host);
            }
        }
    }

    pub(crate) fn link_up(&mut self, store: StoreId) {
        for host in self.groups.values() {
            if host.core.is_leader() && !peers_on(host, store).is_empty() {
                self.waking.add(host.shared.id, host.core.is_quiesced(), News::LinkUp { store });
            }
        }
    }

    /// Tells the next groups.
    pub(crate) fn wake_some(&mut self, now: u64) {
        for group in self.waking.step(now) {
            match self.groups.get_mut(&group) {
                // The round tells it.
                Some(host) => mark(&mut self.dirty, host),
                None => drop(self.waking.take(group)),
            }
        }
    }

    /// Notes when the disk begins to hang, and when it is back. A store whose disk hangs should lead nothing, silent groups
    /// neither: their next command would have to wait until they find out.
    ///
    /// Whichever shard sees it tells the others, which may be asleep.
    pub(crate) fn look_at_disk(&mut self, disk: DiskHealth) {
        let hangs = disk.pending_ms > self.config.election_timer_ms;
        if std::mem::replace(&mut self.waking.hangs, hangs) == hangs {
            return;
        }
        if hangs {
            self.waking.found_out = true;
            tracing::warn!(pending_ms = disk.pending_ms, "the disk hangs: other stores should lead");
            for shard in self.shards.iter() {
                let _ = shard.send(Input::DiskHangs);
            }
        } else if std::mem::take(&mut self.waking.found_out) {
            tracing::info!("the disk syncs again");
        }
    }

    /// The disk hangs: the groups that are led from here should go elsewhere.
    pub(crate) fn disk_hangs(&mut self) {
        self.waking.hangs = true;
        for host in self.groups.values() {
            // Who is awake finds out by itself.
            if host.core.is_leader() && host.core.is_quiesced() {
                self.waking.add(host.shared.id, true, News::DiskHangs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_groups_wake_a_few_at_a_time_and_each_hears_everything_once() {
        let mut waking = Waking::default();
        let down = News::LeaderLost { store: StoreId(1), refused: false };
        let refused = News::LeaderLost { store: StoreId(1), refused: true };
        for group in 0..1000 {
            waking.add(GroupId(group), true, down);
            waking.add(GroupId(group), true, refused);
            waking.add(GroupId(group), true, down);
        }
        waking.add(GroupId(5000), false, News::LinkUp { store: StoreId(2) });
        // Somebody asks this one for something.
        assert_eq!(waking.take(GroupId(900)), [down, refused]);
        let (mut now, mut told, mut steps) = (0, Vec::new(), 0);
        while let Some(at) = waking.next() {
            assert!(at <= now + STEP_MS);
            now = now.max(at);
            let groups = waking.step(now);
            assert!(!groups.is_empty() && groups.len() <= GROUPS_PER_STEP);
            assert!(waking.step(now).is_empty(), "not again before the next step");
            for group in groups {
                let news = waking.take(group);
                assert_eq!(news.len(), if group.0 == 5000 { 1 } else { 2 });
                told.push(group.0);
            }
            steps += 1;
        }
        assert_eq!(told[0], 5000, "who is awake comes first");
        assert_eq!(told.len(), 1000);
        assert_eq!(steps, 1000_usize.div_ceil(GROUPS_PER_STEP));
        assert_eq!(now, (steps as u64 - 1) * STEP_MS);
    }
}
