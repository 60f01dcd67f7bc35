//! T23: a link whose connections are reset again and again costs the others nothing, reports each loss once, and is itself again
//! when that is over.

mod common;

use std::time::{Duration, Instant};

use common::*;
use pontoon_raft_core::types::GroupId;
use pontoon_transport::{Direction, Lane};

/// Groups on each link.
const GROUPS: u64 = 50;
const RESET_EVERY: Duration = Duration::from_millis(200);

/// How long the link flaps: 60 s, if asked for.
fn length() -> Duration {
    let seconds = std::env::var("PONTOON_FLAP_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

#[test]
fn a_flapping_link_costs_the_others_nothing() {
    let (a, b, c) = (Store::start(0xa), Store::start(0xb), Store::start(0xc));
    let (there, back) = (Proxy::to(b.address), Proxy::to(a.address));
    a.transport.set_peer(b.id, there.address.to_string());
    b.transport.set_peer(a.id, back.address.to_string());
    a.knows(&c);
    c.knows(&a);
    a.wait_up(b.id);
    b.wait_up(a.id);
    a.wait_up(c.id);
    for group in 1..=GROUPS {
        a.host.set_entries(GroupId(group), 1, 4000);
    }
    let lanes = [Lane::Control, Lane::Log];
    let epochs = || -> u64 {
        lanes.iter().map(|lane| a.link(b.id, *lane, Direction::Outbound).unwrap().attempts).sum()
    };
    let before = epochs();
    let (start, mut reset, mut rounds) = (Instant::now(), Instant::now(), 0u64);
    while start.elapsed() < length() {
        for to in [b.id, c.id] {
            a.transport.send_all(to, (1..=GROUPS).map(|group| (GroupId(group), append(a.id, to, 0, 1))));
        }
        rounds += 1;
        if reset.elapsed() >= RESET_EVERY {
            there.reset();
            back.reset();
            reset = Instant::now();
        }
        b.host.with(|log| log.received.clear());
        std::thread::sleep(Duration::from_millis(5));
    }
    let lost = a.host.with(|log| log.unreachable.iter().filter(|r| r.0 == b.id).count() as u64);
    // An attempt that fails ends an epoch, and so does a stream that breaks; the last ones may have ended meanwhile.
    let epochs = 2 * (epochs() - before) + 4;
    eprintln!("{rounds} rounds, {lost} reports of {GROUPS} groups in at most {epochs} epochs");
    assert!(lost <= GROUPS * epochs, "{lost} reports of {GROUPS} groups in {epochs} epochs");
    // Nobody else heard of it, and nothing is missing.
    c.host.wait("all of the other link's", |log| log.received.len() as u64 == rounds * GROUPS);
    assert!(a.host.with(|log| log.unreachable.iter().all(|r| r.0 == b.id)));
    assert_eq!(a.link(c.id, Lane::Log, Direction::Outbound).unwrap().disconnections, 0);
    // It is over.
    let since = Instant::now();
    a.wait_up(b.id);
    b.host.with(|log| log.received.clear());
    a.transport.send_all(b.id, (1..=GROUPS).map(|group| (GroupId(group), append(a.id, b.id, 0, 1))));
    b.host.wait("the first after it", |log| log.received.len() as u64 >= GROUPS);
    eprintln!("full speed after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(2) + PATIENCE / 2, "{:?}", since.elapsed());
}
