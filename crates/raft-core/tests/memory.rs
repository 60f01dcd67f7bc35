//! The core's memory does not grow with the log: it keeps no entry that it has handed out, and of all others their terms as runs.

use std::alloc::System;

use pontoon_raft_core::log_view::LogReadError;
use pontoon_raft_core::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A host whose log is not in this process's memory. Nothing here makes the core read it.
#[derive(Debug)]
struct Elsewhere;

impl LogView for Elsewhere {
    fn entries(&self, range: std::ops::Range<LogIndex>, _: u64) -> Result<Vec<Entry>, LogReadError> {
        unreachable!("nobody asked for {range:?}")
    }

    fn extent(&self, range: std::ops::Range<LogIndex>, _: u64) -> LogIndex {
        unreachable!("nobody asked for {range:?}")
    }
}

fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

fn start(n: u64) -> Group<Elsewhere> {
    let configuration = Configuration::of_voters((1..=3).map(replica));
    let snapshot = SnapshotMeta { configuration, ..SnapshotMeta::default() };
    let config = Config { id: replica(n), seed: n, ..Config::default() };
    let initial = InitialState { snapshot, ..InitialState::default() };
    Group::new(config, initial, Elsewhere, 0).expect("a new group")
}

/// Carries out what `group` asks for, and gives away what it wrote and what it says.
fn drive(group: &mut Group<Elsewhere>) -> (Vec<Entry>, Vec<Message>) {
    let (mut written, mut said) = (Vec::new(), Vec::new());
    while group.has_ready() {
        let ready = group.ready();
        if let Some(persist) = ready.persist {
            written.extend(persist.entries);
            group.persisted(0, persist.ticket);
        }
        said.extend(ready.messages);
        if let Some(range) = ready.committed {
            group.applied(range.end.prev());
        }
    }
    (written, said)
}

/// A leader and one follower commit `entries` of 1 KiB, one after the other; the third replica says nothing.
fn commit(leader: &mut Group<Elsewhere>, follower: &mut Group<Elsewhere>, entries: u64) {
    for n in 0..entries {
        let proposal = Proposal::new(EntryId(u128::from(n) + 1), vec![0; 1024]);
        leader.propose(0, [proposal]).expect("it leads");
        while leader.has_ready() || follower.has_ready() {
            let (written, said) = drive(leader);
            for mut message in said {
                if let Body::AppendEntries(append) = &mut message.body {
                    let sent = |entry: &&Entry| entry.index > append.prev_log_index;
                    append.entries = Entries::Inline(written.iter().filter(sent).cloned().collect());
                }
                if message.to == follower.id() {
                    follower.step(0, message).expect("the leader tells the truth");
                }
            }
            for answer in drive(follower).1 {
                leader.step(0, answer).expect("so does the follower");
            }
        }
    }
    assert_eq!(follower.commit_index(), leader.last_index());
}

#[test]
fn it_does_not_grow_with_the_log() {
    let (mut leader, mut follower) = (start(1), start(2));
    leader.campaign(0);
    while !leader.is_leader() {
        for message in drive(&mut leader).1.into_iter().filter(|message| message.to == replica(2)) {
            follower.step(0, message).expect("an honest candidate");
        }
        for answer in drive(&mut follower).1 {
            leader.step(0, answer).expect("an honest voter");
        }
    }
    // The windows and buffers get their size first.
    commit(&mut leader, &mut follower, 1000);
    let region = Region::new(ALLOCATOR);
    commit(&mut leader, &mut follower, 10_000);
    let change = region.change();
    let grown = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
    assert!(change.bytes_allocated > 10_000 * 1024, "the entries themselves were counted");
    assert!(grown < 4096, "two cores have grown by {grown} bytes over 10,000 entries of 1 KiB");
}
