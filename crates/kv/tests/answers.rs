//! Answers that are large: what is refused, what waits, and what a short list out of a long one is.

mod support;

use pontoon_kv::{Command, outcome};
use pontoon_kv::{Engine, EngineOptions, EtcdError, KeyspaceMachine, Limits, WriteId, decode_reply};
use pontoon_node::state_machine::{Committed, StateMachine as _};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use pontoon_raft_core::types::{EntryId, GroupId, Term};
use tonic::Code;
use tonic::transport::Channel;

use support::Running;

const ANSWERS_BYTES: u64 = 4 << 20;
const VALUE_BYTES: usize = 512 << 10;

fn options() -> EngineOptions {
    EngineOptions { answers_bytes_max: ANSWERS_BYTES, ..EngineOptions::default() }
}

fn put(n: usize, bytes: usize) -> PutRequest {
    PutRequest { key: format!("k/{n:04}").into(), value: vec![b'v'; bytes].into(), ..PutRequest::default() }
}

fn all() -> RangeRequest {
    RangeRequest { key: "k/".into(), range_end: "k0".into(), ..RangeRequest::default() }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

async fn filled(values: usize) -> (Running, KvClient<Channel>) {
    let server = Running::start_with_options(Limits::default(), &options()).await;
    let mut kv = KvClient::new(server.channel().await).max_decoding_message_size(usize::MAX);
    for n in 0..values {
        kv.put(put(n, VALUE_BYTES)).await.unwrap();
    }
    (server, kv)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_a_way_out() {
    let (_server, mut kv) = filled(10).await;
    let reads = TxnRequest {
        success: vec![op(Op::RequestRange(RangeRequest { limit: 5, ..all() })); 2],
        ..TxnRequest::default()
    };
    for refused in [kv.range(all()).await.unwrap_err(), kv.txn(reads).await.unwrap_err()] {
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(refused.message().contains("--answers-bytes-max"), "{refused:?}");
        assert!(refused.message().contains("RangeStream"), "{refused:?}");
    }
    let found = |r: tonic::Response<RangeResponse>| (r.get_ref().kvs.len(), r.get_ref().count);
    assert_eq!(found(kv.range(RangeRequest { limit: 6, ..all() }).await.unwrap()), (6, 10));
    assert_eq!(found(kv.range(RangeRequest { keys_only: true, ..all() }).await.unwrap()), (10, 10));
    assert_eq!(found(kv.range(RangeRequest { count_only: true, ..all() }).await.unwrap()), (0, 10));
    let mut parts = kv.range_stream(all()).await.unwrap().into_inner();
    let mut keys = 0;
    while let Some(part) = parts.message().await.unwrap() {
        keys += part.range_response.unwrap().kvs.len();
    }
    assert_eq!(keys, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_wait_for_each_other_and_short_reads_for_nobody() {
    let (_server, kv) = filled(5).await;
    let lists: Vec<_> = (0..16)
        .map(|_| {
            let mut kv = kv.clone();
            tokio::spawn(async move { kv.range(all()).await.map(|r| r.into_inner().kvs.len()) })
        })
        .collect();
    for list in lists {
        assert_eq!(list.await.unwrap().unwrap(), 5, "each fits, if not all of them together");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_answer_is_too_large_is_done_and_says_so() {
    let (server, mut kv) = filled(10).await;
    let txn = TxnRequest {
        success: vec![
            op(Op::RequestPut(put(0, 1))),
            op(Op::RequestRange(all())),
            op(Op::RequestPut(put(1, 1))),
        ],
        ..TxnRequest::default()
    };
    let refused = kv.txn(txn).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (EtcdError::AnswerTooLarge.code(), EtcdError::AnswerTooLarge.message())
    );
    for n in [0, 1] {
        let key = RangeRequest { key: put(n, 0).key, ..RangeRequest::default() };
        assert_eq!(kv.range(key).await.unwrap().into_inner().kvs[0].value, "v", "the whole of it was done");
    }
    kv.put(put(0, VALUE_BYTES)).await.unwrap();
    kv.put(put(1, VALUE_BYTES)).await.unwrap();
    let delete = DeleteRangeRequest { key: "k/".into(), range_end: "k0".into(), prev_kv: true };
    let mut named = tonic::Request::new(delete);
    let id = format!("{:016x}{:016x}", server.applied(0).0, 7);
    named.metadata_mut().insert(pontoon_kv::ENTRY_ID_METADATA, id.parse().unwrap());
    let refused = kv.delete_range(named).await.unwrap_err();
    assert_eq!(refused.metadata().get(outcome::METADATA).unwrap(), outcome::EXECUTED);
    assert_eq!(kv.range(all()).await.unwrap().into_inner().count, 0);
    // Afterwards the memory is there again.
    kv.put(put(0, VALUE_BYTES)).await.unwrap();
    let delete = DeleteRangeRequest { key: "k/".into(), range_end: "k0".into(), prev_kv: true };
    assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().prev_kvs.len(), 1);
}

/// Applies the same commands, some with names, to a store that has memory for the answers and to one that has not.
#[test]
fn stores_with_more_and_with_less_memory_stay_the_same() {
    let generous = EngineOptions::default();
    let states = [options(), generous].map(|options| {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), &options).unwrap();
        let mut machine = engine.open_keyspace(GroupId(1)).unwrap();
        let apply = |machine: &mut KeyspaceMachine, command| {
            let index = machine.applied().next();
            let id = EntryId(u128::from(index.0));
            let entry = Committed { index, term: Term(1), id, command: Some(command), wants_reply: true };
            machine.apply(&[entry]).unwrap().remove(0)
        };
        for n in 0..10 {
            apply(&mut machine, Command::encode_put(&put(n, VALUE_BYTES)));
        }
        let txn = TxnRequest {
            success: vec![
                op(Op::RequestRange(all())),
                op(Op::RequestPut(PutRequest { prev_kv: true, ..put(3, 5) })),
            ],
            ..TxnRequest::default()
        };
        let id = WriteId::parse(format!("{:016x}{:016x}", machine.applied().0, 9).as_bytes()).unwrap();
        let named = id.name(&Command::Txn(txn).encode());
        let answer = apply(&mut machine, named.clone());
        let first = decode_reply::<TxnResponse>(answer).unwrap().map(|r| r.responses.len());
        let again = decode_reply::<TxnResponse>(apply(&mut machine, named)).unwrap().unwrap_err();
        assert_eq!(again, EtcdError::AnswerNotKept);
        let keyspace = machine.keyspace();
        (first, keyspace.revision(), keyspace.hash().unwrap(), keyspace.hash_kv(0).unwrap())
    });
    assert_eq!((states[0].0, states[1].0), (Err(EtcdError::AnswerTooLarge), Ok(2)));
    assert_eq!((states[0].1, states[0].2, states[0].3), (states[1].1, states[1].2, states[1].3));
}

/// A limit after a sort is what a sort of everything begins with, also where most of it is forgotten on the way.
#[test]
fn a_short_list_out_of_a_long_one_is_its_beginning() {
    const KEYS: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &EngineOptions::default()).unwrap();
    let mut machine = engine.open_keyspace(GroupId(1)).unwrap();
    let mut index = machine.applied();
    let puts = (0..2 * KEYS).map(|n| {
        index = index.next();
        let n = n * 7919 % KEYS;
        let request = PutRequest { value: format!("{:02}", n * 31 % 97).into(), ..put(n, 0) };
        let command = Some(Command::encode_put(&request));
        Committed { index, term: Term(1), id: EntryId(u128::from(index.0)), command, wants_reply: false }
    });
    machine.apply(&puts.collect::<Vec<_>>()).unwrap();
    let keyspace = machine.keyspace();
    let targets =
        [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
    for target in targets {
        for order in [SortOrder::Ascend, SortOrder::Descend] {
            for (min_mod_revision, limit) in [(0, 1), (0, 700), (KEYS as i64 + 500, 5), (0, KEYS as i64)] {
                let whole = RangeRequest {
                    sort_target: target.into(),
                    sort_order: order.into(),
                    min_mod_revision,
                    ..all()
                };
                let expected = keyspace.range(&whole).unwrap();
                let found = keyspace.range(&RangeRequest { limit, ..whole.clone() }).unwrap();
                let n = expected.kvs.len().min(limit as usize);
                assert_eq!(found.kvs, expected.kvs[..n], "{target:?} {order:?} {limit}");
                assert_eq!((found.more, found.count), (expected.kvs.len() > n, expected.count));
            }
        }
    }
}
