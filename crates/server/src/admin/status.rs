//! `status`: the cluster, and one group, as this store sees them.

use std::time::Duration;

use pontoon_node::meta::{GroupKind, META_GROUP};
use pontoon_proto::v1 as api;
use pontoon_raft_core::types::{ReplicaId, Role, StoreId};
use pontoon_storage::Space;
use pontoon_transport::{Direction, Lane};
use tonic::Status;

use super::{AdminService, META_NAME};

impl AdminService {
    pub(super) fn cluster_status(&self) -> api::ClusterStatus {
        let registry = self.registry();
        let links = self.node.transport().links();
        let connected = |store: u64| {
            let control = |l: &&pontoon_transport::LinkStatus| l.lane == Lane::Control && l.connected;
            links.iter().filter(control).any(|l| l.store.0 == store)
        };
        let meta_voters = registry.stores.keys().copied().collect();
        let mut groups = vec![self.group_summary(META_NAME, META_GROUP.0, api::GroupKind::Meta, meta_voters)];
        for record in registry.groups.values() {
            let voters = record.voters.iter().map(|v| v.store).collect();
            groups.push(self.group_summary(&record.name, record.group, api::GroupKind::Kv, voters));
        }
        let mut refused = self.node.refused_stores();
        let mut stores: Vec<_> = registry
            .stores
            .values()
            .map(|store| (store, refused.remove(&StoreId(store.store))))
            .map(|(store, fenced)| api::StoreSummary {
                store: store.store,
                name: store.name.clone(),
                address: store.peer_address.clone(),
                client: store.client_address.clone(),
                state: match fenced {
                    Some(_) => api::StoreState::Fenced,
                    None => api::StoreState::Member,
                }
                .into(),
                leaders: groups.iter().filter(|g| g.leader == Some(store.store)).count() as u64,
                replicas: groups.iter().filter(|g| g.replicas.contains(&store.store)).count() as u64,
                alive: store.store == self.header.store.0 || connected(store.store),
                fenced,
            })
            .collect();
        stores.sort_by(|a, b| a.name.cmp(&b.name));
        api::ClusterStatus { cluster: self.header.cluster, stores, groups, connections: self.connections() }
    }

    fn group_summary(
        &self,
        name: &str,
        group: u64,
        kind: api::GroupKind,
        replicas: Vec<u64>,
    ) -> api::GroupSummary {
        let leadership = self.node.leadership(pontoon_raft_core::types::GroupId(group));
        api::GroupSummary {
            group: name.to_owned(),
            group_id: group,
            kind: kind.into(),
            leader: leadership.and_then(|(_, leader)| leader).map(|store| store.0),
            term: leadership.map_or(0, |(term, _)| term),
            replicas,
        }
    }

    pub(super) async fn group_status(&self, name: &str) -> Result<api::GroupStatus, Status> {
        let (group, kind) = self.group_named(name)?;
        let status = self.node.group_status(group).await.ok_or_else(|| {
            Status::failed_precondition(format!(
                "group {name:?} has no replica on this store; ask one of the stores that `pontoon keyspace describe \
                 {name}` names"
            ))
        })?;
        let core = &status.core;
        let failed = core.failed || self.node.log().stats().failed.is_some();
        let without_leader = core.leader.is_none() && core.role != Role::Leader;
        let ago = |at: u64| status.now_ms.saturating_sub(at);
        Ok(api::GroupStatus {
            group: name.to_owned(),
            group_id: group.0,
            kind: match kind {
                GroupKind::Meta => api::GroupKind::Meta,
                GroupKind::Kv => api::GroupKind::Kv,
            }
            .into(),
            cluster: self.header.cluster,
            store: self.header.store.0,
            name: self.header.name.clone(),
            address: self.peer_address.clone(),
            status: if failed {
                api::MemberStatus::Failed
            } else if core.in_doubt {
                api::MemberStatus::InDoubt
            } else if without_leader {
                api::MemberStatus::Disconnected
            } else {
                api::MemberStatus::ClusterMember
            }
            .into(),
            role: match core.role {
                Role::Leader => api::ReplicaRole::Leader,
                Role::Candidate | Role::PreCandidate => api::ReplicaRole::Candidate,
                Role::Follower if core.configuration.is_voter(core.id) => api::ReplicaRole::Follower,
                Role::Follower => api::ReplicaRole::Learner,
            }
            .into(),
            term: core.term.0,
            leader: core.leader.map(|l| l.store.0),
            vote: core.voted_for.map(|v| v.store.0),
            last_election: status.last_election.map(|e| api::Election {
                started_ms_ago: ago(e.started_ms),
                reason: api::ElectionReason::Timeout.into(),
                won_ms_ago: e.won_ms.map(ago),
            }),
            election_timer_ms: core.election_timer_ms,
            election_timer_new_ms: None,
            log_first: status.first_index.0,
            log_last: core.last_index.0,
            commit: core.commit_index.0,
            applied: status.applied.0,
            connections: self.connections(),
            disconnections: self.node.transport().links().iter().map(|l| l.disconnections).sum(),
            servers: self.servers(core),
            space_low: self.node.log().space() != Space::Enough,
        })
    }

    fn connections(&self) -> Vec<api::Connection> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let connection = |l: pontoon_transport::LinkStatus| api::Connection {
            store: l.store.0,
            direction: match l.direction {
                Direction::Inbound => api::ConnectionDirection::In,
                Direction::Outbound => api::ConnectionDirection::Out,
            }
            .into(),
            lane: match l.lane {
                Lane::Control => api::ConnectionLane::Control,
                Lane::Log => api::ConnectionLane::Log,
                Lane::Snapshot => api::ConnectionLane::Snapshot,
            }
            .into(),
            connected: l.connected,
            since_ms: millis(l.since),
            connected_ms: millis(l.connected_total),
            attempts: l.attempts,
            successes: l.successes,
            disconnections: l.disconnections,
            backoff_ms: millis(l.backoff),
            last_error: l.last_error,
            last_error_kind: l.last_error_kind.map(|kind| kind.name().to_owned()),
            queued_bytes: l.queued_bytes as u64,
            probe_interval_ms: millis(l.probe_interval),
        };
        self.node.transport().links().into_iter().map(connection).collect()
    }

    fn servers(&self, core: &pontoon_raft_core::status::Status) -> Vec<api::GroupServer> {
        let registry = self.registry();
        let server = |replica: ReplicaId| {
            let record = registry.stores.get(&replica.store.0);
            let progress = core.followers.iter().find(|f| f.id == replica);
            let own = replica == core.id;
            let own_end = (own && core.role == Role::Leader).then_some(core.last_index);
            api::GroupServer {
                store: replica.store.0,
                name: record.map(|r| r.name.clone()).unwrap_or_default(),
                address: record.map(|r| r.peer_address.clone()).unwrap_or_default(),
                self_: own,
                learner: !core.configuration.is_voter(replica),
                phase: api::MemberPhase::Stable.into(),
                next_index: progress.map(|p| p.next_index.0).or_else(|| own_end.map(|i| i.next().0)),
                match_index: progress.map(|p| p.match_index.0).or_else(|| own_end.map(|i| i.0)),
                last_msg_ms_ago: progress.and_then(|p| p.silent_ms),
            }
        };
        core.configuration.members().into_iter().map(server).collect()
    }
}
