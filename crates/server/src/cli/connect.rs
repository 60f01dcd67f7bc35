//! Asking one of several stores.

use std::time::Duration;

use anyhow::{anyhow, bail};
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_tls::{Certificate, ClientTls};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::Global;
use crate::config::HostPort;
use crate::error::{self, UsageError};

/// Parses a client address; `http://` or `https://` in front is etcd's habit and changes nothing: `--cacert` says whether
/// there is TLS.
pub(crate) fn endpoint(text: &str) -> Result<HostPort, String> {
    let bare = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    bare.trim_end_matches('/').parse()
}

/// How stores are reached.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    timeout: Duration,
    tls: Option<ClientTls>,
    shows: Shows,
}

/// What stores see of this process.
#[derive(Clone, Copy, Debug)]
enum Shows {
    /// It does not speak TLS.
    Plaintext,
    /// It speaks TLS and has no certificate.
    Nothing,
    /// It has one.
    Certificate,
}

impl Dialer {
    /// Without TLS: for stores that this process has started itself.
    pub(crate) fn plain(timeout: Duration) -> Self {
        Self { timeout, tls: None, shows: Shows::Plaintext }
    }

    /// As the flags say.
    ///
    /// # Errors
    /// A file of the TLS flags cannot be used; it is named.
    pub(crate) fn new(global: &Global) -> Result<Self, UsageError> {
        let certificate = global.cert.clone().zip(global.key.clone());
        let certificate = certificate.map(|(chain, key)| Certificate { chain, key });
        let shows = match (&global.cacert, &certificate) {
            (None, _) => Shows::Plaintext,
            (Some(_), None) => Shows::Nothing,
            (Some(_), Some(_)) => Shows::Certificate,
        };
        let tls = global.cacert.clone().map(|authority| ClientTls::load(authority, certificate)).transpose();
        let tls = tls.map_err(|error| UsageError::new(format!("--cacert, --cert, --key: {error}")))?;
        Ok(Self { timeout: global.timeout, tls, shows })
    }

    /// How long one store is waited for.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects a gRPC channel to a client address.
    ///
    /// # Errors
    /// Nobody answers in time, or no TLS connection comes to be.
    pub(crate) async fn channel(&self, address: &HostPort) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let connecting = endpoint.connect_with_connector(pontoon_tls::connector(self.tls.clone()));
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(refused)) => Err(anyhow!("{address}: {}", root_cause(&refused))),
            Err(_elapsed) => Err(anyhow!("{address}: no connection within {:?}", self.timeout)),
        }
    }

    /// Connects a bare socket to a client address, for those who speak HTTP/2 themselves.
    ///
    /// # Errors
    /// As for [`Dialer::channel`].
    pub(crate) async fn socket(&self, address: &HostPort) -> anyhow::Result<pontoon_tls::Stream> {
        let text = address.to_string();
        let dialing = pontoon_tls::dial(&text, self.tls.as_ref());
        match tokio::time::timeout(self.timeout, dialing).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(refused)) => Err(anyhow!("{address}: {refused}")),
            Err(_elapsed) => Err(anyhow!("{address}: no connection within {:?}", self.timeout)),
        }
    }
}

/// Whether a call may be sent to a second store when the first one did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads: a second time does no harm.
    Harmless,
    /// The first store may have done it; only a store that could not even be reached is passed over.
    MightDoItTwice,
}

/// Calls the admin service of the first endpoint that answers.
///
/// # Errors
/// No endpoint answers, with the reason for each; or the one that did refuses.
pub(crate) async fn ask<T>(
    global: &Global,
    repeat: Repeat,
    call: impl AsyncFn(&mut AdminClient<Channel>) -> Result<Response<T>, Status>,
) -> anyhow::Result<T> {
    let dialer = Dialer::new(global)?;
    let mut failures = Vec::new();
    for address in &global.endpoints {
        let channel = match dialer.channel(address).await {
            Ok(channel) => channel,
            Err(refused) => {
                failures.push(refused.to_string());
                continue;
            }
        };
        let mut client = AdminClient::new(channel);
        let status = match tokio::time::timeout(global.timeout, call(&mut client)).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_elapsed) => Status::unavailable(format!("no answer within {:?}", global.timeout)),
        };
        if repeat == Repeat::Harmless && matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
            failures.push(format!("{address}: {}", with_cause(&dialer, &status)));
            continue;
        }
        return Err(refusal(&dialer, address, &status));
    }
    bail!("no store answers ({}); start one, or name others by --endpoints", failures.join("; "))
}

/// A store's refusal as an error; its message says what to do.
pub(crate) fn refusal(dialer: &Dialer, address: &HostPort, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::Unimplemented => anyhow!(
            "{address} does not know this call; it is served by Pontoon stores of this version; check --endpoints"
        ),
        code => anyhow!("{} ({code:?}, from {address})", with_cause(dialer, status)),
    }
}

/// What a status says; of one that was made here because the connection broke, also why it did, and what may help: a store
/// that speaks TLS, or wants a certificate, can only hang up on who does not know it.
fn with_cause(dialer: &Dialer, status: &Status) -> String {
    use std::error::Error as _;
    let Some(source) = status.source() else { return status.message().to_owned() };
    let hint = match dialer.shows {
        Shows::Plaintext => "if the store speaks TLS, give --cacert",
        Shows::Nothing => "if the store wants a client certificate, give --cert and --key",
        Shows::Certificate => "the log of the store says more",
    };
    format!("{}: {}; {hint}", status.message(), root_cause(source))
}

/// The innermost cause: "Connection refused" instead of "transport error".
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    error::one_line(&anyhow!("{cause}"))
}
