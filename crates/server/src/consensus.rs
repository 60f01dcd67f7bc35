//! What the etcd services need of consensus, answered by the node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_kv::consensus::{
    Consensus, MemberChange, MemberChangeError, MemberInfo, MoveLeaderError, ReplicaStatus,
};
use pontoon_node::meta::{DEFAULT_GROUP, META_GROUP, Registry, StoreRecord, StoreState, meta_command};
use pontoon_node::{Node, ProposeError, ReadError, StopReason};
use pontoon_raft_core::types::{GroupId, LogIndex, StoreId, Term};
use pontoon_storage::Header;
use tokio::sync::watch;

use crate::{compose, reconcile};

/// How long a leadership that was asked to move may take.
const MOVE_MAX: Duration = Duration::from_secs(5);

/// The node as the etcd services see it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NodeConsensus {
    node: Node,
    registry: watch::Receiver<Arc<Registry>>,
    cluster: u64,
    election_timeout: Duration,
    schemes: Schemes,
}

/// Which URLs members have: all stores of a cluster are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schemes {
    /// Clients are served over TLS.
    pub(crate) clients_encrypted: bool,
    /// Stores talk to each other over TLS.
    pub(crate) peers_encrypted: bool,
}

impl NodeConsensus {
    pub(crate) fn new(
        node: Node,
        registry: watch::Receiver<Arc<Registry>>,
        header: &Header,
        election_timeout: Duration,
        schemes: Schemes,
    ) -> Self {
        Self { node, registry, cluster: header.cluster, election_timeout, schemes }
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
        let is_learner =
            self.registry.borrow().stores.get(&self.node.store().0).is_some_and(|own| own.learner);
        Some(ReplicaStatus { leader, term: Term(term), commit_index, applied_index, is_learner })
    }

    async fn members_barrier(&self) -> Result<(), ReadError> {
        self.node.read_barrier(META_GROUP).await.map(|_| ())
    }

    fn members(&self, group: GroupId) -> Vec<MemberInfo> {
        let registry = self.registry.borrow();
        let Some(record) = registry.groups.get(&group.0) else { return Vec::new() };
        // `default` stands for the cluster: it comes to every store, also to those that wait for it.
        let belongs = |store: &&StoreRecord| match store.state() {
            StoreState::Kicked => false,
            _ => group == DEFAULT_GROUP || record.on(store.store).is_some(),
        };
        let urls = |address: &str, encrypted: bool| match address {
            "" => Vec::new(),
            address => vec![format!("{}://{address}", if encrypted { "https" } else { "http" })],
        };
        registry
            .stores
            .values()
            .filter(belongs)
            .map(|store| MemberInfo {
                id: StoreId(store.store),
                name: store.name.clone(),
                peer_urls: urls(&store.peer_address, self.schemes.peers_encrypted),
                client_urls: urls(&store.client_address, self.schemes.clients_encrypted),
                is_learner: store.learner,
            })
            .collect()
    }

    async fn change_members(&self, change: MemberChange) -> Result<StoreId, MemberChangeError> {
        use meta_command::Change;
        let of_store = |store: StoreId| self.registry.borrow().stores.get(&store.0).cloned();
        let known = |store: StoreId| {
            of_store(store).filter(|s| s.state() != StoreState::Kicked).ok_or(MemberChangeError::NotFound)
        };
        let (change, adds) = match change {
            MemberChange::Add { peer_address, learner } => {
                let store = compose::random_id()
                    .map_err(|_| ProposeError::Stopped { reason: StopReason::NoRandomNumbers })?;
                let place = StoreRecord { store, peer_address, learner, ..StoreRecord::default() };
                (Change::ReserveStore(place), true)
            }
            MemberChange::Remove(store) => {
                known(store)?;
                (Change::RemoveStore(meta_command::RemoveStore { store: store.0, kick: true }), false)
            }
            MemberChange::Readdress(store, peer_address) => {
                known(store)?;
                (Change::ReaddressStore(meta_command::ReaddressStore { store: store.0, peer_address }), true)
            }
            MemberChange::Promote(store) => {
                let known = known(store)?;
                if !known.learner {
                    return Err(MemberChangeError::NotLearner);
                }
                if known.state() != StoreState::Member {
                    return Err(MemberChangeError::NotReady);
                }
                (Change::PromoteStore(meta_command::PromoteStore { store: store.0 }), false)
            }
        };
        let reply = reconcile::change(&self.node, change).await?;
        match reply {
            reply if reply.is_done() => Ok(StoreId(reply.store)),
            reply if reply.missing => Err(MemberChangeError::NotFound),
            _ if adds => Err(MemberChangeError::AddressExists),
            reply => Err(MemberChangeError::Last(reply.error)),
        }
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
