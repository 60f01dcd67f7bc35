//! Watchers while stores are killed, stopped, cut off and filled by snapshots: each sees every revision once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::cluster::{Cluster, PATIENCE};
use crate::crash::Load;
use crate::failures::{ALLOWED, arm};

/// Everything, from the first revision on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    revision: i64,
    key: Vec<u8>,
}

/// A client that watches everything at one store and, as etcd's clients do, goes on after what it has seen when its stream
/// breaks.
struct Watcher {
    seen: JoinHandle<Vec<Seen>>,
    last: Arc<AtomicI64>,
    streams: Arc<AtomicU64>,
}

impl Watcher {
    fn start(endpoint: &str, stop: &Arc<AtomicBool>) -> Self {
        let (last, streams) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU64::new(0)));
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        let task = watch(endpoint, Arc::clone(stop), Arc::clone(&last), Arc::clone(&streams));
        Self { seen: tokio::spawn(task), last, streams }
    }
}

async fn watch(
    endpoint: Endpoint,
    stop: Arc<AtomicBool>,
    last: Arc<AtomicI64>,
    streams: Arc<AtomicU64>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut client = WatchClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
    while !stop.load(Ordering::Relaxed) {
        let (requests, sent) = mpsc::channel(1);
        let create = WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            start_revision: last.load(Ordering::Relaxed) + 1,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.expect("it has a place");
        let Ok(responses) = client.watch(ReceiverStream::new(sent)).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        streams.fetch_add(1, Ordering::Relaxed);
        let mut responses = responses.into_inner();
        // A stream may be silent because its store is stopped; the end of the test is seen all the same.
        while !stop.load(Ordering::Relaxed) {
            let Ok(response) = tokio::time::timeout(Duration::from_millis(200), responses.message()).await
            else {
                continue;
            };
            let Ok(Some(response)) = response else { break };
            assert!(!response.canceled, "{response:?}");
            for kv in response.events.into_iter().filter_map(|event| event.kv) {
                last.store(kv.mod_revision, Ordering::Relaxed);
                seen.push(Seen { revision: kv.mod_revision, key: kv.key.to_vec() });
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_sees_every_revision_once_while_stores_die_and_stop() {
    let mut cluster = Cluster::start(3, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..6).map(|n| Watcher::start(&cluster.endpoint(n % 3), &stop)).collect();
    let load = Load::start(&cluster, 6).await;
    load.progress(200).await;
    for round in 0..3 {
        let leader = cluster.leader(&[0, 1, 2]).await;
        let victim = if round == 1 { (leader + 1) % 3 } else { leader };
        cluster.kill(victim);
        load.progress(200).await;
        cluster.restart(victim);
        let stopped = (victim + 1) % 3;
        cluster.signal(stopped, "STOP");
        load.progress(200).await;
        cluster.signal(stopped, "CONT");
        load.progress(200).await;
    }
    drop(load.end().await);
    let broken = saw_everything(&cluster, watchers, &stop).await;
    assert!(broken >= 3, "three stores were killed, and only {broken} streams broke");
    cluster.kill_and_check();
}

/// Waits until all watchers have seen everything, and checks what they saw. Returns how many streams broke.
async fn saw_everything(cluster: &Cluster, watchers: Vec<Watcher>, stop: &AtomicBool) -> u64 {
    let (revision, _) = cluster.equal_hashes().await;
    let start = Instant::now();
    while watchers.iter().any(|w| w.last.load(Ordering::Relaxed) < revision) {
        let at: Vec<_> = watchers.iter().map(|w| w.last.load(Ordering::Relaxed)).collect();
        assert!(start.elapsed() < PATIENCE, "the watchers are at {at:?} of {revision}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut broken = 0;
    let mut first: Option<Vec<Seen>> = None;
    for (n, watcher) in watchers.into_iter().enumerate() {
        broken += watcher.streams.load(Ordering::Relaxed) - 1;
        let seen = watcher.seen.await.expect("ends");
        // Each revision is one put here, so that one which is missing, doubled or out of order shows.
        let revisions: Vec<_> = seen.iter().map(|s| s.revision).collect();
        let expected: Vec<_> = (2..=revision).collect();
        let wrong = revisions.iter().zip(&expected).find(|(seen, expected)| seen != expected);
        assert_eq!((wrong, revisions.len()), (None, expected.len()), "watcher {n}");
        match &first {
            None => first = Some(seen),
            Some(first) => assert!(*first == seen, "watcher {n} saw other keys"),
        }
    }
    broken
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_sees_every_revision_once_while_stores_are_cut_off_and_get_snapshots() {
    let cluster = Cluster::start(3, ALLOWED);
    let stop = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..6).map(|n| Watcher::start(&cluster.endpoint(n % 3), &stop)).collect();
    let load = Load::start(&cluster, 6).await;
    load.progress(200).await;
    let large = "x".repeat(500_000);
    for round in 0..2 {
        // The leader too: those who watch at it see nothing that it did not get through.
        let leader = cluster.leader(&[0, 1, 2]).await;
        let victim = if round == 1 { leader } else { (leader + 1) % 3 };
        let others = [(victim + 1) % 3, (victim + 2) % 3];
        arm(&cluster, victim, "stop-raft-rpc");
        let elected = cluster.leader(&others).await;
        // More than a log keeps for one that is behind (64 MiB): what it missed comes as a snapshot, under open streams.
        for n in 0..160 {
            cluster.put(elected, &format!("large/{n:03}"), &large).await;
        }
        let snapshots = |cluster: &Cluster| -> usize {
            (0..3).map(|i| cluster.log(i).matches("sends a snapshot").count()).sum()
        };
        let before = snapshots(&cluster);
        arm(&cluster, victim, "clear");
        let start = Instant::now();
        while snapshots(&cluster) == before {
            assert!(start.elapsed() < PATIENCE, "it came back too early");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        load.progress(100).await;
    }
    drop(load.end().await);
    let broken = saw_everything(&cluster, watchers, &stop).await;
    assert_eq!(broken, 0, "no store went away");
    cluster.kill_and_check();
}
