//! The links' probes follow the election timers of the groups, as these change through the log.
#![allow(missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pontoon_node::state_machine::{Committed, MachineError, SnapshotReader, SnapshotSink, StateMachine};
use pontoon_node::{Node, NodeConfig};
use pontoon_raft_core::types::{GroupId, LogIndex, ReplicaId, StoreId};
use pontoon_storage::{LogStore, Options};
use pontoon_transport::{Direction, TransportConfig};

/// What is added to the timer for the spread of elections.
const RANGE_MS: u64 = 1000;

/// Remembers nothing but how far it is.
struct Nothing(LogIndex);

impl StateMachine for Nothing {
    fn applied(&self) -> LogIndex {
        self.0
    }
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        self.0 = batch.last().map_or(self.0, |entry| entry.index);
        Ok(vec![Bytes::new(); batch.len()])
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

fn start(dir: &Path, run: u64) -> Node {
    let (log, _) = LogStore::open(dir, Options::default()).unwrap();
    let links = TransportConfig::new(1, StoreId(1), "n1".to_owned());
    let node = Node::start(NodeConfig::new(StoreId(1)), run, log, links).unwrap();
    // Nobody is there; the lanes' machines run all the same.
    node.transport().set_peer(StoreId(2), "127.0.0.1:1".to_owned());
    node
}

fn open(node: &Node, group: GroupId) {
    let voters = [ReplicaId { store: StoreId(1), number: 1 }];
    node.open_group(group, &voters, Box::new(Nothing(LogIndex::ZERO))).unwrap();
}

/// Waits until every lane's probe interval is that of an election timer of `millis`.
async fn until_probes_follow(node: &Node, millis: u64) {
    let expected = Duration::from_millis(millis + RANGE_MS);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let links: Vec<_> =
            node.transport().links().into_iter().filter(|l| l.direction == Direction::Outbound).collect();
        if links.len() == 2 && links.iter().all(|link| link.probe_interval == expected) {
            return;
        }
        assert!(Instant::now() < until, "expected {expected:?}: {links:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn change(node: &Node, group: GroupId, millis: u64) {
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = node.change_election_timer(group, millis).await {
        // It has to be elected first, and one change at a time may be under way.
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_follow_the_shortest_election_timer_through_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), 1);
    let (one, two) = (GroupId(7), GroupId(8));
    open(&node, one);
    until_probes_follow(&node, 1000).await;
    change(&node, one, 2000).await;
    until_probes_follow(&node, 2000).await;
    // Another group needs its links as quickly as ever.
    open(&node, two);
    until_probes_follow(&node, 1000).await;
    change(&node, two, 300).await;
    until_probes_follow(&node, 300).await;
    node.close_group(two).await;
    until_probes_follow(&node, 2000).await;
    assert!(node.change_election_timer(one, 4001).await.is_err(), "at most doubled");
    assert!(node.change_election_timer(two, 300).await.is_err(), "not served here");
    node.shutdown().await;
    drop(node);

    // What the log says counts, not what the store is started with.
    let node = start(dir.path(), 2);
    open(&node, one);
    until_probes_follow(&node, 2000).await;
    node.shutdown().await;
}
