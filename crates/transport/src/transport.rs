//! The handle. Its promise: `send` never waits and guarantees nothing; what is known to be lost is told.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::acceptor::{Acceptor, PeerService};
use crate::api::{EntrySource, FEATURES, Inbound, ProposalReply, RelayedProposal, Report};
use crate::beats::{self, Beat};
use crate::config::TransportConfig;
use crate::credit_book::CreditBook;
use crate::dial::PROTOCOL_VERSION;
use crate::error::{NotQueued, QueueFull, Unwelcome};
use crate::identity::{self, Claim};
use crate::lane::{self, OutboundLane};
use crate::log_limit::LogLimit;
use crate::receive_budget::ReceiveBudget;
use crate::send_queue::{Item, QueueLimits};
use crate::snapshot_io::SnapshotReader;
use crate::snapshot_receive::Parked;
use crate::snapshot_send;
use crate::status::{Lane, LinkStatus};

/// What a frame holds beyond its largest message.
pub(crate) const FRAME_SLACK_BYTES: usize = 64 << 10;

/// All connections of this store to the others, shared by all groups. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("store", &self.shared.config.store).finish_non_exhaustive()
    }
}

/// What all tasks of a transport share.
pub(crate) struct Shared {
    pub(crate) config: TransportConfig,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) entries: Arc<dyn EntrySource>,
    pub(crate) handle: Handle,
    /// Random for each process start.
    pub(crate) incarnation: u64,
    /// The origin of the times in [`Acceptor`].
    pub(crate) started: Instant,
    /// A peer has refused this store for good.
    fenced: AtomicBool,
    pub(crate) queue_limits: Arc<QueueLimits>,
    pub(crate) budget: Arc<ReceiveBudget>,
    /// How far peers may send.
    pub(crate) credits: Arc<CreditBook>,
    pub(crate) election_timer: watch::Sender<u64>,
    pub(crate) acceptor: Acceptor,
    pub(crate) snapshot_sends: Arc<Semaphore>,
    /// One snapshot is received at a time.
    pub(crate) snapshot_receive: Arc<Semaphore>,
    /// The snapshot whose call broke, or that waits for its next segment.
    pub(crate) snapshot_parked: Mutex<Option<Parked>>,
    /// The image whose call is under way, and what ends that call.
    pub(crate) snapshot_call: Mutex<Option<(u64, CancellationToken)>>,
    pub(crate) stop: CancellationToken,
    peers: RwLock<HashMap<StoreId, Arc<Peer>>>,
    misdirected: LogLimit,
}

/// One store we send to.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) control: Arc<OutboundLane>,
    pub(crate) log: Arc<OutboundLane>,
    /// One snapshot is sent to it at a time.
    pub(crate) snapshot_send: Arc<Semaphore>,
    pub(crate) address: RwLock<String>,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn hello(&self, to: StoreId, lane: Lane) -> pb::Hello {
        let lane = match lane {
            Lane::Control => pb::LaneKind::Control,
            Lane::Log => pb::LaneKind::Log,
            Lane::Snapshot => pb::LaneKind::Snapshot,
        };
        pb::Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster: self.config.cluster,
            store: self.config.store.0,
            to_store: to.0,
            name: self.config.name.clone(),
            lane: lane.into(),
            features: FEATURES,
            incarnation: self.incarnation,
            advertise: self.config.advertise.clone(),
            lineage: self.lineage(),
        }
    }

    /// What this store says of its data directory.
    pub(crate) fn lineage(&self) -> Option<pb::Lineage> {
        self.config.identity.map(|identity| identity::to_wire(identity, self.entries.durable()))
    }

    /// See [`Inbound::meet`].
    pub(crate) async fn meet(self: &Arc<Self>, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        self.ask(move |inbound| inbound.meet(from, claim)).await
    }

    /// See [`Inbound::admit`].
    pub(crate) async fn admit(
        self: &Arc<Self>,
        from: StoreId,
        claim: Option<Claim>,
    ) -> Result<(), Unwelcome> {
        self.ask(move |inbound| inbound.admit(from, claim)).await
    }

    /// Asks the host where it may wait for its disk.
    async fn ask(
        &self,
        question: impl FnOnce(&dyn Inbound) -> Result<(), Unwelcome> + Send + 'static,
    ) -> Result<(), Unwelcome> {
        let inbound = Arc::clone(&self.inbound);
        let answer = self.handle.spawn_blocking(move || question(&*inbound)).await;
        answer
            .unwrap_or_else(|_| Err(Unwelcome { final_: false, reason: "the store is stopping".to_owned() }))
    }

    /// `by` has refused this store for good, or says that it was `removed`: nothing more is sent or taken.
    pub(crate) fn fence(&self, by: StoreId, reason: String, removed: bool) {
        if self.fenced.swap(true, Ordering::AcqRel) {
            return;
        }
        self.stop.cancel();
        if removed {
            tracing::info!(%by, reason, "this store is no member any more: its links are shut down");
            self.inbound.removed_by(by, reason);
        } else {
            tracing::error!(%by, reason, "this store is refused for good: its links are shut down");
            self.inbound.fenced(by, reason);
        }
    }

    pub(crate) fn peer(&self, store: StoreId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&store).cloned()
    }
}

