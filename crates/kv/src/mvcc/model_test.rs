//! The state machine against a model so naive that it is evidently right: a list of changes, replayed for every
//! question.

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use fjall::Readable as _;
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::request_op::Request;
use pontoon_proto::etcdserverpb::response_op::Response;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use pontoon_proto::mvccpb::KeyValue;
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};
use proptest::prelude::*;

use crate::command::{Command, decode_reply};
use crate::engine::{Engine, EngineOptions};
use crate::error::EtcdError;
use crate::mvcc::apply::KeyspaceMachine;
use crate::mvcc::state::Keyspace;

type State = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
struct Model {
    revision: i64,
    compact: i64,
    /// Revision, key, value; no value for a deletion.
    changes: Vec<(i64, Bytes, Option<Bytes>)>,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn in_range(key: &[u8], end: &[u8], k: &[u8]) -> bool {
    match end {
        [] => k == key,
        [0] => k >= key,
        end => key <= k && k < end,
    }
}

impl Model {
    fn new() -> Self {
        Self { revision: 1, compact: -1, changes: Vec::new() }
    }

    fn state_at(&self, revision: i64) -> State {
        let mut state = State::new();
        for (at, key, value) in self.changes.iter().filter(|(at, _, _)| *at <= revision) {
            let Some(value) = value else {
                state.remove(key);
                continue;
            };
            let kv = state.entry(key.clone()).or_insert_with(|| KeyValue {
                key: key.clone(),
                create_revision: *at,
                ..KeyValue::default()
            });
            kv.mod_revision = *at;
            kv.version += 1;
            kv.value = value.clone();
        }
        state
    }

    /// The newest state, changes of a transaction that is under way included.
    fn now(&self) -> State {
        self.state_at(i64::MAX)
    }

    fn range_in(state: &State, r: &RangeRequest, revision: i64) -> RangeResponse {
        let all: Vec<&KeyValue> =
            state.values().filter(|kv| in_range(&r.key, &r.range_end, &kv.key)).collect();
        let count = all.len() as i64;
        if r.count_only {
            return RangeResponse { header: header(revision), count, ..Default::default() };
        }
        let bounds = |min: i64, max: i64, n: i64| (min == 0 || n >= min) && (max == 0 || n <= max);
        let filtered = r.min_mod_revision != 0
            || r.max_mod_revision != 0
            || r.min_create_revision != 0
            || r.max_create_revision != 0;
        let mut kvs: Vec<KeyValue> = all
            .into_iter()
            .filter(|kv| {
                bounds(r.min_mod_revision, r.max_mod_revision, kv.mod_revision)
                    && bounds(r.min_create_revision, r.max_create_revision, kv.create_revision)
            })
            .cloned()
            .collect();
        let limit = r.limit as usize;
        if limit > 0 && r.sort_order == 0 && !filtered {
            kvs.truncate(limit + 1);
        }
        kvs.sort_by(|a, b| match r.sort_target {
            1 => a.version.cmp(&b.version),
            2 => a.create_revision.cmp(&b.create_revision),
            3 => a.mod_revision.cmp(&b.mod_revision),
            4 => a.value.cmp(&b.value),
            _ => a.key.cmp(&b.key),
        });
        if r.sort_order == 2 {
            kvs.reverse();
        }
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if r.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        RangeResponse { header: header(revision), kvs, more, count }
    }

    fn range(&self, r: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        let at = if r.revision <= 0 { self.revision } else { r.revision };
        if at > self.revision {
            return Err(EtcdError::FutureRevision);
        }
        if at < self.compact {
            return Err(EtcdError::Compacted);
        }
        Ok(Self::range_in(&self.state_at(at), r, self.revision))
    }

    fn changed(&self) -> bool {
        self.changes.last().is_some_and(|(at, _, _)| *at > self.revision)
    }

    fn here(&self) -> i64 {
        self.revision + i64::from(self.changed())
    }

    fn put_in(&mut self, r: &PutRequest) -> PutResponse {
        let old = self.now().get(&r.key).cloned();
        let value = match &old {
            Some(old) if r.ignore_value => old.value.clone(),
            _ => r.value.clone(),
        };
        self.changes.push((self.revision + 1, r.key.clone(), Some(value)));
        PutResponse { header: header(self.here()), prev_kv: if r.prev_kv { old } else { None } }
    }

