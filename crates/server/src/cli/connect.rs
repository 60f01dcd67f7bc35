//! Asking one of several stores.

use std::time::Duration;

use anyhow::{anyhow, bail};
use pontoon_proto::v1::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::Global;
use crate::config::HostPort;
use crate::error;

/// Parses a client address; `http://` in front is etcd's habit and changes nothing.
pub(crate) fn endpoint(text: &str) -> Result<HostPort, String> {
    text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/').parse()
}

/// A channel to a client address, not yet connected.
pub(crate) fn channel(address: &HostPort, timeout: Duration) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(timeout).tcp_nodelay(true))
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
    let mut failures = Vec::new();
    for address in &global.endpoints {
        let endpoint = channel(address, global.timeout)?;
        let channel = match tokio::time::timeout(global.timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(refused)) => {
                failures.push(format!("{address}: {}", root_cause(&refused)));
                continue;
            }
            Err(_elapsed) => {
                failures.push(format!("{address}: no connection within {:?}", global.timeout));
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
            failures.push(format!("{address}: {}", status.message()));
            continue;
        }
        return Err(refusal(address, &status));
    }
    bail!("no store answers ({}); start one, or name others by --endpoints", failures.join("; "))
}

/// A store's refusal as an error; its message says what to do.
pub(crate) fn refusal(address: &HostPort, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::Unimplemented => anyhow!(
            "{address} does not know this call; it is served by Pontoon stores of this version; check --endpoints"
        ),
        code => anyhow!("{} ({code:?}, from {address})", status.message()),
    }
}

/// The innermost cause: "Connection refused" instead of "transport error".
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    error::one_line(&anyhow!("{cause}"))
}
