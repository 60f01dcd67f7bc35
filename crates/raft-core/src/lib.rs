//! Raft consensus for one group: sans-IO and deterministic.
//!
//! The core decides, the host acts. The host tells it what happened (a message came, a write is durable, time passed);
//! the core says what to do ([`Ready`]). There is no clock, thread, lock or socket in here, and no randomness but a
//! seeded generator: the same calls give the same answers.
//!
//! # What it promises
//! - A command that [`Ready::committed`] names is never lost while a majority of disks keeps what it acknowledged, and
//!   every replica executes the same commands in the same order.
//! - No message claims what is not durable: terms, votes and acknowledgements wait in the core until
//!   [`Group::persisted`]. The host cannot send them too early, because it does not get them.
//! - A read index from [`Ready::reads`] is linearizable, whatever clocks do.
//! - Nothing in a message can panic, overflow, or make memory grow with a claimed length.
//! - A group with nothing to do has no deadline.
//!
//! # The loop
//! One mutation (or several), then take [`Group::ready`] and carry it out in the order of its fields. Three replicas in
//! memory:
//!
//! ```
//! use std::collections::{BTreeMap, VecDeque};
//! use pontoon_raft_core::*;
//!
//! struct Host { group: Group<MemLog>, log: MemLog, executed: Vec<EntryId> }
//!
//! /// Carries out what one replica asks for.
//! fn drive(host: &mut Host, now: u64, network: &mut VecDeque<Message>) {
//!     while host.group.has_ready() {
//!         let ready = host.group.ready();
//!         let ticket = ready.persist.as_ref().map(|persist| persist.ticket);
//!         // 1. Write. A real host hands this to its disk and goes on; hard state and entries are one atomic batch.
//!         if let Some(persist) = &ready.persist {
//!             host.log.write(persist);
//!         }
//!         // 2. Send. Appends leave the core as intervals; whoever builds the frame reads the entries.
//!         for mut message in ready.messages {
//!             if let Body::AppendEntries(append) = &mut message.body
//!                 && let Entries::Interval { last, last_term } = append.entries
//!             {
//!                 let range = append.prev_log_index.next()..last.next();
//!                 let entries = host.log.entries(range, u64::MAX).unwrap_or_default();
//!                 if entries.last().is_some_and(|entry| entry.term != last_term) {
//!                     continue; // The log was cut since.
//!                 }
//!                 append.entries = Entries::Inline(entries);
//!             }
//!             network.push_back(message);
//!         }
//!         // 3. Apply.
//!         if let Some(range) = ready.committed {
//!             for entry in host.log.entries(range.clone(), u64::MAX).unwrap() {
//!                 if let Payload::Command(_) = entry.payload {
//!                     host.executed.push(entry.id);
//!                 }
//!             }
//!             host.group.applied(range.end.prev());
//!         }
//!         // 4. to 6. would answer readers, tell clients whose commands were overwritten, and publish the new state.
//!         // Later, when the disk says so:
//!         if let Some(ticket) = ticket {
//!             host.group.persisted(now, ticket);
//!         }
//!     }
//! }
//!
//! let replica = |n| ReplicaId { store: StoreId(n), number: 1 };
//! let snapshot = SnapshotMeta {
//!     configuration: Configuration::of_voters((1..=3).map(replica)),
//!     ..SnapshotMeta::default()
//! };
//! let mut hosts = BTreeMap::new();
//! for n in 1..=3 {
//!     let config = Config { id: replica(n), seed: n, ..Config::default() };
//!     let initial = InitialState { snapshot: snapshot.clone(), ..InitialState::default() };
//!     let log = MemLog::default();
//!     let group = Group::new(config, initial, log.clone(), 0)?;
//!     hosts.insert(replica(n), Host { group, log, executed: Vec::new() });
//! }
//!
//! let (mut now, mut proposed, mut network) = (0, false, VecDeque::new());
//! while hosts.values().any(|host| host.executed.is_empty()) {
//!     for host in hosts.values_mut() {
//!         if host.group.next_deadline().is_some_and(|deadline| deadline <= now) {
//!             host.group.tick(now);
//!         }
//!         if host.group.is_leader() && !proposed {
//!             host.group.propose(now, [Proposal::new(EntryId(7), "set x to 1")])?;
//!             proposed = true;
//!         }
//!         drive(host, now, &mut network);
//!     }
//!     while let Some(message) = network.pop_front() {
//!         let host = hosts.get_mut(&message.to).unwrap();
//!         host.group.step(now, message)?;
//!         drive(host, now, &mut network);
//!     }
//!     now += 10;
//! }
//! assert!(hosts.values().all(|host| host.executed == [EntryId(7)]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Code map
//! [`group`] is the handle. `raft` holds the state, compares terms and hands over to a role: `follower`, `candidate`,
//! `leader` (on its own) and `replicate` (with its followers). One extension each: `pre_vote`, `read_index`, `lease`,
//! `transfer`, [`server_change`] (adding and removing servers in phases), `doubt` (replicas that may have lost their last record), `commands` (prerequisites, overwritten commands). [`attempt`] is the
//! rule by which a host hands a command on from leader to leader, [`relay`] how it finds out what was lost on the way there. `log` knows terms, configurations and how far things are; the
//! entries are the host's ([`LogView`]). `tracker` is what a leader knows of each follower. `tickets` and `outbox` hold
//! back what is not durable. [`quorum`] and [`confchange`] are pure.
//!
//! # What it does not do
//! It reads no entries to send them, keeps none after handing them out, retries no client's command, and trusts no
//! clock unless it is told to ([`Config::lease_margin_ms`]).

pub mod attempt;
pub mod confchange;
pub mod config;
pub mod error;
pub mod group;
pub mod log_view;
pub mod mem_log;
pub mod message;
pub mod quorum;
pub mod ready;
pub mod relay;
pub mod server_change;
pub mod status;
pub mod types;

mod candidate;
mod commands;
mod doubt;
mod follower;
mod leader;
mod lease;
mod log;
mod outbox;
mod pcg;
mod pre_vote;
mod raft;
mod read_index;
mod replicate;
mod tickets;
mod tracker;
mod transfer;

pub use attempt::Attempt;
pub use confchange::{ConfigurationChange, InvalidChange, MemberChange};
pub use config::{Config, InitialState};
pub use error::{
    ConfigurationError, InitError, ProposeError, ServerChangeError, StepError, TimerError, TransferError,
};
pub use group::{Group, Proposal};
pub use log_view::{LogReadError, LogView};
pub use mem_log::MemLog;
pub use message::{AppendEntries, AppendReply, Body, Entries, Heartbeat, Message, VoteRequest};
pub use ready::{DropReason, Dropped, Persist, ReadOutcome, Ready, StateChange};
pub use server_change::{ServerChangeDone, ServerChangeOutcome, ServerPhase};
pub use status::{FollowerState, FollowerStatus, Status};
pub use types::{
    Configuration, DoubtId, Entry, EntryId, GroupId, HardState, LogIndex, Payload, ReplicaId, Role,
    SnapshotMeta, StoreId, Term, Ticket,
};
