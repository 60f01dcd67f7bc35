//! A cluster of fake stores on loopback ports: real gRPC, a map for a state machine, and every misbehaviour on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pontoon_client::proto::etcdserverpb::kv_server::{Kv, KvServer};
use pontoon_client::proto::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use pontoon_client::proto::etcdserverpb::*;
use pontoon_client::proto::mvccpb::KeyValue;
use pontoon_client::proto::v1;
use pontoon_client::proto::v1::admin_server::{Admin, AdminServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// No store leads.
pub(crate) const NOBODY: usize = usize::MAX;

/// What all stores share: there is no replication to go wrong.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) leader: AtomicUsize,
    /// Followers refuse calls instead of passing them on, and so does everybody without a leader.
    pub(crate) strict: AtomicBool,
    /// The next so many writes are applied and then answered with a timeout.
    pub(crate) lose_answers: AtomicUsize,
    /// Calls never end.
    pub(crate) hang: AtomicBool,
    pub(crate) keys: Mutex<BTreeMap<Vec<u8>, KeyValue>>,
    pub(crate) writes: AtomicU64,
    /// Entry ids that were applied, and how often each arrived.
    pub(crate) entry_ids: Mutex<HashMap<String, usize>>,
    /// The store is one that knows no names, as etcd: it executes whatever comes.
    pub(crate) nameless: AtomicBool,
    /// Names that begin with less than this are refused.
    pub(crate) floor: AtomicU64,
    /// The keyspaces that were named, in order.
    pub(crate) keyspaces: Mutex<Vec<Option<String>>>,
}

/// One store.
pub(crate) struct Store {
    pub(crate) address: SocketAddr,
    pub(crate) accepted: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Store {
    /// Kills it: its connections break and its port is closed.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stores: Vec<Store>,
}

impl Cluster {
    /// Starts `n` stores, of which the first leads.
    pub(crate) fn start(n: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let stores = (0..n).map(|index| start(index, Arc::clone(&shared))).collect();
        Self { shared, stores }
    }

    pub(crate) fn remotes(&self) -> Vec<String> {
        self.stores.iter().map(|store| store.address.to_string()).collect()
    }

    pub(crate) fn accepted(&self) -> Vec<usize> {
        self.stores.iter().map(|store| store.accepted.load(Ordering::SeqCst)).collect()
    }

