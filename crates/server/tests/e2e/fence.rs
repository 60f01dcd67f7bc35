//! A store whose directory came back empty, older or twice never acts under its old name, and a restart always does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pontoon_proto::etcdserverpb::PutRequest;

use crate::cluster::Cluster;
use crate::crash::{Load, all_there};

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(done.success());
}

fn replace(directory: &Path, by: &Path) {
    std::fs::remove_dir_all(directory).expect("removed");
    std::fs::rename(by, directory).expect("renamed");
}

/// Waits for the end of a store that must be refused, and checks what it says.
fn refused(cluster: &mut Cluster, i: usize, why: &str) {
    assert_eq!(cluster.wait_exit(i), Some(2), "its log:\n{}", cluster.log(i));
    let log = cluster.log(i);
    let last = log.lines().last().unwrap_or_default();
    let directory = cluster.data_dir(i).display().to_string();
    for part in [&directory, why, "must not vote again", "start it with the directory that it ran on last"] {
        assert!(last.contains(part), "no {part:?} in {last}");
    }
}

fn status(cluster: &Cluster, asked: usize) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["status", "--output", "json", "--endpoints", &cluster.endpoint(asked)])
        .output()
        .expect("runs");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn row(cluster: &Cluster, status: &serde_json::Value, store: usize) -> serde_json::Value {
    let name = cluster.stores[store].name.as_str();
    let stores = status["stores"].as_array().expect("a list");
    stores.iter().find(|row| row["name"] == name).expect("the store").clone()
}

fn state_of(cluster: &Cluster, asked: usize, store: usize) -> (String, String) {
    let row = row(cluster, &status(cluster, asked), store);
    (row["state"].as_str().expect("text").to_owned(), row["fenced"].as_str().unwrap_or_default().to_owned())
}

