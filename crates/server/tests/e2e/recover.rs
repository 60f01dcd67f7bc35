//! Two of three stores are gone for good: the third goes on, the dead stay dead, and the cluster grows again.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, retry};
use crate::crash::{Load, all_there};

/// Runs the binary; exit code, standard output, standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon")).args(args).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn json(args: &[&str]) -> Value {
    let (code, out, err) = run(&[args, &["--output", "json"]].concat());
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

fn group<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let groups = plan["groups"].as_array().expect("a list");
    groups.iter().find(|g| g["group"] == name).unwrap_or_else(|| panic!("no {name}: {plan}"))
}

/// Waits until a group has so many voters that are to stay.
async fn voters(cluster: &Cluster, asked: usize, name: &str, wanted: usize) {
    retry("voters", || async {
        let endpoint = cluster.endpoint(asked);
        let (code, out, err) =
            run(&["status", "--group", name, "--output", "json", "--endpoints", &endpoint]);
        if code != Some(0) {
            return Err(err);
        }
        let status: Value = serde_json::from_str(&out).expect("JSON");
        let servers = status["servers"].as_array().expect("a list");
        let stable = servers.iter().filter(|s| s["role"] == "voter" && s["phase"] == "stable").count();
        if stable == wanted && servers.len() == wanted { Ok(()) } else { Err(out) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_store_goes_on_the_dead_stay_dead_and_new_ones_join() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let endpoint = cluster.endpoint(2);
    json(&["log", "create", "events", "--endpoints", &endpoint]);
    let load = Load::start(&cluster, 4).await;
    load.progress(200).await;
    let acknowledged = load.end().await;
    json(&["log", "append", "events", "before", "--endpoints", &endpoint]);
    // A linearizable read makes sure that the third store has all of it.
    all_there(&cluster, &[2], &acknowledged).await;
    let read = json(&["log", "read", "events", "--endpoints", &endpoint]);
    assert_eq!(read["entries"].as_array().map(Vec::len), Some(1));
    for i in 0..3 {
        cluster.kill(i);
    }
    let kept: Vec<_> = (0..2).map(|i| cluster.beside(&format!("kept{i}"))).collect();
    for (i, kept) in kept.iter().enumerate() {
        std::fs::rename(cluster.data_dir(i), kept).expect("moved away");
    }
    let dir = cluster.data_dir(2).display().to_string();

    // The plan changes nothing, and what is applied is what was planned.
    let plan = json(&["recover", "plan", &dir]);
    assert_eq!(plan["lost"], serde_json::json!(["n1", "n2"]));
    for name in ["meta", "default", "events"] {
        let group = group(&plan, name);
        assert_eq!((&group["fate"], &group["may_lose"]), (&"forced".into(), &true.into()), "{plan}");
        assert_eq!(group["voters"].as_array().map(Vec::len), Some(1));
    }
    let words = plan["confirm"].as_str().expect("words").to_owned();
    assert_eq!(json(&["recover", "plan", &dir])["confirm"], words.as_str());
    let (code, _, err) = run(&["recover", "apply", &dir, "--confirm", "give-up-2-00000000"]);
    assert!(code == Some(2) && err.contains("not of this plan"), "{err}");
    let (code, out, err) = run(&["recover", "plan", &dir]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("acknowledged writes after the last entry") && out.contains(&words), "{out}");
    let (code, out, err) = run(&["recover", "apply", &dir, "--confirm", &words, "--note", "the rack burnt"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let again = json(&["recover", "plan", &dir]);
    assert!(again["confirm"].is_null() && group(&again, "default")["fate"] == "intact", "{again}");

    cluster.spawn(2);
    cluster.wait_ready(2);
    all_there(&cluster, &[2], &acknowledged).await;
    cluster.put(2, "after", "1").await;
    json(&["log", "append", "events", "after", "--endpoints", &endpoint]);
    let history = json(&["recover", "history", "--endpoints", &endpoint]);
    let record = &history["recoveries"][0];
    assert_eq!((&record["note"], &record["lost"]), (&"the rack burnt".into(), &plan["lost"]));
    assert_eq!(record["groups"].as_array().map(Vec::len), Some(3));

    // The old majority is put back: it could lead by its own configuration, and is refused before it does.
    for (i, kept) in kept.iter().enumerate() {
        std::fs::rename(kept, cluster.data_dir(i)).expect("put back");
        cluster.spawn(i);
    }
    for i in 0..2 {
        for attempt in ["by the survivor", "by its own note"] {
            assert_eq!(cluster.wait_exit(i), Some(2), "{attempt}; its log:\n{}", cluster.log(i));
            let log = cluster.log(i);
            assert!(log.lines().last().is_some_and(|l| l.contains("never comes back")), "{attempt}: {log}");
            if attempt == "by the survivor" {
                cluster.spawn(i);
            }
        }
    }
    cluster.put(2, "after", "2").await;

    // New stores take the places of the old ones.
    for i in 3..5 {
        cluster.add(i);
        cluster.spawn_joining(i, &[2]);
        cluster.wait_ready(i);
    }
    for name in ["default", "events", "meta"] {
        voters(&cluster, cluster.leader(&[2, 3, 4]).await, name, 3).await;
    }
    let list = json(&["store", "list", "--endpoints", &endpoint]);
    let names: Vec<_> = list["stores"].as_array().expect("a list").iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["n3", "n4", "n5"], "the old ones have their tombstones");
    cluster.kill(2);
    cluster.put(3, "after", "3").await;
    all_there(&cluster, &[3, 4], &acknowledged).await;
    for i in [3, 4] {
        cluster.kill(i);
    }
    let dirs: Vec<_> = [2, 3, 4].map(|i| cluster.data_dir(i).display().to_string()).into();
    let (code, out, err) =
        run(&[&["check-cluster"][..], &dirs.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    assert_eq!(code, Some(0), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_that_survives_needs_nothing_and_two_of_four_lose_nothing() {
    let mut cluster = Cluster::start(4, &[]);
    let load = Load::start(&cluster, 4).await;
    load.progress(200).await;
    for i in 0..4 {
        cluster.kill(i);
    }
    let acknowledged = load.end().await;
    let dirs: Vec<_> = (0..4).map(|i| cluster.data_dir(i).display().to_string()).collect();
    let three = json(&["recover", "plan", &dirs[0], &dirs[1], &dirs[2]]);
    assert!(three["confirm"].is_null() && group(&three, "default")["fate"] == "intact", "{three}");
    let blind = json(&["recover", "plan", &dirs[0], "--lost", "n3", "--lost", "n4"]);
    assert!(blind["confirm"].is_null(), "{blind}");
    assert_eq!(group(&blind, "default")["missing"], serde_json::json!(["n2"]));
    let (code, _, err) = run(&["recover", "plan", &dirs[0], "--lost", "n1"]);
    assert!(code == Some(2) && err.contains("given as one that survives"), "{err}");

    // In the order in which the worse log comes first, or last: the better one is taken either way.
    let two = json(&["recover", "plan", &dirs[1], &dirs[0]]);
    let default = group(&two, "default");
    assert_eq!((&default["fate"], &default["may_lose"]), (&"forced".into(), &false.into()), "{two}");
    let words = two["confirm"].as_str().expect("words");
    let (code, out, err) = run(&["recover", "apply", &dirs[1], &dirs[0], "--confirm", words]);
    assert_eq!(code, Some(0), "{out}{err}");
    for i in 0..2 {
        cluster.spawn(i);
    }
    for i in 0..2 {
        cluster.wait_ready(i);
    }
    all_there(&cluster, &[0, 1], &acknowledged).await;
    cluster.put(1, "after", "1").await;
    voters(&cluster, cluster.leader(&[0, 1]).await, "default", 2).await;
    for i in 0..2 {
        cluster.kill(i);
    }
    let (code, out, err) = run(&["check-cluster", &dirs[0], &dirs[1]]);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_group_that_lost_its_majority_is_recovered_in_a_cluster_that_did_not() {
    let mut cluster = Cluster::start(5, &[]);
    cluster.leader(&[0, 1, 2, 3, 4]).await;
    let at = |cluster: &Cluster, i: usize| cluster.endpoint(i);
    let made = json(&["log", "create", "orders", "--replicas", "3", "--endpoints", &at(&cluster, 0)]);
    let listed = json(&["store", "list", "--endpoints", &at(&cluster, 0)]);
    let names: Vec<_> = made["replicas"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| {
            let mut stores = listed["stores"].as_array().expect("a list").iter();
            let store = stores.find(|s| s["store"] == *id).expect("a store");
            store["name"].as_str().expect("text").to_owned()
        })
        .collect();
    let index = |name: &String| cluster.stores.iter().position(|s| s.name == *name).expect("a store");
    let hosts: Vec<_> = names.iter().map(index).collect();
    let [survivor, dead @ ..] = &hosts[..] else { panic!("{names:?}") };
    let (survivor, dead) = (*survivor, [dead[0], dead[1]]);
    let witness = (0..5).find(|i| !hosts.contains(i)).expect("two others");
    json(&["log", "append", "orders", "first", "--endpoints", &at(&cluster, survivor)]);
    let read = json(&["log", "read", "orders", "--endpoints", &at(&cluster, survivor)]);
    assert_eq!(read["entries"].as_array().map(Vec::len), Some(1));
    for i in dead {
        cluster.kill(i);
    }
    for i in dead {
        let (name, asked) = (cluster.stores[i].name.clone(), at(&cluster, witness));
        retry("kick", || async {
            match run(&["kick", &name, "--detach", "--endpoints", &asked]) {
                (Some(0), ..) => Ok(()),
                (_, out, err) => Err(format!("{out}{err}")),
            }
        })
        .await;
    }
    cluster.signal(survivor, "TERM");
    assert_eq!(cluster.wait_exit(survivor), Some(0), "{}", cluster.log(survivor));
    let dir = cluster.data_dir(survivor).display().to_string();
    let gone = dead.map(|i| cluster.stores[i].name.clone());
    let args = [dir.as_str(), "--lost", &gone[0], "--lost", &gone[1], "--group", "orders"];
    let plan = json(&[&["recover", "plan"][..], &args].concat());
    assert_eq!(plan["groups"].as_array().map(Vec::len), Some(1));
    assert_eq!(group(&plan, "orders")["fate"], "forced", "{plan}");
    let words = plan["confirm"].as_str().expect("words");
    let (code, out, err) = run(&[&["recover", "apply"][..], &args, &["--confirm", words]].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    cluster.restart(survivor);

    voters(&cluster, survivor, "orders", 3).await;
    json(&["log", "append", "orders", "second", "--endpoints", &at(&cluster, witness)]);
    retry("the dead are gone", || async {
        let listed = json(&["store", "list", "--endpoints", &at(&cluster, witness)]);
        let names: Vec<_> = listed["stores"].as_array().expect("a list").iter().map(|s| &s["name"]).collect();
        if names.len() == 3 { Ok(()) } else { Err(listed.to_string()) }
    })
    .await;
    let read = json(&["log", "read", "orders", "--endpoints", &at(&cluster, witness)]);
    assert_eq!(read["entries"].as_array().map(Vec::len), Some(2));
    let mut dirs = Vec::new();
    for i in (0..5).filter(|i| !dead.contains(i)) {
        cluster.kill(i);
        dirs.push(cluster.data_dir(i).display().to_string());
    }
    let dirs: Vec<_> = dirs.iter().map(String::as_str).collect();
    let (code, out, err) = run(&[&["check-cluster"][..], &dirs].concat());
    assert_eq!(code, Some(0), "{out}{err}");
}
