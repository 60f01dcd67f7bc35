//! How to connect: one fresh socket and gRPC channel per attempt. *When* is the reconnect machine's business.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_raft_core::types::StoreId;
use pontoon_tls::{ClientTls, ConnectError};
use tokio::net::TcpStream;
use tokio_util::either::Either;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tower::ServiceExt as _;

use crate::batch::FrameStream;
use crate::config::TransportConfig;
use crate::frames::{DialCodec, FrameBody};
use crate::identity::Claim;
use crate::io::{KillOnDrop, PeerSocket};
use crate::status::LinkErrorKind;
use crate::wire::cut;

/// The version of `peer.proto` that this crate speaks.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// HTTP/2 windows: with the default 64 KiB a frame of 256 KiB takes four round trips.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Replies are tiny.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// An attempt failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens there: the process is gone.
    #[error("connection refused by {address}")]
    ConnectionRefused { address: String },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{0:?} is not a host and port")]
    Address(String),
    #[error(transparent)]
    Tls(#[from] ConnectError),
    #[error("no HTTP/2 connection: {0}")]
    Channel(#[from] tonic::transport::Error),
    #[error("the stream failed: {}", .0.message())]
    Stream(#[from] Status),
    #[error("the peer closed the stream before it answered the hello")]
    NoAnswer,
    #[error("the peer refused the hello ({refusal}): {reason}")]
    Refused { refusal: String, reason: String },
    /// The peer knows that this store's data directory must not act any more.
    #[error("the peer refused this store for good: {reason}")]
    Fenced { reason: String },
    /// The peer's cluster has removed this store.
    #[error("the peer says that this store is no member any more: {reason}")]
    Removed { reason: String },
    /// Whoever answered is not taken for the store that is meant.
    #[error("not taken for store {store}: {reason}")]
    NotAdmitted { store: StoreId, reason: String },
    #[error("reached store {found}, not {expected}")]
    OtherStore { expected: StoreId, found: StoreId },
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the peer has moved to another address")]
    Moved,
}

impl DialError {
    pub(crate) fn kind(&self) -> LinkErrorKind {
        match self {
            Self::ConnectionRefused { .. } => LinkErrorKind::Refused,
            Self::Connect { .. } | Self::Address(_) => LinkErrorKind::Unreachable,
            Self::Tls(_) | Self::Channel(_) | Self::Stream(_) | Self::NoAnswer => LinkErrorKind::Broken,
            Self::Refused { .. }
            | Self::Fenced { .. }
            | Self::Removed { .. }
            | Self::NotAdmitted { .. }
            | Self::OtherStore { .. } => LinkErrorKind::Rejected,
            Self::TimedOut(_) => LinkErrorKind::TimedOut,
            Self::Moved => LinkErrorKind::Replaced,
        }
    }
}

/// The path of `Peer.Lane`.
const LANE_PATH: &str = "/pontoon.peer.v1.Peer/Lane";

/// An open, greeted stream. Dropping it closes the socket.
pub(crate) struct Session {
    pub(crate) replies: Streaming<pb::LaneReply>,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    /// Its optional abilities.
    pub(crate) features: u64,
    /// How far it lets us send at first; `None`: without bounds.
    pub(crate) credit: Option<u64>,
    /// What the peer says of its data directory.
    pub(crate) claim: Option<Claim>,
    _channel: Channel,
    _kill: KillOnDrop,
}

/// Opens a connection of its own to `address`, for snapshots. `keep_alive` is how long a silence is bearable.
pub(crate) async fn connect(
    address: &str,
    tls: Option<&ClientTls>,
    message_bytes_max: usize,
    keep_alive: Duration,
) -> Result<(PeerClient<Channel>, KillOnDrop), DialError> {
    let (channel, kill) = open(address, tls, Some(keep_alive)).await?;
    let client = PeerClient::new(channel)
        .max_decoding_message_size(REPLY_BYTES_MAX)
        .max_encoding_message_size(message_bytes_max);
    Ok((client, kill))
}

/// `keep_alive` is how long a silence is bearable where nothing above watches the connection; lanes have probes.
async fn open(
    address: &str,
    tls: Option<&ClientTls>,
    keep_alive: Option<Duration>,
) -> Result<(Channel, KillOnDrop), DialError> {
    let host = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let tcp = TcpStream::connect(host).await.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => DialError::ConnectionRefused { address: address.to_owned() },
        io::ErrorKind::InvalidInput => DialError::Address(address.to_owned()),
        _ => DialError::Connect { address: address.to_owned(), source },
    })?;
    // A port of this machine that nobody listens on may be given to the dialing socket itself, which then talks to
    // its own echo and keeps the store that should listen there from starting.
    if let (Ok(local), Ok(remote)) = (tcp.local_addr(), tcp.peer_addr())
        && local == remote
    {
        return Err(DialError::ConnectionRefused { address: address.to_owned() });
    }
    tcp.set_nodelay(true).map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
    let (socket, kill) = PeerSocket::new(tcp);
    let socket = match tls {
        None => Either::Left(socket),
        Some(tls) => {
            Either::Right(tls.connect(host.rsplit_once(':').map_or(host, |(host, _)| host), socket).await?)
        }
    };
    let mut socket = Some(TokioIo::new(socket));
    let connector = tower::service_fn(move |_| {
        // A channel reconnects by itself when it can; this one cannot.
        let socket = socket.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { socket }
    });
    let mut endpoint = Endpoint::from_shared(format!("http://{host}"))
        .map_err(|_| DialError::Address(address.to_owned()))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if let Some(silence) = keep_alive {
        endpoint = endpoint.http2_keep_alive_interval(silence / 2).keep_alive_timeout(silence / 2);
    }
    Ok((endpoint.connect_with_connector(connector).await?, kill))
}

