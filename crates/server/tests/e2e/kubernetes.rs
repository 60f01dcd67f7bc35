//! What a Kubernetes API server sends, to three keyspaces of one cluster at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::response_op::Response as Done;
use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use pontoon_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::cluster::{Cluster, PATIENCE};
use crate::keyspaces::pontoon;

const PREFIX: &str = "/registry/pods/";
const PREFIX_END: &str = "/registry/pods0";
const COMPACT_KEY: &str = "compact_rev_key";

/// One API server's view of its etcd.
struct ApiServer {
    keyspace: &'static str,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
    /// Key to value and mod revision, as they must be.
    objects: BTreeMap<String, (Bytes, i64)>,
    /// The revision that the last write had.
    revision: i64,
    /// How often the compaction key was written.
    compactions: i64,
}

fn key_value(key: &str, value: &Bytes, lease: i64) -> Op {
    Op::RequestPut(PutRequest {
        key: key.to_owned().into(),
        value: value.clone(),
        lease,
        ..PutRequest::default()
    })
}

fn get(key: &str) -> Op {
    Op::RequestRange(RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() })
}

impl ApiServer {
    async fn new(cluster: &Cluster, keyspace: &'static str, store: usize) -> Self {
        let channel = cluster.channel(store).await;
        Self {
            keyspace,
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel),
            objects: BTreeMap::new(),
            revision: 1,
            compactions: 0,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("pontoon-keyspace", self.keyspace.parse().expect("ASCII"));
        // As etcd's Go client does when it is told to require a leader.
        request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        request
    }

