//! `etcdserverpb.Cluster`: who belongs to the cluster, and changes of that.

use std::time::Duration;

use pontoon_proto::etcdserverpb::cluster_server::Cluster;
use pontoon_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use pontoon_raft_core::types::StoreId;
use tonic::{Request, Response, Status};

use super::EtcdServices;
use crate::consensus::{Consensus, MemberChange, MemberChangeError, MemberInfo, propose_status, read_status};
use crate::keyspace::{dialled_address, url_for_client};
use crate::mvcc::state::Keyspace;

/// How long a member list that need not be up to date waits for the chance to be.
const UP_TO_DATE_MAX: Duration = Duration::from_millis(250);

#[tonic::async_trait]
impl<C: Consensus> Cluster for EtcdServices<C> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let dialled = dialled(&request);
        let up_to_date = self.consensus().members_barrier();
        if request.get_ref().linearizable {
            up_to_date.await.map_err(|e| read_status(&e))?;
        } else {
            // Clients before etcd 3.5 have no say in this. They must get an answer without a quorum too, but need not
            // miss, with one, what another store has acknowledged.
            let _ = tokio::time::timeout(UP_TO_DATE_MAX, up_to_date).await;
        }
        let members = self.member_infos(&keyspace, dialled.as_deref());
        // etcd leaves the revision out of this header.
        Ok(Response::new(MemberListResponse { header: self.header(&keyspace, 0), members }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let dialled = dialled(&request);
        let request = request.into_inner();
        let peer_address = peer_address(&request.peer_ur_ls)?;
        let change = MemberChange::Add { peer_address: peer_address.clone(), learner: request.is_learner };
        let id = self.change(change).await?;
        let member = Member {
            id: id.0,
            peer_ur_ls: request.peer_ur_ls,
            is_learner: request.is_learner,
            ..Member::default()
        };
        let members = self.member_infos(&keyspace, dialled.as_deref());
        let header = self.header(&keyspace, 0);
        Ok(Response::new(MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let dialled = dialled(&request);
        self.change(MemberChange::Remove(StoreId(request.get_ref().id))).await?;
        let members = self.member_infos(&keyspace, dialled.as_deref());
        Ok(Response::new(MemberRemoveResponse { header: self.header(&keyspace, 0), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let dialled = dialled(&request);
        let request = request.into_inner();
        let address = peer_address(&request.peer_ur_ls)?;
        self.change(MemberChange::Readdress(StoreId(request.id), address)).await?;
        let members = self.member_infos(&keyspace, dialled.as_deref());
        Ok(Response::new(MemberUpdateResponse { header: self.header(&keyspace, 0), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        keyspace.permit_admin()?;
        let dialled = dialled(&request);
        self.change(MemberChange::Promote(StoreId(request.get_ref().id))).await?;
        let members = self.member_infos(&keyspace, dialled.as_deref());
        Ok(Response::new(MemberPromoteResponse { header: self.header(&keyspace, 0), members }))
    }
}

impl<C: Consensus> EtcdServices<C> {
    fn member_infos(&self, keyspace: &Keyspace, dialled: Option<&str>) -> Vec<Member> {
        let for_client = |url| url_for_client(url, dialled);
        let member = |m: MemberInfo| Member {
            id: m.id.0,
            name: m.name,
            peer_ur_ls: m.peer_urls,
            client_ur_ls: m.client_urls.into_iter().map(for_client).collect(),
            is_learner: m.is_learner,
        };
        self.consensus().members(keyspace.group()).into_iter().map(member).collect()
    }

    async fn change(&self, change: MemberChange) -> Result<StoreId, Status> {
        self.consensus().change_members(change).await.map_err(|error| match error {
            MemberChangeError::NotFound => Status::not_found("etcdserver: member not found"),
            MemberChangeError::AddressExists => {
                Status::failed_precondition("etcdserver: Peer URLs already exists")
            }
            MemberChangeError::NotLearner => {
                Status::failed_precondition("etcdserver: can only promote a learner member")
            }
            MemberChangeError::NotReady => Status::failed_precondition(
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            // Why exactly is for logs: clients match on etcd's words.
            MemberChangeError::Last(why) => {
                tracing::info!(why, "a member is not removed");
                Status::failed_precondition(
                    "etcdserver: re-configuration failed due to not enough started members",
                )
            }
            MemberChangeError::Propose(error) => propose_status(&error),
        })
    }
}

/// The address by which the client came, if it says which keyspace is meant.
fn dialled<T>(request: &Request<T>) -> Option<String> {
    dialled_address(request.metadata().as_ref(), request.extensions())
}

/// The one peer URL of a request, as HOST:PORT. A store has one peer address.
fn peer_address(urls: &[String]) -> Result<String, Status> {
    let bad = || Status::invalid_argument("etcdserver: given member URLs are invalid");
    let [url] = urls else { return Err(bad()) };
    let address = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .ok_or_else(bad)?
        .trim_end_matches('/');
    let authority: http::uri::Authority = address.parse().map_err(|_| bad())?;
    let host = authority.host();
    let dialled = !host.is_empty() && host != "0.0.0.0" && host != "[::]";
    match authority.port_u16() {
        Some(port) if port != 0 && dialled && !address.contains('@') => Ok(address.to_owned()),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_url_that_can_be_dialled_is_an_address() {
        let address = |urls: &[&str]| {
            peer_address(&urls.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>()).map_err(|e| e.code())
        };
        assert_eq!(address(&["http://n4.example:2380"]).as_deref(), Ok("n4.example:2380"));
        assert_eq!(address(&["http://10.0.0.4:2380/"]).as_deref(), Ok("10.0.0.4:2380"));
        for bad in [
            &[][..],
            &["http://a:1", "http://b:1"],
            &["10.0.0.4:2380"],
            &["http://10.0.0.4"],
            &["http://0.0.0.0:2380"],
            &["http://:2380"],
            &["unix://a:1"],
            &["http://u@a:1"],
            &["http://a:0"],
        ] {
            assert_eq!(address(bad), Err(tonic::Code::InvalidArgument), "{bad:?}");
        }
    }
}
