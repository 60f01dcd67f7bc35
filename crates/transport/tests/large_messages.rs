//! Messages that are too large for a frame: they are sent in pieces, beside what else waits, and cost no more than they bring.

mod common;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::*;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_proto::peer::v1::peer_server::{Peer, PeerServer};
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{EntryId, GroupId, StoreId};
use pontoon_transport::{
    Direction, FEATURE_CREDITS, FEATURE_PIECES, Lane, ProposalOutcome, incoming, server_builder,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const LARGE: usize = 8 << 20;

fn is_large(message: &Message) -> bool {
    entries_of(message).first().is_some_and(|entry| entry.size_bytes() > 1 << 20)
}

/// T3 in small: a large entry arrives, and what follows it in its own group arrives behind it.
#[test]
fn a_large_entry_keeps_its_place_in_its_own_group() {
    let (a, b) = pair();
    a.host.set_entries(GroupId(1), 2, LARGE);
    a.host.set_entries(GroupId(2), 200, 1000);
    let large = [(GroupId(1), append(a.id, b.id, 0, 1))];
    let small = (0..200).map(|n| (GroupId(2), append(a.id, b.id, n, n + 1)));
    // Says "do you have it?" behind the entry that it asks about.
    let behind = [(GroupId(1), append(a.id, b.id, 1, 1)), (GroupId(1), append(a.id, b.id, 1, 2))];
    a.transport.send_all(b.id, large.into_iter().chain(small).chain(behind));
    b.host.wait("everything", |log| log.received.len() == 203);
    b.host.with(|log| {
        // (That the small ones need not wait is shown where frames are built: `batch/tests.rs`.)
        let large = log.received.iter().position(|r| is_large(&r.2)).unwrap();
        eprintln!("{large} of 200 small messages came before the large one that was sent first");
        let prev: Vec<_> = log
            .received
            .iter()
            .filter(|r| r.1 == GroupId(1))
            .map(|(_, _, message)| (entries_of(message).len(), is_large(message)))
            .collect();
        assert_eq!(prev, [(1, true), (0, false), (1, true)], "the large group's own order holds");
    });
    let out = a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    assert!(out.frames > 2 * LARGE as u64 / (300 << 10), "no frame is larger than a few pieces: {out:?}");
    assert_eq!((out.messages, out.dropped, out.large_bytes, out.waits_for), (203, 0, 0, None));
    let link = b.link(a.id, Lane::Log, Direction::Inbound).unwrap();
    assert_eq!((link.messages, link.dropped, link.refused_frames, link.large_bytes), (203, 0, 0, 0));
    eventually("all is processed", || b.transport.received_bytes_waiting() == 0);
    assert!(a.host.with(|log| log.unreachable.is_empty()));
}

/// Many groups with large entries: they take turns, all arrive, and so do large proposals.
#[test]
fn large_messages_of_many_groups_all_arrive() {
    let (a, b) = pair();
    for group in 1..=20 {
        a.host.set_entries(GroupId(group), 3, 3 << 20);
    }
    for n in 0..3 {
        for group in 1..=20 {
            a.transport.send(b.id, GroupId(group), append(a.id, b.id, n, n + 1));
        }
    }
    a.transport.send_proposal(b.id, proposal(1, 42, 2 << 20)).unwrap();
    let mut next = [1u64; 21];
    let mut arrived = 0;
    eventually("all entries", || {
        let received = b.host.with(|log| std::mem::take(&mut log.received));
        for (_, group, message) in &received {
            for entry in entries_of(message) {
                assert_eq!(entry.index.0, next[group.0 as usize], "in order");
                next[group.0 as usize] += 1;
                arrived += 1;
            }
        }
        arrived == 60
    });
    b.host.wait("the proposal", |log| !log.proposals.is_empty());
    b.host.with(|log| assert_eq!(log.proposals[0].1, proposal(1, 42, 2 << 20)));
    assert_eq!(b.link(a.id, Lane::Log, Direction::Inbound).unwrap().dropped, 0);
}

/// A stream that breaks in the midst of large messages: their groups hear of it, a proposal was not sent, and what had come of
/// them is free again.
#[test]
fn a_stream_that_breaks_in_the_midst_is_reported() {
    let b = Store::start(0xb);
    let proxy = Proxy::to(b.address);
    let a = Store::start(0xa);
    a.transport.set_peer(b.id, proxy.address.to_string());
    b.knows(&a);
    a.wait_up(b.id);
    b.wait_up(a.id);
    a.host.set_entries(GroupId(7), 1, 1000);
    a.host.set_entries(GroupId(1), 1, LARGE);
    // Something of it arrives, and no more: the way back is cut, so that nothing is acknowledged and half of the queue's bound is
    // all that is sent.
    proxy.set(Weather::OneWay);
    a.transport.send_proposal(b.id, proposal(7, 42, 6 << 20)).unwrap();
    let out = || a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    eventually("it has begun", || out().large_bytes > 0);
    // Waits behind it.
    a.transport.send(b.id, GroupId(7), append(a.id, b.id, 0, 1));
    let held = || b.link(a.id, Lane::Log, Direction::Inbound).unwrap().large_bytes;
    eventually("a part has come", || held() > 1 << 20);
    assert!(b.transport.received_bytes_waiting() > 1 << 20, "it is in the budget");
    assert!(out().large_bytes > 0 && out().waits_for.is_some(), "{:?}", out());
    // The probe finds the link dead.
    a.host.wait("the loss is told", |log| {
        log.unreachable.contains(&(b.id, GroupId(7))) && !log.replies.is_empty()
    });
    a.host.with(|log| {
        assert_eq!(log.unreachable.iter().filter(|r| r.1 == GroupId(7)).count(), 1, "once");
        let (_, reply) = &log.replies[0];
        assert_eq!((reply.id, &reply.outcome), (EntryId(42), &ProposalOutcome::NotSent));
    });
    eventually("it is free again", || b.transport.received_bytes_waiting() == 0 && held() == 0);
    assert!(b.host.with(|log| log.received.is_empty() && log.proposals.is_empty()));
    // The next stream begins anew.
    proxy.set(Weather::Fair);
    a.wait_up(b.id);
    a.transport.send(b.id, GroupId(1), append(a.id, b.id, 0, 1));
    b.host.wait("whole", |log| log.received.iter().any(|r| is_large(&r.2)));
}

/// A store of an earlier version: takes what comes and says which abilities it has.
struct Elder {
    features: u64,
    frames: Arc<Mutex<Vec<pb::LaneFrame>>>,
}

#[tonic::async_trait]
impl Peer for Elder {
    type LaneStream = ReceiverStream<Result<pb::LaneReply, Status>>;

    async fn lane(
        &self,
        request: Request<Streaming<pb::LaneFrame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let (replies, stream) = mpsc::channel(16);
        let (frames, mut requests) = (Arc::clone(&self.frames), request.into_inner());
        let ack = pb::HelloAck {
            protocol_version: 1,
            cluster: CLUSTER,
            store: 0xb,
            features: self.features,
            ..pb::HelloAck::default()
        };
        replies
            .try_send(Ok(pb::LaneReply { hello_ack: Some(ack), ..pb::LaneReply::default() }))
            .map_err(|e| Status::internal(e.to_string()))?;
        tokio::spawn(async move {
            let mut received_frames = 0;
            while let Ok(Some(frame)) = requests.message().await {
                received_frames += 1;
                let reply = pb::LaneReply { received_frames, pong: frame.ping, ..pb::LaneReply::default() };
                let _ = replies.send(Ok(reply)).await;
                frames.lock().unwrap().push(frame);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::SnapshotResult>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_store_that_takes_no_pieces_gets_messages_whole() {
    let runtime = runtime();
    for features in [0, FEATURE_PIECES] {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let elder = Elder { features, frames: Arc::clone(&frames) };
        let service = PeerServer::new(elder).max_decoding_message_size(64 << 20);
        runtime.spawn(server_builder().add_service(service).serve_with_incoming(incoming(listener)));
        let a = Store::start(0xa);
        let to = StoreId(0xb);
        a.transport.set_peer(to, address.to_string());
        a.wait_up(to);
        a.host.set_entries(GroupId(1), 1, 3 << 20);
        a.transport.send(to, GroupId(1), append(a.id, to, 0, 1));
        let count =
            |what: fn(&pb::LaneFrame) -> usize| frames.lock().unwrap().iter().map(what).sum::<usize>();
        let (whole, pieces) = (
            |frame: &pb::LaneFrame| frame.messages.len(),
            |frame: &pb::LaneFrame| frame.pieces.iter().map(|piece| piece.data.len()).sum(),
        );
        if features == 0 {
            eventually("one whole message", || count(whole) == 1);
            assert_eq!(count(pieces), 0);
        } else {
            eventually("all pieces", || count(pieces) > 3 << 20);
            assert_eq!(count(whole), 0);
        }
    }
}

/// Pieces that nobody honest sends end the stream, and what had come of others with it.
#[test]
fn a_hostile_stream_of_pieces_ends() {
    let mut config = config(0xb);
    config.limits.receive_bytes_max = 4 << 20;
    let b = Store::with(config, "127.0.0.1:0".parse().unwrap());
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    let piece = |message, offset: u64, total, bytes: usize| pb::Piece {
        message,
        offset,
        data: vec![9; bytes].into(),
        total,
        of: if offset == 0 { pb::PieceOf::Append.into() } else { 0 },
        charge: total,
    };
    let frame = |pieces: Vec<pb::Piece>| pb::LaneFrame { pieces, ..pb::LaneFrame::default() };
    let many = (1..=9).map(|n| frame(vec![piece(n, 0, 1000, 10)])).collect();
    let cases: [(&str, pb::LaneKind, u64, Vec<pb::LaneFrame>); 5] = [
        ("a gap", pb::LaneKind::Log, 0, vec![frame(vec![piece(1, 0, 1000, 10), piece(1, 11, 0, 10)])]),
        ("too many at a time", pb::LaneKind::Log, 0, many),
        // A stream begins with 256 KiB of credit.
        ("no credit", pb::LaneKind::Log, FEATURE_CREDITS, vec![frame(vec![piece(1, 0, 3 << 20, 10)])]),
        ("an impossible length", pb::LaneKind::Log, 0, vec![frame(vec![piece(1, 0, u64::MAX, 10)])]),
        ("another lane", pb::LaneKind::Control, 0, vec![frame(vec![piece(1, 0, 1000, 10)])]),
    ];
    runtime().block_on(async {
        for (what, lane, features, bad) in cases {
            let mut client = PeerClient::connect(format!("http://{}", b.address)).await.unwrap();
            let (frames, stream) = mpsc::channel(8);
            let hello = pb::Hello {
                protocol_version: 1,
                cluster: CLUSTER,
                store: 0xa,
                to_store: 0xb,
                lane: lane.into(),
                features,
                incarnation: 1,
                ..pb::Hello::default()
            };
            frames.send(pb::LaneFrame { hello: Some(hello), ..Default::default() }).await.unwrap();
            let mut replies = client.lane(ReceiverStream::new(stream)).await.unwrap().into_inner();
            assert!(replies.message().await.unwrap().unwrap().hello_ack.is_some());
            for frame in bad {
                let _ = frames.send(frame).await;
            }
            // (Its own end would end the stream, too.)
            let ended = async { while let Ok(Some(_)) = replies.message().await {} };
            tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{what}: not ended"));
            drop(frames);
        }
    });
    eventually("nothing is held", || b.transport.received_bytes_waiting() == 0);
    assert!(b.host.with(|log| log.received.is_empty()));
}

/// T14: a group that floods a store which processes slowly is held up by credits; another group waits for one share of it, not
/// for all that it has, and nothing is dropped.
#[test]
fn a_hot_group_does_not_hold_up_others() {
    const HOT: u64 = 400;
    let mut slow = config(0xb);
    slow.limits.receive_bytes_max = 1 << 20;
    let b = Store::with(slow, "127.0.0.1:0".parse().unwrap());
    b.host.hold_permits.store(true, Ordering::Relaxed);
    let (a, b) = linked(Store::start(0xa), b);
    a.host.set_entries(GroupId(1), HOT, 16 << 10);
    a.transport.send_all(b.id, (0..HOT).map(|n| (GroupId(1), append(a.id, b.id, n, n + 1))));
    let waits = || a.link(b.id, Lane::Log, Direction::Outbound).unwrap();
    eventually("the credit is used up", || {
        waits().waits_for == Some(pontoon_transport::WaitsFor::Credit) && waits().queued_messages > 100
    });
    let before = b.host.with(|log| log.received.len());
    // Nine others come, with a tenth of that each.
    for group in 2..=10 {
        a.host.set_entries(GroupId(group), HOT / 10, 16 << 10);
    }
    let one = |n| (2..=10).map(move |group| (GroupId(group), (n, n + 1)));
    let others =
        (0..HOT / 10).flat_map(one).map(|(group, (prev, last))| (group, append(a.id, b.id, prev, last)));
    a.transport.send_all(b.id, others);
    eventually("everything is processed, a little at a time", || {
        let done: Vec<_> = b.host.with(|log| {
            let n = log.permits.len().min(4);
            log.permits.drain(..n).collect()
        });
        drop(done);
        b.host.with(|log| log.received.len() as u64 == 10 * (HOT / 10) - HOT / 10 + HOT)
    });
    let order: Vec<u64> = b.host.with(|log| log.received.iter().map(|r| r.1.0).collect());
    let last_of_others = order.iter().rposition(|group| *group != 1).unwrap();
    let hot_meanwhile = order[before..last_of_others].iter().filter(|group| **group == 1).count();
    // A share is 256 KiB: 16 entries. The others have 40 each, so they need three rounds.
    assert!(
        hot_meanwhile <= 5 * 17,
        "{hot_meanwhile} of the hot group's entries went before the others were done"
    );
    let link = b.link(a.id, Lane::Log, Direction::Inbound).unwrap();
    assert_eq!((link.dropped, waits().dropped), (0, 0));
    assert!(a.host.with(|log| log.unreachable.is_empty()));
}
