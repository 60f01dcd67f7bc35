//! Compaction by rule, on the leader, for each keyspace.

use std::time::Duration;

use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::{HashKvRequest, RangeRequest};
use tonic::Request;

use crate::cluster::{Cluster, retry};
use crate::keyspaces::pontoon;

async fn compact_revision(cluster: &Cluster, store: usize, keyspace: &str) -> i64 {
    let client = MaintenanceClient::new(cluster.channel(store).await);
    // A store may hear of a new keyspace a moment after the one that made it.
    retry("a hash", || {
        let mut client = client.clone();
        let mut request = Request::new(HashKvRequest { revision: 0 });
        request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
        async move {
            let hash = client.hash_kv(request).await.map_err(|e| e.to_string())?;
            Ok(hash.into_inner().compact_revision)
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_the_period_is_forgotten_also_after_a_change_of_leaders() {
    let mut cluster = Cluster::start(3, &["--auto-compaction-retention", "2s"]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "idle"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    for n in 0..10 {
        cluster.put(others[0], "k", &n.to_string()).await;
    }
    let forgotten = |store: usize, upto: i64| {
        let cluster = &cluster;
        async move {
            retry("compaction by rule", || async {
                match compact_revision(cluster, store, "default").await {
                    revision if revision >= upto => Ok(()),
                    revision => Err(format!("compacted to {revision} only")),
                }
            })
            .await;
        }
    };
    // The same on every store: it goes through the log.
    for i in 0..3 {
        forgotten(i, 11).await;
    }
    let mut kv = cluster.kv(leader).await;
    let old = RangeRequest { key: "k".into(), revision: 5, ..RangeRequest::default() };
    let refused = kv.range(old).await.expect_err("forgotten");
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(compact_revision(&cluster, others[0], "idle").await, -1, "nothing happened there");

    drop(kv);
    cluster.kill(leader);
    let next = cluster.leader(&others).await;
    cluster.put(next, "k", "after").await;
    let start = std::time::Instant::now();
    while compact_revision(&cluster, next, "default").await < 12 {
        assert!(start.elapsed() < crate::cluster::PATIENCE, "the new leader does not compact");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
