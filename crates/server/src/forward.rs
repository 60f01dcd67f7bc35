//! Requests that this store cannot answer: passed on, undecoded, to one that can.
//!
//! Every store serves every call. Where a keyspace is placed on fewer stores than there are, the others act as a proxy
//! on the level of HTTP/2, so that streams, trailers and statuses go through as they are. And what only a keyspace's
//! leader knows, how long its leases live, is asked of the leader's store in the same way.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response};
use pontoon_kv::keyspace::{Directory as _, KEYSPACE_METADATA, with_name};
use pontoon_kv::outcome;
use pontoon_node::Node;
use pontoon_node::meta::Registry;
use pontoon_raft_core::types::StoreId;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Layer, Service};

use crate::directory::KeyspaceDirectory;
use crate::tls::StoreDialer;

/// Says how often a request was passed on.
const FORWARDED: &str = "pontoon-forwarded";

/// Calls that the store of the keyspace's leader answers.
const FOR_THE_LEADER: [&str; 2] =
    ["/etcdserverpb.Lease/LeaseKeepAlive", "/etcdserverpb.Lease/LeaseTimeToLive"];

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
        Self(Arc::new(Shared { node, directory, registry, takes_part, dialer, channels }))
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

impl Shared {
    /// A channel to a store that can answer the request, if this one cannot.
    fn elsewhere(&self, request: &Request<Body>) -> Option<Result<(String, Channel), Status>> {
        let path = request.uri().path();
        if !["/etcdserverpb.", "/v3lockpb.", "/v3electionpb.", "/pontoon.v1.Restore/"]
            .iter()
            .any(|p| path.starts_with(p))
        {
            return None;
        }
        let for_the_leader = FOR_THE_LEADER.contains(&path);
        if !self.takes_part.load(Ordering::Acquire) {
            // Of a new store nobody may want anything yet: which keyspaces there are it has to hear from the others.
            return Some(Err(outcome::mark(
                Status::unavailable("etcdserver: no leader"),
                outcome::NOT_EXECUTED,
            )));
        }
        // A name that cannot be read is refused by the service itself.
        let (name, stores) = with_name(request.headers(), request.extensions(), |name| {
            let leader = || self.leader_elsewhere(name).filter(|_| for_the_leader);
            let stores = self.directory.elsewhere(name).or_else(leader)?;
            Some((name.to_owned(), stores))
        })
        .ok()??;
        // To a store that has the keyspace, and from there to its leader: further only a rumour could lead.
        let hops = hops(request);
        if hops > u8::from(for_the_leader) {
            let status = Status::unavailable("etcdserver: leader changed");
            return Some(Err(outcome::mark(status, outcome::NOT_EXECUTED)));
        }
        Some(self.channel(&name, &stores).map(|channel| (name, channel)))
    }

    /// The store of the leader of a keyspace with a replica here, if it is known and another one.
    fn leader_elsewhere(&self, name: &str) -> Option<Arc<[StoreId]>> {
        let group = self.directory.find(name)?.group();
        let (_, leader) = self.node.leadership(group)?;
        leader.filter(|leader| *leader != self.node.store()).map(|leader| Arc::from([leader]))
    }

    fn channel(&self, name: &str, stores: &[StoreId]) -> Result<Channel, Status> {
        let registry = Arc::clone(&self.registry.borrow());
        // One that this store has a connection with, if there is one.
        let links = self.node.transport().links();
        let up = |store: &&StoreId| links.iter().any(|l| l.store == **store && l.connected);
        let store = stores.iter().find(up).or_else(|| stores.first());
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
fn hops(request: &Request<Body>) -> u8 {
    let Some(value) = request.headers().get(FORWARDED) else { return 0 };
    value.to_str().ok().and_then(|n| n.parse().ok()).unwrap_or(u8::MAX)
}

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ForwardFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (name, mut channel) = match self.shared.elsewhere(&request) {
            None => return ForwardFuture::Here(Box::pin(self.inner.call(request))),
            Some(Err(status)) => {
                return ForwardFuture::Elsewhere(Box::pin(async move { Ok(status.into_http()) }));
            }
            Some(Ok(found)) => found,
        };
        let name = HeaderValue::from_str(&name);
        ForwardFuture::Elsewhere(Box::pin(async move {
            if let Ok(name) = name {
                request.headers_mut().insert(KEYSPACE_METADATA, name);
            }
            let hops = hops(&request).saturating_add(1);
            request.headers_mut().insert(FORWARDED, HeaderValue::from(u16::from(hops)));
            let unreachable = |error: &dyn std::fmt::Display| {
                Status::unavailable(format!("pontoon: the store of the keyspace cannot be reached: {error}"))
            };
            if let Err(error) = std::future::poll_fn(|cx| Service::poll_ready(&mut channel, cx)).await {
                return Ok(outcome::mark(unreachable(&error), outcome::NOT_EXECUTED).into_http());
            }
            match Service::call(&mut channel, request).await {
                Ok(response) => Ok(response),
                // It may have arrived before the connection broke.
                Err(error) => Ok(unreachable(&error).into_http()),
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
