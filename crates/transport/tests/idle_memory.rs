//! T24a: a link that was busy and is idle again holds nothing of what it carried. In a process of its own, whose allocator
//! counts.

mod common;

use std::alloc::System;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{PATIENCE, Store, append, heartbeat, pair, proposal};
use pontoon_raft_core::types::GroupId;
use pontoon_transport::{Direction, Lane};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What an idle destination may hold beyond what its connections took when they were opened, both sides of its link together.
const IDLE_BYTES_MAX: usize = 16 << 10;
/// What the HTTP/2 library keeps to read from a connection when frames of full size (16 KiB) have come, whatever they are part
/// of. It is not ours to give back.
const CONNECTION_BYTES: usize = 32 << 10;
/// Each lane has one.
const CONNECTIONS: usize = 2;

const GROUPS: u64 = 500;

/// What is allocated now.
fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    // (What is reallocated is counted in both.)
    stats.bytes_allocated - stats.bytes_deallocated
}

/// What is allocated when nothing moves any more: the least that is seen until it has not been less for a while.
fn at_rest() -> usize {
    let (mut least, mut since) = (live_bytes(), Instant::now());
    // Longer than the silence that is broken by a probe, whose answer says that all has arrived.
    while since.elapsed() < Duration::from_millis(2500) {
        let now = live_bytes();
        if now < least {
            (least, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    least
}

/// Sends appends of `bytes` for each group, and more, and waits until all of it has come.
fn burst(from: &Store, to: &Store, rounds: u64) {
    let before = to.host.counted.load(Ordering::Relaxed);
    let mut sent = 0;
    for round in 0..rounds {
        let groups = (1..=GROUPS).map(GroupId);
        from.transport.send_all(to.id, groups.clone().map(|g| (g, append(from.id, to.id, 0, 1))));
        from.transport.send_all(to.id, groups.map(|g| (g, heartbeat(from.id, to.id, round))));
        // Too large for a frame.
        from.transport.send(to.id, GroupId(GROUPS + 1), append(from.id, to.id, 0, 1));
        from.transport.send_proposal(to.id, proposal(1, u128::from(round) + 1, 100_000)).unwrap();
        sent += 2 * GROUPS as usize + 1;
        let until = Instant::now() + PATIENCE;
        while to.host.counted.load(Ordering::Relaxed) < before + sent {
            assert!(Instant::now() < until, "not everything has come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    to.host.with(|log| log.proposals.clear());
}

#[test]
fn an_idle_link_holds_nothing_of_what_it_carried() {
    let (a, b) = pair();
    for store in [&a, &b] {
        store.host.count_only.store(true, Ordering::Relaxed);
        for group in 1..=GROUPS {
            store.host.set_entries(GroupId(group), 1, 4000);
        }
        store.host.set_entries(GroupId(GROUPS + 1), 1, 5 << 20);
    }
    // One message on each lane: what is made with the first one is there.
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.transport.send(to.id, GroupId(1), heartbeat(from.id, to.id, 1));
        from.transport.send(to.id, GroupId(1), append(from.id, to.id, 0, 1));
    }
    let before = at_rest();
    burst(&a, &b, 5);
    burst(&b, &a, 5);
    let busy = live_bytes();
    let after = at_rest();
    eprintln!("{before} bytes before, {busy} at the end of the burst, {after} at rest");
    for (from, to) in [(&a, &b), (&b, &a)] {
        for lane in [Lane::Control, Lane::Log] {
            let link = from.link(to.id, lane, Direction::Outbound).unwrap();
            assert_eq!((link.disconnections, link.dropped), (0, 0), "{link:?}");
        }
    }
    // Two destinations. A single frame that is kept is 256 KiB.
    assert!(
        after <= before + 2 * (IDLE_BYTES_MAX + CONNECTIONS * CONNECTION_BYTES),
        "{} bytes are left of what was carried",
        after.saturating_sub(before)
    );
}
