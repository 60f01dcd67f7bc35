//! A store whose last record is damaged: a real log store, real links.

mod support;

use pontoon_raft_core::types::{LogIndex, StoreId};
use pontoon_storage::disk::Disk;
use pontoon_storage::disk::memory::MemoryDisk;
use support::{Cluster, GROUP, until};

/// What stands before the first record of a segment; spare segments have only that.
const SEGMENT_HEAD_BYTES: usize = 4096;

/// Changes the end of the last record that a store wrote: it is told where that record's last byte is.
fn change_end(disk: &MemoryDisk, change: impl FnOnce(&mut [u8], usize)) {
    let names = disk.list().expect("it is in memory");
    let last =
        |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).filter(|at| *at >= SEGMENT_HEAD_BYTES);
    let used =
        |name: &String| name.starts_with("journal") && last(&disk.read(name).expect("listed")).is_some();
    let newest = names.into_iter().filter(used).max().expect("there is a journal");
    disk.damage(&newest, |bytes| {
        let at = last(bytes).expect("it is used");
        change(bytes, at);
    });
}

/// The last record was acknowledged, and the disk has changed one of its bytes.
fn damage_last_record(disk: &MemoryDisk) {
    change_end(disk, |bytes, last| bytes[last] ^= 0x55);
}

/// The power failed while another record was written: its begin stands behind the last one.
fn tear_unfinished_record(disk: &MemoryDisk) {
    change_end(disk, |bytes, last| {
        let begin = (last / 8 + 1) * 8;
        bytes[begin..begin + 12].copy_from_slice(b"PTJ1torntorn");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_last_record_is_brought_back_before_the_store_counts() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (victim, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // The victim must have acknowledged what it loses, so the other one is away.
    let kept = cluster.kill(other).await;
    for n in 0..20 {
        cluster.propose(leader, &format!("command {n}")).await;
    }
    let acknowledged = cluster.applied(leader);
    until("the victim has all of it", || async { (cluster.applied(victim) == acknowledged).then_some(()) })
        .await;
    let before = cluster.stores[victim].node.log().group(GROUP).expect("it is open").last_index;
    let disk = cluster.kill(victim).await;
    damage_last_record(&disk);
    cluster.restart(victim, disk).await;
    let node = cluster.stores[victim].node.clone();
    assert!(node.in_doubt() && node.log().in_doubt());
    assert!(node.log().group(GROUP).expect("it is open").last_index <= before);

    // Two of three are up, and one does not count: nothing is acknowledged.
    assert!(cluster.try_propose(leader, "too early").await.is_err(), "only one store counts");
    let status = node.group_status(GROUP).await.expect("it is open");
    assert!(status.core.in_doubt && node.in_doubt(), "{:?}", status.core);

    cluster.restart(other, kept).await;
    until("the doubt is settled", || async { (!node.in_doubt()).then_some(()) }).await;
    assert!(!node.log().in_doubt());
    assert!(!node.group_status(GROUP).await.expect("it is open").core.in_doubt);
    // It counts again: with the other one away it makes a quorum.
    cluster.kill(other).await;
    cluster.propose(victim, "after").await;
    let applied = cluster.applied(victim);
    assert_eq!(applied[..acknowledged.len()], acknowledged, "nothing that was acknowledged is lost");
    assert_eq!(applied.last().expect("there is a last").as_ref(), b"after");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_in_doubt_goes_on_when_all_are_there() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..10 {
        cluster.propose(0, &format!("command {n}")).await;
    }
    until("all have all of it", || async {
        (1..3).all(|at| cluster.applied(at) == cluster.applied(0)).then_some(())
    })
    .await;
    let acknowledged = cluster.applied(0);
    let mut disks = Vec::new();
    for at in 0..3 {
        disks.push(cluster.kill(at).await);
    }
    // One really loses its last record; of the others something was under way when the power failed.
    damage_last_record(&disks[0]);
    for disk in &disks[1..] {
        tear_unfinished_record(disk);
    }
    let third = disks.pop().expect("three");
    for (at, disk) in disks.into_iter().enumerate() {
        cluster.restart(at, disk).await;
    }
    assert!(cluster.stores[0].node.in_doubt() && cluster.stores[1].node.in_doubt());
    assert!(cluster.try_propose(0, "too early").await.is_err(), "two in doubt are no quorum");
    cluster.restart(2, third).await;
    let after = bytes::Bytes::from_static(b"after");
    cluster.propose(0, "after").await;
    for store in &cluster.stores {
        until("every doubt is settled", || async { (!store.node.in_doubt()).then_some(()) }).await;
        let progress = store.node.progress(GROUP).expect("it is open");
        assert!(progress.0 > LogIndex::ZERO && store.id != StoreId(0));
    }
    for at in 0..3 {
        until("everybody has everything", || async { cluster.applied(at).contains(&after).then_some(()) })
            .await;
        assert_eq!(cluster.applied(at)[..acknowledged.len()], acknowledged);
    }
    cluster.stop().await;
}
