//! The gRPC services of the etcd v3 API, one file each.

mod auth;
mod cluster;
mod election;
mod kv;
mod lease;
mod line;
mod lock;
mod maintenance;
mod watch;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::ResponseHeader;
use pontoon_proto::etcdserverpb::auth_server::AuthServer;
use pontoon_proto::etcdserverpb::cluster_server::ClusterServer;
use pontoon_proto::etcdserverpb::kv_server::KvServer;
use pontoon_proto::etcdserverpb::lease_server::LeaseServer;
use pontoon_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use pontoon_proto::etcdserverpb::watch_server::WatchServer;
use pontoon_proto::v3electionpb::election_server::ElectionServer;
use pontoon_proto::v3lockpb::lock_server::LockServer;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use crate::check::Limits;
use crate::command::decode_reply;
use crate::consensus::{Consensus, propose_status, read_status};
use crate::error::{EtcdError, Fault};
use crate::keyspace::{self, Directory};
use crate::mvcc::state::Keyspace;
use crate::write_id::WriteId;

/// The etcd version whose behaviour we promise. Clients look at it: Kubernetes wants at least 3.5.13 for consistent
/// reads from its cache.
pub const ETCD_VERSION: &str = "3.5.17";

/// What a message may be larger than the request in it, before it is decoded.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

struct Inner<C> {
    consensus: C,
    directory: Arc<dyn Directory>,
    limits: Limits,
}

/// All services of the etcd v3 API over one store. Clones share everything.
pub struct EtcdServices<C>(Arc<Inner<C>>);

impl<C> Clone for EtcdServices<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for EtcdServices<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServices").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<C: Consensus> EtcdServices<C> {
    /// The services of the keyspaces in `directory`.
    pub fn new(consensus: C, directory: Arc<dyn Directory>, limits: Limits) -> Self {
        Self(Arc::new(Inner { consensus, directory, limits }))
    }

    fn decode_max(&self) -> usize {
        self.0.limits.request_bytes_max + MESSAGE_OVERHEAD_BYTES
    }

    /// `etcdserverpb.KV`.
    #[must_use]
    pub fn kv(&self) -> KvServer<Self> {
        KvServer::new(self.clone())
            .max_decoding_message_size(self.decode_max())
            .max_encoding_message_size(usize::MAX)
    }

    /// `etcdserverpb.Watch`.
    #[must_use]
    pub fn watch(&self) -> WatchServer<Self> {
        WatchServer::new(self.clone())
            .max_decoding_message_size(self.decode_max())
            .max_encoding_message_size(usize::MAX)
    }

    /// `etcdserverpb.Lease`.
    #[must_use]
    pub fn lease(&self) -> LeaseServer<Self> {
        LeaseServer::new(self.clone()).max_encoding_message_size(usize::MAX)
    }

    /// `v3lockpb.Lock`.
    #[must_use]
    pub fn lock(&self) -> LockServer<Self> {
        LockServer::new(self.clone()).max_decoding_message_size(self.decode_max())
    }

    /// `v3electionpb.Election`.
    #[must_use]
    pub fn election(&self) -> ElectionServer<Self> {
        ElectionServer::new(self.clone())
            .max_decoding_message_size(self.decode_max())
            .max_encoding_message_size(usize::MAX)
    }

    /// `etcdserverpb.Cluster`.
    #[must_use]
    pub fn cluster(&self) -> ClusterServer<Self> {
        ClusterServer::new(self.clone())
    }

    /// `etcdserverpb.Maintenance`.
    #[must_use]
    pub fn maintenance(&self) -> MaintenanceServer<Self> {
        MaintenanceServer::new(self.clone())
    }

    /// `etcdserverpb.Auth`.
    #[must_use]
    pub fn auth(&self) -> AuthServer<Self> {
        AuthServer::new(self.clone())
    }

    fn consensus(&self) -> &C {
        &self.0.consensus
    }

    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The keyspace that a request means.
    fn keyspace<T>(&self, request: &Request<T>) -> Result<Arc<Keyspace>, Status> {
        keyspace::with_name(request.metadata().as_ref(), request.extensions(), |name| {
            self.0.directory.find(name).ok_or_else(|| keyspace::unknown(name))
        })?
    }

    fn header(&self, keyspace: &Keyspace, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.consensus().cluster_id(),
            member_id: self.consensus().store_id().0,
            revision,
            raft_term: keyspace.term().0,
        })
    }

    /// Adds what a state machine does not know to the header it made.
    fn complete(&self, keyspace: &Keyspace, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |h| h.revision);
        *header = self.header(keyspace, revision);
    }

    /// Replicates a command and waits for its reply.
    ///
    /// With a name it is executed once, however often it comes, and answered with what the first answer was.
    async fn propose<M: Message + Default>(
        &self,
        keyspace: &Keyspace,
        id: Option<WriteId>,
        command: Bytes,
    ) -> Result<M, Status> {
        self.limits().check_size(command.len()).map_err(EtcdError::status)?;
        let Some(id) = id else {
            return self.execute(keyspace, command).await?.map_err(EtcdError::status);
        };
        let reply = match keyspace.judge_write_id(id) {
            Ok(()) => self.execute(keyspace, id.name(&command)).await,
            Err(e) => Ok(Err(e)),
        };
        let refusal = match reply {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(e)) => e.status_of_named(),
            Err(status) => status,
        };
        Err(with_position(keyspace, refusal))
    }

    /// Replicates a command as it is. The inner error is the state machine's.
    async fn execute<M: Message + Default>(
        &self,
        keyspace: &Keyspace,
        command: Bytes,
    ) -> Result<Result<M, EtcdError>, Status> {
        let reply = self.consensus().propose(keyspace.group(), command).await;
        let reply = reply.map_err(|e| propose_status(&e))?;
        decode_reply(reply).map_err(|e| Status::internal(e.to_string()))
    }

    /// The answer to a write; whoever names writes is told the position for the next name.
    fn answer<M>(&self, keyspace: &Keyspace, id: Option<WriteId>, response: M) -> Response<M> {
        let mut response = Response::new(response);
        if id.is_some() {
            put_position(keyspace, response.metadata_mut());
        }
        response
    }

    async fn read_barrier(&self, keyspace: &Keyspace) -> Result<(), Status> {
        let barrier = self.consensus().read_barrier(keyspace.group()).await;
        barrier.map(|_| ()).map_err(|e| read_status(&e))
    }
}

