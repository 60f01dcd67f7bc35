//! TLS of one store: what its listeners show and demand, whom its dialers trust, and what a client's certificate lets its
//! owner do.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use pontoon_kv::keyspace::{DialledHost, keyspace_of_host, with_name};
use pontoon_kv::{CertificateUser, outcome};
use pontoon_tls::{ClientTls, ConnectionInfo, Reloader, ServerTls, TlsError};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::{Layer, Service};

use crate::config::TlsConfig;
use crate::error::UsageError;
use crate::forward::FORWARDED;
use crate::vouch::{VOUCHED, Vouchers};

/// What etcd's HTTP gateway marks requests with.
const GATEWAY: &str = "grpcgateway-accept";

/// How often new certificates are looked for.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The certificates of one store, loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    /// Of the client listeners.
    pub(crate) clients: Option<ServerTls>,
    /// For the client listeners of other stores.
    pub(crate) stores: StoreDialer,
    /// Of the peer listener.
    pub(crate) peers: Option<ServerTls>,
    /// For the peer listeners of other stores.
    pub(crate) links: Option<ClientTls>,
}

impl Tls {
    /// Reads all files.
    ///
    /// # Errors
    /// One of them cannot be used; it is named.
    pub(crate) fn load(config: &TlsConfig) -> Result<Self, UsageError> {
        let unusable = |error: TlsError| {
            UsageError::new(format!("TLS: {}", crate::error::one_line(&anyhow::Error::new(error))))
        };
        let mut tls = Self::default();
        if let Some(side) = &config.clients {
            let authority = config.client_auth.then(|| side.authority.clone());
            tls.clients = Some(ServerTls::load(side.certificate.clone(), authority).map_err(unusable)?);
            let dialer = ClientTls::load(side.authority.clone(), Some(side.certificate.clone()));
            tls.stores = StoreDialer(Some(dialer.map_err(unusable)?));
        }
        if let Some(side) = &config.peers {
            let (own, authority) = (&side.certificate, &side.authority);
            tls.peers = Some(ServerTls::load(own.clone(), Some(authority.clone())).map_err(unusable)?);
            tls.links = Some(ClientTls::load(authority.clone(), Some(own.clone())).map_err(unusable)?);
        }
        Ok(tls)
    }

    /// Takes over new certificates, for ever.
    pub(crate) async fn watch(self) {
        let servers = self.clients.iter().chain(&self.peers).map(ServerTls::reloader);
        let dialers = self.stores.0.iter().chain(&self.links).map(ClientTls::reloader);
        let reloaders: Vec<Reloader> = servers.chain(dialers).collect();
        pontoon_tls::watch(reloaders, RELOAD_INTERVAL).await;
    }
}

/// Connects to the client listeners of other stores, which are as this store's own: with TLS or all without.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreDialer(Option<ClientTls>);

impl StoreDialer {
    /// A channel to an address that a store has announced; it connects when it is used, and again when it has to.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::internal(format!("the address {address}: {error}")))?
            .connect_timeout(Duration::from_secs(2));
        Ok(endpoint.connect_with_connector_lazy(pontoon_tls::connector(self.0.clone())))
    }
}

/// Holds requests to what the connection's certificate and handshake say: a certificate that is bound to keyspaces serves
/// for these alone, and a handshake for one tenant does not carry requests for another. And it notes whom the certificate
/// stands for, where users are asked for.
#[derive(Clone, Debug)]
pub(crate) struct CertificateLayer(pub(crate) Vouchers);

impl<S> Layer<S> for CertificateLayer {
    type Service = Certified<S>;
    fn layer(&self, inner: S) -> Certified<S> {
        Certified { inner, vouchers: self.0.clone() }
    }
}

/// See [`CertificateLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Certified<S> {
    inner: S,
    vouchers: Vouchers,
}

