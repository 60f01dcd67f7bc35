//! The state machine of a log as its host uses it: once by id, prerequisites, restarts, images.

use std::path::Path;

use bytes::Bytes;
use pontoon_kv::log::{Append, AppendRefused, Appended, LogEntry, LogMachine, LogState, decode_reply};
use pontoon_kv::{Engine, EngineOptions};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};
use proptest::prelude::*;

const GROUP: GroupId = GroupId(3);

fn open(dir: &Path) -> (Engine, LogMachine) {
    let engine = Engine::open(dir, &EngineOptions::default()).unwrap();
    let machine = engine.open_log(GROUP).unwrap();
    (engine, machine)
}

fn entry(index: u64, command: Option<Bytes>) -> Committed {
    Committed {
        index: LogIndex(index),
        term: Term(1),
        id: EntryId(u128::from(index) + 1000),
        command,
        wants_reply: true,
    }
}

fn append(id: u128, prerequisite: Option<u128>, data: &str) -> Option<Bytes> {
    let prerequisite = prerequisite.map(EntryId);
    Some(Append { id: EntryId(id), prerequisite, data: data.to_owned().into() }.encode())
}

fn judged(reply: &Bytes) -> Result<Appended, AppendRefused> {
    decode_reply(reply).unwrap()
}

fn new_at(index: u64) -> Result<Appended, AppendRefused> {
    Ok(Appended { index: LogIndex(index), repeated: false })
}

fn all(state: &LogState) -> Vec<(u64, u128, String)> {
    let text = |e: LogEntry| (e.index.0, e.id.0, String::from_utf8(e.data.to_vec()).unwrap());
    state.read(LogIndex::ZERO, usize::MAX, usize::MAX).unwrap().into_iter().map(text).collect()
}

#[test]
fn an_id_is_appended_once_and_prerequisites_are_judged_in_the_order_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = open(dir.path());
    let replies = machine
        .apply(&[
            entry(1, None),
            entry(2, append(10, Some(0), "a")),
            entry(3, append(11, Some(10), "b")),
            entry(4, append(10, Some(0), "a")),
            entry(5, append(12, Some(10), "c")),
            entry(6, append(11, None, "other")),
            entry(7, Some(Bytes::from_static(b"\xff"))),
        ])
        .unwrap();
    let judged_all: Vec<_> = replies[1..].iter().map(judged).collect();
    let expected = vec![
        new_at(2),
        new_at(3),
        Ok(Appended { index: LogIndex(2), repeated: true }),
        Err(AppendRefused::BadPrerequisite { last: EntryId(11) }),
        Err(AppendRefused::IdTaken { index: LogIndex(3) }),
        Err(AppendRefused::Unknown),
    ];
    assert_eq!(judged_all, expected);
    // The same in a batch of its own, and after a restart.
    let reply = machine.apply(&[entry(8, append(10, Some(0), "a"))]).unwrap();
    assert_eq!(judged(&reply[0]), expected[2]);
    machine.sync().unwrap();
    drop((machine, engine));
    let (_engine, mut machine) = open(dir.path());
    assert_eq!(machine.applied(), LogIndex(8));
    let replies = machine
        .apply(&[entry(8, append(99, None, "applied before")), entry(9, append(10, Some(0), "a"))])
        .unwrap();
    assert_eq!(judged(&replies[1]), expected[2]);
    let reply = machine.apply(&[entry(10, append(12, Some(11), "c"))]).unwrap();
    assert_eq!(judged(&reply[0]), new_at(10));
    let state = machine.state();
    assert_eq!(all(&state), [(2, 10, "a".into()), (3, 11, "b".into()), (10, 12, "c".into())]);
    let figures = state.figures().unwrap();
    assert_eq!((figures.first, figures.last, figures.last_id), (LogIndex(2), LogIndex(10), EntryId(12)));
    assert_eq!((figures.applied, figures.bytes), (LogIndex(10), 3 * 17));
    assert!(machine.apply(&[entry(12, None)]).is_err(), "a gap");
}

#[test]
fn reads_are_paged_and_give_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    let batch: Vec<_> = (1..=9).map(|n| entry(n, append(u128::from(n), None, &"x".repeat(1000)))).collect();
    machine.apply(&batch).unwrap();
    let state = machine.state();
    let indexes = |from, entries, bytes| {
        let page = state.read(LogIndex(from), entries, bytes).unwrap();
        page.iter().map(|e| e.index.0).collect::<Vec<_>>()
    };
    assert_eq!(indexes(0, 3, usize::MAX), [1, 2, 3]);
    assert_eq!(indexes(8, 3, usize::MAX), [8, 9]);
    assert_eq!(indexes(4, usize::MAX, 2500), [4, 5]);
    assert_eq!(indexes(4, usize::MAX, 1), [4]);
    assert_eq!(indexes(10, usize::MAX, usize::MAX), [0; 0]);
}

