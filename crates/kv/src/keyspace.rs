//! Which keyspace a request means.
//!
//! In this order:
//! 1. the gRPC metadata `pontoon-keyspace`;
//! 2. the keyspace that the listener is bound to ([`BoundKeyspace`] in the request's extensions);
//! 3. the leftmost label of the host that the client dialled (`tenant-a` of `tenant-a.db.example:2379`), if the host is
//!    a DNS name of at least two labels;
//! 4. else (an address, `localhost`, a single label, nothing readable): [`DEFAULT_KEYSPACE`].
//!
//! A single label names no keyspace because machines are often dialled by their short names. Fully qualified names of
//! machines do name one: listeners for clients that dial those are to be bound.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use http::uri::Authority;
use http::{Extensions, HeaderMap, Request, header};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::mvcc::state::Keyspace;

/// What clients get that name none.
pub const DEFAULT_KEYSPACE: &str = "default";

/// The gRPC metadata key that names a keyspace.
pub const KEYSPACE_METADATA: &str = "pontoon-keyspace";

/// In a request's extensions: the listener that it came by serves only this keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundKeyspace(pub Arc<str>);

/// In a request's extensions: the host that the client dialled; see [`AuthorityLayer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialledHost(pub Authority);

/// The keyspaces that this store serves.
pub trait Directory: Send + Sync + 'static {
    /// The keyspace of that name.
    fn find(&self, name: &str) -> Option<Arc<Keyspace>>;
}

/// A directory in memory.
#[derive(Debug, Default)]
pub struct MemoryDirectory(RwLock<BTreeMap<String, Arc<Keyspace>>>);

impl MemoryDirectory {
    /// Adds or replaces a keyspace.
    pub fn insert(&self, name: impl Into<String>, keyspace: Arc<Keyspace>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), keyspace);
    }

    /// Takes a keyspace away.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl Directory for MemoryDirectory {
    fn find(&self, name: &str) -> Option<Arc<Keyspace>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// The keyspace that a dialled host names, if it names one.
#[must_use]
pub fn keyspace_of_host(host: &str) -> Option<&str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.parse::<IpAddr>().is_ok() || host.starts_with('[') {
        return None;
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let (first, rest) = host.split_once('.')?;
    (label(first) && rest.split('.').all(label)).then_some(first)
}

/// Calls `found` with the name of the keyspace that a request means.
///
/// # Errors
/// The metadata is not ASCII text.
pub fn with_name<T>(
    headers: &HeaderMap,
    extensions: &Extensions,
    found: impl FnOnce(&str) -> T,
) -> Result<T, Status> {
    if let Some(value) = headers.get(KEYSPACE_METADATA) {
        let name = value.to_str().map_err(|_| {
            Status::new(Code::InvalidArgument, "pontoon: the metadata pontoon-keyspace is not ASCII text")
        })?;
        return Ok(found(name));
    }
    if let Some(BoundKeyspace(name)) = extensions.get() {
        return Ok(found(name));
    }
    let host = extensions.get::<DialledHost>().and_then(|DialledHost(a)| keyspace_of_host(a.host()));
    match host {
        // Hosts are compared without regard to case; names of keyspaces are in small letters.
        Some(name) if name.bytes().any(|b| b.is_ascii_uppercase()) => Ok(found(&name.to_ascii_lowercase())),
        Some(name) => Ok(found(name)),
        None => Ok(found(DEFAULT_KEYSPACE)),
    }
}

/// The metadata by which a store that passes a request on says which address its client used; see [`dialled_address`].
pub const DIALLED_METADATA: &str = "pontoon-dialled";

/// The address that the members' addresses must have for the client to find the same keyspace there: a host, if that is
/// what names the keyspace; a host and a port, if a bound listener does. `None` if any address will do.
///
/// Clients that follow the member list would else find themselves in [`DEFAULT_KEYSPACE`].
#[must_use]
pub fn dialled_address(headers: &HeaderMap, extensions: &Extensions) -> Option<String> {
    if let Some(passed_on) = headers.get(DIALLED_METADATA) {
        let passed_on: Authority = passed_on.to_str().ok()?.parse().ok()?;
        return Some(passed_on.as_str().to_owned());
    }
    if headers.contains_key(KEYSPACE_METADATA) {
        return None;
    }
    let DialledHost(authority) = extensions.get()?;
    if extensions.get::<BoundKeyspace>().is_some() {
        return Some(authority.as_str().to_owned());
    }
    keyspace_of_host(authority.host()).map(|_| authority.host().to_owned())
}

/// An advertised URL as a client has to dial it that used this address.
#[must_use]
pub(crate) fn url_for_client(url: String, dialled: Option<&str>) -> String {
    let Some(dialled) = dialled else { return url };
    let Some((scheme, advertised)) = url.split_once("://") else { return url };
    let has_port = dialled.parse().is_ok_and(|dialled: Authority| dialled.port().is_some());
    match advertised.parse::<Authority>().ok().and_then(|advertised| advertised.port_u16()) {
        Some(port) if !has_port => format!("{scheme}://{dialled}:{port}"),
        _ => format!("{scheme}://{dialled}"),
    }
}

