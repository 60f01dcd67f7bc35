//! Groups that people make: keyspaces and logs alike.

use std::time::Duration;

use pontoon_node::meta::{GroupKind, GroupRecord, META_GROUP, check_group_name, meta_command};
use pontoon_raft_core::types::GroupId;
use tonic::Status;

use super::{AdminService, PATIENCE};

/// How long a list waits for the newest registry: as long as an election takes, and less than a client's patience.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);
/// How many replicas a group has if nobody says a number.
const REPLICAS_DEFAULT: u32 = 3;

/// What people call a group of this kind.
pub(super) fn noun(kind: GroupKind) -> &'static str {
    match kind {
        GroupKind::Meta => "group",
        GroupKind::Kv => "keyspace",
        GroupKind::Log => "log",
    }
}

impl AdminService {
    /// Makes a group and waits until it takes commands.
    pub(super) async fn create_group(
        &self,
        kind: GroupKind,
        name: String,
        replicas: u32,
    ) -> Result<GroupRecord, Status> {
        check_group_name(&name).map_err(Status::invalid_argument)?;
        // Without a number it is three, as soon as there are so many stores.
        let create = meta_command::CreateGroup {
            name: name.clone(),
            kind: kind as i32,
            replicas,
            wished: REPLICAS_DEFAULT,
        };
        let reply = self.change(meta_command::Change::CreateGroup(create)).await?;
        if reply.exists {
            return Err(Status::already_exists(reply.error));
        }
        if !reply.error.is_empty() {
            return Err(Status::invalid_argument(reply.error));
        }
        self.wait_until_it_serves(&name, GroupId(reply.group)).await?;
        let record = self.registry().groups.get(&reply.group).cloned();
        record.ok_or_else(|| Status::aborted("it was deleted again in the same moment"))
    }

    pub(super) async fn delete_group(&self, kind: GroupKind, name: String, group: u64) -> Result<(), Status> {
        self.catch_up().await;
        if let Some(other) = self.registry().group_named(&name).filter(|g| g.kind() != kind) {
            let (is, meant) = (noun(other.kind()), noun(kind));
            return Err(Status::failed_precondition(format!(
                "{name:?} is a {is} and no {meant}; delete it by `pontoon {is} delete`"
            )));
        }
        let delete = meta_command::DeleteGroup { name, group };
        let reply = self.change(meta_command::Change::DeleteGroup(delete)).await?;
        if reply.error.is_empty() { Ok(()) } else { Err(Status::failed_precondition(reply.error)) }
    }

    /// All groups of a kind, sorted by name.
    pub(super) async fn groups_of(&self, kind: GroupKind) -> Vec<GroupRecord> {
        self.catch_up().await;
        let registry = self.registry();
        let all = registry.names.values().filter_map(|id| registry.groups.get(id));
        all.filter(|g| g.kind() == kind).cloned().collect()
    }

    /// The group of that kind and name.
    pub(super) async fn group_of(&self, kind: GroupKind, name: &str) -> Result<GroupRecord, Status> {
        self.catch_up().await;
        let noun = noun(kind);
        self.registry().group_named(name).filter(|g| g.kind() == kind).cloned().ok_or_else(|| {
            Status::not_found(format!("there is no {noun} {name:?}; `pontoon {noun} list` shows them"))
        })
    }

    pub(super) fn replicas_wanted(&self, record: &GroupRecord) -> u32 {
        match record.wished {
            0 => {
                let takes = self.registry().stores.values().filter(|s| s.stays() && !s.learner).count();
                u32::try_from(record.voters_wished(takes)).unwrap_or(u32::MAX)
            }
            wished => wished,
        }
    }

    /// Waits until the registry here has all that it had anywhere when this was called; for a while, since what is known
    /// is worth more than nothing where there is no quorum.
    pub(super) async fn catch_up(&self) {
        let _ = tokio::time::timeout(CATCH_UP_MAX, self.node.read_barrier(META_GROUP)).await;
    }

    /// Waits until a group has a leader that confirms a read here, or has a leader at all if it is not placed here.
    async fn wait_until_it_serves(&self, name: &str, group: GroupId) -> Result<(), Status> {
        let serves = async {
            loop {
                // An older group of the same name may be on its way out.
                let named = self.directory.is_named(name, group);
                let remote = self.node.leadership(group).is_none();
                if named && (remote || self.node.read_barrier(group).await.is_ok()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, serves).await.map_err(|_| {
            Status::deadline_exceeded(
                "it is created, but does not serve yet: a quorum of its stores must be up",
            )
        })
    }
}
