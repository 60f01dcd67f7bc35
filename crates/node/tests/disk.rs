//! What stores do whose disk fills up, or hangs.

mod support;

use std::time::{Duration, Instant};

use pontoon_node::ProposeError;
use pontoon_storage::disk::Disk;
use pontoon_storage::{LogStore, Space};
use support::{Cluster, GROUP, until};

/// The election timer of these clusters.
const TIMER: Duration = Duration::from_millis(300);

/// Leaves so much room on a store's disk.
fn leave(cluster: &Cluster, at: usize, bytes: u64) {
    let disk = &cluster.stores[at].disk;
    let names = Disk::list(disk).expect("in memory");
    let used: u64 = names.iter().filter_map(|name| disk.read(name)).map(|file| file.len() as u64).sum();
    disk.set_capacity(Some(used + bytes));
}

fn log(cluster: &Cluster, at: usize) -> &LogStore {
    cluster.stores[at].node.log()
}

async fn space_becomes(cluster: &Cluster, at: usize, space: Space) {
    until("a look at the room", || async { (log(cluster, at).space() == space).then_some(()) }).await;
}

fn leads(cluster: &Cluster, at: usize) -> bool {
    cluster.stores[at].node.leadership(GROUP).is_some_and(|(_, l)| l == Some(cluster.stores[at].id))
}

