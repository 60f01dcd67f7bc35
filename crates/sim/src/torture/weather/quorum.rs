//! T7: both followers of the groups that one store leads get less than is offered. What is committed goes at their pace, and
//! what is too much waits where it costs no memory: before it begins.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Figures, Load, Plan};
use super::memory::Memory;
use super::proxy::UNLIMITED;
use super::{LoadArguments, MIB, Verdict};

/// The store that leads.
const LEADER: usize = 0;
/// So much more is offered than the others can take.
const TOO_MUCH: f64 = 4.0;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let keyspaces = field.led_by(&leaders, &[LEADER])?;
    let addresses = vec![field.cluster.stores[LEADER].client.clone()];
    let mut plan = Plan { addresses, keyspaces, ..arguments.plan() };
    println!("{} groups, {} of them led by store 1 and written to", leaders.len(), plan.keyspaces.len());
    let most = arguments.offered(&plan).await? / arguments.share;
    // What the followers can take: with the offer still within what this machine can do.
    let (rate, length) = (most / TOO_MUCH / 1.2, Duration::from_secs(arguments.seconds));
    plan.rate = Some(rate);
    let mut load = Load::start(&plan).await?;
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let slow: Vec<usize> = (0..STORES).filter(|store| *store != LEADER).collect();
    let carried = |store: usize| field.wires[store].carried() as f64;
    let at_first: Vec<f64> = slow.iter().map(|store| carried(*store)).collect();
    let calm = load.watch(length).await;
    load.end().await;
    println!("with nobody slow, at the rate that they will be able to take: {calm}");
    // What a write takes on the wire: the rate of the links is told in bytes.
    let bytes: f64 = slow.iter().zip(&at_first).map(|(store, first)| carried(*store) - first).sum();
    let each = bytes / slow.len() as f64 / calm.latencies.len().max(1) as f64;
    for store in &slow {
        field.wires[*store].set_rate((rate * each) as u64);
    }
    println!(
        "each follower gets {:.2} MiB/s, {each:.0} bytes a write; {TOO_MUCH} times that is offered",
        rate * each / MIB
    );
    plan.rate = Some(rate * TOO_MUCH);
    let mut load = Load::start(&plan).await?;
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let mut memory = Memory::of(&field, &[LEADER]).await?;
    let mut parts = Vec::new();
    for _ in 0..10 {
        parts.push(load.watch(length / 10).await);
        memory.look(&field).await?;
    }
    let slowed = Figures::of(parts);
    println!("slow: {slowed}");
    println!("{memory}");
    let mut verdict = Verdict::default();
    verdict.at_least("commits / what they can take", slowed.per_second() / rate, 0.85);
    verdict.at_most("commits / what they can take", slowed.per_second() / rate, 1.15);
    verdict.at_least("fairness among groups (Jain)", slowed.fairness(), 0.9);
    verdict.at_most("leader memory growth, MiB", memory.growth() / MIB, 32.0);
    load.end().await;
    for store in slow {
        field.wires[store].set_rate(UNLIMITED);
    }
    Ok(verdict.holds())
}
