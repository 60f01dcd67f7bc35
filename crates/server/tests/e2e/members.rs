//! The members of a running cluster change: stores join, leave, are kicked and replaced, while a writer runs whose
//! acknowledged writes must all be there in the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE};
use crate::crash::{Load, all_there};

fn pontoon(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pontoon")).args(args).output().expect("runs")
}

/// Runs a command that must succeed, against one store, and returns its JSON document.
fn json(cluster: &Cluster, asked: usize, args: &[&str]) -> Value {
    let endpoint = cluster.endpoint(asked);
    let output = pontoon(&[args, &["--output", "json", "--endpoints", &endpoint]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}\n{}", cluster.log(asked));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// The error line of a command that must fail.
fn refused(cluster: &Cluster, asked: usize, args: &[&str]) -> String {
    let endpoint = cluster.endpoint(asked);
    let output = pontoon(&[args, &["--endpoints", &endpoint]].concat());
    assert!(!output.status.success(), "{args:?} works");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The stores as one of them sees them: state by name.
fn states(cluster: &Cluster, asked: usize) -> BTreeMap<String, String> {
    let list = json(cluster, asked, &["store", "list"]);
    let rows = list["stores"].as_array().expect("a list").iter();
    rows.map(|s| (text(&s["name"]), text(&s["state"]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The stores that are voters of a group, by the group's own configuration on this store.
fn voters(cluster: &Cluster, asked: usize, group: &str) -> Vec<String> {
    let status = json(cluster, asked, &["status", "--group", group]);
    let servers = status["servers"].as_array().expect("a list").iter();
    let mut names: Vec<_> = servers.filter(|s| s["role"] == "voter").map(|s| text(&s["name"])).collect();
    names.sort();
    names
}

/// Waits until something is so.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn names(n: std::ops::RangeInclusive<usize>) -> Vec<String> {
    n.map(|i| format!("n{i}")).collect()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map(|mut d| d.next().is_none()).unwrap_or(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_five_while_it_is_written_to() {
    let mut cluster = Cluster::start(1, &["--election-timeout", "500ms"]);
    json(&cluster, 0, &["keyspace", "create", "three"]);
    let load = Load::start(&cluster, 2).await;
    load.progress(50).await;
    // The term of `default`, and how long ago this store was elected in it.
    let elected = |cluster: &Cluster| {
        let status = json(cluster, 0, &["status", "--group", "default"]);
        (status["term"].clone(), status["last_election"]["won_ms_ago"].as_u64())
    };
    let before = elected(&cluster);
    let asked = Instant::now();
    for i in 1..5 {
        cluster.add(i);
        // By another one than the first: every store can let one in.
        cluster.spawn_joining(i, &[i - 1]);
        cluster.wait_ready(i);
        let members = names(1..=i + 1);
        until("the meta group has the new store", || voters(&cluster, 0, "meta") == members).await;
        until("default has the new store", || voters(&cluster, 0, "default") == members).await;
        load.progress(20).await;
        let passed = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = elected(&cluster);
        if now.0 == before.0 {
            // A change of members is no election.
            let expected = before.1.map(|ago| ago + passed);
            assert!(now.1 >= expected && before.1.is_some(), "{before:?}, {passed} ms later {now:?}");
        }
    }
    let three = json(&cluster, 0, &["keyspace", "describe", "three"]);
    assert_eq!(three["replicas"].as_array().map(Vec::len), Some(3), "{three}");
    let acknowledged = load.end().await;
    all_there(&cluster, &[0, 1, 2, 3, 4], &acknowledged).await;
    cluster.equal_hashes().await;
    assert!(states(&cluster, 4).values().all(|s| s == "member"));
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_and_a_follower_leave_and_never_come_back() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    let load = Load::start(&cluster, 2).await;
    load.progress(50).await;
    for remaining in [3, 2] {
        let there: Vec<_> = (0..3).filter(|i| cluster.runs(*i)).collect();
        assert_eq!(there.len(), remaining);
        let leader = cluster.leader(&there).await;
        // First the leader, then a follower.
        let goes =
            if remaining == 3 { leader } else { there.into_iter().find(|i| *i != leader).expect("two") };
        let left = json(&cluster, goes, &["leave"]);
        assert_eq!(
            (text(&left["name"]), text(&left["state"])),
            (cluster.stores[goes].name.clone(), "left".to_owned())
        );
        assert_eq!(cluster.wait_exit(goes), Some(0), "{}", cluster.log(goes));
        let inspected =
            pontoon(&["inspect", "--output", "json", &cluster.data_dir(goes).display().to_string()]);
        let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
        assert_eq!(inspected["state"], "left");
        cluster.spawn(goes);
        assert_eq!(cluster.wait_exit(goes), Some(2), "it starts again");
        let log = cluster.log(goes);
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("has left the cluster") && last.contains("never comes back"), "{last}");
    }
    let last = (0..3).find(|i| cluster.runs(*i)).expect("one is left");
    let error = refused(&cluster, last, &["leave"]);
    assert!(error.contains("last one"), "{error}");
    // Clients of the stores that left hear errors; those of the last one do not.
    let acknowledged = load.end().await;
    all_there(&cluster, &[last], &acknowledged).await;
    assert_eq!(states(&cluster, last).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_store_is_kicked_and_replaced_by_a_new_directory() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    // With its only store dead it can decide nothing, and its replica there cannot be removed.
    json(&cluster, 0, &["keyspace", "create", "one", "--replicas", "1"]);
    let one = json(&cluster, 0, &["keyspace", "describe", "one"])["replicas"][0].clone();
    let load = Load::start(&cluster, 2).await;
    load.progress(50).await;
    let ids: Vec<_> = (0..3).map(|i| json(&cluster, i, &["sid"])["store"].clone()).collect();
    let victim = (0..3).find(|i| ids[*i] == one).expect("one of them");
    let others: Vec<_> = (0..3).filter(|i| *i != victim).collect();
    cluster.kill(victim);
    let old = cluster.beside("old");
    std::fs::rename(cluster.data_dir(victim), &old).expect("moved away");
    let name = cluster.stores[victim].name.clone();
    // The same name and address wait until the dead one is gone, and say why.
    cluster.spawn_joining(victim, &others);
    until("the joiner says what is in its way", || cluster.log(victim).contains("kick that store")).await;
    let kicked = json(&cluster, others[0], &["kick", &name, "--detach"]);
    assert_eq!(kicked["state"], "leaving");
    cluster.wait_ready(victim);
    // What the keyspace without a quorum is in the way of, and the way out.
    let error = refused(&cluster, others[0], &["kick", &text(&ids[victim]), "--wait", "2s"]);
    assert!(error.contains("still has 1 replicas"), "{error}");
    let id = text(&json(&cluster, others[0], &["keyspace", "describe", "one"])["id"]);
    json(&cluster, others[0], &["keyspace", "delete", "one", "--id", &id]);
    assert_eq!(json(&cluster, others[0], &["kick", &text(&ids[victim])])["state"], "kicked");
    load.progress(50).await;
    until("all are members", || states(&cluster, others[1]).values().filter(|s| *s == "member").count() == 3)
        .await;
    until("default is on three stores again", || voters(&cluster, victim, "default") == names(1..=3)).await;
    let acknowledged = load.end().await;
    all_there(&cluster, &[0, 1, 2], &acknowledged).await;
    cluster.equal_hashes().await;
    // The old directory hears that it is gone, though its address belongs to another store now.
    let mut back = cluster.spawn_elsewhere(&old);
    assert_eq!(back.wait_exit(), Some(2), "{}", back.log());
    assert!(back.log().contains("kicked"), "{}", back.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_runs_is_kicked_by_its_address_and_stops() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    let load = Load::start(&cluster, 2).await;
    load.progress(20).await;
    let victim = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != victim).collect();
    let error = refused(&cluster, others[0], &["kick", "nobody"]);
    assert!(error.contains("there is no store"), "{error}");
    let address = format!("127.0.0.1:{}", cluster.stores[victim].peer);
    assert_eq!(json(&cluster, others[0], &["kick", &address])["state"], "kicked");
    assert_eq!(cluster.wait_exit(victim), Some(2), "{}", cluster.log(victim));
    cluster.spawn(victim);
    assert_eq!(cluster.wait_exit(victim), Some(2), "it starts again");
    // Asked for twice is asked for once.
    let name = cluster.stores[victim].name.clone();
    assert_eq!(json(&cluster, others[1], &["kick", &name])["state"], "kicked");
    let acknowledged = load.end().await;
    all_there(&cluster, &others, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_is_killed_again_and_again_joins() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    let load = Load::start(&cluster, 2).await;
    load.progress(50).await;
    cluster.add(3);
    // Killed at moments that differ: while it asks, when it is let in, while it catches up.
    for delay_ms in [5, 60, 130, 250, 400] {
        cluster.spawn_joining(3, &[1]);
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        cluster.kill(3);
    }
    cluster.spawn_joining(3, &[1]);
    cluster.wait_ready(3);
    until("default has the new store", || voters(&cluster, 0, "default") == names(1..=4)).await;
    assert_eq!(states(&cluster, 0).len(), 4, "it was let in once");
    let acknowledged = load.end().await;
    all_there(&cluster, &[0, 1, 2, 3], &acknowledged).await;
    cluster.equal_hashes().await;
    // Now it starts like any other.
    cluster.kill(3);
    cluster.restart(3);
    all_there(&cluster, &[3], &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_meta_group_dies_in_the_midst_of_moves() {
    let mut cluster = Cluster::start(4, &["--election-timeout", "500ms"]);
    for i in 0..12 {
        json(&cluster, 0, &["keyspace", "create", &format!("k{i}"), "--replicas", "3"]);
    }
    let load = Load::start(&cluster, 2).await;
    load.progress(20).await;
    cluster.add(4);
    cluster.spawn_joining(4, &[0]);
    cluster.wait_ready(4);
    assert_eq!(json(&cluster, 3, &["leave", "--detach"])["state"], "leaving");
    let meta = json(&cluster, 0, &["status", "--group", "meta"]);
    let leader = (0..5).find(|i| i != &3 && json(&cluster, *i, &["sid"])["store"] == meta["leader"]);
    if let Some(leader) = leader {
        cluster.kill(leader);
        load.progress(10).await;
        cluster.restart(leader);
    }
    assert_eq!(cluster.wait_exit(3), Some(0), "{}", cluster.log(3));
    until("nothing moves", || json(&cluster, 1, &["moves"])["moves"].as_array().is_some_and(Vec::is_empty))
        .await;
    let list = json(&cluster, 1, &["store", "list"]);
    let loads: Vec<_> = list["stores"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["replicas"].as_u64().expect("a number"))
        .collect();
    assert_eq!(loads.len(), 4);
    assert!(loads.iter().max().expect("four") - loads.iter().min().expect("four") <= 1, "{loads:?}");
    let keyspaces = json(&cluster, 1, &["keyspace", "list"]);
    for keyspace in keyspaces["keyspaces"].as_array().expect("a list") {
        let wanted = keyspace["replicas_wanted"].as_u64().map(|n| n.min(4) as usize);
        assert_eq!(keyspace["replicas"].as_array().map(Vec::len), wanted, "{keyspace}");
    }
    let acknowledged = load.end().await;
    all_there(&cluster, &[0, 1, 2, 4], &acknowledged).await;
}

/// ovsdb: "leaving the cluster with some servers down".
#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_cluster_with_some_servers_down() {
    let mut cluster = Cluster::start(5, &["--election-timeout", "500ms"]);
    cluster.put(0, "w/before", "1").await;
    cluster.kill(3);
    cluster.kill(4);
    // Three of five are there. Without one of them three of four would be needed, and two are left: it has to wait.
    assert_eq!(json(&cluster, 2, &["leave", "--detach"])["state"], "leaving");
    cluster.put(0, "w/leaving", "2").await;
    assert!(cluster.runs(2), "it takes part until it is gone:\n{}", cluster.log(2));
    cluster.restart(3);
    assert_eq!(cluster.wait_exit(2), Some(0), "{}", cluster.log(2));
    assert_eq!(json(&cluster, 3, &["leave"])["state"], "left");
    assert_eq!(cluster.wait_exit(3), Some(0), "{}", cluster.log(3));
    // Of three, two are there; the third is kicked, though it is down.
    assert_eq!(json(&cluster, 0, &["kick", "n5"])["state"], "kicked");
    cluster.put(1, "w/after", "3").await;
    assert_eq!(cluster.range(1, "w/", false).await.kvs.len(), 3);
    cluster.spawn(4);
    assert_eq!(cluster.wait_exit(4), Some(2), "{}", cluster.log(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leave_goes_on_after_a_restart_of_the_store_that_leaves() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    cluster.put(0, "w/a", "1").await;
    // Nobody can do anything for it now.
    cluster.kill(0);
    cluster.kill(1);
    cluster.restart(0);
    assert_eq!(json(&cluster, 2, &["leave", "--detach"])["state"], "leaving");
    // Two voters of three are there; of the two that stay only one: the leave waits.
    cluster.kill(2);
    cluster.restart(2);
    until("it knows", || states(&cluster, 2).get("n3").is_some_and(|state| state == "leaving")).await;
    cluster.restart(1);
    assert_eq!(cluster.wait_exit(2), Some(0), "{}", cluster.log(2));
    assert_eq!(cluster.range(1, "w/", false).await.kvs.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_are_prepared_offline_make_a_cluster() {
    let mut cluster = Cluster::new(2, &["--election-timeout", "500ms"]);
    let dirs: Vec<_> = (0..2).map(|i| cluster.data_dir(i).display().to_string()).collect();
    let peers: Vec<_> = cluster.stores.iter().map(|s| format!("127.0.0.1:{}", s.peer)).collect();
    let created = pontoon(&[
        "create-cluster",
        &dirs[0],
        "--name",
        "n1",
        "--advertise-peer",
        &peers[0],
        "--output",
        "json",
    ]);
    let created: Value = serde_json::from_slice(&created.stdout).expect("JSON");
    let cid = text(&created["cluster"]);
    let again = pontoon(&["create-cluster", &dirs[0], "--name", "n1", "--advertise-peer", &peers[0]]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
    let own = pontoon(&[
        "join-cluster",
        &dirs[1],
        "--name",
        "n2",
        "--advertise-peer",
        &peers[1],
        "--remote",
        &peers[1],
    ]);
    assert_eq!(own.status.code(), Some(2));
    assert!(is_empty(cluster.data_dir(1)), "nothing changed");
    let join = |cid: &str| {
        let args = [
            "join-cluster",
            &dirs[1],
            "--name",
            "n2",
            "--advertise-peer",
            &peers[1],
            "--cid",
            cid,
            "--remote",
        ];
        // Several remotes behind one flag; nobody is at the first.
        let done = pontoon(&[&args[..], &["127.0.0.1:1", &peers[0]]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    cluster.spawn_prepared(0);
    cluster.wait_ready(0);
    // Another cluster than the one that answers is never joined.
    join("00000000000000ff");
    cluster.spawn_prepared(1);
    assert_eq!(cluster.wait_exit(1), Some(2), "{}", cluster.log(1));
    assert!(cluster.log(1).contains(&format!("this is cluster {cid}")), "{}", cluster.log(1));
    std::fs::remove_dir_all(cluster.data_dir(1)).expect("removed");
    join(&cid);
    let inspected = pontoon(&["inspect", "--output", "json", &dirs[1]]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    assert_eq!(inspected["state"], "joining");
    assert_eq!(
        (&inspected["cluster"], &inspected["name"], &inspected["address"], &inspected["remotes"]),
        (
            &created["cluster"],
            &"n2".into(),
            &peers[1].as_str().into(),
            &vec!["127.0.0.1:1", &peers[0]].into()
        ),
    );
    let wished = inspected["store"].clone();
    cluster.spawn_prepared(1);
    cluster.wait_ready(1);
    assert_eq!(text(&json(&cluster, 1, &["cid"])["cluster"]), cid);
    assert_eq!(json(&cluster, 1, &["sid"])["store"], wished);
    until("both are members", || states(&cluster, 0).values().all(|s| s == "member")).await;
    until("default is on both", || voters(&cluster, 1, "default") == names(1..=2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_at_another_address_is_found() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    cluster.put(0, "w/a", "1").await;
    cluster.kill(2);
    cluster.move_elsewhere(2);
    cluster.put(0, "w/b", "2").await;
    cluster.spawn_prepared(2);
    cluster.wait_ready(2);
    assert_eq!(cluster.range(2, "w/", false).await.kvs.len(), 2);
    let address = format!("127.0.0.1:{}", cluster.stores[2].peer);
    until("the others know the new address", || {
        let list = json(&cluster, 0, &["store", "list"]);
        list["stores"].as_array().expect("a list").iter().any(|s| s["address"] == address.as_str())
    })
    .await;
    // It is a member in full: a quorum with it works.
    cluster.kill(0);
    cluster.put(1, "w/c", "3").await;
}

/// Runs etcdctl, which must work.
fn etcdctl(cluster: &Cluster, asked: usize, args: &[&str]) -> String {
    let (ok, stdout, stderr) = crate::etcdctl::attempt(&cluster.endpoint(asked), args, None);
    assert!(ok, "etcdctl {args:?} failed\n{stdout}\n{stderr}");
    stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_adds_promotes_updates_and_removes_members() {
    if !crate::etcdctl::available() {
        return;
    }
    let mut cluster = Cluster::start(3, &["--election-timeout", "500ms"]);
    cluster.put(0, "w/a", "1").await;
    cluster.add(3);
    let url = format!("http://127.0.0.1:{}", cluster.stores[3].peer);
    let added = etcdctl(&cluster, 1, &["member", "add", "n4", &format!("--peer-urls={url}"), "--learner"]);
    let id = added.split_whitespace().nth(1).expect("an id").to_owned();
    let list = etcdctl(&cluster, 2, &["member", "list"]);
    let row = list.lines().find(|l| l.contains(&url)).expect("the place is kept").to_owned();
    assert!(row.contains(&id) && row.contains("unstarted") && row.ends_with("true"), "{list}");
    let (ok, _, error) = crate::etcdctl::attempt(&cluster.endpoint(0), &["member", "promote", &id], None);
    assert!(!ok && error.contains("in sync with leader"), "{error}");
    // Another address for a store that has not come yet, and back.
    etcdctl(&cluster, 0, &["member", "update", &id, "--peer-urls=http://127.0.0.1:1"]);
    etcdctl(&cluster, 0, &["member", "update", &id, &format!("--peer-urls={url}")]);
    cluster.spawn_existing(3);
    cluster.wait_ready(3);
    assert_eq!(text(&json(&cluster, 3, &["sid"])["store"]), id);
    assert_eq!(etcdctl(&cluster, 3, &["get", "w/a", "--print-value-only"]), "1\n", "a learner passes it on");
    assert_eq!(voters(&cluster, 0, "meta"), names(1..=3));
    etcdctl(&cluster, 1, &["member", "promote", &id]);
    until("it votes", || voters(&cluster, 0, "default") == names(1..=4)).await;
    assert_eq!(etcdctl(&cluster, 3, &["get", "w/a", "--print-value-only"]), "1\n");
    etcdctl(&cluster, 0, &["member", "remove", &id]);
    assert_eq!(cluster.wait_exit(3), Some(2), "{}", cluster.log(3));
    assert_eq!(etcdctl(&cluster, 1, &["member", "list"]).lines().count(), 3);
    let (ok, _, error) = crate::etcdctl::attempt(&cluster.endpoint(0), &["member", "remove", &id], None);
    assert!(!ok && error.to_lowercase().contains("not found"), "{error}");
}
