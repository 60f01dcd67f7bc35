//! Stores in one process, each on a disk in memory that fails on demand, with real links on loopback.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pontoon_node::state_machine::{Committed, MachineError, SnapshotReader, SnapshotSink, StateMachine};
use pontoon_node::{Node, NodeConfig, OpenGroupError, ProposeError};
use pontoon_raft_core::types::{GroupId, LogIndex, ReplicaId, StoreId};
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{LogStore, Options};
use pontoon_transport::TransportConfig;
use tokio::net::TcpListener;

/// The group that the tests write to.
pub(crate) const GROUP: GroupId = GroupId(7);
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a [`Journal`] has applied, for the test to look at.
pub(crate) type Applied = Arc<Mutex<Vec<Bytes>>>;

/// A state machine that writes down what it is told. It lives in memory, so its log keeps everything.
struct Journal {
    applied: Applied,
    index: LogIndex,
}

impl StateMachine for Journal {
    fn applied(&self) -> LogIndex {
        self.index
    }
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replies = Vec::new();
        for entry in batch {
            applied.extend(entry.command.clone());
            self.index = entry.index;
            replies.push(Bytes::from(entry.index.to_string()));
        }
        Ok(replies)
    }
    fn sync(&mut self) -> Result<LogIndex, MachineError> {
        Ok(LogIndex::ZERO)
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError> {
        Err(MachineError::new("the log is never cut"))
    }
    fn stage(&mut self, _: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Err(MachineError::new("the log is never cut"))
    }
    fn activate(&mut self, _: LogIndex) -> Result<(), MachineError> {
        Err(MachineError::new("nothing is staged"))
    }
}

/// One store.
pub(crate) struct Store {
    pub(crate) id: StoreId,
    pub(crate) disk: MemoryDisk,
    pub(crate) node: Node,
    pub(crate) applied: Applied,
    server: tokio::task::JoinHandle<()>,
}

/// Stores that know each other and replicate [`GROUP`].
pub(crate) struct Cluster {
    pub(crate) stores: Vec<Store>,
    addresses: Vec<(StoreId, String)>,
}

/// Small segments, so that a little writing fills them, and a small reserve.
pub(crate) fn options() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.space_reserve_bytes = 64 << 10;
    options
}

fn voters(n: u64) -> Vec<ReplicaId> {
    (1..=n).map(|s| ReplicaId { store: StoreId(s), number: 1 }).collect()
}

/// Different in every start of every store, as the entry ids must be.
static ORIGIN: AtomicU64 = AtomicU64::new(1);

async fn start(
    id: StoreId,
    voters: &[ReplicaId],
    disk: MemoryDisk,
    listener: TcpListener,
    configure: impl Fn(&mut NodeConfig),
) -> Store {
    let store = start_empty(id, disk, listener, configure).await;
    open(&store.node, GROUP, voters, &store.applied).await;
    store
}

/// Starts a store that opens no group.
async fn start_empty(
    id: StoreId,
    disk: MemoryDisk,
    listener: TcpListener,
    configure: impl Fn(&mut NodeConfig),
) -> Store {
    let (log, _) = LogStore::open_on(Arc::new(disk.clone()), options()).expect("the disk is fine");
    let mut config = NodeConfig::new(id);
    config.shards = 2;
    config.election_timer_ms = 300;
    config.propose_timeout = Duration::from_secs(3);
    configure(&mut config);
    let mut links = TransportConfig::new(1, id, format!("n{id}"));
    links.election_timer_ms = config.election_timer_ms;
    let node = Node::start(config, ORIGIN.fetch_add(1, Ordering::Relaxed), log, links).expect("threads");
    let server = pontoon_transport::server_builder()
        .add_service(node.transport().peer_service())
        .serve_with_incoming(pontoon_transport::incoming(listener));
    let server = tokio::spawn(async move {
        let _ = server.await;
    });
    Store { id, disk, node, applied: Applied::default(), server }
}

/// Opens a replica that waits to be taken into [`GROUP`].
pub(crate) async fn try_join(store: &Store, replica: ReplicaId) -> Result<(), OpenGroupError> {
    let node = store.node.clone();
    let machine = Journal { applied: Arc::clone(&store.applied), index: LogIndex::ZERO };
    tokio::task::spawn_blocking(move || node.join_group(GROUP, replica, Box::new(machine)))
        .await
        .expect("no panic")
}

