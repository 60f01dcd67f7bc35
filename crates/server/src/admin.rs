//! The admin API, `pontoon.v1.Admin`: what operators ask a store, and tell it.

use std::sync::Arc;
use std::time::Duration;

use pontoon_kv::Keyspace as KvKeyspace;
use pontoon_node::meta::{
    GroupKind, GroupRecord, META_GROUP, RecoveredGroup, RecoveryRecord, Registry, StoreRecord, StoreState,
    meta_command,
};
use pontoon_node::{Injection, Node, ProposeError};
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::admin_server::Admin;
use pontoon_proto::v1::{self as api};
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_storage::Header;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::directory::KeyspaceDirectory;
use crate::reconcile;
use crate::telemetry;
use crate::tls::StoreDialer;

mod flow;
mod groups;
mod logs;
mod members;
mod memory;
mod status;

pub(crate) use memory::resident_bytes;

/// How long a change of leadership or a new keyspace is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Marks a call that another store passed on, so that two stores which disagree cannot pass it back and forth.
const FORWARDED: &str = "pontoon-forwarded";
/// Fewer messages than these wait in ordinary operation, and losing some of them costs more than keeping them.
const BACKLOG_MESSAGES_MIN: u64 = 50;
/// Below, hardly anything but single messages travels; above, one peer that is slow costs what a store should not have.
const BACKLOG_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;
/// The meta group's name in the admin API.
const META_NAME: &str = "meta";

/// Serves the admin API of one store.
#[derive(Clone)]
pub(crate) struct AdminService {
    node: Node,
    registry: watch::Receiver<Arc<Registry>>,
    directory: Arc<KeyspaceDirectory>,
    header: Header,
    peer_address: String,
    client_address: String,
    dialer: StoreDialer,
}

impl AdminService {
    pub(crate) fn new(
        node: Node,
        registry: watch::Receiver<Arc<Registry>>,
        directory: Arc<KeyspaceDirectory>,
        header: Header,
        config: &Config,
        dialer: StoreDialer,
    ) -> Self {
        Self {
            node,
            registry,
            directory,
            header,
            peer_address: config.advertise_peer.to_string(),
            client_address: config.advertise_client.to_string(),
            dialer,
        }
    }

    fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.borrow())
    }

    /// The group of this name, with the id and the kind that the registry gives it.
    async fn group_named(&self, name: &str) -> Result<(GroupId, GroupKind), Status> {
        if name == META_NAME {
            return Ok((META_GROUP, GroupKind::Meta));
        }
        if self.registry().group_named(name).is_none() {
            // It may have been created a moment ago by way of another store.
            self.catch_up().await;
        }
        self.registry().group_named(name).map(|g| (g.id(), g.kind())).ok_or_else(|| {
            Status::not_found(format!("there is no group {name:?}; `pontoon status` shows the groups"))
        })
    }

    /// A store by name, peer address or unique prefix of its id.
    fn store_meant(&self, text: &str) -> Result<StoreRecord, Status> {
        if text.is_empty() {
            return Err(Status::invalid_argument(
                "which store? Give a name, a peer address or the first digits of an id",
            ));
        }
        let registry = self.registry();
        // A store that is being kicked may share both with the one that takes its place.
        let kicked = |s: &&StoreRecord| s.state() == StoreState::Kicked;
        let exact = registry
            .stores
            .values()
            .filter(|s| s.name == text || s.peer_address == text)
            .min_by_key(|s| kicked(s));
        if let Some(store) = exact {
            return Ok(store.clone());
        }
        let prefix = text.to_ascii_lowercase();
        let mut by_id = registry.stores.values().filter(|s| format!("{:016x}", s.store).starts_with(&prefix));
        match (by_id.next(), by_id.next()) {
            (Some(store), None) => Ok(store.clone()),
            (Some(_), Some(_)) => Err(Status::invalid_argument(format!(
                "{text:?} begins the ids of several stores; give more digits"
            ))),
            (None, _) => Err(Status::not_found(format!(
                "there is no store {text:?}; give a name, a peer address or the first digits of an id from `pontoon \
                 store list`"
            ))),
        }
    }

    fn keyspace(&self, record: &GroupRecord) -> api::Keyspace {
        let leadership = self.node.leadership(record.id());
        api::Keyspace {
            name: record.name.clone(),
            id: record.group,
            replicas_wanted: self.replicas_wanted(record),
            replicas: record.replicas.iter().map(|r| r.store).collect(),
            leader: leadership.and_then(|(_, leader)| leader).map(|store| store.0),
            term: leadership.map_or(0, |(term, _)| term),
        }
    }

    async fn change(&self, change: meta_command::Change) -> Result<pontoon_node::meta::MetaReply, Status> {
        reconcile::change(&self.node, change).await.map_err(|error| match error {
            ProposeError::Overloaded { .. } | ProposeError::NoSpace { .. } => Status::resource_exhausted(error.to_string()),
            ProposeError::TimedOut => Status::unavailable(format!(
                "the registry (group meta) did not answer in time: {error}; ask again, `keyspace list` shows what \
                 became of it"
            )),
            _ => Status::unavailable(format!("the registry (group meta) cannot be changed now: {error}")),
        })
    }

    /// The store that leads a group and a client of it, unless that is this one.
    async fn leader_elsewhere<T>(
        &self,
        group: GroupId,
        request: &Request<T>,
    ) -> Result<Option<AdminClient<tonic::transport::Channel>>, Status> {
        let leader = self.node.leadership(group).and_then(|(_, leader)| leader);
        let Some(leader) = leader.filter(|leader| *leader != self.node.store()) else { return Ok(None) };
        if request.metadata().contains_key(FORWARDED) {
            return Err(Status::unavailable("leadership is moving; try again"));
        }
        let address = self
            .registry()
            .stores
            .get(&leader.0)
            .map(|s| s.client_address.clone())
            .filter(|address| !address.is_empty())
            .ok_or_else(|| {
                Status::unavailable(format!("the leader's store {leader} has not announced itself"))
            })?;
        Ok(Some(AdminClient::new(self.dialer.channel(&address)?)))
    }

    /// Waits until somebody leads the group for whom `fits` holds.
    async fn wait_for_leader(
        &self,
        group: GroupId,
        fits: impl Fn(StoreId) -> bool,
    ) -> Result<(u64, u64), Status> {
        let moved = async {
            loop {
                if let Some((term, Some(leader))) = self.node.leadership(group)
                    && fits(leader)
                {
                    return (leader.0, term);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, moved).await.map_err(|_| {
            Status::deadline_exceeded("leadership has not moved; is the target up and caught up?")
        })
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn identity(
        &self,
        _: Request<api::IdentityRequest>,
    ) -> Result<Response<api::IdentityResponse>, Status> {
        Ok(Response::new(api::IdentityResponse {
            cluster: self.header.cluster,
            store: self.header.store.0,
            name: self.header.name.clone(),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn status(
        &self,
        request: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusResponse>, Status> {
        let name = request.into_inner().group;
        let view = if name.is_empty() {
            api::status_response::View::Cluster(self.cluster_status())
        } else {
            api::status_response::View::Group(self.group_status(&name).await?)
        };
        Ok(Response::new(api::StatusResponse { view: Some(view) }))
    }

    async fn list_stores(
        &self,
        _: Request<api::ListStoresRequest>,
    ) -> Result<Response<api::ListStoresResponse>, Status> {
        let status = self.cluster_status();
        Ok(Response::new(api::ListStoresResponse { cluster: status.cluster, stores: status.stores }))
    }

    async fn leave(&self, _: Request<api::LeaveRequest>) -> Result<Response<api::LeaveResponse>, Status> {
        Ok(Response::new(self.leave_cluster().await?))
    }

    async fn kick_store(
        &self,
        request: Request<api::KickStoreRequest>,
    ) -> Result<Response<api::KickStoreResponse>, Status> {
        Ok(Response::new(self.kick(&request.into_inner().store).await?))
    }

    async fn list_moves(
        &self,
        request: Request<api::ListMovesRequest>,
    ) -> Result<Response<api::ListMovesResponse>, Status> {
        Ok(Response::new(self.moves(request.into_inner().store)))
    }

    async fn create_keyspace(
        &self,
        request: Request<api::CreateKeyspaceRequest>,
    ) -> Result<Response<api::CreateKeyspaceResponse>, Status> {
        let api::CreateKeyspaceRequest { name, replicas } = request.into_inner();
        let record = self.create_group(GroupKind::Kv, name, replicas).await?;
        Ok(Response::new(api::CreateKeyspaceResponse { keyspace: Some(self.keyspace(&record)) }))
    }

    async fn list_keyspaces(
        &self,
        _: Request<api::ListKeyspacesRequest>,
    ) -> Result<Response<api::ListKeyspacesResponse>, Status> {
        let keyspaces = self.groups_of(GroupKind::Kv).await.iter().map(|g| self.keyspace(g)).collect();
        Ok(Response::new(api::ListKeyspacesResponse { keyspaces }))
    }

    async fn describe_keyspace(
        &self,
        request: Request<api::DescribeKeyspaceRequest>,
    ) -> Result<Response<api::DescribeKeyspaceResponse>, Status> {
        let record = self.group_of(GroupKind::Kv, &request.into_inner().name).await?;
        let mut answer =
            api::DescribeKeyspaceResponse { keyspace: Some(self.keyspace(&record)), ..Default::default() };
        if let Some(keyspace) = self.directory.keyspace(record.id()) {
            answer.restore = keyspace.unfinished_restore();
            let figures = tokio::task::spawn_blocking(move || figures(&keyspace))
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|error| Status::internal(error.to_string()))?;
            (answer.revision, answer.compact_revision, answer.db_size_bytes, answer.applied) = figures;
        }
        Ok(Response::new(answer))
    }

    async fn delete_keyspace(
        &self,
        request: Request<api::DeleteKeyspaceRequest>,
    ) -> Result<Response<api::DeleteKeyspaceResponse>, Status> {
        let api::DeleteKeyspaceRequest { name, id } = request.into_inner();
        self.delete_group(GroupKind::Kv, name, id).await?;
        Ok(Response::new(api::DeleteKeyspaceResponse {}))
    }

    async fn create_log(
        &self,
        request: Request<api::CreateLogRequest>,
    ) -> Result<Response<api::CreateLogResponse>, Status> {
        let api::CreateLogRequest { name, replicas } = request.into_inner();
        let record = self.create_group(GroupKind::Log, name, replicas).await?;
        Ok(Response::new(api::CreateLogResponse { log: Some(self.log(&record)) }))
    }

    async fn list_logs(
        &self,
        _: Request<api::ListLogsRequest>,
    ) -> Result<Response<api::ListLogsResponse>, Status> {
        let logs = self.groups_of(GroupKind::Log).await.iter().map(|g| self.log(g)).collect();
        Ok(Response::new(api::ListLogsResponse { logs }))
    }

    async fn describe_log(
        &self,
        request: Request<api::DescribeLogRequest>,
    ) -> Result<Response<api::DescribeLogResponse>, Status> {
        self.log_described(request).await
    }

    async fn delete_log(
        &self,
        request: Request<api::DeleteLogRequest>,
    ) -> Result<Response<api::DeleteLogResponse>, Status> {
        let api::DeleteLogRequest { name, id } = request.into_inner();
        self.delete_group(GroupKind::Log, name, id).await?;
        Ok(Response::new(api::DeleteLogResponse {}))
    }

    async fn append_log(
        &self,
        request: Request<api::AppendLogRequest>,
    ) -> Result<Response<api::AppendLogResponse>, Status> {
        self.log_appended(request).await
    }

    async fn read_log(
        &self,
        request: Request<api::ReadLogRequest>,
    ) -> Result<Response<api::ReadLogResponse>, Status> {
        self.log_page(request).await
    }

    type TailLogStream = logs::Tail;

    async fn tail_log(
        &self,
        request: Request<api::TailLogRequest>,
    ) -> Result<Response<Self::TailLogStream>, Status> {
        self.log_tail(request).await
    }

    async fn transfer_leadership(
        &self,
        mut request: Request<api::TransferLeadershipRequest>,
    ) -> Result<Response<api::TransferLeadershipResponse>, Status> {
        let (group, _) = self.group_named(&request.get_ref().group).await?;
        let to = match request.get_ref().store.as_str() {
            "" => None,
            text => Some(StoreId(self.store_meant(text)?.store)),
        };
        if let Some(mut leader) = self.leader_elsewhere(group, &request).await? {
            request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
            return leader.transfer_leadership(request).await;
        }
        let own = self.node.store();
        if to != Some(own) {
            self.node.transfer_leadership(group, to).await.map_err(Status::failed_precondition)?;
        }
        let (leader, term) =
            self.wait_for_leader(group, |leader| to.map_or(leader != own, |to| leader == to)).await?;
        Ok(Response::new(api::TransferLeadershipResponse { leader, term }))
    }

    async fn take_leadership(
        &self,
        request: Request<api::TakeLeadershipRequest>,
    ) -> Result<Response<api::TakeLeadershipResponse>, Status> {
        let (group, _) = self.group_named(&request.get_ref().group).await?;
        let own = self.node.store();
        if self.node.leadership(group).and_then(|(_, leader)| leader) != Some(own) {
            self.node.take_leadership(group).await.map_err(Status::failed_precondition)?;
        }
        let (leader, term) = self.wait_for_leader(group, |leader| leader == own).await?;
        Ok(Response::new(api::TakeLeadershipResponse { leader, term }))
    }

    async fn change_election_timer(
        &self,
        mut request: Request<api::ChangeElectionTimerRequest>,
    ) -> Result<Response<api::ChangeElectionTimerResponse>, Status> {
        let (group, _) = self.group_named(&request.get_ref().group).await?;
        let millis = request.get_ref().election_timer_ms;
        if let Some(mut leader) = self.leader_elsewhere(group, &request).await? {
            request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
            return leader.change_election_timer(request).await;
        }
        let in_force = async || {
            let status = self.node.group_status(group).await;
            status
                .map(|status| status.core.election_timer_ms)
                .ok_or_else(|| Status::unavailable("the store is stopping"))
        };
        let before_ms = in_force().await?;
        let answer = |election_timer_ms| api::ChangeElectionTimerResponse { before_ms, election_timer_ms };
        if before_ms == millis {
            return Ok(Response::new(answer(millis)));
        }
        self.node.change_election_timer(group, millis).await.map_err(Status::failed_precondition)?;
        let changed = async {
            while in_force().await? != millis {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(Response::new(answer(millis)))
        };
        tokio::time::timeout(PATIENCE, changed).await.map_err(|_| {
            Status::deadline_exceeded(
                "the change is in the leader's log and not committed yet; ask again, or see `status`",
            )
        })?
    }

    async fn set_backlog_threshold(
        &self,
        request: Request<api::SetBacklogThresholdRequest>,
    ) -> Result<Response<api::SetBacklogThresholdResponse>, Status> {
        let api::SetBacklogThresholdRequest { messages, bytes } = request.into_inner();
        if messages < BACKLOG_MESSAGES_MIN {
            return Err(Status::invalid_argument(format!(
                "a backlog of {messages} messages is too short; at least {BACKLOG_MESSAGES_MIN}; give more"
            )));
        }
        let (least, most) = (BACKLOG_BYTES.start(), BACKLOG_BYTES.end());
        if !BACKLOG_BYTES.contains(&bytes) {
            return Err(Status::invalid_argument(format!(
                "a backlog of {bytes} bytes is out of bounds; {least} to {most}; give another"
            )));
        }
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let transport = self.node.transport();
        let (messages_before, bytes_before) = transport.backlog_threshold();
        transport.set_backlog_threshold(size(messages), size(bytes));
        tracing::info!(messages, bytes, messages_before, bytes_before, "the bounds of the send queues");
        Ok(Response::new(api::SetBacklogThresholdResponse {
            messages_before: messages_before as u64,
            bytes_before: bytes_before as u64,
        }))
    }

    async fn set_flow_control(
        &self,
        request: Request<api::SetFlowControlRequest>,
    ) -> Result<Response<api::SetFlowControlResponse>, Status> {
        self.set_flow(&request.into_inner()).map(Response::new)
    }

    async fn list_recoveries(
        &self,
        _: Request<api::ListRecoveriesRequest>,
    ) -> Result<Response<api::ListRecoveriesResponse>, Status> {
        self.catch_up().await;
        let recoveries = self.registry().recoveries.iter().map(recovery).collect();
        Ok(Response::new(api::ListRecoveriesResponse { recoveries }))
    }

    async fn set_log_filter(
        &self,
        request: Request<api::SetLogFilterRequest>,
    ) -> Result<Response<api::SetLogFilterResponse>, Status> {
        let (before, filter) = telemetry::set_filter(&request.get_ref().filter)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        // Said in any case: whoever reads the log later has to know why it changed.
        tracing::error!(before, filter, "what is logged was changed");
        Ok(Response::new(api::SetLogFilterResponse { filter, before }))
    }

    async fn failure_test(
        &self,
        request: Request<api::FailureTestRequest>,
    ) -> Result<Response<api::FailureTestResponse>, Status> {
        let test = match request.into_inner().test.as_str() {
            "clear" => None,
            name => Some(name.parse::<Injection>().map_err(|e| Status::invalid_argument(e.to_string()))?),
        };
        self.node.failure_test(test).map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(api::FailureTestResponse {}))
    }

    async fn memory(&self, _: Request<api::MemoryRequest>) -> Result<Response<api::MemoryResponse>, Status> {
        Ok(Response::new(api::MemoryResponse { figures: memory::figures(&self.node) }))
    }
}

fn recovery(record: &RecoveryRecord) -> api::Recovery {
    let group = |g: &RecoveredGroup| api::RecoveredGroup {
        group: g.name.clone(),
        group_id: g.group,
        last_index: g.last_index,
        last_term: g.last_term,
        may_have_lost: g.may_have_lost,
        epoch: g.epoch,
    };
    api::Recovery {
        at_ms: record.at_ms,
        note: record.note.clone(),
        lost: record.lost.clone(),
        survivors: record.survivors.clone(),
        groups: record.groups.iter().map(group).collect(),
    }
}

/// Revision, compacted revision, bytes, applied index.
fn figures(keyspace: &KvKeyspace) -> Result<(i64, i64, u64, u64), pontoon_kv::StoreError> {
    Ok((keyspace.revision(), keyspace.compact_revision()?, keyspace.size_bytes(), keyspace.applied().0))
}