impl Transport {
    /// Starts without peers; nothing is dialed before [`Self::set_peer`]. Tasks run on `runtime` until
    /// [`Self::shutdown`].
    pub fn start(
        config: TransportConfig,
        inbound: Arc<dyn Inbound>,
        entries: Arc<dyn EntrySource>,
        runtime: Handle,
    ) -> Self {
        let limits = &config.limits;
        let shared = Shared {
            incarnation: RandomState::new().hash_one(config.store.0),
            started: Instant::now(),
            fenced: AtomicBool::new(false),
            queue_limits: Arc::new(QueueLimits {
                messages: AtomicUsize::new(limits.queue_messages_max),
                bytes: AtomicUsize::new(limits.queue_bytes_max),
            }),
            budget: Arc::new(ReceiveBudget::new(limits.receive_bytes_max)),
            credits: CreditBook::new(limits.receive_bytes_max, limits.message_bytes_max as u64),
            election_timer: watch::Sender::new(config.election_timer_ms),
            acceptor: Acceptor::default(),
            snapshot_sends: Arc::new(Semaphore::new(limits.snapshot_sends_max)),
            snapshot_receive: Arc::new(Semaphore::new(1)),
            snapshot_parked: Mutex::default(),
            snapshot_call: Mutex::default(),
            stop: CancellationToken::new(),
            peers: RwLock::default(),
            misdirected: LogLimit::default(),
            handle: runtime,
            inbound,
            entries,
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Makes `store` a peer and dials it, or moves it to another address: `host:port`. Peers that are not set are
    /// refused when they dial. Without effect for this store itself.
    pub fn set_peer(&self, store: StoreId, address: impl Into<String>) {
        let address = address.into();
        if store == self.shared.config.store || self.shared.stop.is_cancelled() {
            return;
        }
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&store) {
            let mut known = peer.address.write().unwrap_or_else(PoisonError::into_inner);
            if *known != address {
                known.clone_from(&address);
                peer.control.set_address(address.clone());
                peer.log.set_address(address);
            }
            return;
        }
        let lane = |lane| Arc::new(OutboundLane::new(&self.shared, store, lane, address.clone()));
        let peer = Arc::new(Peer {
            control: lane(Lane::Control),
            log: lane(Lane::Log),
            snapshot_send: Arc::new(Semaphore::new(1)),
            address: RwLock::new(address.clone()),
            stop: self.shared.stop.child_token(),
        });
        for lane in [&peer.control, &peer.log] {
            self.shared.handle.spawn(lane::run(
                Arc::clone(&self.shared),
                Arc::clone(lane),
                peer.stop.clone(),
            ));
        }
        peers.insert(store, peer);
    }

    /// Closes the link to `store` and refuses its dials from now on.
    pub fn remove_peer(&self, store: StoreId) {
        let peer = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&store);
        if let Some(peer) = peer {
            peer.stop.cancel();
        }
        self.shared.acceptor.close(store);
    }

    /// Sends a message of `group`: appends on the log lane, all else on the control lane. Never waits.
    /// A message to a store that is no peer is thrown away.
    pub fn send(&self, to: StoreId, group: GroupId, message: Message) {
        self.send_all(to, [(group, message)]);
    }

    /// Sends several messages to one store, in order per lane: cheaper than one by one, and they share frames. Heartbeats that
    /// follow each other, of whatever groups, become one message.
    pub fn send_all(&self, to: StoreId, messages: impl IntoIterator<Item = (GroupId, Message)>) {
        let messages = messages.into_iter();
        let at_least = messages.size_hint().0;
        let (mut control, mut log) = (Vec::new(), Vec::new());
        for (group, message) in messages {
            if message.to.store != to || message.from.store != self.shared.config.store {
                if let Some(left_out) = self.shared.misdirected.allow() {
                    tracing::error!(%group, %to, from = %message.from, addressed = %message.to, left_out,
                        "a message that is not from this store to that one was thrown away");
                }
                continue;
            }
            match Beat::of(group, &message) {
                Some(beat) => beats::gather(&mut control, beat),
                // Those without entries too: a leader asks by one whether all that it sent has arrived, and if that
                // overtook what it asks about, the answer would be no.
                None if matches!(message.body, Body::AppendEntries(_)) => {
                    // Most of what a leader sends at once is appends.
                    if log.is_empty() {
                        log.reserve(at_least);
                    }
                    log.push(Item::Raft(group, message));
                }
                None => control.push(Item::Raft(group, message)),
            }
        }
        let Some(peer) = self.shared.peer(to) else { return };
        // What is refused is reported through `Inbound::unreachable`.
        if !control.is_empty() {
            let _ = peer.control.queue.push(control);
        }
        if !log.is_empty() {
            let _ = peer.log.queue.push(log);
        }
    }

