//! A leader-aware Rust client for Pontoon's keyspaces (the etcd v3 API) and its admin API.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use pontoon_client::{Client, Config, Outcome};
//!
//! let client = Client::new(Config::new(["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"]))?;
//! let tenant = client.keyspace("tenant-a")?;
//! if let Err(error) = tenant.put("greeting", "hello").await {
//!     match error.outcome() {
//!         Outcome::NotExecuted => {} // nothing happened; try again whenever you like
//!         Outcome::Executed => {}    // it happened, once; only the answer is lost
//!         Outcome::Unknown => {}     // read the key before you write again
//!         Outcome::Refused => return Err(error.into()),
//!     }
//! }
//! let value = tenant.get("greeting").await?.map(|kv| kv.value);
//! # let _ = value;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//! - One list of remotes; a *session* is with one of them at a time, over several HTTP/2 connections that calls take in
//!   turn. With [`leader_only`](Config::leader_only) it is with the store that leads the keyspace.
//! - When to connect, probe and drop is decided by one machine per session (`pontoon-reconnect`). Each attempt makes
//!   fresh connections; a connection that broke is never repaired behind the machine's back.
//! - A store that is healthy but does not lead costs no wait: after a session that worked every remote is tried once
//!   at once, the one that was named as the leader first. When none suits, waits from 1 s to 8 s limit the flood.
//! - A silent store is found: any byte on a connection is a sign of life, each connection of a session needs its own,
//!   and without one the store is asked, and dropped when it does not answer.
//! - Every call has a deadline. It is repeated while that is safe: reads always, and writes to keyspaces too, because each
//!   has a name by which the keyspace executes it once (below). [`CallError::outcome`] says what is certain about a call
//!   that failed.
//! - Dropping a call's future disturbs no other call; see [`Keyspace`] about what becomes of the write.
//!
//! # The way of a call
//! ```text
//! Keyspace::put -> Caller::call --wait for--> Link <--published-- Session <--driven-- reconnect::Driver
//!                     |  one attempt: a channel of the link, deadline, keyspace, entry id      |
//!                     |  verdict: answered | refused | not executed: again | unknown           v
//!                     +--"not leader"----------------------------------------------> graceful reconnect
//! ```
//!
//! # Writes that are sent again
//! When an answer is lost, nobody can tell whether the write was executed. So each write to a keyspace has a *name* (metadata
//! `pontoon-eid`), the same in all attempts. The keyspace remembers the names and answers of its last writes, as part of
//! its replicated state: an attempt that comes after a successful one gets the first one's answer, and has no effect. At
//! least the last 131,072 named writes are remembered (fewer when their answers are large: 16 MiB of them), so for some
//! seconds at the highest rates and for days at low ones. A name that may be forgotten is refused, never executed
//! twice: the call then ends with an unknown outcome. Before the first write to a keyspace the client asks once for the
//! position that names begin with; with servers that tell none (etcd) writes have no names, and the first unknown
//! outcome ends the call.
//!
//! # Where things are
//! | file | what |
//! |---|---|
//! | `client.rs` | [`Client`]: sessions, and who shares them |
//! | `keyspace.rs`, `admin.rs` | the calls |
//! | `call.rs` | one call: attempts, verdicts, deadline |
//! | `names.rs` | names of writes |
//! | `session.rs` | the connections to one store; leadership |
//! | `tap.rs` | signs of life |
//! | `remotes.rs` | which store to try next |
//! | `config.rs`, `error.rs` | what can be set, what can go wrong |
//!
//! # What it does not do
//! It caches nothing, balances no load between stores, and makes no watches or leases: use any etcd client for those.
//! It does not learn new remotes from the cluster. A leader-only client has connections for each keyspace it uses, so
//! it is not for thousands of them.

mod admin;
mod call;
mod client;
mod config;
mod error;
mod keyspace;
mod names;
mod remotes;
mod session;
mod tap;

pub use admin::Admin;
pub use client::Client;
pub use config::Config;
pub use error::{CallError, ConfigError, Outcome};
pub use keyspace::Keyspace;
pub use session::SessionStatus;

pub use pontoon_proto as proto;
pub use pontoon_reconnect::Stats;
pub use pontoon_reconnect::driver::Jitter;