/// What a client hears that named a keyspace which is not there.
pub(crate) fn unknown(name: &str) -> Status {
    Status::not_found(format!(
        "pontoon: there is no keyspace {name:?}; name one by the first label of the host you dial \
         (tenant.db.example:2379), by the gRPC metadata pontoon-keyspace, or by a listener bound to it; \
         an IP address or localhost means {DEFAULT_KEYSPACE:?}"
    ))
}

/// A tower layer that notes the dialled host in each request's extensions, where gRPC handlers can see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthorityLayer;

impl<S> Layer<S> for AuthorityLayer {
    type Service = AuthorityService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthorityService(inner)
    }
}

/// The service of [`AuthorityLayer`].
#[derive(Clone)]
pub struct AuthorityService<S>(S);

impl<S> fmt::Debug for AuthorityService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthorityService").finish_non_exhaustive()
    }
}

fn host_header(headers: &HeaderMap) -> Option<Authority> {
    headers.get(header::HOST)?.to_str().ok()?.parse().ok()
}

impl<S, B> Service<Request<B>> for AuthorityService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let host = request.uri().authority().cloned().or_else(|| host_header(request.headers()));
        if let Some(host) = host {
            request.extensions_mut().insert(DialledHost(host));
        }
        self.0.call(request)
    }
}

/// A tower layer that binds every request of a listener to one keyspace.
#[derive(Clone, Debug)]
pub struct BoundKeyspaceLayer(pub BoundKeyspace);

impl<S> Layer<S> for BoundKeyspaceLayer {
    type Service = BoundKeyspaceService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BoundKeyspaceService { inner, bound: self.0.clone() }
    }
}

/// The service of [`BoundKeyspaceLayer`].
#[derive(Clone)]
pub struct BoundKeyspaceService<S> {
    inner: S,
    bound: BoundKeyspace,
}

impl<S> fmt::Debug for BoundKeyspaceService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundKeyspaceService").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl<S, B> Service<Request<B>> for BoundKeyspaceService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.bound.clone());
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_name_a_keyspace() {
        assert_eq!(keyspace_of_host("tenant-a.db.example"), Some("tenant-a"));
        assert_eq!(keyspace_of_host("tenant_a.localhost"), Some("tenant_a"));
        assert_eq!(keyspace_of_host("a.b."), Some("a"));
        for none in
            ["localhost", "db", "127.0.0.1", "[::1]", "::1", "", ".", "#initially=[127.0.0.1:1]", "a..b"]
        {
            assert_eq!(keyspace_of_host(none), None, "{none}");
        }
    }

    #[test]
    fn members_have_addresses_by_which_the_keyspace_is_found() {
        let mut metadata = HeaderMap::new();
        let mut extensions = Extensions::new();
        let url = |m: &HeaderMap, e: &Extensions| {
            url_for_client("https://10.0.0.7:2379".to_owned(), dialled_address(m, e).as_deref())
        };
        assert_eq!(url(&metadata, &extensions), "https://10.0.0.7:2379");
        for no_name in ["127.0.0.1:22379", "localhost:22379", "[::1]:2379"] {
            extensions.insert(DialledHost(no_name.parse().unwrap()));
            assert_eq!(url(&metadata, &extensions), "https://10.0.0.7:2379", "{no_name}");
        }
        extensions.insert(DialledHost("tenant.db.example:443".parse().unwrap()));
        assert_eq!(url(&metadata, &extensions), "https://tenant.db.example:2379");
        // A bound listener is known by its port, and other stores' ports are not known.
        extensions.insert(BoundKeyspace("bound".into()));
        assert_eq!(url(&metadata, &extensions), "https://tenant.db.example:443");
        // Who names the keyspace himself finds it anywhere.
        metadata.insert(KEYSPACE_METADATA, "named".parse().unwrap());
        assert_eq!(url(&metadata, &extensions), "https://10.0.0.7:2379");
        // Unless it was a store that named it, when it passed the request on.
        metadata.insert(DIALLED_METADATA, "tenant.db.example".parse().unwrap());
        assert_eq!(url(&metadata, &extensions), "https://tenant.db.example:2379");
        metadata.insert(DIALLED_METADATA, "no address".parse().unwrap());
        assert_eq!(url(&metadata, &extensions), "https://10.0.0.7:2379");
    }

    #[test]
    fn metadata_comes_before_the_listener_and_the_listener_before_the_host() {
        let mut metadata = HeaderMap::new();
        let mut extensions = Extensions::new();
        let name = |m: &HeaderMap, e: &Extensions| with_name(m, e, str::to_owned).unwrap();
        assert_eq!(name(&metadata, &extensions), "default");
        extensions.insert(DialledHost("Tenant.db.example:2379".parse().unwrap()));
        assert_eq!(name(&metadata, &extensions), "tenant");
        extensions.insert(BoundKeyspace("bound".into()));
        assert_eq!(name(&metadata, &extensions), "bound");
        metadata.insert(KEYSPACE_METADATA, "named".parse().unwrap());
        assert_eq!(name(&metadata, &extensions), "named");
    }
}
