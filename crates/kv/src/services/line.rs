//! Lines of those who wait for something by name: what locks and elections have in common.
//!
//! A place in a line is a key `NAME/LEASE`, attached to the lease. Who has the key with the lowest create revision is at
//! the front. Clients with a library of their own stand in the same lines, with the same keys.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::response_op::Response as Done;
use pontoon_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, TxnResponse,
};
use pontoon_proto::mvccpb::KeyValue;
use tonic::{Code, Status};

use super::session::Session;
use super::{EtcdServices, LEASE_COST_BYTES, blocking, lease};
use crate::auth::Access;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::state::Keyspace;

/// The TTL of the lease that is made for callers who bring none. etcd's default.
const LEASE_TTL_SECONDS: i64 = 60;

/// How often at most those who wait look whether it is their turn.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A place in a line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: Bytes,
    pub(super) lease: i64,
    /// The revision that made the key.
    pub(super) since: i64,
    /// What is written there.
    pub(super) value: Bytes,
    /// It was made by this call, and not found.
    pub(super) is_new: bool,
}

/// The keys of a line: from the first on, before the second.
fn bounds(name: &[u8]) -> (Bytes, Bytes) {
    let mut start = BytesMut::with_capacity(name.len() + 1);
    start.extend_from_slice(name);
    start.extend_from_slice(b"/");
    let mut end = start.clone();
    end[name.len()] = b'/' + 1;
    (start.freeze(), end.freeze())
}

/// The key of who stands at the front, or of who stands right before a place.
pub(super) fn nearest(name: &[u8], before: Option<i64>) -> RangeRequest {
    let (key, range_end) = bounds(name);
    let order = if before.is_some() { SortOrder::Descend } else { SortOrder::Ascend };
    RangeRequest {
        key,
        range_end,
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        max_create_revision: before.map_or(0, |revision| revision - 1),
        ..RangeRequest::default()
    }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// A transaction that depends on the revision that made a key (0: there is no such key).
pub(super) fn if_made_at(key: &Bytes, revision: i64, then: Op, otherwise: Option<Op>) -> Command {
    Command::Txn(TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(revision)),
            ..Compare::default()
        }],
        success: vec![op(then)],
        failure: otherwise.into_iter().map(op).collect(),
    })
}

/// Leaves the line when the caller goes away before its turn.
pub(super) struct Waiting<C: Consensus> {
    services: EtcdServices<C>,
    keyspace: Session,
    key: Option<Bytes>,
}

impl<C: Consensus> Waiting<C> {
    /// The caller is there and has what it waited for.
    pub(super) fn done(mut self) {
        self.key = None;
    }
}

impl<C: Consensus> Drop for Waiting<C> {
    fn drop(&mut self) {
        if let (Some(key), Ok(runtime)) = (self.key.take(), tokio::runtime::Handle::try_current()) {
            let (services, keyspace) = (self.services.clone(), self.keyspace.clone());
            // If it does not come through, the lease ends the place.
            runtime.spawn(async move { services.delete_key(&keyspace, key).await.map(drop) });
        }
    }
}

