//! T5: a store is down until much has been written that it lacks, in many groups, and then comes back.

use std::time::Duration;

use tokio::time::Instant;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, MIB, Verdict};

/// The store that is away.
const AWAY: usize = STORES - 1;
/// It has caught up when it is so many entries behind, of all groups together: some are always on their way.
const CAUGHT_UP: u64 = 200;
/// While it is away this is written, as fast as it goes.
const FILL_BYTES: usize = 16 << 10;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let mut field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let here: Vec<usize> = (0..AWAY).collect();
    let keyspaces = field.led_by(&leaders, &here)?;
    let addresses: Vec<_> = here.iter().map(|store| field.cluster.stores[*store].client.clone()).collect();
    let mut plan = Plan { addresses: addresses.clone(), keyspaces, ..arguments.plan() };
    println!("{} groups, {} of them led by stores that stay", leaders.len(), plan.keyspaces.len());
    let offered = arguments.offered(&plan).await?;
    field.cluster.kill(AWAY).await?;

    // Those that it led have other leaders now: the backlog is of all groups.
    let leaders = field.settled().await?;
    let all = field.led_by(&leaders, &here)?;
    let fill = Plan { addresses, keyspaces: all.clone(), value_bytes: FILL_BYTES, ..plan.clone() };
    let mut filling = Load::start(&fill).await?;
    let mut written = 0.0;
    while written < arguments.backlog_mib as f64 * MIB {
        let figures = filling.watch(Duration::from_secs(1)).await;
        written += figures.latencies.len() as f64 * FILL_BYTES as f64;
    }
    filling.end().await;
    println!("{:.0} MiB were written to {} groups while it is away", written / MIB, all.len());

    plan.keyspaces = all;
    plan.rate = Some(offered);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let before = load.watch(length).await;
    println!("while it is away: {before}");
    field.cluster.spawn(AWAY)?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    let took = loop {
        seconds.extend(load.watch_seconds(Duration::from_secs(1)).await);
        let lag = field.lag(AWAY).await.ok();
        if lag.is_some_and(|lag| lag <= CAUGHT_UP) {
            break start.elapsed().as_secs_f64();
        }
        if start.elapsed() > 8 * length {
            println!("entries that it still lacks: {lag:?}");
            break f64::INFINITY;
        }
    };
    let expected = before.per_second().min(offered);
    let mut rates: Vec<f64> = seconds.iter().map(|second| second.per_second() / expected).collect();
    rates.sort_by(f64::total_cmp);
    let after = Figures::of(seconds);
    println!("while it comes back, for {took:.0} s: {after}");
    let mut verdict = Verdict::default();
    verdict.at_most("seconds until it has caught up", took, (8 * length).as_secs_f64());
    verdict.at_least("throughput in 95 % of the seconds / before", rates[rates.len() / 20], 0.9);
    verdict.at_least("throughput in the worst second / before", rates[0], 0.7);
    verdict.at_most("p99 / before", after.ratio(0.99, &before), 1.5);
    load.end().await;
    Ok(verdict.holds())
}
