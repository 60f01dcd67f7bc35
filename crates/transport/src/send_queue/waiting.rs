//! What waits, and whose turn it is.
//!
//! Each group's items keep their order. Among groups there are rounds: a round is what waits when it begins, and a group that
//! has had its share of a round ([`Sent::later`](super::Sent)), or one of whose large messages is under way, waits with all
//! that follows, while the others go on. So a group that floods a lane delays each other group by one share, and not by all
//! that it has.

use std::collections::VecDeque;

use pontoon_raft_core::types::GroupId;

use super::item::{Batch, Item};
use crate::groups::{GroupMap, GroupSet};

/// Items handed out at a time while a frame is built; the rest of the frame is fetched in further helpings.
pub(crate) const HELPING: usize = 64;

/// Above this capacity an emptied queue gives its memory back, so that an idle destination holds next to nothing.
pub(crate) const KEEP_CAPACITY: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    items: VecDeque<Item>,
    /// Of `items`, those that were there when the round began.
    in_round: usize,
    round: u64,
    /// For later rounds, in order.
    late: VecDeque<(GroupId, Item)>,
    /// How many of `late` each group has: whatever else it has must wait behind them.
    late_of: GroupMap<usize>,
    /// Groups whose items wait for something else than the next round.
    stopped: GroupSet,
    /// The charges of all of them.
    bytes: usize,
    /// The charges of items of which a frame is being built; what finds no room in it comes back.
    building: usize,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.items.len() + self.late.len()
    }

    /// The charges of what waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The charges of what waits and of what a frame is being built.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.saturating_add(self.building)
    }

    pub(super) fn push(&mut self, item: Item) {
        self.bytes += item.charge_bytes();
        self.items.push_back(item);
    }

    /// Some of what waits. Empty if all that waits is stopped.
    pub(super) fn take(&mut self) -> Batch {
        let mut items = Vec::new();
        // Twice at most: in the second round of the two everybody has a turn who is not stopped.
        for _ in 0..2 {
            // Where nobody waits for the next round it may begin at any time.
            if self.in_round == 0 || (self.in_round < HELPING && self.late.is_empty()) {
                self.begin_round();
            }
            self.take_round(&mut items);
            if !items.is_empty() {
                break;
            }
        }
        let charges = items.iter().map(Item::charge_bytes).sum::<usize>();
        self.building += charges;
        self.bytes -= charges;
        if self.items.is_empty() && self.items.capacity() > KEEP_CAPACITY {
            self.items = VecDeque::new();
        }
        Batch { items, round: self.round }
    }

    fn take_round(&mut self, items: &mut Vec<Item>) {
        let n = self.in_round.min(HELPING);
        if self.late.is_empty() && self.stopped.is_empty() {
            items.extend(self.items.drain(..n));
            self.in_round -= n;
            return;
        }
        while self.in_round > 0 && items.len() < HELPING {
            let Some(item) = self.items.pop_front() else { break };
            self.in_round -= 1;
            match item.group().filter(|g| self.late_of.contains_key(g) || self.stopped.contains(g)) {
                Some(group) => self.postpone(group, item),
                None => items.push(item),
            }
        }
    }

    fn begin_round(&mut self) {
        self.round += 1;
        let mut stay = VecDeque::new();
        let mut first = Vec::new();
        for (group, item) in std::mem::take(&mut self.late) {
            if self.stopped.contains(&group) {
                stay.push_back((group, item));
            } else {
                self.late_of.remove(&group);
                first.push(item);
            }
        }
        self.late = stay;
        // Before what came after them.
        for item in first.into_iter().rev() {
            self.items.push_front(item);
        }
        self.in_round = self.items.len();
    }

    fn postpone(&mut self, group: GroupId, item: Item) {
        *self.late_of.entry(group).or_default() += 1;
        self.late.push_back((group, item));
    }

    /// These of the items that were taken are for the next round.
    pub(super) fn postpone_all(&mut self, later: impl Iterator<Item = Item>) {
        for item in later {
            let charge = item.charge_bytes();
            self.building = self.building.saturating_sub(charge);
            self.bytes += charge;
            match item.group() {
                Some(group) => self.postpone(group, item),
                None => self.items.push_back(item),
            }
        }
    }

    /// A frame was built of what was taken: these items come back, to be first, and those in the next round. Returns how many
    /// are to be first.
    pub(super) fn built(
        &mut self,
        first: impl DoubleEndedIterator<Item = Item>,
        later: impl Iterator<Item = Item>,
    ) -> usize {
        self.building = 0;
        let mut back = 0;
        for item in first.rev() {
            self.bytes += item.charge_bytes();
            self.items.push_front(item);
            back += 1;
        }
        self.in_round += back;
        self.postpone_all(later);
        back
    }

    /// What `group` has, and what is pushed for it, waits until [`Self::go_on`].
    pub(super) fn stop(&mut self, group: GroupId) {
        self.stopped.insert(group);
    }

    /// `group` has its turn again, from the next round on.
    pub(super) fn go_on(&mut self, group: GroupId) {
        self.stopped.remove(&group);
    }

    /// Everything, in the order of each group, of a queue that begins anew.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Item> + use<> {
        let Self { items, late, .. } = std::mem::take(self);
        late.into_iter().map(|(_, item)| item).chain(items)
    }
}

#[cfg(test)]
mod tests;
