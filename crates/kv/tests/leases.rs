//! The Lease service over gRPC, with the clock of this machine.

mod support;

use std::time::{Duration, Instant};

use pontoon_node::error::ProposeError;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest,
};
use support::{Running, STORE};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Client {
    lease: LeaseClient<Channel>,
    kv: KvClient<Channel>,
}

impl Client {
    async fn of(server: &Running) -> Self {
        let channel = server.channel().await;
        Self { lease: LeaseClient::new(channel.clone()), kv: KvClient::new(channel) }
    }

    async fn grant(&mut self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        self.lease.lease_grant(LeaseGrantRequest { ttl, id }).await.map(tonic::Response::into_inner)
    }

    async fn put(&mut self, key: &str, lease: i64) {
        let put = PutRequest { key: key.to_owned().into(), lease, ..Default::default() };
        self.kv.put(put).await.unwrap();
    }

    async fn keys(&mut self) -> Vec<String> {
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let found = self.kv.range(all).await.unwrap().into_inner();
        found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
    }

    async fn ids(&mut self) -> Vec<i64> {
        let leases = self.lease.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
        leases.into_iter().map(|lease| lease.id).collect()
    }

    /// TTL and granted TTL, and the keys.
    async fn ttl(&mut self, id: i64) -> (i64, i64, usize) {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let r = self.lease.lease_time_to_live(request).await.unwrap().into_inner();
        assert_eq!(r.id, id);
        (r.ttl, r.granted_ttl, r.keys.len())
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_granted_listed_and_revoked_as_in_etcd() {
    let server = Running::start().await;
    let mut client = Client::of(&server).await;
    let granted = client.grant(7, 100).await.unwrap();
    assert_eq!((granted.id, granted.ttl, granted.error.as_str()), (7, 100, ""));
    assert_eq!(granted.header.unwrap().member_id, STORE.0);
    refused(client.grant(7, 100).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    refused(client.grant(8, 9_000_000_001).await, Code::OutOfRange, "etcdserver: too large lease TTL");
    // Too short a TTL becomes the shortest that outlives an election; an id of zero is the server's choice.
    let chosen = client.grant(0, 0).await.unwrap();
    assert!(chosen.id > 0 && chosen.ttl == 2, "{chosen:?}");
    let mut expected = vec![7, chosen.id];
    expected.sort_unstable();
    assert_eq!(client.ids().await, expected);

    client.put("a", 7).await;
    client.put("b", 7).await;
    client.put("c", 0).await;
    let (left, granted, keys) = client.ttl(7).await;
    assert!((90..=100).contains(&left) && granted == 100 && keys == 2, "{left} {granted} {keys}");
    assert_eq!(client.ttl(99).await, (-1, 0, 0));

    client.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await.unwrap();
    assert_eq!(client.keys().await, ["c"]);
    let again = client.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await;
    refused(again, Code::NotFound, "etcdserver: requested lease not found");
    // Each keyspace has its own.
    let mut request = tonic::Request::new(LeaseGrantRequest { ttl: 100, id: 7 });
    request.metadata_mut().insert("pontoon-keyspace", "tenant".parse().unwrap());
    client.lease.lease_grant(request).await.unwrap();
    assert!(!client.ids().await.contains(&7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_while_it_is_kept_alive_and_takes_its_keys_with_it() {
    let server = Running::start().await;
    let mut client = Client::of(&server).await;
    client.grant(1, 2).await.unwrap();
    client.grant(2, 2).await.unwrap();
    let start = Instant::now();
    client.put("kept", 1).await;
    client.put("left", 2).await;

    let (requests, rx) = tokio::sync::mpsc::channel(1);
    let requests_of_stream = tokio_stream::wrappers::ReceiverStream::new(rx);
    let mut answers = client.lease.lease_keep_alive(requests_of_stream).await.unwrap().into_inner();
    let mut renewed_before = start;
    while client.keys().await.contains(&"left".to_owned()) {
        assert!(start.elapsed() < PATIENCE, "a lease never ended");
        let asked = Instant::now();
        requests.send(LeaseKeepAliveRequest { id: 1 }).await.unwrap();
        let answer = answers.next().await.unwrap().unwrap();
        if asked.duration_since(renewed_before) < Duration::from_secs(2) {
            assert_eq!((answer.id, answer.ttl), (1, 2));
        }
        renewed_before = asked;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2) - Duration::from_millis(100), "it ended early");
    assert_eq!(client.ttl(2).await.0, -1);

    // An unknown lease is answered by a TTL of zero, and the stream goes on.
    for id in [2, 3] {
        requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!((answer.id, answer.ttl), (id, 0));
    }
    drop(requests);
    assert!(answers.next().await.is_none(), "the client ended the stream");
    while !client.keys().await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "a lease that nobody keeps alive never ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.ids().await, [0; 0]);
}

/// The leader has proposed the end of a lease, and does not know yet whether it came through: a client that renews it
/// now must not hear of more time that it may not get.
#[tokio::test(flavor = "multi_thread")]
async fn who_renews_too_late_hears_what_becomes_of_the_lease() {
    let server = Running::start().await;
    let mut client = Client::of(&server).await;
    client.grant(1, 2).await.unwrap();
    client.grant(2, 2).await.unwrap();
    server.consensus.0.lock().unwrap().propose_error = Some(ProposeError::TimedOut);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut renewals = Vec::new();
    for id in [1, 2] {
        let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let mut answers = client.lease.lease_keep_alive(once).await.unwrap().into_inner();
        let answer = tokio::time::timeout(Duration::from_secs(1), answers.next()).await;
        assert!(answer.is_err(), "answered though nothing was decided: {answer:?}");
        renewals.push(answers);
    }
    // Another leader may keep it alive: its client has to ask there.
    server.consensus.0.lock().unwrap().leader = Some(pontoon_raft_core::types::StoreId(9));
    refused(renewals[0].next().await.unwrap(), Code::Unavailable, "etcdserver: leader changed");
    refused(renewals[1].next().await.unwrap(), Code::Unavailable, "etcdserver: leader changed");

    server.consensus.0.lock().unwrap().leader = Some(STORE);
    let mut answers = client
        .lease
        .lease_keep_alive(tokio_stream::iter([LeaseKeepAliveRequest { id: 1 }]))
        .await
        .unwrap()
        .into_inner();
    server.consensus.0.lock().unwrap().propose_error = None;
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!((answer.id, answer.ttl), (1, 0), "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_lead_promises_no_time_and_ends_nothing() {
    let server = Running::start().await;
    let mut client = Client::of(&server).await;
    client.grant(1, 2).await.unwrap();
    for (leader, message) in [
        (None, "etcdserver: no leader"),
        (Some(pontoon_raft_core::types::StoreId(9)), "etcdserver: leader changed"),
    ] {
        server.consensus.0.lock().unwrap().leader = leader;
        let ttl = client.lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 1, keys: false }).await;
        refused(ttl, Code::Unavailable, message);
        let once = tokio_stream::iter([LeaseKeepAliveRequest { id: 1 }]);
        let mut answers = client.lease.lease_keep_alive(once).await.unwrap().into_inner();
        refused(answers.next().await.unwrap(), Code::Unavailable, message);
    }
    // Twice its TTL, and more than a tick of the task that ends leases.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(client.ids().await, [1]);
    server.consensus.0.lock().unwrap().leader = Some(STORE);
    let (left, granted, _) = client.ttl(1).await;
    assert!(left >= 1 && granted == 2, "a new leader counts from the full TTL, not {left}");
    let start = Instant::now();
    while !client.ids().await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "the lease never ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_needs_a_leader_is_told_that_there_is_none() {
    let server = Running::start().await;
    let mut client = Client::of(&server).await;
    client.grant(7, 600).await.unwrap();
    let needs_leader = |mut request: tonic::Request<_>| {
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        request
    };
    let (requests, stream) = tokio::sync::mpsc::channel(4);
    requests.send(LeaseKeepAliveRequest { id: 7 }).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(stream));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut kept = client.lease.lease_keep_alive(request).await.unwrap().into_inner();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl, 600);
    server.consensus.0.lock().unwrap().leader = None;
    let no_leader = (Code::Unavailable, "etcdserver: no leader");
    // At once where something is asked for, after a while where nobody asks.
    let range = RangeRequest { key: "a".into(), serializable: true, ..Default::default() };
    let status = client.kv.range(needs_leader(tonic::Request::new(range.clone()))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), no_leader);
    client.kv.range(range).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, kept.message()).await.unwrap();
    let status = ended.unwrap_err();
    assert_eq!((status.code(), status.message()), no_leader);
}
