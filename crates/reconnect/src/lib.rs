//! When to connect, probe and drop one connection: the whole policy, and nothing else.
//!
//! [`Reconnect`] behaves like the reconnect library of Open vSwitch. It does no I/O, reads no clock, has no
//! randomness and depends on nothing: it is told what happened and what time it is, and says what to do next. So it
//! can serve a link between two stores, a client's channel, or a listener, on any runtime, and the same inputs always
//! give the same outputs.
//!
//! # What it promises
//! - A remote that *fails* is tried again after a wait that doubles from 1 s to 8 s (both can be set), so that a peer
//!   that is down or overloaded is not stormed. An attempt may take as long as the present wait, at least a second.
//! - A remote that is healthy and merely *no longer suits* (it stopped leading) costs no wait:
//!   [`graceful_reconnect`](Reconnect::graceful_reconnect) lets every remote be tried once, and only then the waits
//!   begin, from the shortest. [`force_reconnect`](Reconnect::force_reconnect) is for a peer that is sick: the wait
//!   grows.
//! - A peer that is silent for the probe interval is probed, and dropped after the same time again. Neither happens
//!   before the caller has tried to receive after the timer ran out, so a busy caller drops no healthy peer.
//! - No decision uses times of an earlier connection.
//! - At most one thing is asked at a time, and [`next_deadline`](Reconnect::next_deadline) says when to ask again. It
//!   is at or before `now` exactly when [`run`](Reconnect::run) has something to say.
//! - No input panics, with any number up to `u64::MAX`.
//!
//! # The states
//! ```text
//!   Void --enable--> Backoff --connecting--> Connecting --connected--> Active <--activity-- Idle
//!                       ^                        |                       |   --run: Probe-->  |
//!                       |<----connect_failed-----+                       |                    |
//!                       |<----disconnected-------+-----------------------+--------------------+
//!                       |                        +----- force_reconnect -+--------------------+
//!                       |                        v
//!                       +<--disconnected-- Reconnect          Listening (passive) --connected--> Active
//! ```
//! [`State`] has the complete diagram.
//!
//! # The loop that drives it
//! One round: report what happened, [`run`](Reconnect::run), obey, report that; sleep until
//! [`next_deadline`](Reconnect::next_deadline) or the next event. *Report before you drop*: the machine must know that
//! a connection is gone before the next `run`, or it asks again.
//!
//! ```
//! use pontoon_reconnect::{Action, Reconnect, State};
//!
//! /// A peer that refuses twice, then accepts and never says a word.
//! struct Peer { refusals: u32 }
//! impl Peer {
//!     fn dial(&mut self) -> bool {
//!         let accepted = self.refusals == 0;
//!         self.refusals = self.refusals.saturating_sub(1);
//!         accepted
//!     }
//! }
//!
//! let (mut now, mut peer, mut log) = (0, Peer { refusals: 2 }, Vec::new());
//! let mut link = Reconnect::new(now);
//! link.enable(now);
//! while now < 20_000 {
//!     match link.run(now) {
//!         Some(Action::Connect) => {
//!             link.connecting(now); // a real attempt would go on in the background
//!             let accepted = peer.dial();
//!             if accepted { link.connected(now) } else { link.connect_failed(now) }
//!             log.push((now, if accepted { "connected" } else { "refused" }));
//!         }
//!         Some(Action::Probe) => log.push((now, "probe")),
//!         Some(Action::Disconnect) => {
//!             link.disconnected(now); // then close it
//!             log.push((now, "dropped"));
//!         }
//!         None => {}
//!     }
//!     // A real loop waits for the socket as well, reports `activity` when bytes came, and in any case:
//!     now = link.next_deadline(now).expect("an enabled active machine always has a next step");
//!     link.receive_attempted(now);
//! }
//! assert_eq!(log[..5], [
//!     (0, "refused"), (1_000, "refused"), (3_000, "connected"), (8_000, "probe"), (13_000, "dropped"),
//! ]);
//! assert_eq!(log[5..], [(17_000, "connected")]); // silence is no merit: the wait has grown
//! assert_eq!(link.state(), State::Active);
//! ```
//!
//! # With tokio
//! With the feature `tokio`, `driver::Driver` is that loop, for anything that can be connected, probed and dropped.
//!
//! # Where things are
//! | file | what |
//! |---|---|
//! | `state.rs` | the states, the diagram, the three things that can be asked |
//! | `machine.rs` | [`Reconnect`]: inputs, deadlines, decisions |
//! | `backoff.rs` | [`BackoffLimits`]: the arithmetic of waiting |
//! | `stats.rs` | [`Stats`]: a machine's picture of itself |
//! | `driver.rs` | the loop for tokio (feature `tokio`) |
//! | `examples/reconnect-script.rs` | a program that drives a machine by a script, for comparing implementations |
//!
//! # What it does not do
//! It opens, reads and closes nothing, resolves no names, and does not choose between remotes: the caller goes to the
//! next one at every `Connect`. It adds no jitter (the driver can). It logs nothing and keeps no errors. It knows one
//! connection; a caller with several has several machines.

mod backoff;
#[cfg(feature = "tokio")]
pub mod driver;
mod machine;
mod state;
mod stats;

pub use backoff::{BackoffLimits, DEFAULT_MAX_BACKOFF_MS, FLOOR_MS, attempt_patience_ms};
pub use machine::{DEFAULT_PROBE_INTERVAL_MS, ELECTION_RANGE_MS, JOINING_PROBE_INTERVAL_MS, Reconnect};
pub use state::{Action, State};
pub use stats::Stats;