/// Opens a lane and waits for the answer to the hello, which `frames` holds.
pub(crate) async fn open_lane(
    address: String,
    config: &TransportConfig,
    expected: StoreId,
    frames: FrameStream,
) -> Result<Session, DialError> {
    let (channel, kill) = open(&address, config.tls.as_ref(), None).await?;
    // As the generated client does, but the request's body is our own.
    let mut body = Some(FrameBody(frames));
    let with_body = channel.clone().map_request(move |request: http::Request<Body>| {
        request.map(|empty| body.take().map_or(empty, Body::new))
    });
    let mut grpc = Grpc::new(with_body).max_decoding_message_size(REPLY_BYTES_MAX);
    grpc.ready().await.map_err(DialError::Channel)?;
    let path = PathAndQuery::from_static(LANE_PATH);
    let no_frames = tokio_stream::empty::<pb::LaneFrame>();
    let mut replies = grpc.streaming(Request::new(no_frames), path, DialCodec).await?.into_inner();
    let first = replies.message().await?.ok_or(DialError::NoAnswer)?;
    let credit = first.credit;
    let ack = first.hello_ack.ok_or(DialError::NoAnswer)?;
    let expected_one = ack.cluster == config.cluster && ack.store == expected.0;
    if ack.refusal() == pb::Refusal::Fenced && expected_one {
        return Err(DialError::Fenced { reason: cut(ack.reason) });
    }
    if ack.refusal() == pb::Refusal::Removed && expected_one {
        return Err(DialError::Removed { reason: cut(ack.reason) });
    }
    // The number, not its name: a reason of a later version is a refusal too.
    if ack.refusal != 0 || ack.protocol_version != PROTOCOL_VERSION {
        return Err(DialError::Refused {
            refusal: ack.refusal().as_str_name().trim_start_matches("REFUSAL_").to_ascii_lowercase(),
            reason: cut(ack.reason),
        });
    }
    if ack.store != expected.0 {
        return Err(DialError::OtherStore { expected, found: StoreId(ack.store) });
    }
    Ok(Session {
        replies,
        name: cut(ack.name),
        incarnation: ack.incarnation,
        features: ack.features,
        credit,
        claim: Claim::from_wire(ack.lineage, ack.incarnation),
        _channel: channel,
        _kill: kill,
    })
}
