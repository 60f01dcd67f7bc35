//! The multi-Raft runtime: shards, group lifecycle, proposals, group commit, apply and snapshots.

mod apply;
mod clock;
pub mod config;
mod doubts;
pub mod error;
mod group_host;
mod hand_over;
mod inbound;
mod introduction;
pub mod lineage;
mod link_timers;
pub mod meta;
mod node;
mod proposals;
mod retention;
mod routing;
mod shard;
mod shared;
pub mod state_machine;
pub mod status;
mod timers;

pub use config::NodeConfig;
pub use error::{OpenGroupError, ProposeError, ReadError, StartError};
pub use lineage::create_lineage;
pub use node::{Load, Node};
pub use status::GroupStatus;
