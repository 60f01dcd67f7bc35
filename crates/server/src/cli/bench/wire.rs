//! A connection that sends unary gRPC calls with as little work as possible.
//!
//! gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` of the gRPC project) is a POST with a five-byte prefix before the
//! message, and a status in the trailers. Speaking it directly costs much less than a general client does,
//! which matters where the load shares the processors with the stores. The answers' messages are not decoded;
//! their status is.

use std::borrow::Cow;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::uri::{Authority, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};
use prost::Message;
use tokio::sync::Mutex;

use crate::cli::connect::Dialer;
use crate::config::HostPort;

/// Bytes of answers that may be under way on a connection. Large, so that few frames have to say "go on".
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// The same for one answer.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// No new attempt to connect so soon after a failed one: the clients of a connection share its failure.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// One connection, shared by its clients, opened again after a failure by the first of them that needs it.
#[derive(Debug)]
pub(super) struct Connection {
    address: HostPort,
    dialer: Dialer,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Counts connections; a client that saw a lower one break just takes the present one.
    generation: u64,
    sender: Option<SendRequest<Bytes>>,
    last_failure: Option<(Instant, String)>,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(dialer: &Dialer, address: &HostPort) -> Result<Self, String> {
        let sender = Some(connect(dialer, address).await?);
        let state = Mutex::new(State { generation: 1, sender, last_failure: None });
        Ok(Self { address: address.clone(), dialer: dialer.clone(), state })
    }

    /// A sender of a connection newer than `broken`, with its generation.
    async fn sender(&self, broken: u64) -> Result<(u64, SendRequest<Bytes>), String> {
        let mut state = self.state.lock().await;
        if state.generation <= broken {
            state.sender = None;
        }
        if let Some(sender) = &state.sender {
            return Ok((state.generation, sender.clone()));
        }
        if let Some((_, why)) = state.last_failure.as_ref().filter(|(at, _)| at.elapsed() < RECONNECT_PAUSE) {
            return Err(why.clone());
        }
        match connect(&self.dialer, &self.address).await {
            Ok(sender) => {
                state.generation += 1;
                state.sender = Some(sender.clone());
                Ok((state.generation, sender))
            }
            Err(why) => {
                state.last_failure = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

async fn connect(dialer: &Dialer, address: &HostPort) -> Result<SendRequest<Bytes>, String> {
    let timeout = dialer.timeout();
    let connecting = async {
        let socket = dialer.socket(address).await.map_err(|e| e.to_string())?;
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        builder.handshake::<_, Bytes>(socket).await.map_err(|e| format!("{address}: {e}"))
    };
    let (sender, connection) = match tokio::time::timeout(timeout, connecting).await {
        Ok(connected) => connected?,
        Err(_elapsed) => return Err(format!("{address}: no connection within {timeout:?}")),
    };
    // It ends with the connection; how it ended is seen by whoever uses it.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

/// One method at one address: everything of a request that never changes.
#[derive(Clone, Debug)]
pub(super) struct Call {
    uri: Uri,
    headers: HeaderMap,
}

impl Call {
    /// The unary method at `path`, such as `/package.Service/Method`.
    pub(super) fn new(address: &HostPort, path: &'static str) -> anyhow::Result<Self> {
        let authority: Authority = address.to_string().parse()?;
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build()?;
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(Self { uri, headers })
    }
}

/// Sends one call after the other over a shared connection.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    connection: &'a Connection,
    generation: u64,
    sender: Option<SendRequest<Bytes>>,
}

impl<'a> Caller<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, generation: 0, sender: None }
    }

    /// Sends a message and waits for the call's status.
    ///
    /// # Errors
    /// What went wrong, as `Code: message` if the store said so.
    pub(super) async fn call(
        &mut self,
        call: &Call,
        keyspace: Option<(&HeaderName, &HeaderValue)>,
        message: &impl Message,
    ) -> Result<(), Cow<'static, str>> {
        let sender = match &mut self.sender {
            Some(sender) => sender,
            none => {
                let (generation, sender) = self.connection.sender(self.generation).await?;
                self.generation = generation;
                none.insert(sender)
            }
        };
        let answered = send(sender, request(call, keyspace), frame(message)).await;
        match answered {
            Ok((headers, trailers)) => status(&headers, trailers.as_ref()),
            Err(error) => {
                // A reset ends one call; everything else ends the connection.
                if !error.is_reset() {
                    self.sender = None;
                }
                Err(error.to_string().into())
            }
        }
    }
}

fn request(call: &Call, keyspace: Option<(&HeaderName, &HeaderValue)>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = call.uri.clone();
    *request.headers_mut() = call.headers.clone();
    if let Some((name, value)) = keyspace {
        request.headers_mut().insert(name, value.clone());
    }
    request
}

/// The message behind gRPC's prefix: not compressed, and its length.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("values have at most 1 MiB"));
    message.encode(&mut frame).expect("a BytesMut grows");
    frame.freeze()
}

async fn send(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
) -> Result<(HeaderMap, Option<HeaderMap>), h2::Error> {
    poll_fn(|context| sender.poll_ready(context)).await?;
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(body, true)?;
    let (head, mut body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        // Not gRPC at all: the status is all there is to tell.
        let mut headers = HeaderMap::new();
        headers.insert("grpc-message", HeaderValue::from_str(head.status.as_str()).expect("three digits"));
        return Ok((headers, None));
    }
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok((head.headers, body.trailers().await?))
}

/// The call's status: in the trailers, or in the headers of an answer that has nothing else.
fn status(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Result<(), Cow<'static, str>> {
    let field = |name| trailers.and_then(|trailers| trailers.get(name)).or_else(|| headers.get(name));
    let code = field("grpc-status").map_or(&b""[..], HeaderValue::as_bytes);
    if code == b"0" {
        return Ok(());
    }
    let message = field("grpc-message").map_or_else(String::new, |text| percent_decoded(text.as_bytes()));
    if code.is_empty() {
        return Err(format!("the answer is not gRPC's: {message}").into());
    }
    Err(format!("{:?}: {message}", tonic::Code::from_bytes(code)).into())
}

/// Undoes the percent-encoding of `grpc-message`.
fn percent_decoded(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        assert_eq!(percent_decoded(b"a%20b%"), "a b%");
        assert_eq!(percent_decoded(b"%zz%41"), "%zzA");
    }

    #[test]
    fn a_status_is_found_in_trailers_and_in_headers() {
        let mut fields = HeaderMap::new();
        assert!(status(&fields, None).is_err());
        fields.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(status(&HeaderMap::new(), Some(&fields)), Ok(()));
        fields.insert("grpc-status", HeaderValue::from_static("5"));
        fields.insert("grpc-message", HeaderValue::from_static("no%20such"));
        assert_eq!(status(&fields, None), Err("NotFound: no such".into()));
    }

    #[test]
    fn a_frame_has_its_length_in_front() {
        let message = pontoon_proto::etcdserverpb::PutRequest { key: "k".into(), ..Default::default() };
        assert_eq!(frame(&message)[..], [0, 0, 0, 0, 3, 10, 1, b'k']);
    }
}
