//! Strangers and liars: what a store refuses, and that it survives what it is sent.

mod common;

use std::time::Duration;

use common::{CLUSTER, Store, config, eventually, heartbeat, pair};
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_transport::{Direction, Lane, TransportConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn hello(from: u64, to: u64) -> pb::Hello {
    pb::Hello {
        protocol_version: 1,
        cluster: CLUSTER,
        store: from,
        to_store: to,
        name: "by hand".to_owned(),
        lane: pb::LaneKind::Log.into(),
        incarnation: 1,
        ..pb::Hello::default()
    }
}

/// A lane spoken by hand.
struct Hand {
    frames: mpsc::Sender<pb::LaneFrame>,
    replies: tonic::Streaming<pb::LaneReply>,
}

impl Hand {
    async fn open(to: &Store, first: pb::LaneFrame) -> Self {
        let mut client = PeerClient::connect(format!("http://{}", to.address)).await.unwrap();
        let (frames, stream) = mpsc::channel(8);
        frames.send(first).await.unwrap();
        let replies = client.lane(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { frames, replies }
    }

    async fn greet(to: &Store, hello: pb::Hello) -> (Self, pb::HelloAck) {
        let mut hand = Self::open(to, pb::LaneFrame { hello: Some(hello), ..Default::default() }).await;
        let ack = hand.replies.message().await.unwrap().unwrap().hello_ack.unwrap();
        (hand, ack)
    }

    /// Whether the acceptor has ended the stream.
    async fn over(&mut self) -> bool {
        matches!(self.replies.message().await, Ok(None) | Err(_))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_wrong_hello_is_refused_with_its_reason() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    runtime().block_on(async {
        let good = hello(0xa, 0xb);
        let cases = [
            (pb::Hello { protocol_version: 2, ..good.clone() }, pb::Refusal::Version),
            (pb::Hello { cluster: 1, ..good.clone() }, pb::Refusal::Cluster),
            (pb::Hello { to_store: 0xc, ..good.clone() }, pb::Refusal::Destination),
            (pb::Hello { store: 0xc, ..good.clone() }, pb::Refusal::UnknownStore),
            (pb::Hello { store: 0, ..good.clone() }, pb::Refusal::Malformed),
            (pb::Hello { store: 0xb, ..good.clone() }, pb::Refusal::Malformed),
            (pb::Hello { lane: 77, ..good.clone() }, pb::Refusal::Malformed),
            (pb::Hello { lane: pb::LaneKind::Snapshot.into(), ..good.clone() }, pb::Refusal::Malformed),
        ];
        for (hello, refusal) in cases {
            let (mut hand, ack) = Hand::greet(&b, hello).await;
            assert_eq!(ack.refusal(), refusal, "{}", ack.reason);
            assert!(!ack.reason.is_empty() && ack.store == 0xb && ack.cluster == CLUSTER);
            assert!(hand.over().await);
        }
        // No hello at all.
        let mut hand = Hand::open(&b, pb::LaneFrame { ping: Some(1), ..Default::default() }).await;
        let ack = hand.replies.message().await.unwrap().unwrap().hello_ack.unwrap();
        assert_eq!(ack.refusal(), pb::Refusal::Malformed);
        assert!(hand.over().await);
        // The good one.
        let (_hand, ack) = Hand::greet(&b, good).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
    });
    assert!(b.host.with(|log| log.received.is_empty()));
}

#[test]
fn the_dialer_learns_why_it_is_refused() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    // Another cluster.
    let config = TransportConfig { cluster: 99, ..config(0xa) };
    let a = Store::with(config, "127.0.0.1:0".parse().unwrap());
    a.knows(&b);
    let error = |a: &Store, to| a.link(to, Lane::Control, Direction::Outbound).unwrap().last_error;
    eventually("wrong cluster", || error(&a, b.id).is_some_and(|e| e.contains("(cluster)")));
    // Another store behind the address.
    let c = Store::start(0xc);
    let meant = StoreId(0xd);
    c.transport.set_peer(meant, b.address.to_string());
    eventually("wrong destination", || error(&c, meant).is_some_and(|e| e.contains("(destination)")));
    let link = c.link(meant, Lane::Control, Direction::Outbound).unwrap();
    assert!(!link.connected && link.successes == 0);
    assert!(c.host.with(|log| log.up.is_empty()));
}

#[test]
fn bad_frames_are_refused_and_the_stream_survives_some() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    runtime().block_on(async {
        let (mut hand, _) = Hand::greet(&b, hello(0xa, 0xb)).await;
        let message = |body| pb::RaftMessage { group: 1, term: 3, body, ..Default::default() };
        let append = |entries, prev| {
            let append =
                pb::AppendEntries { prev_log_index: prev, prev_log_term: 1, leader_commit: 0, entries };
            message(Some(pb::raft_message::Body::Append(append)))
        };
        let entry =
            |term| pb::Entry { term, payload: Some(pb::entry::Payload::Noop(true)), ..Default::default() };
        let bad = [
            message(None),
            append(vec![entry(4)], 1),
            append(vec![entry(2), entry(1)], 1),
            append(vec![pb::Entry { term: 1, ..Default::default() }], 1),
            append(vec![], u64::MAX),
            message(Some(pb::raft_message::Body::HeartbeatReply(u64::MAX))),
            message(Some(pb::raft_message::Body::InstallSnapshot(pb::SnapshotMeta::default()))),
        ];
        let count = bad.len() as u64;
        for message in bad {
            let good = append(vec![entry(1)], 1);
            let frame = pb::LaneFrame { messages: vec![good, message], ..Default::default() };
            hand.frames.send(frame).await.unwrap();
        }
        // Too many messages to be decoded at all, and a second hello.
        let flood =
            pb::LaneFrame { messages: vec![pb::RaftMessage::default(); 20_000], ..Default::default() };
        hand.frames.send(flood).await.unwrap();
        let again = pb::LaneFrame { hello: Some(hello(0xa, 0xb)), ..Default::default() };
        hand.frames.send(again).await.unwrap();
        hand.frames.send(pb::LaneFrame { ping: Some(42), ..Default::default() }).await.unwrap();
        let pong = loop {
            let reply = hand.replies.message().await.unwrap().unwrap();
            if reply.pong.is_some() {
                break reply;
            }
        };
        assert_eq!((pong.pong, pong.received_frames), (Some(42), count + 4));
        let link = b.link(StoreId(0xa), Lane::Log, Direction::Inbound).unwrap();
        assert_eq!((link.refused_frames, link.messages), (count + 2, 0), "a bad frame is refused as a whole");
        // A good one still passes.
        let frame = pb::LaneFrame { messages: vec![append(vec![entry(1)], 1)], ..Default::default() };
        hand.frames.send(frame).await.unwrap();
        b.host.wait("the good frame", |log| log.received.len() == 1);
        // Whoever goes on is cut off.
        for _ in 0..200 {
            let frame = pb::LaneFrame { messages: vec![message(None)], ..Default::default() };
            if hand.frames.send(frame).await.is_err() {
                break;
            }
        }
        while !hand.over().await {}
        // A frame over the limit ends the stream before it is read.
        let (mut hand, _) = Hand::greet(&b, hello(0xa, 0xb)).await;
        let data = vec![0u8; 17 << 20].into();
        let giant = pb::RelayedProposal { group: 1, id_low: 1, data, ..Default::default() };
        let _ = hand.frames.send(pb::LaneFrame { proposals: vec![giant], ..Default::default() }).await;
        assert!(hand.over().await);
    });
    assert!(b.host.with(|log| log.proposals.is_empty()));
}

/// Who says nothing of credits may belong to an older version: it is held to the budget by drops.
#[test]
fn a_peer_without_credits_is_held_to_the_budget() {
    let mut config = config(0xb);
    config.limits.receive_bytes_max = 1 << 20;
    let b = Store::with(config, "127.0.0.1:0".parse().unwrap());
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    b.host.hold_permits.store(true, std::sync::atomic::Ordering::Relaxed);
    runtime().block_on(async {
        let (hand, _) = Hand::greet(&b, hello(0xa, 0xb)).await;
        let payload = pb::entry::Payload::Command(vec![7; 64 << 10].into());
        let entry = pb::Entry { term: 1, payload: Some(payload), ..Default::default() };
        let append = pb::AppendEntries {
            prev_log_index: 1,
            prev_log_term: 1,
            entries: vec![entry],
            ..Default::default()
        };
        let body = Some(pb::raft_message::Body::Append(append));
        let message = pb::RaftMessage { group: 1, term: 3, body, ..Default::default() };
        for _ in 0..40 {
            let frame = pb::LaneFrame { messages: vec![message.clone()], ..Default::default() };
            hand.frames.send(frame).await.unwrap();
        }
        let link = || b.link(StoreId(0xa), Lane::Log, Direction::Inbound).unwrap();
        eventually("all frames", || link().messages == 40);
        eventually("drops", || link().dropped > 0);
        assert!(b.transport.received_bytes_waiting() <= 1 << 20);
    });
}

#[test]
fn a_newer_stream_replaces_the_older_one() {
    let (a, b) = pair();
    runtime().block_on(async {
        let (mut first, _) = Hand::greet(&b, hello(0xa, 0xb)).await;
        let (_second, ack) = Hand::greet(&b, hello(0xa, 0xb)).await;
        assert_eq!(ack.refusal(), pb::Refusal::Unspecified);
        assert!(first.over().await);
    });
    // The real store comes back by itself.
    eventually("a's own stream", || {
        b.host.with(|log| log.received.clear());
        a.transport.send(b.id, GroupId(1), heartbeat(a.id, b.id, 1));
        std::thread::sleep(Duration::from_millis(20));
        b.host.with(|log| !log.received.is_empty())
    });
}

#[test]
fn shutdown_ends_the_streams_of_both_sides() {
    let (a, b) = pair();
    b.transport.shutdown();
    a.host.wait("down", |log| !log.down.is_empty());
    eventually("no inbound stream", || b.transport.links().iter().all(|l| !l.connected));
    b.transport.send(a.id, GroupId(1), heartbeat(b.id, a.id, 1));
}
