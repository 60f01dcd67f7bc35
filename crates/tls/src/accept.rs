//! Accepting connections, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::certificate::PeerCertificate;
use crate::reload::ServerTls;

/// The longest that a handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes at a time; further connections wait in the kernel.
const HANDSHAKES_MAX: usize = 1024;
/// After an error of `accept` itself (no file descriptors left): it would come again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Refused handshakes that are logged one by one, in each period; the rest is counted.
const LOGGED_MAX: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// Who is at the other end; in a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInfo {
    /// Its address.
    pub remote: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// The host name that the client asked for in the handshake (SNI).
    pub server_name: Option<Arc<str>>,
    /// Of its verified certificate, if it showed one.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// An accepted connection.
#[derive(Debug)]
pub struct ClientStream {
    io: Io,
    info: ConnectionInfo,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Accepts connections until the stream is dropped, with TCP_NODELAY; with `tls` only those whose handshake succeeds.
/// Handshakes go on beside each other, so that one who never finishes his keeps nobody waiting.
pub fn accept(
    listener: TcpListener,
    tls: Option<ServerTls>,
) -> impl Stream<Item = io::Result<ClientStream>> + Send + Unpin + 'static {
    let (ready, accepted) = mpsc::channel(16);
    tokio::spawn(accept_all(listener, tls, ready));
    ReceiverStream::new(accepted)
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<ServerTls>,
    ready: mpsc::Sender<io::Result<ClientStream>>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let refusals = Arc::new(Refusals::default());
    loop {
        let accepted = tokio::select! {
            // Nobody wants connections any more: the listener is closed.
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it small answers wait for delayed acknowledgements. A socket that is gone already says so later.
        let _ = socket.set_nodelay(true);
        let Some(tls) = &tls else {
            let info = ConnectionInfo { remote: Some(remote), ..ConnectionInfo::default() };
            if ready.send(Ok(ClientStream { io: Io::Plain(socket), info })).await.is_err() {
                return;
            }
            continue;
        };
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (acceptor, ready, refusals) = (tls.acceptor(), ready.clone(), Arc::clone(&refusals));
        tokio::spawn(async move {
            let _place = place;
            match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => {
                    let info = tls_info(remote, &stream);
                    // Fails only when the listener is being closed.
                    let _ = ready.send(Ok(ClientStream { io: Io::Tls(Box::new(stream)), info })).await;
                }
                Ok(Err(error)) => refusals.tell(remote, &error.to_string()),
                Err(_) => refusals.tell(remote, "the handshake took too long"),
            }
        });
    }
}

fn tls_info(remote: SocketAddr, stream: &TlsStream<TcpStream>) -> ConnectionInfo {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(PeerCertificate::read);
    ConnectionInfo {
        remote: Some(remote),
        encrypted: true,
        server_name: session.server_name().map(Arc::from),
        certificate: certificate.map(Arc::new),
    }
}

/// Logs refused handshakes at a limited rate: anybody who reaches the port can cause them.
#[derive(Debug, Default)]
struct Refusals(std::sync::Mutex<(Option<tokio::time::Instant>, u32)>);

impl Refusals {
    fn tell(&self, remote: SocketAddr, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = tokio::time::Instant::now();
        if state.0.is_none_or(|begun| now - begun > LOG_PERIOD) {
            if state.1 > LOGGED_MAX {
                tracing::warn!(more = state.1 - LOGGED_MAX, "further TLS handshakes failed");
            }
            *state = (Some(now), 0);
        }
        state.1 += 1;
        if state.1 <= LOGGED_MAX {
            tracing::warn!(%remote, reason, "a TLS handshake failed");
        }
    }
}

impl Connected for ClientStream {
    type ConnectInfo = ConnectionInfo;
    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
