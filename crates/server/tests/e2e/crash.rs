//! kill -9, SIGSTOP and SIGTERM under load: nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pontoon_proto::etcdserverpb::PutRequest;
use tokio::sync::Mutex;

use crate::cluster::Cluster;

/// Writers with unique values through the given stores; what is acknowledged is written down.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, i64>>>,
    count: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) async fn start(cluster: &Cluster, writers: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let count = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let mut kvs = Vec::new();
            for i in 0..cluster.stores.len() {
                let address = format!("http://{}", cluster.endpoint(i));
                let endpoint = tonic::transport::Endpoint::from_shared(address).expect("an address");
                kvs.push(pontoon_proto::etcdserverpb::kv_client::KvClient::new(
                    endpoint.timeout(Duration::from_secs(10)).connect_lazy(),
                ));
            }
            let (stop, acknowledged, count) =
                (Arc::clone(&stop), Arc::clone(&acknowledged), Arc::clone(&count));
            tasks.push(tokio::spawn(async move {
                let mut at = writer % kvs.len();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("w/{writer:02}/{n:06}");
                    let put = PutRequest {
                        key: key.clone().into(),
                        value: key.clone().into(),
                        ..PutRequest::default()
                    };
                    match kvs[at].put(put).await {
                        Ok(answer) => {
                            let revision = answer.into_inner().header.expect("a header").revision;
                            acknowledged.lock().await.insert(key, revision);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => {
                            at = (at + 1) % kvs.len();
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            }));
        }
        Self { stop, acknowledged, count, tasks }
    }

    /// Waits until `n` more writes are acknowledged.
    pub(crate) async fn progress(&self, n: u64) {
        let goal = self.count.load(Ordering::Relaxed) + n;
        let waited = tokio::time::timeout(crate::cluster::PATIENCE, async {
            while self.count.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("writes flow");
    }

    pub(crate) async fn end(self) -> BTreeMap<String, i64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer");
        }
        self.acknowledged.lock().await.clone()
    }
}

async fn verify(cluster: &Cluster, acknowledged: &BTreeMap<String, i64>) {
    cluster.equal_hashes().await;
    for i in 0..cluster.stores.len() {
        has_all(cluster, i, acknowledged, true).await;
    }
}

/// Linearizable reads of these stores show every acknowledged write at its revision.
pub(crate) async fn all_there(cluster: &Cluster, stores: &[usize], acknowledged: &BTreeMap<String, i64>) {
    for &i in stores {
        has_all(cluster, i, acknowledged, false).await;
    }
}

async fn has_all(cluster: &Cluster, i: usize, acknowledged: &BTreeMap<String, i64>, serializable: bool) {
    let found: BTreeMap<_, _> = cluster
        .range(i, "w/", serializable)
        .await
        .kvs
        .into_iter()
        .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision))
        .collect();
    for (key, revision) in acknowledged {
        assert_eq!(found.get(key), Some(revision), "{key} on store {i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_kill_minus_9_of_any_store_and_of_all() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 6).await;
    load.progress(200).await;
    for round in 0..4 {
        let victim = if round % 2 == 0 { cluster.leader(&[0, 1, 2]).await } else { round % 3 };
        cluster.kill(victim);
        load.progress(100).await;
        cluster.restart(victim);
        load.progress(100).await;
    }
    let acknowledged = load.end().await;
    verify(&cluster, &acknowledged).await;

    let load = Load::start(&cluster, 6).await;
    load.progress(200).await;
    for i in 0..3 {
        cluster.kill(i);
    }
    let second = load.end().await;
    cluster.restart_all();
    cluster.leader(&[0, 1, 2]).await;
    // The second load wrote the first one's keys again, at later revisions.
    let mut all = acknowledged;
    all.extend(second);
    // A write whose answer was lost may have come after the last acknowledged one of the same key.
    cluster.equal_hashes().await;
    for i in 0..3 {
        let found: BTreeMap<_, _> = cluster
            .range(i, "w/", true)
            .await
            .kvs
            .into_iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision))
            .collect();
        for (key, revision) in &all {
            assert!(
                found.get(key) >= Some(revision),
                "{key} on store {i}: {:?} after {revision}",
                found.get(key)
            );
        }
    }
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_is_replaced_and_finds_out_before_it_answers() {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    cluster.put(leader, "w/x", "old").await;
    cluster.signal(leader, "STOP");
    let other = (leader + 1) % 3;
    cluster.put(other, "w/x", "new").await;
    cluster.signal(leader, "CONT");
    let answer = cluster.range(leader, "w/", false).await;
    assert_eq!(answer.kvs[0].value, "new", "a linearizable read after the pause");
    cluster.equal_hashes().await;
    cluster.kill_and_check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_stops_in_good_order_and_comes_back() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let load = Load::start(&cluster, 3).await;
    load.progress(50).await;
    cluster.signal(leader, "TERM");
    assert_eq!(cluster.wait_exit(leader), Some(0), "its log:\n{}", cluster.log(leader));
    load.progress(50).await;
    cluster.restart(leader);
    load.progress(50).await;
    let acknowledged = load.end().await;
    verify(&cluster, &acknowledged).await;
}
