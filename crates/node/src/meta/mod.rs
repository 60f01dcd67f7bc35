//! The meta group (group 0): the registry of stores and groups, replicated like everything else.

mod commands;
mod machine;
mod planner;
mod records;
mod registry;
mod replicas;
mod stores;

pub use commands::{MetaCommand, MetaReply, meta_command};
pub use machine::RegistryMachine;
pub use planner::{Observed, plan};
pub use records::{
    GroupKind, GroupRecord, RECOVERIES_MAX, RecoveredGroup, RecoveryRecord, Registry, RemovedStore,
    ReplicaRecord, ReplicaState, StoreRecord, StoreState, VOTERS_MAX, VOUCH_SECRET_BYTES, VouchSecret,
};
pub use registry::{MAX_NAME_BYTES, check_group_name};

use pontoon_raft_core::types::GroupId;

/// The meta group.
pub const META_GROUP: GroupId = GroupId(0);
/// The keyspace `default`, which always exists.
pub const DEFAULT_GROUP: GroupId = GroupId(1);
/// The name of the keyspace that always exists.
pub const DEFAULT_NAME: &str = "default";
