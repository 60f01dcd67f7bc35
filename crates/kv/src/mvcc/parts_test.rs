use bytes::Bytes;
use pontoon_node::state_machine::{Committed, StateMachine as _};
use pontoon_proto::etcdserverpb::{CompactionRequest, PutRequest};
use pontoon_raft_core::types::{EntryId, GroupId, Term};

use super::*;
use crate::command::Command;
use crate::engine::{Engine, EngineOptions};
use crate::error::EtcdError;
use crate::mvcc::apply::KeyspaceMachine;

fn apply(machine: &mut KeyspaceMachine, command: &Command) {
    let index = machine.applied().next();
    let id = EntryId(u128::from(index.0));
    let command = Some(command.encode());
    machine.apply(&[Committed { index, term: Term(1), id, command, wants_reply: true }]).unwrap();
}

fn put(machine: &mut KeyspaceMachine, key: &str, value: &str) {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    apply(machine, &Command::Put(PutRequest { key, value, ..PutRequest::default() }));
}

fn request(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(key.as_bytes()),
        range_end: Bytes::from_static(range_end.as_bytes()),
        ..RangeRequest::default()
    }
}

/// All parts merged; `between` is done after each of them.
fn read(
    machine: &mut KeyspaceMachine,
    r: &RangeRequest,
    bytes_max: usize,
    mut between: impl FnMut(&mut KeyspaceMachine),
) -> (Vec<KeyValue>, End) {
    let mut parts = Parts::new(r.clone());
    let mut all = Vec::new();
    loop {
        let Part { kvs, end } = parts.next(&machine.keyspace(), bytes_max).unwrap();
        assert!(end.is_some() || !kvs.is_empty(), "a part brings something");
        all.extend(kvs);
        if let Some(end) = end {
            return (all, end);
        }
        between(machine);
    }
}

#[test]
fn the_parts_merged_are_what_a_range_answers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &EngineOptions::default()).unwrap();
    let mut machine = engine.open_keyspace(GroupId(3)).unwrap();
    for n in 0..300 {
        put(&mut machine, &format!("k{:03}", n % 200), &"v".repeat(n));
    }
    put(&mut machine, "l", "another");
    let mut requests = Vec::new();
    for (key, end) in
        [("k", "l"), ("\0", "\0"), ("k050", "k100"), ("k150", "\0"), ("k007", ""), ("x", "y"), ("l", "k")]
    {
        for limit in [0, -1, 1, 7, 49, 50, 51, 200, 201, 1000] {
            for revision in [0, 150, 302] {
                for (keys_only, count_only) in [(false, false), (true, false), (false, true)] {
                    requests.push(RangeRequest {
                        limit,
                        revision,
                        keys_only,
                        count_only,
                        ..request(key, end)
                    });
                }
            }
        }
    }
    for r in &requests {
        let whole = machine.keyspace().range(r).unwrap();
        for bytes_max in [1, 1000, 1 << 20] {
            let (kvs, end) = read(&mut machine, r, bytes_max, |_| {});
            assert_eq!(kvs, whole.kvs, "{r:?}");
            let expected = End { revision: 302, more: whole.more, count: whole.count };
            assert_eq!(end, expected, "{r:?}");
        }
    }
}

#[test]
fn all_parts_are_of_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path(), &EngineOptions::default()).unwrap();
    let mut machine = engine.open_keyspace(GroupId(3)).unwrap();
    for n in 0..50 {
        put(&mut machine, &format!("k{n:02}"), "old");
    }
    let r = request("k", "l");
    let whole = machine.keyspace().range(&r).unwrap();
    let mut n = 0;
    let (kvs, end) = read(&mut machine, &r, 100, |machine| {
        n += 1;
        for key in [format!("k{n:02}"), format!("k{:02}", 49 - n % 50), format!("k{n:02}x")] {
            put(machine, &key, "new");
        }
    });
    assert!(n > 5, "in several parts");
    assert_eq!(kvs, whole.kvs);
    assert_eq!(end, End { revision: 51, more: false, count: 50 });

    // A compaction ends it: what it was about to read may be gone.
    let mut parts = Parts::new(r);
    parts.next(&machine.keyspace(), 100).unwrap();
    put(&mut machine, "k00", "newest");
    let revision = machine.keyspace().revision();
    apply(&mut machine, &Command::Compact(CompactionRequest { revision, physical: false }));
    let refused = parts.next(&machine.keyspace(), 100);
    assert!(matches!(refused, Err(Fault::Request(EtcdError::Compacted))), "{refused:?}");
}
