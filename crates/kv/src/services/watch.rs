//! `etcdserverpb.Watch`: streams of changes.
//!
//! Each stream has one task and one mailbox. Its watchers that have heard of everything follow the keyspace's hub
//! (`mvcc/hub.rs`), which reads what is new once for all streams; for those that are behind the stream reads `history`
//! itself, a page of whole revisions at a time, until they can follow. So a watcher that starts in the past and one that is slow
//! are the same thing; what is buffered is one mailbox, one page and a few responses, and a slow client slows nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::watch_create_request::FilterType;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::watch_server::Watch;
use pontoon_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use pontoon_proto::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lease::leaderless_max;
use super::session::{Session, Shown, needs_leader};
use super::{EtcdServices, blocking};
use crate::auth::Access;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::events::Page;
use crate::mvcc::hub::{self, Followed, Follower, Interest, Mailbox};
use crate::mvcc::records::KeyRange;
use crate::mvcc::state::Keyspace;

/// How much of the history is read at once.
const PAGE_BYTES: usize = 512 * 1024;

/// Responses that wait for the connection. Each holds a page at most, or one revision.
const RESPONSES_MAX: usize = 4;

/// A watcher that asked for fragments gets no larger response than about this.
const FRAGMENT_BYTES: usize = 1024 * 1024;

/// How often a stream whose client asked for a leader looks for one.
const LEADER_POLL: Duration = Duration::from_millis(500);

/// The watch id of answers that concern no single watcher.
const NO_WATCHER: i64 = -1;

struct Watcher {
    follower: Arc<Follower>,
    fragment: bool,
    progress_notify: bool,
    /// It got events since the last time that progress was told.
    busy: bool,
    /// For one that does not follow: the first revision that it has not been told of.
    next: i64,
    /// Its share of the page at hand.
    pending: Vec<Event>,
}

/// The client is gone, or has been told why the stream ends.
struct Gone;

struct Stream<C> {
    services: EtcdServices<C>,
    keyspace: Arc<Keyspace>,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
    mailbox: Arc<Mailbox>,
    watchers: BTreeMap<i64, Watcher>,
    /// Which watcher a delivery is for: ids may be used again, serials are not.
    serials: HashMap<u64, i64>,
    next_serial: u64,
    /// Those that do not follow.
    lagging: BTreeSet<i64>,
    next_id: i64,
    /// What the client showed when it opened the stream; looked at for each watcher.
    shown: Shown,
    /// The client asked for progress when the keyspace was at this revision, and has not been answered.
    progress_requested: Option<i64>,
    needs_leader: bool,
    leader_seen: Instant,
}

