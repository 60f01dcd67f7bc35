//! Snapshots over their own connection.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::{Image, Proxy, Store, Weather, heartbeat, install_snapshot, pair};
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_proto::peer::v1::snapshot_frame::Part;
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_transport::SNAPSHOT_CHUNK_BYTES_MAX;

fn image(pieces: usize, bytes: usize) -> Box<Image> {
    let piece: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    Box::new(Image { left: pieces, piece: Bytes::from(piece), pause: Duration::ZERO })
}

#[test]
fn an_image_arrives_whole_and_its_message_after_it() {
    let (a, b) = pair();
    let message = install_snapshot(a.id, b.id);
    a.transport.send_snapshot(b.id, GroupId(6), message.clone(), image(100, SNAPSHOT_CHUNK_BYTES_MAX));
    a.host.wait("the end", |log| !log.snapshots_sent.is_empty());
    assert_eq!(a.host.with(|log| log.snapshots_sent[0]), (b.id, GroupId(6), true));
    b.host.with(|log| {
        assert_eq!(log.images.len(), 1);
        assert_eq!(log.images[0].len(), 100 * SNAPSHOT_CHUNK_BYTES_MAX);
        assert!(log.images[0].chunks(SNAPSHOT_CHUNK_BYTES_MAX).all(|c| c[250] == (250 * 31 % 251) as u8));
        assert_eq!(log.received, [(a.id, GroupId(6), message.clone())]);
    });
    // An empty one is fine too.
    a.transport.send_snapshot(b.id, GroupId(7), message, image(0, 0));
    a.host.wait("the end", |log| log.snapshots_sent.len() == 2);
    assert!(a.host.with(|log| log.snapshots_sent[1].2));
}

#[test]
fn one_at_a_time_and_others_are_told() {
    let (a, b) = pair();
    let message = install_snapshot(a.id, b.id);
    let slow = Image { left: 10, piece: Bytes::from_static(b"piece"), pause: Duration::from_millis(100) };
    a.transport.send_snapshot(b.id, GroupId(1), message.clone(), Box::new(slow));
    b.host.wait("nothing yet", |_| true);
    std::thread::sleep(Duration::from_millis(200));
    a.transport.send_snapshot(b.id, GroupId(2), message.clone(), image(1, 10));
    a.host.wait("both", |log| log.snapshots_sent.len() == 2);
    assert_eq!(
        a.host.with(|log| log.snapshots_sent.clone()),
        [(b.id, GroupId(2), false), (b.id, GroupId(1), true)]
    );
    // From another store while one is being received: refused over there.
    let c = Store::start(0xc);
    b.knows(&c);
    c.knows(&b);
    let slow = Image { left: 10, piece: Bytes::from_static(b"piece"), pause: Duration::from_millis(100) };
    a.transport.send_snapshot(b.id, GroupId(1), message, Box::new(slow));
    std::thread::sleep(Duration::from_millis(200));
    c.transport.send_snapshot(b.id, GroupId(3), install_snapshot(c.id, b.id), image(1, 10));
    c.host.wait("refusal", |log| log.snapshots_sent.len() == 1);
    assert!(!c.host.with(|log| log.snapshots_sent[0].2));
    a.host.wait("the end", |log| log.snapshots_sent.len() == 3);
    assert!(a.host.with(|log| log.snapshots_sent[2].2));
}

