//! `inspect` and `check-cluster` over the directories of a cluster that ran, was disturbed, and was stopped.

use std::path::Path;
use std::process::{Command, Output};

use pontoon_raft_core::types::{GroupId, HardState, ReplicaId, StoreId, Term};
use pontoon_storage::records::{Event, StoreRecords};
use pontoon_storage::{Batch, GroupWrite, LogStore, Options};
use serde_json::Value;

use crate::cluster::Cluster;

fn pontoon(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pontoon")).args(args).output().expect("the binary runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn error(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// Kills and restarts bring new leaders and terms; the records of all of it add up. Then one store's do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_cluster_is_inspected_and_checked() {
    let mut cluster = Cluster::start(3, &["--election-timeout", "300ms"]);
    for round in 0..3 {
        let leader = cluster.leader(&[0, 1, 2]).await;
        for n in 0..20 {
            cluster.put((leader + n) % 3, &format!("key-{round}-{n}"), "value").await;
        }
        cluster.kill(leader);
        let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
        cluster.leader(&others).await;
        cluster.put(others[0], &format!("without-{leader}"), "value").await;
        cluster.restart(leader);
    }
    cluster.put(0, "last", "value").await;

    let running = pontoon(&["inspect", text(cluster.data_dir(0))]);
    assert_eq!(running.status.code(), Some(2));
    let told = error(&running);
    assert!(told.contains("in use by another process") && told.contains("stop the other one"), "{told}");
    for i in 0..3 {
        cluster.signal(i, "TERM");
    }
    for i in 0..3 {
        assert_eq!(cluster.wait_exit(i), Some(0));
    }

    let dirs: Vec<_> = (0..3).map(|i| cluster.data_dir(i)).collect();
    let inspected = pontoon(&["inspect", text(dirs[1]), "--output", "json"]);
    assert_eq!(inspected.status.code(), Some(0), "{}", String::from_utf8_lossy(&inspected.stderr));
    let document_of_2 = document(&inspected);
    assert_eq!(document_of_2["name"], "n2");
    assert_eq!(document_of_2["state"], "member");
    assert_eq!(document_of_2["address"], format!("127.0.0.1:{}", cluster.stores[1].peer));
    assert_eq!(document_of_2["cluster"].as_str().map(str::len), Some(16));
    let groups = document_of_2["groups"].as_array().expect("a list");
    let of = |name: &str| groups.iter().find(|group| group["group"] == name).expect("the group is there");
    assert_eq!((&of("meta")["group_id"], &of("meta")["kind"]), (&0.into(), &"meta".into()));
    let default = of("default");
    assert_eq!((&default["group_id"], &default["kind"]), (&1.into(), &"kv".into()));
    assert!(default["log_last"].as_u64() >= Some(64) && default["commit"].as_u64() >= Some(60), "{default}");
    let people = pontoon(&["inspect", text(dirs[1])]);
    let people = String::from_utf8(people.stdout).expect("UTF-8");
    assert!(people.contains("state       member") && people.contains("default"), "{people}");

    let all: Vec<_> = ["check-cluster"].into_iter().chain(dirs.iter().map(|dir| text(dir))).collect();
    let checked = pontoon(&all);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    assert!(String::from_utf8_lossy(&checked.stdout).starts_with("no violation in 3 stores, 2 groups"));
    // The check knows who led: each of the terms was noted by its leader.
    let mut led = 0;
    for dir in &dirs {
        let records = StoreRecords::read(&dir.join("log"), &[]).expect("a good store");
        let history = &records.groups[&GroupId(1)].history;
        led += history.iter().filter(|recorded| matches!(recorded.event, Event::Leads(_))).count();
    }
    assert!(led >= 4, "only {led} leaderships are noted");
    let twice = pontoon(&["check-cluster", text(dirs[0]), text(dirs[0])]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(error(&twice).contains("each store is compared once"));

    // Store 3 says that it led a term that another store led.
    let term = led_term(dirs[0], dirs[1]);
    says_that_it_leads(dirs[2], term);
    let violated = pontoon(&[&all[..], &["--output", "json"]].concat());
    assert_eq!(violated.status.code(), Some(1));
    assert!(error(&violated).contains("violations of Raft's guarantees"));
    let found = document(&violated);
    let violations = found["violations"].as_array().expect("a list");
    let named = violations.iter().find(|v| v["rule"] == "election-safety").expect("the violation is named");
    assert_eq!((&named["group"], &named["term"]), (&"default".into(), &term.0.into()));
    assert!([&named["name"], &named["other_name"]].contains(&&Value::from("n3")), "{named}");
}

/// A term that one of the stores noted to have led.
fn led_term(a: &Path, b: &Path) -> Term {
    let histories = [a, b].map(|dir| {
        let mut records = StoreRecords::read(&dir.join("log"), &[]).expect("a good store");
        records.groups.remove(&GroupId(1)).expect("the keyspace is there").history
    });
    let led = histories.iter().flatten().find_map(|recorded| match recorded.event {
        Event::Leads(term) => Some(term),
        _ => None,
    });
    led.expect("one of the two led once")
}

fn says_that_it_leads(dir: &Path, term: Term) {
    let (log, _) = LogStore::open(&dir.join("log"), Options::default()).expect("a good store");
    let (done, written) = std::sync::mpsc::channel();
    let write = GroupWrite { group: GroupId(1), leads: Some(term), ..GroupWrite::default() };
    log.submit(Batch { groups: vec![write] }, Box::new(move |outcome| drop(done.send(outcome))));
    written.recv().expect("it is answered").expect("it is written");
    log.close();
}

/// What cannot be read is refused with the reason, and nothing is made or changed.
#[test]
fn what_is_no_good_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("nowhere");
    for command in ["inspect", "check-cluster"] {
        let refused = pontoon(&[command, text(&missing)]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(error(&refused).contains("is no directory"));
        let refused = pontoon(&[command, text(dir.path())]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(error(&refused).contains("holds no store"));
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);

    // A whole store whose journal is damaged: as a start would say it.
    let log = dir.path().join("log");
    let (store, _) = LogStore::open(&log, Options::default()).expect("a new store");
    let (done, written) = std::sync::mpsc::channel();
    let replica = ReplicaId { store: StoreId(1), number: 1 };
    let state = HardState { term: Term(1), voted_for: Some(replica) };
    let write = GroupWrite {
        group: GroupId(1),
        create: Some(replica),
        hard_state: Some(state),
        ..GroupWrite::default()
    };
    store.submit(Batch { groups: vec![write] }, Box::new(move |outcome| drop(done.send(outcome))));
    written.recv().expect("it is answered").expect("it is written");
    store.close();
    let segment = log.join("journal-00000001.seg");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[4096 + 40] ^= 1;
    std::fs::write(&segment, &bytes).expect("written");
    let refused = pontoon(&["check-cluster", text(dir.path())]);
    assert_eq!(refused.status.code(), Some(2));
    let told = error(&refused);
    assert!(told.contains("the journal ends at batch 0, but batch 1 was durable"), "{told}");
    assert_eq!(std::fs::read(&segment).expect("a segment"), bytes);
}
