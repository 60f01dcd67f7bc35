//! Calls by name: requests and answers as text, with the descriptors that the server's reflection uses.

use std::collections::HashMap;
use std::time::Duration;

use pontoon_proto::DESCRIPTORS;
use prost::Message as _;
use prost_reflect::text_format::FormatOptions;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage as _, Value,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::cluster::PATIENCE;
use crate::script::Case;

/// How long nothing has to come where nothing may.
const QUIET: Duration = Duration::from_millis(400);

/// An open stream.
struct Stream {
    requests: mpsc::Sender<DynamicMessage>,
    answers: Streaming<DynamicMessage>,
    /// Lines of an answer of which only a part was asked for.
    rest: Vec<String>,
}

/// Plays the requests of one script.
pub(crate) struct Caller {
    pool: DescriptorPool,
    channel: Channel,
    keyspace: Option<String>,
    streams: HashMap<String, Stream>,
    tokens: HashMap<String, String>,
}

impl Caller {
    pub(crate) async fn connect(port: u16, keyspace: Option<&str>) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        Self {
            pool: DescriptorPool::decode(DESCRIPTORS).expect("our own descriptors"),
            channel: endpoint.connect().await.expect("it listens"),
            keyspace: keyspace.map(str::to_owned),
            streams: HashMap::new(),
            tokens: HashMap::new(),
        }
    }

    /// Sends a request and returns the lines of the answer. An error is one of the script's.
    pub(crate) async fn play(&mut self, case: &Case) -> Result<Vec<String>, String> {
        let method = self.method(&case.method)?;
        if method.is_server_streaming() {
            return self.play_stream(case, &method).await;
        }
        let text = case.requests.first().map_or("", String::as_str);
        let request = parse(&method.input(), text)?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| e.to_string())?;
        let call = grpc.unary(self.request(request, case)?, path(&method), DynamicCodec(method.output()));
        let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| "no answer".to_owned())?;
        Ok(match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                if !case.keep.is_empty() {
                    let token = answer.get_field_by_name("token").ok_or("the answer has no token")?;
                    let token = token.as_str().ok_or("the token is no text")?.to_owned();
                    self.tokens.insert(case.keep.clone(), token);
                }
                show(answer, &case.hidden)
            }
            Err(status) if std::error::Error::source(&status).is_some() => {
                return Err(format!("no connection any more; did it crash? {status}"));
            }
            Err(status) => vec![show_status(&status)],
        })
    }

    async fn play_stream(&mut self, case: &Case, method: &MethodDescriptor) -> Result<Vec<String>, String> {
        if !self.streams.contains_key(&case.stream) {
            let (requests, rx) = mpsc::channel(64);
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|e| e.to_string())?;
            let request = self.request(ReceiverStream::new(rx), case)?;
            let call = grpc.streaming(request, path(method), DynamicCodec(method.output()));
            // etcd answers the call only when it has the first request.
            for text in &case.requests {
                requests.try_send(parse(&method.input(), text)?).map_err(|e| e.to_string())?;
            }
            let answers =
                match tokio::time::timeout(PATIENCE, call).await.map_err(|_| "no answer".to_owned())? {
                    Ok(answers) => answers.into_inner(),
                    Err(status) => return Ok(vec![show_status(&status)]),
                };
            self.streams.insert(case.stream.clone(), Stream { requests, answers, rest: Vec::new() });
        } else {
            for text in &case.requests {
                let request = parse(&method.input(), text)?;
                let stream = &self.streams[&case.stream];
                stream.requests.send(request).await.map_err(|_| "the stream is over".to_owned())?;
            }
        }
        let stream = self.streams.get_mut(&case.stream).expect("it was just made");
        let mut lines = std::mem::take(&mut stream.rest);
        while lines.len() < case.lines {
            match tokio::time::timeout(PATIENCE, stream.answers.message()).await {
                Ok(Ok(Some(answer))) => lines.extend(show_streamed(answer, &case.hidden)),
                Ok(Ok(None)) => lines.push("the stream ended".to_owned()),
                Ok(Err(status)) => lines.push(show_status(&status)),
                Err(_) => return Err(format!("only {lines:?}")),
            }
        }
        if case.quiet {
            if let Ok(answer) = tokio::time::timeout(QUIET, stream.answers.message()).await {
                lines.push(format!("not quiet: {answer:?}"));
            }
        } else {
            stream.rest = lines.split_off(case.lines);
        }
        Ok(lines)
    }

    fn method(&self, name: &str) -> Result<MethodDescriptor, String> {
        let (service, method) =
            name.split_once('/').ok_or_else(|| format!("{name:?} is not SERVICE/METHOD"))?;
        let full = if service.contains('.') { service.to_owned() } else { format!("etcdserverpb.{service}") };
        let service = self.pool.get_service_by_name(&full).ok_or_else(|| format!("no service {full}"))?;
        let found = service.methods().find(|m| m.name() == method);
        found.ok_or_else(|| format!("no method {method} of {full}"))
    }

    fn request<T>(&self, message: T, case: &Case) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        if let Some(keyspace) = &self.keyspace {
            request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
        }
        if !case.token.is_empty() {
            // A name that nobody logged in under is shown itself.
            let token = self.tokens.get(&case.token).unwrap_or(&case.token);
            request.metadata_mut().insert("token", token.parse().map_err(|_| "the token is not ASCII")?);
        }
        Ok(request)
    }
}

