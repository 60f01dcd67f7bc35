//! A write whose answer is lost after it was applied is executed once, and answered as the first time: through real
//! processes, by the same store, by another one, and after a kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pontoon_client::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use pontoon_client::proto::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest, request_op};
use pontoon_client::{Client, Config, Keyspace};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::cluster::Cluster;

/// Between a client and a store: loses what the store says, when told to, and then breaks.
struct Proxy {
    address: String,
    losing: Arc<AtomicBool>,
    lost_bytes: Arc<AtomicUsize>,
    /// Connections end when this changes.
    breaks: watch::Sender<u64>,
}

impl Proxy {
    async fn start(store: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (losing, lost_bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let breaks = watch::Sender::new(0);
        let (flag, lost, signal) = (Arc::clone(&losing), Arc::clone(&lost_bytes), breaks.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&store).await else { continue };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let (flag, lost, mut broken) = (Arc::clone(&flag), Arc::clone(&lost), signal.subscribe());
                tokio::spawn(async move {
                    let there = tokio::io::copy(&mut from_client, &mut to_server);
                    let back = async {
                        let mut buffer = vec![0; 16 << 10];
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            if flag.load(Ordering::SeqCst) {
                                lost.fetch_add(n, Ordering::SeqCst);
                            } else if to_client.write_all(&buffer[..n]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! { _ = there => {}, () = back => {}, _ = broken.changed() => {} }
                });
            }
        });
        Self { address, losing, lost_bytes, breaks }
    }

    fn lose(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    /// Ends all connections; new ones are carried well.
    fn mend(&self) {
        self.losing.store(false, Ordering::SeqCst);
        self.breaks.send_modify(|n| *n += 1);
    }
}

fn put(key: &str, value: &str) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

/// Writes `key` if it is not there, and `key/again` if it is: a second execution shows.
pub(crate) fn once(key: &str) -> TxnRequest {
    let compare = Compare {
        key: key.to_owned().into(),
        target: CompareTarget::Version as i32,
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let (success, failure) = (vec![put(key, "first")], vec![put(&format!("{key}/again"), "second")]);
    TxnRequest { compare: vec![compare], success, failure }
}

/// Makes the call while answers are lost, waits until another store shows its effect, does what is to happen, and
/// returns what the call came to.
async fn lose_one(
    cluster: &Cluster,
    keyspace: &Keyspace,
    proxy: &Proxy,
    key: &str,
    witness: usize,
    happen: impl AsyncFnOnce(),
) {
    proxy.lose();
    let before = proxy.lost_bytes.load(Ordering::SeqCst);
    let call = tokio::spawn({
        let (keyspace, request) = (keyspace.clone(), once(key));
        async move { keyspace.txn(request).await }
    });
    let revision = loop {
        let shown = cluster.range(witness, key, true).await;
        if let Some(kv) = shown.kvs.first() {
            break kv.mod_revision;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // The effect is there; give the answer the time to be lost.
    while proxy.lost_bytes.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!call.is_finished(), "its answer was lost");
    happen().await;
    let answer = call.await.expect("no panic").expect("an answer");
    assert!(answer.succeeded, "{key}: the second attempt was executed");
    assert_eq!(answer.header.expect("a header").revision, revision, "{key}: the first answer");
    let keys = cluster.range(witness, key, false).await;
    let keys: Vec<_> = keys.kvs.iter().map(|kv| (kv.key.clone(), kv.version)).collect();
    assert_eq!(keys, [(key.to_owned().into(), 1)], "executed once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_executed_once() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.put(0, "warm", "up").await;
    let proxy = Proxy::start(cluster.endpoint(0)).await;
    let client = |remotes: &[String]| {
        let mut config = Config::new(remotes.iter().cloned());
        config.shuffle = false;
        config.call_timeout = crate::cluster::PATIENCE;
        // Connections that break soon earn longer and longer waits, which is not what is tested here.
        config.backoff_max = Duration::from_secs(1);
        Client::new(config).expect("a client").default_keyspace()
    };

    // The same store answers the second time.
    let keyspace = client(std::slice::from_ref(&proxy.address));
    keyspace.put("first", "of all").await.expect("written");
    for round in 0..4 {
        let key = format!("same/{round}");
        lose_one(&cluster, &keyspace, &proxy, &key, 1, async || proxy.mend()).await;
    }

    // Another store does, since the first one is killed: it has the answer from the log.
    let keyspace = client(&[proxy.address.clone(), cluster.endpoint(1)]);
    keyspace.put("first", "of these").await.expect("written");
    let pid = cluster.pid(0).to_string();
    lose_one(&cluster, &keyspace, &proxy, "other", 1, async || {
        let killed = std::process::Command::new("kill").args(["-9", &pid]).status();
        assert!(killed.expect("kill runs").success());
        proxy.mend();
    })
    .await;
    assert_eq!(keyspace.session().remote.as_deref(), Some(&*cluster.endpoint(1)));

    // And all of them still know after a restart. (The first is dead already; this reaps it.)
    cluster.kill(0);
    cluster.kill(1);
    cluster.kill(2);
    cluster.restart_all();
    let (_, hash) = cluster.equal_hashes().await;
    assert_ne!(hash, 0);
}