fn term(cluster: &Cluster, at: usize) -> u64 {
    cluster.stores[at].node.leadership(GROUP).expect("a replica").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_a_full_store_hands_over_to_one_with_room() {
    let cluster = Cluster::start(3).await;
    let full = cluster.leader().await;
    // The one that is asked first, by its id, is full as well: it declines, and the other one is asked.
    let also_full = usize::from(full == 0);
    let before = term(&cluster, full);
    // In this order: a leader hands over as soon as it sees that its disk is full.
    for at in [also_full, full] {
        leave(&cluster, at, 50 << 10);
        space_becomes(&cluster, at, Space::Low).await;
    }
    // The command waits for the hand-over and goes through, on whichever store it was begun.
    for at in 0..3 {
        let told = cluster.try_propose(at, format!("asked at {at}")).await;
        assert!(told.is_ok(), "asked at {at}: {told:?}");
    }
    assert_eq!(cluster.leader().await, 3 - full - also_full);
    assert_eq!(term(&cluster, full), before + 1, "the other full one was elected on the way");
    assert!((0..3).all(|at| log(&cluster, at).failed().is_none()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_room_anywhere_writes_are_refused_and_reads_go_on() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for at in 0..3 {
        leave(&cluster, at, 50 << 10);
        space_becomes(&cluster, at, Space::Low).await;
    }
    for at in [leader, (leader + 1) % 3] {
        let refused = until("the refusal", || async { cluster.try_propose(at, "no").await.err() }).await;
        let ProposeError::NoSpace { what } = &refused else { panic!("{refused:?}") };
        assert!(what.starts_with("no space on the file system of") && what.contains("reserve"), "{what}");
        assert!(what.contains("free some room"), "{what}");
    }
    for at in 0..3 {
        cluster.stores[at].node.read_barrier(GROUP).await.expect("reads need no room");
        assert_eq!(log(&cluster, at).failed(), None);
    }
    // One with room is enough for all.
    let roomy = (cluster.leader().await + 2) % 3;
    cluster.stores[roomy].disk.set_capacity(None);
    space_becomes(&cluster, roomy, Space::Enough).await;
    cluster.propose(0, "one has room").await;
    assert!(leads(&cluster, roomy));
    for store in &cluster.stores {
        store.disk.set_capacity(None);
    }
    for at in 0..3 {
        space_becomes(&cluster, at, Space::Enough).await;
        cluster.propose(at, "all have room").await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_alone_refuses_and_recovers_by_itself() {
    let cluster = Cluster::start(1).await;
    leave(&cluster, 0, 50 << 10);
    space_becomes(&cluster, 0, Space::Low).await;
    let began = Instant::now();
    assert!(matches!(cluster.try_propose(0, "no").await, Err(ProposeError::NoSpace { .. })));
    assert!(began.elapsed() < Duration::from_secs(2), "there is nobody to wait for");
    cluster.stores[0].disk.set_capacity(None);
    space_becomes(&cluster, 0, Space::Enough).await;
    cluster.try_propose(0, "yes").await.expect("there is room");
    cluster.stop().await;
}

/// The log would use up what is left; it stays alive instead, and catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_almost_no_room_takes_no_entries_until_it_has_some() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let full = (leader + 1) % 3;
    leave(&cluster, full, 20 << 10);
    space_becomes(&cluster, full, Space::AlmostNone).await;
    let before = term(&cluster, leader);
    for n in 0..40 {
        cluster.try_propose(leader, vec![n; 16 << 10]).await.expect("two of three have room");
    }
    assert_eq!(log(&cluster, full).failed(), None, "40 x 16 KiB are more than it has room for");
    assert!(cluster.applied(full).len() < 10);
    assert_eq!(term(&cluster, leader), before, "it hears its leader all the time");
    cluster.stores[full].disk.set_capacity(None);
    space_becomes(&cluster, full, Space::Enough).await;
    let all = cluster.applied(leader);
    until("the follower to catch up", || async { (cluster.applied(full) == all).then_some(()) }).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_leaders_disk_hangs_the_others_go_on() {
    let cluster = Cluster::start(3).await;
    let hung = cluster.leader().await;
    let others = [(hung + 1) % 3, (hung + 2) % 3];
    cluster.stores[hung].disk.hang(true);
    let began = Instant::now();
    // The first is on its way when the disk begins to hang; those after it wait for its sync, or for another leader.
    for n in 0..10 {
        cluster.try_propose(others[n % 2], format!("while it hangs {n}")).await.expect("a leader is found");
    }
    let took = began.elapsed();
    eprintln!("ten writes took {took:?} with the leader's disk hanging");
    assert!(took < 2 * TIMER + Duration::from_millis(500), "{took:?}");
    assert!(others.iter().any(|at| leads(&cluster, *at)));
    let led_in = term(&cluster, others[0]);
    // For ten seconds, writes go on, and the store whose disk hangs disturbs nobody.
    while began.elapsed() < Duration::from_secs(10) {
        cluster.try_propose(others[0], "and on").await.expect("the new leader leads on");
    }
    assert_eq!(term(&cluster, others[0]), led_in);
    assert_eq!(log(&cluster, hung).failed(), None, "a hang is no failure");
    cluster.stores[hung].disk.hang(false);
    let all = cluster.applied(others[0]);
    until("the store to catch up", || async { (cluster.applied(hung).len() >= all.len()).then_some(()) })
        .await;
    assert_eq!(cluster.applied(hung)[..all.len()], all);
    cluster.try_propose(hung, "here again").await.expect("it is a normal member");
    assert_eq!(term(&cluster, others[0]), led_in, "its return starts no election");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_relieves_steps_down_and_does_not_stand_while_its_disk_hangs() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for store in &cluster.stores {
        store.disk.hang(true);
    }
    let began = term(&cluster, leader);
    let node = cluster.stores[leader].node.clone();
    let waiting = tokio::spawn(async move { node.propose(GROUP, "stuck".into()).await });
    until("the leader to step down", || async { (!leads(&cluster, leader)).then_some(()) }).await;
    // Nobody can vote, and the one whose disk is known to hang does not ask for it.
    tokio::time::sleep(5 * TIMER).await;
    let status = cluster.stores[leader].node.group_status(GROUP).await.expect("a replica");
    assert_eq!(status.core.term.0, began);
    assert!(status.last_election.is_none_or(|election| election.won_ms.is_some()), "it stood for election");
    for store in &cluster.stores {
        store.disk.hang(false);
    }
    // Whether this one was executed may stay open; the next is.
    let _ = waiting.await.expect("no panic");
    cluster.propose(leader, "after it").await;
    cluster.stop().await;
}
