//! The meta group (group 0): the registry of stores and groups, replicated like everything else.

mod machine;
mod registry;

pub use machine::RegistryMachine;
pub use registry::{
    GroupKind, GroupRecord, MAX_NAME_BYTES, MetaCommand, MetaReply, Registry, ReplicaRecord, StoreRecord,
    check_group_name, meta_command,
};

use pontoon_raft_core::types::GroupId;

/// The meta group.
pub const META_GROUP: GroupId = GroupId(0);
/// The keyspace `default`, which always exists.
pub const DEFAULT_GROUP: GroupId = GroupId(1);
/// The name of the keyspace that always exists.
pub const DEFAULT_NAME: &str = "default";
