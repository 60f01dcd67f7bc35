//! What a client is told before it starts.

use std::time::Duration;

use pontoon_reconnect::driver::Jitter;
use tonic::transport::{ClientTlsConfig, Endpoint};

use crate::error::ConfigError;

/// The most channels to one store that make sense: beyond that the store's handshakes and memory cost more than the
/// parallelism brings.
const CHANNELS_MAX: usize = 64;

/// How a [`Client`](crate::Client) finds its stores and how long it is patient. Start from [`Config::new`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The stores' client addresses: `HOST:PORT`, or an `http` or `https` URI. At least one.
    pub remotes: Vec<String>,
    /// Insist on the leader: each keyspace gets a session of its own, with the store that leads it. Saves the way over
    /// a follower at the price of connections per keyspace. Default: off, for every store serves every call.
    pub leader_only: bool,
    /// HTTP/2 connections of a session, 1 to 64. One is a bottleneck for many calls at once. Default: 2.
    pub channels_per_store: usize,
    /// How long a call may take, waiting for a connection and retries included. Default: 5 s.
    pub call_timeout: Duration,
    /// How long a connection may be silent before the store is asked for a sign of life; after the same time again
    /// the session is dropped. Zero turns this off, other values are raised to a second. Default: 5 s.
    pub probe_interval: Duration,
    /// How often a leader-only session asks whether its store still leads. Shorter finds a moved leader sooner, and
    /// costs one small call each time. Default: 500 ms.
    pub leader_check_interval: Duration,
    /// The first wait after a failure; at least a second. Default: 1 s.
    pub backoff_min: Duration,
    /// The longest wait. Default: 8 s.
    pub backoff_max: Duration,
    /// Makes each wait longer by a random part, so that many clients do not come back at once. Default: none.
    pub jitter: Option<Jitter>,
    /// Try the remotes in a random order, so that many clients do not all meet at the first. Default: on.
    pub shuffle: bool,
    /// Repeat a write to a keyspace when the outcome of an earlier attempt is unknown. Every write carries a name
    /// (metadata `pontoon-eid`) that stays the same over its attempts, and a keyspace executes a name once. Not done with
    /// stores that do not tell that they know names (etcd), nor for admin calls. Turned off, the first unknown outcome
    /// ends the call. Default: on.
    pub retry_unknown_writes: bool,
    /// The largest answer that is accepted. Default: 64 MiB.
    pub response_bytes_max: usize,
    /// How to speak TLS with remotes whose URI begins with `https`. Default: none.
    pub tls: Option<ClientTlsConfig>,
}

impl Config {
    /// The defaults, with these remotes.
    #[must_use]
    pub fn new<R: Into<String>>(remotes: impl IntoIterator<Item = R>) -> Self {
        Self {
            remotes: remotes.into_iter().map(Into::into).collect(),
            leader_only: false,
            channels_per_store: 2,
            call_timeout: Duration::from_secs(5),
            probe_interval: Duration::from_secs(5),
            leader_check_interval: Duration::from_millis(500),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(8),
            jitter: None,
            shuffle: true,
            retry_unknown_writes: true,
            response_bytes_max: 64 * 1024 * 1024,
            tls: None,
        }
    }

    /// Checks everything and turns the remotes into endpoints.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, ConfigError> {
        if self.remotes.is_empty() {
            return Err(ConfigError::NoRemotes);
        }
        if !(1..=CHANNELS_MAX).contains(&self.channels_per_store) {
            return Err(ConfigError::Channels { channels: self.channels_per_store, max: CHANNELS_MAX });
        }
        self.remotes.iter().map(|remote| self.endpoint(remote)).collect()
    }

    fn endpoint(&self, remote: &str) -> Result<Endpoint, ConfigError> {
        let bad = |source| ConfigError::Remote { remote: remote.to_owned(), source };
        let uri = if remote.contains("://") { remote.to_owned() } else { format!("http://{remote}") };
        let mut endpoint = Endpoint::from_shared(uri).map_err(bad)?;
        if endpoint.uri().port_u16().is_none() {
            return Err(ConfigError::Port { remote: remote.to_owned() });
        }
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(bad)?;
        }
        // Windows of some MiB: with the 64 KiB of the HTTP/2 default one large answer waits for a round trip each
        // 64 KiB, and holds up the others of its connection.
        Ok(endpoint.initial_stream_window_size(2 << 20).initial_connection_window_size(8 << 20))
    }
}

/// A keyspace's name is a DNS label.
pub(crate) fn check_keyspace(name: &str) -> Result<(), ConfigError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits { Ok(()) } else { Err(ConfigError::Keyspace { name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_checked() {
        let endpoints = |remotes: &[&str]| Config::new(remotes.iter().copied()).endpoints();
        assert_eq!(endpoints(&["a:1", "http://b:2", "[::1]:3"]).unwrap().len(), 3);
        assert!(matches!(endpoints(&[]), Err(ConfigError::NoRemotes)));
        assert!(matches!(endpoints(&["a"]), Err(ConfigError::Port { .. })));
        assert!(matches!(endpoints(&["a:1", "a b:1"]), Err(ConfigError::Remote { .. })));
        let mut config = Config::new(["a:1"]);
        config.channels_per_store = 0;
        assert!(matches!(config.endpoints(), Err(ConfigError::Channels { channels: 0, .. })));
    }

    #[test]
    fn keyspaces_are_labels() {
        for good in ["a", "tenant-7", &"x".repeat(63)] {
            assert!(check_keyspace(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "\u{e9}", &"x".repeat(64)] {
            assert!(check_keyspace(bad).is_err(), "{bad}");
        }
    }
}
