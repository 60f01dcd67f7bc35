//! Many groups follow stores: a fourth store joins, then the first is kicked, while it is written to all groups at a fixed
//! rate. Says how long that takes, what crosses the links for it, what it costs the clients, and whether a group ever had
//! fewer live voters than wished. To be run on a machine that does nothing else.

use std::time::Duration;

use anyhow::bail;
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::{
    KickStoreRequest, ListKeyspacesRequest, ListMovesRequest, ListStoresRequest, Move, StoreSummary,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::args::GrowArguments;
use super::cluster::{Cluster, STORES};
use super::metrics::counter;
use super::weather::Verdict;
use super::weather::field::{admin, make_keyspaces};
use super::weather::load::{Figures, Load, Plan};

/// Between two looks at what moves.
const LOOK: Duration = Duration::from_millis(250);
/// Nothing has moved for so long: it is over.
const CALM: Duration = Duration::from_secs(3);
/// The p99 of clients may be so many times what it was before.
const P99_MAX: f64 = 2.0;
/// Of each keyspace that are written to, in turn.
const KEYS: u64 = 1000;

pub(crate) async fn run(arguments: &GrowArguments) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start(&arguments.cluster).await?;
    make_keyspaces(&cluster.stores[0].client, arguments.groups).await?;
    let plan = Plan {
        // Not at the store that is kicked later: its clients would have to go elsewhere.
        addresses: cluster.clients().split_off(1),
        keyspaces: (0..arguments.groups).map(|n| format!("w{n}")).collect(),
        value_bytes: arguments.value_size,
        elastic: false,
        rate: Some(arguments.rate),
        keys: KEYS,
    };
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(length).await;
    let stay: Vec<String> = cluster.clients().split_off(1);
    let mut scene = Scene { watched: admin(&stay[0]).await?, least: u64::MAX, calls: stay };

    let bytes = scene.bytes_on_links().await?;
    let before = load.watch(length).await;
    let per_second = (scene.bytes_on_links().await? - bytes) / before.seconds;
    println!("before: {before}; {:.1} MB/s on the links", per_second / 1e6);

    let patience = Duration::from_secs(arguments.moves_max);
    let mut verdict = Verdict::default();
    let index = cluster.add_joining()?;
    cluster.spawn(index)?;
    cluster.wait_store(index).await?;
    scene.calls.push(cluster.stores[index].client.clone());
    let joined = scene.measure("a fourth store joins", &mut load, per_second, patience, STORES + 1).await?;
    verdict.at_most("p99 while it joins / before", ratio(&joined, &before), P99_MAX);

    let calm = load.watch(length / 4).await;
    println!("between: {calm}");
    scene.watched.kick_store(KickStoreRequest { store: cluster.stores[0].name.clone() }).await?;
    let kicked = scene.measure("the first store is kicked", &mut load, per_second, patience, STORES).await?;
    verdict.at_most("p99 while it is kicked / before", ratio(&kicked, &before), P99_MAX);
    verdict.at_least("live voters of each group", scene.least as f64, STORES as f64);
    verdict.at_most(
        "failed writes",
        (before.failed + joined.failed + calm.failed + kicked.failed) as f64,
        0.0,
    );
    load.end().await;
    Ok(verdict.holds())
}

fn ratio(now: &Figures, before: &Figures) -> f64 {
    now.quantile(0.99).as_secs_f64() / before.quantile(0.99).as_secs_f64().max(1e-6)
}

/// What is looked at while replicas move.
struct Scene {
    /// A store that stays.
    watched: AdminClient<Channel>,
    /// The fewest live voters that a group was seen with.
    least: u64,
    /// Stores that stay.
    calls: Vec<String>,
}

impl Scene {
    /// Waits until nothing moves any more and there are so many stores, and says what that cost.
    async fn measure(
        &mut self,
        what: &str,
        load: &mut Load,
        per_second: f64,
        patience: Duration,
        stores: usize,
    ) -> anyhow::Result<Figures> {
        let _ = load.take();
        let (start, bytes) = (Instant::now(), self.bytes_on_links().await?);
        let (mut last, mut under_way, mut most) = (Instant::now(), 0, 0);
        let mut end = Instant::now();
        while last.elapsed() < CALM {
            if start.elapsed() > patience {
                bail!("{what}: replicas still move after {patience:?}");
            }
            let there = self.watched.list_stores(ListStoresRequest {}).await?.into_inner().stores;
            let moves = self.look(&there).await?;
            if moves > 0 || there.len() != stores {
                last = Instant::now();
                end = last;
            }
            if moves != under_way {
                (under_way, most) = (moves, most.max(moves));
                last = Instant::now();
                end = last;
            }
            tokio::time::sleep(LOOK).await;
        }
        let figures = load.take();
        let moved = self.bytes_on_links().await? - bytes - per_second * start.elapsed().as_secs_f64();
        println!(
            "{what}: {:.1} s, at most {most} replicas on their way at a time, {:.1} MB more on the links; {figures}",
            (end - start).as_secs_f64(),
            moved.max(0.0) / 1e6
        );
        Ok(figures)
    }

    /// Counts each group's live voters; returns how many replicas are on their way.
    async fn look(&mut self, there: &[StoreSummary]) -> anyhow::Result<usize> {
        let is_dead = |store: &u64| there.iter().all(|s| s.store != *store || !s.alive);
        let before = self.moves().await?;
        let list = self.watched.list_keyspaces(ListKeyspacesRequest {}).await?.into_inner().keyspaces;
        let after = self.moves().await?;
        let of = |moves: &[Move], group: u64| -> Vec<u64> {
            moves.iter().filter(|m| m.group_id == group).map(|m| m.store).collect()
        };
        for keyspace in list.iter().filter(|k| k.name.starts_with('w')) {
            let moving = of(&after, keyspace.id);
            // Of one that changed between the looks nobody can tell who voted in the middle.
            if of(&before, keyspace.id) == moving {
                let votes = |store: &&u64| !moving.contains(store) && !is_dead(store);
                self.least = self.least.min(keyspace.replicas.iter().filter(votes).count() as u64);
            }
        }
        Ok(after.len())
    }

    async fn moves(&mut self) -> anyhow::Result<Vec<Move>> {
        Ok(self.watched.list_moves(ListMovesRequest { store: 0 }).await?.into_inner().moves)
    }

    /// What the stores that stay have sent to and received from others so far.
    async fn bytes_on_links(&self) -> anyhow::Result<f64> {
        let mut all = 0.0;
        for address in &self.calls {
            all += counter(address, "peer_bytes_total").await?;
        }
        Ok(all)
    }
}
