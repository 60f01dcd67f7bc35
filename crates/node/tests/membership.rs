//! The members of a running group change: replicas join, are removed, are destroyed, and come again under other numbers.

mod support;

use pontoon_node::{ChangeMembersError, OpenGroupError};
use pontoon_raft_core::ServerChangeError;
use pontoon_raft_core::server_change::ServerChangeOutcome;
use pontoon_raft_core::types::{ReplicaId, StoreId};
use support::{Cluster, GROUP, try_join, until};

fn replica(store: u64, number: u64) -> ReplicaId {
    ReplicaId { store: StoreId(store), number }
}

/// Asks the leader, whoever that is, until it has happened.
async fn change(cluster: &Cluster, id: ReplicaId, add: bool) {
    until("a change of members", || async {
        let at = cluster.leader().await;
        let node = &cluster.stores[at].node;
        let _ = if add { node.add_server(GROUP, id).await } else { node.remove_server(GROUP, id).await };
        let core = node.group_status(GROUP).await?.core;
        let settled = core.configuration_index <= core.commit_index && !core.configuration.is_joint();
        (settled && core.configuration.voters.contains(&id) == add && core.leader == Some(core.id))
            .then_some(())
    })
    .await;
}

async fn has_all(cluster: &Cluster, at: usize, commands: usize) {
    until("what was written before", || async { (cluster.applied(at).len() >= commands).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_joins_and_votes() {
    let mut cluster = Cluster::start(1).await;
    for i in 0..20 {
        cluster.propose(0, &format!("c{i}")).await;
    }
    for n in 2..=3 {
        let at = cluster.add_store().await;
        let id = replica(n, n + 10);
        let mut events = cluster.stores[0].node.server_changes();
        // Asked for before it is there: the leader waits for it.
        cluster.stores[0].node.add_server(GROUP, id).await.expect("begun");
        let again = cluster.stores[0].node.add_server(GROUP, id).await;
        assert!(
            matches!(again, Err(ChangeMembersError::Refused(ServerChangeError::InProgress { .. }))),
            "{again:?}"
        );
        try_join(&cluster.stores[at], id).await.expect("opens");
        let (group, done) = events.recv().await.expect("it ends");
        assert_eq!((group, done.replica, done.outcome), (GROUP, id, ServerChangeOutcome::Done));
        has_all(&cluster, at, 21).await;
    }
    let status = cluster.stores[0].node.group_status(GROUP).await.expect("open").core;
    assert_eq!(status.configuration.voters.len(), 3);
    // The new ones are a quorum without the first.
    cluster.kill(0).await;
    until("a command", || async { cluster.try_propose(1, "after").await.ok() }).await;
    has_all(&cluster, 2, 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_is_destroyed_and_comes_back_only_under_a_new_number() {
    let mut cluster = Cluster::start(3).await;
    let at = cluster.leader().await;
    let id = replica(at as u64 + 1, 1);
    // The leader itself.
    change(&cluster, id, false).await;
    cluster.stores[at].node.destroy_group(GROUP).await.expect("durable");
    let error = try_join(&cluster.stores[at], id).await.expect_err("its number is used up");
    assert!(matches!(error, OpenGroupError::Destroyed { .. }), "{error}");
    let other = (at + 1) % 3;
    cluster.propose(other, "without it").await;
    cluster.stores[at].applied.lock().expect("nobody panics").clear();
    let id = replica(id.store.0, 4);
    try_join(&cluster.stores[at], id).await.expect("opens");
    change(&cluster, id, true).await;
    has_all(&cluster, at, 2).await;
    // Over a restart too.
    let disk = cluster.kill(at).await;
    cluster.restart(at, disk).await;
    has_all(&cluster, at, 2).await;
    let status = cluster.stores[at].node.group_status(GROUP).await.expect("open").core;
    assert_eq!(status.id, id);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_receives_the_log_and_has_no_vote() {
    let mut cluster = Cluster::start(1).await;
    let at = cluster.add_store().await;
    let id = replica(2, 2);
    try_join(&cluster.stores[at], id).await.expect("opens");
    until("a learner", || async { cluster.stores[0].node.add_learner(GROUP, id).await.ok() }).await;
    has_all(&cluster, at, 1).await;
    let status = cluster.stores[0].node.group_status(GROUP).await.expect("open").core;
    assert_eq!((status.configuration.voters.len(), status.configuration.learners.len()), (1, 1));
    let again = cluster.stores[0].node.add_learner(GROUP, id).await;
    assert_eq!(again, Err(ChangeMembersError::Refused(ServerChangeError::AlreadyPresent)));
    cluster.kill(at).await;
    cluster.propose(0, "alone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_lead_or_has_no_replica_says_so() {
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let at = cluster.add_store().await;
    let asked = cluster.stores[follower].node.add_server(GROUP, replica(4, 2)).await;
    assert!(matches!(asked, Err(ChangeMembersError::Refused(ServerChangeError::Propose(_)))), "{asked:?}");
    let asked = cluster.stores[at].node.remove_server(GROUP, replica(1, 1)).await;
    assert_eq!(asked, Err(ChangeMembersError::NoReplica { group: GROUP }));
    // A replica of another store cannot be opened here.
    let error = try_join(&cluster.stores[at], replica(1, 9)).await.expect_err("not its own");
    assert!(matches!(error, OpenGroupError::NotAMember { .. }), "{error}");
    cluster.stop().await;
}