/// How many connections of processes of `store` the asked one has taken.
fn taken(cluster: &Cluster, asked: usize, store: usize) -> u64 {
    let status = status(cluster, asked);
    let id = row(cluster, &status, store)["store"].clone();
    let connections = status["connections"].as_array().expect("a list");
    let inbound = connections.iter().filter(|c| c["store"] == id && c["direction"] == "in");
    inbound.map(|c| c["successes"].as_u64().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_is_refused_and_the_others_go_on() {
    let mut cluster = Cluster::start(3, &[]);
    let victim = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != victim).collect();
    let load = Load::start(&cluster, 4).await;
    load.progress(200).await;
    cluster.kill(victim);
    std::fs::remove_dir_all(cluster.data_dir(victim)).expect("removed");
    for _ in 0..2 {
        // The second time by its own note.
        cluster.spawn(victim);
        refused(&mut cluster, victim, "not the one that the store ran on");
        load.progress(50).await;
    }
    let (state, why) = state_of(&cluster, others[0], victim);
    assert!(state == "fenced" && why.contains("lineage"), "{state}: {why}");
    assert_eq!(state_of(&cluster, others[0], others[1]), ("member".to_owned(), String::new()));
    let acknowledged = load.end().await;
    all_there(&cluster, &others, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_and_one_that_was_away_are_no_quorum() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.put(0, "w/before", "1").await;
    // Acknowledged by 0 and 1 only.
    cluster.kill(2);
    cluster.put(0, "w/after", "2").await;
    cluster.kill(0);
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.data_dir(0)).expect("removed");
    cluster.spawn(0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(cluster.runs(0), "nobody is there to refuse it:\n{}", cluster.log(0));
    cluster.spawn(2);
    refused(&mut cluster, 0, "not the one that the store ran on");
    assert!(cluster.runs(2));
    cluster.spawn(1);
    cluster.wait_ready(1);
    cluster.leader(&[1, 2]).await;
    for i in [1, 2] {
        let found = cluster.range(i, "w/", false).await;
        assert_eq!(found.kvs.len(), 2, "on store {i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_is_refused_and_the_right_directory_is_taken() {
    let mut cluster = Cluster::start(3, &[]);
    let victim = cluster.leader(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 4).await;
    load.progress(100).await;
    // A backup of a store that was down.
    cluster.kill(victim);
    let backup = cluster.beside("backup");
    copy(cluster.data_dir(victim), &backup);
    cluster.restart(victim);
    load.progress(100).await;
    cluster.kill(victim);
    let right = cluster.beside("right");
    std::fs::rename(cluster.data_dir(victim), &right).expect("renamed");
    std::fs::rename(&backup, cluster.data_dir(victim)).expect("renamed");
    cluster.spawn(victim);
    refused(&mut cluster, victim, "its data directory is a copy");
    load.progress(50).await;
    // The right one.
    replace(cluster.data_dir(victim), &right);
    cluster.restart(victim);
    load.progress(50).await;

    // A snapshot of the disk of a store that ran on, and died in the same run.
    cluster.signal(victim, "STOP");
    copy(cluster.data_dir(victim), &backup);
    cluster.signal(victim, "CONT");
    load.progress(200).await;
    cluster.kill(victim);
    std::fs::rename(cluster.data_dir(victim), &right).expect("renamed");
    std::fs::rename(&backup, cluster.data_dir(victim)).expect("renamed");
    cluster.spawn(victim);
    refused(&mut cluster, victim, "has lost writes");
    replace(cluster.data_dir(victim), &right);
    cluster.restart(victim);
    load.progress(50).await;
    let acknowledged = load.end().await;
    cluster.equal_hashes().await;
    all_there(&cluster, &[0, 1, 2], &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_refused_while_the_original_runs_on() {
    let mut cluster = Cluster::start(3, &[]);
    let original = cluster.leader(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 3).await;
    load.progress(100).await;
    cluster.signal(original, "STOP");
    let clone = cluster.beside("clone");
    copy(cluster.data_dir(original), &clone);
    cluster.signal(original, "CONT");
    load.progress(20).await;
    let mut second = cluster.spawn_elsewhere(&clone);
    assert_eq!(second.wait_exit(), Some(2), "{}", second.log());
    let log = second.log();
    let last = log.lines().last().unwrap_or_default();
    // It lacks what was written since; had nothing been, the original's answer to a probe would tell.
    assert!(last.contains("has lost writes") || last.contains("another process runs as store"), "{last}");
    assert!(last.contains(&clone.display().to_string()), "{last}");
    load.progress(50).await;
    assert!(cluster.runs(original), "{}", cluster.log(original));
    let acknowledged = load.end().await;
    // Not after the original is gone, either.
    cluster.kill(original);
    assert_eq!(cluster.spawn_elsewhere(&clone).wait_exit(), Some(2));
    cluster.restart(original);
    cluster.equal_hashes().await;
    all_there(&cluster, &[0, 1, 2], &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_wakes_up_behind_its_clone_stops() {
    let mut cluster = Cluster::start(3, &[]);
    let original = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<_> = (0..3).filter(|i| *i != original).collect();
    cluster.put(original, "w/before", "1").await;
    cluster.signal(original, "STOP");
    let clone = cluster.beside("clone");
    copy(cluster.data_dir(original), &clone);
    let before: Vec<_> = others.iter().map(|i| taken(&cluster, *i, original)).collect();
    // It has all that was ever said, and nobody hears of the other one.
    let second = cluster.spawn_elsewhere(&clone);
    for (i, before) in others.iter().zip(before) {
        while taken(&cluster, *i, original) == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    cluster.put(others[0], "w/between", "2").await;
    cluster.signal(original, "CONT");
    refused(&mut cluster, original, "must not run as store");
    cluster.put(others[1], "w/after", "3").await;
    for i in others {
        assert_eq!(cluster.range(i, "w/", false).await.kvs.len(), 3);
    }
    assert!(!second.log().contains("must not run"), "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_serves_when_all_have_met_and_a_majority_is_enough_from_then_on() {
    let mut cluster = Cluster::new(3, &[]);
    cluster.spawn(0);
    cluster.spawn(1);
    for i in [0, 1] {
        while !cluster.log(i).contains("all others of its cluster have met it once") {
            assert!(cluster.runs(i), "{}", cluster.log(i));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            cluster.log(i).contains("n3") && !cluster.log(i).contains("leadership"),
            "{}",
            cluster.log(i)
        );
    }
    // It listens, and says what clients of etcd understand.
    cluster.wait_ready(0);
    let early = PutRequest { key: "w/early".into(), ..PutRequest::default() };
    let early = cluster.kv(0).await.put(early).await.expect_err("nobody leads");
    assert_eq!((early.code(), early.message()), (tonic::Code::Unavailable, "etcdserver: no leader"));
    // SIGTERM is obeyed meanwhile.
    cluster.signal(1, "TERM");
    assert_eq!(cluster.wait_exit(1), Some(0));
    cluster.spawn(1);
    cluster.spawn(2);
    for i in [1, 2] {
        cluster.wait_ready(i);
    }
    cluster.put(0, "w/x", "1").await;
    for i in 0..3 {
        cluster.kill(i);
    }
    cluster.spawn(1);
    cluster.spawn(2);
    cluster.put(1, "w/y", "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_are_never_refused() {
    let mut cluster = Cluster::start(3, &[]);
    for round in 0..5 {
        cluster.put(round % 3, &format!("w/{round}"), "v").await;
        for i in 0..3 {
            cluster.kill(i);
        }
        cluster.restart_all();
    }
    cluster.leader(&[0, 1, 2]).await;
    cluster.equal_hashes().await;
    assert_eq!(cluster.range(0, "w/", false).await.kvs.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_killed_again_and_again_ends_well() {
    let mut cluster = Cluster::new(3, &[]);
    for round in 0..12 {
        for i in 0..3 {
            cluster.spawn(i);
        }
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        for i in 0..3 {
            cluster.kill(i);
        }
    }
    cluster.restart_all();
    cluster.put(0, "w/x", "v").await;
    cluster.equal_hashes().await;
}
