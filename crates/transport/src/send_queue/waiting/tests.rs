use std::collections::HashSet;

use bytes::Bytes;
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{EntryId, Term};
use proptest::prelude::*;

use super::*;
use crate::api::RelayedProposal;

fn item(group: u64, number: u128) -> Item {
    Item::Proposal(RelayedProposal {
        group: GroupId(group),
        term: Term(1),
        id: EntryId(number),
        at: RelayNumber { number: 1, floor: 1 },
        asks: false,
        class: pontoon_flow::Class::Regular,
        data: Bytes::new(),
    })
}

fn name(item: &Item) -> (u64, u128) {
    match item {
        Item::Proposal(p) => (p.group.0, p.id.0),
        _ => panic!("only proposals here"),
    }
}

/// One group has a thousand times as much as another one: they take turns.
#[test]
fn who_has_had_its_share_waits_for_the_next_round() {
    let mut waiting = Waiting::default();
    for number in 0..1000 {
        waiting.push(item(1, number));
    }
    waiting.push(item(2, 0));
    let mut before = 0;
    loop {
        let batch = waiting.take();
        assert!(!batch.items.is_empty());
        let mut items = batch.items.into_iter().peekable();
        if items.peek().map(name).is_some_and(|name| name.0 == 2) {
            break;
        }
        // One of the first group is sent in each round.
        before += 1;
        let later: Vec<Item> = items.skip(1).collect();
        waiting.built([].into_iter(), later.into_iter());
    }
    // Only as much as was in the first helping was looked at before.
    assert!(before <= 16, "{before}");
}

#[test]
fn a_stopped_group_waits_and_keeps_its_order() {
    let mut waiting = Waiting::default();
    for number in 0..3 {
        waiting.push(item(1, number));
        waiting.push(item(2, number));
    }
    waiting.stop(GroupId(1));
    let take = |waiting: &mut Waiting| {
        let names: Vec<_> = waiting.take().items.iter().map(name).collect();
        waiting.built([].into_iter(), [].into_iter());
        names
    };
    assert_eq!(take(&mut waiting), [(2, 0), (2, 1), (2, 2)]);
    waiting.push(item(1, 3));
    assert_eq!(take(&mut waiting), []);
    assert_eq!(waiting.len(), 4);
    waiting.go_on(GroupId(1));
    waiting.push(item(1, 4));
    assert_eq!(take(&mut waiting), [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]);
    assert_eq!((waiting.len(), waiting.held_bytes()), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64),
    /// Takes a helping, of which so many are sent, these groups have had their turn, and the rest has no room.
    Frame {
        sent: usize,
        over: u64,
    },
    Stop(u64),
    GoOn(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4u64).prop_map(Step::Push),
        4 => (0..100usize, 0..16u64).prop_map(|(sent, over)| Step::Frame { sent, over }),
        1 => (0..4u64).prop_map(Step::Stop),
        1 => (0..4u64).prop_map(Step::GoOn),
    ]
}

proptest! {
    /// Whatever happens: nothing is lost or doubled, each group's order holds, and a stopped group sends nothing.
    #[test]
    fn each_group_keeps_its_order(steps in prop::collection::vec(step(), 1..400)) {
        let mut waiting = Waiting::default();
        let (mut pushed, mut sent) = ([0u128; 4], [0u128; 4]);
        let mut stopped = HashSet::new();
        let mut had = (0, HashSet::new());
        let mut drain = vec![Step::GoOn(0), Step::GoOn(1), Step::GoOn(2), Step::GoOn(3)];
        drain.extend(vec![Step::Frame { sent: 1000, over: 0 }; 40]);
        for step in steps.into_iter().chain(drain) {
            match step {
                Step::Push(group) => {
                    waiting.push(item(group, pushed[group as usize]));
                    pushed[group as usize] += 1;
                }
                Step::Frame { sent: n, over } => {
                    let batch = waiting.take();
                    if had.0 != batch.round {
                        had = (batch.round, HashSet::new());
                    }
                    let mut items = batch.items.into_iter();
                    let mut later = Vec::new();
                    for item in items.by_ref().take(n) {
                        let (group, number) = name(&item);
                        prop_assert!(!stopped.contains(&group));
                        if over & (1 << group) != 0 {
                            had.1.insert(group);
                        }
                        if had.1.contains(&group) {
                            later.push(item);
                        } else {
                            prop_assert_eq!(number, sent[group as usize]);
                            sent[group as usize] += 1;
                        }
                    }
                    waiting.built(items, later.into_iter());
                }
                Step::Stop(group) => {
                    stopped.insert(group);
                    waiting.stop(GroupId(group));
                }
                Step::GoOn(group) => {
                    stopped.remove(&group);
                    waiting.go_on(GroupId(group));
                }
            }
            let held: u128 = pushed.iter().zip(&sent).map(|(pushed, sent)| pushed - sent).sum();
            prop_assert_eq!(waiting.len() as u128, held);
            prop_assert_eq!(waiting.bytes(), waiting.held_bytes());
        }
        prop_assert_eq!(pushed, sent);
        prop_assert_eq!(waiting.held_bytes(), 0);
    }
}
