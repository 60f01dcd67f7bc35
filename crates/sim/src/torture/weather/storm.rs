//! T10: one follower lags in many groups, and then the other one is gone. The groups need the one that lags: it is flushed by
//! force, within one cap for all of them, and they commit again as soon as it has what it lacked.

use std::time::Duration;

use tokio::time::Instant;

use super::field::Field;
use super::load::{Load, Plan};
use super::memory::Memory;
use super::{LoadArguments, MIB, Verdict};

const LEADER: usize = 0;
const GONE: usize = 1;
const LAGS: usize = 2;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let mut field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let keyspaces = field.led_by(&leaders, &[LEADER])?;
    let addresses = vec![field.cluster.stores[LEADER].client.clone()];
    let mut plan = Plan { addresses, keyspaces, ..arguments.plan() };
    plan.rate = Some(arguments.offered(&plan).await?);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let carried = field.wires[LAGS].carried();
    let before = load.watch(length).await;
    let needed = (field.wires[LAGS].carried() - carried) as f64 / before.seconds;
    println!(
        "{} groups; before: {before}; the follower needs {:.2} MiB/s",
        plan.keyspaces.len(),
        needed / MIB
    );
    field.wires[LAGS].set_rate((needed / 10.0) as u64);
    let lagging = load.watch(length).await;
    println!("it gets a tenth of that: {lagging}");
    let backlog = needed * 0.9 * lagging.seconds;
    // Enough for what is new, and twice as much for what it lacks.
    let rate = 3.0 * needed;
    field.wires[LAGS].set_rate(rate as u64);
    let mut memory = Memory::of(&field, &[LEADER]).await?;
    field.cluster.stop(GONE)?;
    let (start, mut forced) = (Instant::now(), 0);
    // Each group has answered a write that was due after the other one was gone.
    let mut answered = vec![0; plan.keyspaces.len()];
    let mut took = f64::INFINITY;
    let bound = (1.5 * backlog / (rate - needed)).max(5.0);
    while took.is_infinite() && start.elapsed().as_secs_f64() < 4.0 * bound {
        let part = load.watch(Duration::from_millis(250)).await;
        answered.iter_mut().zip(&part.answers).for_each(|(all, new)| *all += new);
        let flow = field.status(LEADER).await?.flow.unwrap_or_default();
        forced = forced.max(flow.stores.iter().map(|pools| pools.forced_bytes).max().unwrap_or(0));
        memory.look(&field).await?;
        if answered.iter().all(|n| *n > 0) {
            took = start.elapsed().as_secs_f64();
        }
    }
    println!("{memory}");
    println!(
        "{:.1} MiB were lacking; {:.2} MiB were under way by force at most",
        backlog / MIB,
        forced as f64 / MIB
    );
    let _ = load.watch(length / 2).await;
    let after = load.watch(length).await;
    println!("with the other one gone: {after}");
    let mut verdict = Verdict::default();
    verdict.at_most("seconds until each group has committed again", took, bound);
    verdict.at_most("under way by force, MiB", forced as f64 / MIB, 33.0);
    verdict.at_most("leader memory growth, MiB", memory.growth() / MIB, 64.0);
    verdict.at_least(
        "throughput with the other one gone / before",
        after.per_second() / before.per_second(),
        0.95,
    );
    let changed = super::field::elections(&leaders, &field.leaders().await?, &plan.keyspaces);
    verdict.at_most("elections", changed as f64, 0.0);
    load.end().await;
    Ok(verdict.holds())
}
