//! Plain replicated logs: groups that keep the entries they are given, in the order in which they were committed.
//!
//! An entry has a position, its index in the group's Raft log (so there are gaps, where a leader's term began or members
//! changed), and a name, an entry id that its writer has chosen. The log keeps both for as long as it lives, and judges by
//! them when an append is *applied*, where its place among all others is certain:
//!
//! - An id that is there already is not appended again; the answer tells where it is. So whoever has not heard of an append
//!   asks again by the same id, of any store, however late.
//! - An append with a *prerequisite* is refused unless the log's last entry has that id. A chain of appends that each name
//!   the one before thus has no gaps and no strangers in it, and its writers may send them without waiting.
//!
//! The core knows prerequisites as well, and the leader's core could refuse earlier. It is not asked: to the core the last
//! command of the log may be a repeated append, or one that is going to be refused, neither of which changes the log that
//! people see.
//!
//! Entries live in the engine of the store, in a slot of their own (`history`: entries by index; `index`: indexes by id).

mod command;
mod image;
mod machine;
mod state;

pub use command::{Append, AppendRefused, Appended, BadLogReply, decode_reply};
pub use machine::LogMachine;
pub use state::{LogEntry, LogFigures, LogState};

/// The most bytes that one entry may have: what an etcd request may have.
pub const ENTRY_BYTES_MAX: usize = 3 << 19;
