//! A server of the etcd services over one machine without replication, on a loopback port.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pontoon_kv::consensus::{
    Consensus, MemberChange, MemberChangeError, MemberInfo, MoveLeaderError, ReplicaStatus,
};
use pontoon_kv::keyspace::{AuthorityLayer, MemoryDirectory};
use pontoon_kv::{Engine, EngineOptions, EtcdServices, KeyspaceMachine, Limits};
use pontoon_node::error::{ProposeError, ReadError};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, StoreId, Term};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Server};

pub const STORE: StoreId = StoreId(0x5701);
pub const CLUSTER: u64 = 0xc105;

pub struct State {
    machines: Vec<KeyspaceMachine>,
    /// Answers the next proposals instead of the machine.
    pub propose_error: Option<ProposeError>,
    pub read_error: Option<ReadError>,
    pub leader: Option<StoreId>,
    pub client_url: String,
}

/// Group n is machine n.
#[derive(Clone)]
pub struct Alone(pub Arc<Mutex<State>>);

impl Consensus for Alone {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, ProposeError> {
        let mut state = self.0.lock().unwrap();
        if let Some(e) = &state.propose_error {
            return Err(e.clone());
        }
        let machine = &mut state.machines[group.0 as usize];
        let index = machine.applied().next();
        let id = EntryId(u128::from(index.0));
        let entry = Committed { index, term: Term(3), id, command: Some(command), wants_reply: true };
        Ok(machine.apply(&[entry]).unwrap().remove(0))
    }

    async fn read_barrier(&self, group: GroupId) -> Result<LogIndex, ReadError> {
        let state = self.0.lock().unwrap();
        match &state.read_error {
            Some(e) => Err(e.clone()),
            None => Ok(state.machines[group.0 as usize].applied()),
        }
    }

    async fn members_barrier(&self) -> Result<(), ReadError> {
        self.0.lock().unwrap().read_error.clone().map_or(Ok(()), Err)
    }

    fn status(&self, group: GroupId) -> Option<ReplicaStatus> {
        let state = self.0.lock().unwrap();
        let applied = state.machines[group.0 as usize].applied();
        Some(ReplicaStatus {
            leader: state.leader,
            term: Term(3),
            commit_index: applied,
            applied_index: applied,
            is_learner: false,
        })
    }

    fn members(&self, _: GroupId) -> Vec<MemberInfo> {
        vec![MemberInfo {
            id: STORE,
            name: "alone".into(),
            peer_urls: vec!["http://127.0.0.1:1".into()],
            client_urls: vec![self.0.lock().unwrap().client_url.clone()],
            is_learner: false,
        }]
    }

    async fn change_members(&self, change: MemberChange) -> Result<StoreId, MemberChangeError> {
        match change {
            MemberChange::Remove(STORE) => Err(MemberChangeError::Last("it is alone".to_owned())),
            MemberChange::Promote(STORE) => Err(MemberChangeError::NotLearner),
            MemberChange::Add { peer_address, .. } if peer_address == "taken:1" => {
                Err(MemberChangeError::AddressExists)
            }
            MemberChange::Add { .. } => Ok(StoreId(0xadd)),
            _ => Err(MemberChangeError::NotFound),
        }
    }

    async fn move_leader(&self, _: GroupId, to: StoreId) -> Result<(), MoveLeaderError> {
        if to == STORE { Ok(()) } else { Err(MoveLeaderError::BadTarget) }
    }

    fn election_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn cluster_id(&self) -> u64 {
        CLUSTER
    }

    fn store_id(&self) -> StoreId {
        STORE
    }
}

pub struct Running {
    pub address: SocketAddr,
    pub consensus: Alone,
    pub directory: Arc<MemoryDirectory>,
    _dir: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
    leases: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
        self.leases.abort();
    }
}

impl Running {
    /// Serves the keyspaces `default` and `tenant`.
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        Self::start_with_options(limits, &EngineOptions::default()).await
    }

    /// How far a keyspace is applied.
    pub fn applied(&self, group: usize) -> LogIndex {
        self.consensus.0.lock().unwrap().machines[group].applied()
    }

    pub async fn start_with_options(limits: Limits, options: &EngineOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), options).unwrap();
        let directory = Arc::new(MemoryDirectory::default());
        let mut machines = Vec::new();
        for (n, name) in ["default", "tenant"].into_iter().enumerate() {
            let machine = engine.open_keyspace(GroupId(n as u64)).unwrap();
            directory.insert(name, machine.keyspace());
            machines.push(machine);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let consensus = Alone(Arc::new(Mutex::new(State {
            machines,
            propose_error: None,
            read_error: None,
            leader: Some(STORE),
            client_url: format!("http://{address}"),
        })));
        let services = EtcdServices::new(consensus.clone(), directory.clone(), limits);
        let router = Server::builder()
            .layer(AuthorityLayer)
            .add_service(services.kv())
            .add_service(services.watch())
            .add_service(services.lease())
            .add_service(services.lock())
            .add_service(services.election())
            .add_service(services.cluster())
            .add_service(services.maintenance())
            .add_service(services.auth());
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let leases = tokio::spawn(pontoon_kv::expire_leases(engine, Arc::new(consensus.clone())));
        Self { address, consensus, directory, _dir: dir, server, leases }
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// A channel whose requests name another host than the address they go to.
    pub async fn channel_as(&self, host: &str) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .origin(format!("http://{host}").parse().unwrap())
            .connect()
            .await
            .unwrap()
    }
}

/// So many watches of one key, on so many streams; each is there when this returns.
pub async fn watch_many(channel: &Channel, streams: usize, each: usize) -> Vec<Streaming<WatchResponse>> {
    let mut open = Vec::with_capacity(streams);
    for _ in 0..streams {
        let create = WatchCreateRequest { key: WATCHED.into(), ..WatchCreateRequest::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = tokio_stream::iter(vec![create; each]).chain(tokio_stream::pending());
        let mut answers = WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
        for _ in 0..each {
            assert!(answers.message().await.unwrap().unwrap().created);
        }
        open.push(answers);
    }
    open
}

/// The key that [`watch_many`] watches.
pub const WATCHED: &str = "watched";
