//! Requests that this store cannot answer: passed on, undecoded, to one that can.
//!
//! Every store serves every call. Where a keyspace is placed on fewer stores than there are, the others act as a proxy
//! on the level of HTTP/2, so that streams, trailers and statuses go through as they are. And what only a keyspace's
//! leader knows, how long its leases live, is asked of the leader's store in the same way.
//!
//! A name that is not known here may be of a keyspace that was created a moment ago: `lookup.rs` finds out, and the request
//! waits until this store has opened its replica or knows where there is one.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use pontoon_kv::keyspace::{DIALLED_METADATA, Directory as _, KEYSPACE_METADATA, dialled_address, with_name};
use pontoon_kv::{CertificateUser, outcome};
use pontoon_node::Node;
use pontoon_node::meta::Registry;
use pontoon_raft_core::types::StoreId;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Layer, Service};

use crate::directory::KeyspaceDirectory;
use crate::lookup::Lookups;
use crate::reach::answers;
use crate::tls::StoreDialer;
use crate::vouch::{VOUCHED, Vouchers};

/// Says how often a request was passed on.
pub(crate) const FORWARDED: &str = "pontoon-forwarded";

/// Calls that the store of the keyspace's leader answers.
const FOR_THE_LEADER: [&str; 2] =
    ["/etcdserverpb.Lease/LeaseKeepAlive", "/etcdserverpb.Lease/LeaseTimeToLive"];

/// How long a request waits for a keyspace of the registry to be open here. That takes some milliseconds, unless the disk
/// or the processors are very busy.
const OPENED_MAX: Duration = Duration::from_secs(3);

/// Passes requests on.
#[derive(Clone)]
pub(crate) struct ForwardLayer(Arc<Shared>);

struct Shared {
    node: Node,
    directory: Arc<KeyspaceDirectory>,
    registry: watch::Receiver<Arc<Registry>>,
    /// This store has met the others and opened its groups.
    takes_part: Arc<AtomicBool>,
    dialer: StoreDialer,
    vouchers: Vouchers,
    lookups: Lookups,
    /// One channel per address.
    channels: Mutex<HashMap<String, Channel>>,
}

impl ForwardLayer {
    pub(crate) fn new(
        node: Node,
        directory: Arc<KeyspaceDirectory>,
        registry: watch::Receiver<Arc<Registry>>,
        takes_part: Arc<AtomicBool>,
        dialer: StoreDialer,
    ) -> Self {
        let channels = Mutex::default();
        let lookups = Lookups::new(node.clone(), registry.clone());
        let vouchers = Vouchers::new(registry.clone());
        Self(Arc::new(Shared { node, directory, registry, takes_part, dialer, vouchers, lookups, channels }))
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;
    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, shared: Arc::clone(&self.0) }
    }
}

/// See [`ForwardLayer`].
#[derive(Clone)]
pub(crate) struct Forward<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// How a request is passed on.
struct Onward {
    /// The keyspace that is meant.
    name: String,
    channel: Channel,
    /// Vouches for who asks.
    vouchers: Vouchers,
}

/// What becomes of a request.
enum Route {
    /// This store answers it.
    Here,
    /// A store that can answer it.
    Elsewhere(Onward),
    /// Nobody does.
    Refused(Status),
    /// No keyspace of this name is known here.
    Unknown(String),
    /// It came from a store that takes this one to have the keyspace, which is not open here.
    NotYet(String),
}

fn not_executed(message: impl Into<String>) -> Status {
    outcome::mark(Status::unavailable(message), outcome::NOT_EXECUTED)
}

impl Shared {
    /// Where a request goes, by what is known here.
    fn route<B>(&self, request: &Request<B>) -> Route {
        let path = request.uri().path();
        if !["/etcdserverpb.", "/v3lockpb.", "/v3electionpb.", "/pontoon.v1.Restore/"]
            .iter()
            .any(|p| path.starts_with(p))
        {
            return Route::Here;
        }
        let for_the_leader = FOR_THE_LEADER.contains(&path);
        if !self.takes_part.load(Ordering::Acquire) {
            // Of a new store nobody may want anything yet: which keyspaces there are it has to hear from the others.
            return Route::Refused(not_executed("etcdserver: no leader"));
        }
        let route = with_name(request.headers(), request.extensions(), |name| {
            let (stores, further) = if self.directory.find(name).is_some() {
                match self.leader_elsewhere(name).filter(|_| for_the_leader) {
                    None => return Route::Here,
                    Some(leader) => (leader, false),
                }
            } else {
                match self.directory.elsewhere(name) {
                    None => return Route::Unknown(name.to_owned()),
                    Some(stores) => (stores, true),
                }
            };
            // To a store that has the keyspace, onward if it has just lost it, and from there to its leader: further only a
            // rumour could lead.
            if hops(request) > 1 + u8::from(for_the_leader) {
                return if further {
                    Route::NotYet(name.to_owned())
                } else {
                    Route::Refused(not_executed("etcdserver: leader changed"))
                };
            }
            match self.channel(name, &stores) {
                Ok(channel) => {
                    let vouchers = self.vouchers.clone();
                    Route::Elsewhere(Onward { name: name.to_owned(), channel, vouchers })
                }
                Err(status) => Route::Refused(status),
            }
        });
        // A name that cannot be read is refused by the service itself.
        route.unwrap_or(Route::Here)
    }

