use std::task::Waker;

use bytes::Bytes;
use pontoon_raft_core::message::{Body, Heartbeat, Message};
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{EntryId, LogIndex, ReplicaId, Term};

use super::waiting::HELPING;
use super::*;
use crate::api::RelayedProposal;

fn queue(messages: usize, bytes: usize) -> SendQueue {
    let limits = QueueLimits { messages: messages.into(), bytes: bytes.into() };
    SendQueue::new(Arc::new(limits), Arc::default())
}

fn raft(group: u64) -> Item {
    let body = Body::Heartbeat(Heartbeat { leader_commit: LogIndex(0), round: 0, quiesce: false });
    let id = ReplicaId::default();
    Item::Raft(GroupId(group), Message { from: id, to: id, term: Term(1), doubt: None, body })
}

fn proposal(id: u128, bytes: usize) -> Item {
    let data = Bytes::from(vec![0; bytes]);
    Item::Proposal(RelayedProposal {
        group: GroupId(0),
        term: Term(1),
        id: EntryId(id),
        at: RelayNumber { number: 3, floor: 1 },
        asks: false,
        class: pontoon_flow::Class::Regular,
        data,
    })
}

fn take(queue: &SendQueue, epoch: u64) -> Option<usize> {
    match queue.poll_helping(epoch, &Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Helping::Items(Content { batch, .. }))) => {
            // All of them found room.
            queue.sent(epoch, [].into_iter(), &mut Sent::default(), false);
            Some(batch.items.len())
        }
        Poll::Ready(Some(Helping::Hello(_))) => Some(0),
        _ => None,
    }
}

fn open(queue: &SendQueue) -> u64 {
    let epoch = queue.begin(pb::Hello::default());
    assert_eq!(take(queue, epoch), Some(0), "the hello comes first");
    assert_eq!(take(queue, epoch), None, "and nothing else before it is answered");
    queue.opened(0, None);
    epoch
}

fn groups(queue: &SendQueue) -> Vec<u64> {
    queue.events().unreachable.into_iter().map(|g| g.0).collect()
}

#[test]
fn limits_hold_and_each_loss_is_told_once_per_epoch() {
    let queue = queue(3, 10_000);
    let epoch = open(&queue);
    assert_eq!(queue.push([raft(1), raft(2), raft(3)]), Ok(()));
    assert_eq!(queue.push([raft(4), raft(4), raft(5)]), Err(NotQueued::Messages { max: 3 }));
    assert_eq!(groups(&queue), [4, 5]);
    assert!(queue.push([raft(4)]).is_err());
    assert!(groups(&queue).is_empty(), "already told");
    // Sent whole: what is lost from now on is told again.
    assert_eq!(take(&queue, epoch), Some(3));
    assert_eq!(queue.push([raft(1), raft(1), raft(1), raft(4)]), Err(NotQueued::Messages { max: 3 }));
    assert_eq!(groups(&queue), [4]);
    assert_eq!(take(&queue, epoch), Some(3));
    // Bytes; but an empty queue takes anything.
    assert_eq!(queue.push([proposal(1, 20_000)]), Ok(()));
    assert!(matches!(queue.push([proposal(2, 1)]), Err(NotQueued::Bytes { max: 10_000, .. })));
    assert!(queue.events().not_sent.is_empty(), "the caller was told by the result");
    assert_eq!(queue.status().messages, 1);
}

#[test]
fn a_broken_stream_reports_what_waited_and_what_was_under_way() {
    let queue = queue(100, 10_000);
    let epoch = open(&queue);
    let sent = |group: u64| {
        let mut sent = Sent { messages: 1, appends: vec![GroupId(group)], ..Sent::default() };
        queue.sent(epoch, [].into_iter(), &mut sent, true);
    };
    // The hello was frame 1.
    sent(1);
    queue.acknowledged(2);
    sent(2);
    sent(3);
    queue.push([raft(4), proposal(9, 10), raft(4), raft(2)]).unwrap();
    queue.close();
    let events = queue.events();
    let mut groups: Vec<u64> = events.unreachable.iter().map(|g| g.0).collect();
    groups.sort_unstable();
    assert_eq!(groups, [2, 3, 4], "1 has arrived");
    assert_eq!(events.not_sent, [(GroupId(0), EntryId(9), Term(1), 3)]);
    assert_eq!((queue.status().messages, queue.status().bytes), (0, 0));
    assert!(matches!(queue.poll_helping(epoch, &Context::from_waker(Waker::noop())), Poll::Ready(None)));
    // Down: nothing is taken in, and nobody is told twice.
    assert_eq!(queue.push([raft(4), raft(5)]), Err(NotQueued::Down));
    assert_eq!(self::groups(&queue), [5]);
    // While the next attempt is made, messages wait for it.
    let epoch = queue.begin(pb::Hello::default());
    assert_eq!(queue.push([raft(6)]), Ok(()));
    assert_eq!(take(&queue, epoch), Some(0));
    queue.opened(0, None);
    assert_eq!(take(&queue, epoch), Some(1));
    queue.retire();
    assert_eq!(queue.push([raft(7)]), Err(NotQueued::UnknownStore));
}

