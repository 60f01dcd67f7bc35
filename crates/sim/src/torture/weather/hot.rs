//! T14: one group is written to ten times as often as each of the others, with large values. What is too much is held up by
//! tokens and credits; the others should hardly notice, and nothing of them may be dropped.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Load, Plan};
use super::{LoadArguments, Verdict};

/// The hot group's values, as a multiple of the others'.
const HOT_VALUES: usize = 16;
/// How often it is written to, as a multiple of the others.
const HOT_WRITES: f64 = 10.0;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let all = field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?;
    let (hot, others) = all.split_first().expect("the list is not empty");
    let mut plan = Plan { addresses: field.cluster.clients(), keyspaces: others.into(), ..arguments.plan() };
    let offered = arguments.offered(&plan).await?;
    plan.rate = Some(offered);
    let length = Duration::from_secs(arguments.seconds);
    let mut load = Load::start(&plan).await?;
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let before = load.watch(length).await;
    println!("the others alone: {before}");
    let dropped = dropped(&field).await?;
    let flood = Plan {
        keyspaces: [hot.clone()].into(),
        value_bytes: arguments.value_size * HOT_VALUES,
        rate: Some(HOT_WRITES * offered / others.len().max(1) as f64),
        ..plan.clone()
    };
    let mut flood = Load::start(&flood).await?;
    let _ = load.watch(length / 6).await;
    let _ = flood.take();
    let beside = load.watch(length).await;
    println!("beside a hot one: {beside}");
    println!("the hot one: {}", flood.take());
    let mut verdict = Verdict::default();
    verdict.at_least("throughput of the others / alone", beside.per_second() / before.per_second(), 0.95);
    verdict.at_most("p99 of the others / alone", beside.ratio(0.99, &before), 1.2);
    verdict.at_most("writes of the others that failed", beside.failed as f64, 0.0);
    verdict.at_most("messages dropped", self::dropped(&field).await? - dropped, 0.0);
    flood.end().await;
    load.end().await;
    Ok(verdict.holds())
}

/// Messages that any store has dropped.
async fn dropped(field: &Field) -> anyhow::Result<f64> {
    let mut all = 0.0;
    for store in 0..STORES {
        all += field.counter(store, "peer_dropped_messages_total").await?;
    }
    Ok(all)
}
