//! `etcdserverpb.KV`: reads and writes.

use pontoon_proto::etcdserverpb::kv_server::Kv;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use tonic::{Request, Response, Status};

use super::{EtcdServices, blocking, write_id};
use crate::check;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::txn;

#[tonic::async_trait]
impl<C: Consensus> Kv for EtcdServices<C> {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let keyspace = self.keyspace(&request)?;
        let r = request.into_inner();
        check::check_range(&r).map_err(EtcdError::status)?;
        if !r.serializable {
            self.read_barrier(&keyspace).await?;
        }
        let mut response = if r.range_end.is_empty() {
            keyspace.range(&r).map_err(|e| e.0.status())?
        } else {
            let keyspace = keyspace.clone();
            blocking(move || keyspace.range(&r).map_err(|e| e.0)).await?
        };
        self.complete(&keyspace, &mut response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (keyspace, id) = (self.keyspace(&request)?, write_id(&request)?);
        let r = request.into_inner();
        check::check_put(&r).map_err(EtcdError::status)?;
        let command = Command::encode_put(&r);
        let mut response: PutResponse = self.propose(&keyspace, id, command).await?;
        self.complete(&keyspace, &mut response.header);
        Ok(self.answer(&keyspace, id, response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (keyspace, id) = (self.keyspace(&request)?, write_id(&request)?);
        let r = request.into_inner();
        check::check_delete_range(&r).map_err(EtcdError::status)?;
        let command = Command::DeleteRange(r).encode();
        let mut response: DeleteRangeResponse = self.propose(&keyspace, id, command).await?;
        self.complete(&keyspace, &mut response.header);
        Ok(self.answer(&keyspace, id, response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (keyspace, id) = (self.keyspace(&request)?, write_id(&request)?);
        let r = request.into_inner();
        check::check_txn(&r, self.limits().txn_ops_max).map_err(EtcdError::status)?;
        let mut response = if txn::is_read_only(&r) {
            if !txn::is_serializable(&r) {
                self.read_barrier(&keyspace).await?;
            }
            let keyspace = keyspace.clone();
            blocking(move || keyspace.read_only_txn(&r)).await?
        } else {
            self.propose(&keyspace, id, Command::Txn(r).encode()).await?
        };
        self.complete(&keyspace, &mut response.header);
        Ok(self.answer(&keyspace, id, response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let (keyspace, id) = (self.keyspace(&request)?, write_id(&request)?);
        let r = request.into_inner();
        let mut response: CompactionResponse =
            self.propose(&keyspace, id, Command::Compact(r).encode()).await?;
        if r.physical {
            keyspace.compacted(r.revision).await;
        }
        self.complete(&keyspace, &mut response.header);
        Ok(self.answer(&keyspace, id, response))
    }
}