    /// The one transaction shape: if the key was last written at a revision, do this, else look at it.
    async fn if_written_at(
        &mut self,
        key: &str,
        revision: i64,
        then: Op,
        otherwise: Option<Op>,
    ) -> TxnResponse {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.to_owned().into(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Compare::default()
        };
        let op = |request| RequestOp { request: Some(request) };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![op(then)],
            failure: otherwise.into_iter().map(op).collect(),
        };
        let request = self.request(txn);
        let done = self.kv.txn(request).await.expect("a transaction").into_inner();
        let header = done.header.expect("a header").revision;
        if done.succeeded {
            self.revision += 1;
        }
        assert_eq!(header, self.revision, "{}: revisions count this keyspace's writes only", self.keyspace);
        done
    }

    async fn create(&mut self, name: &str, value: &str, lease: i64) {
        let (key, value) = (format!("{PREFIX}{name}"), Bytes::from(value.to_owned()));
        let done = self.if_written_at(&key, 0, key_value(&key, &value, lease), None).await;
        assert_eq!(done.succeeded, !self.objects.contains_key(&key));
        if done.succeeded {
            self.objects.insert(key, (value, self.revision));
        }
    }

    async fn update(&mut self, name: &str, value: &str, expected: i64) {
        let (key, value) = (format!("{PREFIX}{name}"), Bytes::from(value.to_owned()));
        let known = self.objects.get(&key).cloned();
        let done = self.if_written_at(&key, expected, key_value(&key, &value, 0), Some(get(&key))).await;
        assert_eq!(done.succeeded, known.as_ref().is_some_and(|(_, revision)| *revision == expected));
        if done.succeeded {
            self.objects.insert(key, (value, self.revision));
        } else {
            self.check_found(&done, known);
        }
    }

    async fn delete(&mut self, name: &str, expected: i64) {
        let key = format!("{PREFIX}{name}");
        let known = self.objects.get(&key).cloned();
        let delete = DeleteRangeRequest { key: key.clone().into(), ..DeleteRangeRequest::default() };
        let done = self.if_written_at(&key, expected, Op::RequestDeleteRange(delete), Some(get(&key))).await;
        assert_eq!(done.succeeded, known.as_ref().is_some_and(|(_, revision)| *revision == expected));
        if done.succeeded {
            self.objects.remove(&key);
        } else {
            self.check_found(&done, known);
        }
    }

    fn check_found(&self, done: &TxnResponse, known: Option<(Bytes, i64)>) {
        let Some(Done::ResponseRange(found)) = &done.responses[0].response else { panic!("{done:?}") };
        let found = found.kvs.first().map(|kv| (kv.value.clone(), kv.mod_revision));
        assert_eq!(found, known, "{}", self.keyspace);
    }

    /// Compacts as API servers agree on it: who writes the key with the version that it saw does it.
    async fn compact(&mut self, to: i64) {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Version.into(),
            key: COMPACT_KEY.into(),
            target_union: Some(TargetUnion::Version(self.compactions)),
            ..Compare::default()
        };
        let op = |request| RequestOp { request: Some(request) };
        let put = key_value(COMPACT_KEY, &Bytes::from(to.to_string()), 0);
        let txn = TxnRequest {
            compare: vec![compare.clone()],
            success: vec![op(put.clone())],
            failure: vec![op(get(COMPACT_KEY))],
        };
        let request = self.request(txn.clone());
        let won = self.kv.txn(request).await.expect("a transaction").into_inner();
        assert!(won.succeeded);
        self.compactions += 1;
        self.revision += 1;
        assert_eq!(won.header.expect("a header").revision, self.revision);
        // The other API server of the same cluster comes too late, and learns what there is.
        let request = self.request(txn);
        let lost = self.kv.txn(request).await.expect("a transaction").into_inner();
        let Some(Done::ResponseRange(seen)) = &lost.responses[0].response else { panic!("{lost:?}") };
        assert!(!lost.succeeded);
        assert_eq!(
            (seen.kvs[0].version, &seen.kvs[0].value[..]),
            (self.compactions, to.to_string().as_bytes())
        );
        let request = self.request(CompactionRequest { revision: to, physical: true });
        self.kv.compact(request).await.expect("compacts");
    }

    async fn range(&mut self, range: RangeRequest) -> Result<RangeResponse, tonic::Status> {
        let request = self.request(range);
        Ok(self.kv.range(request).await?.into_inner())
    }

    /// Lists in pages, all at the revision of the first one; `between` runs after each.
    async fn list(&mut self, limit: i64, writes_between: bool) {
        let expected: Vec<_> = self.objects.iter().map(|(k, (v, r))| (k.clone(), v.clone(), *r)).collect();
        let mut listed = Vec::new();
        let (mut key, mut revision) = (Bytes::from(PREFIX), 0);
        loop {
            let page = RangeRequest {
                key,
                range_end: PREFIX_END.into(),
                limit,
                revision,
                ..RangeRequest::default()
            };
            let page = self.range(page).await.expect("a page");
            if revision == 0 {
                revision = page.header.expect("a header").revision;
                assert_eq!(revision, self.revision);
            }
            assert_eq!(page.count, (expected.len() - listed.len()) as i64, "what is left");
            assert_eq!(page.kvs.len() as i64, limit.min(page.count));
            listed.extend(page.kvs.iter().map(|kv| {
                (String::from_utf8_lossy(&kv.key).into_owned(), kv.value.clone(), kv.mod_revision)
            }));
            if !page.more {
                break;
            }
            let mut next = page.kvs.last().expect("a page").key.to_vec();
            next.push(0);
            key = next.into();
            if writes_between {
                let n = listed.len();
                self.create(&format!("between-{revision}-{n}"), "x", 0).await;
            }
        }
        assert_eq!(listed, expected, "{}", self.keyspace);
    }

    async fn start_watch(&mut self, from: i64) -> (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>) {
        let (requests, stream) = mpsc::channel(8);
        let create = WatchCreateRequest {
            key: PREFIX.into(),
            range_end: PREFIX_END.into(),
            start_revision: from,
            prev_kv: true,
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.expect("room");
        let request = self.request(ReceiverStream::new(stream));
        let mut answers = self.watch.watch(request).await.expect("a stream").into_inner();
        let created = next(&mut answers).await;
        assert!(created.created && !created.canceled, "{created:?}");
        (requests, answers)
    }
}

async fn next(answers: &mut Streaming<WatchResponse>) -> WatchResponse {
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("in time");
    answer.expect("no error").expect("no end")
}

