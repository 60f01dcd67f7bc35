//! Users, roles and what they may do, for one keyspace. Pure: no clock, no randomness, no I/O in here.
//!
//! The rules, their order and what is said are etcd's. This is replicated state: it changes by commands only
//! ([`AuthChange`]), and every store judges the commands of users by it, with the same outcome. A user's command carries
//! the *auth revision* that it was sent under; when users or roles have changed since, it is refused, since what was
//! true then may not be true any more.
//!
//! `store` users and roles · `ranges` sets of keys · `judge` what a command needs · `token` proofs of a login ·
//! `password` hashes.

mod change;
mod judge;
pub(crate) mod password;
mod ranges;
mod store;
mod token;

pub(crate) use change::AuthChange;
pub(crate) use judge::{judge_command, judge_txn};
pub(crate) use store::{Access, AuthRecord, AuthStore, SECRET_BYTES};

use std::sync::Arc;

/// Who asks for something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Caller {
    /// No token came with the request, or users are not asked for.
    #[default]
    Nobody,
    /// A user who has logged in.
    User {
        /// The user's name.
        name: Arc<str>,
        /// The auth revision when the request came.
        revision: u64,
    },
}
