//! The gRPC services of the etcd v3 API, one file each.

mod auth;
mod cluster;
mod election;
mod kv;
mod lease;
mod line;
mod lock;
mod maintenance;
mod range_stream;
mod restore;
mod session;
mod snapshot;
mod watch;

pub use session::CertificateUser;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_proto::etcdserverpb::auth_server::AuthServer;
use pontoon_proto::etcdserverpb::cluster_server::ClusterServer;
use pontoon_proto::etcdserverpb::kv_server::KvServer;
use pontoon_proto::etcdserverpb::lease_server::LeaseServer;
use pontoon_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use pontoon_proto::etcdserverpb::watch_server::WatchServer;
use pontoon_proto::etcdserverpb::{AlarmType, AuthDisableResponse, ResponseHeader};
use pontoon_proto::v1::restore_server::RestoreServer;
use pontoon_proto::v3electionpb::election_server::ElectionServer;
use pontoon_proto::v3lockpb::lock_server::LockServer;
use prost::Message;
use session::Session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use crate::answers::{AnswerFault, Answers, Meter};
use crate::check::Limits;
use crate::command::{Command, decode_reply, of_caller};
use crate::consensus::{Consensus, propose_status, read_status};
use crate::error::{EtcdError, Fault, outcome};
use crate::keyspace::Directory;
use crate::mvcc::state::Keyspace;
use crate::write_id::WriteId;

/// The etcd version whose behaviour we promise. Clients look at it: Kubernetes wants at least 3.5.13 for consistent
/// reads from its cache.
pub const ETCD_VERSION: &str = "3.5.17";

/// What a message may be larger than the request in it, before it is decoded.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

/// Passwords that a store hashes at a time; the others wait.
const HASHES_MAX: usize = 2;

/// A lease counts so much against the quota, as in etcd.
const LEASE_COST_BYTES: usize = 64;

struct Inner<C> {
    consensus: C,
    directory: Arc<dyn Directory>,
    limits: Limits,
    /// Images that are streamed to and from clients.
    snapshots: Arc<Semaphore>,
    /// Passwords that are hashed: each takes a processor for tens of milliseconds.
    hashing: Semaphore,
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
        Self(Arc::new(Inner {
            consensus,
            directory,
            limits,
            snapshots: Arc::new(Semaphore::new(snapshot::SNAPSHOTS_MAX)),
            hashing: Semaphore::new(HASHES_MAX),
        }))
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

    /// `pontoon.v1.Restore`.
    #[must_use]
    pub fn restore(&self) -> RestoreServer<Self> {
        RestoreServer::new(self.clone())
    }

    /// The keyspace that a request means.
    fn keyspace<T>(&self, request: &Request<T>) -> Result<Arc<Keyspace>, Status> {
        self.find(request.metadata(), request.extensions())
    }

    fn take_snapshot_place(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.0.snapshots).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "pontoon: this store saves or restores {} keyspaces already, which is the most at a time; try again later",
                snapshot::SNAPSHOTS_MAX
            ))
        })
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
        session: &Session,
        id: Option<WriteId>,
        command: Bytes,
    ) -> Result<M, Status> {
        self.limits().check_size(command.len()).map_err(EtcdError::status)?;
        let keyspace = &session.keyspace;
        let command = of_caller(&session.caller, command);
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

    /// Refuses what would not fit into the quota, and sees to it that the keyspace's alarm is raised.
    ///
    /// A write with a name goes on to the log in any case, where the alarm stops it: an earlier attempt at it may have
    /// been executed while there was room, and only the log knows.
    async fn make_room(&self, session: &Session, id: Option<WriteId>, bytes: usize) -> Result<(), Status> {
        let limits = self.limits();
        let size = session.size_bytes();
        if limits.has_room(size, bytes as u64) {
            return Ok(());
        }
        if limits.is_full(size) && !session.control().has_alarm(AlarmType::Nospace) {
            let member = self.consensus().store_id().0;
            let raise = Command::Quota { over: true, member }.encode();
            let _: AuthDisableResponse =
                self.execute(&session.keyspace, raise).await?.map_err(EtcdError::status)?;
        }
        match id {
            Some(_) => Ok(()),
            None => Err(outcome::mark(EtcdError::NoSpace.status(), outcome::NOT_EXECUTED)),
        }
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

    /// The answer to a command; whoever names writes is told the position for the next name.
    async fn answer<M: Message>(
        &self,
        keyspace: &Keyspace,
        id: Option<WriteId>,
        message: M,
    ) -> Result<Response<M>, Status> {
        let mut response = keyspace
            .answers()
            .charged(message)
            .await
            .map_err(|_| outcome::mark(EtcdError::AnswerTooLarge.status(), outcome::EXECUTED))?;
        if id.is_some() {
            put_position(keyspace, response.metadata_mut());
        }
        Ok(response)
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

/// Gathers an answer that may be large, and what it takes; waits for memory if there is none. Of a short read that stalls no
/// other request, `is_short`, the first attempt is made at once.
async fn gather<T: Send + 'static>(
    answers: &Answers,
    is_short: bool,
    read: impl Fn(&mut Meter) -> Result<T, Fault> + Send + Sync + 'static,
) -> Result<(T, Meter), Status> {
    let read = Arc::new(read);
    let mut meter = answers.meter();
    let mut at_once = is_short;
    loop {
        let gathered = if std::mem::take(&mut at_once) {
            read(&mut meter).map(|gathered| (gathered, meter))
        } else {
            let read = Arc::clone(&read);
            let work = move || Ok(read(&mut meter).map(|gathered| (gathered, meter)));
            blocking(work).await?
        };
        match gathered {
            Ok(done) => return Ok(done),
            // What was gathered is forgotten, and what was charged for it given back: nobody waits with memory in hand.
            Err(Fault::Answer(AnswerFault::Full { wanted })) => {
                meter = answers.meter_with(wanted).await.map_err(AnswerFault::status)?;
            }
            Err(fault) => return Err(fault.status()),
        }
    }
}
