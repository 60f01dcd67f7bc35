//! `etcdserverpb.Maintenance`: the state of one store, for one keyspace.

use std::sync::Arc;

use pontoon_proto::etcdserverpb::alarm_request::AlarmAction;
use pontoon_proto::etcdserverpb::maintenance_server::Maintenance;
use pontoon_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest, DowngradeResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use pontoon_raft_core::types::StoreId;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, EtcdServices, blocking, put_position, unimplemented};
use crate::consensus::{Consensus, MoveLeaderError};
use crate::error::EtcdError;

/// The version of the storage format that tools may expect behind [`ETCD_VERSION`].
const STORAGE_VERSION: &str = "3.5.0";

#[tonic::async_trait]
impl<C: Consensus> Maintenance for EtcdServices<C> {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        match AlarmAction::try_from(request.get_ref().action) {
            // No alarm can be active yet, so there is none to list and none to disarm.
            Ok(AlarmAction::Get | AlarmAction::Deactivate) => {
                let header = self.header(&keyspace, keyspace.revision());
                Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
            }
            _ => Err(unimplemented("raising alarms", "keyspaces have no quota in this version")),
        }
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let replica = self.consensus().status(keyspace.group()).unwrap_or_default();
        let size = i64::try_from(keyspace.size_bytes().map_err(|e| Status::unavailable(e.to_string()))?);
        let size = size.unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if replica.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
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
            db_size_quota: 0,
            downgrade_info: None,
        });
        put_position(&keyspace, response.metadata_mut());
        Ok(response)
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.keyspace(&request)?;
        // There is nothing to stop the world for: the engine gives space back by itself.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let reader = Arc::clone(&keyspace);
        let hash = blocking(move || Ok(reader.hash()?)).await?;
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let revision = request.get_ref().revision;
        let reader = Arc::clone(&keyspace);
        let hash = blocking(move || reader.hash_kv(revision).map_err(|e| e.0)).await?;
        Ok(Response::new(HashKvResponse {
            header: self.header(&keyspace, hash.current_revision),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        }))
    }

    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.keyspace(&request)?;
        Err(unimplemented("a snapshot stream for clients", "read all keys at one revision instead"))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
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
        self.keyspace(&request)?;
        Err(unimplemented("downgrading", "every store of this version reads what the others write"))
    }
}
