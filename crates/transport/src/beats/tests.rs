use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Waker};

use pontoon_raft_core::types::{Entry, StoreId};
use prost::Message as _;
use tokio_stream::Stream as _;

use super::*;
use crate::api::{EntrySource, FEATURE_BEATS};
use crate::batch::{FrameLimits, FrameStream};
use crate::send_queue::{Item, QueueLimits, SendQueue};
use crate::wire;

const ENDS: Ends = Ends { from: StoreId(1), to: StoreId(2) };

struct NoLog;

impl EntrySource for NoLog {
    fn entries(&self, _: GroupId, _: LogIndex, _: LogIndex, _: Term, _: u64) -> Option<Vec<Entry>> {
        None
    }
}

fn message(group: u64, body: Body) -> (GroupId, Message) {
    let replica = |store| ReplicaId { store, number: 1 + group % 2 };
    let message =
        Message { from: replica(ENDS.from), to: replica(ENDS.to), term: Term(7), doubt: None, body };
    (GroupId(group), message)
}

fn heartbeat(group: u64) -> (GroupId, Message) {
    let leader_commit = LogIndex(1_000_000 + group);
    message(group, Body::Heartbeat(Heartbeat { leader_commit, round: 40_000, quiesce: group % 5 == 3 }))
}

fn answer(group: u64) -> (GroupId, Message) {
    message(group, Body::HeartbeatReply { round: 40_000 })
}

/// The frame in which `items` travel to a store with these features.
fn frame(features: u64, items: Vec<Item>) -> pb::LaneFrame {
    let limits = QueueLimits { messages: AtomicUsize::new(100), bytes: AtomicUsize::new(8 << 20) };
    let queue = Arc::new(SendQueue::new(Arc::new(limits), Arc::default()));
    let epoch = queue.begin(pb::Hello::default());
    let limits = FrameLimits { target: 64 << 10, several: 1 << 20, single: 16 << 20 };
    let mut stream = FrameStream::new(Arc::clone(&queue), epoch, Arc::new(NoLog), limits);
    let mut next = || {
        let polled = Pin::new(&mut stream).poll_next(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(frame)) = polled else { panic!("a frame is due") };
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        pb::LaneFrame::decode(&encoded[..]).unwrap()
    };
    assert!(next().hello.is_some());
    queue.opened(features, None);
    queue.push(items).unwrap();
    next()
}

fn arrives(frame: &pb::LaneFrame) -> Vec<(GroupId, Message)> {
    wire::open(&frame.encode_to_vec().into(), ENDS).unwrap().messages
}

fn items(messages: &[(GroupId, Message)]) -> Vec<Item> {
    let mut items = Vec::new();
    for (group, message) in messages {
        match Beat::of(*group, message) {
            Some(beat) => gather(&mut items, beat),
            None => items.push(Item::Raft(*group, message.clone())),
        }
    }
    items
}

/// Whether or not the other store takes beats, the same messages arrive in the same order.
#[test]
fn heartbeats_keep_their_place_among_other_messages() {
    let vote = |group| message(group, Body::PreVoteReply { granted: true });
    let messages =
        vec![vote(1), heartbeat(1), heartbeat(2), answer(3), vote(3), answer(1), vote(8), heartbeat(4)];
    let old = frame(0, items(&messages));
    assert_eq!((old.messages.len(), old.beats.len()), (messages.len(), 0));
    assert_eq!(arrives(&old), messages);
    let new = frame(FEATURE_BEATS, items(&messages));
    assert_eq!((new.messages.len(), new.beats.len()), (3, 3));
    assert_eq!(arrives(&new), messages);
}

#[test]
fn a_thousand_heartbeats_are_one_message_of_a_few_bytes_each() {
    // First replicas of busy groups, as most are.
    let messages: Vec<_> = (1..=1000)
        .map(|group| {
            let (group, mut message) = heartbeat(group);
            (message.from.number, message.to.number) = (1, 1);
            let leader_commit = LogIndex(1_000_000 + group.0);
            message.body = Body::Heartbeat(Heartbeat { leader_commit, round: 40_000, quiesce: false });
            (group, message)
        })
        .collect();
    let items_of = items(&messages);
    assert_eq!(items_of.len(), 1);
    let old = frame(0, items(&messages)).encoded_len();
    let new = frame(FEATURE_BEATS, items_of);
    assert_eq!(arrives(&new), messages);
    let new = new.encoded_len();
    assert!(new <= 10_000 && 2 * new < old, "{new} bytes, {old} one by one");
    let more: Vec<_> = (1..=2500).map(answer).collect();
    assert_eq!(items(&more).len(), 3, "one message is not the whole frame");
}

#[test]
fn a_replica_in_doubt_says_more_than_a_beat() {
    let (group, mut message) = heartbeat(1);
    message.doubt = Some(pontoon_raft_core::types::DoubtId(9));
    assert_eq!(Beat::of(group, &message), None);
}

#[test]
fn columns_that_do_not_fit_are_refused() {
    let beats: Vec<Beat> = [heartbeat(1), answer(2)].iter().filter_map(|(g, m)| Beat::of(*g, m)).collect();
    let good = to_wire(0, &beats);
    let check = |change: fn(&mut pb::Beats)| {
        let mut beats = good.clone();
        change(&mut beats);
        from_wire(&beats, ENDS, &mut Vec::new())
    };
    assert_eq!(check(|_| ()), Ok(()));
    let columns = |what| Err(WireError::Columns { what });
    assert_eq!(check(|b| b.terms.truncate(1)), columns("terms"));
    assert_eq!(check(|b| b.rounds.push(1)), columns("rounds"));
    assert_eq!(check(|b| b.kinds.truncate(1)), columns("kinds"));
    assert_eq!(check(|b| b.commits.clear()), columns("commit indexes"));
    assert_eq!(check(|b| b.commits.push(9)), columns("commit indexes"));
    assert_eq!(check(|b| b.to_numbers.push(9)), columns("receiving replicas"));
    assert!(matches!(check(|b| b.kinds[0] = 3), Err(WireError::Missing { .. })));
    assert!(matches!(check(|b| b.terms[0] = u64::MAX), Err(WireError::OutOfRange { .. })));
    assert!(matches!(check(|b| b.commits[0] = u64::MAX), Err(WireError::OutOfRange { .. })));
}
