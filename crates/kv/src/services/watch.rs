//! `etcdserverpb.Watch`: streams of changes.
//!
//! Each stream has one task. Its watchers have a cursor each, the next revision they have not been told of; when the
//! keyspace's revision moves, the task reads `history` from the lowest cursor on, a page of whole revisions at a time,
//! and hands the events out. So a watcher that starts in the past, one that is slow and one that follows closely are
//! the same thing; nothing is buffered but one page and a few responses, and a slow client slows nobody else.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::watch_create_request::FilterType;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::watch_server::Watch;
use pontoon_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use pontoon_proto::mvccpb::Event;
use pontoon_proto::mvccpb::event::EventType;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{EtcdServices, blocking};
use crate::consensus::Consensus;
use crate::mvcc::events::Page;
use crate::mvcc::records::KeyRange;
use crate::mvcc::state::Keyspace;

/// How much of the history is read at once.
const PAGE_BYTES: usize = 512 * 1024;

/// Responses that wait for the connection. Each holds a page at most, or one revision.
const RESPONSES_MAX: usize = 4;

/// A watcher that asked for fragments gets no larger response than about this.
const FRAGMENT_BYTES: usize = 1024 * 1024;

/// How often a watcher that asked for it hears that nothing happened.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A client that sent the metadata `hasleader` is cut off after this long without one.
const LEADERLESS_MAX: Duration = Duration::from_secs(3);
const LEADER_POLL: Duration = Duration::from_millis(500);

/// The watch id of answers that concern no single watcher.
const NO_WATCHER: i64 = -1;

struct Watcher {
    key: Bytes,
    range_end: Bytes,
    /// The first revision that this watcher has not been told of.
    next: i64,
    puts: bool,
    deletions: bool,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// It got events since the last time that progress was told.
    busy: bool,
    /// Its share of the page at hand.
    pending: Vec<Event>,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let deletion = event.r#type == EventType::Delete as i32;
        let kv = event.kv.as_ref();
        kv.is_some_and(|kv| {
            kv.mod_revision >= self.next && KeyRange::new(&self.key, &self.range_end).contains(&kv.key)
        }) && if deletion { self.deletions } else { self.puts }
    }
}

/// The client is gone, or has been told why the stream ends.
struct Gone;

struct Stream<C> {
    services: EtcdServices<C>,
    keyspace: Arc<Keyspace>,
    revision: watch::Receiver<i64>,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// The client asked for progress and has not been answered.
    progress_requested: bool,
    needs_leader: bool,
    leader_seen: Instant,
}

