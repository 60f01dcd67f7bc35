//! When which group wants to be ticked. Groups without a deadline cost nothing here.

use std::collections::{BTreeSet, HashMap};

use pontoon_raft_core::types::GroupId;

/// The deadlines of one shard's groups, in milliseconds of the node's clock.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(u64, GroupId)>,
    of_group: HashMap<GroupId, u64>,
}

impl Timers {
    /// Sets or clears a group's deadline.
    pub(crate) fn set(&mut self, group: GroupId, deadline: Option<u64>) {
        let old = match deadline {
            Some(at) => {
                let old = self.of_group.insert(group, at);
                if old == Some(at) {
                    return;
                }
                self.by_time.insert((at, group));
                old
            }
            None => self.of_group.remove(&group),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, group));
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<u64> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes one group whose deadline is not after `now`.
    pub(crate) fn pop_expired(&mut self, now: u64) -> Option<GroupId> {
        let &(at, group) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.of_group.remove(&group);
        Some(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_one_deadline_and_the_earliest_comes_first() {
        let mut timers = Timers::default();
        timers.set(GroupId(1), Some(30));
        timers.set(GroupId(2), Some(20));
        timers.set(GroupId(1), Some(10));
        assert_eq!(timers.next(), Some(10));
        assert_eq!(timers.pop_expired(9), None);
        assert_eq!(timers.pop_expired(15), Some(GroupId(1)));
        assert_eq!(timers.pop_expired(15), None);
        timers.set(GroupId(2), None);
        assert_eq!(timers.next(), None);
    }
}
