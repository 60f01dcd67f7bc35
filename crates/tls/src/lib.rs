//! TLS for Pontoon's listeners and dialers, with certificates that can be replaced while the process runs.
//!
//! Certificates end, and a store must not have to: whoever renews them writes the new files, and every connection made from
//! then on uses them ([`watch`]). Connections that exist go on. A file that cannot be used changes nothing and is told once.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pontoon_tls::{Certificate, ClientTls, ServerTls};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let certificate = Certificate { chain: "store.pem".into(), key: "store.key".into() };
//! // A listener that takes only those who have a certificate of this authority.
//! let server = ServerTls::load(certificate.clone(), Some("ca.pem".into()))?;
//! // A dialer that trusts only those who have one, and shows its own.
//! let client = ClientTls::load("ca.pem".into(), Some(certificate))?;
//! tokio::spawn(pontoon_tls::watch(vec![server.reloader(), client.reloader()], Duration::from_secs(5)));
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:2379").await?;
//! let connections = pontoon_tls::accept(listener, Some(server));
//! # let _ = connections;
//! # Ok(())
//! # }
//! ```
//!
//! TLS 1.2 and 1.3 by rustls with ring; HTTP/2 is announced (ALPN `h2`), which gRPC clients insist on.

mod accept;
mod certificate;
mod connect;
mod files;
mod reload;
#[cfg(feature = "testing")]
pub mod testing;

pub use accept::{ClientStream, ConnectionInfo, HANDSHAKE_MAX, accept};
pub use certificate::PeerCertificate;
pub use connect::{ClientTls, ConnectError, Stream, connector, dial};
pub use files::{Certificate, TlsError};
pub use reload::{Reloader, ServerTls, watch};
