//! Messages and bytes per second between two transports over loopback, beside a bare tonic stream that carries the
//! same batches and a raw TCP stream of the same bytes, in turn within one run; the delay of a lone message; and what the
//! heartbeats of many groups cost, each at its own time and all together.
//!
//!     cargo bench -p pontoon-transport --bench throughput [-- SECONDS ROUNDS [NAME]]
//!
//! NAME runs only what has it in its name, for profiling.

#![allow(clippy::print_stdout, reason = "a program that prints its figures")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_proto::peer::v1::peer_server::{Peer, PeerServer};
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Heartbeat, Message};
use pontoon_raft_core::types::{Entry, EntryId, GroupId, LogIndex, Payload, ReplicaId, StoreId, Term};
use pontoon_transport::*;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// As in the server; all that is measured here has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

const BATCH: u64 = 64;
const COMMAND_BYTES: usize = 300;
/// Messages under way at most, so that no queue overflows.
const WINDOW: u64 = 8192;
const A: StoreId = StoreId(0xa);
const B: StoreId = StoreId(0xb);

/// Counts what arrives; every store has the same log, whose entry `i` of term 1 is a command of 300 bytes.
struct Host {
    received: AtomicU64,
    /// To be woken when `received` gets there.
    waiter: Mutex<Option<(u64, Thread)>>,
    lone: mpsc::SyncSender<()>,
    command: Bytes,
}

impl Inbound for Host {
    fn receive(&self, _: StoreId, messages: Vec<(GroupId, Message)>, _: ReceivePermit) {
        if let [(_, Message { body: Body::TimeoutNow, .. })] = messages[..] {
            let _ = self.lone.try_send(());
        }
        let received =
            self.received.fetch_add(messages.len() as u64, Ordering::SeqCst) + messages.len() as u64;
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, thread)) = waiter.take_if(|(at, _)| *at <= received) {
            thread.unpark();
        }
    }
    fn proposals(&self, _: StoreId, _: Vec<RelayedProposal>) {}
    fn proposal_replies(&self, _: StoreId, _: Vec<ProposalReply>) {}
    fn unreachable(&self, _: StoreId, _: Vec<GroupId>) {}
    fn link_down(&self, _: StoreId, _: bool) {}
    fn link_up(&self, _: StoreId) {}
    fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
        Err(Refused::UnknownReplica)
    }
    fn snapshot_sent(&self, _: StoreId, _: GroupId, _: ReplicaId, _: bool) {}
}

impl Host {
    fn wait(&self, at: u64) {
        *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, std::thread::current()));
        while self.received.load(Ordering::SeqCst) < at {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

impl EntrySource for Host {
    fn entries(&self, _: GroupId, prev: LogIndex, last: LogIndex, term: Term, _: u64) -> Option<Vec<Entry>> {
        let entry = |index| Entry {
            index: LogIndex(index),
            term,
            id: EntryId(u128::from(index)),
            payload: Payload::Command(self.command.clone()),
        };
        Some((prev.0 + 1..=last.0).map(entry).collect())
    }
}

struct Store {
    transport: Transport,
    host: Arc<Host>,
    lone: mpsc::Receiver<()>,
    address: SocketAddr,
}

async fn store(id: StoreId) -> Outcome<Store> {
    let (lone, hear) = mpsc::sync_channel(16);
    let host = Arc::new(Host {
        received: AtomicU64::new(0),
        waiter: Mutex::default(),
        lone,
        command: Bytes::from(vec![7; COMMAND_BYTES]),
    });
    let config = TransportConfig::new(1, id, "bench");
    let handle = tokio::runtime::Handle::current();
    let transport = Transport::start(config, Arc::<Host>::clone(&host), Arc::<Host>::clone(&host), handle);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = server_builder().add_service(transport.peer_service());
    tokio::spawn(server.serve_with_incoming(incoming(listener)));
    Ok(Store { transport, host, lone: hear, address })
}

fn append(group: u64, index: u64) -> (GroupId, Message) {
    let message = Message {
        from: ReplicaId { store: A, number: 1 },
        to: ReplicaId { store: B, number: 1 },
        term: Term(1),
        doubt: None,
        body: Body::AppendEntries(AppendEntries {
            prev_log_index: LogIndex(index),
            prev_log_term: Term(1),
            leader_commit: LogIndex(index),
            entries: Entries::Interval { last: LogIndex(index + 1), last_term: Term(1) },
        }),
    };
    (GroupId(group), message)
}

fn ours(a: &Store, b: &Store, time: Duration) -> f64 {
    let before = b.host.received.load(Ordering::Acquire);
    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        if before + sent - b.host.received.load(Ordering::Acquire) >= WINDOW {
            b.host.wait(before + sent - WINDOW / 2);
        }
        a.transport.send_all(B, (0..BATCH).map(|group| append(group, sent / BATCH + 1)));
        sent += BATCH;
    }
    b.host.wait(before + sent);
    sent as f64 / start.elapsed().as_secs_f64()
}

