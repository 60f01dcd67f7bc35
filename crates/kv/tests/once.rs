//! Named writes at the state machine: executed once, whatever comes between the attempts.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use pontoon_kv::{Command, Engine, EngineOptions, EtcdError, KeyspaceMachine, WriteId, decode_reply};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};
use proptest::prelude::*;

/// The bounds of `mvcc/once.rs`: a generation ends after this many bytes, or writes.
const GENERATION_BYTES: u64 = 16 << 20;
const ANSWER_BYTES_MAX: usize = 4096;

fn open(dir: &Path) -> (Engine, KeyspaceMachine) {
    let options =
        EngineOptions { write_buffer_bytes: 0, background_step_records: 64, ..EngineOptions::default() };
    let engine = Engine::open(dir, &options).unwrap();
    let machine = engine.open_keyspace(GroupId(3)).unwrap();
    (engine, machine)
}

fn put(key: &str, value: impl Into<Bytes>) -> Bytes {
    Command::encode_put(&PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        prev_kv: true,
        ..Default::default()
    })
}

fn id(position: u64, nonce: u64) -> WriteId {
    WriteId { position: LogIndex(position), nonce }
}

fn entry(index: LogIndex, command: Bytes, wants_reply: bool) -> Committed {
    let id = EntryId(u128::from(index.0));
    Committed { index, term: Term(1), id, command: Some(command), wants_reply }
}

/// Applies one command and returns its answer.
fn apply(machine: &mut KeyspaceMachine, command: Bytes) -> Bytes {
    let index = machine.applied().next();
    machine.apply(&[entry(index, command, true)]).unwrap().remove(0)
}

fn refusal(answer: &Bytes) -> EtcdError {
    decode_reply::<PutResponse>(answer.clone()).unwrap().unwrap_err()
}

fn version(machine: &KeyspaceMachine, key: &str) -> i64 {
    let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
    machine.keyspace().range(&request).unwrap().kvs.first().map_or(0, |kv| kv.version)
}

/// Moves the state to a store of its own by an image.
fn moved(machine: &mut KeyspaceMachine, dir: &Path) -> (Engine, KeyspaceMachine) {
    let (engine, mut other) = open(dir);
    let mut sink = other.stage(machine.applied()).unwrap();
    let mut reader = machine.snapshot().unwrap();
    while let Some(chunk) = reader.read().unwrap() {
        sink.write(chunk).unwrap();
    }
    sink.finish().unwrap();
    other.activate(machine.applied()).unwrap();
    (engine, other)
}

#[test]
fn a_write_that_comes_again_is_answered_as_the_first_time() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, mut machine) = open(dir.path());
    apply(&mut machine, put("k", "old"));
    let name = id(1, 77);
    let named = name.name(&put("k", "new"));
    let first = apply(&mut machine, named.clone());
    let response = decode_reply::<PutResponse>(first.clone()).unwrap().unwrap();
    assert_eq!((response.header.unwrap().revision, &response.prev_kv.unwrap().value[..]), (3, &b"old"[..]));

    // Later; also within the batch of the first attempt; also with another command under the same name.
    assert_eq!(apply(&mut machine, named.clone()), first);
    assert_eq!(apply(&mut machine, name.name(&put("other", "x"))), first);
    let at = machine.applied();
    let both = id(1, 78).name(&put("k", "newer"));
    let answers = machine
        .apply(&[entry(at.next(), both.clone(), false), entry(at.next().next(), both.clone(), true)])
        .unwrap();
    assert_eq!(answers[0], answers[1]);
    assert_eq!((version(&machine, "k"), version(&machine, "other")), (3, 0));

    // After a restart, and on a store that got an image.
    machine.sync().unwrap();
    drop((engine, machine));
    let (_engine, mut machine) = open(dir.path());
    let (_other_engine, mut other) = moved(&mut machine, elsewhere.path());
    for machine in [&mut machine, &mut other] {
        assert_eq!(apply(machine, named.clone()), first);
        assert_eq!(apply(machine, both.clone()), answers[0]);
        assert_eq!(version(machine, "k"), 3);
    }
    assert_eq!(machine.keyspace().hash().unwrap(), other.keyspace().hash().unwrap());
}

