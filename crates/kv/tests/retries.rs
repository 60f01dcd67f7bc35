//! What a client needs so that it may send a write again: its name honoured, positions told, outcomes marked.

mod support;

use pontoon_kv::{WriteId, outcome};
use pontoon_node::error::{ProposeError, StopReason};
use pontoon_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, StatusRequest,
    TxnRequest,
};
use pontoon_raft_core::types::LogIndex;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use support::Running;

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn named<T>(name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pontoon-eid", name.parse().unwrap());
    request
}

fn position(metadata: &MetadataMap) -> Option<u64> {
    metadata.get("pontoon-position").map(|position| position.to_str().unwrap().parse().unwrap())
}

fn outcome_of(status: &Status) -> Option<&str> {
    status.metadata().get(outcome::METADATA).map(|outcome| outcome.to_str().unwrap())
}

async fn connect(server: &Running) -> (KvClient<Channel>, String) {
    let channel = server.channel().await;
    let status = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await.unwrap();
    let position = position(status.metadata()).expect("the status tells the position");
    (KvClient::new(channel), WriteId { position: LogIndex(position), nonce: 1 }.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_write_is_executed_once() {
    let server = Running::start().await;
    let (mut kv, name) = connect(&server).await;
    let first = kv.put(named(&name, put("k", "1"))).await.unwrap();
    assert_eq!(position(first.metadata()), Some(1));
    let first = first.into_inner();
    assert_eq!(kv.put(named(&name, put("k", "1"))).await.unwrap().into_inner(), first);
    // Without a name it is what etcd does, and no metadata shows.
    let plain = kv.put(put("k", "2")).await.unwrap();
    assert_eq!(position(plain.metadata()), None);
    assert_eq!(plain.into_inner().header.unwrap().revision, 3);

    // A transaction that would go the other way the second time.
    let compare = Compare {
        key: "t".into(),
        target: CompareTarget::Version as i32,
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let write = |value| RequestOp { request: Some(Op::RequestPut(put("t", value))) };
    let txn = TxnRequest { compare: vec![compare], success: vec![write("yes")], failure: vec![write("no")] };
    let name = WriteId { position: LogIndex(2), nonce: 2 }.to_string();
    let first = kv.txn(named(&name, txn.clone())).await.unwrap().into_inner();
    assert!(first.succeeded);
    assert_eq!(kv.txn(named(&name, txn)).await.unwrap().into_inner(), first);

    let name = WriteId { position: LogIndex(2), nonce: 3 }.to_string();
    let delete = DeleteRangeRequest { key: "t".into(), ..Default::default() };
    for _ in 0..2 {
        assert_eq!(kv.delete_range(named(&name, delete.clone())).await.unwrap().into_inner().deleted, 1);
    }
    let name = WriteId { position: LogIndex(2), nonce: 4 }.to_string();
    let compact = CompactionRequest { revision: 3, physical: true };
    for _ in 0..2 {
        kv.compact(named(&name, compact)).await.unwrap();
    }
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let kvs = kv.range(all).await.unwrap().into_inner().kvs;
    assert_eq!(kvs.iter().map(|kv| (&kv.key[..], kv.version)).collect::<Vec<_>>(), [(&b"k"[..], 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_checked() {
    let server = Running::start().await;
    let (mut kv, name) = connect(&server).await;
    let before = position(kv.put(named(&name, put("k", "v"))).await.unwrap().metadata());
    for bad in
        ["", "1", "+000000000000001000000000000000a", "00000000000000010000000000000001 ", &"f".repeat(4000)]
    {
        let status = kv.put(named(bad, put("k", "bad"))).await.unwrap_err();
        assert_eq!((status.code(), outcome_of(&status)), (Code::InvalidArgument, None), "{bad:?}");
    }
    let mut twice = named(&name, put("k", "bad"));
    twice.metadata_mut().append("pontoon-eid", name.parse().unwrap());
    assert_eq!(kv.put(twice).await.unwrap_err().code(), Code::InvalidArgument);
    // A name that carries no position of this keyspace: refused, and told where to begin.
    let status = kv.put(named(&"f".repeat(32), put("k", "bad"))).await.unwrap_err();
    assert_eq!((status.code(), outcome_of(&status)), (Code::OutOfRange, Some(outcome::EXPIRED)));
    assert_eq!(position(status.metadata()), before.map(|before| before + 1), "the refusal is an entry");
    let got = kv.range(RangeRequest { key: "k".into(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((got.kvs[0].version, &got.kvs[0].value[..]), (1, &b"v"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_surely_not_executed_says_so() {
    let server = Running::start().await;
    let (mut kv, name) = connect(&server).await;
    for (error, marked) in [
        (ProposeError::Overloaded { what: "a queue" }, true),
        (ProposeError::NoSpace { what: "no room".into() }, true),
        (ProposeError::NoLeader, true),
        (ProposeError::Dropped, true),
        (ProposeError::TimedOut, false),
        (ProposeError::Stopped { reason: StopReason::DiskFailed }, false),
    ] {
        server.consensus.0.lock().unwrap().propose_error = Some(error.clone());
        for request in [Request::new(put("k", "v")), named(&name, put("k", "v"))] {
            let status = kv.put(request).await.unwrap_err();
            let expected = marked.then_some(outcome::NOT_EXECUTED);
            assert_eq!(outcome_of(&status), expected, "{error:?}: {status:?}");
        }
    }
}
