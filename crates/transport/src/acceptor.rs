//! The gRPC service: who may speak, and which streams are open. `receive.rs` reads them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_server::{Peer, PeerServer, SERVICE_NAME};
use pontoon_raft_core::types::StoreId;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::credit_book::Account;
use crate::dial::{CONNECTION_WINDOW_BYTES, PROTOCOL_VERSION, STREAM_WINDOW_BYTES};
use crate::error::Unwelcome;
use crate::frames::{AcceptCodec, Frames};
use crate::identity::Claim;
use crate::lane::Challenge;
use crate::log_limit::LogLimit;
use crate::receive;
use crate::receive_budget::PeerShare;
use crate::snapshot_receive;
use crate::status::{Direction, Lane, LinkErrorKind, LinkStatus};
use crate::transport::Shared;
use crate::wire::cut;

/// Accepted connections with TCP_NODELAY, for `serve_with_incoming`. Without it small frames wait for delayed
/// acknowledgements: a sixth of the throughput.
#[must_use]
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A server with the HTTP/2 windows that frames of this size need, and with keep-alive, which frees the streams of
/// stores that vanished.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        // A peer needs one stream per connection.
        .max_concurrent_streams(16)
        .http2_max_pending_accept_reset_streams(Some(16))
}

/// Streams that have not said hello, of all connections together: strangers get no more than this.
const STRANGERS_MAX: u64 = 256;

/// What one lane from one peer has received.
#[derive(Debug, Default)]
pub(crate) struct ReceiveCounters {
    pub(crate) messages: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) refused_frames: AtomicU64,
    /// What has come of large messages that are not whole.
    pub(crate) partial_bytes: AtomicU64,
    /// When the last frame came, in milliseconds since the transport started.
    heard_ms: AtomicU64,
}

impl ReceiveCounters {
    /// A frame came.
    pub(crate) fn heard(&self, shared: &Shared) {
        self.heard_ms.store(millis_since_start(shared), Ordering::Relaxed);
    }
}

fn millis_since_start(shared: &Shared) -> u64 {
    u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One lane from one peer, across its streams.
#[derive(Debug)]
struct InboundLane {
    name: String,
    advertise: String,
    /// The process behind the present stream, or the last one.
    incarnation: u64,
    /// Whether it says which data directory it runs on.
    identified: bool,
    /// Ends the present stream.
    stop: CancellationToken,
    /// Names the present stream; `None` between streams.
    stream: Option<u64>,
    changed: Instant,
    /// All streams before the present one.
    connected_before: Duration,
    hellos: u64,
    disconnections: u64,
    last_error: Option<String>,
    counters: Arc<ReceiveCounters>,
}

/// All lanes from peers. Entries exist for peers only, so strangers cannot make it grow.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    lanes: Mutex<BTreeMap<(StoreId, Lane), InboundLane>>,
    shares: Mutex<BTreeMap<StoreId, Arc<PeerShare>>>,
    streams: AtomicU64,
    strangers: AtomicU64,
    /// Incarnations that claimed a store id while another process with that id was alive: the last one of each store.
    seconds: Mutex<BTreeMap<StoreId, u64>>,
    pub(crate) refusals: LogLimit,
    pub(crate) bad_frames: LogLimit,
}

/// A greeted stream: removed from the list when dropped.
pub(crate) struct Greeted {
    shared: Arc<Shared>,
    pub(crate) store: StoreId,
    pub(crate) lane: Lane,
    /// What the process says of its data directory.
    pub(crate) claim: Option<Claim>,
    /// The host has let it act as the store.
    pub(crate) admitted: bool,
    /// Its optional abilities.
    pub(crate) features: u64,
    /// What it may send, on a log lane that has credits.
    pub(crate) account: Option<Account>,
    stream: u64,
    pub(crate) stop: CancellationToken,
    pub(crate) counters: Arc<ReceiveCounters>,
    pub(crate) share: Arc<PeerShare>,
    pub(crate) ended: Option<String>,
}

impl Drop for Greeted {
    fn drop(&mut self) {
        let mut lanes = self.shared.acceptor.lock();
        if let Some(lane) = lanes.get_mut(&(self.store, self.lane))
            && lane.stream == Some(self.stream)
        {
            lane.stream = None;
            lane.counters.partial_bytes.store(0, Ordering::Relaxed);
            let elapsed = lane.changed.elapsed();
            lane.connected_before += elapsed;
            lane.changed = Instant::now();
            lane.disconnections += 1;
            // Dropped without a word: the connection below the stream is gone.
            lane.last_error = self.ended.take().or_else(|| Some("the connection broke".to_owned()));
        }
    }
}