#[test]
fn a_refusal_is_an_outcome_too() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    let absent = PutRequest { key: "k".into(), ignore_value: true, ..Default::default() };
    let named = id(0, 1).name(&Command::encode_put(&absent));
    assert_eq!(refusal(&apply(&mut machine, named.clone())), EtcdError::KeyNotFound);
    apply(&mut machine, put("k", "v"));
    assert_eq!(refusal(&apply(&mut machine, named)), EtcdError::KeyNotFound, "the first answer stands");
}

/// What a store remembers must not depend on whether somebody waits there for the answer.
#[test]
fn stores_remember_the_same() {
    let hash = |wants_reply| {
        let dir = tempfile::tempdir().unwrap();
        let (_engine, mut machine) = open(dir.path());
        for n in 1..=20 {
            let command = id(0, n).name(&put("k", n.to_string()));
            machine.apply(&[entry(LogIndex(n), command, wants_reply)]).unwrap();
        }
        machine.keyspace().hash().unwrap()
    };
    assert_eq!(hash(true), hash(false));
}

#[test]
fn a_position_that_nobody_can_have_been_told_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    for position in [1, 2, u64::MAX] {
        // Entry 1 is the first: nobody has seen it applied before it is.
        let index = machine.applied().next();
        let answer = apply(&mut machine, id(position.max(index.0), 5).name(&put("k", "v")));
        assert_eq!(refusal(&answer), EtcdError::WriteIdAhead);
    }
    assert_eq!(version(&machine, "k"), 0);
    apply(&mut machine, id(3, 5).name(&put("k", "v")));
    assert_eq!(version(&machine, "k"), 1);
    // What is no command gets a name as well as anything else.
    assert_eq!(refusal(&apply(&mut machine, id(3, 6).name(b""))), EtcdError::UnknownCommand);
    assert_eq!(
        refusal(&apply(&mut machine, id(3, 7).name(&id(3, 8).name(&put("k", "v"))))),
        EtcdError::UnknownCommand
    );
    assert_eq!(version(&machine, "k"), 1);
}

/// Large answers fill a generation soon. What is forgotten is refused and never executed again; what is remembered is
/// bounded; all that across restarts and images.
#[test]
fn what_is_forgotten_is_refused() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, mut machine) = open(dir.path());
    let big = Bytes::from(vec![b'v'; 3500]);
    let early = id(0, u64::MAX).name(&put("early", "v"));
    let first = apply(&mut machine, early.clone());

    // The former value in each answer is what takes the space.
    let per_generation = GENERATION_BYTES / 3600;
    let mut nonce = 0;
    let mut fill = |machine: &mut KeyspaceMachine, writes: u64| {
        let begin = machine.applied().0;
        while machine.applied().0 < begin + writes {
            let position = machine.applied();
            let batch: Vec<_> = (1..=64)
                .map(|n| {
                    nonce += 1;
                    let command = id(position.0, nonce).name(&put("k", big.clone()));
                    entry(LogIndex(position.0 + n), command, false)
                })
                .collect();
            machine.apply(&batch).unwrap();
        }
    };
    fill(&mut machine, per_generation / 2);
    assert_eq!(apply(&mut machine, early.clone()), first);
    fill(&mut machine, per_generation);
    assert_eq!(apply(&mut machine, early.clone()), first, "one generation back is remembered");
    fill(&mut machine, per_generation);
    assert_eq!(refusal(&apply(&mut machine, early.clone())), EtcdError::WriteIdExpired);
    let recent = id(machine.applied().0, u64::MAX).name(&put("recent", "v"));
    let answer = apply(&mut machine, recent.clone());

    machine.sync().unwrap();
    drop((engine, machine));
    let (_engine, mut machine) = open(dir.path());
    let (_other_engine, mut other) = moved(&mut machine, elsewhere.path());
    for machine in [&mut machine, &mut other] {
        assert_eq!(refusal(&apply(machine, early.clone())), EtcdError::WriteIdExpired);
        assert_eq!(apply(machine, recent.clone()), answer);
        assert_eq!((version(machine, "early"), version(machine, "recent")), (1, 1));
    }
    assert_eq!(machine.keyspace().hash().unwrap(), other.keyspace().hash().unwrap());
    let image: usize = std::iter::repeat_with({
        let mut reader = machine.snapshot().unwrap();
        move || reader.read().unwrap()
    })
    .map_while(|chunk| chunk.map(|chunk| chunk.len()))
    .sum();
    let versions = machine.keyspace().size_bytes();
    let remembered = image as u64 - versions.min(image as u64);
    assert!(
        remembered < 2 * GENERATION_BYTES + (1 << 20),
        "{remembered} bytes beside {versions} of versions"
    );
}

