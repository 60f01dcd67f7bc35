use std::collections::BTreeSet;

use super::super::commands::meta_command::{CreateGroup, PromoteStore, RemoveStore};
use super::super::commands::{MetaCommand, MetaReply};
use super::super::records::{GroupKind, VOTERS_MAX};
use super::*;

fn store(id: u64) -> StoreRecord {
    StoreRecord {
        store: id,
        name: format!("n{id}"),
        peer_address: format!("h:{id}"),
        lineage: id,
        ..StoreRecord::default()
    }
}

/// A cluster whose replicas do at once, or when asked, what they are told.
struct World {
    registry: Registry,
    alive: BTreeSet<u64>,
}

impl World {
    fn new(stores: u64) -> Self {
        Self { registry: Registry::bootstrap((1..=stores).map(store)), alive: (1..=stores).collect() }
    }

    fn change(&mut self, change: Change) -> MetaReply {
        self.registry.apply(&MetaCommand { change: Some(change) }.to_bytes())
    }

    fn create(&mut self, name: &str, wished: u32) -> u64 {
        let reply = self.change(Change::CreateGroup(CreateGroup {
            name: name.into(),
            kind: GroupKind::Kv as i32,
            replicas: 0,
            wished,
        }));
        assert!(reply.is_done(), "{}", reply.error);
        reply.group
    }

    fn join(&mut self, id: u64) {
        let reply = self.change(Change::AddStore(store(id)));
        assert!(reply.is_done(), "{}", reply.error);
        self.alive.insert(id);
    }

    fn remove(&mut self, id: u64, kick: bool) -> MetaReply {
        self.change(Change::RemoveStore(RemoveStore { store: id, kick }))
    }

    fn plan(&self) -> Vec<Change> {
        plan(&self.registry, &Observed { alive: self.alive.clone() })
    }

    /// What the groups' leaders would tell now.
    fn news(&self) -> Vec<Change> {
        let mut news = Vec::new();
        for group in self.registry.all_groups() {
            for replica in &group.replicas {
                let step = match replica.state() {
                    ReplicaState::Joining | ReplicaState::JoiningLearner
                        if self.alive.contains(&replica.store) =>
                    {
                        Step::Placed
                    }
                    ReplicaState::Removing => Step::Removed,
                    _ => continue,
                };
                let (store, number) = (replica.store, replica.number);
                let change = MoveReplica { group: group.group, store, number, step: step as i32, version: 0 };
                news.push(Change::MoveReplica(change));
            }
        }
        news
    }

    /// Plans and does until there is nothing left to do, checking each state.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let mut steps = self.plan();
            steps.extend(self.news());
            if steps.is_empty() {
                return;
            }
            for step in steps {
                let _ = self.change(step);
                self.check();
            }
        }
        panic!("it does not come to rest: {:?}", self.plan());
    }

    /// What must hold in every state.
    fn check(&self) {
        for group in self.registry.all_groups() {
            assert!(group.voters().count() > 0, "{} has no voter", group.name);
            let mut stores: Vec<_> = group.replicas.iter().map(|r| r.store).collect();
            stores.dedup();
            assert_eq!(stores.len(), group.replicas.len(), "{} has two replicas on a store", group.name);
            for replica in &group.replicas {
                assert!(replica.number < group.next_number);
                assert!(self.registry.stores.contains_key(&replica.store), "nobody goes with a replica");
            }
        }
    }

    fn places(&self) -> usize {
        self.registry.stores.values().filter(|s| s.stays() && !s.learner).count()
    }

    fn on(&self, group: u64) -> Vec<u64> {
        self.registry.groups[&group].voters().map(|r| r.store).collect()
    }

    fn meta(&self) -> Vec<u64> {
        self.registry.meta.as_ref().expect("founded").voters().map(|r| r.store).collect()
    }

    fn loads(&self) -> Vec<usize> {
        self.registry
            .stores
            .values()
            .filter(|s| s.stays())
            .map(|s| self.registry.replicas_on(s.store))
            .collect()
    }
}

#[test]
fn a_cluster_at_rest_stays_as_it_is() {
    let mut world = World::new(3);
    for i in 0..10 {
        world.create(&format!("g{i}"), 3);
    }
    assert_eq!(world.plan(), vec![]);
}

#[test]
fn a_cluster_of_one_grows() {
    let mut world = World::new(1);
    let (kv, one) = (world.create("kv", 3), world.create("one", 1));
    assert_eq!(world.on(kv), [1], "fewer stores than wished");
    for id in 2..=5 {
        world.join(id);
        world.settle();
        assert_eq!(world.meta(), (1..=id).collect::<Vec<_>>());
        assert_eq!(world.on(1), (1..=id).collect::<Vec<_>>(), "default is everywhere");
        assert_eq!(world.on(kv).len(), id.min(3) as usize);
        assert_eq!(world.on(one).len(), 1);
    }
}

