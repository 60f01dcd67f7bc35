//! `status`: the cluster, and one group, as this store sees them.

use std::collections::BTreeSet;
use std::time::Duration;

use pontoon_node::meta::{GroupKind, META_GROUP, Registry, ReplicaRecord, ReplicaState, StoreState};
use pontoon_proto::v1 as api;
use pontoon_raft_core::ServerPhase;
use pontoon_raft_core::types::{GroupId, ReplicaId, Role, StoreId};
use pontoon_storage::Space;
use pontoon_transport::{Direction, Lane};
use tonic::Status;

use super::AdminService;
use crate::reach::reached;

fn store_state(state: StoreState) -> api::StoreState {
    match state {
        StoreState::Member => api::StoreState::Member,
        StoreState::Joining | StoreState::Reserved => api::StoreState::Joining,
        StoreState::Leaving => api::StoreState::Leaving,
        StoreState::Kicked => api::StoreState::Kicked,
    }
}

fn group_kind(kind: GroupKind) -> api::GroupKind {
    match kind {
        GroupKind::Meta => api::GroupKind::Meta,
        GroupKind::Kv => api::GroupKind::Kv,
        GroupKind::Log => api::GroupKind::Log,
    }
}

impl AdminService {
    pub(super) fn cluster_status(&self) -> api::ClusterStatus {
        let registry = self.registry();
        let reached = reached(&self.node.transport().links());
        let mut groups = Vec::new();
        for record in registry.all_groups() {
            let replicas = record.replicas.iter().map(|r| r.store).collect();
            let kind =
                if record.id() == META_GROUP { api::GroupKind::Meta } else { group_kind(record.kind()) };
            groups.push(self.group_summary(&record.name, record.group, kind, replicas));
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
                    None => store_state(store.state()),
                }
                .into(),
                leaders: groups.iter().filter(|g| g.leader == Some(store.store)).count() as u64,
                replicas: groups.iter().filter(|g| g.replicas.contains(&store.store)).count() as u64,
                alive: store.store == self.header.store.0 || reached.contains(&store.store),
                fenced,
            })
            .collect();
        stores.sort_by(|a, b| a.name.cmp(&b.name));
        let connections = self.connections();
        let flow = Some(self.flow());
        let leftovers = self.leftovers(&registry);
        api::ClusterStatus { cluster: self.header.cluster, stores, groups, connections, flow, leftovers }
    }

    /// How many replicas are here that the registry has no more; `None` while that is not known.
    fn leftovers(&self, registry: &Registry) -> Option<u64> {
        let log = self.node.log();
        let is_gone = |group: &GroupId| match registry.group(*group) {
            Some(record) => log.group(*group).is_some_and(|here| record.has_removed(here.replica)),
            None => registry.is_deleted(*group),
        };
        let mut left: BTreeSet<_> = log.groups().into_iter().filter(is_gone).collect();
        // Asked for last: what is under way is noted before its log goes.
        let (destroying, all_known) = self.directory.being_destroyed();
        left.extend(destroying);
        (all_known || !left.is_empty()).then_some(left.len() as u64)
    }

    pub(super) fn flow(&self) -> api::FlowControl {
        let flow = self.node.flow();
        let pools = |view: &pontoon_flow::StoreView| api::FlowPools {
            store: view.store.0,
            eval_regular_bytes: view.eval_available.regular,
            eval_elastic_bytes: view.eval_available.elastic,
            send_regular_bytes: view.send_available.regular,
            send_elastic_bytes: view.send_available.elastic,
            forced_bytes: view.forced_bytes,
            waiting_groups_regular: view.waiting_groups.regular as u64,
            waiting_groups_elastic: view.waiting_groups.elastic as u64,
            waiting_queues: view.waiting_queues as u64,
            window_bytes: view.window_bytes,
        };
        api::FlowControl {
            mode: flow.mode.name().to_owned(),
            regular_limit_bytes: flow.limits.regular_bytes,
            elastic_limit_bytes: flow.limits.elastic_bytes,
            forced_limit_bytes: flow.limits.forced_bytes,
            unaccounted_bytes: flow.unaccounted_bytes,
            elastic_bytes_per_second: flow.elastic_bytes_per_second,
            stores: flow.stores.iter().map(pools).collect(),
        }
    }

    fn group_summary(
        &self,
        name: &str,
        group: u64,
        kind: api::GroupKind,
        replicas: Vec<u64>,
    ) -> api::GroupSummary {
        let leadership = self.node.leadership(GroupId(group));
        api::GroupSummary {
            group: name.to_owned(),
            group_id: group,
            kind: kind.into(),
            leader: leadership.and_then(|(_, leader)| leader).map(|store| store.0),
            term: leadership.map_or(0, |(term, _)| term),
            replicas,
            applied: self.node.progress(GroupId(group)).map(|(_, applied)| applied.0),
        }
    }

    pub(super) async fn group_status(&self, name: &str) -> Result<api::GroupStatus, Status> {
        let (group, kind) = self.group_named(name).await?;
        let status = self.node.group_status(group).await.ok_or_else(|| {
            Status::failed_precondition(format!(
                "group {name:?} has no replica on this store; ask one of the stores that `pontoon status` names for it"
            ))
        })?;
        let core = &status.core;
        let failed = core.failed || self.node.log().stats().failed.is_some();
        let without_leader = core.leader.is_none() && core.role != Role::Leader;
        let ago = |at: u64| status.now_ms.saturating_sub(at);
        Ok(api::GroupStatus {
            group: name.to_owned(),
            group_id: group.0,
            kind: group_kind(kind).into(),
            cluster: self.header.cluster,
            store: self.header.store.0,
            name: self.header.name.clone(),
            address: self.peer_address.clone(),
            status: if failed {
                api::MemberStatus::Failed
            } else if let Some(moving) = self.moving(group) {
                moving
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
                reason: match e.asked {
                    true => api::ElectionReason::LeadershipTransfer,
                    false => api::ElectionReason::Timeout,
                }
                .into(),
                won_ms_ago: e.won_ms.map(ago),
            }),
            election_timer_ms: core.election_timer_ms,
            election_timer_new_ms: core.election_timer_new_ms,
            log_first: status.first_index.0,
            log_last: core.last_index.0,
            commit: core.commit_index.0,
            applied: status.applied.0,
            connections: self.connections(),
            disconnections: self.node.transport().links().iter().map(|l| l.disconnections).sum(),
            servers: self.servers(group, core),
            space_low: self.node.log().space() != Space::Enough,
            flow: status.flow.unwrap_or_default(),
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
            in_flight_bytes: l.in_flight_bytes as u64,
            large_bytes: l.large_bytes as u64,
            credit_bytes: l.credit_bytes,
            unprocessed_bytes: l.unprocessed_bytes,
            waits_for: l.waits_for.map(|what| what.name().to_owned()),
        };
        self.node.transport().links().into_iter().map(connection).collect()
    }

    fn servers(&self, group: GroupId, core: &pontoon_raft_core::status::Status) -> Vec<api::GroupServer> {
        let registry = self.registry();
        let server = |replica: ReplicaId| {
            let record = registry.stores.get(&replica.store.0);
            let progress = core.followers.iter().find(|f| f.id == replica);
            let own = replica == core.id;
            let phase = self.phase(group, core, replica);
            let own_end = (own && core.role == Role::Leader).then_some(core.last_index);
            api::GroupServer {
                store: replica.store.0,
                name: record.map(|r| r.name.clone()).unwrap_or_default(),
                address: record.map(|r| r.peer_address.clone()).unwrap_or_default(),
                self_: own,
                learner: !core.configuration.is_voter(replica),
                phase: phase.into(),
                next_index: progress.map(|p| p.next_index.0).or_else(|| own_end.map(|i| i.next().0)),
                match_index: progress.map(|p| p.match_index.0).or_else(|| own_end.map(|i| i.0)),
                last_msg_ms_ago: progress.and_then(|p| p.silent_ms),
            }
        };
        core.configuration.members().into_iter().map(server).collect()
    }

    /// How this store's replica of a group moves, if it does.
    fn moving(&self, group: GroupId) -> Option<api::MemberStatus> {
        let registry = self.registry();
        match registry.group(group)?.on(self.header.store.0)?.state() {
            ReplicaState::Joining | ReplicaState::JoiningLearner => Some(api::MemberStatus::Joining),
            ReplicaState::Removing => Some(api::MemberStatus::Leaving),
            ReplicaState::Voter | ReplicaState::Learner => {
                let own = registry.stores.get(&self.header.store.0)?;
                own.goes().then_some(api::MemberStatus::Leaving)
            }
        }
    }

    /// How far a member's adding or removing is. Who does not lead the group knows what is wished, and what is.
    fn phase(
        &self,
        group: GroupId,
        core: &pontoon_raft_core::status::Status,
        replica: ReplicaId,
    ) -> api::MemberPhase {
        if let Some((_, phase)) = core.server_changes.iter().find(|(id, _)| *id == replica) {
            return match phase {
                ServerPhase::CatchUp { .. } => api::MemberPhase::CatchUp,
                ServerPhase::CaughtUp => api::MemberPhase::CaughtUp,
                ServerPhase::Committing => api::MemberPhase::Committing,
                ServerPhase::Stable => api::MemberPhase::Stable,
                ServerPhase::Remove => api::MemberPhase::Remove,
            };
        }
        let registry = self.registry();
        let wished = registry.group(group).and_then(|g| g.replicas.iter().find(|r| r.id() == replica));
        match wished.map(ReplicaRecord::state) {
            Some(ReplicaState::Joining) if !core.configuration.is_voter(replica) => api::MemberPhase::CatchUp,
            Some(ReplicaState::Removing) => api::MemberPhase::Remove,
            _ => api::MemberPhase::Stable,
        }
    }
}
