//! The multi-Raft runtime: shards, group lifecycle, proposals, group commit, apply and snapshots.

mod apply;
mod clock;
pub mod config;
mod doubts;
pub mod error;
mod failure;
mod flow;
mod group_host;
mod hand_over;
mod inbound;
mod introduction;
pub mod lineage;
mod link_timers;
mod membership;
pub mod meta;
mod node;
mod proposals;
pub mod recovery;
mod retention;
mod routing;
mod shard;
mod shared;
pub mod state_machine;
pub mod status;
mod timers;
mod tokens;
mod waking;
mod work_class;

pub use config::NodeConfig;
pub use error::{ChangeMembersError, OpenGroupError, ProposeError, ReadError, StartError, StopReason};
pub use failure::{FailureTest, FailuresForbidden, UnknownFailureTest};
pub use flow::FlowView;
pub use lineage::{create_joining_lineage, create_lineage};
pub use node::{Load, Node};
pub use status::GroupStatus;
pub use work_class::with_class;
