//! `etcdserverpb.Maintenance`: the state of one store, for one keyspace.

use pontoon_proto::etcdserverpb::alarm_request::AlarmAction;
use pontoon_proto::etcdserverpb::downgrade_request::DowngradeAction;
use pontoon_proto::etcdserverpb::maintenance_server::Maintenance;
use pontoon_proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use pontoon_raft_core::types::StoreId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, EtcdServices, blocking, put_position, snapshot};
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

/// Whether this is a version as etcd takes it: `3.5`, or a semantic version.
fn is_version(text: &str) -> bool {
    let (core, build) = text.split_once('+').map_or((text, None), |(core, build)| (core, Some(build)));
    let (numbers, pre_release) = core.split_once('-').map_or((core, None), |(core, pre)| (core, Some(pre)));
    let is_number = |n: &str| n.parse::<i64>().is_ok() && n.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<_> = numbers.split('.').collect();
    let is_plain = pre_release.is_none() && build.is_none();
    (parts.len() == 3 || (parts.len() == 2 && is_plain)) && parts.into_iter().all(is_number)
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
        let DowngradeRequest { action, version } = request.get_ref();
        Err(match DowngradeAction::try_from(*action) {
            // There is no older version of etcd whose members could take part, so every target is a wrong one.
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) if is_version(version) => {
                Status::invalid_argument("etcdserver: invalid downgrade target version")
            }
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
                Status::invalid_argument("etcdserver: wrong downgrade target version format")
            }
            Ok(DowngradeAction::Cancel) => {
                Status::failed_precondition("etcdserver: no inflight downgrade job")
            }
            Err(_) => Status::unknown("etcdserver: unknown method"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_version;

    #[test]
    fn versions_are_told_from_nonsense() {
        for good in ["3.4", "3.4.0", "3.5.17-rc.1", "3.5.0+build", "0.0"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "3", "3.", "3.x", "3.4.5.6", "v3.4", "-1.2", "+3.4", "3.4-rc", "three"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
