//! Decides whether what clients saw can be explained by one operation after the other.
//!
//! A *history* is a list of operations: who called what, when the call began, and when which answer
//! came. An operation without an answer has an *unknown outcome*: it may have taken effect at any time
//! after its call, or never. A history is linearizable (Herlihy and Wing 1990) if there is an order of the
//! operations that (1) a sequential [`Model`] accepts with exactly these answers, and (2) never puts an
//! operation before another one that was answered before the first was called.
//!
//! The search is that of Wing and Gong with the memory of Lowe ("Testing for linearizability", 2017):
//! depth first, never twice into the same pair of (set of operations done, state). Since a history over
//! many keys is linearizable exactly if the history of each key is (P-compositionality), [`check`] looks at
//! one key after the other.
//!
//! | module | what it holds |
//! |---|---|
//! | `history` | operations and their outcomes |
//! | `model` | what a sequential specification must tell |
//! | `search` | the search over the operations of one key |
//! | `check` | split by key, verdict |
//! | `shrink` | the smallest failing window of a history that failed |
//! | `report` | that window for people: text, HTML |
//! | `kv` | the model of an etcd key |
//! | `revisions` | what etcd's revisions must fulfil besides, over all keys |
//!
//! What it does not do: transactions over several keys (the split by key would be wrong for them).

mod check;
mod history;
mod kv;
mod model;
mod report;
mod revisions;
mod search;
mod shrink;

pub use check::{Report, Verdict, Violation, check};
pub use history::{Completion, Operation};
pub use kv::{Action, Compare, KvInput, KvModel, KvOperation, KvOutput, Revisions, Seen};
pub use model::Model;
pub use report::html;
pub use revisions::{RevisionViolation, check_revisions};
pub use search::{Limits, Outcome, search};
pub use shrink::{Window, WindowEntry, shrink};
