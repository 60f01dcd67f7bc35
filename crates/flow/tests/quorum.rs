//! T7 and T22 on a virtual clock: both followers of many groups take less than is offered; and a replica with a queue is removed.

use std::collections::VecDeque;

use pontoon_flow::{
    Admitted, Class, Controller, EntryCost, FollowerState, Limits, Mode, PerClass, Pools, Verdict, check,
};
use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, StoreId, Term};

const GROUPS: u64 = 60;
const ENTRY_BYTES: u64 = 4 << 10;
const STEP_MS: u64 = 5;
const FOLLOWERS: [ReplicaId; 2] = [replica(2), replica(3)];

const fn replica(store: u64) -> ReplicaId {
    ReplicaId { store: StoreId(store), number: 1 }
}

struct Group {
    controller: Controller,
    waiting: u64,
    last: u64,
    /// What each follower was sent, and has.
    sent: [u64; 2],
    matched: [u64; 2],
}

/// What two stores have received and not processed, first come, first served: a group, and up to where.
type Backlog = [VecDeque<(usize, u64)>; 2];

impl Group {
    fn new(id: u64, pools: &mut Pools) -> Self {
        let configuration = Configuration::of_voters([replica(1), FOLLOWERS[0], FOLLOWERS[1]]);
        let mut controller = Controller::new(GroupId(id), Term(1), replica(1), LogIndex(1), configuration);
        for follower in FOLLOWERS {
            controller.follower(pools, 0, follower, FollowerState::Replicate { next: LogIndex(1) });
        }
        Self { controller, waiting: 0, last: 0, sent: [0; 2], matched: [0; 2] }
    }

    fn look(&mut self, pools: &mut Pools, now: u64, at: usize, backlog: &mut Backlog) {
        let mut begins = 0;
        if self.waiting > 0
            && let Verdict::Go { bytes } = self.controller.evaluate(pools, Class::Regular)
        {
            begins = self.waiting.min(bytes.div_ceil(ENTRY_BYTES));
            self.waiting -= begins;
        }
        let mut credits = [None; 2];
        self.controller.plan(pools, false, |to, credit| {
            let n = FOLLOWERS.iter().position(|follower| *follower == to).expect("one of two");
            credits[n] = credit;
        });
        let fresh: Vec<_> = (self.last + 1..=self.last + begins)
            .map(|index| EntryCost { index: LogIndex(index), class: Class::Regular, bytes: ENTRY_BYTES })
            .collect();
        self.controller.appended(pools, &fresh);
        self.last += begins;
        for (n, credit) in credits.into_iter().enumerate() {
            let room = credit.map_or(u64::MAX, |bytes| bytes.div_ceil(ENTRY_BYTES));
            let upto = self.sent[n].saturating_add(room).min(self.last);
            if upto > self.sent[n] {
                let range = LogIndex(self.sent[n] + 1)..LogIndex(upto + 1);
                self.controller.sent(pools, now, FOLLOWERS[n], range);
                self.sent[n] = upto;
                backlog[n].push_back((at, upto));
            }
        }
        self.controller.settle(pools);
    }

    /// What the leader and one more have.
    fn committed(&self) -> u64 {
        self.matched[0].max(self.matched[1])
    }
}

/// A store processes what it can in one step, and says what it has admitted.
fn work(groups: &mut [Group], pools: &mut Pools, now: u64, n: usize, backlog: &mut Backlog, left: &mut u64) {
    while let Some((at, upto)) = backlog[n].front().copied() {
        let group = &mut groups[at];
        let entries = (upto - group.matched[n]).min(*left / ENTRY_BYTES);
        if entries == 0 && upto > group.matched[n] {
            return;
        }
        *left -= entries * ENTRY_BYTES;
        group.matched[n] += entries;
        let index = LogIndex(group.matched[n]);
        let upto_both = PerClass { regular: index, elastic: index };
        group.controller.admitted(pools, now, FOLLOWERS[n], Admitted { term: Term(1), upto: upto_both });
        if group.matched[n] == upto {
            backlog[n].pop_front();
        }
    }
}

/// T7: commits go at the pace of what the quorum takes, what is too much waits before it begins, and groups are served alike.
#[test]
fn a_quorum_that_is_slow_sets_the_pace_and_every_group_gets_its_share() {
    slow_quorum(8 << 20, 20_000);
}

/// The same where the limit of a pool is many seconds of data.
#[test]
fn what_a_very_slow_quorum_has_under_way_is_not_old() {
    slow_quorum(1 << 20, 60_000);
}