    fn judge_put(&self, r: &PutRequest) -> Result<(), EtcdError> {
        if r.ignore_value && !self.now().contains_key(&r.key) {
            return Err(EtcdError::KeyNotFound);
        }
        if r.lease != 0 { Err(EtcdError::LeaseNotFound) } else { Ok(()) }
    }

    fn delete_in(&mut self, r: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone: Vec<KeyValue> =
            self.now().into_values().filter(|kv| in_range(&r.key, &r.range_end, &kv.key)).collect();
        for kv in &gone {
            self.changes.push((self.revision + 1, kv.key.clone(), None));
        }
        DeleteRangeResponse {
            header: header(self.here()),
            deleted: gone.len() as i64,
            prev_kvs: if r.prev_kv { gone } else { Vec::new() },
        }
    }

    fn holds(state: &State, c: &Compare) -> bool {
        let kvs: Vec<KeyValue> =
            state.values().filter(|kv| in_range(&c.key, &c.range_end, &kv.key)).cloned().collect();
        let one = |kv: &KeyValue| {
            let order = match &c.target_union {
                Some(TargetUnion::Version(n)) => kv.version.cmp(n),
                Some(TargetUnion::CreateRevision(n)) => kv.create_revision.cmp(n),
                Some(TargetUnion::ModRevision(n)) => kv.mod_revision.cmp(n),
                Some(TargetUnion::Value(v)) => kv.value.cmp(v),
                Some(TargetUnion::Lease(n)) => kv.lease.cmp(n),
                None => unreachable!(),
            };
            match c.result {
                0 => order.is_eq(),
                1 => order.is_gt(),
                2 => order.is_lt(),
                _ => order.is_ne(),
            }
        };
        if kvs.is_empty() {
            return c.target != CompareTarget::Value as i32 && one(&KeyValue::default());
        }
        kvs.iter().all(one)
    }

    fn taken<'a>(state: &State, r: &'a TxnRequest) -> (bool, &'a [RequestOp]) {
        let succeeded = r.compare.iter().all(|c| Self::holds(state, c));
        (succeeded, if succeeded { &r.success } else { &r.failure })
    }

