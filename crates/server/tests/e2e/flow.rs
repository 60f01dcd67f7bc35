//! Flow control and the bounds of send queues, as operators and clients see them.

use pontoon_proto::etcdserverpb::PutRequest;
use serde_json::Value;
use tonic::{Code, Request};

use crate::cluster::{Cluster, retry};
use crate::keyspaces::{pontoon, pontoon_at};

fn put(key: &str, class: &str) -> Request<PutRequest> {
    let (key, value) = (key.to_owned().into(), vec![7; 1000].into());
    let put = PutRequest { key, value, ..PutRequest::default() };
    let mut request = Request::new(put);
    request.metadata_mut().insert("pontoon-class", class.parse().expect("ASCII"));
    request
}

fn status(cluster: &Cluster, args: &[&str]) -> Value {
    let (code, out, err) = pontoon(cluster, &[&["status", "--output", "json"], args].concat());
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).expect("one JSON document")
}

/// All tokens are back at the store that is asked.
fn is_full(status: &Value) -> bool {
    let flow = &status["flow"];
    assert_eq!(flow["unaccounted_bytes"], 0);
    let stores = flow["stores"].as_array().expect("a list");
    stores.iter().all(|store| {
        store["send_regular_bytes"] == flow["regular_limit_bytes"]
            && store["eval_elastic_bytes"] == flow["elastic_limit_bytes"]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn work_has_a_class_and_its_tokens_come_back() {
    for mode in ["all", "elastic", "off"] {
        let cluster = Cluster::start(3, &["--flow-control", mode]);
        cluster.leader(&[0, 1, 2]).await;
        for i in 0..3 {
            let mut kv = cluster.kv(i).await;
            for n in 0..20 {
                for class in ["elastic", "regular"] {
                    kv.put(put(&format!("{i}/{n}/{class}"), class)).await.expect("a write");
                }
            }
            let refused = kv.put(put("a", "urgent")).await.expect_err("there is no such class");
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains("regular or elastic"), "{refused}");
        }
        let leader = cluster.leader(&[0, 1, 2]).await;
        let endpoint = cluster.endpoint(leader);
        retry("all tokens", || async {
            let status = status(&cluster, &["--endpoints", &endpoint]);
            assert_eq!(status["flow"]["mode"], mode);
            let took = !status["flow"]["stores"].as_array().expect("a list").is_empty();
            assert!(took || mode == "off", "{status}");
            if is_full(&status) { Ok(()) } else { Err(status["flow"].to_string()) }
        })
        .await;
        let of_group = status(&cluster, &["--group", "default", "--endpoints", &endpoint]);
        let words = of_group["flow"].as_str().expect("words");
        assert_eq!(words.contains("queue ["), mode != "off", "{words}");
        cluster.kill_and_check();
    }
}

/// T25 as an operator does it: mode and limits change under load, no write is lost for it, and all tokens come back.
#[tokio::test(flavor = "multi_thread")]
async fn flow_control_changes_while_the_store_runs() {
    let cluster = Cluster::start(3, &["--flow-control", "elastic"]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let set = |flags: &[&str]| pontoon_at(&cluster, leader, &[&["set-flow-control"], flags].concat());
    let mut kv = cluster.kv(leader).await;
    let writes = tokio::spawn(async move {
        for n in 0..300 {
            let class = if n % 2 == 0 { "elastic" } else { "regular" };
            kv.put(put(&format!("{n}"), class)).await.expect("a write");
        }
    });
    let (code, out, err) = set(&["--mode", "all", "--regular", "8MiB", "--elastic", "4MiB"]);
    let now = "flow control is all with 8388608 bytes, 4194304 for elastic work, 33554432 by force";
    let was = "was elastic with 16777216 bytes, 8388608 for elastic work, 33554432 by force\n";
    assert_eq!((code, out), (Some(0), format!("{now}, {was}")), "{err}");
    for (flags, word) in [
        (["--regular", "1KiB"], "out of bounds"),
        (["--elastic", "16MiB"], "starve first"),
        (["--forced", "1GiB"], "out of bounds"),
    ] {
        let (code, out, err) = set(&flags);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{flags:?}");
        assert!(err.contains(word), "{err}");
    }
    assert_eq!(set(&[]).0, Some(2), "nothing is to be changed");
    for size in ["2MiB", "16MiB"] {
        assert_eq!(set(&["--regular", "16MiB", "--elastic", size]).0, Some(0));
    }
    writes.await.expect("no panic");
    retry("all tokens", || async {
        let (code, out, err) = pontoon_at(&cluster, leader, &["status", "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        let status: Value = serde_json::from_str(&out).expect("one JSON document");
        assert_eq!(status["flow"]["elastic_limit_bytes"], 16 << 20);
        if is_full(&status) { Ok(()) } else { Err(status["flow"].to_string()) }
    })
    .await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_threshold_changes_while_the_store_runs() {
    let cluster = Cluster::start(1, &[]);
    let set = |messages: &str, bytes: &str| pontoon(&cluster, &["set-backlog-threshold", messages, bytes]);
    let (code, out, err) = set("50", "1MiB");
    let first = "the backlog threshold is 50 messages and 1048576 bytes, was 10000 and 8388608\n";
    assert_eq!((code, out.as_str()), (Some(0), first), "{err}");
    let (code, out, _) = set("20000", "64KiB");
    assert_eq!(code, Some(0));
    assert!(out.contains("was 50 and 1048576"), "{out}");
    for (messages, bytes, expected) in
        [("49", "1MiB", 2), ("50", "1", 1), ("50", "2GiB", 1), ("x", "1MiB", 2)]
    {
        let (code, _, err) = set(messages, bytes);
        assert_eq!((code, err.lines().count()), (Some(expected), 1), "{messages} {bytes}: {err}");
    }
}
