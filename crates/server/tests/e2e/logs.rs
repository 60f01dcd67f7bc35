//! Logs on three real processes: appends are done once by their ids, in chains, through the death of leaders.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::{AppendLogRequest, ReadLogRequest};
use serde_json::Value;
use tonic::Code;

use crate::cluster::{Cluster, retry};
use crate::keyspaces::pontoon;

/// What the command prints as JSON.
fn json(cluster: &Cluster, args: &[&str]) -> Value {
    let (code, out, err) = pontoon(cluster, &[args, &["--output", "json"]].concat());
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

fn entries(cluster: &Cluster, name: &str) -> Vec<(u64, String, String)> {
    let read = json(cluster, &["log", "read", name]);
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let entries = read["entries"].as_array().expect("a list").iter();
    entries.map(|e| (e["index"].as_u64().expect("a number"), text(&e["id"]), text(&e["data"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_append_with_prerequisites_read_tail_and_delete() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let created = json(&cluster, &["log", "create", "events"]);
    assert_eq!(created["replicas"].as_array().map(Vec::len), Some(3));
    let (code, _, err) = pontoon(&cluster, &["keyspace", "create", "events"]);
    assert!(code == Some(1) && err.contains("exists already"), "{err}");

    let endpoints = format!("{},{}", cluster.endpoint(1), cluster.endpoint(2));
    let mut tail = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["log", "tail", "events", "--from", "1", "--endpoints", &endpoints])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let zero = "0".repeat(32);
    let first = json(&cluster, &["log", "append", "events", "one", "--prereq", &zero]);
    let first_id = first["id"].as_str().expect("an id");
    let (code, _, err) = pontoon(&cluster, &["log", "append", "events", "stray", "--prereq", &zero]);
    assert!(code == Some(1) && err.contains("bad prerequisite") && err.contains(first_id), "{err}");
    let id = "00000000000000000000000000abcdef";
    let second = json(&cluster, &["log", "append", "events", "two", "--prereq", first_id, "--id", id]);
    let again = json(&cluster, &["log", "append", "events", "two", "--prereq", first_id, "--id", id]);
    assert_eq!((&again["index"], &again["repeated"]), (&second["index"], &Value::Bool(true)));
    let (code, _, err) = pontoon(&cluster, &["log", "append", "events", "other", "--id", id]);
    assert!(code == Some(1) && err.contains("names another entry"), "{err}");
    let (code, _, err) = pontoon(&cluster, &["log", "append", "default", "x"]);
    assert!(code == Some(1) && err.contains("no log \"default\""), "{err}");

    let found = entries(&cluster, "events");
    assert_eq!(found.iter().map(|e| e.2.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(found[1].1, id);
    let (code, out, _) = pontoon(&cluster, &["log", "read", "events", "--from", &found[1].0.to_string()]);
    assert_eq!((code, out), (Some(0), format!("{} {id} two\n", found[1].0)));
    let described = json(&cluster, &["log", "describe", "events"]);
    assert_eq!(described["last"], found[1].0);
    let status = json(&cluster, &["status", "--group", "events"]);
    assert_eq!(status["kind"], "log");

    // Who follows goes on at another store when its own goes away, and misses nothing.
    cluster.kill(1);
    json(&cluster, &["log", "append", "events", "three"]);
    let lines = {
        use std::io::{BufRead as _, BufReader};
        let out = BufReader::new(tail.stdout.take().expect("piped"));
        out.lines().take(3).map(|line| line.expect("reads")).collect::<Vec<_>>()
    };
    tail.kill().expect("kills");
    tail.wait().expect("ends");
    let texts: Vec<_> = lines.iter().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(texts, ["one", "two", "three"], "{lines:?}");
    cluster.restart(1);

    let log_id = created["id"].as_str().expect("an id").to_owned();
    let (code, _, err) = pontoon(&cluster, &["keyspace", "delete", "events", "--id", &log_id]);
    assert!(code == Some(1) && err.contains("is a log"), "{err}");
    let deleted = json(&cluster, &["log", "delete", "events", "--id", &log_id]);
    assert_eq!(deleted["deleted"], true);
    let (code, _, err) = pontoon(&cluster, &["log", "read", "events"]);
    assert!(code == Some(1) && err.contains("there is no log"), "{err}");
    cluster.kill_and_check();
}

/// A writer appends a chain: each entry names the one before. It asks again by the same id until it has an answer.
struct Writer {
    client: Vec<AdminClient<tonic::transport::Channel>>,
    name: String,
    last: Vec<u8>,
    acknowledged: Vec<(u64, Vec<u8>)>,
}

impl Writer {
    async fn new(cluster: &Cluster, name: &str) -> Self {
        let mut client = Vec::new();
        for i in 0..cluster.stores.len() {
            let address = format!("http://{}", cluster.endpoint(i));
            let endpoint = tonic::transport::Endpoint::from_shared(address).expect("an address");
            client.push(AdminClient::new(endpoint.timeout(Duration::from_secs(3)).connect_lazy()));
        }
        Self { client, name: name.to_owned(), last: vec![0; 16], acknowledged: Vec::new() }
    }

    async fn append(&mut self, n: u64) {
        let id = (u128::from(n) + 1).to_be_bytes().to_vec();
        let request = AppendLogRequest {
            name: self.name.clone(),
            id: id.clone().into(),
            prerequisite: Some(self.last.clone().into()),
            data: format!("{n}").into(),
        };
        for attempt in 0.. {
            assert!(attempt < 2000, "entry {n} is never appended");
            let at = (n as usize + attempt) % self.client.len();
            match self.client[at].append_log(request.clone()).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    self.acknowledged.push((answer.index, id.clone()));
                    self.last = id;
                    return;
                }
                // The chain has one writer, so its prerequisite is always right, also when it comes again.
                Err(status) if status.code() == Code::FailedPrecondition => panic!("{status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_appends_survives_the_leader_killed_and_has_each_entry_once() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    json(&cluster, &["log", "create", "chain"]);
    let mut writer = Writer::new(&cluster, "chain").await;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writing = tokio::spawn({
        let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
        async move {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writer.append(n).await;
                count.fetch_add(1, Ordering::Relaxed);
            }
            writer
        }
    });
    let progress = async |n: usize| {
        let goal = count.load(Ordering::Relaxed) + n;
        retry("appends flow", || async {
            let now = count.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        })
        .await;
    };
    progress(50).await;
    for _ in 0..3 {
        let (_, out, err) = pontoon_on(&cluster, &["status", "--group", "chain", "--output", "json"]);
        let status: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        let leader = status["leader"].as_str().expect("a leader").to_owned();
        let leader = (0..3).find(|i| sid(&cluster, *i) == leader).expect("a store of this cluster");
        cluster.kill(leader);
        progress(30).await;
        cluster.restart(leader);
        progress(30).await;
    }
    stop.store(true, Ordering::Relaxed);
    let writer = writing.await.expect("a writer");
    assert!(writer.acknowledged.windows(2).all(|w| w[0].0 < w[1].0), "indexes rise");

    // Every store has the same: each acknowledged entry once, where it was told to be, and nothing else.
    for i in 0..3 {
        let mut client = AdminClient::new(cluster.channel(i).await);
        let (mut found, mut from) = (Vec::new(), 0);
        loop {
            let request = ReadLogRequest { name: "chain".into(), from, entries_max: 37 };
            let page = client.read_log(request).await.expect("reads").into_inner();
            found.extend(page.entries.iter().map(|e| (e.index, e.id.to_vec())));
            from = found.last().map_or(0, |(index, _)| index + 1);
            if !page.more {
                break;
            }
        }
        assert_eq!(found, writer.acknowledged, "store {i}");
    }
    cluster.kill_and_check();
}

/// The command line against whichever store answers.
fn pontoon_on(cluster: &Cluster, args: &[&str]) -> (Option<i32>, String, String) {
    let endpoints: Vec<_> = (0..cluster.stores.len()).map(|i| cluster.endpoint(i)).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(args)
        .args(["--endpoints", &endpoints.join(",")])
        .output()
        .expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn sid(cluster: &Cluster, i: usize) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["sid", "--endpoints", &cluster.endpoint(i)])
        .output()
        .expect("runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_one_store_is_served_by_all_and_comes_to_a_store_that_joins_by_snapshot() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.leader(&[0]).await;
    json(&cluster, &["log", "create", "small"]);
    let big = "x".repeat(100_000);
    for n in 0..200 {
        json(&cluster, &["log", "append", "small", &format!("{n} {big}")]);
    }
    let before = entries(&cluster, "small");
    assert_eq!(before.len(), 200);
    for i in 1..3 {
        cluster.add(i);
        cluster.spawn_joining(i, &[0]);
        cluster.wait_ready(i);
    }
    // Three are wished as soon as there are three.
    retry("the log is on three stores", || async {
        let described = json(&cluster, &["log", "describe", "small"]);
        let voters = json(&cluster, &["status", "--group", "small"]);
        let stable = voters["servers"].as_array().into_iter().flatten();
        let stable = stable.filter(|s| s["role"] == "voter" && s["phase"] == "stable").count();
        if stable == 3 { Ok(()) } else { Err(described.to_string()) }
    })
    .await;
    for i in 0..3 {
        let client = AdminClient::new(cluster.channel(i).await);
        let request = ReadLogRequest { name: "small".into(), from: before[199].0, entries_max: 0 };
        let page = retry("read", || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.read_log(request).await.map_err(|e| e.to_string()) }
        })
        .await
        .into_inner();
        assert_eq!(page.entries.len(), 1, "store {i}");
    }
    cluster.kill(0);
    let (code, out, err) = pontoon_on(&cluster, &["log", "append", "small", "after", "--timeout", "30s"]);
    assert_eq!(code, Some(0), "{out}{err}");
    cluster.kill_and_check();
}