#[test]
fn acknowledged_frames_are_forgotten_within_two_steps() {
    let queue = queue(100, 10_000);
    let epoch = open(&queue);
    for group in 0..1000u64 {
        let mut sent = Sent { messages: 1, appends: vec![GroupId(group)], ..Sent::default() };
        queue.sent(epoch, [].into_iter(), &mut sent, true);
        if group % 10 == 9 {
            // The peer is always five frames behind; the hello counts.
            queue.acknowledged(group + 2 - 5);
        }
    }
    queue.close();
    let reported = queue.events().unreachable.len();
    assert!((5..=25).contains(&reported), "{reported}");
}

#[test]
fn what_does_not_fit_a_frame_is_first_in_the_next() {
    let queue = queue(100, 10_000);
    let epoch = open(&queue);
    queue.push([raft(1), raft(2), raft(3)]).unwrap();
    let Poll::Ready(Some(Helping::Items(Content { batch: Batch { items, .. }, .. }))) =
        queue.poll_helping(epoch, &Context::from_waker(Waker::noop()))
    else {
        panic!("three items wait");
    };
    let charge = queue.status().bytes;
    assert_eq!(charge, 0);
    queue.push([raft(4)]).unwrap();
    queue.sent(epoch, items.into_iter().skip(1), &mut Sent::default(), true);
    let order: Vec<u64> = queue
        .more(epoch, &mut Vec::new())
        .items
        .iter()
        .map(|item| match item {
            Item::Raft(group, _) => group.0,
            _ => 0,
        })
        .collect();
    assert_eq!(order, [2, 3, 4]);
    assert_eq!((queue.status().messages, queue.status().bytes), (0, 0));
}

/// What a stream gets now: pings, items, and the room for them.
fn poll(queue: &SendQueue, epoch: u64) -> Option<(Option<u64>, usize, Room)> {
    match queue.poll_helping(epoch, &Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Helping::Items(Content { ping, batch, room, .. }))) => {
            Some((ping, batch.items.len(), room))
        }
        _ => None,
    }
}

/// The stream has made a frame of this size.
fn made(queue: &SendQueue, epoch: u64, bytes: u64) {
    queue.sent(epoch, [].into_iter(), &mut Sent { messages: 1, bytes, ..Sent::default() }, true);
}

#[test]
fn what_waits_and_what_is_in_flight_stay_below_the_bound_together() {
    const BOUND: usize = 4 << 20;
    let queue = queue(10_000, BOUND);
    let epoch = open(&queue);
    let mut id = 0;
    let mut fill = || {
        id += 1;
        queue.push([proposal(id, 16 << 10)]).is_ok()
    };
    while fill() {}
    assert!(queue.status().bytes <= BOUND / 2, "{:?}", queue.status());
    let mut frame = 1;
    while let Some((ping, items, room)) = poll(&queue, epoch) {
        assert_eq!((ping, items, room.any_one), (None, HELPING, frame == 1));
        assert_eq!(room.bytes, BOUND / 2 - queue.status().in_flight_bytes);
        frame += 1;
        made(&queue, epoch, 1 << 20);
        while fill() {}
        let held = queue.status();
        assert!(held.bytes + held.in_flight_bytes <= BOUND, "{held:?}");
    }
    assert_eq!(queue.status().in_flight_bytes, BOUND / 2);
    // So much is in flight that the peer will say by itself how far it has come: it is not asked.
    queue.acknowledged(frame - 1);
    assert_eq!(queue.status().in_flight_bytes, 1 << 20);
    assert_eq!(poll(&queue, epoch).unwrap().1, HELPING);
    // A new stream begins with an empty window.
    queue.close();
    let held = queue.status();
    assert_eq!((held.messages, held.bytes, held.in_flight_bytes), (0, 0, 0));
}