#[test]
fn what_goes_wrong_is_told_and_leaves_nothing_behind() {
    let (a, b) = pair();
    let message = install_snapshot(a.id, b.id);
    // The receiver does not want it.
    b.host.refuse_snapshots.store(true, Ordering::Relaxed);
    a.transport.send_snapshot(b.id, GroupId(1), message.clone(), image(50, 1000));
    a.host.wait("refused", |log| log.snapshots_sent.len() == 1);
    b.host.refuse_snapshots.store(false, Ordering::Relaxed);
    // A piece that is too large.
    a.transport.send_snapshot(b.id, GroupId(1), message.clone(), image(1, SNAPSHOT_CHUNK_BYTES_MAX + 1));
    a.host.wait("too large", |log| log.snapshots_sent.len() == 2);
    // A message that is no snapshot's.
    a.transport.send_snapshot(b.id, GroupId(1), heartbeat(a.id, b.id, 1), image(1, 1));
    a.host.wait("no snapshot", |log| log.snapshots_sent.len() == 3);
    assert!(a.host.with(|log| log.snapshots_sent.iter().all(|s| !s.2)));
    // The turn was given back each time.
    common::eventually("a good one", || {
        let before = a.host.with(|log| log.snapshots_sent.len());
        a.transport.send_snapshot(b.id, GroupId(1), message.clone(), image(1, 1));
        a.host.wait("an end", |log| log.snapshots_sent.len() > before);
        a.host.with(|log| log.snapshots_sent.last().unwrap().2)
    });
    assert_eq!(b.host.with(|log| log.images.len()), 1);
}

#[test]
fn a_corrupt_piece_is_refused() {
    let b = Store::start(0xb);
    let proxy = Proxy::to(b.address);
    let a = Store::start(0xa);
    b.knows(&a);
    a.transport.set_peer(b.id, proxy.address.to_string());
    a.wait_up(b.id);
    proxy.set(Weather::Corrupt);
    for i in 0..4 {
        a.transport.send_snapshot(b.id, GroupId(1), install_snapshot(a.id, b.id), image(3, 200_000));
        a.host.wait("an end", |log| log.snapshots_sent.len() == i + 1);
    }
    assert!(a.host.with(|log| log.snapshots_sent.iter().all(|s| !s.2)));
    b.host.with(|log| {
        assert!(log.images.is_empty());
        assert!(log.received.is_empty());
    });
}