#[test]
fn an_image_makes_another_store_equal_and_a_damaged_one_is_refused() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_engine, mut machine) = open(here.path());
    for n in 1..=300 {
        machine.apply(&[entry(n, append(u128::from(n), None, &format!("{n}").repeat(700)))]).unwrap();
    }
    machine.apply(&[entry(301, None)]).unwrap();
    let mut image = Vec::new();
    let mut reader = machine.snapshot().unwrap();
    machine.apply(&[entry(302, append(302, None, "after the image"))]).unwrap();
    while let Some(chunk) = reader.read().unwrap() {
        image.push(chunk);
    }
    assert!(image.len() > 1);
    let (engine, mut other) = open(there.path());
    other.apply(&[entry(1, append(77, None, "of another history"))]).unwrap();
    let mut watch = other.state().last();
    // Any flipped bit, any missing end.
    for n in 0..image.len() {
        let mut bytes = image[n].to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        let mut sink = other.stage(LogIndex(301)).unwrap();
        let mut chunks = image.clone();
        chunks[n] = bytes.into();
        let taken = chunks.into_iter().try_for_each(|chunk| sink.write(chunk)).and_then(|()| sink.finish());
        assert!(taken.is_err(), "chunk {n}");
    }
    let mut sink = other.stage(LogIndex(301)).unwrap();
    sink.write(image[0].clone()).unwrap();
    assert!(sink.finish().is_err(), "the end is missing");
    let mut sink = other.stage(LogIndex(300)).unwrap();
    assert!(image.iter().cloned().try_for_each(|chunk| sink.write(chunk)).is_err(), "of another index");
    drop(sink);
    let mut sink = other.stage(LogIndex(301)).unwrap();
    image.into_iter().for_each(|chunk| sink.write(chunk).unwrap());
    sink.finish().unwrap();
    drop((other, engine));

    let (engine, mut other) = open(there.path());
    other.activate(LogIndex(301)).unwrap();
    other.activate(LogIndex(301)).unwrap();
    let replies = other
        .apply(&[
            entry(302, append(302, None, "after the image")),
            entry(303, append(7, None, &"7".repeat(700))),
            entry(304, append(303, Some(302), "next")),
        ])
        .unwrap();
    assert_eq!(judged(&replies[1]), Ok(Appended { index: LogIndex(7), repeated: true }));
    assert_eq!(judged(&replies[2]), new_at(304));
    machine.apply(&[entry(303, None), entry(304, append(303, Some(302), "next"))]).unwrap();
    assert_eq!(all(&other.state()), all(&machine.state()));
    assert_eq!(*watch.borrow_and_update(), LogIndex(1), "of the machine that is gone");
    drop(other);
    engine.destroy_keyspace(GROUP).unwrap();
    let again = engine.open_log(GROUP).unwrap();
    assert_eq!((again.applied(), all(&again.state())), (LogIndex::ZERO, vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Against a list: whatever is asked, in whatever batches, and with restarts between them.
    #[test]
    fn is_what_a_list_would_be(
        asked in prop::collection::vec((1u128..12, prop::option::of(0u128..12), 0u8..3, any::<bool>()), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut engine, mut machine) = open(dir.path());
        let mut list: Vec<(u64, u128, String)> = Vec::new();
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        let count = asked.len();
        for (n, (id, prerequisite, data, ends)) in asked.into_iter().enumerate() {
            let index = n as u64 + 1;
            let data = data.to_string();
            batch.push(entry(index, append(id, prerequisite, &data)));
            let last = list.last().map_or(0, |e| e.1);
            expected.push(match list.iter().find(|e| e.1 == id) {
                Some((at, _, known)) if *known == data => {
                    Ok(Appended { index: LogIndex(*at), repeated: true })
                }
                Some((at, ..)) => Err(AppendRefused::IdTaken { index: LogIndex(*at) }),
                None if prerequisite.is_some_and(|p| p != last) => {
                    Err(AppendRefused::BadPrerequisite { last: EntryId(last) })
                }
                None => {
                    list.push((index, id, data));
                    new_at(index)
                }
            });
            if ends || n + 1 == count {
                let replies = machine.apply(&batch).unwrap();
                let found: Vec<_> = replies.iter().map(judged).collect();
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(all(&machine.state()), list.clone());
                (batch, expected) = (Vec::new(), Vec::new());
                if n % 5 == 0 {
                    machine.sync().unwrap();
                    drop((machine, engine));
                    (engine, machine) = open(dir.path());
                }
            }
        }
        drop((machine, engine));
    }
}
