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
//! One mutation (or several), then take [`Group::ready`] and carry it out in the order of its fields. Three replicas in memory;
//! the first to lead is asked for a write and a read:
//!
//! ```
//! use std::collections::{BTreeMap, VecDeque};
//! use pontoon_raft_core::*;
//!
//! struct Host {
//!     group: Group<MemLog>,
//!     log: MemLog,
//!     /// The state machine: which commands it has executed, and up to which entry.
//!     executed: Vec<EntryId>,
//!     applied: LogIndex,
//!     /// A state that arrived, and is not the state machine's yet.
//!     staged: Option<Vec<EntryId>>,
//!     /// Reads that wait until their index is applied.
//!     readers: Vec<(LogIndex, u64)>,
//!     /// What clients and operators hear.
//!     told: Vec<String>,
//! }
//!
//! /// A message on its way; with a snapshot, the state that belongs to it.
//! type Parcel = (Message, Option<Vec<EntryId>>);
//!
//! /// Carries out what one replica asks for.
//! fn drive(host: &mut Host, now: u64, network: &mut VecDeque<Parcel>) {
//!     while host.group.has_ready() {
//!         let Ready { persist, messages, committed, reads, dropped, server_changes, state_change } =
//!             host.group.ready();
//!         // 1. Write. A real host hands this to its disk and goes on; all of it is one atomic batch.
//!         let ticket = persist.as_ref().map(|persist| persist.ticket);
//!         if let Some(persist) = persist {
//!             if let Some(snapshot) = &persist.snapshot {
//!                 host.executed = host.staged.take().expect("it came with the message");
//!                 host.applied = snapshot.index;
//!             }
//!             host.log.write(&persist);
//!         }
//!         // 2. Send.
//!         for mut message in messages {
//!             let mut state = None;
//!             match &mut message.body {
//!                 // Appends leave the core as intervals; whoever builds the frame reads the entries.
//!                 Body::AppendEntries(AppendEntries { prev_log_index, entries, .. }) => {
//!                     if let Entries::Interval { last, last_term } = *entries {
//!                         let range = prev_log_index.next()..last.next();
//!                         let Ok(read) = host.log.entries(range, u64::MAX) else { continue };
//!                         if read.last().is_some_and(|entry| entry.term != last_term) {
//!                             continue; // The log was cut since.
//!                         }
//!                         *entries = Entries::Inline(read);
//!                     }
//!                 }
//!                 // A request for the newest state. A real host streams it, and sends the message when it has arrived.
//!                 Body::InstallSnapshot(snapshot) => {
//!                     *snapshot = host.group.snapshot_meta(host.applied).expect("it is applied");
//!                     state = Some(host.executed.clone());
//!                 }
//!                 _ => {}
//!             }
//!             network.push_back((message, state));
//!         }
//!         // 3. Apply. What is executed is done, for whoever waits for its id.
//!         if let Some(range) = committed {
//!             host.applied = range.end.prev();
//!             for entry in host.log.entries(range, u64::MAX).expect("what is committed is there") {
//!                 if let Payload::Command(_) = entry.payload {
//!                     host.executed.push(entry.id);
//!                     host.told.push(format!("command {}: {}", entry.id, CommandStatus::Success));
//!                 }
//!             }
//!             host.group.applied(host.applied);
//!         }
//!         // 4. Reads may be served once their index is applied.
//!         for ReadOutcome { context, index } in reads {
//!             match index {
//!                 Some(index) => host.readers.push((index, context)),
//!                 None => host.told.push(format!("read {context}: ask again")),
//!             }
//!         }
//!         let served = host.readers.extract_if(.., |(index, _)| *index <= host.applied);
//!         host.told.extend(served.map(|(_, context)| format!("read {context}: served")));
//!         // 5. These may be proposed again, under the same id (`Attempt` says when).
//!         for Dropped { id, status } in dropped {
//!             host.told.push(format!("command {id}: {status}"));
//!         }
//!         // 6. Whoever asked for servers to be added or removed hears how that ended.
//!         for ServerChangeDone { replica, outcome, .. } in server_changes {
//!             host.told.push(format!("server {replica}: {outcome:?}"));
//!         }
//!         // 7. Clients are sent to the leader, and people see who it is.
//!         if let Some(StateChange { role, term, .. }) = state_change {
//!             host.told.push(format!("{role} of term {term}"));
//!         }
//!         // Later, when the disk says so; `persist_failed` if it says that it cannot.
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
//!     let (executed, staged, readers, told) = (Vec::new(), None, Vec::new(), Vec::new());
//!     let applied = LogIndex::ZERO;
//!     hosts.insert(replica(n), Host { group, log, executed, applied, staged, readers, told });
//! }
//!
//! let (mut now, mut asked, mut network) = (0, false, VecDeque::new());
//! while hosts.values().any(|host| host.executed.is_empty()) {
//!     for host in hosts.values_mut() {
//!         if host.group.next_deadline().is_some_and(|deadline| deadline <= now) {
//!             host.group.tick(now);
//!         }
//!         if host.group.is_leader() && !asked {
//!             host.group.propose(now, [Proposal::new(EntryId(7), "set x to 1")])?;
//!             host.group.read_index(now, 1);
//!             asked = true;
//!         }
//!         drive(host, now, &mut network);
//!     }
//!     while let Some((message, state)) = network.pop_front() {
//!         let (from, to, is_snapshot) = (message.from, message.to, state.is_some());
//!         let host = hosts.get_mut(&to).expect("all are here");
//!         host.staged = state.or(host.staged.take());
//!         host.group.step(now, message)?; // A real host notes a refusal, and goes on.
//!         drive(host, now, &mut network);
//!         if is_snapshot {
//!             hosts.get_mut(&from).expect("all are here").group.snapshot_sent(now, to, true);
//!         }
//!     }
//!     now += 10;
//! }
//! assert!(hosts.values().all(|host| host.executed == [EntryId(7)]));
//! assert!(hosts.values().any(|host| host.told.contains(&"read 1: served".to_owned())));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Code map
//! [`group`] is the handle. `raft` holds the state, compares terms and hands over to a role: `follower`, `candidate`,
//! `leader` (on its own) and `replicate` (with its followers). `check` is what is refused before. One extension each: `pre_vote`, `read_index`, `lease`,
//! `transfer`, `election_timer`, [`server_change`] (adding and removing servers in phases), `doubt` (replicas that may have lost
//! their last record), `commands` (prerequisites, overwritten commands). [`command_status`] is how a command stands. [`attempt`]
//! is the rule by which a host hands a command on from leader to leader, [`relay`] how it finds out what was lost on the way there. `log` knows terms, configurations and how far things are; the
//! entries are the host's ([`LogView`]). `tracker` is what a leader knows of each follower. `tickets` and `outbox` hold
//! back what is not durable. [`quorum`] and [`confchange`] are pure.
//!
//! # What it does not do
//! It reads no entries to send them, keeps none after handing them out, retries no client's command, and trusts no
//! clock unless it is told to ([`Config::lease_margin_ms`]).

pub mod attempt;
pub mod command_status;
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
mod check;
mod commands;
mod doubt;
mod election_timer;
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

pub use attempt::{Attempt, Heard};
pub use command_status::CommandStatus;
pub use confchange::{ConfigurationChange, InvalidChange, MemberChange};
pub use config::{Config, InitialState};
pub use error::{
    ConfigurationError, InitError, ProposeError, ServerChangeError, StepError, TimerError, TransferError,
};
pub use group::{Group, Proposal};
pub use log_view::{LogReadError, LogView};
pub use mem_log::MemLog;
pub use message::{AppendEntries, AppendReply, Body, Entries, Heartbeat, Message, VoteRequest};
pub use ready::{Dropped, Persist, ReadOutcome, Ready, StateChange};
pub use server_change::{ServerChangeDone, ServerChangeOutcome, ServerPhase};
pub use status::{FollowerState, FollowerStatus, Status};
pub use types::{
    Configuration, DoubtId, Entry, EntryId, GroupId, HardState, LogIndex, Payload, ReplicaId, Role,
    SnapshotMeta, StoreId, Term, Ticket,
};