/// # Errors
/// The request is for something else than the connection was made for.
fn check<B>(request: &Request<B>) -> Result<(), Status> {
    let Some(connection) = request.extensions().get::<ConnectionInfo>() else { return Ok(()) };
    let host = request.extensions().get::<DialledHost>().map(|DialledHost(host)| host.host());
    if let (Some(asked), Some(host)) = (connection.server_name.as_deref(), host) {
        // Only what names a tenant counts: proxies and balancers may dial by other names of the same machine.
        let (shown, meant) = (keyspace_of_host(asked), keyspace_of_host(host));
        let differ = shown.zip(meant).is_some_and(|(shown, meant)| !shown.eq_ignore_ascii_case(meant));
        if differ {
            return Err(Status::permission_denied(format!(
                "pontoon: the TLS handshake was for the host {asked:?} and the request is for {host:?}: they name different \
                 keyspaces; connect to {host:?} for it"
            )));
        }
    }
    let Some(certificate) = connection.certificate.as_deref().filter(|c| !c.keyspaces.is_empty()) else {
        return Ok(());
    };
    let path = request.uri().path();
    if path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.") {
        return Ok(());
    }
    let refused = |what: String| {
        let names: Vec<_> = certificate.keyspaces.iter().map(String::as_str).collect();
        Err(Status::permission_denied(format!(
            "pontoon: the client certificate is bound to the keyspaces {}, and {what}; use another certificate",
            names.join(", ")
        )))
    };
    if path.starts_with("/pontoon.") {
        return refused("the admin API is for all of them".to_owned());
    }
    with_name(request.headers(), request.extensions(), |name| {
        if certificate.may_use(name) { Ok(()) } else { refused(format!("the request is for {name:?}")) }
    })?
}

/// Whom the connection's certificate stands for: the common name, except of what passes on the requests of others. etcd
/// knows its HTTP gateway by the same header; other stores say so themselves, and for whom they do it.
fn user<B>(request: &Request<B>, vouchers: &Vouchers) -> Option<CertificateUser> {
    let headers = request.headers();
    if headers.contains_key(FORWARDED) {
        return vouchers.vouched(headers, request.extensions());
    }
    let connection = request.extensions().get::<ConnectionInfo>()?;
    let name = connection.certificate.as_deref()?.common_name.as_ref()?;
    (!headers.contains_key(GATEWAY) && !name.is_empty()).then(|| CertificateUser(Arc::clone(name)))
}

impl<S, Q, B> Service<Request<Q>> for Certified<S>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    Q: Send + 'static,
    B: Default + Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CertifiedFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        if let Err(status) = check(&request) {
            return CertifiedFuture::Refused(Some(outcome::mark(status, outcome::NOT_EXECUTED)));
        }
        if request.headers().contains_key(VOUCHED) && self.vouchers.may_hear_more() {
            // The one that is ready, not its clone, answers.
            let clone = self.inner.clone();
            let mut inner = std::mem::replace(&mut self.inner, clone);
            let vouchers = self.vouchers.clone();
            return CertifiedFuture::Taken(Box::pin(async move {
                vouchers.clone().secret_known().await;
                note_user(&mut request, &vouchers);
                inner.call(request).await
            }));
        }
        note_user(&mut request, &self.vouchers);
        CertifiedFuture::Taken(Box::pin(self.inner.call(request)))
    }
}

/// Notes in a request's extensions who asks.
fn note_user<B>(request: &mut Request<B>, vouchers: &Vouchers) {
    if let Some(user) = user(request, vouchers) {
        request.extensions_mut().insert(user);
    }
}

/// See [`CertificateLayer`].
pub(crate) enum CertifiedFuture<R, E> {
    Taken(Pin<Box<dyn Future<Output = Result<R, E>> + Send>>),
    Refused(Option<Status>),
}