#[test]
fn an_answer_that_is_too_large_is_not_kept_but_the_write_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    apply(&mut machine, put("k", vec![b'v'; ANSWER_BYTES_MAX]));
    let named = id(1, 1).name(&put("k", "new"));
    let first = decode_reply::<PutResponse>(apply(&mut machine, named.clone())).unwrap().unwrap();
    assert_eq!(first.prev_kv.unwrap().value.len(), ANSWER_BYTES_MAX);
    assert_eq!(refusal(&apply(&mut machine, named)), EtcdError::AnswerNotKept);
    assert_eq!(version(&machine, "k"), 2);
}

#[derive(Clone, Debug)]
enum Step {
    /// A new write, by somebody who saw the state so many entries ago.
    New {
        behind: u64,
    },
    /// One of the writes so far comes again.
    Again {
        which: prop::sample::Index,
    },
    /// A write without a name.
    Plain,
    Restart,
    Image,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u64).prop_map(|behind| Step::New { behind }),
        6 => any::<prop::sample::Index>().prop_map(|which| Step::Again { which }),
        1 => Just(Step::Plain),
        1 => Just(Step::Restart),
        1 => Just(Step::Image),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    /// Every write has exactly one effect and one answer, in whatever order its attempts come.
    #[test]
    fn each_write_has_one_effect_and_one_answer(steps in steps()) {
        let mut dirs = vec![tempfile::tempdir().unwrap()];
        let mut store = Some(open(dirs[0].path()));
        let mut answers: HashMap<WriteId, Bytes> = HashMap::new();
        let mut names = Vec::new();
        for step in steps {
            let (engine, mut machine) = store.take().unwrap();
            let applied = machine.applied().0;
            match step {
                Step::New { behind } => {
                    let name = id(applied.saturating_sub(behind), names.len() as u64);
                    let answer = apply(&mut machine, name.name(&put(&name.to_string(), "v")));
                    names.push(name);
                    answers.insert(name, answer);
                }
                Step::Again { which } if !names.is_empty() => {
                    let name = *which.get(&names);
                    let answer = apply(&mut machine, name.name(&put(&name.to_string(), "v")));
                    prop_assert_eq!(&answer, &answers[&name]);
                }
                Step::Again { .. } => {}
                Step::Plain => drop(apply(&mut machine, put("plain", "v"))),
                Step::Restart => {
                    machine.sync().unwrap();
                    drop((engine, machine));
                    store = Some(open(dirs.last().unwrap().path()));
                    continue;
                }
                Step::Image => {
                    let dir = tempfile::tempdir().unwrap();
                    store = Some(moved(&mut machine, dir.path()));
                    dirs.push(dir);
                    continue;
                }
            }
            store = Some((engine, machine));
        }
        let (_engine, machine) = store.unwrap();
        for name in names {
            prop_assert_eq!(version(&machine, &name.to_string()), 1);
        }
    }
}
