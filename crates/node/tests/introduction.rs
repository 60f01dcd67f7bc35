//! A store meets the others before it takes part: a new directory all of them, any other one those within reach.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pontoon_node::{Node, NodeConfig, StartError, create_lineage};
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{Entry, GroupId, LogIndex, ReplicaId, StoreId, Term};
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{LogStore, Options};
use pontoon_transport::{
    Claim, EntrySource, Inbound, ProposalReply, ReceivePermit, Refused, RelayedProposal, SnapshotSink,
    Transport, TransportConfig, Unwelcome,
};
use tokio::net::TcpListener;
use tokio::time::timeout;

const CLUSTER: u64 = 1;
const OWN: StoreId = StoreId(1);
/// For what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not: many round trips, and attempts to connect.
const A_WHILE: Duration = Duration::from_millis(1500);

/// Takes whoever says hello, or does not.
#[derive(Clone, Default)]
struct Doorman {
    unwelcome: Arc<Mutex<Option<Unwelcome>>>,
    asked: Arc<AtomicUsize>,
}

impl Inbound for Doorman {
    fn receive(&self, _: StoreId, _: Vec<(GroupId, Message)>, _: ReceivePermit) {}
    fn proposals(&self, _: StoreId, _: Vec<RelayedProposal>) {}
    fn proposal_replies(&self, _: StoreId, _: Vec<ProposalReply>) {}
    fn unreachable(&self, _: StoreId, _: Vec<GroupId>) {}
    fn link_down(&self, _: StoreId, _: bool) {}
    fn link_up(&self, _: StoreId) {}
    fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
        Err(Refused::UnknownReplica)
    }
    fn snapshot_sent(&self, _: StoreId, _: GroupId, _: ReplicaId, _: bool) {}
    fn meet(&self, _: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        assert!(claim.is_some(), "a node always says which directory it has");
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.unwelcome.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

struct NoEntries;

impl EntrySource for NoEntries {
    fn entries(&self, _: GroupId, _: LogIndex, _: LogIndex, _: Term, _: u64) -> Option<Vec<Entry>> {
        None
    }
}

/// Another store, as far as its door.
struct Peer {
    doorman: Doorman,
    address: String,
    _transport: Transport,
}

impl Peer {
    async fn start(id: u64) -> Self {
        let doorman = Doorman::default();
        let config = TransportConfig::new(CLUSTER, StoreId(id), format!("n{id}"));
        let runtime = tokio::runtime::Handle::current();
        let transport = Transport::start(config, Arc::new(doorman.clone()), Arc::new(NoEntries), runtime);
        transport.set_peer(OWN, "127.0.0.1:1");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let server = pontoon_transport::server_builder()
            .add_service(transport.peer_service())
            .serve_with_incoming(pontoon_transport::incoming(listener));
        tokio::spawn(async move {
            let _ = server.await;
        });
        Self { doorman, address, _transport: transport }
    }

    fn refuse(&self, final_: bool) {
        *self.doorman.unwelcome.lock().expect("nobody panics") =
            Some(Unwelcome { final_, reason: "it is not the one".to_owned() });
    }

    fn relent(&self) {
        *self.doorman.unwelcome.lock().expect("nobody panics") = None;
    }

    async fn asked(&self, times: usize) {
        let asked = async {
            while self.doorman.asked.load(Ordering::SeqCst) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, asked).await.expect("it says hello");
    }
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

fn open(disk: &MemoryDisk) -> LogStore {
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.space_reserve_bytes = 64 << 10;
    LogStore::open_on(Arc::new(disk.clone()), options).expect("the disk is fine").0
}

/// Starts the store on a disk, with the addresses of n2 and n3.
fn start(log: LogStore, n2: &str, n3: &str) -> Result<(Node, BTreeMap<StoreId, String>), StartError> {
    let node = Node::start(NodeConfig::new(OWN), 7, log, TransportConfig::new(CLUSTER, OWN, "n1"))?;
    node.transport().set_peer(StoreId(2), n2);
    node.transport().set_peer(StoreId(3), n3);
    let names = [(StoreId(2), "n2".to_owned()), (StoreId(3), "n3".to_owned())];
    Ok((node, BTreeMap::from(names)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_directory_waits_for_everybody_and_only_once() {
    let (n2, n3) = (Peer::start(2).await, Peer::start(3).await);
    n3.refuse(false);
    let disk = MemoryDisk::new();
    let log = open(&disk);
    create_lineage(&log, 5).expect("writes");
    let (node, others) = start(log, &n2.address, &nobody().await).expect("starts");
    assert!(timeout(A_WHILE, node.introduce(&others)).await.is_err(), "n3 is not there");
    node.transport().set_peer(StoreId(3), n3.address.clone());
    n3.asked(2).await;
    assert!(timeout(A_WHILE, node.introduce(&others)).await.is_err(), "n3 has not taken it");
    n3.relent();
    timeout(PATIENCE, node.introduce(&others)).await.expect("all have met it").expect("writes");
    node.shutdown().await;
    // After a restart nobody need be there.
    let (node, others) = start(open(&disk.copy()), &nobody().await, &nobody().await).expect("starts");
    timeout(A_WHILE, node.introduce(&others)).await.expect("it is known").expect("writes");
    assert_eq!((node.identity().lineage, node.identity().start), (5, 2));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_one_of_them_refuses_for_good_never_takes_part() {
    let (n2, n3) = (Peer::start(2).await, Peer::start(3).await);
    n3.refuse(true);
    let disk = MemoryDisk::new();
    let (node, others) = start(open(&disk), &n2.address, &n3.address).expect("starts");
    let fenced = tokio::select! {
        _ = node.introduce(&others) => panic!("it would open its groups"),
        fenced = timeout(PATIENCE, node.fenced()) => fenced.expect("it is told"),
    };
    assert_eq!((fenced.by, fenced.reason.as_str()), (Some(StoreId(3)), "it is not the one"));
    let longer_than_others_are_waited_for = Duration::from_secs(6);
    let later = timeout(longer_than_others_are_waited_for, node.introduce(&others)).await;
    assert!(later.is_err(), "nor later");
    node.shutdown().await;
    let again = start(open(&disk.copy()), &n2.address, &n2.address).expect_err("never again").to_string();
    assert!(again.contains("refused for good: it is not the one"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_turned_away_for_the_moment_waits_for_the_reason() {
    let (n2, n3) = (Peer::start(2).await, Peer::start(3).await);
    n3.refuse(false);
    let (node, others) = start(open(&MemoryDisk::new()), &n2.address, &n3.address).expect("starts");
    let refuses = async {
        n3.asked(2).await;
        n3.refuse(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = node.introduce(&others) => panic!("it would open its groups"),
        fenced = timeout(PATIENCE, node.fenced()) => assert_eq!(fenced.expect("it is told").by, Some(StoreId(3))),
        () = refuses => {}
    }
    node.shutdown().await;
    // ... but not for ever.
    let m3 = Peer::start(3).await;
    m3.refuse(false);
    let (node, others) = start(open(&MemoryDisk::new()), &n2.address, &m3.address).expect("starts");
    timeout(PATIENCE, node.introduce(&others)).await.expect("it ends").expect("nothing is written");
    assert!(m3.doorman.asked.load(Ordering::SeqCst) > 2, "it has tried for a while");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_directory_does_not_wait_for_the_dead() {
    let n2 = Peer::start(2).await;
    let (node, others) = start(open(&MemoryDisk::new()), &n2.address, &nobody().await).expect("starts");
    timeout(A_WHILE, node.introduce(&others)).await.expect("at once").expect("nothing is written");
    assert!(n2.doorman.asked.load(Ordering::SeqCst) > 0, "it has met the living");
    node.shutdown().await;
}