#[test]
fn a_message_above_the_window_goes_alone_and_the_peer_is_asked_for_what_is_in_its_way() {
    let queue = queue(10_000, 200 << 10);
    let epoch = open(&queue);
    queue.push([raft(1)]).unwrap();
    assert_eq!(poll(&queue, epoch).map(|p| p.1), Some(1));
    made(&queue, epoch, 48);
    queue.push([proposal(1, 190 << 10)]).unwrap();
    let Poll::Ready(Some(Helping::Items(Content { batch: Batch { items, .. }, room, .. }))) =
        queue.poll_helping(epoch, &Context::from_waker(Waker::noop()))
    else {
        panic!("one item waits");
    };
    assert_eq!(room, Room { bytes: (100 << 10) - 48, any_one: false, credit: u64::MAX });
    // It did not fit, and nothing else was in the frame.
    queue.sent(epoch, items.into_iter(), &mut Sent::default(), false);
    // 48 bytes are no reason for the peer to say anything, so it is asked, once.
    queue.ping(5);
    assert_eq!(poll(&queue, epoch).map(|p| (p.0, p.1)), Some((Some(5), 0)));
    assert_eq!(poll(&queue, epoch), None);
    queue.acknowledged(2);
    let (ping, items, room) = poll(&queue, epoch).expect("room");
    assert_eq!((ping, items, room.any_one), (None, 1, true));
    made(&queue, epoch, 190 << 10);
    queue.push([raft(1)]).unwrap();
    assert_eq!(poll(&queue, epoch).map(|p| (p.0, p.1)), Some((Some(5), 0)), "asked again");
    assert_eq!(poll(&queue, epoch), None);
}

/// What finds no credit waits until there is more, the peer hears of it once, and pings and acknowledgements change nothing.
#[test]
fn without_credit_nothing_is_sent_and_the_peer_hears_why() {
    let queue = queue(100, 10_000);
    let epoch = queue.begin(pb::Hello::default());
    assert_eq!(take(&queue, epoch), Some(0));
    queue.opened(0, Some(1_000));
    queue.push([raft(1), raft(2)]).unwrap();
    let next = || match queue.poll_helping(epoch, &Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Helping::Items(Content { ping, wants, batch, room, .. }))) => {
            Some((ping, wants, batch.items, room.credit))
        }
        _ => None,
    };
    let (_, wants, items, credit) = next().unwrap();
    assert_eq!((wants, items.len(), credit), (None, 2, 1_000));
    // The first took 700; the second needs 400.
    let mut sent = Sent { messages: 1, charge: 700, starved: Some(400), ..Sent::default() };
    queue.sent(epoch, items.into_iter().skip(1), &mut sent, true);
    assert_eq!(queue.status().credit_bytes, Some(300));
    let (_, wants, items, _) = next().unwrap();
    assert_eq!((wants, items.len()), (Some(1_100), 0));
    assert!(queue.more(epoch, &mut Vec::new()).items.is_empty());
    queue.sent(epoch, [].into_iter(), &mut Sent::default(), true);
    queue.acknowledged(3);
    queue.ping(5);
    let (ping, wants, items, _) = next().unwrap();
    assert_eq!((ping, wants, items.len()), (Some(5), None, 0));
    queue.credited(1_050);
    assert!(next().is_none(), "not enough");
    queue.credited(900);
    queue.credited(1_100);
    let (_, _, items, credit) = next().unwrap();
    assert_eq!((items.len(), credit), (1, 400));
    // The next stream begins without.
    queue.sent(epoch, items.into_iter(), &mut Sent { starved: Some(500), ..Sent::default() }, false);
    queue.close();
    let epoch = queue.begin(pb::Hello::default());
    assert_eq!(take(&queue, epoch), Some(0));
    queue.opened(0, None);
    queue.push([raft(3)]).unwrap();
    assert_eq!(take(&queue, epoch), Some(1));
}
