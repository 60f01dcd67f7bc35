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
        ProposeError::Overloaded { .. } => Status::resource_exhausted("etcdserver: too many requests"),
        ProposeError::NoSpace { .. } => Status::resource_exhausted(format!("pontoon: {e}")),
        ProposeError::NoLeader => Status::unavailable("etcdserver: no leader"),
        ProposeError::TimedOut => Status::unavailable("etcdserver: request timed out"),
        ProposeError::Stopped { .. } => Status::unavailable("etcdserver: server stopped"),
        ProposeError::Dropped | ProposeError::NotLeader { .. } => {
            Status::unavailable("etcdserver: leader changed")
        }
        ProposeError::NoReplica { .. } => Status::unavailable(format!("pontoon: {e}; ask another store")),
    };
    match e {
        // It may have been handed to a leader before.
        ProposeError::TimedOut | ProposeError::Stopped { .. } => status,
        ProposeError::Overloaded { .. }
        | ProposeError::NoSpace { .. }
        | ProposeError::NoLeader
        | ProposeError::Dropped
        | ProposeError::NotLeader { .. }
        | ProposeError::NoReplica { .. } => outcome::mark(status, outcome::NOT_EXECUTED),
    }
}

/// As [`propose_status`], for reads.
pub(crate) fn read_status(e: &ReadError) -> Status {
    match e {
        ReadError::Overloaded { .. } => Status::resource_exhausted("etcdserver: too many requests"),
        ReadError::TimedOut => Status::unavailable("etcdserver: request timed out"),
        ReadError::Stopped { .. } => Status::unavailable("etcdserver: server stopped"),
        ReadError::NoReplica { .. } => Status::unavailable(format!("pontoon: {e}; ask another store")),
    }
}
