//! `v3lockpb.Lock`: mutual exclusion by name.

use pontoon_proto::v3lockpb::lock_server::Lock;
use pontoon_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::EtcdServices;
use super::line::{check_name, permit_line};
use crate::consensus::Consensus;

#[tonic::async_trait]
impl<C: Consensus> Lock for EtcdServices<C> {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let LockRequest { name, lease } = request.into_inner();
        check_name(&name)?;
        permit_line(&keyspace, &name)?;
        let (place, waiting) = self.take_place(&keyspace, &name, lease, "".into()).await?;
        let held = self.wait_turn(&keyspace, &name, &place).await?;
        waiting.done();
        if !held {
            return Err(Status::unknown("mutex: session is expired"));
        }
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(LockResponse { header, key: place.key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let mut done = self.delete_key(&keyspace, request.into_inner().key).await?;
        self.complete(&keyspace, &mut done.header);
        Ok(Response::new(UnlockResponse { header: done.header }))
    }
}
