//! T10: many groups lose their second voter while the third has a queue. Quorum safety overrides pacing, within one cap for all.

use pontoon_flow::{Admitted, Controller, EntryCost, FollowerState, Limits, Mode, PerClass, Pools, check};
use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, StoreId, Term};

const GROUPS: u64 = 200;
const ENTRY_BYTES: u64 = 64 << 10;
const BACKLOG: u64 = 64;
/// What one look at a group sends at most.
const ROUND_ENTRIES: u64 = 4;

const fn replica(store: u64) -> ReplicaId {
    ReplicaId { store: StoreId(store), number: 1 }
}

struct Group {
    controller: Controller,
    sent: u64,
    admitted: u64,
}

#[test]
fn flushing_by_force_has_one_cap_for_all_groups() {
    let limits = Limits { regular_bytes: 1 << 20, elastic_bytes: 1 << 20, forced_bytes: 8 << 20 };
    let mut pools = Pools::new(Mode::All, limits);
    let configuration = Configuration::of_voters((1..=3).map(replica));
    let next = LogIndex(BACKLOG + 1);
    let mut groups: Vec<_> = (1..=GROUPS)
        .map(|id| {
            let mut controller =
                Controller::new(GroupId(id), Term(1), replica(1), next, configuration.clone());
            controller.set_mean_entry_bytes(ENTRY_BYTES);
            Group { controller, sent: 0, admitted: 0 }
        })
        .collect();
    let (mut most, mut forced_ever, mut rounds) = (0, 0, 0);
    while groups.iter().any(|group| group.admitted < BACKLOG) {
        rounds += 1;
        pools.pass(rounds, 0, 0);
        assert!(rounds < 10_000, "the backlog does not end");
        for group in &mut groups {
            let at = FollowerState::Replicate { next: LogIndex(group.sent + 1) };
            // Nobody hears store 2; store 3 has everything to catch up with.
            group.controller.follower(&mut pools, rounds, replica(2), FollowerState::Probe);
            group.controller.follower(&mut pools, rounds, replica(3), at);
            let mut credit = None;
            group.controller.plan(&mut pools, false, |to, bytes| {
                if to == replica(3) {
                    credit = bytes;
                }
            });
            let room = credit.map_or(u64::MAX, |bytes| bytes.div_ceil(ENTRY_BYTES)).min(ROUND_ENTRIES);
            let from = LogIndex(group.sent + 1);
            group.sent = (group.sent + room).min(BACKLOG);
            group.controller.sent(&mut pools, rounds, replica(3), from..LogIndex(group.sent + 1));
            group.controller.settle(&mut pools);
            let view = pools.views().find(|view| view.store == StoreId(3)).expect("it was sent to");
            most = most.max(view.forced_bytes);
            forced_ever = view.counters.forced;
        }
        check(&pools, groups.iter().map(|group| &group.controller)).expect("the invariants hold");
        pools.take_wakes();
        // Store 3 admits a little of a few.
        for group in groups.iter_mut().filter(|group| group.admitted < group.sent).take(20) {
            group.admitted = (group.admitted + 2).min(group.sent);
            let upto = PerClass { regular: LogIndex(group.admitted), elastic: LogIndex(group.admitted) };
            group.controller.admitted(&mut pools, rounds, replica(3), Admitted { term: Term(1), upto });
        }
    }
    assert!(forced_ever > 0, "nothing was forced: the test is about nothing");
    assert!(most <= limits.forced_bytes + ROUND_ENTRIES * ENTRY_BYTES, "forced {most} at once");
    for group in &mut groups {
        group.controller.appended(
            &mut pools,
            &[EntryCost { index: next, class: pontoon_flow::Class::Regular, bytes: 1 }],
        );
        group.controller.settle(&mut pools);
    }
    for group in groups {
        group.controller.close(&mut pools);
    }
    assert!(pools.is_full());
    assert_eq!(pools.unaccounted(), 0);
}
