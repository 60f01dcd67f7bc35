//! Two transports over loopback, from the first message to the death of a store.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Proxy, Store, Weather, append, entries_of, eventually, heartbeat, pair, proposal};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, StoreId, Term};
use pontoon_transport::{Direction, Lane, NotQueued, ProposalOutcome, ProposalReply, QueueFull};

#[test]
fn messages_arrive_in_order_on_their_lanes() {
    let (a, b) = pair();
    for group in 1..=4 {
        a.host.set_entries(GroupId(group), 100, 300);
    }
    for i in 0..100 {
        a.transport.send(b.id, GroupId(i % 4 + 1), heartbeat(a.id, b.id, i + 1));
        a.transport.send(b.id, GroupId(i % 4 + 1), append(a.id, b.id, i, i + 1));
    }
    b.host.wait("all messages", |log| log.received.len() == 200);
    b.host.with(|log| {
        let serials: Vec<u64> =
            log.received.iter().filter(|r| entries_of(&r.2).is_empty()).map(|r| r.2.term.0).collect();
        assert_eq!(serials, (1..=100).collect::<Vec<_>>());
        let indexes: Vec<u64> =
            log.received.iter().flat_map(|r| entries_of(&r.2)).map(|e| e.index.0).collect();
        assert_eq!(indexes, (1..=100).collect::<Vec<_>>());
        assert!(log.received.iter().all(|r| r.0 == a.id && r.2.from.store == a.id && r.2.to.store == b.id));
    });
    let control = a.link(b.id, Lane::Control, Direction::Outbound).unwrap();
    let log = a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    assert_eq!((control.messages, log.messages), (100, 100));
    assert_eq!((control.queued_messages, control.successes, control.disconnections), (0, 1, 0));
    assert_eq!(control.name, "store-11");
    let inbound = b.link(a.id, Lane::Log, Direction::Inbound).unwrap();
    assert!(inbound.connected && inbound.messages == 100 && inbound.refused_frames == 0);
    // What comes back goes over b's own connections.
    b.transport.send(a.id, GroupId(1), heartbeat(b.id, a.id, 7));
    a.host.wait("the answer", |log| log.received.len() == 1);
}

#[test]
fn waiting_messages_share_frames() {
    let (a, b) = pair();
    a.transport.send_all(b.id, (0..5000).map(|i| (GroupId(i), heartbeat(a.id, b.id, i + 1))));
    b.host.wait("all", |log| log.received.len() == 5000);
    let batches = b.host.with(|log| log.batches.len());
    assert!(batches < 50, "5000 messages took {batches} frames");
}

#[test]
fn a_long_interval_is_sent_in_parts_and_a_stale_one_is_cancelled() {
    let (a, b) = pair();
    a.host.set_entries(GroupId(1), 3000, 1000);
    a.transport.send(b.id, GroupId(1), append(a.id, b.id, 0, 3000));
    // Not in the log; and an unknown group.
    a.transport.send(b.id, GroupId(1), append(a.id, b.id, 0, 3001));
    a.transport.send(b.id, GroupId(2), append(a.id, b.id, 0, 1));
    a.transport.send(b.id, GroupId(1), append(a.id, b.id, 2999, 3000));
    b.host.wait("the last", |log| {
        log.received.iter().filter(|r| entries_of(&r.2).last().is_some_and(|e| e.index.0 == 3000)).count()
            == 2
    });
    b.host.with(|log| {
        let mut next = 1;
        let last = log.received.len() - 1;
        assert!(last >= 3, "3 MB fit in {last} frames of at most 1 MiB");
        for (_, _, message) in &log.received[..last] {
            for entry in entries_of(message) {
                assert_eq!(entry.index, LogIndex(next));
                next += 1;
            }
        }
        assert_eq!(next, 3001);
    });
    assert_eq!(a.link(b.id, Lane::Log, Direction::Outbound).unwrap().cancelled, 2);
    assert!(a.host.with(|log| log.unreachable.is_empty()));
}