/// Opens a replica of a group. Blocks on the disk, so not on the runtime's own threads.
pub(crate) async fn open(node: &Node, group: GroupId, voters: &[ReplicaId], applied: &Applied) {
    try_open(node, group, voters, applied).await.expect("the group opens");
}

pub(crate) async fn try_open(
    node: &Node,
    group: GroupId,
    voters: &[ReplicaId],
    applied: &Applied,
) -> Result<(), OpenGroupError> {
    let (node, voters) = (node.clone(), voters.to_vec());
    let machine = Journal { applied: Arc::clone(applied), index: LogIndex::ZERO };
    let opened = tokio::task::spawn_blocking(move || node.open_group(group, &voters, Box::new(machine)));
    opened.await.expect("no panic")
}

impl Cluster {
    /// Starts `n` stores, and waits for the group's first leader.
    pub(crate) async fn start(n: u64) -> Self {
        Self::start_with(n, |_| ()).await
    }

    /// The same, with other settings.
    pub(crate) async fn start_with(n: u64, configure: impl Fn(&mut NodeConfig)) -> Self {
        let (mut stores, mut addresses) = (Vec::new(), Vec::new());
        for id in 1..=n {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            addresses.push((StoreId(id), listener.local_addr().expect("it is bound").to_string()));
            stores.push(start(StoreId(id), &voters(n), MemoryDisk::new(), listener, &configure).await);
        }
        let cluster = Self { stores, addresses };
        for store in &cluster.stores {
            cluster.introduce(store);
        }
        cluster.propose(0, "first").await;
        cluster
    }

    /// Starts another store, which knows all others and has no replica.
    pub(crate) async fn add_store(&mut self) -> usize {
        let id = StoreId(self.stores.len() as u64 + 1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        self.addresses.push((id, listener.local_addr().expect("it is bound").to_string()));
        self.stores.push(start_empty(id, MemoryDisk::new(), listener, |_| ()).await);
        for store in &self.stores {
            self.introduce(store);
        }
        self.stores.len() - 1
    }

    fn introduce(&self, store: &Store) {
        for (id, address) in &self.addresses {
            store.node.transport().set_peer(*id, address.clone());
        }
    }

    /// The store that leads the group, as it believes itself and with an entry of its term applied.
    pub(crate) async fn leader(&self) -> usize {
        until("a leader", || async {
            self.stores.iter().position(|s| {
                s.node.leadership(GROUP).is_some_and(|(_, leader)| leader == Some(s.id))
                    && s.node.log().failed().is_none()
            })
        })
        .await
    }

    /// A command that must go through, at whatever number of tries.
    pub(crate) async fn propose(&self, at: usize, command: &str) {
        let data = Bytes::from(command.to_owned());
        until("a command", || async { self.stores[at].node.propose(GROUP, data.clone()).await.ok() }).await;
    }

    /// One try.
    pub(crate) async fn try_propose(
        &self,
        at: usize,
        command: impl Into<Bytes>,
    ) -> Result<Bytes, ProposeError> {
        self.stores[at].node.propose(GROUP, command.into()).await
    }

    /// Kills a store: what its disk holds at this moment is all that is left.
    pub(crate) async fn kill(&mut self, at: usize) -> MemoryDisk {
        let disk = self.stores[at].disk.copy();
        self.stores[at].node.shutdown().await;
        self.stores[at].server.abort();
        disk
    }

    /// Starts a store that was killed, from this disk.
    pub(crate) async fn restart(&mut self, at: usize, disk: MemoryDisk) {
        let id = self.stores.remove(at).id;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        self.addresses[at].1 = listener.local_addr().expect("it is bound").to_string();
        let store = start(id, &voters(self.addresses.len() as u64), disk, listener, |_| ()).await;
        self.stores.insert(at, store);
        for store in &self.stores {
            self.introduce(store);
        }
    }

    /// What a store has applied.
    pub(crate) fn applied(&self, at: usize) -> Vec<Bytes> {
        self.stores[at].applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends everything.
    pub(crate) async fn stop(self) {
        for store in self.stores {
            store.node.shutdown().await;
            store.server.abort();
        }
    }
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}
