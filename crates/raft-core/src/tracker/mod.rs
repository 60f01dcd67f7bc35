//! What the leader knows of each follower.

pub(crate) mod inflights;
pub(crate) mod progress;

pub(crate) use progress::{Progress, SendState};
