//! `v3electionpb.Election`: one leader by name, who says something.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, TxnResponse};
use pontoon_proto::mvccpb::KeyValue;
use pontoon_proto::mvccpb::event::EventType;
use pontoon_proto::v3electionpb::election_server::Election;
use pontoon_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tonic::{Request, Response, Status};

use super::line::{check_name, if_made_at, nearest, permit_line};
use super::session::Session;
use super::{EtcdServices, blocking};
use crate::consensus::Consensus;

/// How much of the history an observer reads at once.
const PAGE_BYTES: usize = 64 * 1024;

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn leader_of(request: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    request.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

/// Follows the leaders of one election.
struct Observer<C> {
    services: EtcdServices<C>,
    keyspace: Session,
    name: bytes::Bytes,
    /// The leader that was told last, and the first revision that was not looked at.
    following: Option<(KeyValue, i64)>,
}

impl<C: Consensus> Observer<C> {
    fn answer(&self, kv: KeyValue) -> LeaderResponse {
        LeaderResponse { header: self.services.header(&self.keyspace, kv.mod_revision), kv: Some(kv) }
    }

    /// The next thing that a leader says.
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        let mut revisions = self.keyspace.subscribe();
        loop {
            // What comes after this is looked for in the history.
            let seen = *revisions.borrow_and_update();
            if let Some((leader, from)) = self.following.take() {
                if let Some(kv) = self.follow(leader, from).await? {
                    return Ok(self.answer(kv));
                }
                if self.following.is_none() {
                    // It has gone, and the next one may be there already.
                    continue;
                }
            } else if let Some(kv) = self.services.first(&self.keyspace, nearest(&self.name, None)).await? {
                self.following = Some((kv.clone(), kv.mod_revision.max(seen) + 1));
                return Ok(self.answer(kv));
            }
            if revisions.changed().await.is_err() {
                return Err(Status::unavailable("etcdserver: server stopped"));
            }
        }
    }

    /// What the leader said next, if it has said something. Nobody is followed any more once it has gone.
    async fn follow(&mut self, leader: KeyValue, mut from: i64) -> Result<Option<KeyValue>, Status> {
        while from <= self.keyspace.revision() {
            let keyspace = self.keyspace.clone();
            let page = blocking(move || Ok(keyspace.events(from, PAGE_BYTES, false)?)).await?;
            if page.compact_revision >= from {
                return Ok(None);
            }
            for event in page.events {
                let deletion = event.r#type == EventType::Delete as i32;
                match event.kv {
                    Some(kv) if kv.key == leader.key && deletion => return Ok(None),
                    Some(kv) if kv.key == leader.key => {
                        self.following = Some((kv.clone(), kv.mod_revision + 1));
                        return Ok(Some(kv));
                    }
                    _ => {}
                }
            }
            from = page.next;
        }
        self.following = Some((leader, from));
        Ok(None)
    }
}

#[tonic::async_trait]
impl<C: Consensus> Election for EtcdServices<C> {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        check_name(&name)?;
        permit_line(&keyspace, &name)?;
        let (place, waiting) = self.take_place(&keyspace, &name, lease, value.clone()).await?;
        if place.value != value {
            let put =
                PutRequest { key: place.key.clone(), value, lease: place.lease, ..PutRequest::default() };
            let command = if_made_at(&place.key, place.since, Op::RequestPut(put), None);
            let _: TxnResponse = self.propose(&keyspace, None, command.encode()).await?;
        }
        let leads = self.wait_turn(&keyspace, &name, &place).await?;
        waiting.done();
        if !leads {
            return Err(not_leader());
        }
        let leader = LeaderKey { name, key: place.key, rev: place.since, lease: place.lease };
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader_of(leader)?;
        let put = PutRequest { key: leader.key.clone(), value, lease: leader.lease, ..PutRequest::default() };
        let command = if_made_at(&leader.key, leader.rev, Op::RequestPut(put), None);
        let mut done: TxnResponse = self.propose(&keyspace, None, command.encode()).await?;
        if !done.succeeded {
            return Err(not_leader());
        }
        self.complete(&keyspace, &mut done.header);
        Ok(Response::new(ProclaimResponse { header: done.header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        self.read_barrier(&keyspace).await?;
        permit_line(&keyspace, &request.get_ref().name)?;
        let found = self.first(&keyspace, nearest(&request.get_ref().name, None)).await?;
        let kv = found.ok_or_else(|| Status::unknown("election: no leader"))?;
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(LeaderResponse { header, kv: Some(kv) }))
    }

    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        self.read_barrier(&keyspace).await?;
        let name = request.into_inner().name;
        permit_line(&keyspace, &name)?;
        let observer = Observer { services: self.clone(), keyspace, name, following: None };
        let answers = stream::unfold(Some(observer), |observer| async move {
            let mut observer = observer?;
            let answer = observer.next().await;
            let next = answer.is_ok().then_some(observer);
            Some((answer, next))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let leader = leader_of(request.into_inner().leader)?;
        let delete = DeleteRangeRequest { key: leader.key.clone(), ..DeleteRangeRequest::default() };
        let command = if_made_at(&leader.key, leader.rev, Op::RequestDeleteRange(delete), None);
        // Who has no leadership any more has nothing to give up.
        let mut done: TxnResponse = self.propose(&keyspace, None, command.encode()).await?;
        self.complete(&keyspace, &mut done.header);
        Ok(Response::new(ResignResponse { header: done.header }))
    }
}
