//! The etcd calls on one keyspace.

use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, request_op,
};
use pontoon_proto::mvccpb::KeyValue;

use crate::call::{Caller, Kind};
use crate::error::CallError;
use crate::session::SessionStatus;

/// One keyspace; made by [`Client::keyspace`](crate::Client::keyspace). Cheap to clone.
///
/// # Deadlines
/// Every call ends before its timeout, which covers the wait for a connection and all attempts.
///
/// # Cancel safety
/// Dropping the future of a *read* is always safe. Dropping that of a *write* leaves its outcome unknown: it may be
/// applied, also later, or not; its name is gone with it, so that making the call again is another write. Nothing else
/// is disturbed: other calls on the same connection go on.
#[derive(Clone, Debug)]
pub struct Keyspace {
    caller: Caller,
}

/// Makes a client of a generated service for one attempt.
macro_rules! kv {
    ($self:ident, $method:ident) => {{
        let limit = $self.caller.response_bytes_max;
        move |channel, request| async move {
            KvClient::new(channel).max_decoding_message_size(limit).$method(request).await
        }
    }};
}

impl Keyspace {
    pub(crate) fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// The same keyspace, with another timeout for each call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.caller.timeout = timeout;
        self
    }

    /// How the session behind it is doing.
    #[must_use]
    pub fn session(&self) -> SessionStatus {
        self.caller.session.status()
    }

    /// Reads one key; `None`: it is not there.
    ///
    /// # Errors
    /// [`CallError`]; reads are repeated until the timeout.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, CallError> {
        let request = RangeRequest { key: key.into(), limit: 1, ..RangeRequest::default() };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// Reads keys.
    ///
    /// # Errors
    /// [`CallError`]; reads are repeated until the timeout.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        self.caller.call(Kind::Repeatable, request, kv!(self, range)).await
    }

    /// Writes one key.
    ///
    /// # Errors
    /// [`CallError`]; repeated until the timeout, and executed once.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<PutResponse, CallError> {
        let request = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        self.put_with(request).await
    }

    /// Writes one key, with all that can be asked beside.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn put_with(&self, request: PutRequest) -> Result<PutResponse, CallError> {
        self.caller.call(Kind::Write, request, kv!(self, put)).await
    }

    /// Deletes one key; returns whether it was there.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, CallError> {
        let request = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
        Ok(self.delete_range(request).await?.deleted > 0)
    }

    /// Deletes keys.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, CallError> {
        self.caller.call(Kind::Write, request, kv!(self, delete_range)).await
    }

    /// Compares, then does one thing or the other, atomically. One that only reads is treated as a read.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, CallError> {
        let kind = if only_reads(&request) { Kind::Repeatable } else { Kind::Write };
        self.caller.call(kind, request, kv!(self, txn)).await
    }

    /// Forgets the history before a revision.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, CallError> {
        self.caller.call(Kind::Write, request, kv!(self, compact)).await
    }
}

fn only_reads(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match &op.request {
        Some(request_op::Request::RequestRange(_)) | None => true,
        Some(request_op::Request::RequestTxn(inner)) => only_reads(inner),
        Some(_) => false,
    })
}
