//! Stores with a transport and a listener each, and a proxy between them that can misbehave.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Heartbeat, Message};
use pontoon_raft_core::types::{
    Configuration, Entry, EntryId, GroupId, LogIndex, Payload, ReplicaId, SnapshotMeta, StoreId, Term,
};
use pontoon_transport::{
    Claim, EntrySource, Identity, Inbound, LinkStatus, ProposalReply, ReceivePermit, Refused,
    RelayedProposal, SnapshotReader, SnapshotSink, Transport, TransportConfig, Unwelcome, incoming,
    server_builder,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

pub const CLUSTER: u64 = 0xc1;
/// Longer than anything takes; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a host was told.
#[derive(Default)]
pub struct Log {
    pub received: Vec<(StoreId, GroupId, Message)>,
    pub batches: Vec<usize>,
    pub arrivals: Vec<(Instant, u64)>,
    pub permits: Vec<ReceivePermit>,
    pub proposals: Vec<(StoreId, RelayedProposal)>,
    pub replies: Vec<(StoreId, ProposalReply)>,
    pub unreachable: Vec<(StoreId, GroupId)>,
    pub up: Vec<StoreId>,
    pub down: Vec<(StoreId, bool, Instant)>,
    pub snapshots_sent: Vec<(StoreId, GroupId, bool)>,
    pub images: Vec<Vec<u8>>,
    pub sinks_dropped: usize,
    pub claims: Vec<(StoreId, Option<Claim>)>,
    /// Who was to be admitted, and how many messages had been received then.
    pub admitted: Vec<(StoreId, Option<Claim>, usize)>,
    /// How far peers' logs are, and how many messages had been received when that was told.
    pub reached: Vec<(StoreId, u64, usize)>,
    pub fenced: Vec<(StoreId, String)>,
}

/// A host that writes everything down.
#[derive(Default)]
pub struct Host {
    log: Mutex<Log>,
    changed: Condvar,
    /// Keep receive permits instead of releasing them.
    pub hold_permits: AtomicBool,
    /// Drop received messages at once, counting them, for floods.
    pub count_only: AtomicBool,
    pub counted: AtomicUsize,
    pub refuse_snapshots: AtomicBool,
    /// Whom to refuse, and how.
    pub unwelcome: Mutex<HashMap<StoreId, Unwelcome>>,
    /// Whom to refuse when it begins to act.
    pub not_admitted: Mutex<HashMap<StoreId, Unwelcome>>,
    /// How far the log is.
    pub durable: AtomicU64,
    entries: Mutex<HashMap<GroupId, Vec<Entry>>>,
}

impl Host {
    pub fn with<R>(&self, f: impl FnOnce(&mut Log) -> R) -> R {
        f(&mut self.log.lock().unwrap())
    }

    fn note(&self, f: impl FnOnce(&mut Log)) {
        self.with(f);
        self.changed.notify_all();
    }

    /// Waits until `what` holds.
    #[track_caller]
    pub fn wait(&self, why: &str, what: impl Fn(&Log) -> bool) {
        let until = Instant::now() + PATIENCE;
        let mut log = self.log.lock().unwrap();
        while !what(&log) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited too long for: {why}");
            log = self.changed.wait_timeout(log, left).unwrap().0;
        }
    }

    /// Gives `group` entries 1 to `n` of `bytes` each, all of term 1.
    pub fn set_entries(&self, group: GroupId, n: u64, bytes: usize) {
        let data = Bytes::from(vec![7u8; bytes]);
        let entries = (1..=n).map(|i| Entry {
            index: LogIndex(i),
            term: Term(1),
            id: EntryId(u128::from(i)),
            payload: Payload::Command(data.clone()),
        });
        self.entries.lock().unwrap().insert(group, entries.collect());
    }
}