/// Counts a stream that has not said hello.
pub(crate) struct Stranger(Arc<Shared>);

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.acceptor.strangers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Acceptor {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(StoreId, Lane), InboundLane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a stream in until it has said hello, or not if there are too many such.
    pub(crate) fn stranger(shared: &Arc<Shared>) -> Option<Stranger> {
        let guard = Stranger(Arc::clone(shared));
        (shared.acceptor.strangers.fetch_add(1, Ordering::AcqRel) < STRANGERS_MAX).then_some(guard)
    }

    /// Whether a process may speak for `store` beside those that are connected. Processes that say nothing of their data
    /// directory replace each other, as streams do.
    ///
    /// # Errors
    /// Another process of the store is connected and was heard of a moment ago, or this one was proven to be a second
    /// one.
    pub(crate) fn alone(shared: &Arc<Shared>, store: StoreId, claim: Option<Claim>) -> Result<(), Refusal> {
        let Some(claim) = claim else { return Ok(()) };
        let acceptor = &shared.acceptor;
        let proven =
            *acceptor.seconds.lock().unwrap_or_else(PoisonError::into_inner).get(&store).unwrap_or(&0)
                == claim.incarnation;
        if proven {
            return Err((
                pb::Refusal::Fenced,
                format!(
                    "another process runs as store {store}, on another data directory or another copy of this one"
                ),
            ));
        }
        let Some(first) = acceptor.other_process(shared, &acceptor.lock(), store, claim.incarnation) else {
            return Ok(());
        };
        if let Some(peer) = shared.peer(store) {
            peer.control.challenge(Challenge { first, second: claim.incarnation });
        }
        Err(duplicate(store))
    }

    /// The incarnation of another process of the store that is connected here and alive.
    fn other_process(
        &self,
        shared: &Shared,
        lanes: &BTreeMap<(StoreId, Lane), InboundLane>,
        store: StoreId,
        incarnation: u64,
    ) -> Option<u64> {
        // A store that lives breaks its silence after its election timer and a second, by a probe.
        let patience_ms = *shared.election_timer.borrow() + 2000;
        let now = millis_since_start(shared);
        [Lane::Control, Lane::Log].iter().find_map(|lane| {
            let other = lanes.get(&(store, *lane)).filter(|l| l.stream.is_some() && l.identified)?;
            let silent_ms = now.saturating_sub(other.counters.heard_ms.load(Ordering::Relaxed));
            (other.incarnation != incarnation && silent_ms <= patience_ms).then_some(other.incarnation)
        })
    }

    /// The process `incarnation` said hello for `store`, and after that another process of it was alive.
    pub(crate) fn prove_second(&self, store: StoreId, incarnation: u64) {
        tracing::warn!(%store, "two processes run under one store id: the later one is refused from now on");
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner).insert(store, incarnation);
    }

    /// Registers a process that was met; an older stream of the same lane ends, and so do all of an older process.
    fn greet(shared: &Arc<Shared>, hello: pb::Hello, lane: Lane) -> Result<Greeted, Refusal> {
        let acceptor = &shared.acceptor;
        let store = StoreId(hello.store);
        let stream = acceptor.streams.fetch_add(1, Ordering::Relaxed);
        let stop = shared.stop.child_token();
        let mut lanes = acceptor.lock();
        // Under the lock: whoever removes the peer closes its streams afterwards, under the same lock.
        let peer = shared.peer(store).ok_or_else(|| unknown(store))?;
        let claim = Claim::from_wire(hello.lineage, hello.incarnation);
        let identified = claim.is_some();
        if identified && acceptor.other_process(shared, &lanes, store, hello.incarnation).is_some() {
            // It came while this one was being met.
            return Err(duplicate(store));
        }
        for other in [Lane::Control, Lane::Log, Lane::Snapshot] {
            if let Some(other) = lanes.get(&(store, other)).filter(|l| l.incarnation != hello.incarnation) {
                other.stop.cancel();
            }
        }
        let known = lanes.entry((store, lane)).or_insert_with(|| InboundLane {
            name: String::new(),
            advertise: String::new(),
            incarnation: 0,
            identified: false,
            stop: stop.clone(),
            stream: None,
            changed: Instant::now(),
            connected_before: Duration::ZERO,
            hellos: 0,
            disconnections: 0,
            last_error: None,
            counters: Arc::default(),
        });
        if known.stream.replace(stream).is_some() {
            known.stop.cancel();
            let elapsed = known.changed.elapsed();
            known.connected_before += elapsed;
            known.disconnections += 1;
        }
        known.stop = stop.clone();
        known.incarnation = hello.incarnation;
        known.identified = identified;
        known.counters.heard(shared);
        known.name = cut(hello.name);
        let advertise = cut(hello.advertise);
        known.advertise.clone_from(&advertise);
        known.changed = Instant::now();
        known.hellos += 1;
        let counters = Arc::clone(&known.counters);
        drop(lanes);
        let mut shares = acceptor.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = Arc::clone(shares.entry(store).or_default());
        drop(shares);
        // It is evidently alive: lanes that wait to dial it need not wait.
        peer.control.heard(hello.incarnation);
        shared.inbound.advertised(store, &advertise);
        peer.log.heard(hello.incarnation);
        Ok(Greeted {
            shared: Arc::clone(shared),
            store,
            lane,
            claim,
            admitted: false,
            features: hello.features,
            account: None,
            stream,
            stop,
            counters,
            share,
            ended: None,
        })
    }

    /// Ends all streams of a store and forgets it.
    pub(crate) fn close(&self, store: StoreId) {
        let mut lanes = self.lock();
        for lane in [Lane::Control, Lane::Log, Lane::Snapshot] {
            if let Some(lane) = lanes.remove(&(store, lane)) {
                lane.stop.cancel();
            }
        }
        drop(lanes);
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).remove(&store);
    }

    pub(crate) fn statuses(&self) -> Vec<LinkStatus> {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lanes = self.lock();
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let status = |(&(store, lane), known): (&(StoreId, Lane), &InboundLane)| LinkStatus {
            store,
            name: known.name.clone(),
            address: known.advertise.clone(),
            direction: Direction::Inbound,
            lane,
            connected: known.stream.is_some(),
            since: known.changed.elapsed(),
            connected_total: known.connected_before
                + if known.stream.is_some() { known.changed.elapsed() } else { Duration::ZERO },
            attempts: known.hellos,
            successes: known.hellos,
            disconnections: known.disconnections,
            backoff: Duration::ZERO,
            probe_interval: Duration::ZERO,
            last_error: known.last_error.clone(),
            last_error_kind: known.last_error.as_ref().map(|_| LinkErrorKind::Broken),
            queued_messages: 0,
            queued_bytes: 0,
            in_flight_bytes: 0,
            large_bytes: usize::try_from(load(&known.counters.partial_bytes)).unwrap_or(usize::MAX),
            waits_for: None,
            unprocessed_bytes: shares.get(&store).map_or(0, |share| share.used()),
            credit_bytes: None,
            messages: load(&known.counters.messages),
            frames: load(&known.counters.frames),
            bytes: load(&known.counters.bytes),
            cancelled: 0,
            dropped: load(&known.counters.dropped),
            refused_frames: load(&known.counters.refused_frames),
        };
        lanes.iter().map(status).collect()
    }
}