/// Each of the two followers' stores takes `rate` bytes a second.
fn slow_quorum(rate: u64, length_ms: u64) {
    let limits = Limits::default();
    let mut pools = Pools::new(Mode::All, limits);
    let mut groups: Vec<_> = (1..=GROUPS).map(|id| Group::new(id, &mut pools)).collect();
    let mut backlog = Backlog::default();
    let (mut left, mut under_way, mut at_half, mut late) = ([0; 2], 0, Vec::new(), 0);
    let steps = length_ms / STEP_MS;
    for step in 0..steps {
        let now = step * STEP_MS;
        // Four times of what they take is offered. A bounded number waits, as with clients that hear that it is too much.
        for group in &mut groups {
            group.waiting =
                (group.waiting + (4 * rate * STEP_MS / 1000 / ENTRY_BYTES).div_ceil(GROUPS)).min(100);
        }
        pools.pass(now, 10, 20_000);
        let mut looks: Vec<u64> = pools.take_wakes().into_iter().map(|group| group.0).collect();
        looks.extend(1..=GROUPS);
        for id in looks {
            let at = usize::try_from(id - 1).expect("small");
            groups[at].look(&mut pools, now, at, &mut backlog);
        }
        for (n, left) in left.iter_mut().enumerate() {
            *left = (*left + rate * STEP_MS / 1000).min(rate / 10);
            work(&mut groups, &mut pools, now, n, &mut backlog, left);
        }
        check(&pools, groups.iter().map(|group| &group.controller)).expect("the invariants hold");
        let not_processed =
            [0, 1].map(|n| groups.iter().map(|g| g.sent[n] - g.matched[n]).sum::<u64>() * ENTRY_BYTES);
        under_way = under_way.max(not_processed[0] + not_processed[1]);
        if step == steps / 2 {
            at_half = groups.iter().map(Group::committed).collect();
        } else if step > steps / 2 {
            late = late.max(not_processed[0]).max(not_processed[1]);
        }
    }
    let done: Vec<u64> =
        groups.iter().zip(&at_half).map(|(group, before)| group.committed() - before).collect();
    let committed = done.iter().sum::<u64>() * ENTRY_BYTES * 2_000 / length_ms;
    assert!(
        committed > rate * 85 / 100 && committed < rate * 115 / 100,
        "{committed} of {rate} bytes a second"
    );
    let (sum, squares) = done.iter().fold((0.0, 0.0), |(s, q), n| (s + *n as f64, q + (*n as f64).powi(2)));
    let fairness = sum * sum / (done.len() as f64 * squares);
    assert!(fairness > 0.9, "Jain's index is {fairness}: {done:?}");
    // To each of the two: the tokens, a round of debt of one group, and what is forced with another round.
    let round = 100 * ENTRY_BYTES;
    let most = 2 * (limits.regular_bytes + limits.forced_bytes + 2 * round);
    assert!(under_way <= most, "{under_way} bytes are under way");
    // Once the stores are known to be slow: less than a second of what they take, and a round.
    assert!(late <= rate + round, "{late} bytes are under way to a store that takes {rate} a second");
}

/// T22: what is held for a replica comes back with the configuration in which it is no member any more, queue or not.
#[test]
fn a_replica_that_is_removed_holds_nothing() {
    let limits = Limits { regular_bytes: 1 << 20, elastic_bytes: 1 << 20, forced_bytes: 1 << 20 };
    let mut pools = Pools::new(Mode::All, limits);
    let mut group = Group::new(1, &mut pools);
    let mut backlog = Backlog::default();
    // The second follower admits nothing: its tokens are used up, and a queue forms.
    for round in 0..20 {
        group.waiting = 32;
        group.look(&mut pools, round, 0, &mut backlog);
        backlog[1].clear();
        work(std::slice::from_mut(&mut group), &mut pools, round, 0, &mut backlog, &mut u64::MAX.clone());
    }
    let of =
        |pools: &Pools| pools.views().find(|view| view.store == FOLLOWERS[1].store).expect("it was sent to");
    let before = of(&pools);
    assert!(before.send_available.regular <= 0 && before.eval_available.elastic < 0, "{before:?}");
    assert_eq!(before.waiting_queues, 1);
    let without = Configuration::of_voters([replica(1), FOLLOWERS[0]]);
    group.controller.set_configuration(&mut pools, &without);
    let after = of(&pools);
    let full = PerClass { regular: 1 << 20, elastic: 1 << 20 };
    assert_eq!((after.send_available, after.eval_available, after.waiting_queues), (full, full, 0));
    // And the group goes on with the next command.
    assert!(matches!(group.controller.evaluate(&mut pools, Class::Regular), Verdict::Go { .. }));
    group.controller.settle(&mut pools);
    group.controller.close(&mut pools);
    assert!(pools.is_full() && pools.unaccounted() == 0);
}
