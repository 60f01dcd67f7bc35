//! Store links: lanes, send queues, batching and receive budgets between two Pontoon stores.
//!
//! A [`Transport`] carries the messages of all Raft groups of one store to the other stores and back, over a few gRPC
//! connections per peer, however many groups there are.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//!
//! use pontoon_raft_core::message::{Body, Message};
//! use pontoon_raft_core::types::{Entry, GroupId, LogIndex, ReplicaId, StoreId, Term};
//! use pontoon_transport::*;
//!
//! /// Hands what arrives to the test.
//! struct Host(mpsc::Sender<(StoreId, GroupId, Message)>);
//!
//! impl Inbound for Host {
//!     fn receive(&self, from: StoreId, messages: Vec<(GroupId, Message)>, _permit: ReceivePermit) {
//!         for (group, message) in messages {
//!             let _ = self.0.send((from, group, message));
//!         }
//!     }
//!     fn proposals(&self, _: StoreId, _: Vec<RelayedProposal>) {}
//!     fn proposal_replies(&self, _: StoreId, _: Vec<ProposalReply>) {}
//!     fn unreachable(&self, _: StoreId, _: Vec<GroupId>) {}
//!     fn link_down(&self, _: StoreId, _refused: bool) {}
//!     fn link_up(&self, _: StoreId) {}
//!     fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
//!         Err(Refused::UnknownReplica)
//!     }
//!     fn snapshot_sent(&self, _: StoreId, _: GroupId, _: ReplicaId, _ok: bool) {}
//! }
//!
//! /// A store without a log.
//! struct NoEntries;
//!
//! impl EntrySource for NoEntries {
//!     fn entries(&self, _: GroupId, _: LogIndex, _: LogIndex, _: Term, _: u64) -> Option<Vec<Entry>> {
//!         None
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = tokio::runtime::Runtime::new()?;
//! let (heard, hear) = mpsc::channel();
//! let (cluster, alice, bob) = (7, StoreId(0xa11ce), StoreId(0xb0b));
//! let mut stores = Vec::new();
//! for (store, name) in [(alice, "alice"), (bob, "bob")] {
//!     let config = TransportConfig::new(cluster, store, name);
//!     let host = Arc::new(Host(heard.clone()));
//!     let transport = Transport::start(config, host, Arc::new(NoEntries), runtime.handle().clone());
//!     let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
//!     let address = listener.local_addr()?;
//!     let service = transport.peer_service();
//!     runtime.spawn(server_builder().add_service(service).serve_with_incoming(incoming(listener)));
//!     stores.push((transport, address));
//! }
//! let [(to_bob, at_alice), (to_alice, at_bob)] = &stores[..] else { unreachable!() };
//! // Alice's messages go over connections that she dials; Bob takes them because he knows her.
//! to_alice.set_peer(alice, at_alice.to_string());
//! to_bob.set_peer(bob, at_bob.to_string());
//!
//! let message = Message {
//!     from: ReplicaId { store: alice, number: 1 },
//!     to: ReplicaId { store: bob, number: 1 },
//!     term: Term(3),
//!     doubt: None,
//!     body: Body::TimeoutNow,
//! };
//! // Nothing is promised about a message sent before the link is up, so it is sent until it arrives.
//! let received = loop {
//!     to_bob.send(bob, GroupId(42), message.clone());
//!     if let Ok(received) = hear.recv_timeout(std::time::Duration::from_millis(50)) {
//!         break received;
//!     }
//! };
//! assert_eq!(received, (alice, GroupId(42), message));
//! # to_bob.shutdown();
//! # to_alice.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//! - [`Transport::send`] never waits and guarantees nothing. Each message ends as exactly one of *sent*, *cancelled*
//!   (a stale append) or *reported* ([`Inbound::unreachable`], once per group, lane and loss epoch); a relayed
//!   proposal that did not reach the wire is answered with [`ProposalOutcome::NotSent`].
//! - What one group sends on one lane arrives in order, except that a stream may break. Groups take turns: each has a share
//!   of each round, and a message that is too large for a frame travels in pieces beside the others, so that a group that
//!   floods, or sends giants, delays another one by a share.
//! - Everything is bounded: send queues in messages and bytes, frames, what is received and not processed, snapshots
//!   at a time, strangers. A receiver grants its senders credits, so what all of them bring stays within its budget
//!   and is not dropped. A peer that is slow, dead, half-open or lying costs no more than its bounds.
//! - Nothing on the log lane or of a snapshot can delay the control lane: each has its own connection.
//! - A dead link is found: by its socket, or by a probe on that very connection after an election timer and a second
//!   of silence, and dropped after the same time again.
//! - What peers send is checked before the host sees it. Whether a peer is who it says is left to TLS.
//! - Nothing of a process is delivered, and nothing is sent to it, before the host has taken what it says of its data
//!   directory ([`Inbound::meet`], and [`Inbound::admit`] before its first Raft message); a refusal that is final ends the
//!   transport of the refused one. While a process of a
//!   store is connected and alive, a second one with its id is turned away, and for good once the first one has proven
//!   to be alive after the second one came: by the echo of a probe that was sent later.
//!
//! # The way of a message
//! ```text
//!  send()          queue per store and lane          frame, built when             socket
//!  [Transport] --> [SendQueue: descriptors] -- woken --> [FrameStream] -- tonic --> control | log
//!                   ^ full, down: reported      reads entries from EntrySource         |
//!  [lane task: reconnect machine, probes, reports] <-- replies: acks, pongs -----------+
//!                                                                                      v
//!  [Inbound::receive] <-- receive budget <-- [wire gate] <-- counts checked <-- [acceptor, hello]
//! ```
//! A lone message on an idle link wakes the task that writes the stream, and nothing in between.
//!
//! # Code map
//! | file | job |
//! |---|---|
//! | `transport.rs` | the handle: peers, sending, status, live settings |
//! | `api.rs` | what the host implements, what travels besides Raft messages |
//! | `send_queue.rs` | what waits for one store on one lane, and what was lost; `waiting.rs` whose turn it is, `large.rs` messages in pieces |
//! | `beats.rs` | heartbeats of many groups as one message |
//! | `batch.rs` | which waiting messages form the next frame |
//! | `lane.rs` | one task per lane: when to dial, probe, drop, report |
//! | `dial.rs`, `io.rs` | how to connect: a fresh channel over a socket that can be killed |
//! | `acceptor.rs` | the gRPC service: who may speak, which streams are open |
//! | `receive.rs`, `receive_budget.rs` | reading the streams of peers within a byte budget |
//! | `assembly.rs` | large messages, put together again |
//! | `credit_book.rs` | how far each peer may send, so that all together keep to it |
//! | `identity.rs` | what a hello says of the data directory |
//! | `frames.rs` | frames in the bodies of HTTP/2 streams |
//! | `wire.rs` | protobuf to core types and back, the one gate for foreign data; `wire/outgoing.rs` and `wire/quick.rs`: without the generated types, for what is most |
//! | `snapshot_send.rs`, `snapshot_receive.rs`, `snapshot_io.rs` | snapshots on their own connection |
//!
//! # Who may touch what
//! A send queue has many who push and one stream that takes, under one lock that is never held across a wait. Nothing about a
//! message is decided outside of it: whether it waits, is in the frame being built (`building`; its frame is told to the queue in
//! one call), is under way, or lost. A stream names itself by its epoch, and one that is over, also in the midst of a frame, gets
//! nothing and changes nothing but to hand its messages back to be told as lost. So there is no order of events in which a
//! message is sent and reported, or neither; there are no atomic counters that could disagree. The receive budget's counters are
//! atomic, and each taking is undone once, by the permit that was made with it.
//!
//! # What it does not do
//! It does not know what a message means (but for heartbeats, which it packs), retries nothing, and elects nobody. Which
//! entries may be sent at all is for its host to say (`pontoon-flow`); here is only what fits on the way.

mod acceptor;
mod api;
mod assembly;
mod batch;
mod beats;
mod config;
mod credit_book;
mod dial;
mod error;
mod frames;
mod groups;
mod identity;
mod io;
mod lane;
mod log_limit;
mod receive;
mod receive_budget;
mod send_queue;
pub mod snapshot_io;
mod snapshot_receive;
mod snapshot_resume;
mod snapshot_send;
mod status;
mod transport;
mod wire;

pub use acceptor::{PeerService, incoming, server_builder};
pub use api::{
    EntrySource, FEATURE_BEATS, FEATURE_CREDITS, FEATURE_PIECES, FEATURE_REPORTS, Inbound, ProposalOutcome,
    ProposalReply, RelayedProposal, Report,
};
#[doc(hidden)]
pub use assembly::pass_gate;
pub use config::{Limits, TransportConfig};
pub use error::{NotQueued, QueueFull, Refused, Unwelcome, WireError};
pub use identity::{Claim, Identity};
pub use receive_budget::ReceivePermit;
pub use snapshot_io::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink};
pub use status::{Direction, Lane, LinkErrorKind, LinkStatus, WaitsFor};
pub use transport::Transport;
