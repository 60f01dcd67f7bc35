//! A keyspace in a file, and a new one from it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::{HashKvRequest, RangeRequest};
use tonic::Request;

use crate::cluster::{Cluster, PATIENCE, retry};
use crate::etcdctl;
use crate::keyspaces::pontoon;

async fn hash(cluster: &Cluster, store: usize, keyspace: &str) -> (u32, i64) {
    let channel = cluster.channel(store).await;
    retry("a hash", || {
        let mut client = MaintenanceClient::new(channel.clone());
        let mut request = Request::new(HashKvRequest { revision: 0 });
        request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
        async move {
            let hash = client.hash_kv(request).await.map_err(|e| e.to_string())?.into_inner();
            Ok((hash.hash, hash.header.map_or(0, |h| h.revision)))
        }
    })
    .await
}

async fn at_revision(cluster: &Cluster, keyspace: &str, revision: i64) -> Vec<(String, i64)> {
    let range = RangeRequest { key: "k".into(), range_end: "l".into(), revision, ..RangeRequest::default() };
    let mut request = Request::new(range);
    request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
    let found = cluster.kv(2).await.range(request).await.expect("reads").into_inner();
    found.kvs.iter().map(|kv| (String::from_utf8_lossy(&kv.value).into_owned(), kv.mod_revision)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_can_be_restored_into_a_new_keyspace() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    for n in 0..60 {
        cluster.put(n % 3, &format!("k{}", n % 7), &format!("{n} {}", "x".repeat(n * 500))).await;
    }
    let file = cluster.beside("saved");
    let file = file.to_str().expect("a printable path");
    let by_client = etcdctl::available();
    if by_client {
        let saved = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &cluster.endpoint(1), "snapshot", "save", file])
            .output()
            .expect("runs");
        assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    } else {
        let (code, out, err) = pontoon(&cluster, &["keyspace", "save", "default", "--to", file]);
        assert_eq!(code, Some(0), "{out}{err}");
    }
    let (code, _, err) = pontoon(&cluster, &["keyspace", "save", "default", "--to", file]);
    assert_eq!(code, Some(1));
    assert!(err.contains("exists already") && err.lines().count() == 1, "{err}");

    let (code, out, err) = pontoon(&cluster, &["keyspace", "restore", "copy", "--from", file]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("copy") && out.contains("revision 61"), "{out}");
    let saved = hash(&cluster, 0, "default").await;
    assert_eq!(saved.1, 61);
    // From here on nobody knows which of the two is the original; and a restart of all changes nothing.
    for _ in 0..2 {
        for i in 0..3 {
            retry("the same state on every store", || async {
                let copy = hash(&cluster, i, "copy").await;
                if copy == saved { Ok(()) } else { Err(format!("{copy:?}, expected {saved:?}")) }
            })
            .await;
        }
        for revision in [10, 30, 0] {
            let copy = at_revision(&cluster, "copy", revision).await;
            assert_eq!(copy, at_revision(&cluster, "default", revision).await, "at {revision}");
        }
        for i in 0..3 {
            cluster.kill(i);
        }
        cluster.restart_all();
        cluster.leader(&[0, 1, 2]).await;
        cluster.range(2, "k", false).await;
        retry("the copy is open", || async {
            let (code, out, _) = pontoon(&cluster, &["keyspace", "describe", "copy"]);
            if code == Some(0) && out.contains("61") { Ok(()) } else { Err(out) }
        })
        .await;
    }

    // A damaged file makes nothing; nor does one that is no saved keyspace.
    let bytes = std::fs::read(file).expect("the file");
    let damaged = cluster.beside("damaged");
    for (what, change) in [("checksum is wrong", bytes.len() / 2), ("checksum is wrong", bytes.len() - 1)] {
        let mut bytes = bytes.clone();
        bytes[change] ^= 4;
        std::fs::write(&damaged, bytes).expect("written");
        let damaged = damaged.to_str().expect("a printable path");
        let (code, _, err) = pontoon(&cluster, &["keyspace", "restore", "broken", "--from", damaged]);
        assert_eq!(code, Some(1));
        assert!(err.contains(what) && err.lines().count() == 1, "{err}");
    }
    std::fs::write(&damaged, &bytes[..bytes.len() - 100]).expect("written");
    let short = damaged.to_str().expect("a printable path");
    let (code, _, err) = pontoon(&cluster, &["keyspace", "restore", "broken", "--from", short]);
    assert!(code == Some(1) && err.contains("cut off"), "{err}");
    let (_, out, _) = pontoon(&cluster, &["keyspace", "list"]);
    assert!(out.contains("copy") && !out.contains("broken"), "{out}");
    // A name that is taken stays as it is.
    let (code, _, err) = pontoon(&cluster, &["keyspace", "restore", "copy", "--from", file]);
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(hash(&cluster, 0, "copy").await, saved);
}

