//! Who is to be told what of a loss: each group once per loss epoch.

use pontoon_raft_core::types::GroupId;

use super::item::{Events, Item};
use crate::beats::Beat;
use crate::groups::GroupSet;

#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Groups already reported in this loss epoch.
    reported: GroupSet,
    events: Events,
    /// Groups with appends in frames up to `older_until`, and after it; both not known to have arrived.
    older: GroupSet,
    older_until: u64,
    newer: GroupSet,
}

impl Losses {
    /// From here on every group may be reported once more. A full queue has to be sent whole, or a stream to be
    /// opened, between two reports of one group: that is what paces them.
    pub(super) fn new_epoch(&mut self) {
        self.reported = GroupSet::default();
    }

    /// A stream begins; nothing is under way on it.
    pub(super) fn new_stream(&mut self) {
        self.older_until = 0;
    }

    /// Appends of these groups are in the newest frame.
    pub(super) fn under_way(&mut self, groups: impl Iterator<Item = GroupId>) {
        self.newer.extend(groups);
    }

    /// The peer has taken `frames` of the `sent` ones.
    pub(super) fn acknowledged(&mut self, frames: u64, sent: u64) {
        if frames >= self.older_until {
            self.older = std::mem::take(&mut self.newer);
            self.older_until = sent;
        }
        if frames >= sent {
            self.older = GroupSet::default();
        }
    }

    /// The stream broke: what was under way may not have arrived.
    pub(super) fn lose_under_way(&mut self) {
        let older = std::mem::take(&mut self.older);
        let newer = std::mem::take(&mut self.newer);
        for group in older.into_iter().chain(newer) {
            self.lose(group);
        }
    }

    pub(super) fn lose(&mut self, group: GroupId) {
        if self.reported.insert(group) {
            self.events.unreachable.push(group);
        }
    }

    fn lose_all(&mut self, beats: &[Beat]) {
        for beat in beats {
            self.lose(beat.group);
        }
    }

    /// An item is refused. Whoever pushed a proposal is told by the result.
    pub(super) fn refuse(&mut self, item: Item) {
        match item {
            Item::Raft(group, _) => self.lose(group),
            Item::Beats(beats) => self.lose_all(&beats),
            // What is said of reports and replies in `drop` holds here too.
            Item::Proposal(_) | Item::Reply(_) | Item::Report(_) => {}
        }
    }

    /// An item that had been taken in will not be sent.
    pub(super) fn drop(&mut self, item: Item) {
        match item {
            // A question that is lost says nothing of what it asks about.
            Item::Proposal(p) if p.asks => {}
            Item::Proposal(p) => self.events.not_sent.push((p.group, p.id, p.term, p.at.number)),
            // A reply's proposer waits for the commit or its own deadline, as for any reply lost on the way. A report is
            // told again when the leader asks.
            item => self.refuse(item),
        }
    }

    /// Whether there is something to tell.
    pub(super) fn any(&self) -> bool {
        !self.events.unreachable.is_empty() || !self.events.not_sent.is_empty()
    }

    pub(super) fn events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }
}