#[test]
fn proposals_go_there_and_answers_come_back() {
    let (a, b) = pair();
    a.transport.send_proposal(b.id, proposal(3, 77, 500)).unwrap();
    b.host.wait("the proposal", |log| log.proposals.len() == 1);
    assert_eq!(b.host.with(|log| log.proposals[0].clone()), (a.id, proposal(3, 77, 500)));
    let outcomes = [
        ProposalOutcome::Accepted { index: LogIndex(9), term: Term(5) },
        ProposalOutcome::NotLeader { leader: None },
        ProposalOutcome::NotLeader {
            leader: Some(pontoon_raft_core::types::ReplicaId { store: a.id, number: 4 }),
        },
        ProposalOutcome::Overloaded,
        ProposalOutcome::InProgress,
        ProposalOutcome::Failed { reason: "no such group".to_owned() },
    ];
    for outcome in outcomes.clone() {
        b.transport.send_proposal_reply(
            a.id,
            ProposalReply { group: GroupId(3), id: EntryId(77), term: Term(6), number: 2, outcome },
        );
    }
    a.host.wait("the answers", |log| log.replies.len() == outcomes.len());
    assert_eq!(
        a.host.with(|log| log.replies.iter().map(|r| r.1.outcome.clone()).collect::<Vec<_>>()),
        outcomes
    );

    let huge = proposal(3, 78, 16 << 20);
    assert!(matches!(
        a.transport.send_proposal(b.id, huge),
        Err(QueueFull { why: NotQueued::TooLarge { .. }, .. })
    ));
    let stranger = StoreId(0xdead);
    assert_eq!(
        a.transport.send_proposal(stranger, proposal(3, 79, 1)),
        Err(QueueFull { to: stranger, why: NotQueued::UnknownStore })
    );
}

#[test]
fn a_killed_store_is_noticed_at_once_and_found_again() {
    let (a, b) = pair();
    let (id, address) = (b.id, b.address);
    // A session that has worked earns free tries.
    std::thread::sleep(Duration::from_millis(1100));
    let killed = Instant::now();
    b.kill();
    a.host.wait("refused", |log| log.down.iter().any(|d| d.1));
    let noticed = killed.elapsed();
    assert!(noticed < Duration::from_secs(1), "took {noticed:?}");
    a.host.with(|log| {
        let told: Vec<_> = log.down.iter().map(|d| (d.0, d.1)).collect();
        assert_eq!(told, [(id, false), (id, true)], "down at once, then known to be gone, each once");
    });
    // Between attempts nothing is taken in; a relayed proposal is told so.
    eventually("a refusal", || a.transport.send_proposal(id, proposal(1, 1, 10)).is_err());

    let b = Store::with(common::config(id.0), address);
    b.knows(&a);
    let back = Instant::now();
    a.wait_up(id);
    b.wait_up(a.id);
    let up = back.elapsed();
    assert!(up < Duration::from_secs(2), "took {up:?}");
    assert_eq!(a.host.with(|log| log.up.len()), 2);
    a.transport.send(id, GroupId(1), heartbeat(a.id, id, 5));
    b.host.wait("a message", |log| log.received.len() == 1);
    eprintln!("kill noticed after {noticed:?}, links up {up:?} after the restart");
}

#[test]
fn a_store_that_comes_back_late_is_dialed_when_it_says_hello() {
    let (a, b) = pair();
    let (id, address) = (b.id, b.address);
    b.kill();
    // Free tries are used up and the back-off is at least a second.
    eventually("back-off", || {
        a.link(id, Lane::Control, Direction::Outbound).unwrap().backoff >= Duration::from_secs(2)
    });
    let b = Store::with(common::config(id.0), address);
    b.knows(&a);
    let back = Instant::now();
    a.wait_up(id);
    assert!(back.elapsed() < Duration::from_millis(1500), "took {:?}", back.elapsed());
}