    pub(crate) fn lead(&self, index: usize) {
        self.shared.leader.store(index, Ordering::SeqCst);
    }
}

/// Each in a runtime of its own, so that it can be killed with all its connections.
fn start(index: usize, shared: Arc<Shared>) -> Store {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (service, count) = (Service { index, shared }, Arc::clone(&accepted));
    runtime.spawn(async move {
        let incoming =
            TcpListenerStream::new(TcpListener::from_std(listener).unwrap()).map(move |connection| {
                count.fetch_add(1, Ordering::SeqCst);
                connection
            });
        tonic::transport::Server::builder()
            .add_service(KvServer::new(service.clone()))
            .add_service(MaintenanceServer::new(service.clone()))
            .add_service(AdminServer::new(service))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    Store { address, accepted, runtime: Some(runtime) }
}

#[derive(Clone)]
struct Service {
    index: usize,
    shared: Arc<Shared>,
}

fn absent<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the fake has no such call"))
}

impl Service {
    fn header(&self) -> Option<ResponseHeader> {
        let revision = i64::try_from(self.shared.writes.load(Ordering::SeqCst)).unwrap();
        Some(ResponseHeader { member_id: self.index as u64 + 1, revision, ..ResponseHeader::default() })
    }

    /// As a store that knows names.
    fn tell_position(&self, metadata: &mut MetadataMap) {
        if !self.shared.nameless.load(Ordering::SeqCst) {
            let position = self.shared.writes.load(Ordering::SeqCst);
            metadata.insert("pontoon-position", position.to_string().parse().unwrap());
        }
    }

    /// What precedes every KV call.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let text = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        self.shared.keyspaces.lock().unwrap().push(text("pontoon-keyspace"));
        if self.shared.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.shared.strict.load(Ordering::SeqCst)
            && self.shared.leader.load(Ordering::SeqCst) != self.index
        {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        Ok(())
    }

    /// Applies a write, once for each entry id, and perhaps loses the answer.
    fn write<T>(
        &self,
        request: &Request<T>,
        apply: impl FnOnce(&mut BTreeMap<Vec<u8>, KeyValue>),
    ) -> Result<(), Status> {
        let entry_id = request.metadata().get("pontoon-eid").map(|id| id.to_str().unwrap());
        let nameless = self.shared.nameless.load(Ordering::SeqCst);
        assert_eq!(entry_id.is_none(), nameless, "a write has a name where names are known");
        let mut entry_ids = self.shared.entry_ids.lock().unwrap();
        if let Some(entry_id) = entry_id
            && u64::from_str_radix(&entry_id[..16], 16).unwrap() < self.shared.floor.load(Ordering::SeqCst)
        {
            let mut expired = Status::out_of_range("the name may be forgotten");
            expired.metadata_mut().insert("pontoon-outcome", "expired".parse().unwrap());
            self.tell_position(expired.metadata_mut());
            return Err(expired);
        }
        let seen = entry_ids.entry(entry_id.unwrap_or_default().to_owned()).or_default();
        *seen += 1;
        if *seen == 1 || nameless {
            apply(&mut self.shared.keys.lock().unwrap());
            self.shared.writes.fetch_add(1, Ordering::SeqCst);
        }
        let lose = |left: usize| left.checked_sub(1);
        match self.shared.lose_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose) {
            Ok(_) => Err(Status::unavailable("etcdserver: request timed out")),
            Err(_) => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        let keys = self.shared.keys.lock().unwrap();
        let kvs: Vec<_> = if request.range_end.is_empty() {
            keys.get(&request.key[..]).cloned().into_iter().collect()
        } else {
            keys.range(request.key.to_vec()..request.range_end.to_vec()).map(|(_, kv)| kv.clone()).collect()
        };
        let count = i64::try_from(kvs.len()).unwrap();
        Ok(Response::new(RangeResponse { header: self.header(), kvs, count, more: false }))
    }

    type RangeStreamStream = tokio_stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        absent()
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.admit(&request).await?;
        self.write(&request, |keys| {
            let put = request.get_ref();
            let kv = keys.entry(put.key.to_vec()).or_default();
            (kv.key, kv.value, kv.version) = (put.key.clone(), put.value.clone(), kv.version + 1);
        })?;
        Ok(Response::new(PutResponse { header: self.header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.admit(&request).await?;
        let mut deleted = 0;
        self.write(&request, |keys| deleted = i64::from(keys.remove(&request.get_ref().key[..]).is_some()))?;
        Ok(Response::new(DeleteRangeResponse { header: self.header(), deleted, prev_kvs: Vec::new() }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.admit(&request).await?;
        let writes = request.metadata().get("pontoon-eid").is_some();
        // Enough for the tests: whether the client took it for a write.
        Ok(Response::new(TxnResponse { header: self.header(), succeeded: writes, responses: Vec::new() }))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        absent()
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    type SnapshotStream = tokio_stream::Empty<Result<SnapshotResponse, Status>>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        if self.shared.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let leader = match self.shared.leader.load(Ordering::SeqCst) {
            NOBODY => 0,
            index => index as u64 + 1,
        };
        let status = StatusResponse { header: self.header(), leader, ..StatusResponse::default() };
        let mut response = Response::new(status);
        self.tell_position(response.metadata_mut());
        Ok(response)
    }

    async fn alarm(&self, _: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        absent()
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        absent()
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        absent()
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        absent()
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        absent()
    }

    async fn move_leader(
        &self,
        _: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        absent()
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        absent()
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn identity(
        &self,
        _: Request<v1::IdentityRequest>,
    ) -> Result<Response<v1::IdentityResponse>, Status> {
        let name = format!("store-{}", self.index);
        Ok(Response::new(v1::IdentityResponse { name, ..v1::IdentityResponse::default() }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let name = request.into_inner().name;
        if name == "taken" {
            return Err(Status::already_exists("the name is taken"));
        }
        let keyspace = Some(v1::Keyspace { name, id: 7, ..v1::Keyspace::default() });
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        absent()
    }

    async fn list_stores(
        &self,
        _: Request<v1::ListStoresRequest>,
    ) -> Result<Response<v1::ListStoresResponse>, Status> {
        absent()
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        absent()
    }

    async fn kick_store(
        &self,
        _: Request<v1::KickStoreRequest>,
    ) -> Result<Response<v1::KickStoreResponse>, Status> {
        absent()
    }

    async fn list_moves(
        &self,
        _: Request<v1::ListMovesRequest>,
    ) -> Result<Response<v1::ListMovesResponse>, Status> {
        absent()
    }

    async fn set_backlog_threshold(
        &self,
        _: Request<v1::SetBacklogThresholdRequest>,
    ) -> Result<Response<v1::SetBacklogThresholdResponse>, Status> {
        absent()
    }

    async fn set_flow_control(
        &self,
        _: Request<v1::SetFlowControlRequest>,
    ) -> Result<Response<v1::SetFlowControlResponse>, Status> {
        absent()
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        absent()
    }

    async fn describe_keyspace(
        &self,
        _: Request<v1::DescribeKeyspaceRequest>,
    ) -> Result<Response<v1::DescribeKeyspaceResponse>, Status> {
        absent()
    }

    async fn delete_keyspace(
        &self,
        _: Request<v1::DeleteKeyspaceRequest>,
    ) -> Result<Response<v1::DeleteKeyspaceResponse>, Status> {
        absent()
    }

    async fn transfer_leadership(
        &self,
        _: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        absent()
    }

    async fn take_leadership(
        &self,
        _: Request<v1::TakeLeadershipRequest>,
    ) -> Result<Response<v1::TakeLeadershipResponse>, Status> {
        absent()
    }

    async fn change_election_timer(
        &self,
        _: Request<v1::ChangeElectionTimerRequest>,
    ) -> Result<Response<v1::ChangeElectionTimerResponse>, Status> {
        absent()
    }

    async fn create_log(
        &self,
        _: Request<v1::CreateLogRequest>,
    ) -> Result<Response<v1::CreateLogResponse>, Status> {
        absent()
    }

    async fn list_logs(
        &self,
        _: Request<v1::ListLogsRequest>,
    ) -> Result<Response<v1::ListLogsResponse>, Status> {
        absent()
    }

    async fn describe_log(
        &self,
        _: Request<v1::DescribeLogRequest>,
    ) -> Result<Response<v1::DescribeLogResponse>, Status> {
        absent()
    }

    async fn delete_log(
        &self,
        _: Request<v1::DeleteLogRequest>,
    ) -> Result<Response<v1::DeleteLogResponse>, Status> {
        absent()
    }

    async fn append_log(
        &self,
        _: Request<v1::AppendLogRequest>,
    ) -> Result<Response<v1::AppendLogResponse>, Status> {
        absent()
    }

    async fn read_log(
        &self,
        _: Request<v1::ReadLogRequest>,
    ) -> Result<Response<v1::ReadLogResponse>, Status> {
        absent()
    }

    type TailLogStream = tokio_stream::Empty<Result<v1::TailLogResponse, Status>>;

    async fn tail_log(
        &self,
        _: Request<v1::TailLogRequest>,
    ) -> Result<Response<Self::TailLogStream>, Status> {
        absent()
    }

    async fn list_recoveries(
        &self,
        _: Request<v1::ListRecoveriesRequest>,
    ) -> Result<Response<v1::ListRecoveriesResponse>, Status> {
        absent()
    }

    async fn set_log_filter(
        &self,
        _: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        absent()
    }

    async fn failure_test(
        &self,
        _: Request<v1::FailureTestRequest>,
    ) -> Result<Response<v1::FailureTestResponse>, Status> {
        absent()
    }

    async fn memory(&self, _: Request<v1::MemoryRequest>) -> Result<Response<v1::MemoryResponse>, Status> {
        absent()
    }
}

/// A proxy in front of a store that can stop passing bytes on while all connections stay open.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    frozen: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, frozen) = (listener.local_addr().unwrap(), watch::Sender::new(false));
        let state = frozen.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(store).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pass_on(from_client, to_server, state.clone()));
                tokio::spawn(pass_on(from_server, to_client, state.clone()));
            }
        });
        Self { address, frozen }
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
