//! Many senders to one store that processes slowly: what it has received and not processed stays within its budget, nothing is
//! dropped for that, and everybody has a share.

mod common;

use std::sync::atomic::Ordering;

use common::*;
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_transport::{Direction, Lane};

const SENDERS: u64 = 8;
const APPENDS: u64 = 100;
const ENTRY_BYTES: usize = 16 << 10;
const BUDGET: u64 = 1 << 20;
/// A quarter of the budget is for what has no credits.
const CREDITS: u64 = BUDGET - BUDGET / 4;

/// A store that keeps what it receives until it is told to go on.
fn slow_store(message_bytes_max: usize) -> Store {
    let mut config = config(0xb);
    config.limits.receive_bytes_max = BUDGET;
    config.limits.message_bytes_max = message_bytes_max;
    let store = Store::with(config, "127.0.0.1:0".parse().unwrap());
    store.host.hold_permits.store(true, Ordering::Relaxed);
    store
}

fn sender(id: u64, to: &Store, message_bytes_max: usize) -> Store {
    let mut config = config(id);
    config.limits.message_bytes_max = message_bytes_max;
    let store = Store::with(config, "127.0.0.1:0".parse().unwrap());
    store.knows(to);
    to.knows(&store);
    store
}

fn held(store: &Store) -> u64 {
    store.host.with(|log| log.permits.iter().map(pontoon_transport::ReceivePermit::bytes).sum())
}

/// Appends of one entry each.
fn send(store: &Store, to: StoreId, from_index: u64, appends: u64) {
    let appends = (from_index..from_index + appends).map(|i| (GroupId(1), append(store.id, to, i, i + 1)));
    store.transport.send_all(to, appends);
}

/// T9 in small.
#[test]
fn what_all_senders_bring_together_stays_within_the_budget() {
    let slow = slow_store(16 << 20);
    let senders: Vec<Store> = (1..=SENDERS).map(|id| sender(id, &slow, 16 << 20)).collect();
    for sender in &senders {
        sender.wait_up(slow.id);
        slow.wait_up(sender.id);
        sender.host.set_entries(GroupId(1), APPENDS, ENTRY_BYTES);
    }
    for sender in &senders {
        send(sender, slow.id, 0, APPENDS);
    }
    let one = (ENTRY_BYTES + 200) as u64;
    let received = || slow.host.with(|log| log.received.len() as u64);
    let of = |id: StoreId| slow.host.with(|log| log.received.iter().filter(|(from, ..)| *from == id).count());
    let (mut most, mut halfway) = (0, Vec::new());
    eventually("everything arrives", || {
        let now = held(&slow);
        most = most.max(now);
        assert!(now <= CREDITS + one, "{now} bytes are received and not processed");
        if halfway.is_empty() && received() >= SENDERS * APPENDS / 2 {
            halfway = senders.iter().map(|sender| of(sender.id)).collect();
        }
        // It processes a little.
        let done: Vec<_> = slow.host.with(|log| {
            let n = log.permits.len().min(2);
            log.permits.drain(..n).collect()
        });
        drop(done);
        received() == SENDERS * APPENDS
    });
    assert!(most > CREDITS / 2, "the budget is used: {most}");
    let fair = APPENDS / 2;
    assert!(halfway.iter().all(|n| *n as u64 >= fair / 2), "{halfway:?} of about {fair} each");
    for sender in &senders {
        let inbound = slow.link(sender.id, Lane::Log, Direction::Inbound).unwrap();
        assert_eq!((inbound.dropped, inbound.refused_frames), (0, 0));
        assert!(sender.host.with(|log| log.unreachable.is_empty()));
        let outbound = sender.link(slow.id, Lane::Log, Direction::Outbound).unwrap();
        assert!(outbound.credit_bytes.is_some());
    }
    slow.host.with(|log| log.permits.clear());
    assert_eq!(held(&slow), 0);
}

/// Entries that are larger than any window arrive, one at a time, and what is small is not kept from it for ever.
#[test]
fn a_message_larger_than_the_budget_arrives() {
    let slow = slow_store(4 << 20);
    let (large, small) = (sender(1, &slow, 4 << 20), sender(2, &slow, 4 << 20));
    for sender in [&large, &small] {
        sender.wait_up(slow.id);
        slow.wait_up(sender.id);
    }
    large.host.set_entries(GroupId(1), 4, 3 << 20);
    small.host.set_entries(GroupId(1), 40, 100 << 10);
    send(&large, slow.id, 0, 4);
    send(&small, slow.id, 0, 40);
    eventually("everything arrives", || {
        let now = held(&slow);
        assert!(now <= CREDITS + (3 << 20) + 200, "{now} bytes are received and not processed");
        slow.host.with(|log| log.permits.drain(..).for_each(drop));
        slow.host.with(|log| log.received.len()) == 44
    });
    for sender in [&large, &small] {
        assert_eq!(slow.link(sender.id, Lane::Log, Direction::Inbound).unwrap().dropped, 0);
    }
}

/// A stream that breaks takes its credits along: the next one begins anew, and what the old one brought counts until it is
/// processed.
#[test]
fn a_new_stream_has_credits_of_its_own() {
    let slow = slow_store(16 << 20);
    let proxy = Proxy::to(slow.address);
    let sender = sender(1, &slow, 16 << 20);
    sender.transport.set_peer(slow.id, proxy.address.to_string());
    sender.wait_up(slow.id);
    slow.wait_up(sender.id);
    sender.host.set_entries(GroupId(1), 1000, ENTRY_BYTES);
    send(&sender, slow.id, 0, 200);
    let starves = || {
        let link = sender.link(slow.id, Lane::Log, Direction::Outbound).unwrap();
        link.connected
            && link.credit_bytes.is_some_and(|left| left < ENTRY_BYTES as u64)
            && link.queued_messages > 0
    };
    eventually("no credit is left", starves);
    // The connections break, and their messages are reported.
    sender.transport.set_peer(slow.id, slow.address.to_string());
    eventually("a new stream", || {
        sender.link(slow.id, Lane::Log, Direction::Outbound).unwrap().successes >= 2
    });
    eventually("the loss is told", || sender.host.with(|log| !log.unreachable.is_empty()));
    sender.wait_up(slow.id);
    send(&sender, slow.id, 200, 400);
    // What it has is nearly all there is: the old stream's bytes are not processed.
    assert!(held(&slow) <= CREDITS + (ENTRY_BYTES as u64 + 200));
    eventually("all of it", || {
        slow.host.with(|log| log.permits.drain(..).for_each(drop));
        let new = |log: &mut Log| {
            let new =
                log.received.iter().filter(|r| entries_of(&r.2).first().is_some_and(|e| e.index.0 > 200));
            new.count()
        };
        slow.host.with(new) == 400
    });
}
