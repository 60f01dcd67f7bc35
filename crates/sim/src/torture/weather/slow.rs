//! T1: one follower gets a tenth of the bytes that it needs, then it is stopped; nobody else should notice.

use std::time::Duration;

use tokio::time::Instant;

use super::super::cluster::STORES;
use super::field::{Field, elections};
use super::load::{Figures, Load, Plan};
use super::memory::Memory;
use super::proxy::UNLIMITED;
use super::{LoadArguments, MIB, Verdict};

/// The store that gets too little.
const SLOW: usize = STORES - 1;
/// It has caught up when it is so many entries behind, of all groups together: some are always on their way.
const CAUGHT_UP: u64 = 200;
/// Catching up may take so many times as long as the store was slow.
const CATCH_UP_MAX: u32 = 6;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let mut field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let healthy: Vec<usize> = (0..SLOW).collect();
    let keyspaces = field.led_by(&leaders, &healthy)?;
    let addresses = healthy.iter().map(|store| field.cluster.stores[*store].client.clone()).collect();
    let mut plan = Plan { addresses, keyspaces, ..arguments.plan() };
    println!(
        "{} groups, {} of them led by healthy stores and written to",
        leaders.len(),
        plan.keyspaces.len()
    );
    let offered = arguments.offered(&plan).await?;
    plan.rate = Some(offered);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    // Caches fill first: what they take is nobody's.
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;

    // As long as the two phases after it together.
    let at_first = field.leaders().await?;
    let carried = field.wires[SLOW].carried();
    let mut control = Memory::of(&field, &healthy).await?;
    let before = watch(&mut load, &field, 2 * length, &mut control).await?;
    let needed = (field.wires[SLOW].carried() - carried) as f64 / before.seconds;
    println!("all healthy: {before}; the follower needs {:.2} MiB/s", needed / MIB);
    println!("{control}");

    let mut verdict = Verdict::default();
    let mut memory = Memory::of(&field, &healthy).await?;
    field.wires[SLOW].set_rate((needed / 10.0) as u64);
    let slow = watch(&mut load, &field, length, &mut memory).await?;
    compare(&mut verdict, "a tenth of the rate", offered, &before, &slow);
    field.cluster.stop(SLOW)?;
    let stopped = watch(&mut load, &field, length, &mut memory).await?;
    compare(&mut verdict, "stopped", offered, &before, &stopped);
    println!("{memory}");
    let after = field.leaders().await?;
    verdict.at_most("elections", elections(&at_first, &after, &plan.keyspaces) as f64, 0.0);
    verdict.at_most("leader memory growth, MiB", memory.growth() / MIB, 32.0);
    verdict.at_most(
        "the same beyond that of the control, MiB",
        (memory.growth() - control.growth()) / MIB,
        32.0,
    );

    field.wires[SLOW].set_rate(UNLIMITED);
    field.cluster.go_on(SLOW)?;
    let start = Instant::now();
    let mut parts = Vec::new();
    let took = loop {
        parts.extend(load.watch_seconds(Duration::from_secs(1)).await);
        let lag = field.lag(SLOW).await?;
        if lag <= CAUGHT_UP {
            break Some(start.elapsed());
        }
        if start.elapsed() > CATCH_UP_MAX * length {
            println!("it is still {lag} entries behind");
            break None;
        }
    };
    let catching_up = Figures::of(parts);
    println!("it catches up: {catching_up}");
    let seconds = took.map_or(f64::INFINITY, |took| took.as_secs_f64());
    verdict.at_most("seconds until it has caught up", seconds, (CATCH_UP_MAX * length).as_secs_f64());
    compare(&mut verdict, "it catches up", offered, &before, &catching_up);
    load.end().await;
    Ok(verdict.holds())
}

fn compare(verdict: &mut Verdict, what: &str, offered: f64, before: &Figures, now: &Figures) {
    println!("{what}: {now}");
    // What was answered late from the time before is not to be expected again.
    let expected = before.per_second().min(offered);
    verdict.at_least(&format!("{what}: throughput / before"), now.per_second() / expected, 0.95);
    verdict.at_most(&format!("{what}: p99 / before"), now.ratio(0.99, before), 1.5);
}

async fn watch(
    load: &mut Load,
    field: &Field,
    length: Duration,
    memory: &mut Memory,
) -> anyhow::Result<Figures> {
    let mut parts = Vec::new();
    for _ in 0..10 {
        parts.push(load.watch(length / 10).await);
        memory.look(field).await?;
    }
    Ok(Figures::of(parts))
}