impl<C: Consensus> Stream<C> {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        progress.reset();
        let mut leader = tokio::time::interval(LEADER_POLL);
        leader.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A client may close its half and go on listening.
        let mut asks = true;
        loop {
            let behind = self.is_behind();
            let responses = self.responses.clone();
            let step = tokio::select! {
                // Requests first, so that a stream which catches up can be told to stop.
                biased;
                request = requests.message(), if asks => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) => {
                        asks = false;
                        Ok(())
                    }
                    Err(_) => return,
                },
                () = responses.closed() => return,
                _ = leader.tick(), if self.needs_leader => self.check_leader().await,
                _ = progress.tick() => self.tell_progress().await,
                changed = self.revision.changed(), if !behind => match changed {
                    Ok(()) => Ok(()),
                    Err(_) => return,
                },
                () = std::future::ready(()), if behind => self.deliver().await,
            };
            if step.is_err() {
                return;
            }
        }
    }

    fn current(&mut self) -> i64 {
        *self.revision.borrow_and_update()
    }

    fn is_behind(&mut self) -> bool {
        let current = self.current();
        self.watchers.values().any(|w| w.next <= current)
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
                if self.watchers.remove(&r.watch_id).is_none() {
                    return Ok(());
                }
                let current = self.current();
                let response = WatchResponse { watch_id: r.watch_id, canceled: true, ..Default::default() };
                self.send(current, response).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_requested = true;
                self.answer_progress().await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, r: WatchCreateRequest) -> Result<(), Gone> {
        let current = self.current();
        // The smallest key, as in etcd.
        let key = if r.key.is_empty() { Bytes::from_static(&[0]) } else { r.key };
        let refusal = if KeyRange::new(&key, &r.range_end).is_empty() {
            Some("mvcc: watcher range is empty")
        } else if r.watch_id != 0 && self.watchers.contains_key(&r.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = refusal {
            let response = WatchResponse {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason.to_owned(),
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
        let watcher = Watcher {
            key,
            range_end: r.range_end,
            next: if r.start_revision == 0 { current + 1 } else { r.start_revision },
            puts: !without(FilterType::Noput),
            deletions: !without(FilterType::Nodelete),
            prev_kv: r.prev_kv,
            fragment: r.fragment,
            progress_notify: r.progress_notify,
            busy: false,
            pending: Vec::new(),
        };
        self.watchers.insert(watch_id, watcher);
        self.send(current, WatchResponse { watch_id, created: true, ..Default::default() }).await
    }

    /// Hands out one page from the lowest cursor on.
    async fn deliver(&mut self) -> Result<(), Gone> {
        let current = self.current();
        let lagging = || self.watchers.values().filter(|w| w.next <= current);
        let Some(from) = lagging().map(|w| w.next).min() else { return Ok(()) };
        let prev_kv = lagging().any(|w| w.prev_kv);
        let keyspace = Arc::clone(&self.keyspace);
        let page = match blocking(move || Ok(keyspace.events(from, PAGE_BYTES, prev_kv)?)).await {
            Ok(page) => page,
            Err(status) => return self.end(status).await,
        };
        self.cancel_compacted(&page).await?;
        for event in page.events {
            for watcher in self.watchers.values_mut().filter(|w| w.wants(&event)) {
                let mut event = event.clone();
                if !watcher.prev_kv {
                    event.prev_kv = None;
                }
                watcher.pending.push(event);
            }
        }
        let mut ready = Vec::new();
        for (id, watcher) in &mut self.watchers {
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
        self.answer_progress().await
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
        let compacted = |w: &Watcher| w.next <= page.revision && w.next < page.compact_revision;
        let ids: Vec<i64> = self.watchers.iter().filter(|(_, w)| compacted(w)).map(|(id, _)| *id).collect();
        for watch_id in ids {
            self.watchers.remove(&watch_id);
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

    /// Answers a progress request once no watcher is behind: only then is the revision true for all of them.
    async fn answer_progress(&mut self) -> Result<(), Gone> {
        if !self.progress_requested || self.is_behind() {
            return Ok(());
        }
        self.progress_requested = false;
        if self.watchers.is_empty() {
            return Ok(());
        }
        // No watcher is behind the revision that was just looked at; a newer one may be there by now.
        let revision = self.watchers.values().map(|w| w.next - 1).min().unwrap_or_default();
        let revision = revision.min(self.current());
        self.send(revision, WatchResponse { watch_id: NO_WATCHER, ..Default::default() }).await
    }

    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let current = self.current();
        let mut idle = Vec::new();
        for (id, watcher) in &mut self.watchers {
            let busy = mem::take(&mut watcher.busy);
            if watcher.progress_notify && !busy && watcher.next > current {
                idle.push(*id);
            }
        }
        for watch_id in idle {
            self.send(current, WatchResponse { watch_id, ..Default::default() }).await?;
        }
        Ok(())
    }

    async fn check_leader(&mut self) -> Result<(), Gone> {
        let status = self.services.consensus().status(self.keyspace.group());
        if status.is_some_and(|s| s.leader.is_some()) {
            self.leader_seen = Instant::now();
        } else if self.leader_seen.elapsed() >= LEADERLESS_MAX {
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
        let keyspace = self.keyspace(&request)?;
        let needs_leader = request.metadata().get("hasleader").is_some_and(|v| v == "true");
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let task = Stream {
            services: self.clone(),
            revision: keyspace.subscribe(),
            keyspace,
            responses,
            watchers: BTreeMap::new(),
            next_id: 0,
            progress_requested: false,
            needs_leader,
            leader_seen: Instant::now(),
        };
        tokio::spawn(task.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