fn path(method: &MethodDescriptor) -> http::uri::PathAndQuery {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    path.parse().expect("names have no strange characters")
}

fn parse(descriptor: &MessageDescriptor, text: &str) -> Result<DynamicMessage, String> {
    DynamicMessage::parse_text_format(descriptor.clone(), text).map_err(|e| format!("{text}: {e}"))
}

fn text(message: &DynamicMessage) -> String {
    message.to_text_format_with_options(&FormatOptions::new().pretty(false))
}

/// Takes out what is never the same twice. That it is there is still compared.
fn normalize(message: &mut DynamicMessage, hidden: &[String]) {
    for field in hidden {
        message.clear_field_by_name(field);
    }
    if message.has_field_by_name("header")
        && let Some(Value::Message(header)) = message.get_field_by_name_mut("header")
    {
        for id in ["cluster_id", "member_id", "raft_term"] {
            if header.get_field_by_name(id).and_then(|v| v.as_u64()) != Some(0) {
                header.set_field_by_name(id, Value::U64(1));
            }
        }
    }
}

/// An answer, a line for each top-level field that is set, each element of a list on its own.
fn show(mut message: DynamicMessage, hidden: &[String]) -> Vec<String> {
    normalize(&mut message, hidden);
    let mut lines = Vec::new();
    for field in message.descriptor().fields() {
        if !message.has_field(&field) {
            continue;
        }
        let values = match message.get_field(&field).into_owned() {
            Value::List(values) if field.is_list() => {
                values.into_iter().map(|value| Value::List(vec![value])).collect()
            }
            value => vec![value],
        };
        for value in values {
            let mut alone = DynamicMessage::new(message.descriptor());
            alone.set_field(&field, value);
            // All ids are ones now; the line is easier to read without.
            let line = text(&alone);
            lines.push(
                line.replace("cluster_id:1,member_id:1,", "")
                    .replace(",raft_term:1}", "}")
                    .replace("{raft_term:1}", "{}"),
            );
        }
    }
    if lines.is_empty() {
        lines.push("{}".to_owned());
    }
    lines
}

/// An answer on a stream. How events are gathered into answers is the server's choice, so each is a line of its own and
/// the header of an answer with events, whose revision depends on that, is left out.
fn show_streamed(mut message: DynamicMessage, hidden: &[String]) -> Vec<String> {
    let events = message.descriptor().get_field_by_name("events");
    if !events.is_some_and(|events| message.has_field(&events)) {
        return vec![show(message, hidden).join(" ")];
    }
    let watch = message.get_field_by_name("watch_id").and_then(|id| id.as_i64()).unwrap_or_default();
    message.clear_field_by_name("header");
    message.clear_field_by_name("watch_id");
    show(message, hidden).into_iter().map(|event| format!("watch {watch}: {event}")).collect()
}

fn show_status(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[derive(Clone)]
struct DynamicCodec(MessageDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
