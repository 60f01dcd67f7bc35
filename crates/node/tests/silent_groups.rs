//! Groups without anything to do, whose leader's store is lost, or has a disk that hangs.

mod support;

use std::time::Duration;

use pontoon_node::{Node, NodeConfig};
use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};
use support::{Applied, Cluster, GROUP, open, until};

const SILENT: std::ops::Range<u64> = 100..160;

fn configure(config: &mut NodeConfig) {
    config.quiesce_after = Some(Duration::from_millis(300));
}

async fn open_all(node: &Node) {
    let voters: Vec<_> = (1..=3).map(|store| ReplicaId { store: StoreId(store), number: 1 }).collect();
    for group in SILENT {
        open(node, GroupId(group), &voters, &Applied::default()).await;
    }
}

/// Every replica of them is silent and knows a leader.
async fn all_are_silent(cluster: &Cluster) {
    for store in &cluster.stores {
        for group in SILENT {
            until("silence", || async {
                let status = store.node.group_status(GroupId(group)).await?;
                (status.core.quiesced && status.core.leader.is_some()).then_some(())
            })
            .await;
        }
    }
}

/// A cluster whose first store leads all groups, of which all but one are silent everywhere.
async fn silent_cluster() -> Cluster {
    let cluster = Cluster::start_with(3, configure).await;
    for store in &cluster.stores {
        open_all(&store.node).await;
    }
    for group in SILENT.map(GroupId).chain([GROUP]) {
        until("the first store to lead", || async {
            if led_by(&cluster, 0, group) == Some(0) {
                return Some(());
            }
            let _ = cluster.stores[0].node.take_leadership(group).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        })
        .await;
    }
    all_are_silent(&cluster).await;
    cluster
}

/// Who leads a group, as store `at` knows it.
fn led_by(cluster: &Cluster, at: usize, group: GroupId) -> Option<usize> {
    let (_, leader) = cluster.stores[at].node.leadership(group)?;
    cluster.stores.iter().position(|store| Some(store.id) == leader)
}

async fn others_lead_all(cluster: &Cluster) {
    for group in SILENT {
        until("another leader", || async {
            led_by(cluster, 1, GroupId(group)).filter(|leader| *leader != 0).map(|_| ())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_led_elsewhere_while_the_disk_of_their_leader_hangs() {
    let cluster = silent_cluster().await;
    cluster.stores[0].disk.hang(true);
    // The one write that finds out.
    let node = cluster.stores[0].node.clone();
    let waiting = tokio::spawn(async move { node.propose(GROUP, "stuck".into()).await });
    others_lead_all(&cluster).await;
    cluster.stores[0].disk.hang(false);
    let _ = waiting.await.expect("no panic");
    cluster.propose(0, "after it").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_wake_when_the_store_of_their_leader_is_gone_and_when_it_returns() {
    let mut cluster = silent_cluster().await;
    let disk = cluster.kill(0).await;
    others_lead_all(&cluster).await;
    cluster.restart(0, disk).await;
    open_all(&cluster.stores[0].node).await;
    all_are_silent(&cluster).await;
    cluster.stop().await;
}