/// Starts a restore, and kills it when it has come so far that `enough` of what `describe` says; what it said then.
pub(crate) fn kill_a_restore(
    cluster: &Cluster,
    name: &str,
    file: &str,
    enough: impl Fn(&str) -> bool,
) -> String {
    let mut restoring = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["keyspace", "restore", name, "--from", file, "--endpoints", &cluster.endpoint(0)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    let start = Instant::now();
    loop {
        let (code, out, _) = pontoon(cluster, &["keyspace", "describe", name]);
        if code == Some(0) && enough(&out) {
            restoring.kill().expect("kills");
            restoring.wait().expect("ends");
            // What was on its way when it died may still arrive.
            std::thread::sleep(Duration::from_millis(500));
            return pontoon(cluster, &["keyspace", "describe", name]).1;
        }
        assert!(start.elapsed() < PATIENCE, "{out}");
        if let Some(status) = restoring.try_wait().expect("waits") {
            panic!("it was over ({status}) before it was seen; the file is too small:\n{out}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_killed_is_run_again() {
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    // So large that somebody can look at it meanwhile.
    let value = "x".repeat(500_000);
    for n in 0..100 {
        cluster.put(n % 3, &format!("k{n}"), &format!("{n} {value}")).await;
    }
    let file = cluster.beside("saved");
    let file = file.to_str().expect("a printable path");
    let (code, out, err) = pontoon(&cluster, &["keyspace", "save", "default", "--to", file]);
    assert_eq!(code, Some(0), "{out}{err}");
    let saved = hash(&cluster, 0, "default").await;

    let left = kill_a_restore(&cluster, "copy", file, |out| out.contains("pieces are in"));
    assert!(left.contains("not finished") && left.contains("run `keyspace restore` again"), "{left}");
    let range = RangeRequest { key: "k1".into(), ..RangeRequest::default() };
    let mut request = Request::new(range);
    request.metadata_mut().insert("pontoon-keyspace", "copy".parse().expect("ASCII"));
    let status = cluster.kv(1).await.range(request).await.expect_err("it is half there");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("run `pontoon keyspace restore` again"), "{}", status.message());
    let (code, out, err) = pontoon(&cluster, &["keyspace", "restore", "copy", "--from", file]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(hash(&cluster, 2, "copy").await, saved);
    let (_, out, _) = pontoon(&cluster, &["keyspace", "describe", "copy"]);
    assert!(!out.contains("restore"), "{out}");

    // One that was killed before it sent anything has left an empty keyspace, which nobody has written to.
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "empty"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, err) = pontoon(&cluster, &["keyspace", "restore", "empty", "--from", file]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(hash(&cluster, 1, "empty").await, saved);
    let (code, _, err) = pontoon(&cluster, &["keyspace", "restore", "empty", "--from", file]);
    assert!(code == Some(1) && err.contains("exists already"), "{err}");
    assert_eq!(hash(&cluster, 1, "empty").await, saved);

    // One that goes on is left alone by a second one.
    let mut first = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["keyspace", "restore", "both", "--from", file, "--endpoints", &cluster.endpoint(0)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    retry("it has begun", || async {
        let (code, out, _) = pontoon(&cluster, &["keyspace", "describe", "both"]);
        let begun = out.lines().any(|line| line.starts_with("revision") && line.ends_with(" 101"));
        if code == Some(0) && begun { Ok(()) } else { Err(out) }
    })
    .await;
    let (code, out, err) = pontoon(&cluster, &["keyspace", "restore", "both", "--from", file]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(first.wait().expect("ends").success());
    assert_eq!(hash(&cluster, 0, "both").await, saved);
}
