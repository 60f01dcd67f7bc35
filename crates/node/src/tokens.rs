//! Tokens that come back to a shard, and on to the groups that waited for them, which may be another shard's.

use pontoon_flow::Mode;
use pontoon_raft_core::types::GroupId;
use pontoon_transport::Report;

use crate::inbound::shard_of;
use crate::shard::{Input, Shard, mark};

impl Shard {
    /// Followers elsewhere say what they have admitted.
    pub(crate) fn reports(&mut self, now: u64, reports: Vec<Report>) {
        let mut pools = self.flow.lock();
        for report in reports {
            if let Some(host) = self.groups.get_mut(&report.group)
                && host.core.id() == report.to
            {
                host.flow.reported(&mut pools, now, report.from, report.admitted);
            }
        }
    }

    /// Tokens have come for a group of this shard.
    pub(crate) fn tokens_for(&mut self, group: GroupId) {
        match self.groups.get_mut(&group) {
            Some(host) => mark(&mut self.dirty, host),
            None => self.flow.lock().forget(group),
        }
    }

    /// Hands tokens on to the groups that waited for them.
    pub(crate) fn hand_on_tokens(&mut self, now: u64) {
        if self.flow.mode() != Mode::Off {
            self.wakes.append(&mut self.flow.pass(now));
        }
        let shards = self.shards.len();
        for group in std::mem::take(&mut self.wakes) {
            let shard = &self.shards[shard_of(group, shards)];
            if shard.same_channel(&self.own_inbox) {
                self.tokens_for(group);
            } else {
                let _ = shard.send(Input::TokensFor { groups: vec![group] });
            }
        }
    }
}
