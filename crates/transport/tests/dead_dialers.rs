//! T16 as the accepting side sees it: dialers that are dead without saying so, that trickle, that never read what they are told,
//! and that say nothing at all. Each is found, and costs no more than its bounds meanwhile. (`dead_links.rs` is the dialing side.)

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{CLUSTER, PATIENCE, Proxy, Store, Weather, eventually};
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_raft_core::types::StoreId;
use pontoon_transport::{Direction, Lane, LinkStatus};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const DIALER: u64 = 0xa;

/// Streams that may be open without a hello, of all connections together.
const STRANGERS_MAX: usize = 256;
/// Streams of one connection.
const STREAMS_MAX: usize = 16;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A store that knows the dialer and cannot dial it.
fn store() -> Store {
    let store = Store::start(0xb);
    store.transport.set_peer(StoreId(DIALER), "127.0.0.1:1");
    store
}

fn link(store: &Store) -> Option<LinkStatus> {
    store.link(StoreId(DIALER), Lane::Log, Direction::Inbound)
}

async fn client(address: SocketAddr) -> PeerClient<tonic::transport::Channel> {
    PeerClient::connect(format!("http://{address}")).await.unwrap()
}

/// A log lane spoken by hand, and the answer to its hello.
async fn greet(
    client: &mut PeerClient<tonic::transport::Channel>,
) -> (mpsc::Sender<pb::LaneFrame>, Streaming<pb::LaneReply>, pb::HelloAck) {
    let (frames, stream) = mpsc::channel(8);
    let hello = pb::Hello {
        protocol_version: 1,
        cluster: CLUSTER,
        store: DIALER,
        to_store: 0xb,
        lane: pb::LaneKind::Log.into(),
        incarnation: 1,
        ..pb::Hello::default()
    };
    frames.send(pb::LaneFrame { hello: Some(hello), ..Default::default() }).await.unwrap();
    let mut replies = client.lane(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let ack = replies.message().await.unwrap().unwrap().hello_ack.unwrap();
    (frames, replies, ack)
}

/// A dialer that falls silent in the midst of a large message, and does not give up by itself.
fn falls_silent(weather: Weather) {
    let b = store();
    let proxy = Proxy::to(b.address);
    runtime().block_on(async {
        let (frames, _replies, _) = greet(&mut client(proxy.address).await).await;
        let piece = pb::Piece {
            message: 1,
            total: 3 << 20,
            of: pb::PieceOf::Append.into(),
            charge: 3 << 20,
            data: vec![7; 100 << 10].into(),
            ..pb::Piece::default()
        };
        frames.send(pb::LaneFrame { pieces: vec![piece.clone()], ..Default::default() }).await.unwrap();
        eventually("a part has come", || link(&b).is_some_and(|link| link.large_bytes > 0));
        assert!(b.transport.received_bytes_waiting() > 0);
        proxy.set(weather);
        let next = pb::Piece { offset: 100 << 10, total: 0, of: 0, charge: 0, ..piece };
        let _ = frames.send(pb::LaneFrame { pieces: vec![next], ..Default::default() }).await;
        eventually("the stream is given up", || link(&b).is_some_and(|link| !link.connected));
        let ended = link(&b).unwrap();
        assert!(
            ended.last_error.as_ref().is_some_and(|why| why.contains("silent")),
            "{weather:?}: {ended:?}"
        );
        assert_eq!(ended.large_bytes, 0, "{weather:?}");
        eventually("nothing is held for it", || b.transport.received_bytes_waiting() == 0);
    });
}

#[test]
fn a_dialer_that_falls_silent_in_the_midst_of_a_message_is_given_up() {
    std::thread::scope(|scope| {
        for weather in [Weather::BlackHole, Weather::OtherWay, Weather::NeverReads, Weather::Trickle] {
            scope.spawn(move || falls_silent(weather));
        }
    });
}

/// All that it says is taken off the stream, what it is told waits in one place, and it hears the last word when it listens.
#[test]
fn a_dialer_that_never_reads_is_read_and_told_little() {
    const PINGS: u64 = 30_000;
    let b = store();
    runtime().block_on(async {
        let (frames, mut replies, _) = greet(&mut client(b.address).await).await;
        for ping in 1..=PINGS {
            frames.send(pb::LaneFrame { ping: Some(ping), ..Default::default() }).await.unwrap();
        }
        eventually("everything is read", || link(&b).is_some_and(|link| link.frames == PINGS));
        let mut told = 0;
        loop {
            let reply = tokio::time::timeout(PATIENCE, replies.message()).await.expect("the last word");
            let reply = reply.unwrap().expect("the stream goes on");
            told += 1;
            if reply.pong == Some(PINGS) {
                assert_eq!(reply.received_frames, PINGS + 1);
                break;
            }
        }
        // HTTP/2 takes as many as its window holds, and the channel sixteen.
        assert!(told < PINGS / 2, "{told} replies waited");
    });
}

/// Streams without a hello take no more than their number, and only for a while: whoever is known gets in then.
#[test]
fn streams_that_say_nothing_are_bounded_and_end() {
    let b = store();
    runtime().block_on(async {
        let mut silent = Vec::new();
        while silent.len() < STRANGERS_MAX {
            let mut client = client(b.address).await;
            for _ in 0..STREAMS_MAX {
                let (frames, stream) = mpsc::channel::<pb::LaneFrame>(1);
                let replies = client.lane(ReceiverStream::new(stream)).await.unwrap().into_inner();
                silent.push((frames, replies));
            }
        }
        let (_frames, _replies, ack) = greet(&mut client(b.address).await).await;
        assert_eq!(ack.refusal(), pb::Refusal::Busy, "{ack:?}");
        for (_, replies) in &mut silent {
            let ended = tokio::time::timeout(PATIENCE, replies.message()).await.expect("the stream ends");
            assert!(matches!(ended, Ok(None) | Err(_)));
        }
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let (_frames, _replies, ack) = greet(&mut client(b.address).await).await;
            if ack.refusal() == pb::Refusal::Unspecified {
                break;
            }
            assert!(std::time::Instant::now() < until, "{ack:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
