//! `etcdserverpb.Cluster`: who belongs to the cluster.

use std::time::Duration;

use pontoon_proto::etcdserverpb::cluster_server::Cluster;
use pontoon_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{EtcdServices, unimplemented};
use crate::consensus::{Consensus, read_status};

/// How long a member list that need not be up to date waits for the chance to be.
const UP_TO_DATE_MAX: Duration = Duration::from_millis(250);

#[tonic::async_trait]
impl<C: Consensus> Cluster for EtcdServices<C> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let up_to_date = self.consensus().members_barrier();
        if request.get_ref().linearizable {
            up_to_date.await.map_err(|e| read_status(&e))?;
        } else {
            // Clients before etcd 3.5 have no say in this. They must get an answer without a quorum too, but need not
            // miss, with one, what another store has acknowledged.
            let _ = tokio::time::timeout(UP_TO_DATE_MAX, up_to_date).await;
        }
        let members = self.consensus().members(keyspace.group());
        let members = members
            .into_iter()
            .map(|m| Member {
                id: m.id.0,
                name: m.name,
                peer_ur_ls: m.peer_urls,
                client_ur_ls: m.client_urls,
                is_learner: m.is_learner,
            })
            .collect();
        // etcd leaves the revision out of this header.
        Ok(Response::new(MemberListResponse { header: self.header(&keyspace, 0), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(unimplemented(
            "adding members by the etcd API",
            "stores are the ones of --initial-cluster in this version",
        ))
    }

    async fn member_remove(
        &self,
        _: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unimplemented(
            "removing members by the etcd API",
            "stores are the ones of --initial-cluster in this version",
        ))
    }

    async fn member_update(
        &self,
        _: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unimplemented(
            "changing peer URLs by the etcd API",
            "start the store with its new address, the others learn it",
        ))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unimplemented("promoting members by the etcd API", "there are no learners in this version"))
    }
}
