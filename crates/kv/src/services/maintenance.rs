//! `etcdserverpb.Maintenance`: the state of one store, for one keyspace.

use pontoon_proto::etcdserverpb::alarm_request::AlarmAction;
use pontoon_proto::etcdserverpb::maintenance_server::Maintenance;
use pontoon_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use pontoon_raft_core::types::StoreId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, EtcdServices, blocking, put_position, snapshot, unimplemented};
use crate::command::Command;
use crate::consensus::{Consensus, MoveLeaderError};
use crate::error::EtcdError;

/// The version of the storage format that tools may expect behind [`ETCD_VERSION`].
const STORAGE_VERSION: &str = "3.5.0";

/// An alarm in the words in which etcd's status tells it.
fn alarm_text(alarm: &AlarmMember) -> String {
    let kind = AlarmType::try_from(alarm.alarm).map(|kind| kind.as_str_name().to_owned());
    let kind = kind.unwrap_or_else(|_| alarm.alarm.to_string());
    format!("memberID:{} alarm:{kind} ", alarm.member_id)
}

#[tonic::async_trait]
impl<C: Consensus> Maintenance for EtcdServices<C> {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let r = *request.get_ref();
        if r.action == i32::from(AlarmAction::Get) {
            self.read_barrier(&keyspace).await?;
            let header = self.header(&keyspace, keyspace.revision());
            return Ok(Response::new(AlarmResponse { header, alarms: keyspace.control().alarms(r.alarm) }));
        }
        let mut response: AlarmResponse = self.propose(&keyspace, None, Command::Alarm(r).encode()).await?;
        self.complete(&keyspace, &mut response.header);
        Ok(Response::new(response))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let replica = self.consensus().status(keyspace.group()).unwrap_or_default();
        // There are no free pages: what is removed is gone, so there is nothing that defragmentation would give back.
        let size = i64::try_from(keyspace.size_bytes()).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if replica.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        errors.extend(keyspace.control().alarms(AlarmType::None.into()).iter().map(alarm_text));
        let mut header = self.header(&keyspace, keyspace.revision());
        if let Some(header) = &mut header {
            header.raft_term = replica.term.0;
        }
        let mut response = Response::new(StatusResponse {
            header,
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: replica.leader.map_or(0, |store| store.0),
            raft_index: replica.commit_index.0,
            raft_term: replica.term.0,
            raft_applied_index: replica.applied_index.0,
            errors,
            db_size_in_use: size,
            is_learner: replica.is_learner,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: self.limits().quota_bytes.map_or(0, |q| i64::try_from(q).unwrap_or(i64::MAX)),
            downgrade_info: None,
        });
        put_position(&keyspace, response.metadata_mut());
        Ok(response)
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.session(request.metadata(), request.extensions()).await?.permit_admin()?;
        // There is nothing to stop the world for: the engine gives space back by itself.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let reader = keyspace.clone();
        let hash = blocking(move || Ok(reader.hash()?)).await?;
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let revision = request.get_ref().revision;
        keyspace.permit_admin()?;
        let reader = keyspace.clone();
        let hash = blocking(move || reader.hash_kv(revision).map_err(|e| e.0)).await?;
        Ok(Response::new(HashKvResponse {
            header: self.header(&keyspace, hash.current_revision),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let place = self.take_snapshot_place()?;
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(snapshot::stream(keyspace, header, STORAGE_VERSION, place)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_user()?;
        let target = StoreId(request.get_ref().target_id);
        let replica = self.consensus().status(keyspace.group()).unwrap_or_default();
        if replica.leader != Some(self.consensus().store_id()) {
            return Err(EtcdError::NotLeader.status());
        }
        match self.consensus().move_leader(keyspace.group(), target).await {
            Ok(()) => {
                let header = self.header(&keyspace, keyspace.revision());
                Ok(Response::new(MoveLeaderResponse { header }))
            }
            Err(MoveLeaderError::BadTarget) => Err(EtcdError::BadLeaderTransferee.status()),
            Err(MoveLeaderError::TimedOut) => {
                Err(Status::unavailable("etcdserver: request timed out, leader transfer took too long"))
            }
        }
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.session(request.metadata(), request.extensions()).await?;
        Err(unimplemented("downgrading", "every store of this version reads what the others write"))
    }
}
