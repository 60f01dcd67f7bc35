//! Many keyspaces on the same three processes, named as clients name them.

use std::process::Command;
use std::time::Duration;

use pontoon_proto::etcdserverpb::cluster_client::ClusterClient;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest};
use pontoon_proto::v1::CreateKeyspaceRequest;
use pontoon_proto::v1::admin_client::AdminClient;
use tonic::transport::Endpoint;

use crate::cluster::{Cluster, retry};

pub(crate) fn pontoon(cluster: &Cluster, args: &[&str]) -> (Option<i32>, String, String) {
    pontoon_at(cluster, 0, args)
}

/// The command line against one store: exit code, standard output, standard error.
pub(crate) fn pontoon_at(cluster: &Cluster, i: usize, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(args)
        .args(["--endpoints", &cluster.endpoint(i), "--timeout", "30s"])
        .output()
        .expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn keyspaces_are_named_by_host_by_metadata_and_kept_apart() {
    const KEYSPACES: usize = 30;
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    for n in 0..KEYSPACES {
        let (code, out, err) = pontoon(&cluster, &["keyspace", "create", &format!("t{n}")]);
        assert_eq!(code, Some(0), "{out}{err}");
    }
    let (code, _, err) = pontoon(&cluster, &["keyspace", "create", "t0"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("exists already"), "{err}");
    let (code, _, err) = pontoon(&cluster, &["keyspace", "create", "Not.A.Label"]);
    assert!(code != Some(0) && err.lines().count() == 1, "{err}");

    for n in 0..KEYSPACES {
        let address = format!("http://{}", cluster.endpoint(n % 3));
        let endpoint = Endpoint::from_shared(address)
            .expect("an address")
            .origin(format!("http://t{n}.db.example:2379").parse().expect("an origin"));
        let kv = KvClient::new(endpoint.connect().await.expect("connects"));
        let put = PutRequest { key: "k".into(), value: format!("v{n}").into(), ..PutRequest::default() };
        let answer = retry("put", || {
            let (mut kv, put) = (kv.clone(), put.clone());
            async move { kv.put(put).await.map_err(|e| e.to_string()) }
        })
        .await;
        let revision = answer.into_inner().header.expect("a header").revision;
        assert_eq!(revision, 2, "the first write of a keyspace of its own");
    }
    // Who follows the member list stays in the keyspace: also where another store answers for it.
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "far", "--replicas", "1"]);
    assert_eq!(code, Some(0), "{out}{err}");
    for i in 0..3 {
        for (host, expected) in [
            ("far.db.example", "far.db.example"),
            ("t0.db.example", "t0.db.example"),
            ("localhost", "127.0.0.1"),
        ] {
            let address = format!("http://{}", cluster.endpoint(i));
            let origin = format!("http://{host}:2379").parse().expect("an origin");
            let endpoint = Endpoint::from_shared(address).expect("an address").origin(origin);
            let mut members = ClusterClient::new(endpoint.connect().await.expect("connects"));
            let list = members.member_list(MemberListRequest { linearizable: true }).await.expect("lists");
            let urls: Vec<_> = list.into_inner().members.into_iter().flat_map(|m| m.client_ur_ls).collect();
            assert_eq!(urls.len(), if host.starts_with("far") { 1 } else { 3 }, "{urls:?}");
            let ports = cluster.stores.iter().map(|store| format!("http://{expected}:{}", store.client));
            let expected: Vec<_> = ports.collect();
            assert!(urls.iter().all(|url| expected.contains(url)), "{urls:?}, not {expected:?}");
        }
    }
    // Read elsewhere, by metadata.
    for n in 0..KEYSPACES {
        let mut kv = cluster.kv((n + 1) % 3).await;
        let mut request = tonic::Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
        request.metadata_mut().insert("pontoon-keyspace", format!("t{n}").parse().expect("ASCII"));
        let answer = kv.range(request).await.expect("reads").into_inner();
        assert_eq!(answer.kvs[0].value, format!("v{n}"));
    }
    let default = cluster.range(0, "k", false).await;
    assert_eq!(default.count, 0, "nothing of it is in `default`");

    let mut kv = cluster.kv(0).await;
    let mut request = tonic::Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
    request.metadata_mut().insert("pontoon-keyspace", "no-such".parse().expect("ASCII"));
    let status = kv.range(request).await.expect_err("unknown");
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert!(
        status.message().contains("pontoon-keyspace"),
        "it says the ways to name one: {}",
        status.message()
    );

    let (code, out, err) = pontoon(&cluster, &["keyspace", "list", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("\"t29\"") && out.contains("\"default\""), "{out}");
}

/// A store that passes a call on may not have heard yet that a replica has moved on: who has just lost it passes the call on
/// once more, and no further.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_passed_on_twice_and_no_further() {
    let cluster = Cluster::start(3, &[]);
    let (code, out, err) =
        pontoon(&cluster, &["keyspace", "create", "far", "--replicas", "1", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let created: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    for i in 0..3 {
        let (_, sid, _) = pontoon_at(&cluster, i, &["sid"]);
        let is_there = created["replicas"][0] == *sid.trim();
        for (passed_on, is_served) in [("0", true), ("1", true), ("2", is_there)] {
            let mut kv = cluster.kv(i).await;
            let mut request =
                tonic::Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
            request.metadata_mut().insert("pontoon-keyspace", "far".parse().expect("ASCII"));
            request.metadata_mut().insert("pontoon-forwarded", passed_on.parse().expect("ASCII"));
            let answer = kv.range(request).await;
            assert_eq!(
                answer.is_ok(),
                is_served,
                "passed on {passed_on} times, there: {is_there}: {answer:?}"
            );
            if let Err(status) = answer {
                assert!(status.message().contains("is not open on this store"), "{status}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_on_one_store_is_served_by_all_and_can_be_deleted() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "solo", "--replicas", "1"]);
    assert_eq!(code, Some(0), "{out}{err}");
    for i in 0..3 {
        let kv = cluster.kv(i).await;
        let key = format!("k{i}");
        retry("put through a store without a replica", || {
            let (mut kv, key) = (kv.clone(), key.clone());
            async move {
                let put = PutRequest { key: key.into(), value: "v".into(), ..PutRequest::default() };
                let mut request = tonic::Request::new(put);
                request.metadata_mut().insert("pontoon-keyspace", "solo".parse().expect("ASCII"));
                kv.put(request).await.map_err(|e| e.to_string())
            }
        })
        .await;
    }
    let mut kv = cluster.kv(0).await;
    let range = RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() };
    let mut request = tonic::Request::new(range);
    request.metadata_mut().insert("pontoon-keyspace", "solo".parse().expect("ASCII"));
    assert_eq!(kv.range(request).await.expect("reads").into_inner().count, 3);

    let (code, out, err) = pontoon(&cluster, &["keyspace", "list", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let id = format!("{:016x}", 2);
    assert!(out.contains(&id), "the first keyspace that was created: {out}");
    let (code, _, err) = pontoon(&cluster, &["keyspace", "delete", "solo", "--id", "00000000000000ff"]);
    assert_eq!(code, Some(1), "{err}");
    let (code, _, err) = pontoon(&cluster, &["keyspace", "delete", "solo", "--id", &id]);
    assert_eq!(code, Some(0), "{err}");
    // Also after a restart of everything it stays away. The store that had it has destroyed it by then, while its registry
    // on disk has not heard: that must not be an error to it.
    retry("the store that had it forgets it", || async {
        let says = |i| cluster.log(i).contains("forgets a group that was deleted");
        if (0..3).any(says) { Ok(()) } else { Err("no log says so".to_owned()) }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for i in 0..3 {
        cluster.kill(i);
    }
    cluster.restart_all();
    cluster.leader(&[0, 1, 2]).await;
    let (_, out, _) = pontoon(&cluster, &["keyspace", "list", "--output", "json"]);
    assert!(!out.contains("solo") && out.contains("default"), "{out}");
    for i in 0..3 {
        assert!(!cluster.log(i).contains(" ERROR "), "{}", cluster.log(i));
    }
}

pub(crate) fn addressed<T>(message: T, keyspace: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_is_found_through_every_store_at_once() {
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let mut admin = AdminClient::new(cluster.channel(0).await);
    let kvs = [cluster.kv(0).await, cluster.kv(1).await, cluster.kv(2).await];
    for n in 0..40 {
        let name = format!("new{n}");
        // Every third one is not on every store.
        let replicas = if n % 3 == 0 { 1 } else { 0 };
        let create = CreateKeyspaceRequest { name: name.clone(), replicas };
        admin.create_keyspace(create).await.expect("creates");
        // One try each, at the same moment: nobody who was told of it has to be patient.
        let puts = kvs.iter().enumerate().map(|(i, kv)| {
            let (mut kv, name) = (kv.clone(), name.clone());
            tokio::spawn(async move {
                let put = PutRequest { key: format!("{i}").into(), ..PutRequest::default() };
                kv.put(addressed(put, &name)).await
            })
        });
        for (i, put) in puts.collect::<Vec<_>>().into_iter().enumerate() {
            put.await.expect("no panic").unwrap_or_else(|status| panic!("{name} at store {i}: {status:?}"));
        }
    }
    // One that slept through the creation hears of it before it denies it.
    for n in 0..3 {
        cluster.signal(2, "STOP");
        let name = format!("unheard{n}");
        let create = CreateKeyspaceRequest { name: name.clone(), replicas: 0 };
        let created = retry("a keyspace by the two others", || {
            let (mut admin, create) = (admin.clone(), create.clone());
            async move {
                match admin.create_keyspace(create).await {
                    Err(status) if status.code() != tonic::Code::AlreadyExists => Err(status.to_string()),
                    _ => Ok(()),
                }
            }
        });
        created.await;
        cluster.signal(2, "CONT");
        retry("the store that slept", || {
            let (mut kv, name) = (kvs[2].clone(), name.clone());
            async move {
                let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
                match kv.range(addressed(range, &name)).await {
                    Ok(_) => Ok(()),
                    Err(status) => {
                        assert_ne!(status.code(), tonic::Code::NotFound, "{status:?}");
                        Err(status.to_string())
                    }
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_nothing_are_denied_however_many_come() {
    const ASKED: usize = 3_000;
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let kv = cluster.kv(1).await;
    let quiet = cluster.log(1).len();
    let asked: Vec<_> = (0..ASKED)
        .map(|n| {
            let mut kv = kv.clone();
            tokio::spawn(async move {
                let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
                kv.range(addressed(range, &format!("nothing-{n}"))).await.expect_err("there is none").code()
            })
        })
        .collect();
    // Who uses what is there gets through meanwhile.
    for n in 0..20 {
        cluster.put(1, &format!("k{n}"), "v").await;
    }
    let mut denied = 0;
    for code in asked {
        match code.await.expect("no panic") {
            tonic::Code::NotFound => denied += 1,
            // More than may wait at a time.
            tonic::Code::ResourceExhausted => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(denied >= 1024, "{denied}");
    // What was refused is no failure of the store.
    let log = cluster.log(1).split_off(quiet);
    assert!(!log.contains(" ERROR "), "{log}");
}
