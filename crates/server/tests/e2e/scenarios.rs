//! Scenarios of ovsdb's cluster tests, by upstream's titles ("OVSDB cluster - ..."), on real processes: a transaction is on
//! its way when a store dies at a named point, and is done exactly once whoever leads next.
//!
//! Upstream skips two of the kinds, where its client repeats a transaction that committed; here writes have names.

use std::time::Duration;

use pontoon_client::{Client, Config};
use pontoon_proto::etcdserverpb::{DeleteRangeRequest, PutRequest};
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, retry};
use crate::crash::{Load, all_there};
use crate::failures::{ALLOWED, arm, died};
use crate::keyspaces::pontoon_at;
use crate::retries::once;

/// Who is meant, when a scenario begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Leader,
    Follower2,
    Follower3,
}

use Who::{Follower2, Follower3, Leader};

/// `through`: the store that the client asks first; `victim`: who dies, and at which point; `late`: whose election is delayed.
struct Scenario {
    title: &'static str,
    through: Who,
    victim: Who,
    point: &'static str,
    late: Option<Who>,
}

const fn scenario(
    title: &'static str,
    through: Who,
    victim: Who,
    point: &'static str,
    late: Option<Who>,
) -> Scenario {
    Scenario { title, through, victim, point, late }
}