    /// `puts` first, then the ranges, as two passes over the same path.
    fn judge(&self, state: &State, r: &TxnRequest, puts: bool) -> Result<(), EtcdError> {
        for op in Self::taken(state, r).1 {
            match op.request.as_ref().unwrap() {
                Request::RequestPut(r) if puts => self.judge_put(r)?,
                Request::RequestRange(r) if !puts && r.revision != 0 => {
                    if r.revision > self.revision {
                        return Err(EtcdError::FutureRevision);
                    }
                    if r.revision < self.compact {
                        return Err(EtcdError::Compacted);
                    }
                }
                Request::RequestTxn(r) => self.judge(state, r, puts)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, state: &State, r: &TxnRequest) -> TxnResponse {
        let (succeeded, ops) = Self::taken(state, r);
        let mut responses = Vec::new();
        for op in ops {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestPut(r) => Response::ResponsePut(self.put_in(r)),
                Request::RequestDeleteRange(r) => Response::ResponseDeleteRange(self.delete_in(r)),
                Request::RequestRange(r) => {
                    let state = if r.revision > 0 { self.state_at(r.revision) } else { self.now() };
                    Response::ResponseRange(Self::range_in(&state, r, self.here()))
                }
                Request::RequestTxn(r) => {
                    let mut nested = self.run(state, r);
                    nested.header = header(0);
                    Response::ResponseTxn(nested)
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        TxnResponse { header: header(self.here()), succeeded, responses }
    }

    fn finish(&mut self) {
        self.revision = self.here();
    }

    /// Executes a command and returns what its reply should decode to, in debug form.
    fn execute(&mut self, command: &Command) -> String {
        let said = match command {
            Command::Put(r) => {
                let judged = self.judge_put(r);
                format!("{:?}", judged.map(|()| self.put_in(r)))
            }
            Command::DeleteRange(r) => format!("{:?}", Ok::<_, EtcdError>(self.delete_in(r))),
            Command::Txn(r) => {
                let state = self.now();
                let judged = self.judge(&state, r, true).and_then(|()| self.judge(&state, r, false));
                format!("{:?}", judged.map(|()| self.run(&state, r)))
            }
            Command::Compact(r) => {
                let result = if r.revision <= self.compact {
                    Err(EtcdError::Compacted)
                } else if r.revision > self.revision {
                    Err(EtcdError::FutureRevision)
                } else {
                    self.compact = r.revision;
                    Ok(CompactionResponse { header: header(self.revision) })
                };
                format!("{result:?}")
            }
            _ => unreachable!(),
        };
        self.finish();
        said
    }
}

fn said(command: &Command, reply: Bytes) -> String {
    match command {
        Command::Put(_) => format!("{:?}", decode_reply::<PutResponse>(reply).unwrap()),
        Command::DeleteRange(_) => format!("{:?}", decode_reply::<DeleteRangeResponse>(reply).unwrap()),
        Command::Txn(_) => format!("{:?}", decode_reply::<TxnResponse>(reply).unwrap()),
        Command::Compact(_) => format!("{:?}", decode_reply::<CompactionResponse>(reply).unwrap()),
        _ => unreachable!(),
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    let keys: [&[u8]; 9] = [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"ab", b"b", b"b\xff", b"\0", b"\xff"];
    prop::sample::select(keys.to_vec()).prop_map(Bytes::from_static)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(&[0])),
        3 => key(),
        1 => Just(Bytes::from(vec![b'b'; 70_000])),
    ]
}

fn put() -> impl Strategy<Value = PutRequest> {
    (key(), 0u8..4, any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.03)).prop_map(
        |(key, value, prev_kv, ignore_value, lease)| PutRequest {
            key,
            value: if ignore_value { Bytes::new() } else { vec![b'v'; usize::from(value)].into() },
            lease: i64::from(lease),
            prev_kv,
            ignore_value,
            ignore_lease: false,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range(revisions: std::ops::Range<i64>) -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![5 => Just(0i64), 1 => 1i64..30];
    let revision = prop_oneof![3 => Just(0i64), 3 => revisions];
    (
        (key(), end(), revision, 0i64..4),
        (0i32..3, 0i32..5, any::<bool>(), prop::bool::weighted(0.2)),
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(
            |((key, range_end, revision, limit), (order, target, keys_only, count_only), bounds)| {
                RangeRequest {
                    key,
                    range_end,
                    limit,
                    revision,
                    sort_order: order,
                    // Ties between equal targets are left open by the API, except by the order of keys.
                    sort_target: if order == 2 && target != 0 { 3 } else { target },
                    serializable: false,
                    keys_only,
                    count_only,
                    min_mod_revision: bounds.0,
                    max_mod_revision: bounds.1,
                    min_create_revision: bounds.2,
                    max_create_revision: bounds.3,
                }
            },
        )
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), end(), 0i32..4, 0i64..6, 0i32..5).prop_map(|(key, range_end, result, n, target)| {
        let (target, union) = match target {
            0 => (CompareTarget::Version, TargetUnion::Version(n % 3)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(n * 3)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(n * 3)),
            3 => (CompareTarget::Value, TargetUnion::Value(vec![b'v'; n as usize % 3].into())),
            _ => (CompareTarget::Lease, TargetUnion::Lease(n % 2)),
        };
        let result = CompareResult::try_from(result).unwrap();
        Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
    })
}

fn ops(nesting: u32) -> BoxedStrategy<Vec<RequestOp>> {
    let op = prop_oneof![
        4 => put().prop_map(Request::RequestPut),
        2 => delete().prop_map(Request::RequestDeleteRange),
        2 => range(-1..40).prop_map(Request::RequestRange),
    ];
    let op = if nesting == 0 {
        op.boxed()
    } else {
        prop_oneof![6 => op, 1 => txn(nesting - 1).prop_map(Request::RequestTxn)].boxed()
    };
    prop::collection::vec(op.prop_map(|request| RequestOp { request: Some(request) }), 0..4).boxed()
}

fn txn(nesting: u32) -> impl Strategy<Value = TxnRequest> {
    (prop::collection::vec(compare(), 0..3), ops(nesting), ops(nesting))
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => put().prop_map(Command::Put),
        2 => delete().prop_map(Command::DeleteRange),
        4 => txn(2).prop_map(Command::Txn),
        1 => (-1i64..60).prop_map(|revision| Command::Compact(CompactionRequest { revision, physical: false })),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    Read(RangeRequest),
    /// Close the engine and open it again.
    Restart,
    /// Move the state to a second engine by an image, and go on there.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec(command(), 1..7).prop_map(Step::Apply),
        20 => range(1..60).prop_map(Step::Read),
        1 => Just(Step::Restart),
        1 => Just(Step::Move),
    ]
}

struct Store {
    dir: tempfile::TempDir,
    engine: Engine,
    machine: KeyspaceMachine,
    keyspace: Arc<Keyspace>,
}

fn options() -> EngineOptions {
    // Small steps with long rests: physical removal is often behind.
    EngineOptions { background_step_records: 3, background_pause_ms: 20, ..EngineOptions::default() }
}

impl Store {
    fn open(dir: tempfile::TempDir) -> Self {
        let engine = Engine::open(dir.path(), &options()).unwrap();
        let machine = engine.open_keyspace(GroupId(7)).unwrap();
        let keyspace = machine.keyspace();
        Self { dir, engine, machine, keyspace }
    }

    fn restart(self) -> Self {
        let Self { dir, engine, machine, keyspace } = self;
        drop((engine, machine, keyspace));
        Self::open(dir)
    }

    fn moved(mut self) -> Self {
        let mut other = Self::open(tempfile::tempdir().unwrap());
        let index = self.machine.applied();
        let mut reader = self.machine.snapshot().unwrap();
        let mut sink = other.machine.stage(index).unwrap();
        while let Some(chunk) = reader.read().unwrap() {
            sink.write(chunk).unwrap();
        }
        sink.finish().unwrap();
        other.machine.activate(index).unwrap();
        assert_eq!(other.machine.applied(), index);
        assert_eq!(self.keyspace.hash().unwrap(), other.keyspace.hash().unwrap());
        // Activation is idempotent.
        other.machine.activate(index).unwrap();
        other
    }
}

fn read(keyspace: &Keyspace, r: &RangeRequest) -> Result<RangeResponse, EtcdError> {
    keyspace.range(r).map_err(|e| e.refusal().unwrap_or_else(|| panic!("{e}")))
}

fn run(steps: Vec<Step>) {
    let mut model = Model::new();
    let mut store = Store::open(tempfile::tempdir().unwrap());
    // Applies one command at a time and removes at once: batches and pace must make no difference.
    let mut single = Store::open(tempfile::tempdir().unwrap());
    let mut index = LogIndex::ZERO;
    for step in steps {
        match step {
            Step::Apply(commands) => {
                let mut entries = Vec::new();
                for command in &commands {
                    index = index.next();
                    entries.push(Committed {
                        index,
                        term: Term(1),
                        id: EntryId(u128::from(index.0)),
                        command: Some(command.encode()),
                        wants_reply: true,
                    });
                }
                let replies = store.machine.apply(&entries).unwrap();
                for ((command, reply), mut entry) in commands.iter().zip(replies).zip(entries) {
                    let expected = model.execute(command);
                    assert_eq!(said(command, reply), expected, "{command:?}");
                    entry.wants_reply = false;
                    single.machine.apply(&[entry]).unwrap();
                }
                assert_eq!(store.keyspace.revision(), model.revision);
                assert_eq!(store.machine.applied(), index);
                assert_eq!(store.keyspace.hash().unwrap(), single.keyspace.hash().unwrap());
            }
            Step::Read(r) => assert_eq!(read(&store.keyspace, &r), model.range(&r), "{r:?}"),
            Step::Restart => {
                let hash = store.keyspace.hash().unwrap();
                store = store.restart();
                assert_eq!(store.keyspace.hash().unwrap(), hash);
                assert_eq!(store.machine.applied(), index);
            }
            Step::Move => store = store.moved(),
        }
    }
    // All that can be read, at every revision.
    for revision in model.compact.max(1)..=model.revision {
        let r = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            revision,
            ..Default::default()
        };
        assert_eq!(read(&store.keyspace, &r), model.range(&r));
        assert_eq!(store.keyspace.hash_kv(revision).unwrap(), single.keyspace.hash_kv(revision).unwrap());
        for kv in model.state_at(revision).values() {
            let r = RangeRequest { key: kv.key.clone(), revision, ..Default::default() };
            assert_eq!(read(&store.keyspace, &r).unwrap().kvs, std::slice::from_ref(kv));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        run(steps);
    }
}

/// A compaction ends with a transaction of more changes than the background looks at in one step. (It took the transaction for
/// done after its first step: the rest was never removed, and hashes of stores at different places differed. Found by the
/// model.)
#[tokio::test]
async fn a_compaction_that_rests_within_its_last_transaction_goes_on() {
    let key = |n: u8| Bytes::from(vec![b'a', n]);
    let puts = (0..5).map(|n| {
        let put = PutRequest { key: key(n), value: vec![n; 9].into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    });
    let all = DeleteRangeRequest { key: key(0), range_end: key(9), prev_kv: false };
    let commands = [
        Command::Txn(TxnRequest { success: puts.collect(), ..TxnRequest::default() }),
        Command::DeleteRange(all),
        Command::Compact(CompactionRequest { revision: 3, physical: false }),
    ];
    let mut store = Store::open(tempfile::tempdir().unwrap());
    let entries = (1..).map(LogIndex).zip(&commands).map(|(index, command)| Committed {
        index,
        term: Term(1),
        id: EntryId(u128::from(index.0)),
        command: Some(command.encode()),
        wants_reply: false,
    });
    store.machine.apply(&entries.collect::<Vec<_>>()).unwrap();
    let mut hashes = std::collections::BTreeSet::new();
    let physical = Arc::clone(&store.keyspace.physical);
    let mut done = std::pin::pin!(physical.wait(3));
    while poll_fn(|cx| Poll::Ready(done.as_mut().poll(cx).is_pending())).await {
        hashes.insert(store.keyspace.hash().unwrap());
    }
    hashes.insert(store.keyspace.hash().unwrap());
    assert_eq!(hashes.len(), 1, "what is given up is left out, however far its removal is");
    let picture = store.keyspace.picture().unwrap();
    let left = picture.snapshot.prefix(&picture.tables.history, crate::mvcc::keys::slot_prefix(picture.slot));
    assert_eq!(left.count(), 0, "all is gone");
}

/// Chains of many versions: reads in the past begin at milestones, and these come and go with compactions, deletions,
/// restarts and images.
#[test]
fn long_chains_of_versions_are_read_at_every_revision() {
    let put = |key: &'static [u8], n: usize| {
        let value = format!("{n}").into_bytes();
        Command::Put(PutRequest { key: Bytes::from_static(key), value: value.into(), ..Default::default() })
    };
    let delete = Command::DeleteRange(DeleteRangeRequest {
        key: Bytes::from_static(b"ab"),
        range_end: Bytes::new(),
        prev_kv: false,
    });
    let compact = |revision| Command::Compact(CompactionRequest { revision, physical: false });
    let mut steps = Vec::new();
    for n in 0..120 {
        let mut batch = vec![put(b"ab", n)];
        match n {
            // Neighbours in the order of keys, one with few versions.
            _ if n % 3 == 0 => batch.push(put(b"a", n)),
            _ if n % 50 == 1 => batch.push(put(b"b", n)),
            // Deleted right after a milestone, and right before the next would come.
            17 | 48 => batch.push(delete.clone()),
            70 => batch.push(compact(60)),
            71 => steps.push(Step::Move),
            95 => batch.push(compact(130)),
            100 => steps.push(Step::Restart),
            _ => {}
        }
        steps.push(Step::Apply(batch));
        if n % 10 == 5 {
            let at = |revision| RangeRequest {
                key: Bytes::from_static(b"ab"),
                revision,
                ..RangeRequest::default()
            };
            steps.extend((1..=n as i64).step_by(3).map(|revision| Step::Read(at(revision))));
        }
    }
    run(steps);
}