    /// Relays a proposal on the log lane.
    ///
    /// # Errors
    /// It was not queued, and is safe to try again. If it is queued and cannot be sent, the answer
    /// [`ProposalOutcome::NotSent`](crate::ProposalOutcome::NotSent) comes instead.
    pub fn send_proposal(&self, to: StoreId, proposal: RelayedProposal) -> Result<(), QueueFull> {
        let max = self.shared.config.limits.message_bytes_max.saturating_sub(FRAME_SLACK_BYTES);
        let bytes = proposal.data.len();
        if bytes > max {
            return Err(QueueFull { to, why: NotQueued::TooLarge { bytes, max } });
        }
        let peer = self.shared.peer(to).ok_or(QueueFull { to, why: NotQueued::UnknownStore })?;
        peer.log.queue.push([Item::Proposal(proposal)]).map_err(|why| QueueFull { to, why })
    }

    /// Answers a relayed proposal on the control lane. If the answer is lost, the proposer finds out by commit or
    /// deadline.
    pub fn send_proposal_reply(&self, to: StoreId, reply: ProposalReply) {
        if let Some(peer) = self.shared.peer(to) {
            let _ = peer.control.queue.push([Item::Reply(reply)]);
        }
    }

    /// Tells the leaders on `to` what followers on this store have admitted, on the control lane. What is lost is not reported:
    /// a later report says more.
    pub fn send_reports(&self, to: StoreId, reports: impl IntoIterator<Item = Report>) {
        if let Some(peer) = self.shared.peer(to) {
            let _ = peer.control.queue.push(reports.into_iter().map(Item::Report));
        }
    }

    /// Streams a snapshot on a connection of its own. However it ends, [`Inbound::snapshot_sent`] says so once.
    /// `message` is the `InstallSnapshot` that the receiver gets when the image is staged. One snapshot at a time
    /// goes to each store; another one is refused, and so told as not sent.
    pub fn send_snapshot(
        &self,
        to: StoreId,
        group: GroupId,
        message: Message,
        reader: Box<dyn SnapshotReader>,
    ) {
        let shared = Arc::clone(&self.shared);
        self.shared.handle.spawn(snapshot_send::run(shared, to, group, message, reader));
    }

    /// The gRPC service for the peer listener. Serve it with [`server_builder`](crate::server_builder) and
    /// [`incoming`](crate::incoming), which set what the links need.
    #[must_use]
    pub fn peer_service(&self) -> PeerService {
        PeerService::new(Arc::clone(&self.shared))
    }

    /// All lanes, outbound and inbound, ordered by store.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        let mut links: Vec<LinkStatus> = {
            let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
            peers.values().flat_map(|p| [p.control.status(), p.log.status()]).collect()
        };
        links.extend(self.shared.acceptor.statuses());
        links.sort_by_key(|l| (l.store, l.direction, l.lane));
        links
    }

    /// Bytes received and not yet processed, of all peers.
    #[must_use]
    pub fn received_bytes_waiting(&self) -> u64 {
        self.shared.budget.used()
    }

    /// Derives the probe interval of all links anew.
    pub fn set_election_timer(&self, millis: u64) {
        self.shared.election_timer.send_if_modified(|t| std::mem::replace(t, millis) != millis);
    }

    /// Changes the limits of every send queue: messages, and bytes. What is queued already stays.
    pub fn set_backlog_threshold(&self, messages: usize, bytes: usize) {
        self.shared.queue_limits.messages.store(messages.max(1), Ordering::Relaxed);
        self.shared.queue_limits.bytes.store(bytes.max(1), Ordering::Relaxed);
    }

    /// The limits of every send queue: messages, and bytes.
    #[must_use]
    pub fn backlog_threshold(&self) -> (usize, usize) {
        let limits = &self.shared.queue_limits;
        (limits.messages.load(Ordering::Relaxed), limits.bytes.load(Ordering::Relaxed))
    }

    /// Ends all tasks and streams, so that a server that serves [`Self::peer_service`] can end too. What is queued
    /// is dropped and reported. Final.
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
    }
}