    /// Where a request goes of whose keyspace nothing is known here, or not that it is here: waits until it is, if there is
    /// such a keyspace.
    async fn route_late(&self, request: &Request<()>, name: &str) -> Route {
        // From here on nothing that appears is missed.
        let mut changes = self.directory.changes();
        match self.lookups.exists(name).await {
            // The service says so.
            Ok(false) => return Route::Here,
            Ok(true) => {}
            Err(status) => return Route::Refused(status),
        }
        let settled = async {
            loop {
                match self.route(request) {
                    Route::Unknown(_) | Route::NotYet(_) => {}
                    settled => return settled,
                }
                // The directory lives as long as this.
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(OPENED_MAX, settled).await.unwrap_or_else(|_| {
            Route::Refused(not_executed(format!(
                "pontoon: the keyspace {name:?} is not open on this store yet; try again, or ask another store"
            )))
        })
    }

    /// The store of the leader of a keyspace with a replica here, if it is known and another one.
    fn leader_elsewhere(&self, name: &str) -> Option<Arc<[StoreId]>> {
        let group = self.directory.find(name)?.group();
        let (_, leader) = self.node.leadership(group)?;
        leader.filter(|leader| *leader != self.node.store()).map(|leader| Arc::from([leader]))
    }

    fn channel(&self, name: &str, stores: &[StoreId]) -> Result<Channel, Status> {
        let registry = Arc::clone(&self.registry.borrow());
        // One that this store has a connection with, if there is one; and rather one that stays than one that is on its
        // way out and loses its replicas meanwhile.
        let links = self.node.transport().links();
        let down = |store: &StoreId| !links.iter().any(|l| l.store == *store && answers(l));
        let goes = |store: &StoreId| registry.stores.get(&store.0).is_none_or(|record| record.goes());
        let store = stores.iter().min_by_key(|store| (down(store), goes(store)));
        let address = store
            .and_then(|store| registry.stores.get(&store.0))
            .map(|record| record.client_address.clone())
            .filter(|address| !address.is_empty())
            .ok_or_else(|| {
                let status = Status::unavailable(format!(
                    "pontoon: no store of the keyspace {name:?} has announced its address yet"
                ));
                outcome::mark(status, outcome::NOT_EXECUTED)
            })?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&address) {
            return Ok(channel.clone());
        }
        let channel = self.dialer.channel(&address)?;
        channels.insert(address, channel.clone());
        Ok(channel)
    }
}

/// How often a request was passed on. Who writes nonsense there is not passed on.
fn hops<B>(request: &Request<B>) -> u8 {
    let Some(value) = request.headers().get(FORWARDED) else { return 0 };
    value.to_str().ok().and_then(|n| n.parse().ok()).unwrap_or(u8::MAX)
}

/// Has another store answer a request.
async fn pass_on(onward: Onward, mut request: Request<Body>) -> Response<Body> {
    let Onward { name, mut channel, vouchers } = onward;
    let dialled = dialled_address(request.headers(), request.extensions());
    if let Some(dialled) = dialled.and_then(|dialled| HeaderValue::from_str(&dialled).ok()) {
        request.headers_mut().insert(DIALLED_METADATA, dialled);
    }
    if let Ok(name) = HeaderValue::from_str(&name) {
        request.headers_mut().insert(KEYSPACE_METADATA, name);
    }
    // What the client wrote there is no store's word.
    request.headers_mut().remove(VOUCHED);
    if let Some(user) = request.extensions().get::<CertificateUser>().cloned()
        && let Some(vouched) = vouchers.vouch(&name, &user).await
    {
        request.headers_mut().insert(VOUCHED, vouched);
    }
    let hops = hops(&request).saturating_add(1);
    request.headers_mut().insert(FORWARDED, HeaderValue::from(u16::from(hops)));
    let unreachable = |error: &dyn std::fmt::Display| {
        Status::unavailable(format!("pontoon: the store of the keyspace cannot be reached: {error}"))
    };
    if let Err(error) = std::future::poll_fn(|cx| Service::poll_ready(&mut channel, cx)).await {
        return outcome::mark(unreachable(&error), outcome::NOT_EXECUTED).into_http();
    }
    match Service::call(&mut channel, request).await {
        Ok(response) => response,
        // It may have arrived before the connection broke.
        Err(error) => unreachable(&error).into_http(),
    }
}

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ForwardFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let name = match self.shared.route(&request) {
            Route::Here => return ForwardFuture::Here(Box::pin(self.inner.call(request))),
            Route::Refused(status) => {
                return ForwardFuture::Elsewhere(Box::pin(async move { Ok(status.into_http()) }));
            }
            Route::Elsewhere(onward) => {
                return ForwardFuture::Elsewhere(Box::pin(async move { Ok(pass_on(onward, request).await) }));
            }
            Route::Unknown(name) | Route::NotYet(name) => name,
        };
        // The one that is ready, not its clone, answers.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = Arc::clone(&self.shared);
        ForwardFuture::Elsewhere(Box::pin(async move {
            let (head, body) = request.into_parts();
            let head = Request::from_parts(head, ());
            let route = shared.route_late(&head, &name).await;
            let request = head.map(|()| body);
            match route {
                Route::Elsewhere(onward) => Ok(pass_on(onward, request).await),
                Route::Refused(status) => Ok(status.into_http()),
                // Unknown: the service says so.
                Route::Here | Route::Unknown(_) | Route::NotYet(_) => inner.call(request).await,
            }
        }))
    }
}

/// See [`ForwardLayer`].
pub(crate) enum ForwardFuture<F, E> {
    Here(Pin<Box<F>>),
    Elsewhere(Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>),
}

impl<F, E> Future for ForwardFuture<F, E>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Here(future) => future.as_mut().poll(cx),
            Self::Elsewhere(future) => future.as_mut().poll(cx),
        }
    }
}
