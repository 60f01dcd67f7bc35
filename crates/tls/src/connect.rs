//! Dialling, with TLS or without.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tower::Service;

use crate::accept::HANDSHAKE_MAX;
use crate::files::{Certificate, TlsError, authorities, provider};
use crate::reload::Reloader;

/// A dialer's side: whom it trusts, and what it shows. Cheap to clone; all clones change together.
#[derive(Clone, Debug)]
pub struct ClientTls(Arc<Client>);

#[derive(Debug)]
struct Client {
    authority: PathBuf,
    certificate: Option<Certificate>,
    now: ArcSwap<ClientConfig>,
}

impl ClientTls {
    /// Reads the files. Servers must have a certificate of `authority` for the host that is dialled; `certificate` is shown
    /// to those who ask for one.
    ///
    /// # Errors
    /// A file cannot be read or used; it is named.
    pub fn load(authority: PathBuf, certificate: Option<Certificate>) -> Result<Self, TlsError> {
        let now = client_config(&authority, certificate.as_ref())?;
        Ok(Self(Arc::new(Client { authority, certificate, now: ArcSwap::from(now) })))
    }

    /// For [`watch`](crate::watch).
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        let client = Arc::clone(&self.0);
        let certificate = client.certificate.iter().flat_map(|c| [&c.chain, &c.key]);
        let files = std::iter::once(&client.authority).chain(certificate).cloned().collect();
        Reloader::new(files, move || {
            client.now.store(client_config(&client.authority, client.certificate.as_ref())?);
            Ok(())
        })
    }

    /// Makes a stream a TLS stream to `host`, which the server's certificate must name.
    ///
    /// # Errors
    /// The server is not trusted, does not trust this side, or does not speak TLS.
    pub async fn connect<S>(
        &self,
        host: &str,
        stream: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| ConnectError::Name { host: host.to_owned() })?;
        let connector = TlsConnector::from(self.0.now.load_full());
        match tokio::time::timeout(HANDSHAKE_MAX, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Handshake { host: host.to_owned(), source }),
            Err(_) => Err(ConnectError::Handshake {
                host: host.to_owned(),
                source: io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"),
            }),
        }
    }
}

/// A TLS connection did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It cannot be in a certificate.
    #[error("{host:?} is neither a host name nor an IP address")]
    Name {
        /// The host.
        host: String,
    },
    /// One side refused the other.
    #[error("no TLS connection with {host}: {source}")]
    Handshake {
        /// The host.
        host: String,
        /// Who refused, and why.
        source: io::Error,
    },
}

/// Shows the certificate whoever asks: the server says whether it is the right one, which is clearer than showing none.
#[derive(Debug)]
struct Always(SingleCertAndKey);

impl ResolvesClientCert for Always {
    fn resolve(&self, hints: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ResolvesClientCert::resolve(&self.0, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn client_config(authority: &Path, certificate: Option<&Certificate>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider serves the default versions")
        .with_root_certificates(authorities(authority)?);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => {
            builder.with_client_cert_resolver(Arc::new(Always(SingleCertAndKey::from(certificate.read()?))))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What [`dial`] and [`connector`] make.
pub type Stream = Either<TcpStream, tokio_rustls::client::TlsStream<TcpStream>>;

/// Connects to `HOST:PORT` with TCP_NODELAY, and with TLS if `tls` is given.
///
/// # Errors
/// Nobody listens there, or no TLS connection comes to be.
pub async fn dial(address: &str, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Either::Left(tcp)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    tls.connect(host, tcp).await.map(Either::Right).map_err(io::Error::other)
}

/// Makes the connections of a gRPC channel: `Endpoint::connect_with_connector`, for endpoints whose scheme is `http`
/// whether there is TLS or not.
pub fn connector(
    tls: Option<ClientTls>,
) -> impl Service<Uri, Response = TokioIo<Stream>, Error = io::Error, Future: Send> + Clone + Send + 'static {
    tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let authority = uri.authority().ok_or_else(|| io::Error::other("an address without a host"))?;
            let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
            dial(&address, tls.as_ref()).await.map(TokioIo::new)
        }
    })
}
