//! Watch streams over a real connection.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_kv::Limits;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_create_request::FilterType;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use pontoon_proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use support::Running;

struct Watching {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watching {
    async fn start(server: &Running) -> Self {
        Self::start_with(server, |_| {}).await
    }

    async fn start_with(
        server: &Running,
        change: impl FnOnce(&mut Request<ReceiverStream<WatchRequest>>),
    ) -> Self {
        let (requests, stream) = mpsc::channel(100);
        let mut request = Request::new(ReceiverStream::new(stream));
        change(&mut request);
        let mut client = WatchClient::new(server.channel().await).max_decoding_message_size(usize::MAX);
        let responses = client.watch(request).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn ask(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        timeout(Duration::from_secs(20), self.responses.message())
            .await
            .expect("in time")
            .unwrap()
            .expect("a response")
    }

    /// Creates a watcher and returns its id.
    async fn create(&mut self, r: WatchCreateRequest) -> i64 {
        self.ask(RequestUnion::CreateRequest(r)).await;
        let r = self.next().await;
        assert!(r.created && !r.canceled, "{r:?}");
        r.watch_id
    }

    async fn silent(&mut self) {
        let r = timeout(Duration::from_millis(200), self.responses.message()).await;
        assert!(r.is_err(), "{r:?}");
    }
}

fn all() -> WatchCreateRequest {
    WatchCreateRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

fn one(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

/// "key=value@revision", or "-key@revision".
fn told(events: &[Event]) -> Vec<String> {
    let text = |e: &Event| {
        let kv = e.kv.as_ref().unwrap();
        let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
        if e.r#type == 1 {
            assert_eq!((kv.create_revision, kv.version), (0, 0));
            format!("-{key}@{}", kv.mod_revision)
        } else {
            format!("{key}={value}@{}", kv.mod_revision)
        }
    };
    events.iter().map(text).collect()
}

async fn kv(server: &Running) -> KvClient<Channel> {
    KvClient::new(server.channel().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_what_they_asked_for() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    kv.put(put("a", "0")).await.unwrap();
    let mut w = Watching::start(&server).await;
    let everything = w.create(all()).await;
    let only_b = w.create(one("b")).await;
    let past = w.create(WatchCreateRequest { start_revision: 2, prev_kv: true, ..one("a") }).await;
    assert_eq!((everything, only_b, past), (0, 1, 2));
    let r = w.next().await;
    assert_eq!((r.watch_id, told(&r.events)), (past, vec!["a=0@2".to_owned()]));
    w.silent().await;

    kv.put(put("a", "1")).await.unwrap();
    let mut seen = BTreeMap::new();
    for _ in 0..2 {
        let r = w.next().await;
        assert_eq!(r.header.as_ref().unwrap().revision, 3);
        seen.insert(r.watch_id, r);
    }
    assert_eq!(told(&seen[&everything].events), ["a=1@3"]);
    assert_eq!(seen[&everything].events[0].prev_kv, None);
    assert_eq!(seen[&past].events[0].prev_kv.as_ref().unwrap().value, "0");

    // One transaction: its events come together and in order.
    let ops = [
        Op::RequestPut(put("b", "1")),
        Op::RequestPut(put("c", "1")),
        Op::RequestDeleteRange(DeleteRangeRequest { key: "a".into(), ..Default::default() }),
    ];
    let success = ops.map(|request| RequestOp { request: Some(request) }).into();
    kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    let mut seen = BTreeMap::new();
    for _ in 0..3 {
        let r = w.next().await;
        seen.insert(r.watch_id, told(&r.events));
    }
    assert_eq!(seen[&everything], ["b=1@4", "c=1@4", "-a@4"]);
    assert_eq!(seen[&only_b], ["b=1@4"]);
    assert_eq!(seen[&past], ["-a@4"]);

    w.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: everything })).await;
    let r = w.next().await;
    assert_eq!((r.watch_id, r.canceled, r.compact_revision), (everything, true, 0));
    kv.put(put("c", "2")).await.unwrap();
    w.silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_ids_and_refusals() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    let mut w = Watching::start(&server).await;
    let no_puts = WatchCreateRequest { filters: vec![FilterType::Noput.into()], watch_id: 7, ..all() };
    assert_eq!(w.create(no_puts.clone()).await, 7);
    let no_deletions = WatchCreateRequest { filters: vec![FilterType::Nodelete.into()], ..all() };
    let puts = w.create(no_deletions).await;
    kv.put(put("a", "1")).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let mut seen: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < 2 {
        let r = w.next().await;
        seen.entry(r.watch_id).or_default().extend(told(&r.events));
    }
    assert_eq!((&seen[&7][..], &seen[&puts][..]), (&["-a@3".to_owned()][..], &["a=1@2".to_owned()][..]));

