//! `etcdserverpb.KV`: reads and writes.

use std::sync::Arc;

use pontoon_proto::etcdserverpb::kv_server::Kv;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::range_stream::RangeStream;
use super::session::Session;
use super::{EtcdServices, gather, put_position, write_id};
use crate::answers::Meter;
use crate::auth::{Access, judge_txn};
use crate::check;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::txn;

/// A transaction that only reads writes to no lease.
fn judge_read_only(session: &Session, r: &TxnRequest) -> Result<(), Status> {
    let judged = judge_txn(&session.control().auth, &session.caller, r, &mut |_| Ok(Vec::new()));
    judged.map_err(|fault| fault.status())
}

#[tonic::async_trait]
impl<C: Consensus> Kv for EtcdServices<C> {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let r = request.into_inner();
        check::check_range(&r).map_err(EtcdError::status)?;
        if !r.serializable {
            self.read_barrier(&keyspace).await?;
        }
        keyspace.permit(Access::Read, &r.key, &r.range_end)?;
        let is_short = r.range_end.is_empty();
        let reader = Arc::clone(&keyspace.keyspace);
        let read = move |meter: &mut Meter| reader.read_range(&r, meter);
        let (mut response, meter) = gather(keyspace.answers(), is_short, read).await?;
        keyspace.check_unchanged()?;
        self.complete(&keyspace, &mut response.header);
        Ok(meter.respond(response))
    }

    type RangeStreamStream = RangeStream;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.read_range_stream(request).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let id = write_id(&request)?;
        let r = request.into_inner();
        check::check_put(&r).map_err(EtcdError::status)?;
        self.make_room(&keyspace, id, r.key.len() + r.value.len()).await?;
        let command = Command::encode_put(&r);
        let mut response: PutResponse = self.propose(&keyspace, id, command).await?;
        self.complete(&keyspace, &mut response.header);
        self.answer(&keyspace, id, response).await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let id = write_id(&request)?;
        let r = request.into_inner();
        check::check_delete_range(&r).map_err(EtcdError::status)?;
        let command = Command::DeleteRange(r).encode();
        let mut response: DeleteRangeResponse = self.propose(&keyspace, id, command).await?;
        self.complete(&keyspace, &mut response.header);
        self.answer(&keyspace, id, response).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let id = write_id(&request)?;
        let r = request.into_inner();
        check::check_txn(&r, self.limits().txn_ops_max).map_err(EtcdError::status)?;
        if txn::is_read_only(&r) {
            if !txn::is_serializable(&r) {
                self.read_barrier(&keyspace).await?;
            }
            judge_read_only(&keyspace, &r)?;
            let reader = Arc::clone(&keyspace.keyspace);
            let read = move |meter: &mut Meter| reader.read_only_txn(&r, meter);
            let (mut response, meter) = gather(keyspace.answers(), false, read).await?;
            keyspace.check_unchanged()?;
            self.complete(&keyspace, &mut response.header);
            let mut response = meter.respond(response);
            if id.is_some() {
                put_position(&keyspace, response.metadata_mut());
            }
            return Ok(response);
        }
        if txn::puts(&r) {
            self.make_room(&keyspace, id, r.encoded_len()).await?;
        }
        let mut response: TxnResponse = self.propose(&keyspace, id, Command::Txn(r).encode()).await?;
        self.complete(&keyspace, &mut response.header);
        self.answer(&keyspace, id, response).await
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let id = write_id(&request)?;
        let r = request.into_inner();
        let mut response: CompactionResponse =
            self.propose(&keyspace, id, Command::Compact(r).encode()).await?;
        if r.physical {
            keyspace.compacted(r.revision).await;
        }
        self.complete(&keyspace, &mut response.header);
        self.answer(&keyspace, id, response).await
    }
}
