//! What becomes of a group that was destroyed on a store.

mod support;

use pontoon_node::OpenGroupError;
use pontoon_raft_core::types::ReplicaId;
use support::{Applied, Cluster, GROUP};

/// A registry that is older than what was done by its word asks for the replica again. The log store must not fail by
/// that: it would at each start, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_replica_is_refused_and_costs_the_store_nothing() {
    let cluster = Cluster::start(1).await;
    let store = &cluster.stores[0];
    store.node.destroy_group(GROUP).await.expect("destroyed");
    let replica = |number| ReplicaId { store: store.id, number };
    let again = support::try_open(&store.node, GROUP, &[replica(1)], &Applied::default()).await;
    assert!(matches!(again, Err(OpenGroupError::Destroyed { .. })), "{again:?}");
    assert_eq!(store.node.log().failed(), None);
    // Another replica of the group may come.
    support::open(&store.node, GROUP, &[replica(2)], &Applied::default()).await;
    cluster.propose(0, "second life").await;
    cluster.stop().await;
}