async fn play(scenarios: &[Scenario]) {
    let mut cluster = Cluster::start(3, ALLOWED);
    cluster.put(0, "warm", "up").await;
    for Scenario { title, through, victim, point, late } in scenarios {
        let leader = cluster.leader(&[0, 1, 2]).await;
        let followers: Vec<_> = (0..3).filter(|i| *i != leader).collect();
        let place = |who: Who| match who {
            Leader => leader,
            Follower2 => followers[0],
            Follower3 => followers[1],
        };
        if let Some(late) = late {
            arm(&cluster, place(*late), "delay-election");
        }
        let first = place(*through);
        let mut remotes = vec![cluster.endpoint(first)];
        remotes.extend((0..3).filter(|i| *i != first).map(|i| cluster.endpoint(i)));
        let mut config = Config::new(remotes);
        config.shuffle = false;
        config.call_timeout = PATIENCE;
        config.backoff_max = Duration::from_secs(1);
        let keyspace = Client::new(config).expect("a client").default_keyspace();
        keyspace.put("first", "of these").await.expect("a session with the store that is meant");
        arm(&cluster, place(*victim), point);
        let answer = keyspace.txn(once(title)).await.unwrap_or_else(|e| panic!("{title}: {e}"));
        assert!(answer.succeeded, "{title}: another attempt of the same transaction was executed before");
        if point.starts_with("crash") {
            died(&mut cluster, place(*victim), point);
        }
        for i in 0..3 {
            if Some(i) != late.map(place) && (i != place(*victim) || point.starts_with("crash")) {
                continue;
            }
            arm(&cluster, i, "clear");
        }
        for i in 0..3 {
            let found = cluster.range(i, title, false).await;
            let versions: Vec<_> = found.kvs.iter().map(|kv| kv.version).collect();
            assert_eq!(versions, [1], "{title}: on store {i}");
        }
    }
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_txn_on_follower_2_while_the_leader_crashes_is_done_once() {
    let mut scenarios = Vec::new();
    for point in [
        "crash-before-sending-append-request",
        "crash-before-sending-execute-command-reply",
        "crash-after-sending-execute-command-reply",
    ] {
        let titles = match point {
            "crash-before-sending-append-request" => [
                "txn on follower-2, leader crash before sending appendReq, follower-2 becomes leader",
                "txn on follower-2, leader crash before sending appendReq, follower-3 becomes leader",
            ],
            "crash-before-sending-execute-command-reply" => [
                "txn on follower-2, leader crash before sending execRep, follower-2 becomes leader",
                "txn on follower-2, leader crash before sending execRep, follower-3 becomes leader",
            ],
            _ => [
                "txn on follower-2, leader crash after sending execRep, follower-2 becomes leader",
                "txn on follower-2, leader crash after sending execRep, follower-3 becomes leader",
            ],
        };
        scenarios.push(scenario(titles[0], Follower2, Leader, point, Some(Follower3)));
        scenarios.push(scenario(titles[1], Follower2, Leader, point, Some(Follower2)));
    }
    play(&scenarios).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_txn_on_the_leader_while_it_crashes_or_hands_over_is_done_once() {
    let (before, after) = ("crash-before-sending-append-request", "crash-after-sending-append-request");
    let hands_over = "transfer-leadership-after-sending-append-request";
    play(&[
        scenario(
            "txn on leader, leader crash before sending appendReq, follower-2 becomes leader",
            Leader,
            Leader,
            before,
            Some(Follower3),
        ),
        scenario(
            "txn on leader, leader crash before sending appendReq, follower-3 becomes leader",
            Leader,
            Leader,
            before,
            Some(Follower2),
        ),
        scenario(
            "txn on leader, leader crash after sending appendReq, follower-2 becomes leader",
            Leader,
            Leader,
            after,
            Some(Follower3),
        ),
        scenario(
            "txn on leader, leader crash after sending appendReq, follower-3 becomes leader",
            Leader,
            Leader,
            after,
            Some(Follower2),
        ),
        scenario(
            "txn on leader, leader transfers leadership after sending appendReq",
            Leader,
            Leader,
            hands_over,
            None,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_txn_while_a_follower_crashes_is_done_once() {
    let (before, after) =
        ("crash-before-sending-execute-command-request", "crash-after-sending-execute-command-request");
    let received = "crash-after-receiving-append-request-update";
    play(&[
        scenario(
            "txn on follower-2, follower-2 crash before sending execReq",
            Follower2,
            Follower2,
            before,
            None,
        ),
        scenario(
            "txn on follower-2, follower-2 crash after sending execReq",
            Follower2,
            Follower2,
            after,
            None,
        ),
        scenario(
            "txn on leader, follower-2 crash after receiving appendReq for the update",
            Leader,
            Follower2,
            received,
            None,
        ),
        scenario(
            "txn on follower-2, follower-3 crash after receiving appendReq for the update",
            Follower2,
            Follower3,
            received,
            None,
        ),
    ])
    .await;
}

/// What each of these stores says of the group `default`.
fn statuses(cluster: &Cluster, stores: &[usize]) -> Vec<Value> {
    let status = |i: &usize| {
        let (code, out, err) = pontoon_at(cluster, *i, &["status", "--group", "default", "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).expect("JSON")
    };
    stores.iter().map(status).collect()
}

/// Waits until all stores agree on one leader, in one term, and follow it.
async fn agreed(cluster: &Cluster) -> u64 {
    retry("one leader, one term, all in touch", || async {
        let all = statuses(cluster, &[0, 1, 2]);
        let same = |field: &str| all.iter().all(|s| s[field] == all[0][field]);
        let roles = |role: &str| all.iter().filter(|s| s["role"] == role).count();
        if same("term") && same("leader") && (roles("leader"), roles("follower")) == (1, 2) {
            Ok(all[0]["term"].as_u64().expect("a number"))
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn competing_candidates() {
    let mut cluster = Cluster::start(3, ALLOWED);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let followers: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    arm(&cluster, followers[0], "dont-send-vote-request");
    arm(&cluster, followers[1], "delay-election");
    cluster.kill(leader);
    cluster.restart(leader);
    cluster.put(followers[0], "w/x", "1").await;
    for i in followers {
        arm(&cluster, i, "clear");
    }
    agreed(&cluster).await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn disruptive_server() {
    let cluster = Cluster::start(3, ALLOWED);
    cluster.put(0, "w/x", "1").await;
    let term = agreed(&cluster).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let follower = (leader + 1) % 3;
    arm(&cluster, follower, "stop-raft-rpc");
    retry("it has lost its leader, and asks for votes in vain", || async {
        // A silent group keeps quiet: this is what it would be woken by.
        cluster.put(leader, "w/x", "2").await;
        let status = statuses(&cluster, &[follower]).remove(0);
        if status["leader"].is_null() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    arm(&cluster, follower, "clear");
    assert_eq!(agreed(&cluster).await, term, "it came back as a follower, and deposed nobody");
    assert_eq!(cluster.leader(&[0, 1, 2]).await, leader);
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

/// The second half: what a server does that has not heard its leader for a while, though it could have.
#[tokio::test(flavor = "multi_thread")]
async fn disruptive_server_that_slept() {
    let cluster = Cluster::start(3, &["--enable-failure-injection", "--election-timeout", "200ms"]);
    cluster.put(0, "w/x", "1").await;
    let term = agreed(&cluster).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let follower = (leader + 1) % 3;
    for n in 0..5 {
        // Its timer has run out when it wakes, and the leader is there.
        cluster.signal(follower, "STOP");
        for _ in 0..10 {
            cluster.put(leader, "w/x", &format!("{n}")).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        cluster.signal(follower, "CONT");
        cluster.put(follower, "w/y", &format!("{n}")).await;
    }
    assert_eq!(agreed(&cluster).await, term, "it deposed nobody");
    assert_eq!(cluster.leader(&[0, 1, 2]).await, leader);
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn disruptive_server_with_the_old_term_and_outdated_log() {
    let mut cluster = Cluster::start(3, ALLOWED);
    cluster.put(0, "w/x", "1").await;
    agreed(&cluster).await;
    cluster.kill(2);
    // The others go on, to a later term and with more in their logs.
    for i in [0, 1, 0] {
        retry("leadership moves", || async {
            match pontoon_at(&cluster, i, &["take-leadership", "default"]) {
                (Some(0), ..) => Ok(()),
                (_, _, err) => Err(err),
            }
        })
        .await;
        cluster.put(i, "w/x", "2").await;
    }
    let term = statuses(&cluster, &[0])[0]["term"].as_u64().expect("a number");
    for i in [0, 1] {
        cluster.kill(i);
    }
    // Only the one that is behind may stand at once.
    cluster.extra_mut().extend(["--failure-test", "delay-election"].map(str::to_owned));
    for i in [0, 1] {
        cluster.spawn(i);
    }
    cluster.extra_mut().truncate(ALLOWED.len());
    cluster.spawn(2);
    for i in 0..3 {
        cluster.wait_ready(i);
    }
    let elected = agreed(&cluster).await;
    assert_eq!(elected, term + 1, "one election was enough: it never got so far as to raise the term");
    assert_ne!(cluster.leader(&[0, 1, 2]).await, 2);
    for i in [0, 1] {
        arm(&cluster, i, "clear");
    }
    let found = cluster.range(2, "w/x", false).await;
    assert_eq!(found.kvs[0].value, "2");
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

/// Every leader hands over again and again while stores join, so that most begin to be taken in by one who does not end it.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_change_before_replication_while_joining() {
    let mut cluster = Cluster::start(1, ALLOWED);
    cluster.put(0, "w/x", "1").await;
    for i in 1..5 {
        let term = |cluster: &Cluster| statuses(cluster, &[0])[0]["term"].as_u64().expect("a number");
        let before = term(&cluster);
        for member in 0..i {
            arm(&cluster, member, "transfer-leadership");
        }
        cluster.add(i);
        let via: Vec<_> = (0..i).collect();
        cluster.spawn_joining(i, &via);
        if i > 1 {
            retry("leaders come and go", || async {
                let after = term(&cluster);
                if after > before + 2 { Ok(()) } else { Err(after.to_string()) }
            })
            .await;
        }
        for member in 0..i {
            arm(&cluster, member, "clear");
        }
        cluster.wait_ready(i);
    }
    five_voters(&cluster).await;
    cluster.put(4, "w/x", "2").await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

/// 3- and 5-server torture test: kill/restart leader and followers, then remove/re-add the same victims.
async fn torture(n: usize) {
    let mut cluster = Cluster::start(n, &["--election-timeout", "500ms"]);
    let mut there: Vec<_> = (0..n).collect();
    let load = Load::start(&cluster, 10).await;
    load.progress(50).await;
    let leader = cluster.leader(&there).await;
    let victims: Vec<_> =
        [leader].into_iter().chain(there.clone().into_iter().filter(|i| *i != leader)).collect();
    for victim in &victims {
        cluster.kill(*victim);
        load.progress(30).await;
        cluster.restart(*victim);
        load.progress(10).await;
    }
    // The victim leaves, and comes anew with a new directory.
    for victim in victims {
        let asked = ["leave", "--wait", "60s"];
        let (code, _, err) = pontoon_at(&cluster, victim, &asked);
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(cluster.wait_exit(victim), Some(0), "{}", cluster.log(victim));
        there.retain(|i| *i != victim);
        let new = cluster.stores.len();
        cluster.add(new);
        cluster.spawn_joining(new, &there);
        cluster.wait_ready(new);
        there.push(new);
        // The writers know the first stores alone.
        if there.iter().any(|i| *i < n) {
            load.progress(10).await;
        }
    }
    let acknowledged = load.end().await;
    all_there(&cluster, &there, &acknowledged).await;
    cluster.equal_hashes_of(&there).await;
    cluster.kill_and_check_of(&there);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_server_torture_test() {
    torture(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_server_torture_test() {
    torture(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_change_after_replication_while_joining() {
    let mut cluster = Cluster::start(1, ALLOWED);
    cluster.put(0, "w/x", "1").await;
    for i in 1..5 {
        for member in 0..i {
            arm(&cluster, member, "transfer-leadership-after-sending-append-request");
        }
        cluster.add(i);
        let via: Vec<_> = (0..i).collect();
        cluster.spawn_joining(i, &via);
        cluster.wait_ready(i);
    }
    for member in 0..5 {
        arm(&cluster, member, "clear");
    }
    five_voters(&cluster).await;
    cluster.put(4, "w/x", "2").await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

async fn five_voters(cluster: &Cluster) {
    retry("five voters", || async {
        let (_, out, _) = pontoon_at(cluster, 0, &["status", "--group", "default", "--output", "json"]);
        let status: Value = serde_json::from_str(&out).map_err(|e| e.to_string())?;
        let servers = status["servers"].as_array().ok_or("no servers")?;
        let stable = servers.iter().filter(|s| s["role"] == "voter" && s["phase"] == "stable").count();
        if stable == 5 { Ok(()) } else { Err(out) }
    })
    .await;
}

const DISCONNECTED: &str = "disconnected from the cluster (election timeout)";

/// Waits until a store says that it has lost its cluster, and sees that it does not change its mind.
async fn stays_disconnected(cluster: &Cluster, i: usize) {
    let status = || statuses(cluster, &[i]).remove(0)["status"].clone();
    retry("it is disconnected", || async {
        // A silent group notices nothing: this is what it would be woken by.
        let (_, _, _) = pontoon_at(cluster, i, &["take-leadership", "default", "--timeout", "100ms"]);
        let now = status();
        if now == DISCONNECTED { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    // Some election timers long.
    for _ in 0..40 {
        assert_eq!(status(), DISCONNECTED, "no flicker");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_disconnect_from_cluster_and_initial_status_should_be_disconnected() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let followers: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    // The leader last.
    cluster.kill(followers[1]);
    cluster.kill(leader);
    stays_disconnected(&cluster, followers[0]).await;
    // All stopped, one started: it never says that it is connected.
    cluster.kill(followers[0]);
    cluster.spawn(followers[0]);
    cluster.wait_ready(followers[0]);
    stays_disconnected(&cluster, followers[0]).await;
    cluster.restart(leader);
    cluster.put(followers[0], "w/x", "1").await;
    cluster.restart(followers[1]);
    agreed(&cluster).await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_disconnect_from_cluster_check_flapping() {
    let mut cluster = Cluster::start(5, &[]);
    let leader = cluster.leader(&[0, 1, 2, 3, 4]).await;
    cluster.put(leader, "w/x", "1").await;
    let majority: Vec<_> = (0..5).filter(|i| *i != leader).take(3).collect();
    for i in &majority {
        cluster.kill(*i);
    }
    stays_disconnected(&cluster, leader).await;
    for i in majority {
        cluster.restart(i);
    }
    cluster.put(leader, "w/x", "2").await;
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn install_snapshot_rpc() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let follower = (leader + 1) % 3;
    let value = "x".repeat(500_000);
    let kv = cluster.kv(leader).await;
    let write = async |key: String, value: String| {
        retry("put", || {
            let mut kv = kv.clone();
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            async move { kv.put(put).await.map_err(|e| e.to_string()) }
        })
        .await;
    };
    for n in 0..20 {
        write(format!("w/{n:03}"), "before".to_owned()).await;
    }
    cluster.equal_hashes().await;
    cluster.kill(follower);
    let mut delete = cluster.kv(leader).await;
    let range = DeleteRangeRequest { key: "w/".into(), range_end: "w0".into(), prev_kv: false };
    delete.delete_range(range).await.expect("deletes");
    // More than the leader keeps of its log for a follower that is away (64 MiB).
    for n in 0..180 {
        write(format!("w/{:03}", n % 30), value.clone()).await;
    }
    cluster.restart(follower);
    // A transaction through it, which it judges by what it has received.
    let mut through = cluster.kv(follower).await;
    let answer = retry("txn", || {
        let mut through = through.clone();
        async move { through.txn(once("after")).await.map_err(|e| e.to_string()) }
    });
    let _ = answer.await;
    let found = through.range(pontoon_proto::etcdserverpb::RangeRequest {
        key: "w/".into(),
        range_end: "w0".into(),
        count_only: true,
        ..Default::default()
    });
    assert_eq!(found.await.expect("reads").into_inner().count, 30);
    cluster.equal_hashes().await;
    assert!(cluster.log(leader).contains("sends a snapshot"), "the follower came back too early");
    cluster.kill_and_check();
}