#[test]
fn every_piece_is_checked() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    let hello = pb::Hello {
        protocol_version: 1,
        cluster: common::CLUSTER,
        store: 0xa,
        to_store: 0xb,
        lane: pb::LaneKind::Snapshot.into(),
        ..Default::default()
    };
    let meta = pb::SnapshotMeta {
        index: 5,
        term: 1,
        configuration: Some(pb::Configuration { voters: vec![0xa, 1], ..Default::default() }),
        ..Default::default()
    };
    let body = Some(pb::raft_message::Body::InstallSnapshot(meta));
    let message = pb::RaftMessage { group: 1, term: 2, body, ..Default::default() };
    let header =
        Part::Header(pb::SnapshotHeader { hello: Some(hello), message: Some(message), ..Default::default() });
    let chunk = |offset, data: &'static [u8], crc32c| {
        Part::Chunk(pb::SnapshotChunk { offset, data: data.into(), crc32c })
    };
    let good = chunk(0, b"good", crc32c::crc32c(b"good"));
    let trailer = |bytes, crc32c| Part::Trailer(pb::SnapshotTrailer { bytes, crc32c });
    let cases: [(Vec<Part>, &str); 8] = [
        (vec![good.clone()], "no header"),
        (vec![header.clone(), chunk(0, b"goad", crc32c::crc32c(b"good"))], "corrupt"),
        (vec![header.clone(), chunk(1, b"good", crc32c::crc32c(b"good"))], "at offset 0"),
        (vec![header.clone(), good.clone(), trailer(5, crc32c::crc32c(b"good"))], "trailer"),
        (vec![header.clone(), good.clone(), trailer(4, 1)], "trailer"),
        (vec![header.clone(), header.clone()], "second header"),
        (vec![header.clone(), good.clone()], "before its trailer"),
        (vec![header, good, trailer(4, crc32c::crc32c(b"good"))], ""),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = PeerClient::connect(format!("http://{}", b.address)).await.unwrap();
        for (parts, words) in cases {
            let frames: Vec<_> = parts.into_iter().map(|p| pb::SnapshotFrame { part: Some(p) }).collect();
            let result = client.snapshot(tokio_stream::iter(frames)).await.unwrap().into_inner();
            assert!(result.refused.contains(words), "{words}: {}", result.refused);
            assert_eq!(result.refused.is_empty(), words.is_empty(), "{}", result.refused);
            // The turn is free once the writing thread has seen the end.
            common::eventually("the sink is gone", || {
                b.host.with(|log| log.sinks_dropped + log.images.len() > 0 || words == "no header")
            });
            b.host.with(|log| log.sinks_dropped = 0);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(b.host.with(|log| log.images.clone()), [b"good"]);
    assert_eq!(b.host.with(|log| log.received.len()), 1);
}

#[test]
fn a_stalled_stream_is_given_up_by_both_sides() {
    let mut config = common::config(0xb);
    config.limits.snapshot_stall = Duration::from_secs(1);
    let b = Store::with(config, "127.0.0.1:0".parse().unwrap());
    let proxy = Proxy::to(b.address);
    let mut config = common::config(0xa);
    config.limits.snapshot_stall = Duration::from_secs(1);
    let a = Store::with(config, "127.0.0.1:0".parse().unwrap());
    b.knows(&a);
    a.transport.set_peer(b.id, proxy.address.to_string());
    a.wait_up(b.id);
    let slow = Image { left: 1000, piece: Bytes::from(vec![1; 100_000]), pause: Duration::from_millis(10) };
    a.transport.send_snapshot(b.id, GroupId(1), install_snapshot(a.id, b.id), Box::new(slow));
    common::eventually("chunks", || {
        b.transport.links().iter().any(|l| l.lane == pontoon_transport::Lane::Snapshot && l.frames > 10)
    });
    proxy.set(Weather::BlackHole);
    a.host.wait("given up", |log| log.snapshots_sent == [(b.id, GroupId(1), false)]);
    b.host.wait("thrown away", |log| log.sinks_dropped == 1);
    // Both ends are free for the next one.
    proxy.set(Weather::Fair);
    common::eventually("the next one", || {
        let before = a.host.with(|log| log.snapshots_sent.len());
        a.transport.send_snapshot(b.id, GroupId(1), install_snapshot(a.id, b.id), image(2, 1000));
        a.host.wait("an end", |log| log.snapshots_sent.len() > before);
        a.host.with(|log| log.snapshots_sent.last().unwrap().2)
    });
}

/// Counts what is read of an image.
struct Counted {
    image: Image,
    read: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl pontoon_transport::SnapshotReader for Counted {
    fn read(&mut self) -> std::io::Result<Option<Bytes>> {
        self.read.fetch_add(1, Ordering::Relaxed);
        self.image.read()
    }
}

#[test]
fn a_broken_link_resumes_instead_of_starting_over() {
    let b = Store::start(0xb);
    let a = Store::start(0xa);
    b.knows(&a);
    let mut proxy = Proxy::to(b.address);
    a.transport.set_peer(b.id, proxy.address.to_string());
    a.wait_up(b.id);
    let read = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    // 20 MiB in pieces that differ, some segments long; slow enough that the link can break in the midst of it.
    let piece = Bytes::from((0..200_000u32).map(|i| (i * 7 % 253) as u8).collect::<Vec<_>>());
    let image = Image { left: 100, piece: piece.clone(), pause: Duration::from_millis(10) };
    let counted = Counted { image, read: std::sync::Arc::clone(&read) };
    a.transport.send_snapshot(b.id, GroupId(1), install_snapshot(a.id, b.id), Box::new(counted));
    for pieces in [10, 35, 60, 85] {
        common::eventually("more of it", || read.load(Ordering::Relaxed) >= pieces);
        // All connections die with the proxy; the next one is elsewhere.
        proxy = {
            drop(proxy);
            Proxy::to(b.address)
        };
        a.transport.set_peer(b.id, proxy.address.to_string());
    }
    a.host.wait("the end", |log| !log.snapshots_sent.is_empty());
    assert_eq!(a.host.with(|log| log.snapshots_sent.clone()), [(b.id, GroupId(1), true)]);
    assert_eq!(read.load(Ordering::Relaxed), 101, "each piece is read once, and the end");
    b.host.with(|log| {
        assert_eq!(log.images.len(), 1);
        assert_eq!(log.images[0].len(), 100 * piece.len());
        assert!(log.images[0].chunks(piece.len()).all(|c| c == piece));
        assert_eq!(log.sinks_dropped, 0, "nothing was thrown away on the way");
        assert_eq!(log.received.len(), 1);
    });
}

#[test]
fn a_part_that_nobody_asks_for_is_thrown_away() {
    let mut config = common::config(0xb);
    config.limits.snapshot_stall = Duration::from_secs(1);
    let b = Store::with(config, "127.0.0.1:0".parse().unwrap());
    let a = Store::start(0xa);
    b.knows(&a);
    a.knows(&b);
    a.wait_up(b.id);
    let slow = Image { left: 1000, piece: Bytes::from(vec![1; 100_000]), pause: Duration::from_millis(10) };
    a.transport.send_snapshot(b.id, GroupId(1), install_snapshot(a.id, b.id), Box::new(slow));
    common::eventually("chunks", || {
        b.transport.links().iter().any(|l| l.lane == pontoon_transport::Lane::Snapshot && l.frames > 5)
    });
    drop(a);
    b.host.wait("thrown away", |log| log.sinks_dropped == 1);
    // The turn is free for others.
    let c = Store::start(0xc);
    b.knows(&c);
    c.knows(&b);
    common::eventually("the next one", || {
        let before = c.host.with(|log| log.snapshots_sent.len());
        c.transport.send_snapshot(b.id, GroupId(1), install_snapshot(c.id, b.id), image(2, 1000));
        c.host.wait("an end", |log| log.snapshots_sent.len() > before);
        c.host.with(|log| log.snapshots_sent.last().unwrap().2)
    });
}

/// The sender has lost its connection, and the receiver has not noticed: the sender's next call takes over.
#[test]
fn a_call_that_is_only_half_dead_is_overtaken() {
    let b = Store::start(0xb);
    b.transport.set_peer(StoreId(0xa), "127.0.0.1:1");
    let hello = pb::Hello {
        protocol_version: 1,
        cluster: common::CLUSTER,
        store: 0xa,
        to_store: 0xb,
        lane: pb::LaneKind::Snapshot.into(),
        ..Default::default()
    };
    let meta = pb::SnapshotMeta {
        index: 5,
        term: 1,
        configuration: Some(pb::Configuration { voters: vec![0xa, 1], ..Default::default() }),
        ..Default::default()
    };
    let body = Some(pb::raft_message::Body::InstallSnapshot(meta));
    let message = pb::RaftMessage { group: 1, term: 2, body, ..Default::default() };
    let header = |image| pb::SnapshotFrame {
        part: Some(Part::Header(pb::SnapshotHeader {
            hello: Some(hello.clone()),
            message: Some(message.clone()),
            image,
            offset: 0,
        })),
    };
    let chunk = |offset, data: &'static [u8]| pb::SnapshotFrame {
        part: Some(Part::Chunk(pb::SnapshotChunk {
            offset,
            data: data.into(),
            crc32c: crc32c::crc32c(data),
        })),
    };
    let trailer = pb::SnapshotFrame {
        part: Some(Part::Trailer(pb::SnapshotTrailer { bytes: 8, crc32c: crc32c::crc32c(b"onetwo3!") })),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = || PeerClient::connect(format!("http://{}", b.address));
        // The first call says a little and then nothing; its stream stays open.
        let (say, said) = tokio::sync::mpsc::channel(4);
        let mut first = connect().await.unwrap();
        let hanging =
            tokio::spawn(
                async move { first.snapshot(tokio_stream::wrappers::ReceiverStream::new(said)).await },
            );
        for frame in [header(77), chunk(0, b"one")] {
            say.send(frame).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Another image of another sender would be too early; the same image goes on.
        let frames = [header(77), chunk(0, b"one"), chunk(3, b"two3!"), trailer];
        let mut second = connect().await.unwrap();
        let result = second.snapshot(tokio_stream::iter(frames)).await.unwrap().into_inner();
        assert_eq!(result.refused, "");
        let overtaken = hanging.await.unwrap().unwrap().into_inner();
        assert!(overtaken.refused.contains("another call"), "{}", overtaken.refused);
        drop(say);
    });
    b.host.with(|log| {
        assert_eq!(log.images, [b"onetwo3!"]);
        assert_eq!(log.sinks_dropped, 0, "what the first call brought was kept");
    });
}
