//! Who is taken for a store: what hellos say of the data directory, refusals that are final, and two processes with one
//! store id.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{CLUSTER, Store, eventually, heartbeat, linked};
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_transport::{Direction, Lane, Unwelcome};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const GROUP: GroupId = GroupId(1);

fn hello(incarnation: u64, lane: pb::LaneKind) -> pb::Hello {
    pb::Hello {
        protocol_version: 1,
        cluster: CLUSTER,
        store: 0xa,
        to_store: 0xb,
        name: "by hand".to_owned(),
        lane: lane.into(),
        incarnation,
        lineage: Some(pb::Lineage { lineage: 0x100a, start: 4, opened_at: 20, reached: 21, in_doubt: false }),
        ..pb::Hello::default()
    }
}

/// A lane spoken by hand.
struct Hand {
    _frames: mpsc::Sender<pb::LaneFrame>,
    replies: tonic::Streaming<pb::LaneReply>,
}

impl Hand {
    /// Says hello, and a heartbeat with term 7 without waiting for the answer.
    async fn greet(to: &Store, hello: pb::Hello) -> (Self, pb::HelloAck) {
        let mut client = PeerClient::connect(format!("http://{}", to.address)).await.unwrap();
        let (frames, stream) = mpsc::channel(8);
        frames.send(pb::LaneFrame { hello: Some(hello), ..Default::default() }).await.unwrap();
        let body = pb::raft_message::Body::Heartbeat(pb::Heartbeat::default());
        let message = pb::RaftMessage { group: 1, term: 7, body: Some(body), ..Default::default() };
        frames.send(pb::LaneFrame { messages: vec![message], ..Default::default() }).await.unwrap();
        let mut replies = client.lane(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let ack = replies.message().await.unwrap().unwrap().hello_ack.unwrap();
        (Self { _frames: frames, replies }, ack)
    }

    async fn over(&mut self) -> bool {
        matches!(self.replies.message().await, Ok(None) | Err(_))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn refuse(at: &Store, whom: StoreId, final_: bool) {
    let unwelcome = Unwelcome { final_, reason: "its directory is not the one".to_owned() };
    at.host.unwelcome.lock().unwrap().insert(whom, unwelcome);
}

fn identified_pair() -> (Store, Store) {
    linked(Store::identified(0xa), Store::identified(0xb))
}

#[test]
fn both_sides_hear_which_directory_the_other_one_has_and_how_far_it_is() {
    let (a, b) = identified_pair();
    for (here, there) in [(&a, &b), (&b, &a)] {
        here.host.with(|log| {
            // By its hellos and by its answers to ours, on two lanes each.
            assert!(log.claims.len() >= 4);
            let incarnation = log.claims[0].1.unwrap().incarnation;
            for (store, claim) in &log.claims {
                let claim = claim.unwrap();
                assert_eq!((*store, claim.identity.lineage), (there.id, 0x1000 + there.id.0));
                assert_eq!((claim.identity.start, claim.identity.opened_at), (3, 17));
                assert_eq!(claim.incarnation, incarnation);
            }
        });
    }
    a.host.durable.store(55, Ordering::Relaxed);
    a.transport.send(b.id, GROUP, heartbeat(a.id, b.id, 1));
    b.host.wait("the heartbeat", |log| !log.received.is_empty());
    b.host.with(|log| {
        assert_eq!(log.reached.last(), Some(&(a.id, 55, 0)), "told before what rests on it");
        let admitted: Vec<_> = log.admitted.iter().map(|(from, claim, n)| (*from, *claim, *n)).collect();
        assert_eq!(admitted.len(), 1, "a link without messages is no act");
        assert_eq!((admitted[0].0, admitted[0].1.unwrap().identity.start, admitted[0].2), (a.id, 3, 0));
    });
}

#[test]
fn a_process_that_may_be_connected_and_not_act_is_cut_off_at_its_first_message() {
    let (a, b) = identified_pair();
    let refusal = Unwelcome { final_: false, reason: "not now".to_owned() };
    b.host.not_admitted.lock().unwrap().insert(a.id, refusal);
    a.host.durable.store(55, Ordering::Relaxed);
    a.transport.send(b.id, GROUP, heartbeat(a.id, b.id, 1));
    b.host.wait("the question", |log| !log.admitted.is_empty());
    eventually("it is cut off", || {
        let link = b.link(a.id, Lane::Control, Direction::Inbound).unwrap();
        link.disconnections > 0 && link.last_error.is_some_and(|why| why.contains("not now"))
    });
    assert!(b.host.with(|log| log.received.is_empty() && log.reached.is_empty()));
    b.host.not_admitted.lock().unwrap().clear();
    eventually("it acts", || {
        a.transport.send(b.id, GROUP, heartbeat(a.id, b.id, 1));
        b.host.with(|log| !log.received.is_empty())
    });
}

#[test]
fn nothing_of_a_refused_process_is_delivered() {
    let b = Store::identified(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    runtime().block_on(async {
        for lane in [pb::LaneKind::Control, pb::LaneKind::Log] {
            for (final_, refusal) in [(true, pb::Refusal::Fenced), (false, pb::Refusal::Busy)] {
                refuse(&b, StoreId(0xa), final_);
                let (mut hand, ack) = Hand::greet(&b, hello(1, lane)).await;
                assert_eq!(ack.refusal(), refusal);
                assert!(ack.reason.contains("not the one") && ack.store == 0xb && ack.cluster == CLUSTER);
                assert!(hand.over().await);
            }
        }
        assert!(b.host.with(|log| log.received.is_empty() && log.reached.is_empty()));
        b.host.unwelcome.lock().unwrap().clear();
        let (_hand, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Control)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
        assert_eq!(ack.lineage.unwrap().lineage, 0x100b);
        b.host.wait("the heartbeat", |log| log.received.len() == 1);
    });
}

#[test]
fn a_snapshot_of_a_refused_process_is_not_taken() {
    let (a, b) = identified_pair();
    refuse(&b, a.id, false);
    let image = common::Image { left: 3, piece: vec![1; 100].into(), pause: Duration::ZERO };
    a.transport.send_snapshot(b.id, GROUP, common::install_snapshot(a.id, b.id), Box::new(image));
    a.host.wait("the refusal", |log| log.snapshots_sent == [(StoreId(0xb), GROUP, false)]);
    assert!(b.host.with(|log| log.images.is_empty() && log.sinks_dropped == 0));
}

#[test]
fn a_store_that_is_refused_for_good_falls_silent_everywhere() {
    let (a, b) = identified_pair();
    let c = Store::identified(0xc);
    a.knows(&c);
    c.knows(&a);
    a.wait_up(c.id);
    c.wait_up(a.id);
    // For the time being: it tries again and again.
    let d = Store::identified(0xd);
    refuse(&d, a.id, false);
    d.transport.set_peer(a.id, "127.0.0.1:1");
    a.knows(&d);
    eventually("several attempts", || {
        a.link(d.id, Lane::Control, Direction::Outbound).is_some_and(|l| l.attempts >= 2)
    });
    assert!(a.host.with(|log| log.fenced.is_empty()));
    d.host.unwelcome.lock().unwrap().clear();
    a.wait_up(d.id);
    // For good, at the next hello.
    let e = Store::identified(0xe);
    refuse(&e, a.id, true);
    e.transport.set_peer(a.id, "127.0.0.1:1");
    a.knows(&e);
    a.host.wait("it is told", |log| !log.fenced.is_empty());
    for peer in [&b, &c, &d] {
        eventually("no link", || {
            peer.link(a.id, Lane::Control, Direction::Inbound).is_some_and(|l| !l.connected)
                && peer.link(a.id, Lane::Log, Direction::Inbound).is_some_and(|l| !l.connected)
        });
        peer.host.with(|log| log.received.clear());
        a.transport.send(peer.id, GROUP, heartbeat(a.id, peer.id, 9));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!([&b, &c, &d].iter().all(|peer| peer.host.with(|log| log.received.is_empty())));
    a.host.with(|log| {
        assert_eq!(log.fenced.len(), 1, "once");
        assert!(log.fenced[0].0 == e.id && log.fenced[0].1.contains("not the one"), "{:?}", log.fenced);
    });
}

#[test]
fn only_the_store_that_is_meant_can_refuse_for_good() {
    let b = Store::identified(0xb);
    refuse(&b, StoreId(0xa), true);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    let a = Store::identified(0xa);
    // Another store is meant. It is refused before anybody looks at the directory.
    a.transport.set_peer(StoreId(0xc), b.address.to_string());
    eventually("attempts", || {
        a.link(StoreId(0xc), Lane::Control, Direction::Outbound).is_some_and(|l| l.attempts >= 2)
    });
    assert!(a.host.with(|log| log.fenced.is_empty()));
}

#[test]
fn the_dialer_does_not_talk_to_whom_it_does_not_take() {
    let (a, b) = (Store::identified(0xa), Store::identified(0xb));
    refuse(&a, b.id, true);
    b.transport.set_peer(a.id, "127.0.0.1:1");
    a.knows(&b);
    let link = || a.link(b.id, Lane::Control, Direction::Outbound).unwrap();
    eventually("an attempt", || link().attempts > 0);
    let link = link();
    assert!(!link.connected && link.successes == 0);
    let why = link.last_error.unwrap();
    assert!(why.contains("not taken for store") && why.contains("not the one"), "{why}");
    assert!(a.host.with(|log| log.up.is_empty() && log.fenced.is_empty()));
}

#[test]
fn a_second_process_is_turned_away_and_for_good_once_the_first_one_has_answered() {
    let (a, b) = identified_pair();
    let first = || b.link(a.id, Lane::Control, Direction::Inbound).unwrap();
    let hellos = first().attempts;
    runtime().block_on(async {
        let start = Instant::now();
        let (mut hand, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Control)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Duplicate, "{}", ack.reason);
        assert!(hand.over().await);
        let reason = loop {
            let (_, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Log)).await;
            if ack.refusal() == pb::Refusal::Fenced {
                break ack.reason;
            }
            assert_eq!(ack.refusal(), pb::Refusal::Duplicate);
            assert!(start.elapsed() < common::PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(reason.contains("another process"), "{reason}");
    });
    assert!(first().connected && first().attempts == hellos && first().disconnections == 0);
    assert!(b.link(a.id, Lane::Control, Direction::Outbound).unwrap().disconnections == 0);
    b.host.with(|log| {
        assert!(log.received.is_empty(), "nothing of the second one");
        assert!(log.admitted.is_empty(), "and so nothing of it is remembered");
    });
}

#[test]
fn a_second_process_that_does_not_fit_is_told_at_once() {
    let (a, b) = identified_pair();
    for (final_, refusal) in [(false, pb::Refusal::Duplicate), (true, pb::Refusal::Fenced)] {
        refuse(&b, a.id, final_);
        runtime().block_on(async {
            let (mut hand, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Control)).await;
            assert_eq!(ack.refusal(), refusal, "{}", ack.reason);
            assert!(hand.over().await);
        });
    }
    assert!(b.link(a.id, Lane::Control, Direction::Inbound).unwrap().connected);
}

#[test]
fn a_restarted_process_is_taken_at_once_when_the_old_one_is_gone() {
    let (a, b) = identified_pair();
    a.kill();
    let start = Instant::now();
    runtime().block_on(async {
        loop {
            let (_hand, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Control)).await;
            if ack.refusal() == pb::Refusal::Unspecified {
                break;
            }
            // Its sockets are not all found closed yet.
            assert_eq!(ack.refusal(), pb::Refusal::Duplicate);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_process_that_vanished_without_a_word_is_replaced_after_its_silence() {
    let b = Store::identified(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    runtime().block_on(async {
        // Its connections stay open, and nothing comes any more.
        let (mut control, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Control)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
        let (mut log, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Log)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
        let start = Instant::now();
        let mut duplicates = 0;
        let _second = loop {
            let (second, ack) = Hand::greet(&b, hello(2, pb::LaneKind::Control)).await;
            match ack.refusal() {
                pb::Refusal::Unspecified => break second,
                pb::Refusal::Duplicate => duplicates += 1,
                other => panic!("{other:?}: {}", ack.reason),
            }
            assert!(start.elapsed() < common::PATIENCE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(duplicates > 0 && start.elapsed() > Duration::from_secs(2), "it seemed alive for a while");
        assert!(control.over().await && log.over().await, "all streams of the old process are closed");
        let (_, ack) = Hand::greet(&b, hello(1, pb::LaneKind::Log)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Duplicate, "now the old one is the second one");
    });
}

#[test]
fn processes_that_say_nothing_of_their_directory_replace_each_other_as_before() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    let silent = |incarnation| pb::Hello { lineage: None, ..hello(incarnation, pb::LaneKind::Control) };
    runtime().block_on(async {
        let (mut first, ack) = Hand::greet(&b, silent(1)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
        let (_second, ack) = Hand::greet(&b, silent(2)).await;
        assert_eq!((ack.refusal(), ack.lineage), (pb::Refusal::Unspecified, None));
        assert!(first.over().await);
    });
    assert!(b.host.with(|log| log.claims.iter().all(|(_, claim)| claim.is_none())));
}
