//! End-to-end flow control for logs that a leader replicates to followers: who may send how much to whom, and when work may
//! begin. Sans-IO: no clock, thread, lock or socket; it depends on nothing but the types of `pontoon-raft-core`.
//!
//! The question is what a slow follower costs the others. Without an answer it costs the leader memory (what waits for it),
//! the followers that are well their pace (they share queues with it), or the slow store itself its life (it receives more
//! than it can handle). Here it costs nobody but itself: what waits for it is an index interval in the leader's log, and
//! commands begin at the pace of a quorum.
//!
//! # The specification
//! *Tokens* are bytes. For each *destination store* there are two pools, shared by all groups: evaluation tokens decide whether
//! a command may begin, send tokens whether its entries may go on the wire. There are two classes ([`Class`]): *regular* work
//! takes from both of a pool's limits, *elastic* work (background jobs, and catching up) from the elastic one alone, which is
//! smaller, so it starves first. Tokens that are taken come back when the follower has *admitted* the entries: they are
//! durable there, and the backlog of what it has to apply is short ([`LogTracker`]).
//!
//! A [`Controller`] governs one group while this store leads it in one term. For each follower it is in one of these states:
//!
//! ```text
//!                    replicate                probe, no queue              400 ms
//!        Away -----------------------> Open -----------------> Grace --------------------> Away
//!      nothing held,                tokens held,           nothing held, counts only
//!      counts for nothing           queue [from, next)     for the quorum's safety
//!          ^                            |
//!          +----------------------------+  snapshot, probe with a queue, another index than expected, removed:
//!                                          everything that was held comes back
//! ```
//!
//! - **Begin** ([`Controller::evaluate`]). A regular command begins when the leader, and followers with evaluation tokens and
//!   without a queue, are a quorum of each set of voters; an elastic one needs tokens of every follower that is streamed to.
//!   Groups that wait are woken first come, first served, one at a time, and nobody overtakes them.
//!   What may be begun towards one store is also bounded by its *window*, about what it admits in half a second: a limit is made
//!   for the quickest store and the longest way, and is many seconds of data to a slow one. A window is only a smaller limit:
//!   no token is taken or given back for it.
//! - **Send** ([`Controller::plan`]). A follower without a queue is sent everything while its store has a token (into debt, for
//!   one round), and nothing when it has none: then a queue forms, which holds no bytes. Queues are fed by grants of elastic
//!   tokens, in turn over all groups. If too few followers without a queue would be left for a quorum, the least loaded are
//!   sent to in spite of their tokens; what is under way in this way to one store, for all groups, has a cap.
//! - **Yield** ([`Pools::pass`]). All elastic work, catching up and background commands, shares a pace in bytes a second. It follows
//!   what regular commands take from proposal to answer: it grows while they take as long as usual and shrinks as soon as they
//!   take longer, down to a floor above what the queues grow by, so that a queue always ends. What is flushed by force has no pace.
//! - **Come back** ([`Controller::admitted`]). A report names a term and an index for each class ([`Admitted`]). It is cumulative:
//!   lost, repeated, reordered or late reports are harmless. A leader that holds tokens and hears nothing asks
//!   ([`Controller::asks`]).
//! - **Close** ([`Controller::close`]). When the term or the leadership ends everything comes back at once.
//! - **Receive** ([`Credits`]). Pools bound what one store sends to another. What *all* stores send to one is bounded by it: it
//!   grants each stream offsets that only grow, so that all windows together stay within its budget.
//!
//! # Invariants
//! [`check`] verifies these (but I11, which depends on the past, I7 and I6, which hold by the type, and C1); the simulation in
//! `tests/` calls it after every event.
//!
//! | | |
//! |---|---|
//! | I1 | What a pool counts as held is the sum of what all streams hold, and of grants that were not fetched. Nothing comes back twice. |
//! | I2 | Entries that were there before a stream opened hold no evaluation tokens. |
//! | I3 | What was sent and not admitted is in the order of the log, and before the queue. |
//! | I4 | After settling, a stream without a queue holds nothing for one: no bytes, no grant, no place in line, no force. |
//! | I5 | A queue waits for tokens, or has some, or is flushed by force: one of these at most. |
//! | I6 | A follower that is not streamed to counts as if it had a queue: the full pool of a dead store is no capacity. |
//! | I7 | A follower in grace holds nothing. |
//! | I8 | A group has one controller at most, and that is of one term. |
//! | I9 | Only streams that are open wait, or are granted anything. |
//! | I10 | Whatever is held is held by an open stream, for entries that the follower will admit or whose stream will close; only groups with a controller wait. |
//! | I11 | Debt is bounded: beyond its limit a store's pool holds one round of one group, and what is forced; and that within its cap and one round. |
//! | I12 | A store's window has a least and a most: what is not under way any more always leaves room to begin. |
//! | C1 | What all senders together may send, or have sent and is not processed, is within the receiver's budget. |
//!
//! There are no races to check: [`Pools`] has one owner. A host with several threads puts it under one lock, takes that once for
//! each group it looks at, and hands [`Pools::take_wakes`] on.
//!
//! # How it is driven
//! Whenever a host looks at a group that it leads:
//!
//! ```
//! use pontoon_flow::*;
//! use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, StoreId, Term};
//!
//! let replica = |store| ReplicaId { store: StoreId(store), number: 1 };
//! let (me, near, far) = (replica(1), replica(2), replica(3));
//! let configuration = Configuration::of_voters([me, near, far]);
//! let mut pools = Pools::new(Mode::All, Limits::default());
//! let mut group = Controller::new(GroupId(7), Term(1), me, LogIndex(1), configuration);
//! let (mut now, mut last) = (0, 0);
//!
//! // `far` admits nothing. 40 MiB go through all the same, at the pace of `near`.
//! for round in 0..40 {
//!     for follower in [near, far] {
//!         // 1. How Raft sends to each follower now. (Here: everything was sent, until there is a queue.)
//!         if round == 0 {
//!             group.follower(&mut pools, now, follower, FollowerState::Replicate { next: LogIndex(1) });
//!         }
//!     }
//!     // 2. May commands begin?
//!     assert!(matches!(group.evaluate(&mut pools, Class::Regular), Verdict::Go { .. }));
//!     // 3. What may Raft send to each?
//!     let mut may_send = Vec::new();
//!     group.plan(&mut pools, false, |follower, credit| may_send.extend(credit.is_none().then_some(follower)));
//!     // 4. What was appended, and what Raft sent.
//!     last += 1;
//!     group.appended(&mut pools, &[EntryCost { index: LogIndex(last), class: Class::Regular, bytes: 1 << 20 }]);
//!     for follower in may_send {
//!         group.sent(&mut pools, now, follower, LogIndex(last)..LogIndex(last + 1));
//!     }
//!     // 5. Done with this look.
//!     group.settle(&mut pools);
//!     // Later: a report comes.
//!     let upto = PerClass { regular: LogIndex(last), elastic: LogIndex(last) };
//!     group.admitted(&mut pools, now, near, Admitted { term: Term(1), upto });
//!     check(&pools, [&group])?;
//!     // In each turn of the host's loop: elastic work has its pace. Ten regular commands were answered, after 2 ms each.
//!     pools.pass(now, 10, 20_000);
//!     now += 10;
//! }
//! let of = |store| pools.views().find(|view| view.store == StoreId(store)).unwrap();
//! assert_eq!(of(2).send_available.regular, 16 << 20, "everything came back");
//! assert_eq!(of(3).send_available.regular, 0, "sixteen entries are on their way, the others are a queue");
//! group.close(&mut pools);
//! assert!(pools.is_full());
//! # Ok::<(), Violation>(())
//! ```
//!
//! # Code map
//! `class.rs` and `limits.rs` are words and numbers. `pools.rs` is what groups share, `fifo.rs` their turns, `pace.rs` how fast
//! elastic work goes, `usual.rs` whether regular work suffers, `window.rs` how much of a pool a slow store has. `controller.rs`
//! is one group's events, `stream.rs` what it holds for one follower; `eval.rs` and `plan.rs` are its two decisions. `follower.rs` and `credits.rs` are the other end. `check.rs` judges all of it.
//!
//! # Where it differs from its models
//! The ideas are those of CockroachDB's second replication admission control; these parts are not. A follower knows no class of an
//! entry: it reports how far its backlog allows *each* class, so entries carry none. What a controller may begin is told in
//! bytes, since a command's size is known before it begins. A quorum that cannot be had, because its followers are gone, is
//! not waited for. Force has a cap over all groups. The leader's own store has no tokens: its disk paces what is
//! uncommitted, which Raft bounds.

mod check;
mod class;
mod controller;
mod credits;
mod eval;
mod fifo;
mod follower;
mod limits;
mod pace;
mod plan;
mod pools;
mod stream;
mod usual;
mod window;

pub use check::{Violation, check};
pub use class::{Bytes, Class, PerClass};
pub use controller::{Controller, FollowerState};
pub use credits::Credits;
pub use eval::Verdict;
pub use follower::{Admitted, BacklogLimits, LogTracker};
pub use limits::{
    ASK_AFTER_MS, FORCED_BYTES_MAX, Limits, Mode, POOL_BYTES_MAX, POOL_BYTES_MIN, PROBE_GRACE_MS,
};
pub use pools::{Counters, Pools, StoreView};
pub use stream::EntryCost;
pub use usual::Usual;