/// A service that counts and does nothing.
struct Bare(Arc<AtomicU64>);

#[tonic::async_trait]
impl Peer for Bare {
    type LaneStream = ReceiverStream<Result<pb::LaneReply, Status>>;

    async fn lane(
        &self,
        request: Request<Streaming<pb::LaneFrame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let (replies, stream) = tokio::sync::mpsc::channel(16);
        let (count, mut frames) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                count.fetch_add(frame.messages.len() as u64, Ordering::Release);
            }
            drop(replies);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::SnapshotResult>, Status> {
        Err(Status::unimplemented("bench"))
    }
}

fn frame() -> pb::LaneFrame {
    let entry = pb::Entry {
        term: 1,
        id_low: 9,
        payload: Some(pb::entry::Payload::Command(vec![7; COMMAND_BYTES].into())),
        ..Default::default()
    };
    let append = |group| pb::RaftMessage {
        group,
        from_number: 1,
        to_number: 1,
        term: 1,
        doubt: 0,
        body: Some(pb::raft_message::Body::Append(pb::AppendEntries {
            prev_log_index: 1000,
            prev_log_term: 1,
            leader_commit: 1000,
            entries: vec![entry.clone()],
        })),
    };
    pb::LaneFrame { messages: (0..BATCH).map(append).collect(), ..Default::default() }
}

/// Frames of 64 messages through the generated client and server, as fast as they are taken.
async fn bare(time: Duration) -> Outcome<f64> {
    let count = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = PeerServer::new(Bare(Arc::clone(&count)));
    let server = tokio::spawn(server_builder().add_service(service).serve_with_incoming(incoming(listener)));
    let mut client = PeerClient::connect(format!("http://{address}")).await?;
    let start = Instant::now();
    let one = frame();
    let frames = std::iter::from_fn(move || (start.elapsed() < time).then(|| one.clone()));
    let mut replies = client.lane(tokio_stream::iter(frames)).await?.into_inner();
    while replies.message().await?.is_some() {}
    let rate = count.load(Ordering::Acquire) as f64 / start.elapsed().as_secs_f64();
    server.abort();
    Ok(rate)
}

/// The same bytes through a socket.
async fn raw(time: Duration) -> Outcome<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let reader = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
        loop {
            match socket.read(&mut buffer).await? {
                0 => return Ok::<usize, std::io::Error>(total),
                n => total += n,
            }
        }
    });
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let bytes = frame().encode_to_vec();
    let start = Instant::now();
    while start.elapsed() < time {
        socket.write_all(&bytes).await?;
    }
    drop(socket);
    let total = reader.await??;
    Ok((total / bytes.len()) as f64 * BATCH as f64 / start.elapsed().as_secs_f64())
}

/// There and back on idle links, from thread to thread.
fn round_trips(a: &Store, b: &Store) -> Vec<Duration> {
    let lone = |from: StoreId, to: StoreId| Message {
        from: ReplicaId { store: from, number: 1 },
        to: ReplicaId { store: to, number: 1 },
        term: Term(1),
        doubt: None,
        body: Body::TimeoutNow,
    };
    let mut times: Vec<Duration> = (0..5000)
        .filter_map(|_| {
            let start = Instant::now();
            a.transport.send(B, GroupId(1), lone(A, B));
            b.lone.recv_timeout(Duration::from_secs(5)).ok()?;
            b.transport.send(A, GroupId(1), lone(B, A));
            a.lone.recv_timeout(Duration::from_secs(5)).ok()?;
            Some(start.elapsed())
        })
        .collect();
    times.sort();
    times
}

/// Groups that beat.
const BEATING: u64 = 1000;
/// How often each does.
const BEAT_EVERY: Duration = Duration::from_millis(100);

