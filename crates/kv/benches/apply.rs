//! What one command costs the apply worker, what one read costs, and how long an event takes to many watchers.
#![allow(missing_docs)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pontoon_kv::{Command, Engine, EngineOptions, KeyspaceMachine};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::request_op::Request;
use pontoon_proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use pontoon_raft_core::types::{EntryId, GroupId, Term};

#[path = "../tests/support/mod.rs"]
mod support;

const KEYS: u64 = 100_000;

fn key(n: u64) -> Bytes {
    // Spread, as hashed names are.
    format!("/registry/pods/{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
}

fn puts(machine: &KeyspaceMachine, next: &mut u64, count: usize) -> Vec<Committed> {
    let mut index = machine.applied();
    (0..count)
        .map(|_| {
            index = index.next();
            *next += 1;
            let request =
                PutRequest { key: key(*next % KEYS), value: vec![b'v'; 256].into(), ..Default::default() };
            Committed {
                index,
                term: Term(1),
                id: EntryId(u128::from(index.0)),
                command: Some(Command::encode_put(&request)),
                wants_reply: index.0.is_multiple_of(3),
            }
        })
        .collect()
}

/// What a guarded update is: compare the revision, put, else read.
fn guarded_updates(machine: &KeyspaceMachine, next: &mut u64, count: usize) -> Vec<Committed> {
    let mut entries = puts(machine, next, count);
    for (n, entry) in (0..).zip(&mut entries) {
        let key = key((*next + n) % KEYS);
        let compare = Compare {
            result: CompareResult::Less.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(i64::MAX)),
            ..Default::default()
        };
        let put = PutRequest { key: key.clone(), value: vec![b'v'; 256].into(), ..Default::default() };
        let range = RangeRequest { key, ..Default::default() };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(Request::RequestRange(range)) }],
        };
        entry.command = Some(Command::Txn(txn).encode());
    }
    entries
}

/// Makes so many commands for a machine; the number counts what was written before.
type Commands = fn(&KeyspaceMachine, &mut u64, usize) -> Vec<Committed>;

fn apply(c: &mut Criterion) {
    let loads: [(&str, Commands, &[usize]); 2] = [
        ("apply puts of 256 bytes", puts, &[1, 16, 64]),
        ("apply transactions: compare, put of 256 bytes", guarded_updates, &[1, 64]),
    ];
    for (name, commands, batches) in loads {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
        let mut group = c.benchmark_group(name);
        for (n, &batch) in batches.iter().enumerate() {
            let mut machine = engine.open_keyspace(GroupId(n as u64)).expect("a keyspace");
            let mut next = 0;
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("batch of {batch}"), |b| {
                b.iter_custom(|rounds| {
                    let mut spent = std::time::Duration::ZERO;
                    for _ in 0..rounds {
                        let entries = commands(&machine, &mut next, batch);
                        let begin = std::time::Instant::now();
                        black_box(machine.apply(&entries).expect("applies"));
                        spent += begin.elapsed();
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

fn range(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
    let mut machine = engine.open_keyspace(GroupId(1)).expect("a keyspace");
    let mut next = 0;
    for _ in 0..KEYS / 100 {
        let entries = puts(&machine, &mut next, 100);
        machine.apply(&entries).expect("applies");
    }
    let keyspace = machine.keyspace();
    let mut group = c.benchmark_group("range");
    let mut n = 0u64;
    group.bench_function("1 key", |b| {
        b.iter_batched(
            || {
                n += 7;
                RangeRequest { key: key(n % KEYS), ..Default::default() }
            },
            |r| black_box(keyspace.range(&r).expect("reads")),
            BatchSize::SmallInput,
        );
    });
    let first = keyspace
        .range(&RangeRequest {
            key: "/registry/pods/4".into(),
            range_end: "/registry/pods/5".into(),
            limit: 1001,
            keys_only: true,
            ..Default::default()
        })
        .expect("reads");
    let thousand = RangeRequest {
        key: first.kvs[0].key.clone(),
        range_end: first.kvs[1000].key.clone(),
        ..Default::default()
    };
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1000 keys", |b| b.iter(|| black_box(keyspace.range(&thousand).expect("reads"))));
    let all = RangeRequest {
        key: "/registry/".into(),
        range_end: "/registry0".into(),
        count_only: true,
        ..Default::default()
    };
    group.throughput(Throughput::Elements(KEYS));
    group.bench_function("count of 100000 keys", |b| {
        b.iter(|| black_box(keyspace.range(&all).expect("reads")));
    });
    group.finish();
}

/// From the entry to the event at the last of many watchers, over gRPC.
fn fan_out(c: &mut Criterion) {
    const WATCHERS: usize = 1_000;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("watch fan-out");
    group.throughput(Throughput::Elements(WATCHERS as u64));
    for streams in [1, 100] {
        let (_running, mut kv, mut open) = runtime.block_on(async {
            let running = support::Running::start().await;
            let channel = running.channel().await;
            let open = support::watch_many(&channel, streams, WATCHERS / streams).await;
            (running, KvClient::new(channel), open)
        });
        group.bench_function(format!("a put seen by {WATCHERS} watchers on {streams} streams"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let put = PutRequest { key: support::WATCHED.into(), ..Default::default() };
                    kv.put(put).await.expect("puts");
                    for answers in &mut open {
                        for _ in 0..WATCHERS / streams {
                            let answer = answers.message().await.expect("no error").expect("no end");
                            assert_eq!(answer.events.len(), 1);
                        }
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, apply, range, fan_out);
criterion_main!(benches);