impl<C: Consensus> Stream<C> {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let mut progress = tokio::time::interval(self.services.limits().watch_progress_interval);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        progress.reset();
        let mut leader = tokio::time::interval(LEADER_POLL);
        leader.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A client may close its half and go on listening.
        let mut asks = true;
        let mut ended = self.keyspace.ended();
        loop {
            let behind = !self.lagging.is_empty();
            let (responses, mailbox) = (self.responses.clone(), Arc::clone(&self.mailbox));
            let step = tokio::select! {
                // Requests first, so that a stream which catches up can be told to stop.
                biased;
                request = requests.message(), if asks => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) => {
                        asks = false;
                        Ok(())
                    }
                    Err(_) => break,
                },
                () = responses.closed() => break,
                () = async { drop(ended.wait_for(|ended| *ended).await) } => {
                    self.end(Status::unavailable("pontoon: this store does not serve the keyspace any more; watch at another"))
                        .await
                }
                _ = leader.tick(), if self.needs_leader => self.check_leader().await,
                _ = progress.tick() => self.tell_progress().await,
                () = mailbox.news.notified() => self.hand_out().await,
                () = std::future::ready(()), if behind => self.catch_up().await,
            };
            if step.is_err() {
                break;
            }
        }
        for watcher in self.watchers.values() {
            self.keyspace.hub.leave(&watcher.follower);
        }
    }

    async fn send(&self, revision: i64, mut response: WatchResponse) -> Result<(), Gone> {
        response.header = self.services.header(&self.keyspace, revision);
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn end(&self, status: Status) -> Result<(), Gone> {
        // Whether the client still hears it makes no difference.
        let _ = self.responses.send(Err(status)).await;
        Err(Gone)
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(r)) => self.create(r).await,
            Some(RequestUnion::CancelRequest(r)) => {
                if !self.remove(r.watch_id) {
                    return Ok(());
                }
                let current = self.keyspace.revision();
                let response = WatchResponse { watch_id: r.watch_id, canceled: true, ..Default::default() };
                self.send(current, response).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_requested = Some(self.keyspace.revision());
                self.answer_progress().await
            }
            None => Ok(()),
        }
    }

    /// Takes a watcher away; `false` if there is none of this id.
    fn remove(&mut self, id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(&id) else { return false };
        self.keyspace.hub.leave(&watcher.follower);
        self.serials.remove(&watcher.follower.serial);
        self.lagging.remove(&id);
        true
    }

    async fn create(&mut self, r: WatchCreateRequest) -> Result<(), Gone> {
        let current = self.keyspace.revision();
        // The smallest key, as in etcd.
        let key = if r.key.is_empty() { Bytes::from_static(&[0]) } else { r.key };
        let refusal = if let Err(e) = self.permit(&key, &r.range_end) {
            // The words in which Go prints it.
            Some(format!("rpc error: code = {:?} desc = {}", e.code(), e.message()))
        } else if KeyRange::new(&key, &r.range_end).is_empty() {
            Some("mvcc: watcher range is empty".to_owned())
        } else if r.watch_id != 0 && self.watchers.contains_key(&r.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else {
            None
        };
        if let Some(reason) = refusal {
            let response = WatchResponse {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason,
                ..Default::default()
            };
            return self.send(current, response).await;
        }
        let watch_id = if r.watch_id != 0 {
            r.watch_id
        } else {
            while self.watchers.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        };
        let without = |filter: FilterType| r.filters.contains(&(filter as i32));
        let interest = Interest {
            key,
            range_end: r.range_end,
            puts: !without(FilterType::Noput),
            deletions: !without(FilterType::Nodelete),
            prev_kv: r.prev_kv,
        };
        let next = if r.start_revision == 0 { current + 1 } else { r.start_revision };
        let follower = self.follower(interest, next);
        let watcher = Watcher {
            follower,
            fragment: r.fragment,
            progress_notify: r.progress_notify,
            busy: false,
            next,
            pending: Vec::new(),
        };
        self.watchers.insert(watch_id, watcher);
        // The answer first: events come after it.
        self.send(current, WatchResponse { watch_id, created: true, ..Default::default() }).await?;
        self.follow(watch_id, current);
        Ok(())
    }

    /// Whether the client may read a range now.
    fn permit(&self, key: &[u8], range_end: &[u8]) -> Result<(), EtcdError> {
        let control = self.keyspace.control();
        if !control.auth.is_enabled() {
            return Ok(());
        }
        let caller = self.services.caller(&self.keyspace, &self.shown)?;
        control.auth.permit(&caller, Access::Read, key, range_end)
    }

    /// Who follows with a serial of his own.
    fn follower(&mut self, interest: Interest, from: i64) -> Arc<Follower> {
        let serial = self.next_serial;
        self.next_serial += 1;
        Arc::new(Follower { serial, interest, from, mailbox: Arc::clone(&self.mailbox) })
    }

    /// Lets a watcher follow if it has heard of all that the others have; else it lags.
    fn follow(&mut self, id: i64, current: i64) {
        let Some(watcher) = self.watchers.get(&id) else { return };
        let follower = &watcher.follower;
        match self.keyspace.hub.follow(follower, current) {
            Followed::Behind => {
                self.lagging.insert(id);
                return;
            }
            Followed::Yes => {}
            Followed::First => {
                tokio::spawn(hub::run(Arc::clone(&self.keyspace)));
            }
        }
        self.serials.insert(follower.serial, id);
        self.lagging.remove(&id);
    }

    /// Sends what the hub has put into the mailbox.
    async fn hand_out(&mut self) -> Result<(), Gone> {
        let held = self.mailbox.take();
        for delivery in held.deliveries {
            let Some(&id) = self.serials.get(&delivery.serial) else { continue };
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            watcher.busy = true;
            let fragment = watcher.fragment;
            self.send_events(id, fragment, delivery.revision, delivery.events).await?;
        }
        for (serial, next) in held.lagging {
            let Some(id) = self.serials.remove(&serial) else { continue };
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.next = next;
                self.lagging.insert(id);
            }
        }
        self.answer_progress().await
    }

    /// Hands out one page of the history to those who are behind, from the lowest of their revisions on; who has heard of
    /// everything then follows.
    async fn catch_up(&mut self) -> Result<(), Gone> {
        let lagging = || self.lagging.iter().filter_map(|id| self.watchers.get(id));
        let Some(from) = lagging().map(|w| w.next).min() else { return Ok(()) };
        let prev_kv = lagging().any(|w| w.follower.interest.prev_kv);
        let keyspace = Arc::clone(&self.keyspace);
        let page = match blocking(move || Ok(keyspace.events(from, PAGE_BYTES, prev_kv)?)).await {
            Ok(page) => page,
            Err(status) => return self.end(status).await,
        };
        self.cancel_compacted(&page).await?;
        let ids: Vec<i64> = self.lagging.iter().copied().collect();
        let mut ready = Vec::new();
        for id in &ids {
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            let interest = &watcher.follower.interest;
            let range = KeyRange::new(&interest.key, &interest.range_end);
            for event in &page.events {
                let concerns = |kv: &KeyValue| kv.mod_revision >= watcher.next && range.contains(&kv.key);
                if event.kv.as_ref().is_some_and(concerns) {
                    watcher.pending.extend(interest.share(event));
                }
            }
            // Who starts further on keeps waiting for that.
            watcher.next = watcher.next.max(page.next);
            if !watcher.pending.is_empty() {
                watcher.busy = true;
                ready.push((*id, watcher.fragment, mem::take(&mut watcher.pending)));
            }
        }
        for (id, fragment, events) in ready {
            self.send_events(id, fragment, page.next - 1, events).await?;
        }
        for id in ids {
            self.follow_again(id, page.revision);
        }
        self.answer_progress().await
    }

    /// Lets a watcher that lagged follow if there is nothing left for it to read.
    fn follow_again(&mut self, id: i64, current: i64) {
        let Some(watcher) = self.watchers.get_mut(&id).filter(|w| w.next > current) else { return };
        let (interest, next) = (watcher.follower.interest.clone(), watcher.next);
        let follower = self.follower(interest, next);
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.follower = follower;
        }
        self.follow(id, current);
    }

    async fn send_events(
        &self,
        id: i64,
        fragment: bool,
        revision: i64,
        events: Vec<Event>,
    ) -> Result<(), Gone> {
        if !fragment {
            return self.send(revision, WatchResponse { watch_id: id, events, ..Default::default() }).await;
        }
        let mut part = Vec::new();
        let mut bytes = 0;
        for event in events {
            let size = Page::bytes(&event);
            if !part.is_empty() && bytes + size > FRAGMENT_BYTES {
                let events = mem::take(&mut part);
                let response = WatchResponse { watch_id: id, fragment: true, events, ..Default::default() };
                self.send(revision, response).await?;
                bytes = 0;
            }
            bytes += size;
            part.push(event);
        }
        self.send(revision, WatchResponse { watch_id: id, events: part, ..Default::default() }).await
    }

    /// Ends the watchers whose next revision is compacted: what they would see might lack something.
    async fn cancel_compacted(&mut self, page: &Page) -> Result<(), Gone> {
        let compacted = |id: &&i64| {
            let next = self.watchers.get(id).map(|w| w.next);
            next.is_some_and(|next| next <= page.revision && next < page.compact_revision)
        };
        let ids: Vec<i64> = self.lagging.iter().filter(compacted).copied().collect();
        for watch_id in ids {
            self.remove(watch_id);
            let response = WatchResponse {
                watch_id,
                canceled: true,
                compact_revision: page.compact_revision,
                ..Default::default()
            };
            self.send(page.revision, response).await?;
        }
        Ok(())
    }

    /// The revision up to which all watchers have been told of everything, if that is at least `wanted`.
    fn settled(&self, wanted: i64) -> Option<i64> {
        if self.lagging.is_empty() { self.keyspace.hub.settled(&self.mailbox, wanted) } else { None }
    }

    /// Answers a progress request once no watcher is behind: only then is the revision true for all of them.
    async fn answer_progress(&mut self) -> Result<(), Gone> {
        if self.watchers.is_empty() {
            self.progress_requested = None;
        }
        let Some(wanted) = self.progress_requested else { return Ok(()) };
        let Some(revision) = self.settled(wanted) else { return Ok(()) };
        self.progress_requested = None;
        self.send(revision, WatchResponse { watch_id: NO_WATCHER, ..Default::default() }).await
    }

    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let idle: Vec<_> = self
            .watchers
            .iter_mut()
            .filter_map(|(id, watcher)| {
                let busy = mem::take(&mut watcher.busy);
                (watcher.progress_notify && !busy).then_some(*id)
            })
            .collect();
        let Some(revision) = self.settled(0) else { return Ok(()) };
        for watch_id in idle {
            self.send(revision, WatchResponse { watch_id, ..Default::default() }).await?;
        }
        Ok(())
    }

    async fn check_leader(&mut self) -> Result<(), Gone> {
        if !self.services.knows_no_leader(&self.keyspace) {
            self.leader_seen = Instant::now();
        } else if self.leader_seen.elapsed() >= leaderless_max(self.services.consensus().election_timeout()) {
            return self.end(Status::unavailable("etcdserver: no leader")).await;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl<C: Consensus> Watch for EtcdServices<C> {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let Session { keyspace, .. } = self.session(request.metadata(), request.extensions()).await?;
        let needs_leader = needs_leader(request.metadata());
        let shown = Shown::by(request.metadata(), request.extensions());
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let task = Stream {
            services: self.clone(),
            keyspace,
            responses,
            mailbox: Arc::default(),
            watchers: BTreeMap::new(),
            serials: HashMap::new(),
            next_serial: 0,
            lagging: BTreeSet::new(),
            next_id: 0,
            shown,
            progress_requested: None,
            needs_leader,
            leader_seen: Instant::now(),
        };
        tokio::spawn(task.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