/// Frames and bytes per second, and the part of a core, of heartbeats that leave in so many bursts per interval.
fn heartbeats(a: &Store, b: &Store, bursts: u64, time: Duration) -> (f64, f64, f64) {
    let link = || {
        let mut links = b.transport.links().into_iter();
        let control = |link: &LinkStatus| link.direction == Direction::Inbound && link.lane == Lane::Control;
        links.find(control).map_or((0, 0), |link| (link.frames, link.bytes))
    };
    let heartbeat = |group, round| {
        let leader_commit = LogIndex(100_000 + round);
        let body = Body::Heartbeat(Heartbeat { leader_commit, round, quiesce: false });
        let replica = |store| ReplicaId { store, number: 1 };
        (GroupId(group), Message { from: replica(A), to: replica(B), term: Term(7), doubt: None, body })
    };
    let (before, cpu, start) = (link(), cpu_seconds(), Instant::now());
    let mut burst = 0;
    while start.elapsed() < time {
        let (round, part) = (burst / bursts, burst % bursts);
        let groups = part * BEATING / bursts..(part + 1) * BEATING / bursts;
        a.transport.send_all(B, groups.map(|group| heartbeat(group, round)));
        burst += 1;
        let due = BEAT_EVERY.mul_f64(burst as f64 / bursts as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let (took, after) = (start.elapsed().as_secs_f64(), link());
    let rate = |of: u64| of as f64 / took;
    (rate(after.0 - before.0), rate(after.1 - before.1), (cpu_seconds() - cpu) / took)
}

/// CPU seconds of this process so far, both ends of everything; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    // In ticks of 10 ms.
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Messages per second, and CPU microseconds per message, of one run.
fn measure(run: impl FnOnce() -> Outcome<f64>, time: Duration) -> Outcome<(f64, f64)> {
    let before = cpu_seconds();
    let rate = run()?;
    Ok((rate, (cpu_seconds() - before) * 1e6 / (rate * time.as_secs_f64())))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() -> Outcome<()> {
    // cargo passes `--bench`.
    let numbers: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let time = Duration::from_secs(numbers.first().copied().unwrap_or(2));
    let rounds = numbers.get(1).copied().unwrap_or(5).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (a, b) = runtime.block_on(async { Ok::<_, Box<dyn Error>>((store(A).await?, store(B).await?)) })?;
    a.transport.set_peer(B, b.address.to_string());
    b.transport.set_peer(A, a.address.to_string());
    while [&a, &b].iter().any(|s| s.transport.links().iter().any(|l| !l.connected)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let times = round_trips(&a, &b);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("round trip of a lone message, idle links: p50 {:?}, p99 {:?}", at(0.5), at(0.99));

    type Run<'a> = (&'static str, Box<dyn Fn() -> Outcome<f64> + 'a>);
    let runs: [Run<'_>; 3] = [
        ("transport", Box::new(|| Ok(ours(&a, &b, time)))),
        ("bare tonic", Box::new(|| runtime.block_on(bare(time)))),
        ("raw TCP", Box::new(|| runtime.block_on(raw(time)))),
    ];
    let mut results = [const { Vec::new() }; 3];
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-') && a.parse::<u64>().is_err());
    for _ in 0..rounds {
        for ((name, run), results) in runs.iter().zip(&mut results) {
            if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            results.push(measure(run, time)?);
        }
    }
    let mut medians = Vec::new();
    for ((name, _), results) in runs.iter().zip(&results).filter(|r| !r.1.is_empty()) {
        let rates: Vec<f64> = results.iter().map(|r| r.0).collect();
        let cpu = median(results.iter().map(|r| r.1).collect());
        let rate = median(rates.clone());
        let mib = rate * COMMAND_BYTES as f64 / f64::from(1 << 20);
        let all: Vec<String> = rates.iter().map(|r| format!("{:.2}", r / 1e6)).collect();
        println!(
            "{name:10} {rate:>9.0} messages/s {mib:>6.0} MiB/s of payload {cpu:>5.2} us CPU per message (M/s: {})",
            all.join(" ")
        );
        medians.push((rate, cpu));
    }
    if only.as_ref().is_none_or(|only| "heartbeats".contains(only.as_str())) {
        for (how, bursts) in [("each at its own time", BEATING), ("all together", 1)] {
            let (frames, bytes, cpu) = heartbeats(&a, &b, bursts, time);
            println!(
                "heartbeats of {BEATING} groups every {BEAT_EVERY:?}, {how}: {frames:.0} frames/s, {:.0} KiB/s, \
                 {:.1} % of a core at both ends",
                bytes / 1024.0,
                cpu * 100.0
            );
        }
    }
    if let [ours, bare, _] = medians[..] {
        println!("transport / bare tonic: rate {:.2}, CPU {:.2}", ours.0 / bare.0, ours.1 / bare.1);
    }
    Ok(())
}
