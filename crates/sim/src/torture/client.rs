//! One connection to one store, and which errors mean that nothing happened.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, HashKvRequest, HashKvResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse, TxnRequest, TxnResponse,
};
use pontoon_proto::mvccpb::KeyValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// Keys asked for at once when everything is read.
const PAGE: i64 = 2_000;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The call certainly had no effect.
    Refused(String),
    /// It may have had its effect, or may still have it.
    Unknown(String),
}

impl CallError {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Refused(text) | Self::Unknown(text) => text,
        }
    }
}

/// A connection. Calls are never retried: a retry could take effect twice.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    timeout: Duration,
}

fn request<T>(keyspace: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = keyspace.and_then(|name| name.parse().ok()) {
        request.metadata_mut().insert("pontoon-keyspace", value);
    }
    request
}

fn classify(status: &Status) -> CallError {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        // What a server answers before it does anything.
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::ResourceExhausted => CallError::Refused(text),
        _ => CallError::Unknown(text),
    }
}

impl Connection {
    /// Connects, in less than `timeout`, which is that of every call too.
    ///
    /// # Errors
    /// Nobody listens there; nothing was sent.
    pub(crate) async fn open(address: &str, timeout: Duration) -> Result<Self, CallError> {
        let refused = |error: String| CallError::Refused(format!("connecting to {address}: {error}"));
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| refused(error.to_string()))?
            .connect_timeout(timeout.min(Duration::from_secs(1)))
            .tcp_nodelay(true);
        let channel = tokio::time::timeout(timeout, endpoint.connect())
            .await
            .map_err(|_| refused("no answer".to_owned()))?
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            maintenance: MaintenanceClient::new(channel),
            timeout,
        })
    }

    async fn within<T>(
        timeout: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(classify(&status)),
            Err(_) => Err(CallError::Unknown(format!("no answer within {timeout:?}"))),
        }
    }

    pub(crate) async fn get(
        &mut self,
        keyspace: Option<&str>,
        key: Vec<u8>,
        serializable: bool,
    ) -> Result<RangeResponse, CallError> {
        let message = RangeRequest { key: key.into(), serializable, ..RangeRequest::default() };
        Self::within(self.timeout, self.kv.range(request(keyspace, message))).await
    }

    pub(crate) async fn put(
        &mut self,
        keyspace: Option<&str>,
        key: Vec<u8>,
        value: Vec<u8>,
    ) -> Result<PutResponse, CallError> {
        let message = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        Self::within(self.timeout, self.kv.put(request(keyspace, message))).await
    }

    /// Deletes a key and asks for what was there.
    pub(crate) async fn delete(
        &mut self,
        keyspace: Option<&str>,
        key: Vec<u8>,
    ) -> Result<DeleteRangeResponse, CallError> {
        let message = DeleteRangeRequest { key: key.into(), prev_kv: true, ..DeleteRangeRequest::default() };
        Self::within(self.timeout, self.kv.delete_range(request(keyspace, message))).await
    }

    pub(crate) async fn txn(
        &mut self,
        keyspace: Option<&str>,
        message: TxnRequest,
    ) -> Result<TxnResponse, CallError> {
        Self::within(self.timeout, self.kv.txn(request(keyspace, message))).await
    }

    pub(crate) async fn compact(&mut self, keyspace: Option<&str>, revision: i64) -> Result<(), CallError> {
        let message = CompactionRequest { revision, physical: false };
        Self::within(self.timeout, self.kv.compact(request(keyspace, message))).await.map(|_| ())
    }

    pub(crate) async fn status(&mut self, keyspace: Option<&str>) -> Result<StatusResponse, CallError> {
        Self::within(self.timeout, self.maintenance.status(request(keyspace, StatusRequest {}))).await
    }

    pub(crate) async fn hash_kv(
        &mut self,
        keyspace: Option<&str>,
        revision: i64,
    ) -> Result<HashKvResponse, CallError> {
        let message = HashKvRequest { revision };
        Self::within(self.timeout, self.maintenance.hash_kv(request(keyspace, message))).await
    }

    /// The revision of the keyspace on this store, without asking the others.
    pub(crate) async fn revision(&mut self, keyspace: Option<&str>) -> Result<i64, CallError> {
        let response = self.get(keyspace, b"revision?".to_vec(), true).await?;
        Ok(response.header.map_or(0, |header| header.revision))
    }

    /// Everything in the keyspace at one revision, which it returns: the given one, or the first that the store reads at.
    pub(crate) async fn everything(
        &mut self,
        keyspace: Option<&str>,
        revision: i64,
        serializable: bool,
    ) -> Result<(i64, BTreeMap<Vec<u8>, KeyValue>), CallError> {
        let mut all = BTreeMap::new();
        let mut at = revision;
        let mut key = vec![0];
        loop {
            let message = RangeRequest {
                key: key.into(),
                range_end: vec![0].into(),
                limit: PAGE,
                revision: at,
                serializable,
                ..RangeRequest::default()
            };
            let page = Self::within(self.timeout, self.kv.range(request(keyspace, message))).await?;
            if at == 0 {
                at = page.header.map_or(0, |header| header.revision);
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else {
                all.extend(page.kvs.into_iter().map(|pair| (pair.key.to_vec(), pair)));
                return Ok((at, all));
            };
            key = [&last.key[..], &[0]].concat();
            all.extend(page.kvs.into_iter().map(|pair| (pair.key.to_vec(), pair)));
        }
    }
}
