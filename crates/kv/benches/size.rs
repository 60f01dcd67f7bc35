//! What keyspaces cost when nobody uses them: memory for a key and for an idle keyspace, and opening a large one again.
//! Prints one line a figure.
#![allow(missing_docs)]
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::time::Instant;

use bytes::Bytes;
use pontoon_kv::{Command, Engine, EngineOptions, KeyspaceMachine};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest};
use pontoon_raft_core::types::{EntryId, GroupId, Term};

/// In the large keyspace.
const KEYS: u64 = 1_000_000;
const IDLE_KEYSPACES: u64 = 2_000;
/// Of each idle keyspace.
const IDLE_KEYS: u64 = 3;

fn key(n: u64) -> Bytes {
    format!("/registry/pods/{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
}

fn fill(machine: &mut KeyspaceMachine, keys: std::ops::Range<u64>) {
    let mut index = machine.applied();
    let entries: Vec<_> = keys
        .map(|n| {
            index = index.next();
            let request = PutRequest { key: key(n), value: vec![b'v'; 256].into(), ..Default::default() };
            let command = Some(Command::encode_put(&request));
            Committed { index, term: Term(1), id: EntryId(u128::from(index.0)), command, wants_reply: false }
        })
        .collect();
    machine.apply(&entries).expect("applies");
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

fn idle() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
    let fill_one = |group| {
        let mut machine = engine.open_keyspace(GroupId(group)).expect("a keyspace");
        fill(&mut machine, 0..IDLE_KEYS);
        machine
    };
    // The first ones fill what all share.
    let first: Vec<_> = (0..100).map(fill_one).collect();
    let before = resident();
    let machines: Vec<_> = (100..100 + IDLE_KEYSPACES).map(fill_one).collect();
    let each = resident().saturating_sub(before) / IDLE_KEYSPACES;
    println!("idle keyspace with {IDLE_KEYS} keys: {each} bytes of memory, measured over {IDLE_KEYSPACES}");
    drop((first, machines));
}

fn large() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let before = resident();
    {
        let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
        let mut machine = engine.open_keyspace(GroupId(1)).expect("a keyspace");
        let begin = Instant::now();
        for from in (0..KEYS).step_by(1_000) {
            fill(&mut machine, from..from + 1_000);
        }
        let rate = KEYS as f64 / begin.elapsed().as_secs_f64();
        println!("filling with {KEYS} keys of 256 bytes: {rate:.0} keys/s");
        let each = resident().saturating_sub(before) / KEYS;
        println!("memory while it is filled: {each} bytes a key");
        machine.sync().expect("syncs");
    }
    let begin = Instant::now();
    let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
    let machine = engine.open_keyspace(GroupId(1)).expect("a keyspace");
    let keyspace = machine.keyspace();
    let opened = begin.elapsed();
    let one = RangeRequest { key: key(KEYS / 2), ..Default::default() };
    assert_eq!(keyspace.range(&one).expect("reads").count, 1);
    println!("opening it again: {opened:.1?}; with a first read {:.1?}", begin.elapsed());
    let all = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        count_only: true,
        ..Default::default()
    };
    let begin = Instant::now();
    assert_eq!(keyspace.range(&all).expect("reads").count, i64::try_from(KEYS).expect("fits"));
    println!("counting all keys: {:.1?}", begin.elapsed());
}

fn main() {
    // `cargo test` runs benches with this flag, to see that they work; this one takes too long for that.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    idle();
    large();
}