impl EntrySource for Host {
    fn entries(
        &self,
        group: GroupId,
        prev: LogIndex,
        last: LogIndex,
        last_term: Term,
        bytes_max: u64,
    ) -> Option<Vec<Entry>> {
        let all = self.entries.lock().unwrap();
        let log = all.get(&group)?;
        let at = |i: u64| log.get(usize::try_from(i).ok()?.checked_sub(1)?);
        at(last.0).filter(|e| e.term == last_term)?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for index in prev.0 + 1..=last.0 {
            let entry = at(index)?;
            bytes += entry.size_bytes();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    fn durable(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }
}

struct Sink {
    image: Vec<u8>,
    host: Arc<HostInbound>,
    finished: bool,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.image.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.finished = true;
        let image = std::mem::take(&mut self.image);
        self.host.0.note(|log| log.images.push(image));
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            self.host.0.note(|log| log.sinks_dropped += 1);
        }
    }
}

/// The host as the transport sees it.
#[derive(Clone)]
pub struct HostInbound(pub Arc<Host>);

impl Inbound for HostInbound {
    fn receive(&self, from: StoreId, messages: Vec<(GroupId, Message)>, permit: ReceivePermit) {
        if self.0.count_only.load(Ordering::Relaxed) {
            self.0.counted.fetch_add(messages.len(), Ordering::Relaxed);
            self.0.changed.notify_all();
            return;
        }
        self.0.note(|log| {
            log.batches.push(messages.len());
            let now = Instant::now();
            for (group, message) in messages {
                log.arrivals.push((now, message.term.0));
                log.received.push((from, group, message));
            }
            if self.0.hold_permits.load(Ordering::Relaxed) {
                log.permits.push(permit);
            }
        });
    }
    fn proposals(&self, from: StoreId, proposals: Vec<RelayedProposal>) {
        self.0.note(|log| log.proposals.extend(proposals.into_iter().map(|p| (from, p))));
    }
    fn proposal_replies(&self, from: StoreId, replies: Vec<ProposalReply>) {
        self.0.note(|log| log.replies.extend(replies.into_iter().map(|r| (from, r))));
    }
    fn unreachable(&self, store: StoreId, groups: Vec<GroupId>) {
        self.0.note(|log| log.unreachable.extend(groups.into_iter().map(|g| (store, g))));
    }
    fn link_down(&self, store: StoreId, refused: bool) {
        self.0.note(|log| log.down.push((store, refused, Instant::now())));
    }
    fn link_up(&self, store: StoreId) {
        self.0.note(|log| log.up.push(store));
    }
    fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
        if self.0.refuse_snapshots.load(Ordering::Relaxed) {
            return Err(Refused::UnknownReplica);
        }
        Ok(Box::new(Sink { image: Vec::new(), host: Arc::new(self.clone()), finished: false }))
    }
    fn snapshot_sent(&self, to: StoreId, group: GroupId, _: ReplicaId, ok: bool) {
        self.0.note(|log| log.snapshots_sent.push((to, group, ok)));
    }
    fn meet(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        self.0.note(|log| log.claims.push((from, claim)));
        self.0.unwelcome.lock().unwrap().get(&from).cloned().map_or(Ok(()), Err)
    }
    fn admit(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        self.0.note(|log| log.admitted.push((from, claim, log.received.len())));
        self.0.not_admitted.lock().unwrap().get(&from).cloned().map_or(Ok(()), Err)
    }
    fn reached(&self, from: StoreId, batch: u64) {
        self.0.note(|log| log.reached.push((from, batch, log.received.len())));
    }
    fn fenced(&self, by: StoreId, reason: String) {
        self.0.note(|log| log.fenced.push((by, reason)));
    }
}

/// A transport, its listener and a runtime of their own, so that all of it can die at once.
pub struct Store {
    pub id: StoreId,
    pub address: SocketAddr,
    pub host: Arc<Host>,
    pub transport: Transport,
    runtime: Option<Runtime>,
}

pub fn config(id: u64) -> TransportConfig {
    TransportConfig {
        // A probe after 1.1 s, a drop after 2.2 s.
        election_timer_ms: 100,
        ..TransportConfig::new(CLUSTER, StoreId(id), format!("store-{id}"))
    }
}

