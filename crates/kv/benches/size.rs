//! What keyspaces cost when nobody uses them: memory for a key, for an idle keyspace and for a watcher, and opening a large
//! keyspace again.
//! Prints one line a figure.
#![allow(missing_docs)]
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use pontoon_kv::{Command as KvCommand, Engine, EngineOptions, KeyspaceMachine};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest};
use pontoon_raft_core::types::{EntryId, GroupId, Term};

#[path = "../tests/support/mod.rs"]
mod support;

/// Says to a process which figures it is to take.
const PART: &str = "PONTOON_SIZE_PART";

struct Sizes {
    /// In the large keyspace.
    keys: u64,
    idle_keyspaces: u64,
    watchers: usize,
}

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
            let command = Some(KvCommand::encode_put(&request));
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

fn idle(count: u64) {
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
    let machines: Vec<_> = (100..100 + count).map(fill_one).collect();
    let each = resident().saturating_sub(before) / count;
    println!("idle keyspace with {IDLE_KEYS} keys: {each} bytes of memory, measured over {count}");
    drop((first, machines));
}

fn large(count: u64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let before = resident();
    {
        let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
        let mut machine = engine.open_keyspace(GroupId(1)).expect("a keyspace");
        let begin = Instant::now();
        for from in (0..count).step_by(1_000) {
            fill(&mut machine, from..from + 1_000);
        }
        let rate = count as f64 / begin.elapsed().as_secs_f64();
        println!("filling with {count} keys of 256 bytes: {rate:.0} keys/s");
        let each = resident().saturating_sub(before) / count;
        println!("memory while it is filled: {each} bytes a key");
        machine.sync().expect("syncs");
    }
    let begin = Instant::now();
    let engine = Engine::open(dir.path(), &EngineOptions::default()).expect("the engine opens");
    let machine = engine.open_keyspace(GroupId(1)).expect("a keyspace");
    let keyspace = machine.keyspace();
    let opened = begin.elapsed();
    let one = RangeRequest { key: key(count / 2), ..Default::default() };
    assert_eq!(keyspace.range(&one).expect("reads").count, 1);
    println!("opening it again: {opened:.1?}; with a first read {:.1?}", begin.elapsed());
    let all = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        count_only: true,
        ..Default::default()
    };
    let begin = Instant::now();
    assert_eq!(keyspace.range(&all).expect("reads").count, i64::try_from(count).expect("fits"));
    println!("counting all keys: {:.1?}", begin.elapsed());
}

fn watchers(count: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let running = support::Running::start().await;
        for (streams, what) in [(1, "one stream"), (count / 10, "streams of ten each")] {
            let channel = running.channel().await;
            let first = support::watch_many(&channel, 1, 10).await;
            let before = resident();
            let open = support::watch_many(&channel, streams, count / streams).await;
            let each = resident().saturating_sub(before) / count as u64;
            println!(
                "watcher on {what}: {each} bytes of memory with its client's side, measured over {count}"
            );
            drop((first, open));
        }
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo bench` says so; `cargo test` runs benches without it, to see that they work.
    let small = !arguments.iter().any(|argument| argument == "--bench");
    let sizes = if small {
        Sizes { keys: 5_000, idle_keyspaces: 50, watchers: 200 }
    } else {
        Sizes { keys: 1_000_000, idle_keyspaces: 2_000, watchers: 10_000 }
    };
    match std::env::var(PART).as_deref() {
        Ok("idle") => return idle(sizes.idle_keyspaces),
        Ok("watchers") => return watchers(sizes.watchers),
        Ok("large") => return large(sizes.keys),
        _ => {}
    }
    // Each in a process of its own: what one has freed would hide what the next one takes.
    for part in ["idle", "watchers", "large"] {
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        let ended = again.args(&arguments[1..]).env(PART, part).status().expect("runs");
        assert!(ended.success(), "{part}: {ended}");
    }
}
