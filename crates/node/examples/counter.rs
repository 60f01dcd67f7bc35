//! Three stores in one process, a replicated counter, and the death of its leader.

#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pontoon_node::state_machine::{Committed, MachineError, SnapshotReader, SnapshotSink, StateMachine};
use pontoon_node::{Node, NodeConfig};
use pontoon_raft_core::types::{GroupId, LogIndex, ReplicaId, StoreId};
use pontoon_storage::{LogStore, Options};
use pontoon_transport::TransportConfig;

/// The state: a sum, and the entry that it includes. It lives in memory, so the log must keep everything.
struct Counter(u64, LogIndex);

impl StateMachine for Counter {
    fn applied(&self) -> LogIndex {
        self.1
    }
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let add = |entry: &Committed| {
            self.0 += entry.command.as_ref().map_or(0, |c| c.len() as u64);
            self.1 = entry.index;
            self.0.to_string().into()
        };
        Ok(batch.iter().map(add).collect())
    }
    fn sync(&mut self) -> Result<LogIndex, MachineError> {
        Ok(LogIndex::ZERO) // Nothing is durable here, so no entry may be dropped.
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError> {
        Err(MachineError::new("the log is never cut, so nobody needs an image"))
    }
    fn stage(&mut self, _: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Err(MachineError::new("the log is never cut, so nobody sends an image"))
    }
    fn activate(&mut self, _: LogIndex) -> Result<(), MachineError> {
        Err(MachineError::new("nothing is staged"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (group, data) = (GroupId(7), tempfile::tempdir()?);
    let voters: Vec<_> = (1..=3).map(|s| ReplicaId { store: StoreId(s), number: 1 }).collect();
    let mut nodes = Vec::new();
    let mut addresses = Vec::new();
    for store in 1..=3 {
        let (log, _) = LogStore::open(&data.path().join(store.to_string()), Options::default())?;
        let links = TransportConfig::new(1, StoreId(store), format!("n{store}"));
        let node = Node::start(NodeConfig::new(StoreId(store)), store, log, links)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        addresses.push((StoreId(store), listener.local_addr()?.to_string()));
        let server = pontoon_transport::server_builder().add_service(node.transport().peer_service());
        tokio::spawn(server.serve_with_incoming(pontoon_transport::incoming(listener)));
        node.open_group(group, &voters, Box::new(Counter(0, LogIndex::ZERO)))?;
        nodes.push(Arc::new(node));
    }
    for node in &nodes {
        addresses.iter().for_each(|(store, address)| node.transport().set_peer(*store, address.clone()));
    }
    println!("the counter is {:?}", nodes[0].propose(group, Bytes::from_static(b"+++")).await?);
    let leader = nodes[0].leadership(group).and_then(|(_, leader)| leader).ok_or("no leader")?;
    nodes.iter().find(|n| n.store() == leader).ok_or("unknown leader")?.shutdown().await;
    let survivor = nodes.iter().find(|n| n.store() != leader).ok_or("nobody is left")?;
    println!(
        "{leader} is gone; the counter is {:?}",
        survivor.propose(group, Bytes::from_static(b"++")).await?
    );
    tokio::time::timeout(Duration::from_secs(5), survivor.shutdown()).await?;
    Ok(())
}