impl Store {
    pub fn start(id: u64) -> Self {
        Self::with(config(id), "127.0.0.1:0".parse().unwrap())
    }

    /// One that says which data directory it runs on.
    pub fn identified(id: u64) -> Self {
        let identity = Identity { lineage: 0x1000 + id, start: 3, opened_at: 17, in_doubt: false };
        let config = TransportConfig { identity: Some(identity), ..config(id) };
        Self::with(config, "127.0.0.1:0".parse().unwrap())
    }

    pub fn with(config: TransportConfig, address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let host = Arc::new(Host::default());
        let id = config.store;
        let inbound = Arc::new(HostInbound(Arc::clone(&host)));
        let source: Arc<Host> = Arc::clone(&host);
        let transport = Transport::start(config, inbound, source, runtime.handle().clone());
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(64).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let service = transport.peer_service();
        runtime.spawn(async move {
            server_builder().add_service(service).serve_with_incoming(incoming(listener)).await.unwrap();
        });
        Self { id, address, host, transport, runtime: Some(runtime) }
    }

    pub fn knows(&self, other: &Self) {
        self.transport.set_peer(other.id, other.address.to_string());
    }

    /// As by `kill -9`: all sockets close, the port refuses.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn link(
        &self,
        to: StoreId,
        lane: pontoon_transport::Lane,
        direction: pontoon_transport::Direction,
    ) -> Option<LinkStatus> {
        self.transport
            .links()
            .into_iter()
            .find(|l| l.store == to && l.lane == lane && l.direction == direction)
    }

    /// Waits until both outbound lanes to `to` are open.
    #[track_caller]
    pub fn wait_up(&self, to: StoreId) {
        use pontoon_transport::{Direction, Lane};
        eventually("both lanes up", || {
            [Lane::Control, Lane::Log]
                .iter()
                .all(|lane| self.link(to, *lane, Direction::Outbound).is_some_and(|l| l.connected))
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            self.transport.shutdown();
            runtime.shutdown_background();
        }
    }
}

/// Two stores that know each other, with their links up.
pub fn pair() -> (Store, Store) {
    linked(Store::start(0xa), Store::start(0xb))
}

/// Makes two stores known to each other and waits for their links.
pub fn linked(a: Store, b: Store) -> (Store, Store) {
    a.knows(&b);
    b.knows(&a);
    a.wait_up(b.id);
    b.wait_up(a.id);
    (a, b)
}

#[track_caller]
pub fn eventually(why: &str, mut what: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < until, "waited too long for: {why}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn message(from: StoreId, to: StoreId, term: u64, body: Body) -> Message {
    Message {
        from: ReplicaId { store: from, number: 1 },
        to: ReplicaId { store: to, number: 2 },
        term: Term(term),
        doubt: None,
        body,
    }
}

/// A heartbeat whose term is a serial number.
pub fn heartbeat(from: StoreId, to: StoreId, serial: u64) -> Message {
    let body = Body::Heartbeat(Heartbeat { leader_commit: LogIndex(9), round: serial, quiesce: false });
    message(from, to, serial, body)
}

/// An append of the entries `(prev, last]`.
pub fn append(from: StoreId, to: StoreId, prev: u64, last: u64) -> Message {
    let body = Body::AppendEntries(AppendEntries {
        prev_log_index: LogIndex(prev),
        prev_log_term: Term(u64::from(prev > 0)),
        leader_commit: LogIndex(prev),
        entries: Entries::Interval { last: LogIndex(last), last_term: Term(1) },
    });
    message(from, to, 1, body)
}

pub fn install_snapshot(from: StoreId, to: StoreId) -> Message {
    let meta = SnapshotMeta {
        index: LogIndex(50),
        term: Term(3),
        configuration: Configuration::of_voters([ReplicaId { store: from, number: 1 }]),
        election_timer_ms: 1000,
    };
    message(from, to, 4, Body::InstallSnapshot(meta))
}

