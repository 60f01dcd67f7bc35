//! The failure tests of ovsdb's cluster commands on real processes: whatever a store is in the midst of when it dies, nothing
//! that was acknowledged is lost, and what the stores wrote down keeps Raft's guarantees.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::PutRequest;

use crate::cluster::{Cluster, retry};
use crate::crash::Load;

pub(crate) const ALLOWED: &[&str] = &["--enable-failure-injection"];

fn failure_test(cluster: &Cluster, i: usize, test: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["failure-test", test, "--endpoints", &cluster.endpoint(i)])
        .output()
        .expect("runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn arm(cluster: &Cluster, i: usize, test: &str) {
    let (code, error) = failure_test(cluster, i, test);
    assert_eq!(code, Some(0), "{test} on store {i}: {error}");
}

/// Waits for the death of a store that is to die by itself, and starts it again.
pub(crate) fn died(cluster: &mut Cluster, i: usize, test: &str) {
    let code = cluster.wait_exit(i);
    let log = cluster.log(i);
    assert_eq!(code, None, "{test}: it was killed by a signal; its log:\n{log}");
    let says = |l: &str| l.contains(test) && l.contains("dies here");
    assert!(log.lines().any(says), "{test}: its log:\n{log}");
    cluster.restart(i);
}

/// Every store shows every acknowledged write at its revision, or a later write of the same key.
async fn verify(cluster: &Cluster, acknowledged: &BTreeMap<String, i64>) {
    for i in 0..cluster.stores.len() {
        let found: BTreeMap<_, _> = cluster
            .range(i, "w/", false)
            .await
            .kvs
            .into_iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision))
            .collect();
        for (key, revision) in acknowledged {
            assert!(found.get(key) >= Some(revision), "{key} on store {i}: {:?}", found.get(key));
        }
    }
}

