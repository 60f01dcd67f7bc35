//! What the services need of consensus; the server implements it for the node, tests for a single machine.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use pontoon_node::error::{ProposeError, ReadError};
use pontoon_raft_core::types::{GroupId, LogIndex, StoreId, Term};
use tonic::Status;

use crate::error::outcome;

/// A group's replica on this store, as far as clients may know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The store of the group's leader, if one is known.
    pub leader: Option<StoreId>,
    /// The current term.
    pub term: Term,
    /// The last committed entry.
    pub commit_index: LogIndex,
    /// The last applied entry.
    pub applied_index: LogIndex,
    /// The replica on this store does not vote.
    pub is_learner: bool,
}

/// A store of the cluster, as the etcd API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// The store's id; the API's member id.
    pub id: StoreId,
    /// The store's name; empty if it has never started.
    pub name: String,
    /// Where other stores reach it, as URLs.
    pub peer_urls: Vec<String>,
    /// Where clients reach it, as URLs.
    pub client_urls: Vec<String>,
    /// Its replica of the keyspace does not vote.
    pub is_learner: bool,
}

/// Why a leadership was not transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveLeaderError {
    /// The target is no voter of the group.
    #[error("the target is no voter of the group")]
    BadTarget,
    /// The leader changed, or the target did not take over in time.
    #[error("the leadership was not transferred in time")]
    TimedOut,
}

/// A change of the cluster's stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Keep a place for a store that will come with this peer address, HOST:PORT.
    Add {
        /// Where the others will reach it.
        peer_address: String,
        /// It has no vote until it is promoted.
        learner: bool,
    },
    /// The store goes, for ever.
    Remove(StoreId),
    /// Another peer address for a store that does not run.
    Readdress(StoreId, String),
    /// A store that came without a vote may vote.
    Promote(StoreId),
}

/// Why the stores are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberChangeError {
    /// There is no such store, or it is gone.
    #[error("there is no such store")]
    NotFound,
    /// The address belongs to another one.
    #[error("the peer address belongs to another store")]
    AddressExists,
    /// It has a vote.
    #[error("the store is no learner")]
    NotLearner,
    /// It has not caught up.
    #[error("the learner is not in sync with the leader")]
    NotReady,
    /// The cluster could do nothing without it.
    #[error("{0}")]
    Last(String),
    /// The registry cannot be changed now.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Replication of one or many groups, as seen from this store.
pub trait Consensus: Send + Sync + 'static {
    /// Replicates a command and returns the reply of `apply` on this store.
    fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> impl Future<Output = Result<Bytes, ProposeError>> + Send;

    /// Waits until everything that was acknowledged before the call is applied on this store.
    fn read_barrier(&self, group: GroupId) -> impl Future<Output = Result<LogIndex, ReadError>> + Send;

    /// The group's replica here; `None` if there is none.
    fn status(&self, group: GroupId) -> Option<ReplicaStatus>;

    /// Waits until [`Consensus::members`] shows all that the cluster was told of its stores before the call.
    fn members_barrier(&self) -> impl Future<Output = Result<(), ReadError>> + Send;

    /// The stores that hold the group.
    fn members(&self, group: GroupId) -> Vec<MemberInfo>;

    /// Changes the stores of the cluster; returns the one that it was about when the change is noted. Replicas follow later.
    fn change_members(
        &self,
        change: MemberChange,
    ) -> impl Future<Output = Result<StoreId, MemberChangeError>> + Send;

    /// Makes another store the group's leader. Only called on the leader's store.
    fn move_leader(
        &self,
        group: GroupId,
        to: StoreId,
    ) -> impl Future<Output = Result<(), MoveLeaderError>> + Send;

    /// How long a leader may be silent before another takes over.
    fn election_timeout(&self) -> Duration;

    /// The cluster's id.
    fn cluster_id(&self) -> u64;

    /// This store's id.
    fn store_id(&self) -> StoreId;
}

/// The status that an etcd client expects; it matches on the message and decides by it whether to try again. Ours go by
/// the metadata.
pub(crate) fn propose_status(e: &ProposeError) -> Status {
    let status = match e {
        ProposeError::Overloaded { .. } => outcome::too_many_requests(),
        ProposeError::NoSpace { .. } => Status::resource_exhausted(format!("pontoon: {e}")),
        ProposeError::NoLeader => Status::unavailable("etcdserver: no leader"),
        ProposeError::TimedOut => Status::unavailable("etcdserver: request timed out"),
        ProposeError::Stopped { .. } => Status::unavailable("etcdserver: server stopped"),
        ProposeError::Dropped | ProposeError::NotLeader { .. } => {
            Status::unavailable("etcdserver: leader changed")
        }
        ProposeError::NoReplica { .. } => Status::unavailable(format!("pontoon: {e}; ask another store")),
    };
    if e.status().executed() == Some(false) { outcome::mark(status, outcome::NOT_EXECUTED) } else { status }
}

/// As [`propose_status`], for reads.
pub(crate) fn read_status(e: &ReadError) -> Status {
    match e {
        ReadError::Overloaded { .. } => outcome::too_many_requests(),
        ReadError::TimedOut => Status::unavailable("etcdserver: request timed out"),
        ReadError::Stopped { .. } => Status::unavailable("etcdserver: server stopped"),
        ReadError::NoReplica { .. } => Status::unavailable(format!("pontoon: {e}; ask another store")),
    }
}