#[test]
fn what_waits_for_a_broken_stream_is_reported_once_and_proposals_are_not_sent() {
    let b = Store::start(0xb);
    let proxy = Proxy::to(b.address);
    let a = Store::start(0xa);
    b.knows(&a);
    a.transport.set_peer(b.id, proxy.address.to_string());
    a.wait_up(b.id);
    // Now the far side reads nothing: fill sockets and windows until messages wait.
    proxy.set(Weather::NeverReads);
    let mut accepted = 0u32;
    let full = loop {
        match a.transport.send_proposal(b.id, proposal(1, u128::from(accepted) + 1, 64 << 10)) {
            Ok(()) => accepted += 1,
            Err(full) => break full,
        }
    };
    assert!(matches!(full.why, NotQueued::Bytes { .. }), "{full}");
    let link = a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    assert!(link.queued_bytes <= 8 << 20, "{link:?}");
    // Groups that meet the full queue are reported, each once.
    for _ in 0..1000 {
        for group in 1..=3 {
            a.transport.send(b.id, GroupId(group), append(a.id, b.id, 0, 1));
        }
    }
    a.host.wait("reports", |log| log.unreachable.len() == 3);
    // The probe finds the link dead: the queue is dropped, and every proposal in it is known not to have been sent.
    // (The sockets may have taken some more meanwhile, so how many those are is not known beforehand.)
    let link = || a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    eventually("the probe", || link().disconnections == 1);
    a.host.wait("not sent", |log| log.replies.last().is_some_and(|r| r.1.id.0 == u128::from(accepted)));
    a.host.with(|log| {
        assert!(log.replies.iter().all(|r| r.1.outcome == ProposalOutcome::NotSent));
        let ids: Vec<u128> = log.replies.iter().map(|r| r.1.id.0).collect();
        // Exactly the newest ones, in order; the older ones may have arrived and are nobody's to judge.
        let first = u128::from(accepted) - ids.len() as u128 + 1;
        assert_eq!(ids, (first..=u128::from(accepted)).collect::<Vec<_>>());
        assert_eq!(log.unreachable.len(), 3, "once per epoch");
    });
    assert_eq!((link().queued_messages, link().queued_bytes), (0, 0));
    assert!(link().last_error.is_some());
}

#[test]
fn an_idle_link_stays_up_and_follows_the_election_timer() {
    let (a, b) = pair();
    a.transport.set_election_timer(500);
    std::thread::sleep(Duration::from_millis(3500));
    for link in a.transport.links().iter().chain(&b.transport.links()) {
        assert!(link.connected && link.disconnections == 0, "{link:?}");
    }
}

