//! Leaders are spread: a store that leads many more groups than another hands one after the other to it. Small differences are
//! left alone, so that an operator who moves a leadership is not contradicted.

use std::collections::BTreeMap;

use pontoon_node::Node;
use pontoon_node::meta::{META_GROUP, Registry, StoreRecord};
use pontoon_raft_core::types::{GroupId, StoreId};

use crate::reach::reached;

/// A difference of so many leaderships is nobody's concern ...
const DIFFERENCE_MIN: usize = 8;
/// ... and for many groups neither is this part of them.
const DIFFERENCE_PART: usize = 4;
/// Leaderships that one step hands over: each costs its group a moment.
const STEP_MAX: usize = 4;
/// So many looks in a row must find the difference: after a restart leaders move by themselves.
const LOOKS: u32 = 3;

/// What a store remembers between two looks.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    looks: u32,
}

impl Spread {
    /// There is something more urgent.
    pub(crate) fn wait(&mut self) {
        self.looks = 0;
    }

    /// Looks, and hands some leaderships over if that makes them more even.
    pub(crate) async fn step(&mut self, node: &Node, registry: &Registry) {
        // One that does not answer would cost each of these groups an election timer in which it takes no commands.
        let reached = reached(&node.transport().links());
        let takes = |s: &&StoreRecord| {
            s.stays() && !s.learner && (s.store == node.store().0 || reached.contains(&s.store))
        };
        let stores: Vec<_> = registry.stores.values().filter(takes).map(|s| s.store).collect();
        let leader = |group: GroupId| node.leadership(group).and_then(|(_, leader)| leader).map(|s| s.0);
        let groups: Vec<_> = registry
            .groups
            .values()
            .filter(|g| g.id() != META_GROUP)
            .map(|g| (g.id(), leader(g.id()), g.voters().map(|r| r.store).collect()))
            .collect();
        let moves = choose(node.store().0, &stores, &groups);
        self.looks = if moves.is_empty() { 0 } else { self.looks + 1 };
        if self.looks < LOOKS {
            return;
        }
        for (group, to) in moves {
            if let Err(error) = node.transfer_leadership(group, Some(StoreId(to))).await {
                tracing::debug!(%group, error, "leadership stays");
            }
        }
    }
}

/// Which of `own`'s leaderships should go where. `groups`: the leader, if known here, and the voters of each.
fn choose(own: u64, stores: &[u64], groups: &[(GroupId, Option<u64>, Vec<u64>)]) -> Vec<(GroupId, u64)> {
    let mut led: BTreeMap<u64, usize> = stores.iter().map(|s| (*s, 0)).collect();
    for (_, leader, _) in groups {
        if let Some(n) = leader.and_then(|leader| led.get_mut(&leader)) {
            *n += 1;
        }
    }
    let mut moves = Vec::new();
    for (group, leader, voters) in groups {
        if *leader != Some(own) || moves.len() >= STEP_MAX {
            continue;
        }
        let Some(&mine) = led.get(&own) else { return moves };
        let least = voters.iter().filter_map(|s| Some((*led.get(s)?, *s))).min();
        if let Some((theirs, to)) = least
            && mine - theirs.min(mine) > DIFFERENCE_MIN.max(mine / DIFFERENCE_PART)
        {
            moves.push((*group, to));
            *led.entry(own).or_default() -= 1;
            *led.entry(to).or_default() += 1;
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets every store choose until nobody has anything to move.
    fn settle(stores: &[u64], groups: &mut [(GroupId, Option<u64>, Vec<u64>)]) -> BTreeMap<u64, usize> {
        for _ in 0..10_000 {
            let mut moved = false;
            for own in stores {
                for (group, to) in choose(*own, stores, groups) {
                    moved = true;
                    let found = groups.iter_mut().find(|g| g.0 == group).expect("it is there");
                    assert!(found.1 == Some(*own) && found.2.contains(&to));
                    found.1 = Some(to);
                }
            }
            if !moved {
                let mut led: BTreeMap<_, _> = stores.iter().map(|s| (*s, 0)).collect();
                for (_, leader, _) in groups.iter() {
                    *led.entry(leader.expect("led")).or_default() += 1;
                }
                return led;
            }
        }
        panic!("it goes on for ever");
    }

    #[test]
    fn a_store_that_leads_nothing_gets_its_share() {
        let mut groups: Vec<_> = (0..300).map(|i| (GroupId(i), Some(1 + i % 2), vec![1, 2, 3])).collect();
        let led = settle(&[1, 2, 3], &mut groups);
        assert!(led.values().all(|n| (70..=130).contains(n)), "{led:?}");
    }

    #[test]
    fn a_few_leaderships_stay_where_an_operator_has_put_them() {
        let groups: Vec<_> = (0..8).map(|i| (GroupId(i), Some(1), vec![1, 2, 3])).collect();
        assert_eq!(choose(1, &[1, 2, 3], &groups), vec![]);
    }

    #[test]
    fn only_own_leaderships_go_and_only_to_voters_that_are_there() {
        let mut groups: Vec<_> = (0..100).map(|i| (GroupId(i), Some(1), vec![1, 2])).collect();
        groups.push((GroupId(500), Some(2), vec![1, 2, 3]));
        let moves = choose(1, &[1, 3], &groups);
        assert_eq!(moves, vec![], "store 2 is away, store 3 has no replica");
        let moves = choose(1, &[1, 2, 3], &groups);
        assert!(moves.len() == STEP_MAX && moves.iter().all(|(g, to)| *to == 2 && g.0 < 100), "{moves:?}");
        assert_eq!(choose(2, &[1, 2, 3], &groups), vec![]);
    }
}