/// Why a hello is refused.
pub(crate) type Refusal = (pb::Refusal, String);

fn unknown(store: StoreId) -> Refusal {
    (pb::Refusal::UnknownStore, format!("no store {store} is known here"))
}

fn duplicate(store: StoreId) -> Refusal {
    (pb::Refusal::Duplicate, format!("another process of store {store} is connected; try again"))
}

/// Decides on a hello, and connects the process. Nothing of it is delivered before.
pub(crate) async fn welcome(
    shared: &Arc<Shared>,
    hello: pb::Hello,
    lanes: &[Lane],
) -> Result<Greeted, Refusal> {
    let lane = check_hello(shared, &hello, lanes)?;
    let store = StoreId(hello.store);
    let claim = Claim::from_wire(hello.lineage, hello.incarnation);
    if let Err(refusal) = Acceptor::alone(shared, store, claim) {
        // An older process that comes back is told so, instead of trying for ever.
        return Err(match shared.meet(store, claim).await {
            Err(Unwelcome { final_: true, reason }) => (pb::Refusal::Fenced, reason),
            _ => refusal,
        });
    }
    shared.meet(store, claim).await.map_err(|unwelcome| {
        (if unwelcome.final_ { pb::Refusal::Fenced } else { pb::Refusal::Busy }, unwelcome.reason)
    })?;
    Acceptor::greet(shared, hello, lane)
}