impl<B: Default, E> Future for CertifiedFuture<Response<B>, E> {
    type Output = Result<Response<B>, E>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Taken(future) => future.as_mut().poll(cx),
            Self::Refused(status) => {
                let status = status.take().unwrap_or_else(|| Status::internal("polled after its end"));
                Poll::Ready(Ok(status.into_http()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pontoon_kv::keyspace::{BoundKeyspace, KEYSPACE_METADATA};
    use pontoon_tls::PeerCertificate;

    use super::*;

    fn request(path: &str, server_name: Option<&str>, host: Option<&str>, keyspaces: &[&str]) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = path.parse().expect("a path");
        let keyspaces: BTreeSet<_> = keyspaces.iter().map(|&k| k.to_owned()).collect();
        request.extensions_mut().insert(ConnectionInfo {
            encrypted: true,
            server_name: server_name.map(Arc::from),
            certificate: Some(Arc::new(PeerCertificate { common_name: None, keyspaces })),
            ..ConnectionInfo::default()
        });
        if let Some(host) = host {
            request.extensions_mut().insert(DialledHost(host.parse().expect("an authority")));
        }
        request
    }

    const RANGE: &str = "/etcdserverpb.KV/Range";

    #[test]
    fn a_bound_certificate_serves_for_its_keyspaces_alone() {
        let of = |host| check(&request(RANGE, None, Some(host), &["tenant-a", "tenant-b"]));
        assert!(of("tenant-a.db.example:2379").is_ok() && of("TENANT-B.db.example:2379").is_ok());
        for other in ["tenant-c.db.example:2379", "127.0.0.1:2379", "localhost:2379"] {
            let error = of(other).expect_err(other);
            assert_eq!(error.code(), tonic::Code::PermissionDenied);
            assert!(error.message().contains("tenant-a, tenant-b"), "{}", error.message());
        }
        let mut by_metadata = request(RANGE, None, Some("tenant-a.db.example"), &["tenant-a"]);
        by_metadata.headers_mut().insert(KEYSPACE_METADATA, "tenant-c".parse().expect("a value"));
        assert!(check(&by_metadata).is_err(), "the metadata says what is meant");
        let mut by_listener = request(RANGE, None, None, &["tenant-a"]);
        by_listener.extensions_mut().insert(BoundKeyspace("tenant-a".into()));
        assert!(check(&by_listener).is_ok());
        let admin = request("/pontoon.v1.Admin/ListStores", None, Some("tenant-a.db.example"), &["tenant-a"]);
        assert!(check(&admin).expect_err("the admin API").message().contains("admin API"));
        assert!(check(&request("/grpc.health.v1.Health/Check", None, None, &["tenant-a"])).is_ok());
        assert!(
            check(&request(RANGE, None, Some("tenant-c.db.example"), &[])).is_ok(),
            "bound to none: to all"
        );
    }

    #[test]
    fn whom_a_certificate_stands_for() {
        let vouchers = Vouchers::new(tokio::sync::watch::channel(Arc::default()).1);
        let of = |name: Option<&str>, header: Option<&'static str>| {
            let mut request = Request::new(());
            request.extensions_mut().insert(ConnectionInfo {
                encrypted: true,
                certificate: Some(Arc::new(PeerCertificate {
                    common_name: name.map(Arc::from),
                    keyspaces: BTreeSet::new(),
                })),
                ..ConnectionInfo::default()
            });
            if let Some(header) = header {
                request.headers_mut().insert(header, "1".parse().expect("a value"));
            }
            user(&request, &vouchers)
        };
        assert_eq!(of(Some("alice"), None), Some(CertificateUser("alice".into())));
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(""), None), None);
        assert_eq!(of(Some("gateway"), Some(GATEWAY)), None);
        assert_eq!(of(Some("store"), Some(FORWARDED)), None);
        assert_eq!(user(&Request::new(()), &vouchers), None, "no TLS, no certificate");
    }

    #[test]
    fn a_handshake_for_one_tenant_carries_no_requests_for_another() {
        let of = |server_name, host| check(&request(RANGE, Some(server_name), Some(host), &[]));
        assert!(of("tenant-a.db.example", "tenant-a.db.example:2379").is_ok());
        assert!(of("tenant-a.db.example", "Tenant-A.elsewhere:1").is_ok(), "only the tenant's label counts");
        assert!(of("tenant-a.db.example", "127.0.0.1:2379").is_ok(), "an address names nobody");
        assert!(of("localhost", "tenant-a.db.example:2379").is_ok());
        let error = of("tenant-a.db.example", "tenant-b.db.example:2379").expect_err("another tenant");
        assert!(error.message().contains("tenant-b.db.example"), "{}", error.message());
    }
}
