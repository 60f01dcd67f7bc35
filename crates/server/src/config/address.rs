//! Addresses as people write them: HOST:PORT, with a name in front or a keyspace behind.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A host (a name, an IPv4 address, or an IPv6 address in brackets) and a port. Host names are kept in lower
/// case, so that two ways to write one name compare equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    /// Without the brackets of an IPv6 address.
    host: String,
    /// Never 0.
    port: u16,
}

impl HostPort {
    /// The address of this port on the loopback interface.
    pub(crate) fn loopback(port: u16) -> Self {
        Self { host: "127.0.0.1".into(), port }
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host is `0.0.0.0` or `[::]`: an address to listen at and never one to dial.
    pub(crate) fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!(
                "an address is HOST:PORT without a scheme; leave out `{scheme}://`: `{rest}`"
            ));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err("an address is HOST:PORT; the port is missing".into());
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("a port is a number from 1 to 65535, not `{port}`")),
        };
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(inner) => {
                let inner = inner.unwrap_or_default();
                if inner.parse::<Ipv6Addr>().is_err() {
                    return Err(format!("brackets hold an IPv6 address, which `{inner}` is not"));
                }
                inner
            }
            None if host.contains(':') => {
                return Err("an IPv6 address is written in brackets: [ADDRESS]:PORT".into());
            }
            None => host,
        };
        if host.is_empty() {
            return Err("an address is HOST:PORT; the host is missing".into());
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if let Some(bad) = host.chars().find(|c| !allowed(*c)) {
            return Err(format!("a host is a name or an IP address and cannot contain {bad:?}"));
        }
        let dotted = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        if dotted && host.parse::<IpAddr>().is_err() {
            return Err(format!("`{host}` is not an IPv4 address"));
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// A place to serve clients at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientListener {
    /// Where to listen.
    pub(crate) address: HostPort,
    /// The keyspace that all calls on it go to, whatever they say; `None`: each call names its own.
    pub(crate) keyspace: Option<String>,
}

impl fmt::Display for ClientListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.keyspace {
            None => write!(f, "{}", self.address),
            Some(keyspace) => write!(f, "{}={keyspace}", self.address),
        }
    }
}

impl FromStr for ClientListener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, keyspace) = match text.split_once('=') {
            None => (text, None),
            Some((address, keyspace)) => {
                check_keyspace_name(keyspace)?;
                (address, Some(keyspace.to_owned()))
            }
        };
        Ok(Self { address: address.parse()?, keyspace })
    }
}

/// One `NAME=HOST:PORT` of `--initial-cluster` or `--dial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedAddress {
    /// A store's name.
    pub(crate) name: String,
    /// Where its peers reach it.
    pub(crate) address: HostPort,
}

impl fmt::Display for NamedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

impl FromStr for NamedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text
            .split_once('=')
            .ok_or_else(|| "an entry is NAME=HOST:PORT; the `=` is missing".to_owned())?;
        check_store_name(name)?;
        Ok(Self { name: name.to_owned(), address: address.parse()? })
    }
}

/// Longest name of a store, in bytes: it must fit a terminal's table and a label of a metric.
const STORE_NAME_BYTES_MAX: usize = 64;

/// Checks a store's name. For use as a clap value parser too.
pub(crate) fn check_store_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > STORE_NAME_BYTES_MAX || !name.chars().all(allowed) {
        return Err(format!(
            "a store's name has 1 to {STORE_NAME_BYTES_MAX} letters, digits, `.`, `-` or `_`, unlike `{name}`"
        ));
    }
    Ok(())
}

/// Parses a store's name.
pub(crate) fn store_name(name: &str) -> Result<String, String> {
    check_store_name(name).map(|()| name.to_owned())
}

/// Checks that a keyspace's name is a DNS label (RFC 1123 section 2.1, lower case), so that it can be a part
/// of a host name.
pub(crate) fn check_keyspace_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let hyphen_outside = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || hyphen_outside || !name.chars().all(allowed) {
        return Err(format!(
            "a keyspace's name has 1 to 63 lower-case letters, digits or inner hyphens, unlike `{name}`"
        ));
    }
    Ok(())
}

/// Parses a keyspace's name.
pub(crate) fn keyspace_name(name: &str) -> Result<String, String> {
    check_keyspace_name(name).map(|()| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_are_kept_as_written() {
        for text in ["127.0.0.1:2379", "[::1]:2380", "n1.db.example:1", "localhost:65535", "my_host-2:80"] {
            assert_eq!(text.parse::<HostPort>().expect(text).to_string(), text);
        }
        assert_eq!("Node-1:2380".parse::<HostPort>().expect("valid").to_string(), "node-1:2380");
        assert!("0.0.0.0:1".parse::<HostPort>().expect("valid").is_unspecified());
        assert!("[::]:1".parse::<HostPort>().expect("valid").is_unspecified());
    }

    #[test]
    fn bad_addresses_name_the_rule() {
        for (text, rule) in [
            ("localhost", "port is missing"),
            ("localhost:", "1 to 65535"),
            ("localhost:0", "1 to 65535"),
            ("localhost:65536", "1 to 65535"),
            (":2379", "host is missing"),
            ("http://localhost:2379", "without a scheme"),
            ("::1:2379", "in brackets"),
            ("[::1:2379", "IPv6"),
            ("[localhost]:2379", "IPv6"),
            ("a b:1", "cannot contain ' '"),
            ("127.0.0.256:1", "not an IPv4 address"),
        ] {
            let error = text.parse::<HostPort>().expect_err(text);
            assert!(error.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn listeners_and_named_addresses() {
        let listener: ClientListener = "127.0.0.1:3379=tenant-a".parse().expect("valid");
        assert_eq!(listener.keyspace.as_deref(), Some("tenant-a"));
        assert_eq!(listener.to_string(), "127.0.0.1:3379=tenant-a");
        assert!("127.0.0.1:3379=Tenant".parse::<ClientListener>().is_err());
        let named: NamedAddress = "n1=127.0.0.1:2380".parse().expect("valid");
        assert_eq!(named.name, "n1");
        assert!("127.0.0.1:2380".parse::<NamedAddress>().expect_err("no name").contains("NAME=HOST:PORT"));
        assert!("n 1=127.0.0.1:2380".parse::<NamedAddress>().is_err());
    }
}