impl<C: Consensus> EtcdServices<C> {
    pub(super) async fn delete_key(
        &self,
        keyspace: &Session,
        key: Bytes,
    ) -> Result<DeleteRangeResponse, Status> {
        let command = Command::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() });
        self.propose(keyspace, None, command.encode()).await
    }

    /// Takes a place at the end of a line, or finds the one that the lease has there.
    pub(super) async fn take_place(
        &self,
        keyspace: &Session,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<(Place, Waiting<C>), Status> {
        self.make_room(keyspace, None, name.len() + value.len() + LEASE_COST_BYTES).await?;
        let lease = match lease {
            0 => {
                let grant = LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: lease::random_id()? };
                let granted: pontoon_proto::etcdserverpb::LeaseGrantResponse =
                    self.propose(keyspace, None, Command::LeaseGrant(grant).encode()).await?;
                granted.id
            }
            lease => lease,
        };
        let mut key = bounds(name).0.to_vec();
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        let key = Bytes::from(key);
        let put = PutRequest { key: key.clone(), value: value.clone(), lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let command = if_made_at(&key, 0, Op::RequestPut(put), Some(Op::RequestRange(get)));
        let done: Result<TxnResponse, Status> = self.propose(keyspace, None, command.encode()).await;
        let done = done.map_err(|status| match status.code() {
            // etcd's own services are clients of it, and lose the code of what they were told on the way.
            Code::NotFound => Status::unknown(status.message()),
            _ => status,
        })?;
        let mut place = Place { key, lease, since: 0, value, is_new: done.succeeded };
        if done.succeeded {
            place.since = done.header.map_or(0, |header| header.revision);
        } else {
            let found = match done.responses.into_iter().next().and_then(|r| r.response) {
                Some(Done::ResponseRange(r)) => r.kvs.into_iter().next(),
                _ => None,
            };
            let kv = found.ok_or_else(|| Status::internal("pontoon: a place was neither made nor found"))?;
            (place.since, place.value) = (kv.create_revision, kv.value);
        }
        let key = place.is_new.then(|| place.key.clone());
        Ok((place, Waiting { services: self.clone(), keyspace: keyspace.clone(), key }))
    }

    /// Waits until nobody stands before a place. `false`: the place is gone, by its lease or by somebody's hand.
    ///
    /// What is applied here is enough to look at: who is gone from before a place never comes back there.
    pub(super) async fn wait_turn(
        &self,
        keyspace: &Session,
        name: &[u8],
        place: &Place,
    ) -> Result<bool, Status> {
        let mut revisions = keyspace.subscribe();
        while let Some(ahead) = self.first(keyspace, nearest(name, Some(place.since))).await? {
            loop {
                revisions.borrow_and_update();
                let now = self.get(keyspace, &ahead.key)?;
                if now.is_none_or(|kv| kv.create_revision != ahead.create_revision) {
                    break;
                }
                if self.get(keyspace, &place.key)?.is_none_or(|kv| kv.create_revision != place.since) {
                    return Ok(false);
                }
                if revisions.changed().await.is_err() {
                    return Err(Status::unavailable("etcdserver: server stopped"));
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        }
        self.read_barrier(keyspace).await?;
        Ok(self.get(keyspace, &place.key)?.is_some_and(|kv| kv.create_revision == place.since))
    }

    /// The first key of a range, as applied here.
    pub(super) async fn first(
        &self,
        keyspace: &Session,
        range: RangeRequest,
    ) -> Result<Option<KeyValue>, Status> {
        let keyspace = keyspace.clone();
        let found = blocking(move || keyspace.range(&range).map_err(|e| e.0)).await?;
        Ok(found.kvs.into_iter().next())
    }

    /// One key, as applied here.
    fn get(&self, keyspace: &Keyspace, key: &Bytes) -> Result<Option<KeyValue>, Status> {
        let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let found = keyspace.range(&range).map_err(|e| e.0.status())?;
        Ok(found.kvs.into_iter().next())
    }
}

/// Whether the caller may see who stands in a line.
pub(super) fn permit_line(session: &Session, name: &[u8]) -> Result<(), Status> {
    let (start, end) = bounds(name);
    session.permit(Access::Read, &start, &end)
}

/// What the caller named must be there.
pub(super) fn check_name(name: &[u8]) -> Result<(), Status> {
    // The key gets a slash and a lease's id behind it.
    if name.len() + 17 > crate::mvcc::records::KEY_BYTES_MAX {
        return Err(EtcdError::RequestTooLarge.status());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_its_own_places_only() {
        let (start, end) = bounds(b"my");
        assert_eq!((&start[..], &end[..]), (&b"my/"[..], &b"my0"[..]));
        for (key, inside) in [(&b"my/1f"[..], true), (b"my", false), (b"my0", false), (b"mx/1", false)] {
            assert_eq!(start <= key && key < &end[..], inside, "{key:?}");
        }
    }
}
