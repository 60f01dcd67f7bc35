//! T17: two stores cannot reach each other, and both reach the third.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::{Field, elections};
use super::load::{Load, Plan};
use super::{LoadArguments, Verdict};

/// Nothing is asked of the cluster for so long after the cut.
const SETTLE: Duration = Duration::from_secs(10);

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let keyspaces = field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?;
    // Through the one that reaches both.
    let addresses = vec![field.cluster.stores[STORES - 1].client.clone()];
    let mut plan = Plan { addresses, keyspaces, ..arguments.plan() };
    plan.rate = Some(arguments.offered(&plan).await?);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let before = load.watch(length).await;
    println!("before: {before}");
    let at_first = field.leaders_at(STORES - 1).await?;
    field.set_apart(0, 1, true);
    let at_once = load.watch(SETTLE).await;
    println!("the first {} s apart: {at_once}", SETTLE.as_secs());
    let apart = load.watch(length).await;
    println!("apart: {apart}");
    let after = field.leaders_at(STORES - 1).await?;
    let terms = |name: &String| {
        let term = |leaders: &super::field::Leaders| leaders.get(name).map_or(0, |(_, term)| *term);
        term(&after) - term(&at_first)
    };
    let most = plan.keyspaces.iter().map(terms).max().unwrap_or(0);
    println!(
        "{} of {} groups had an election",
        elections(&at_first, &after, &plan.keyspaces),
        plan.keyspaces.len()
    );
    field.set_apart(0, 1, false);
    let healed = load.watch(length).await;
    println!("healed: {healed}");
    let mut verdict = Verdict::default();
    verdict.at_most("elections of one group", most as f64, 1.0);
    verdict.at_least("throughput apart, after 10 s / before", apart.per_second() / before.per_second(), 0.95);
    verdict.at_least("throughput healed / before", healed.per_second() / before.per_second(), 0.95);
    verdict.at_most("writes that failed after 10 s", (apart.failed + healed.failed) as f64, 0.0);
    load.end().await;
    Ok(verdict.holds())
}
