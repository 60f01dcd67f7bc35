//! The services over a real connection: shapes of answers, codes and messages as etcd's clients match them.

mod support;

use pontoon_kv::EtcdError;
use pontoon_node::error::{ProposeError, ReadError, StopReason};
use pontoon_proto::etcdserverpb::cluster_client::ClusterClient;
use pontoon_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DefragmentRequest, DeleteRangeRequest, HashKvRequest,
    HashRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use support::{CLUSTER, Running, STORE};

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

async fn kv(server: &Running) -> KvClient<Channel> {
    KvClient::new(server.channel().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lives_as_in_etcd() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;

    let r = kv.put(put("a", "1")).await.unwrap().into_inner();
    let header = r.header.unwrap();
    assert_eq!((header.revision, header.cluster_id, header.member_id), (2, CLUSTER, STORE.0));
    assert_eq!(header.raft_term, 3);
    let r = kv.put(PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap().into_inner();
    assert_eq!(r.prev_kv.unwrap().value, "1");
    let r = kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!((r.header.unwrap().revision, r.count, r.more), (3, 1, false));
    let k = &r.kvs[0];
    assert_eq!((k.create_revision, k.mod_revision, k.version, &k.value[..]), (2, 3, 2, &b"2"[..]));
    let r =
        kv.range(RangeRequest { revision: 2, serializable: true, ..get("a") }).await.unwrap().into_inner();
    assert_eq!((&r.kvs[0].value[..], r.header.unwrap().revision), (&b"1"[..], 3));

    let delete = DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
    let r = kv.delete_range(delete.clone()).await.unwrap().into_inner();
    assert_eq!((r.deleted, r.header.unwrap().revision, &r.prev_kvs[0].value[..]), (1, 4, &b"2"[..]));
    let r = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((r.deleted, r.header.unwrap().revision), (0, 4));
    let r = kv.put(put("a", "3")).await.unwrap().into_inner();
    assert_eq!(r.header.unwrap().revision, 5);
    let r = kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!((r.kvs[0].create_revision, r.kvs[0].version), (5, 1));

    let compact = CompactionRequest { revision: 4, physical: true };
    assert_eq!(kv.compact(compact).await.unwrap().into_inner().header.unwrap().revision, 5);
    let gone = kv.range(RangeRequest { revision: 3, ..get("a") }).await;
    refused(gone, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    let r = kv.range(RangeRequest { revision: 4, ..get("a") }).await.unwrap().into_inner();
    assert_eq!(r.count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_etcds_codes_and_messages() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    kv.put(put("a", "1")).await.unwrap();
    let invalid = Code::InvalidArgument;

    refused(kv.put(put("", "x")).await, invalid, "etcdserver: key is not provided");
    refused(kv.range(get("")).await, invalid, "etcdserver: key is not provided");
    refused(kv.delete_range(DeleteRangeRequest::default()).await, invalid, "etcdserver: key is not provided");
    let r = PutRequest { ignore_value: true, ..put("a", "x") };
    refused(kv.put(r).await, invalid, "etcdserver: value is provided");
    let r = PutRequest { ignore_lease: true, lease: 1, ..put("a", "x") };
    refused(kv.put(r).await, invalid, "etcdserver: lease is provided");
    let r = PutRequest { ignore_value: true, ..put("nothing", "") };
    refused(kv.put(r).await, invalid, "etcdserver: key not found");
    let r = PutRequest { lease: 77, ..put("a", "x") };
    refused(kv.put(r).await, Code::NotFound, "etcdserver: requested lease not found");
    let r = RangeRequest { sort_order: 7, ..get("a") };
    refused(kv.range(r).await, invalid, "etcdserver: invalid sort option");
    let r = RangeRequest { revision: 99, ..get("a") };
    refused(kv.range(r).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let r = CompactionRequest { revision: 99, physical: false };
    refused(
        kv.compact(r).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    kv.compact(CompactionRequest { revision: 1, physical: true }).await.unwrap();
    refused(
        kv.compact(r).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    let r = CompactionRequest { revision: 1, physical: false };
    refused(kv.compact(r).await, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");

    let large = "x".repeat(3 * 512 * 1024);
    refused(kv.put(put("a", &large)).await, invalid, "etcdserver: request is too large");
    let fits = "x".repeat(3 * 512 * 1024 - 64);
    kv.put(put("large", &fits)).await.unwrap();
    let r = kv.range(get("large")).await.unwrap().into_inner();
    assert_eq!(r.kvs[0].value.len(), fits.len());
    refused(kv.put(put(&"k".repeat(40_000), "")).await, invalid, "etcdserver: request is too large");

    let twice = TxnRequest {
        success: vec![op(Op::RequestPut(put("a", "1"))), op(Op::RequestPut(put("a", "2")))],
        ..Default::default()
    };
    refused(kv.txn(twice).await, invalid, "etcdserver: duplicate key given in txn request");
    let many = TxnRequest { success: vec![op(Op::RequestRange(get("a"))); 129], ..Default::default() };
    refused(kv.txn(many).await, invalid, "etcdserver: too many operations in txn request");
    let empty = TxnRequest { success: vec![RequestOp { request: None }], ..Default::default() };
    refused(kv.txn(empty).await, invalid, "etcdserver: key not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_judged_before_any_of_it_is_applied() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    kv.put(put("a", "1")).await.unwrap();
    let future = || op(Op::RequestRange(RangeRequest { revision: 100, ..get("a") }));
    let r = TxnRequest { success: vec![op(Op::RequestPut(put("b", "1"))), future()], ..Default::default() };
    let message = "etcdserver: mvcc: required revision is a future revision";
    refused(kv.txn(r).await, Code::OutOfRange, message);
    assert_eq!(kv.range(get("b")).await.unwrap().into_inner().count, 0);
    // In the branch that is not taken it does no harm.
    let version = Compare {
        target: CompareTarget::Version.into(),
        key: "a".into(),
        target_union: Some(TargetUnion::Version(1)),
        ..Default::default()
    };
    let r = TxnRequest {
        compare: vec![version],
        success: vec![op(Op::RequestPut(put("b", "1")))],
        failure: vec![future()],
    };
    let r = kv.txn(r).await.unwrap().into_inner();
    assert!(r.succeeded);
    assert_eq!(r.header.unwrap().revision, 3);
    // Transactions that only read.
    let r = TxnRequest { success: vec![op(Op::RequestRange(get("b")))], ..Default::default() };
    let r = kv.txn(r).await.unwrap().into_inner();
    assert_eq!((r.responses.len(), r.header.unwrap().revision), (1, 3));
    refused(
        kv.txn(TxnRequest { success: vec![future()], ..Default::default() }).await,
        Code::OutOfRange,
        message,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_consensus_are_told_as_etcd_tells_them() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    let cases = [
        (ProposeError::Overloaded { what: "q" }, Code::ResourceExhausted, "etcdserver: too many requests"),
        (
            ProposeError::NoSpace { what: "no space on /d".into() },
            Code::ResourceExhausted,
            "pontoon: no space on /d",
        ),
        (ProposeError::NoLeader, Code::Unavailable, "etcdserver: no leader"),
        (ProposeError::TimedOut, Code::Unavailable, "etcdserver: request timed out"),
        (
            ProposeError::Stopped { reason: StopReason::Stopping },
            Code::Unavailable,
            "etcdserver: server stopped",
        ),
        (ProposeError::Dropped, Code::Unavailable, "etcdserver: leader changed"),
    ];
    for (error, code, message) in cases {
        server.consensus.0.lock().unwrap().propose_error = Some(error);
        let status = kv.put(put("a", "1")).await.expect_err("it is refused");
        let hint = status.metadata().get("grpc-retry-pushback-ms");
        assert_eq!(hint.is_some(), message == "etcdserver: too many requests", "{status:?}");
        refused(Err::<(), _>(status), code, message);
    }
    server.consensus.0.lock().unwrap().read_error = Some(ReadError::TimedOut);
    refused(kv.range(get("a")).await, Code::Unavailable, "etcdserver: request timed out");
    // A serializable read needs nobody.
    kv.range(RangeRequest { serializable: true, ..get("a") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keyspaces_are_named_by_metadata_and_host() {
    let server = Running::start().await;
    kv(&server).await.put(put("a", "default")).await.unwrap();
    let mut tenant = KvClient::new(server.channel_as("tenant.db.example:2379").await);
    assert_eq!(tenant.range(get("a")).await.unwrap().into_inner().count, 0);
    tenant.put(put("a", "tenant")).await.unwrap();

    let mut named = Request::new(get("a"));
    named.metadata_mut().insert("pontoon-keyspace", "tenant".parse().unwrap());
    let r = kv(&server).await.range(named).await.unwrap().into_inner();
    assert_eq!(r.kvs[0].value, "tenant");

    for host in ["localhost:2379", "db"] {
        let mut kv = KvClient::new(server.channel_as(host).await);
        assert_eq!(kv.range(get("a")).await.unwrap().into_inner().kvs[0].value, "default");
    }
    let mut unknown = KvClient::new(server.channel_as("nobody.db.example").await);
    let status = unknown.range(get("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for hint in ["\"nobody\"", "pontoon-keyspace", "host", "listener"] {
        assert!(status.message().contains(hint), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_and_maintenance() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    kv.put(put("a", "1")).await.unwrap();
    let mut cluster = ClusterClient::new(server.channel().await);
    let r = cluster.member_list(MemberListRequest::default()).await.unwrap().into_inner();
    assert_eq!((r.members.len(), r.members[0].id, &r.members[0].name[..]), (1, STORE.0, "alone"));
    let add = |url: &str| MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: true };
    let added = cluster.member_add(add("http://n4:2380")).await.unwrap().into_inner().member.unwrap();
    assert_eq!((added.id, &added.peer_ur_ls[0][..], added.is_learner), (0xadd, "http://n4:2380", true));
    let bad = cluster.member_add(MemberAddRequest::default()).await;
    refused(bad, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
    let taken = cluster.member_add(add("http://taken:1")).await;
    refused(taken, Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
    let unknown = "etcdserver: member not found";
    refused(cluster.member_remove(MemberRemoveRequest { id: 77 }).await, Code::NotFound, unknown);
    let last = cluster.member_remove(MemberRemoveRequest { id: STORE.0 }).await;
    let few = "etcdserver: re-configuration failed due to not enough started members";
    refused(last, Code::FailedPrecondition, few);
    let voter = cluster.member_promote(MemberPromoteRequest { id: STORE.0 }).await;
    refused(voter, Code::FailedPrecondition, "etcdserver: can only promote a learner member");
    let update = MemberUpdateRequest { id: 77, peer_ur_ls: vec!["http://n4:1".into()] };
    refused(cluster.member_update(update).await, Code::NotFound, unknown);

    let mut maintenance = MaintenanceClient::new(server.channel().await);
    let r = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((&r.version[..], r.leader, r.raft_term, r.raft_index), ("3.5.17", STORE.0, 3, 1));
    assert_eq!((r.raft_applied_index, r.errors.len(), r.is_learner), (1, 0, false));
    assert!(r.db_size > 0 && r.db_size_in_use > 0);
    assert_eq!(r.header.unwrap().revision, 2);

    let r = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((r.compact_revision, r.hash_revision), (-1, 2));
    let message = "etcdserver: mvcc: required revision is a future revision";
    refused(maintenance.hash_kv(HashKvRequest { revision: 9 }).await, Code::OutOfRange, message);
    let before = maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash;
    kv.put(put("a", "2")).await.unwrap();
    assert_ne!(maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash, before);
    let again = maintenance.hash_kv(HashKvRequest { revision: 2 }).await.unwrap().into_inner();
    assert_eq!(again.hash, r.hash);

    assert!(maintenance.alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms.is_empty());
    maintenance.defragment(DefragmentRequest {}).await.unwrap();
    maintenance.move_leader(MoveLeaderRequest { target_id: STORE.0 }).await.unwrap();
    let bad = maintenance.move_leader(MoveLeaderRequest { target_id: 5 }).await;
    refused(bad, Code::FailedPrecondition, EtcdError::BadLeaderTransferee.message());
    server.consensus.0.lock().unwrap().leader = None;
    let r = maintenance.move_leader(MoveLeaderRequest { target_id: STORE.0 }).await;
    refused(r, Code::FailedPrecondition, "etcdserver: not leader");
    let r = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((r.leader, r.errors), (0, vec!["etcdserver: no leader".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_range_comes_in_parts() {
    let server = Running::start().await;
    let mut kv = kv(&server).await;
    let value = "v".repeat(300_000);
    for n in 0..10 {
        kv.put(put(&format!("k{n}"), &value)).await.unwrap();
    }
    let all = RangeRequest { range_end: "l".into(), ..get("k") };
    let whole = kv.range(all.clone()).await.unwrap().into_inner();
    let mut stream = kv.range_stream(all.clone()).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part.range_response.unwrap());
        // What is written meanwhile is not in it.
        kv.put(put("k5", "new")).await.unwrap();
    }
    assert!(parts.len() > 2, "{}", parts.len());
    let last = parts.last().unwrap();
    assert_eq!((&last.header, last.more, last.count), (&whole.header, false, 10));
    for part in &parts[..parts.len() - 1] {
        assert_eq!((&part.header, part.more, part.count), (&None, false, 0));
    }
    let kvs: Vec<_> = parts.into_iter().flat_map(|part| part.kvs).collect();
    assert_eq!(kvs, whole.kvs);

    let refused_stream = async |r: RangeRequest, code, message| {
        let mut kv = kv.clone();
        let answer = match kv.range_stream(r).await {
            Ok(stream) => stream.into_inner().message().await,
            Err(status) => Err(status),
        };
        refused(answer, code, message);
    };
    refused_stream(get(""), Code::InvalidArgument, "etcdserver: key is not provided").await;
    let future = RangeRequest { revision: 999, ..all.clone() };
    refused_stream(future, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        .await;
    let sorted = RangeRequest { sort_order: 2, ..all.clone() };
    refused_stream(sorted, Code::Unimplemented, "RangeStream does not support custom sort orders").await;
    let filtered = RangeRequest { min_mod_revision: 3, ..all };
    refused_stream(filtered, Code::Unimplemented, "RangeStream does not support revision filters").await;
}