/// Each crash point under writers, at a leader or a follower; `point`: name, and whether a leader is to die.
async fn crash_points(points: &[(&str, bool)]) {
    let mut cluster = Cluster::start(3, ALLOWED);
    cluster.leader(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 6).await;
    load.progress(100).await;
    for (test, at_leader) in points {
        let leader = cluster.leader(&[0, 1, 2]).await;
        let victim = if *at_leader { leader } else { (leader + 1) % 3 };
        let mut clients = Vec::new();
        for i in 0..3 {
            clients.push(cluster.kv(i).await);
        }
        arm(&cluster, victim, test);
        // The writers have left stores that died before, and may all be at one. Each has to be asked: a command that meets the
        // point may have to come from the victim's clients, or through another store.
        let asked = clients.into_iter().map(|mut kv| {
            tokio::spawn(async move {
                let put = PutRequest { key: "asked".into(), ..PutRequest::default() };
                // Whether it is done is not the question.
                let _ = kv.put(put).await;
            })
        });
        let asked: Vec<_> = asked.collect();
        died(&mut cluster, victim, test);
        for asked in asked {
            asked.await.expect("no panic");
        }
        load.progress(50).await;
    }
    let acknowledged = load.end().await;
    verify(&cluster, &acknowledged).await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_around_its_append_requests_and_its_answers_loses_nothing() {
    crash_points(&[
        ("crash-before-sending-append-request", true),
        ("crash-after-sending-append-request", true),
        ("crash-before-sending-execute-command-reply", true),
        ("crash-after-sending-execute-command-reply", true),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_dies_around_its_requests_and_what_it_receives_loses_nothing() {
    crash_points(&[
        ("crash-before-sending-execute-command-request", false),
        ("crash-after-sending-execute-command-request", false),
        ("crash-after-receiving-append-request-update", false),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_with_a_received_snapshot_half_taken_over_has_it_when_it_comes_back() {
    const TEST: &str = "crash-before-sending-install-snapshot-reply";
    let mut cluster = Cluster::start(2, ALLOWED);
    cluster.leader(&[0, 1]).await;
    let value = "x".repeat(200_000);
    let mut kv = cluster.kv(0).await;
    let mut last = String::new();
    // More than the log keeps, so that a new replica needs an image.
    for n in 0..200 {
        last = format!("w/{n:03}");
        let put =
            PutRequest { key: last.clone().into(), value: value.clone().into(), ..PutRequest::default() };
        kv.put(put).await.expect("writes");
    }
    cluster.add(2);
    cluster.spawn_joining(2, &[0]);
    retry("the joiner can be told", || async {
        match failure_test(&cluster, 2, TEST) {
            (Some(0), _) => Ok(()),
            (_, error) => Err(error),
        }
    })
    .await;
    died(&mut cluster, 2, TEST);
    let found = cluster.range(2, &last, false).await;
    assert_eq!(found.kvs.first().map(|kv| kv.value.len()), Some(value.len()));
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_its_rpc_is_replaced_and_is_a_follower_when_it_is_heard_again() {
    let mut cluster = Cluster::start(3, ALLOWED);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    cluster.put(leader, "w/x", "before").await;
    arm(&cluster, leader, "stop-raft-rpc");
    cluster.put(others[0], "w/x", "meanwhile").await;
    assert_ne!(cluster.leader(&others).await, leader);
    assert!(cluster.runs(leader));
    // It can serve nobody: it neither leads nor follows.
    let mut kv = cluster.kv(leader).await;
    let mut read = tonic::Request::new(pontoon_proto::etcdserverpb::RangeRequest {
        key: "w/x".into(),
        ..Default::default()
    });
    read.set_timeout(Duration::from_secs(2));
    assert!(kv.range(read).await.is_err(), "a linearizable read without a quorum");
    arm(&cluster, leader, "clear");
    let found = cluster.range(leader, "w/x", false).await;
    assert_eq!(found.kvs[0].value, "meanwhile");
    cluster.put(leader, "w/x", "after").await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaderships_are_handed_over_and_elections_held_back_as_asked() {
    let mut cluster = Cluster::start(3, ALLOWED);
    for test in ["transfer-leadership", "transfer-leadership-after-sending-append-request"] {
        let leader = cluster.leader(&[0, 1, 2]).await;
        let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
        arm(&cluster, leader, test);
        cluster.put(leader, "w/x", test).await;
        retry("somebody else leads", || async {
            let now = cluster.leader(&[0, 1, 2]).await;
            if others.contains(&now) { Ok(()) } else { Err(format!("{test}: store {now}")) }
        })
        .await;
        arm(&cluster, leader, "clear");
    }
    // Nobody asks for votes, so nobody leads; one that may is enough.
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        arm(&cluster, *i, "dont-send-vote-request");
    }
    cluster.kill(leader);
    let mut kv = cluster.kv(others[0]).await;
    let mut put = tonic::Request::new(PutRequest { key: "w/y".into(), ..PutRequest::default() });
    put.set_timeout(Duration::from_secs(4));
    assert!(kv.put(put).await.is_err(), "there is no leader");
    arm(&cluster, others[1], "clear");
    assert_eq!(cluster.leader(&others).await, others[1]);
    cluster.restart(leader);
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_election_comes_one_timer_later() {
    const TIMER: Duration = Duration::from_secs(2);
    let mut cluster = Cluster::start(3, &["--enable-failure-injection", "--election-timeout", "2s"]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        arm(&cluster, *i, "delay-election");
    }
    let killed = Instant::now();
    cluster.kill(leader);
    // Without it a leader whose sockets close is replaced within a quarter of the timer.
    cluster.put(others[0], "w/x", "1").await;
    assert!(killed.elapsed() >= TIMER, "{:?}", killed.elapsed());
    cluster.restart(leader);
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_not_told_to_allow_it_makes_no_failure() {
    let mut cluster = Cluster::start(1, &[]);
    let (code, error) = failure_test(&cluster, 0, "crash-before-sending-append-request");
    assert_eq!(code, Some(1));
    assert!(error.contains("--enable-failure-injection"), "{error}");
    let (code, error) = failure_test(&cluster, 0, "no-such-test");
    assert!(code == Some(2) && error.contains("stop-raft-rpc"), "{error}");
    cluster.put(0, "w/x", "1").await;
    assert!(cluster.runs(0));
}
