//! T1: one follower gets a tenth of the bytes that it needs, then it is stopped; nobody else should notice.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::{Field, elections};
use super::load::{Figures, Load, Plan};
use super::proxy::UNLIMITED;
use super::{LoadArguments, Verdict};

/// The store that gets too little.
const SLOW: usize = STORES - 1;
const MIB: f64 = (1 << 20) as f64;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let mut field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let healthy: Vec<usize> = (0..SLOW).collect();
    let keyspaces = field.led_by(&leaders, &healthy)?;
    let addresses = healthy.iter().map(|store| field.cluster.stores[*store].client.clone()).collect();
    let mut plan =
        Plan { addresses, keyspaces, value_bytes: arguments.value_size, elastic: false, rate: None };
    println!(
        "{} groups, {} of them led by healthy stores and written to",
        leaders.len(),
        plan.keyspaces.len()
    );
    let offered = arguments.offered(&plan).await?;
    plan.rate = Some(offered);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(length / 6).await;
    let (at_first, memory) = (field.leaders().await?, memory(&field, &healthy)?);
    let carried = field.proxies[SLOW].carried();
    let before = load.watch(length).await;
    let needed = (field.proxies[SLOW].carried() - carried) as f64 / before.seconds;
    println!("baseline: {before}; the follower needs {:.2} MiB/s", needed / MIB);

    let mut verdict = Verdict::default();
    let mut most = memory;
    field.proxies[SLOW].set_rate((needed / 10.0) as u64);
    let slow = watch(&mut load, &field, &healthy, length, &mut most).await?;
    compare(&mut verdict, "a tenth of the rate", offered, &before, &slow);
    field.cluster.stop(SLOW)?;
    let stopped = watch(&mut load, &field, &healthy, length, &mut most).await?;
    compare(&mut verdict, "stopped", offered, &before, &stopped);
    let after = field.leaders().await?;
    verdict.at_most("elections", elections(&at_first, &after, &plan.keyspaces) as f64, 0.0);
    verdict.at_most("leader memory growth, MiB", most.saturating_sub(memory) as f64 / MIB, 32.0);

    field.cluster.go_on(SLOW)?;
    field.proxies[SLOW].set_rate(UNLIMITED);
    let catching_up = load.watch(length).await;
    println!("it catches up: {catching_up}");
    verdict.at_most("p99 while it catches up / before", ratio(&catching_up, &before), 1.5);
    load.end().await;
    Ok(verdict.holds())
}

fn ratio(now: &Figures, before: &Figures) -> f64 {
    now.quantile(0.99).as_secs_f64() / before.quantile(0.99).as_secs_f64().max(1e-6)
}

fn compare(verdict: &mut Verdict, what: &str, offered: f64, before: &Figures, now: &Figures) {
    println!("{what}: {now}");
    // What was answered late from the time before is not to be expected again.
    let expected = before.per_second().min(offered);
    verdict.at_least(&format!("{what}: throughput / before"), now.per_second() / expected, 0.95);
    verdict.at_most(&format!("{what}: p99 / before"), ratio(now, before), 1.5);
}

/// The most that one of these stores holds.
fn memory(field: &Field, stores: &[usize]) -> anyhow::Result<u64> {
    stores.iter().try_fold(0, |most, store| Ok(most.max(field.memory_bytes(*store)?)))
}

async fn watch(
    load: &mut Load,
    field: &Field,
    stores: &[usize],
    length: Duration,
    most: &mut u64,
) -> anyhow::Result<Figures> {
    let mut parts = Vec::new();
    for _ in 0..10 {
        parts.push(load.watch(length / 10).await);
        *most = (*most).max(memory(field, stores)?);
    }
    Ok(Figures::of(parts))
}