/// The metadata by which a client names a write; see [`WriteId`].
pub const ENTRY_ID_METADATA: &str = "pontoon-eid";

/// The metadata of an answer that tells how far the keyspace is applied on this store, in decimal digits: the position
/// for the names of later writes. In answers to named writes and to `Maintenance.Status`.
pub const POSITION_METADATA: &str = "pontoon-position";

fn put_position(keyspace: &Keyspace, metadata: &mut MetadataMap) {
    metadata.insert(POSITION_METADATA, MetadataValue::from(keyspace.applied().0));
}

fn with_position(keyspace: &Keyspace, mut status: Status) -> Status {
    put_position(keyspace, status.metadata_mut());
    status
}

/// The name that a request gives to its write, if any.
fn write_id<T>(request: &Request<T>) -> Result<Option<WriteId>, Status> {
    let mut values = request.metadata().get_all(ENTRY_ID_METADATA).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match WriteId::parse(value.as_encoded_bytes()) {
        Some(id) if values.next().is_none() => Ok(Some(id)),
        _ => Err(Status::invalid_argument(
            "pontoon: the metadata pontoon-eid must be 32 hexadecimal digits, once: 16 of a position and 16 of the \
             client's choice",
        )),
    }
}

/// Runs work that may read much from disk where it stalls no other request.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|fault| fault.status()),
        Err(e) => Err(Status::internal(format!("pontoon: a read was cut short: {e}"))),
    }
}

fn unimplemented(what: &str, instead: &str) -> Status {
    Status::unimplemented(format!("pontoon: {what} is not implemented yet; {instead}"))
}
