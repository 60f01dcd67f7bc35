//! Every schedule of a small group: an exhaustive search over the *real* core.
//!
//! A [`Model`] bounds a group (replicas, terms, entries, crashes, …). [`explore`] then tries every order in which its
//! messages can arrive and its timers, disks, clients and power can act, and checks all invariants of
//! [`crate::raft::invariants`] in each state. There is no second description of the protocol that could differ from the
//! code: a state is a set of cloned `Group`s with their disks.
//!
//! | what may happen | how it is in the model |
//! |---|---|
//! | a message is late, or overtaken | the network is a multiset; any message may be the next |
//! | a message is lost | it is never delivered: nothing forces it to be |
//! | a message comes twice | delivered and kept, as often as the model allows |
//! | a timer runs out, or a clock is fast | any replica may time out at any moment; each has a clock of its own |
//! | a disk is slow | each write is synced as a step of its own, in order, whenever |
//! | power fails | a replica falls back to what was synced and starts again at once (being down for long is the same as getting no messages and no time) |
//! | a synced record is lost | the last batch of a replica is taken back, and it starts in doubt |
//! | clients, operators | propose, read, change members, compact, transfer, within the model's bounds |
//!
//! # States
//! A state is known again by a 64-bit digest of the replicas ([`digest`](self)), their disks and state machines, the
//! network as a multiset, the invariants' memory (who led which term, what was ever committed, who voted for whom: two
//! pasts that a property may tell apart are two states), and what is left of the bounds. In ten million states two have
//! the same digest with a probability of about 3 in a million; then one of them is not searched further.
//!
//! Clocks and random timeouts are no part of a state but for what they decide: a timestamp counts as "just now", "within a
//! heartbeat", "within an election timer" or "longer ago", a deadline as due or not. So of the states that differ in
//! nothing else one stands for all; what is reported is always real, since every state was reached by real calls.
//!
//! # Reductions
//! - Messages that would change nothing but their own number are not delivered: whatever follows also follows from not
//!   delivering them.
//! - The first timeout is the first replica's if the model names no replica otherwise: the others are its mirror images.
//! - Equal messages are delivered once per state, being the same.
//! - A message need not arrive, and what may happen need not: whatever follows from a state also follows from one that has the same
//!   replicas, more messages on the way and more that may happen. Once that one was seen, this one is not looked at (`seen.rs`).
//! - Where nothing asks who was heard when (no leases, transfers, changes of members), that is no part of a state.
//! - Most models forget answers of terms that their receiver has left for good ([`Model::forget_stale`]).

mod digest;
mod model;
mod models;
mod replica;
mod search;
mod seen;
mod world;

pub use model::{Bounds, Model, Sync};
pub use models::{MODELS, exhaustible, model};
pub use search::{Counterexample, Limits, Order, Report, explore};
pub use world::{Action, DigesterPool, World};