#[test]
fn a_store_that_leaves_loses_its_replicas_when_others_have_them() {
    let mut world = World::new(4);
    let groups: Vec<_> = (0..12).map(|i| world.create(&format!("g{i}"), 3)).collect();
    assert!(world.remove(2, false).is_done());
    for _ in 0..500 {
        let mut steps = world.plan();
        steps.extend(world.news());
        if steps.is_empty() {
            break;
        }
        for step in steps {
            let _ = world.change(step);
            for group in &groups {
                assert!(world.on(*group).len() >= 3, "never below what is wished");
            }
        }
    }
    assert!(world.registry.removed.contains_key(&2) && !world.registry.removed[&2].kicked);
    assert!(groups.iter().all(|g| !world.on(*g).contains(&2)));
    assert_eq!(world.meta(), [1, 3, 4]);
}

#[test]
fn the_meta_replica_goes_last() {
    let mut world = World::new(3);
    world.remove(3, false);
    let first = world.plan();
    assert!(!first.is_empty());
    let of_meta = |c: &Change| matches!(c, Change::MoveReplica(m) if m.group == 0);
    assert!(!first.iter().any(of_meta), "{first:?}");
}

#[test]
fn a_dead_store_that_is_kicked_is_replaced_where_there_is_room() {
    let mut world = World::new(4);
    let kv = world.create("kv", 3);
    assert_eq!(world.on(kv), [1, 2, 3]);
    world.alive.remove(&2);
    assert_eq!(world.plan(), vec![], "as long as it is a member, it is waited for");
    assert!(world.remove(2, true).is_done());
    world.settle();
    assert_eq!(world.on(kv), [1, 3, 4]);
    assert!(world.registry.removed[&2].kicked);
    let error = world.change(Change::AddStore(store(2)));
    assert!(error.removed && error.error.contains("kicked"), "{}", error.error);
}

#[test]
fn a_store_that_runs_is_replaced_before_it_loses_its_replicas_though_it_is_kicked() {
    let mut world = World::new(4);
    let kv = world.create("kv", 3);
    assert!(world.remove(2, true).is_done());
    for _ in 0..100 {
        for step in world.plan().into_iter().chain(world.news()) {
            let _ = world.change(step);
            assert!(world.on(kv).len() >= 3, "{:?}", world.on(kv));
        }
    }
    assert_eq!(world.on(kv), [1, 3, 4]);
    assert!(world.registry.removed[&2].kicked);
}

#[test]
fn the_only_replica_is_moved_before_it_is_removed() {
    let mut world = World::new(2);
    let one = world.create("one", 1);
    let at = world.on(one)[0];
    assert!(world.remove(at, true).is_done());
    world.settle();
    assert_eq!(world.on(one), [3 - at]);
}

#[test]
fn a_dead_store_with_the_only_replica_of_a_group_cannot_go() {
    let mut world = World::new(3);
    let one = world.create("one", 1);
    let at = world.on(one)[0];
    world.alive.remove(&at);
    assert!(world.remove(at, true).is_done());
    // The new replica never catches up, as nobody leads the group.
    for _ in 0..50 {
        for step in world.plan().into_iter().chain(world.news()) {
            if !matches!(&step, Change::MoveReplica(m) if m.group == one && m.step() == Step::Placed) {
                let _ = world.change(step);
            }
        }
    }
    assert!(world.on(one).contains(&at));
    assert!(world.registry.stores.contains_key(&at));
    assert!(!world.meta().contains(&at), "the registry need not wait for it");
    // Nor need the one that takes its place.
    let known = world.registry.stores[&at].clone();
    let replacement = StoreRecord { store: 50, lineage: 50, state: 0, ..known };
    assert!(world.change(Change::AddStore(replacement)).is_done());
}

#[test]
fn the_last_store_stays() {
    let mut world = World::new(2);
    assert!(world.remove(1, false).is_done());
    assert!(world.remove(2, true).error.contains("last one"));
    world.settle();
    assert!(world.remove(2, false).error.contains("last one"));
    assert_eq!(world.meta(), [2]);
}

#[test]
fn a_joiner_can_be_cancelled() {
    let mut world = World::new(3);
    world.change(Change::AddStore(store(4)));
    assert!(world.remove(4, true).is_done());
    world.settle();
    assert!(world.registry.removed.contains_key(&4));
    assert_eq!(world.meta(), [1, 2, 3]);
}

#[test]
fn a_new_store_takes_its_share() {
    let mut world = World::new(3);
    for i in 0..40 {
        world.create(&format!("g{i}"), 3);
    }
    world.join(4);
    world.settle();
    let loads = world.loads();
    let (low, high) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
    assert!(high - low <= 1, "{loads:?}");
}

