//! The connections of one store in `status`: each lane, each direction, with what its reconnect machine says.

use pontoon_proto::v1::{Connection, ConnectionDirection, ConnectionLane};
use serde::Serialize;

use crate::cli::output::{Hex, or_dash, table};

/// One connection.
#[derive(Serialize)]
pub(super) struct ConnectionDocument {
    pub(super) store: Hex,
    direction: &'static str,
    lane: &'static str,
    connected: bool,
    since_ms: u64,
    connected_ms: u64,
    attempts: u64,
    successes: u64,
    disconnections: u64,
    backoff_ms: u64,
    queued_bytes: u64,
    in_flight_bytes: u64,
    large_bytes: u64,
    credit_bytes: Option<u64>,
    unprocessed_bytes: u64,
    waits_for: Option<String>,
    probe_interval_ms: u64,
    last_error: Option<String>,
    last_error_kind: Option<String>,
}

impl From<Connection> for ConnectionDocument {
    fn from(connection: Connection) -> Self {
        Self {
            store: Hex(connection.store),
            direction: match connection.direction() {
                ConnectionDirection::In => "in",
                ConnectionDirection::Out => "out",
                ConnectionDirection::Unspecified => "unknown",
            },
            lane: match connection.lane() {
                ConnectionLane::Control => "control",
                ConnectionLane::Log => "log",
                ConnectionLane::Snapshot => "snapshot",
                ConnectionLane::Unspecified => "unknown",
            },
            connected: connection.connected,
            since_ms: connection.since_ms,
            connected_ms: connection.connected_ms,
            attempts: connection.attempts,
            successes: connection.successes,
            disconnections: connection.disconnections,
            backoff_ms: connection.backoff_ms,
            queued_bytes: connection.queued_bytes,
            in_flight_bytes: connection.in_flight_bytes,
            large_bytes: connection.large_bytes,
            credit_bytes: connection.credit_bytes,
            unprocessed_bytes: connection.unprocessed_bytes,
            waits_for: connection.waits_for,
            probe_interval_ms: connection.probe_interval_ms,
            last_error: connection.last_error,
            last_error_kind: connection.last_error_kind,
        }
    }
}

/// As a table; `name_of` says who is at the other end.
pub(super) fn connection_table(
    connections: &[ConnectionDocument],
    name_of: impl Fn(Hex) -> String,
) -> String {
    table(
        &[
            "connection",
            "direction",
            "lane",
            "up",
            "for s>",
            "in all s>",
            "attempts>",
            "successes>",
            "lost>",
            "back-off ms>",
            "waits for",
            "last error",
        ],
        connections.iter().map(|c| {
            // Whoever did not dial has no back-off.
            let dialled = c.direction == "out";
            [
                name_of(c.store),
                c.direction.to_owned(),
                c.lane.to_owned(),
                if c.connected { "yes" } else { "no" }.to_owned(),
                (c.since_ms / 1000).to_string(),
                (c.connected_ms / 1000).to_string(),
                c.attempts.to_string(),
                c.successes.to_string(),
                c.disconnections.to_string(),
                or_dash(dialled.then_some(c.backoff_ms)),
                or_dash(c.waits_for.clone()),
                or_dash(c.last_error.clone()),
            ]
        }),
    )
}

/// A connection with a story, for the documents' tests, and how it looks in JSON.
#[cfg(test)]
pub(super) fn example() -> (Connection, serde_json::Value) {
    let connection = Connection {
        store: 2,
        direction: ConnectionDirection::Out.into(),
        lane: ConnectionLane::Log.into(),
        connected: true,
        since_ms: 5000,
        connected_ms: 65_000,
        attempts: 9,
        successes: 2,
        disconnections: 1,
        backoff_ms: 1000,
        queued_bytes: 12,
        in_flight_bytes: 13,
        large_bytes: 14,
        credit_bytes: Some(15),
        unprocessed_bytes: 16,
        waits_for: Some("credit".into()),
        probe_interval_ms: 2000,
        last_error: Some("connection refused by h:2".into()),
        last_error_kind: Some("refused".into()),
    };
    let json = serde_json::json!({
        "store": "0000000000000002", "direction": "out", "lane": "log", "connected": true,
        "since_ms": 5000, "connected_ms": 65000, "attempts": 9, "successes": 2, "disconnections": 1,
        "backoff_ms": 1000, "queued_bytes": 12, "in_flight_bytes": 13, "large_bytes": 14,
        "credit_bytes": 15, "unprocessed_bytes": 16, "waits_for": "credit", "probe_interval_ms": 2000,
        "last_error": "connection refused by h:2", "last_error_kind": "refused"
    });
    (connection, json)
}