pub fn proposal(group: u64, id: u128, bytes: usize) -> RelayedProposal {
    RelayedProposal {
        group: GroupId(group),
        term: Term(5),
        id: EntryId(id),
        at: pontoon_raft_core::relay::RelayNumber { number: 1, floor: 1 },
        asks: false,
        class: pontoon_flow::Class::Regular,
        data: Bytes::from(vec![b'x'; bytes]),
    }
}

/// The entries of a received append.
pub fn entries_of(message: &Message) -> &[Entry] {
    match &message.body {
        Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) => entries,
        _ => &[],
    }
}

/// Reads an image of `pieces` pieces.
pub struct Image {
    pub left: usize,
    pub piece: Bytes,
    /// Sleep before each piece.
    pub pause: Duration,
}

impl SnapshotReader for Image {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        std::thread::sleep(self.pause);
        Ok(Some(self.piece.clone()))
    }
}

/// How a proxy treats what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Weather {
    Fair,
    /// Takes everything and forwards nothing, both ways; the connections stay open.
    BlackHole,
    /// Takes nothing from the dialer any more.
    NeverReads,
    /// Forwards the dialer's bytes and drops the answers.
    OneWay,
    /// Drops the dialer's bytes and forwards the answers.
    OtherWay,
    /// Forwards one byte a second each way.
    Trickle,
    /// Keeps the dialer's connection open when the far side is gone, and takes what it says.
    Orphans,
    /// Flips a bit in each larger piece of what the dialer says.
    Corrupt,
}

pub struct Proxy {
    pub address: SocketAddr,
    weather: Arc<AtomicU8>,
    pub accepted: Arc<AtomicUsize>,
    /// Bytes that were taken from the dialers.
    pub taken: Arc<AtomicUsize>,
    /// Ends all connections when it changes.
    resets: tokio::sync::watch::Sender<u64>,
    _runtime: Runtime,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let weather = Arc::new(AtomicU8::new(Weather::Fair as u8));
        let accepted = Arc::new(AtomicUsize::new(0));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let (w, n, t) = (Arc::clone(&weather), Arc::clone(&accepted), Arc::clone(&taken));
        let resets = tokio::sync::watch::Sender::new(0);
        let reset = resets.subscribe();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                n.fetch_add(1, Ordering::Relaxed);
                let (w, t) = (Arc::clone(&w), Arc::clone(&t));
                let mut reset = reset.clone();
                reset.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    let up = carry(near_read, far_write, Arc::clone(&w), Some(t));
                    let down = carry(far_read, near_write, w, None);
                    tokio::select! { () = up => {}, () = down => {}, _ = reset.changed() => {} }
                });
            }
        });
        Self { address, weather, accepted, taken, resets, _runtime: runtime }
    }

    /// Ends all connections, as by a reset on the way.
    pub fn reset(&self) {
        self.resets.send_modify(|n| *n += 1);
    }

    pub fn set(&self, weather: Weather) {
        self.weather.store(weather as u8, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    weather: Arc<AtomicU8>,
    // Counts what the dialer says; none for the way back.
    taken: Option<Arc<AtomicUsize>>,
) {
    let upward = taken.is_some();
    let is = |w: Weather| weather.load(Ordering::SeqCst) == w as u8;
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        while is(Weather::NeverReads) && upward {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let max = if is(Weather::Trickle) { 1 } else { buffer.len() };
        let Ok(n @ 1..) = from.read(&mut buffer[..max]).await else {
            if is(Weather::Orphans) && !upward {
                std::future::pending::<()>().await;
            }
            return;
        };
        if let Some(taken) = &taken {
            taken.fetch_add(n, Ordering::Relaxed);
        }
        if is(Weather::NeverReads) && upward {
            // Read just before the weather changed: it would be the last sign of life.
            continue;
        }
        if is(Weather::Trickle) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if is(Weather::BlackHole)
            || (is(Weather::OneWay) && !upward)
            || ((is(Weather::OtherWay) || is(Weather::Orphans)) && upward)
        {
            continue;
        }
        if is(Weather::Corrupt) && upward && n > 1000 {
            buffer[n / 2] ^= 0x10;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