#[test]
fn more_stores_than_votes_are_learners_until_one_goes() {
    let mut world = World::new(1);
    for id in 2..=9 {
        world.join(id);
        world.settle();
    }
    assert_eq!(world.meta().len(), VOTERS_MAX);
    let learners = |w: &World| {
        let meta = w.registry.meta.as_ref().expect("founded");
        meta.replicas.iter().filter(|r| is(r, &[ReplicaState::Learner])).count()
    };
    assert_eq!(learners(&world), 2);
    world.alive.remove(&3);
    world.remove(3, true);
    world.settle();
    assert_eq!((world.meta().len(), learners(&world)), (VOTERS_MAX, 1));
}

#[test]
fn a_learner_store_votes_when_it_is_promoted() {
    let mut world = World::new(3);
    let mut place = store(4);
    place.learner = true;
    assert!(world.change(Change::ReserveStore(place)).is_done());
    let mut joiner = store(77);
    joiner.peer_address = "h:4".into();
    let reply = world.change(Change::AddStore(joiner));
    assert_eq!((reply.store, reply.number), (4, 2), "{}", reply.error);
    world.alive.insert(4);
    world.settle();
    assert_eq!((world.meta(), world.on(1)), (vec![1, 2, 3], vec![1, 2, 3]));
    assert!(world.change(Change::PromoteStore(PromoteStore { store: 4 })).is_done());
    world.settle();
    assert_eq!((world.meta(), world.on(1)), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
}

/// The generator of this test, SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<_> = from.collect();
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }
}

/// Stores come, leave, die and are kicked; plans and news are carried out in part, late and twice. In every state what must
/// hold holds, no group has fewer voters than wished as long as no store is lost, and when it is calm everything comes to rest.
#[test]
fn whatever_happens_it_comes_to_rest_with_what_is_wished() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut world = World::new(1 + random.below(5) as u64);
        let (mut next_store, mut names) = (100, 0);
        let mut late = Vec::new();
        for _ in 0..120 {
            match random.below(12) {
                0 => {
                    world.join(next_store);
                    next_store += 1;
                }
                1 => {
                    names += 1;
                    let reply = world.change(Change::CreateGroup(CreateGroup {
                        name: format!("g{names}"),
                        kind: GroupKind::Kv as i32,
                        replicas: 0,
                        wished: 1 + random.below(5) as u32,
                    }));
                    assert!(reply.is_done() || reply.error.contains("no store"), "{}", reply.error);
                }
                2 => {
                    let all: Vec<_> = world.registry.stores.keys().copied().collect();
                    if let Some(id) = random.pick(all.into_iter()) {
                        // All of them run: neither a leave nor a kick must cost a group its voters.
                        let _ = world.remove(id, random.below(2) == 0);
                    }
                }
                _ => {
                    let mut steps = world.plan();
                    steps.extend(world.news());
                    if let Some(step) = random.pick(0..steps.len().max(1)).and_then(|i| steps.get(i).cloned())
                    {
                        late.push((step, world.places()));
                    }
                    if !late.is_empty() && random.below(3) > 0 {
                        let (step, places_then) = late[random.below(late.len())].clone();
                        let before: Vec<_> =
                            world.registry.groups.values().map(|g| (g.group, g.voters().count())).collect();
                        // A wish that is late may be of a time when there were fewer stores.
                        let places = world.places().min(places_then);
                        let _ = world.change(step);
                        for (group, voters) in before {
                            let record = &world.registry.groups[&group];
                            let now = record.voters().count();
                            let enough = now >= record.voters_wished(places);
                            assert!(now >= voters || enough, "seed {seed}: {} lost a voter", record.name);
                        }
                    }
                }
            }
            world.check();
        }
        // Some die and are kicked; those with the only replica of something live.
        let dead: Vec<_> = world.registry.stores.keys().copied().filter(|_| random.below(4) == 0).collect();
        for id in dead {
            if world.remove(id, true).is_done() {
                world.check();
            }
        }
        world.settle();
        assert!(world.registry.stores.values().all(|s| s.stays()), "seed {seed}: nobody is left on the way");
        let stores = world.registry.stores.len();
        for group in world.registry.groups.values() {
            assert_eq!(group.voters().count(), group.voters_wished(stores), "seed {seed}: {}", group.name);
        }
        assert_eq!(world.meta().len(), stores.min(VOTERS_MAX), "seed {seed}");
        let loads = world.loads();
        let (low, high) = (loads.iter().min().copied(), loads.iter().max().copied());
        assert!(high <= low.map(|n| n + 1), "seed {seed}: {loads:?}");
    }
}
