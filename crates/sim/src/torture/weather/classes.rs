//! T8: a flood of elastic work beside regular work that has half of what the cluster can do.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Load, Plan};
use super::{LoadArguments, Verdict};

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let keyspaces = field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?;
    let mut plan = Plan { addresses: field.cluster.clients(), keyspaces, ..arguments.plan() };
    let rate = arguments.offered(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    plan.rate = Some(rate);
    let mut regular = Load::start(&plan).await?;
    let _ = regular.watch(length / 6).await;
    let before = regular.watch(length).await;
    println!("regular work alone: {before}");
    let mut flood = Load::start(&Plan { elastic: true, rate: None, ..plan.clone() }).await?;
    let _ = regular.watch(length / 6).await;
    let _ = flood.take();
    let beside = regular.watch(length).await;
    println!("beside a flood: {beside}");
    println!("the flood: {}", flood.take());
    let mut verdict = Verdict::default();
    let ratio = beside.quantile(0.99).as_secs_f64() / before.quantile(0.99).as_secs_f64().max(1e-6);
    verdict.at_least("throughput of regular work / alone", beside.per_second() / before.per_second(), 0.95);
    verdict.at_most("p99 of regular work / alone", ratio, 1.5);
    flood.end().await;
    regular.end().await;
    Ok(verdict.holds())
}
