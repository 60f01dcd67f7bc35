//! `KV.RangeStream` of etcd 3.7: a range in parts, read as fast as the client takes them.

use futures_util::stream::{self, BoxStream, StreamExt as _};
use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};
use tonic::{Request, Response, Status};

use super::session::Session;
use super::{EtcdServices, blocking};
use crate::auth::Access;
use crate::check;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::parts::{Part, Parts};

/// A part ends with the key that makes it so large: enough that calls and frames do not count, and little enough that many
/// clients can read at once.
const PART_BYTES: usize = 1 << 20;

/// What parts cannot do: sorting and filtering need all keys at once.
fn check_range_stream(r: &RangeRequest) -> Result<(), Status> {
    check::check_range(r).map_err(EtcdError::status)?;
    // Without an order the target says nothing here, as in etcd.
    let by_key = r.sort_order == i32::from(SortOrder::None)
        || (r.sort_order == i32::from(SortOrder::Ascend) && r.sort_target == i32::from(SortTarget::Key));
    if !by_key {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let bounds = [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision];
    if bounds != [0; 4] {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// The answers to one request.
pub(super) type RangeStream = BoxStream<'static, Result<RangeStreamResponse, Status>>;

impl<C: Consensus> EtcdServices<C> {
    pub(super) async fn read_range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeStream>, Status> {
        let session = self.session(request.metadata(), request.extensions()).await?;
        let r = request.into_inner();
        check_range_stream(&r)?;
        if !r.serializable {
            self.read_barrier(&session).await?;
        }
        session.permit(Access::Read, &r.key, &r.range_end)?;
        let state = Some((self.clone(), session, Parts::new(r)));
        let parts = stream::unfold(state, |state| async move {
            let (services, session, parts) = state?;
            match services.read_part(&session, parts).await {
                Ok((part, Some(parts))) => Some((Ok(part), Some((services, session, parts)))),
                Ok((part, None)) => Some((Ok(part), None)),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(parts.boxed()))
    }

    /// The next part; and what is to be read after it, if anything is.
    async fn read_part(
        &self,
        session: &Session,
        mut parts: Parts,
    ) -> Result<(RangeStreamResponse, Option<Parts>), Status> {
        let keyspace = session.keyspace.clone();
        let (Part { kvs, end }, parts) = blocking(move || {
            let part = parts.next(&keyspace, PART_BYTES)?;
            Ok((part, parts))
        })
        .await?;
        session.check_unchanged()?;
        let mut range = RangeResponse { kvs, ..RangeResponse::default() };
        let parts = end.is_none().then_some(parts);
        if let Some(end) = end {
            range.header = self.header(session, end.revision);
            (range.more, range.count) = (end.more, end.count);
        }
        Ok((RangeStreamResponse { range_response: Some(range) }, parts))
    }
}