/// Follows a watch until a progress message says that all up to `until` was told, and plays the events.
async fn follow(
    requests: &mpsc::Sender<WatchRequest>,
    answers: &mut Streaming<WatchResponse>,
    objects: &mut BTreeMap<String, (Bytes, i64)>,
    until: i64,
) -> usize {
    let progress =
        || WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
    requests.send(progress()).await.expect("room");
    let (mut last, mut events) = (0, 0);
    loop {
        let answer = next(answers).await;
        assert!(!answer.canceled, "{answer:?}");
        let told = answer.header.expect("a header").revision;
        for event in answer.events {
            let kv = event.kv.expect("a key");
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            assert!(kv.mod_revision > last, "one write, one revision, in order: {key}");
            last = kv.mod_revision;
            events += 1;
            let before = event.prev_kv.map(|prev| (prev.value, prev.mod_revision));
            assert_eq!(before.as_ref(), objects.get(&key), "what was there before");
            if event.r#type == EventType::Delete as i32 {
                objects.remove(&key).expect("it was there");
            } else {
                objects.insert(key, (kv.value, kv.mod_revision));
            }
        }
        if told >= until && last <= told && answer.watch_id == -1 {
            return events;
        }
        if answer.watch_id == -1 {
            requests.send(progress()).await.expect("room");
        }
    }
}

/// A small generator, so that the keyspaces differ and each run is the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn play(mut server: ApiServer, seed: u64) -> ApiServer {
    let mut dice = Dice(seed);
    let (requests, mut answers) = server.start_watch(1).await;
    let mut watched = BTreeMap::new();
    let grant = server.request(LeaseGrantRequest { ttl: 3660, id: 0 });
    let lease = server.lease.lease_grant(grant).await.expect("a lease").into_inner().id;
    let (mut writes, mut seen) = (0, 0);
    for round in 0..6 {
        for _ in 0..40 {
            let name = format!("pod-{}", dice.roll(25));
            let expected =
                server.objects.get(&format!("{PREFIX}{name}")).map_or(0, |(_, revision)| *revision);
            // Now and then somebody else was faster.
            let expected = if dice.roll(5) == 0 { expected - 1 } else { expected };
            let before = server.revision;
            match dice.roll(4) {
                0 => server.create(&name, &format!("new {round}"), lease).await,
                1 | 2 if expected > 0 => server.update(&name, &format!("status {round}"), expected).await,
                _ if expected > 0 => server.delete(&name, expected).await,
                _ => server.create(&name, "again", 0).await,
            }
            writes += server.revision - before;
        }
        let before = server.revision;
        server.list(7, round % 2 == 0).await;
        writes += server.revision - before;
        seen += follow(&requests, &mut answers, &mut watched, server.revision).await as i64;
        assert_eq!(watched, server.objects, "{}: the watch cache is the truth", server.keyspace);
        assert_eq!(seen, writes, "every write was told once");
        let to = server.revision - 10;
        server.compact(to).await;
        // What is compacted here is gone here, and only here: the others' old revisions are read at the end.
        let old = RangeRequest { key: PREFIX.into(), revision: to - 1, ..RangeRequest::default() };
        let refused = server.range(old).await.expect_err("compacted");
        assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
        let kept = RangeRequest { key: PREFIX.into(), revision: to, ..RangeRequest::default() };
        server.range(kept).await.expect("the revision itself is there");
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn three_api_servers_share_a_cluster_and_see_nothing_of_each_other() {
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    for name in ["k8s-a", "k8s-b", "k8s-c", "k8s-quiet"] {
        let (code, out, err) = pontoon(&cluster, &["keyspace", "create", name]);
        assert_eq!(code, Some(0), "{out}{err}");
    }
    let mut quiet = ApiServer::new(&cluster, "k8s-quiet", 0).await;
    for n in 0..20 {
        quiet.create(&format!("pod-{n}"), "still", 0).await;
    }
    let (a, b, c) = tokio::join!(
        async { play(ApiServer::new(&cluster, "k8s-a", 0).await, 1).await },
        async { play(ApiServer::new(&cluster, "k8s-b", 1).await, 2).await },
        async { play(ApiServer::new(&cluster, "k8s-c", 2).await, 3).await },
    );
    assert!(a.revision != b.revision && b.revision != c.revision, "they went different ways");
    // Eighteen compactions elsewhere took nothing from here: every revision can still be read, and watched from.
    for revision in 1..=quiet.revision {
        let range = RangeRequest {
            key: PREFIX.into(),
            range_end: PREFIX_END.into(),
            revision,
            count_only: true,
            ..RangeRequest::default()
        };
        let found = quiet.range(range).await.expect("nothing was compacted here");
        assert_eq!((found.count, found.header.expect("a header").revision), (revision - 1, 21));
    }
    let (requests, mut answers) = quiet.start_watch(1).await;
    let mut watched = BTreeMap::new();
    assert_eq!(follow(&requests, &mut answers, &mut watched, 21).await, 20);
    assert_eq!(watched, quiet.objects);
}
