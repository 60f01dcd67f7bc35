//! An etcd-v3 keyspace as a replicated state machine, and its gRPC services; beside it, in the same engine, plain logs
//! ([`log`]).
//!
//! A [`KeyspaceMachine`] applies committed commands to an [`Engine`], the one embedded database of a store; a
//! [`Keyspace`] reads what is applied, beside it; [`EtcdServices`] speak etcd's API over both, and need a
//! [`consensus::Consensus`] to replicate.
//!
//! ```
//! use pontoon_kv::{Command, Engine, EngineOptions};
//! use pontoon_node::state_machine::{Committed, StateMachine};
//! use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest};
//! use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let engine = Engine::open(dir.path(), &EngineOptions::default())?;
//! let mut machine = engine.open_keyspace(GroupId(1))?;
//! let put = PutRequest { key: "a".into(), value: "b".into(), ..Default::default() };
//! let command = Some(Command::encode_put(&put));
//! machine.apply(&[Committed {
//!     index: LogIndex(1),
//!     term: Term(1),
//!     id: EntryId(7),
//!     command,
//!     wants_reply: false,
//! }])?;
//! let got = machine.keyspace().range(&RangeRequest { key: "a".into(), ..Default::default() })?;
//! assert_eq!(got.kvs[0].value, "b");
//! assert_eq!(got.header.unwrap().revision, 2);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! - Data, revision and applied index change in one atomic write; a crash leaves the state as of *some* entry, and what
//!   came after is applied again. Nothing is synced on the way.
//! - A transaction is judged before any of it is applied, the same on every store.
//! - Reads take a snapshot of the database: they never wait for writes, and writes never for them.
//! - A read at the current revision does not touch old versions; a compaction costs what happened since the last one.
//! - Hashes do not depend on how far the physical removal of compacted versions has come.
//!
//! # Map
//! `command` what is in the log, and replies · `check` what is refused before · `engine`, `slots` the database and its slots · `log` plain replicated logs ·
//! `heads` what was written lately ·
//! `background` slow work · `mvcc::records` how bytes look · `mvcc::writer` batches · `mvcc::apply` commands ·
//! `write_id`, `mvcc::once` writes that come again · `mvcc::txn` · `leases` when they end · `expiry` the task that ends them · `autocompact` when the past is forgotten by itself ·
//! `upkeep` the task that does it · `auth` users and roles · `mvcc::control` alarms, users, roles · `mvcc::frames` and
//! `mvcc::restore` saved states · `mvcc::view` and `mvcc::range` reads · `mvcc::events` what watchers see · `mvcc::image` snapshots ·
//! `keyspace` which one is meant · `services` one file per etcd service.
//!
//! # Where etcd differs
//! Keys are at most 32 KiB. A saved state is a stream of our own, not a bolt file.

mod answers;
mod auth;
mod autocompact;
mod background;
mod check;
mod command;
pub mod consensus;
mod creation;
mod engine;
mod error;
mod expiry;
mod heads;
pub mod keyspace;
mod leases;
pub mod log;
mod mvcc;
mod services;
mod slots;
mod upkeep;
mod write_id;
mod writeback;

pub use answers::AnswerCharge;
pub use autocompact::Retention;
pub use check::Limits;
pub use command::{BadReply, Command, decode_reply};
pub use engine::{Engine, EngineOptions};
pub use error::{EtcdError, StoreError, outcome};
pub use expiry::expire_leases;
pub use mvcc::apply::KeyspaceMachine;
pub use mvcc::frames::saved_revision;
pub use mvcc::state::{Keyspace, KvHash, ReadFailure};
pub use services::{CertificateUser, ENTRY_ID_METADATA, ETCD_VERSION, EtcdServices, POSITION_METADATA};
pub use upkeep::{UpkeepStats, look_after};
pub use write_id::WriteId;
