//! What the etcd services need of consensus, answered by the node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_kv::consensus::{Consensus, MemberInfo, MoveLeaderError, ReplicaStatus};
use pontoon_node::meta::{META_GROUP, Registry};
use pontoon_node::{Node, ProposeError, ReadError};
use pontoon_raft_core::types::{GroupId, LogIndex, StoreId, Term};
use pontoon_storage::Header;
use tokio::sync::watch;

/// How long a leadership that was asked to move may take.
const MOVE_MAX: Duration = Duration::from_secs(5);

/// The node as the etcd services see it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NodeConsensus {
    node: Node,
    registry: watch::Receiver<Arc<Registry>>,
    cluster: u64,
    election_timeout: Duration,
}

impl NodeConsensus {
    pub(crate) fn new(
        node: Node,
        registry: watch::Receiver<Arc<Registry>>,
        header: &Header,
        election_timeout: Duration,
    ) -> Self {
        Self { node, registry, cluster: header.cluster, election_timeout }
    }
}

impl Consensus for NodeConsensus {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, ProposeError> {
        self.node.propose(group, command).await
    }

    async fn read_barrier(&self, group: GroupId) -> Result<LogIndex, ReadError> {
        self.node.read_barrier(group).await
    }

    fn status(&self, group: GroupId) -> Option<ReplicaStatus> {
        let (term, leader) = self.node.leadership(group)?;
        let (commit_index, applied_index) = self.node.progress(group)?;
        Some(ReplicaStatus { leader, term: Term(term), commit_index, applied_index, is_learner: false })
    }

    async fn members_barrier(&self) -> Result<(), ReadError> {
        self.node.read_barrier(META_GROUP).await.map(|_| ())
    }

    fn members(&self, group: GroupId) -> Vec<MemberInfo> {
        let registry = self.registry.borrow();
        let Some(record) = registry.groups.get(&group.0) else { return Vec::new() };
        let urls = |address: &str| match address {
            "" => Vec::new(),
            address => vec![format!("http://{address}")],
        };
        record
            .voters
            .iter()
            .filter_map(|voter| registry.stores.get(&voter.store))
            .map(|store| MemberInfo {
                id: StoreId(store.store),
                name: store.name.clone(),
                peer_urls: urls(&store.peer_address),
                client_urls: urls(&store.client_address),
                is_learner: false,
            })
            .collect()
    }

    async fn move_leader(&self, group: GroupId, to: StoreId) -> Result<(), MoveLeaderError> {
        self.node.transfer_leadership(group, Some(to)).await.map_err(|_| MoveLeaderError::BadTarget)?;
        let moved = async {
            while self.node.leadership(group).and_then(|(_, leader)| leader) != Some(to) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(MOVE_MAX, moved).await.map_err(|_| MoveLeaderError::TimedOut)
    }

    fn election_timeout(&self) -> Duration {
        self.election_timeout
    }

    fn cluster_id(&self) -> u64 {
        self.cluster
    }

    fn store_id(&self) -> StoreId {
        self.node.store()
    }
}