#[test]
fn control_is_punctual_while_the_log_lane_is_full() {
    let (a, b) = pair();
    a.host.set_entries(GroupId(1), 200, 1000);
    b.host.count_only.store(false, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(2);
    let mut sent = Vec::new();
    let mut serial = 1000;
    while Instant::now() < until {
        for _ in 0..20 {
            a.transport.send(b.id, GroupId(1), append(a.id, b.id, 0, 200));
        }
        serial += 1;
        sent.push((Instant::now(), serial));
        a.transport.send(b.id, GroupId(2), heartbeat(a.id, b.id, serial));
        // Release the memory of what has come.
        b.host.with(|log| log.received.clear());
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = serial;
    b.host.wait("the last heartbeat", |log| log.arrivals.iter().any(|a| a.1 == last));
    let mut delays: Vec<Duration> = b.host.with(|log| {
        sent.iter()
            .map(|(at, serial)| log.arrivals.iter().find(|a| a.1 == *serial).unwrap().0.duration_since(*at))
            .collect()
    });
    delays.sort();
    let median = delays[delays.len() / 2];
    let bytes = a.link(b.id, Lane::Log, Direction::Outbound).unwrap().bytes;
    eprintln!(
        "{} heartbeats beside {} MiB: median {median:?}, worst {:?}",
        delays.len(),
        bytes >> 20,
        delays.last().unwrap()
    );
    assert!(bytes > 20 << 20, "the log lane was hardly used: {bytes}");
    assert!(median < Duration::from_millis(100), "{median:?}");
}

#[test]
fn over_the_receive_budget_entries_wait_and_control_goes_on() {
    let a = Store::start(0xa);
    let mut config = common::config(0xb);
    config.limits.receive_bytes_max = 1 << 20;
    let b = Store::with(config, "127.0.0.1:0".parse().unwrap());
    a.knows(&b);
    b.knows(&a);
    a.wait_up(b.id);
    b.host.hold_permits.store(true, Ordering::Relaxed);
    a.host.set_entries(GroupId(1), 1000, 1000);
    for i in 0..400u64 {
        a.transport.send(b.id, GroupId(1), append(a.id, b.id, i, i + 10));
    }
    eventually("what waits", || {
        let link = a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
        link.queued_messages > 0 && link.credit_bytes.is_some_and(|left| left < 11_000)
    });
    a.transport.send(b.id, GroupId(2), heartbeat(a.id, b.id, 99));
    b.host.wait("control", |log| log.received.iter().any(|r| r.2.term.0 == 99));
    assert!(b.transport.received_bytes_waiting() <= 1 << 20);
    // Processing them makes room again.
    b.host.hold_permits.store(false, Ordering::Relaxed);
    b.host.with(|log| log.permits.clear());
    eventually("release", || {
        b.host.with(|log| log.permits.clear());
        b.transport.received_bytes_waiting() == 0
    });
    // Credit may split an append; nothing of it is lost.
    b.host.wait("all entries", |log| {
        log.received.iter().map(|r| entries_of(&r.2).len()).sum::<usize>() == 4000
    });
    assert_eq!(b.link(a.id, Lane::Log, Direction::Inbound).unwrap().dropped, 0);
    assert!(a.host.with(|log| log.unreachable.is_empty()));
}

#[test]
fn a_removed_peer_is_refused() {
    let (a, b) = pair();
    b.transport.remove_peer(a.id);
    a.host.wait("down", |log| !log.down.is_empty());
    eventually("refused", || {
        let link = a.link(b.id, Lane::Control, Direction::Outbound).unwrap();
        link.last_error.is_some_and(|e| e.contains("unknown_store"))
    });
    assert!(b.transport.links().is_empty());
    // And taken back.
    b.knows(&a);
    a.wait_up(b.id);
}

#[test]
fn a_peer_that_moved_is_followed() {
    let (a, b) = pair();
    let proxy = Proxy::to(b.address);
    a.transport.set_peer(b.id, proxy.address.to_string());
    eventually("moved", || proxy.accepted.load(Ordering::Relaxed) >= 2);
    a.wait_up(b.id);
    a.transport.send(b.id, GroupId(1), heartbeat(a.id, b.id, 1));
    b.host.wait("a message", |log| !log.received.is_empty());
}

#[test]
fn the_backlog_threshold_acts_at_once() {
    let (a, b) = pair();
    a.transport.set_backlog_threshold(0, 0);
    // At least one message always passes.
    // In doubt, each of them is a message of its own.
    let one_by_one = |group| {
        let doubt = Some(pontoon_raft_core::types::DoubtId(7));
        (GroupId(group), pontoon_raft_core::message::Message { doubt, ..heartbeat(a.id, b.id, group) })
    };
    a.transport.send_all(b.id, (0..2000).map(one_by_one));
    a.host.wait("reports", |log| log.unreachable.len() > 1000);
    a.transport.set_backlog_threshold(10_000, 8 << 20);
    b.host.with(|log| log.received.clear());
    a.transport.send_all(b.id, (0..2000).map(one_by_one));
    b.host.wait("all", |log| log.received.len() >= 2000);
}
