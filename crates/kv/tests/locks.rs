//! The Lock and Election services over gRPC.

mod support;

use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
};
use pontoon_proto::v3electionpb::election_client::ElectionClient;
use pontoon_proto::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use pontoon_proto::v3lockpb::lock_client::LockClient;
use pontoon_proto::v3lockpb::{LockRequest, UnlockRequest};
use support::Running;
use tonic::transport::Channel;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);

struct Clients {
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
    lease: LeaseClient<Channel>,
    kv: KvClient<Channel>,
}

impl Clients {
    async fn of(server: &Running) -> Self {
        let channel = server.channel().await;
        Self {
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            kv: KvClient::new(channel),
        }
    }

    async fn grant(&mut self, id: i64) {
        self.lease.lease_grant(LeaseGrantRequest { ttl: 600, id }).await.unwrap();
    }

    /// The keys of a line, in the order of the line.
    async fn line(&mut self, name: &str) -> Vec<String> {
        let range = RangeRequest {
            key: format!("{name}/").into(),
            range_end: format!("{name}0").into(),
            sort_order: 1,
            sort_target: 2,
            ..Default::default()
        };
        let found = self.kv.range(range).await.unwrap().into_inner();
        found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
    }

    async fn wait_for_line(&mut self, name: &str, expected: &[&str]) {
        let start = Instant::now();
        loop {
            let line = self.line(name).await;
            if line == expected {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the line is {line:?}, expected {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn lock(name: &'static str, lease: i64) -> LockRequest {
    LockRequest { name: name.into(), lease }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_held_by_one_and_handed_on_in_order() {
    let server = Running::start().await;
    let mut c = Clients::of(&server).await;
    for id in [0x1f, 2, 3, 4] {
        c.grant(id).await;
    }
    let held = c.lock.lock(lock("l", 0x1f)).await.unwrap().into_inner();
    assert_eq!(&held.key[..], b"l/1f");
    // Who holds it may ask again, and gets the same answer.
    assert_eq!(c.lock.lock(lock("l", 0x1f)).await.unwrap().into_inner().key, held.key);

    let locks = c.lock.clone();
    let wait = |id| {
        let mut lock_client = locks.clone();
        tokio::spawn(async move { lock_client.lock(lock("l", id)).await })
    };
    let second = wait(2);
    c.wait_for_line("l", &["l/1f", "l/2"]).await;
    let third = wait(3);
    c.wait_for_line("l", &["l/1f", "l/2", "l/3"]).await;
    let fourth = wait(4);
    c.wait_for_line("l", &["l/1f", "l/2", "l/3", "l/4"]).await;
    // Who goes away leaves the line; who loses the lease is told.
    second.abort();
    c.wait_for_line("l", &["l/1f", "l/3", "l/4"]).await;
    assert!(!third.is_finished() && !fourth.is_finished());
    c.lease.lease_revoke(LeaseRevokeRequest { id: 3 }).await.unwrap();
    refused(third.await.unwrap(), Code::Unknown, "mutex: session is expired");
    assert!(!fourth.is_finished());

    c.lock.unlock(UnlockRequest { key: held.key }).await.unwrap();
    let held = fourth.await.unwrap().unwrap().into_inner();
    assert_eq!(&held.key[..], b"l/4");
    // The lock goes with the lease.
    c.lease.lease_revoke(LeaseRevokeRequest { id: 4 }).await.unwrap();
    let held = c.lock.lock(lock("l", 1_000_000)).await;
    refused(held, Code::Unknown, "etcdserver: requested lease not found");
    // Without a lease one of 60 seconds is made.
    let held = c.lock.lock(lock("l", 0)).await.unwrap().into_inner();
    let lease = i64::from_str_radix(std::str::from_utf8(&held.key[2..]).unwrap(), 16).unwrap();
    let left = c.lease.lease_time_to_live(LeaseTimeToLiveRequest { id: lease, keys: false }).await.unwrap();
    assert_eq!(left.into_inner().granted_ttl, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_has_one_leader_who_says_things() {
    let server = Running::start().await;
    let mut c = Clients::of(&server).await;
    for id in [1, 2] {
        c.grant(id).await;
    }
    let leader = LeaderRequest { name: "e".into() };
    refused(c.election.leader(leader.clone()).await, Code::Unknown, "election: no leader");
    let mut observed = c.election.observe(leader.clone()).await.unwrap().into_inner();

    let campaign =
        |lease, value: &'static str| CampaignRequest { name: "e".into(), lease, value: value.into() };
    let first = c.election.campaign(campaign(1, "a")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!((&first.name[..], &first.key[..], first.lease), (&b"e"[..], &b"e/1"[..], 1));
    let mut client = c.election.clone();
    let next = tokio::spawn(async move { client.campaign(campaign(2, "b")).await });
    c.wait_for_line("e", &["e/1", "e/2"]).await;

    let proclaim = |leader: &pontoon_proto::v3electionpb::LeaderKey, value: &'static str| ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    };
    let said = async |observed: &mut tonic::Streaming<pontoon_proto::v3electionpb::LeaderResponse>| {
        let next = tokio::time::timeout(PATIENCE, observed.message()).await.expect("in time");
        let kv = next.unwrap().unwrap().kv.unwrap();
        (String::from_utf8(kv.key.to_vec()).unwrap(), String::from_utf8(kv.value.to_vec()).unwrap())
    };
    assert_eq!(said(&mut observed).await, ("e/1".into(), "a".into()));
    // Other keys in between are not theirs.
    for n in 0..3 {
        c.kv.put(PutRequest { key: format!("e{n}").into(), ..Default::default() }).await.unwrap();
        c.election.proclaim(proclaim(&first, ["x", "y", "z"][n])).await.unwrap();
    }
    for value in ["x", "y", "z"] {
        assert_eq!(said(&mut observed).await, ("e/1".into(), value.into()), "nothing is left out");
    }
    let now = c.election.leader(leader).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((&now.key[..], &now.value[..]), (&b"e/1"[..], &b"z"[..]));
    // To campaign again is to say something.
    let again = c.election.campaign(campaign(1, "w")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!((again.rev, &again.key), (first.rev, &first.key));
    assert_eq!(said(&mut observed).await, ("e/1".into(), "w".into()));
    assert!(!next.is_finished());

    c.election.resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    c.election.resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    refused(c.election.proclaim(proclaim(&first, "late")).await, Code::Unknown, "election: not leader");
    let second = next.await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!(&second.key[..], b"e/2");
    assert_eq!(said(&mut observed).await, ("e/2".into(), "b".into()));
    // A leadership ends with its lease, and an observer waits for the next.
    c.lease.lease_revoke(LeaseRevokeRequest { id: 2 }).await.unwrap();
    c.grant(3).await;
    c.election.campaign(campaign(3, "c")).await.unwrap();
    assert_eq!(said(&mut observed).await, ("e/3".into(), "c".into()));
    refused(
        c.election.resign(ResignRequest { leader: None }).await,
        Code::Unknown,
        "\"leader\" field must be provided",
    );
}
