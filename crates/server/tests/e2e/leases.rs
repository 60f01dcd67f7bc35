//! Leases on three real stores, while their leader dies.

use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, PutRequest,
};

use crate::cluster::{Cluster, PATIENCE, retry};

async fn grant(cluster: &Cluster, i: usize, id: i64, ttl: i64) {
    let client = LeaseClient::new(cluster.channel(i).await);
    retry("grant", || {
        let mut client = client.clone();
        async move {
            match client.lease_grant(LeaseGrantRequest { ttl, id }).await {
                Err(e) if e.message() != "etcdserver: lease already exists" => Err(e.to_string()),
                _ => Ok(()),
            }
        }
    })
    .await;
    let kv = cluster.kv(i).await;
    retry("put", || {
        let mut kv = kv.clone();
        let put = PutRequest { key: format!("lease/{id:02}").into(), lease: id, ..PutRequest::default() };
        async move { kv.put(put).await.map(|_| ()).map_err(|e| e.to_string()) }
    })
    .await;
}

/// One keep-alive, by any of the stores that answers; the TTL.
async fn keep_alive(cluster: &Cluster, among: &[usize], id: i64) -> i64 {
    let start = Instant::now();
    loop {
        for &i in among {
            let mut client = LeaseClient::new(cluster.channel(i).await);
            let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
            if let Ok(answers) = client.lease_keep_alive(once).await
                && let Ok(Some(answer)) = answers.into_inner().message().await
            {
                return answer.ttl;
            }
        }
        assert!(start.elapsed() < PATIENCE, "no keep-alive comes through");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn is_there(cluster: &Cluster, i: usize, id: i64) -> bool {
    cluster.range(i, &format!("lease/{id:02}"), false).await.count == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_their_leader_and_end_in_time() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();

    // Each store answers for each lease, whoever leads.
    for i in 0..3 {
        let id = i as i64 + 1;
        grant(&cluster, i, id, 600).await;
        for asked in 0..3 {
            assert_eq!(keep_alive(&cluster, &[asked], id).await, 600);
            let client = LeaseClient::new(cluster.channel(asked).await);
            let left = retry("time to live", || {
                let mut client = client.clone();
                let request = LeaseTimeToLiveRequest { id, keys: true };
                async move { client.lease_time_to_live(request).await.map_err(|e| e.to_string()) }
            })
            .await
            .into_inner();
            assert!(left.ttl > 500 && left.granted_ttl == 600, "{left:?}");
            assert_eq!(left.keys, [format!("lease/{id:02}")]);
        }
    }

    // A lease that is kept alive while its leader dies.
    grant(&cluster, others[0], 10, 3).await;
    grant(&cluster, others[0], 11, 3).await;
    let last = Instant::now();
    assert_eq!(keep_alive(&cluster, &others, 10).await, 3);
    cluster.kill(leader);
    // If this comes through in time, the lease must be there; the new leader counts from the full TTL.
    let ttl = keep_alive(&cluster, &others, 10).await;
    if last.elapsed() < Duration::from_secs(3) {
        assert_eq!(ttl, 3, "the lease ended early");
        assert!(is_there(&cluster, others[1], 10).await || last.elapsed() > Duration::from_secs(3));
    }
    // The other one ends, and its key goes; those with much time left stay, also over a restart of all.
    let start = Instant::now();
    while is_there(&cluster, others[0], 11).await {
        assert!(start.elapsed() < PATIENCE, "a lease never ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for i in others {
        cluster.kill(i);
    }
    cluster.restart_all();
    for id in 1..=3 {
        assert_eq!(keep_alive(&cluster, &[0, 1, 2], id).await, 600);
        assert!(is_there(&cluster, 0, id).await);
    }
    cluster.equal_hashes().await;
}