pub(crate) fn check_hello(shared: &Shared, hello: &pb::Hello, lanes: &[Lane]) -> Result<Lane, Refusal> {
    let config = &shared.config;
    let refuse = |refusal, reason: String| Err((refusal, reason));
    if hello.protocol_version != PROTOCOL_VERSION {
        return refuse(
            pb::Refusal::Version,
            format!("protocol version {} is not {PROTOCOL_VERSION}", hello.protocol_version),
        );
    }
    if hello.cluster != config.cluster {
        return refuse(
            pb::Refusal::Cluster,
            format!("cluster {:016x} is not {:016x}", hello.cluster, config.cluster),
        );
    }
    if hello.to_store != config.store.0 {
        return refuse(
            pb::Refusal::Destination,
            format!("this is store {}, not {}", config.store, StoreId(hello.to_store)),
        );
    }
    let store = StoreId(hello.store);
    if store.0 == 0 || store == config.store {
        return refuse(pb::Refusal::Malformed, format!("{store} is not the id of another store"));
    }
    let lane = match hello.lane() {
        pb::LaneKind::Control => Lane::Control,
        pb::LaneKind::Log => Lane::Log,
        pb::LaneKind::Snapshot => Lane::Snapshot,
        pb::LaneKind::Unspecified => return refuse(pb::Refusal::Malformed, "an unknown lane".to_owned()),
    };
    if !lanes.contains(&lane) {
        return refuse(pb::Refusal::Malformed, format!("the {lane} lane has no place in this call"));
    }
    if shared.stop.is_cancelled() {
        return refuse(pb::Refusal::Busy, "shutting down".to_owned());
    }
    if shared.peer(store).is_none() {
        return Err(match shared.inbound.removed(store) {
            Some(reason) => (pb::Refusal::Removed, reason),
            None => unknown(store),
        });
    }
    Ok(lane)
}

/// The peer protocol's gRPC service; made by `Transport::peer_service`.
#[derive(Clone)]
pub struct PeerService {
    shared: Arc<Shared>,
    rest: PeerServer<Calls>,
}

impl fmt::Debug for PeerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerService").finish_non_exhaustive()
    }
}

impl PeerService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let rest = PeerServer::new(Calls { shared: Arc::clone(&shared) })
            .max_decoding_message_size(snapshot_receive::FRAME_BYTES_MAX);
        Self { shared, rest }
    }
}

impl NamedService for PeerService {
    const NAME: &'static str = SERVICE_NAME;
}

/// The generated service decodes with prost alone; the frames of lanes go through the gate, so that call is taken out here.
impl Service<http::Request<Body>> for PeerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != "/pontoon.peer.v1.Peer/Lane" {
            return self.rest.call(request);
        }
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let frames = Frames::new(body, shared.config.limits.message_bytes_max);
            let request = http::Request::from_parts(head, Body::empty());
            let call = LaneCall { shared, frames: Some(frames) };
            Ok(tonic::server::Grpc::new(AcceptCodec).streaming(call, request).await)
        })
    }
}

/// One stream, whose frames are read past tonic.
struct LaneCall {
    shared: Arc<Shared>,
    frames: Option<Frames>,
}

impl StreamingService<pb::LaneFrame> for LaneCall {
    type Response = pb::LaneReply;
    type ResponseStream = ReceiverStream<Result<pb::LaneReply, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, _: Request<Streaming<pb::LaneFrame>>) -> Self::Future {
        let (shared, frames) = (Arc::clone(&self.shared), self.frames.take());
        Box::pin(async move {
            let frames = frames.ok_or_else(|| Status::internal("a stream is called once"))?;
            Ok(Response::new(receive::start(shared, frames)))
        })
    }
}

/// The calls that the generated service decodes.
struct Calls {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Peer for Calls {
    type LaneStream = ReceiverStream<Result<pb::LaneReply, Status>>;

    async fn lane(&self, _: Request<Streaming<pb::LaneFrame>>) -> Result<Response<Self::LaneStream>, Status> {
        // Unreachable: `PeerService` takes this call. An error is kinder than a panic if that ever changes.
        Err(Status::unimplemented("lanes have a codec of their own"))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::SnapshotResult>, Status> {
        Ok(Response::new(snapshot_receive::run(&self.shared, request.into_inner()).await))
    }
}