    w.ask(RequestUnion::CreateRequest(no_puts)).await;
    let r = w.next().await;
    let reason = "mvcc: duplicate watch ID provided on the WatchStream";
    assert_eq!((r.watch_id, r.created, r.canceled, &r.cancel_reason[..]), (-1, true, true, reason));
    w.ask(RequestUnion::CreateRequest(WatchCreateRequest { range_end: "a".into(), ..one("b") })).await;
    assert_eq!(w.next().await.cancel_reason, "mvcc: watcher range is empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_start_is_refused_before_any_event() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    for n in 0..10 {
        kv.put(put("a", &n.to_string())).await.unwrap();
    }
    kv.compact(CompactionRequest { revision: 8, physical: true }).await.unwrap();
    let mut w = Watching::start(&server).await;
    let id = w.create(WatchCreateRequest { start_revision: 3, ..all() }).await;
    let r = w.next().await;
    assert_eq!((r.watch_id, r.canceled, r.compact_revision, r.events.len()), (id, true, 8, 0));
    let id = w.create(WatchCreateRequest { start_revision: 8, prev_kv: true, ..all() }).await;
    let r = w.next().await;
    assert_eq!((r.watch_id, told(&r.events)), (id, (8..=11).map(|n| format!("a={}@{n}", n - 2)).collect()));
    // What came before the compaction is gone, also beside the event.
    assert_eq!(r.events[0].prev_kv, None);
    assert_eq!(r.events[1].prev_kv.as_ref().unwrap().mod_revision, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_and_never_ahead_of_events() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    let mut w = Watching::start(&server).await;
    // Without watchers there is nothing to tell.
    w.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let id = w.create(WatchCreateRequest { progress_notify: true, ..one("a") }).await;
    kv.put(put("other", "1")).await.unwrap();
    w.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let r = w.next().await;
    assert_eq!((r.watch_id, r.header.unwrap().revision, r.events.len()), (-1, 2, 0));
    // By itself, after a while.
    let r = w.next().await;
    assert_eq!((r.watch_id, r.header.unwrap().revision, r.events.len()), (id, 2, 0));

    for n in 0..50 {
        kv.put(put("a", &n.to_string())).await.unwrap();
        w.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    }
    let mut last = 2;
    let mut events = 0;
    while events < 50 {
        let r = w.next().await;
        if r.watch_id == -1 {
            assert!(r.header.unwrap().revision <= last, "progress ahead of undelivered events");
        }
        for e in r.events {
            let revision = e.kv.unwrap().mod_revision;
            assert_eq!(revision, last + 1);
            last = revision;
            events += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_says_how_often_progress_is_told() {
    let interval = Duration::from_millis(50);
    let limits = Limits { watch_progress_interval: interval, ..Limits::default() };
    let server = Running::start_with(limits).await;
    let mut w = Watching::start(&server).await;
    let quiet = w.create(one("b")).await;
    let id = w.create(WatchCreateRequest { progress_notify: true, ..one("a") }).await;
    kv(&server).await.put(put("other", "1")).await.unwrap();
    // By the default pace this would take over a minute.
    let many = async {
        for _ in 0..15 {
            let r = w.next().await;
            assert_eq!((r.watch_id, r.events.len()), (id, 0), "who did not ask hears nothing: {quiet}");
        }
    };
    timeout(Duration::from_secs(20), many).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_watcher_catches_up_exactly_once_while_writes_go_on() {
    let server = Running::start().await;
    let mut kv1 = kv(&server).await;
    let value = "v".repeat(5000);
    for n in 0..400 {
        kv1.put(put(&format!("k{}", n % 7), &value)).await.unwrap();
    }
    let mut w = Watching::start(&server).await;
    w.create(WatchCreateRequest { start_revision: 1, ..all() }).await;
    // The client may close its half.
    let (closed, _) = mpsc::channel(1);
    w.requests = closed;
    let writer = tokio::spawn(async move {
        for n in 0..200 {
            kv1.put(put(&format!("k{}", n % 7), "w")).await.unwrap();
        }
    });
    let mut next = 2;
    while next <= 601 {
        let r = w.next().await;
        for e in &r.events {
            assert_eq!(e.kv.as_ref().unwrap().mod_revision, next);
            next += 1;
        }
        assert!(r.header.unwrap().revision >= next - 1);
    }
    writer.await.unwrap();
    w.silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_split_large_revisions() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    let mut w = Watching::start(&server).await;
    w.create(WatchCreateRequest { fragment: true, prev_kv: true, ..all() }).await;
    let value = "v".repeat(10_000);
    let ops = |value: &str| {
        let op = |n| RequestOp { request: Some(Op::RequestPut(put(&format!("k{n:03}"), value))) };
        TxnRequest { success: (0..120).map(op).collect(), ..Default::default() }
    };
    for value in [&value[..], "w"] {
        kv.txn(ops(value)).await.unwrap();
        let mut parts = 0;
        let mut events = 0;
        loop {
            let r = w.next().await;
            parts += 1;
            events += r.events.len();
            if !r.fragment {
                break;
            }
        }
        assert_eq!(events, 120);
        assert!(parts > 1, "{parts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_need_a_leader_end_without_one() {
    let server = Running::start().await;
    let mut w = Watching::start_with(&server, |r| {
        drop(r.metadata_mut().insert("hasleader", "true".parse().unwrap()));
    })
    .await;
    w.create(all()).await;
    w.silent().await;
    server.consensus.0.lock().unwrap().leader = None;
    let status = timeout(Duration::from_secs(20), w.responses.message()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "etcdserver: no leader"));
}
