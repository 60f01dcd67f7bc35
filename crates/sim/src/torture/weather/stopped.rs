//! A follower is stopped while others write as fast as they can, told for each second: what the one that does not answer costs
//! the slowest writes of groups that it does not lead.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::{Field, elections};
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, Verdict};

/// The store that is stopped.
const STOPPED: usize = STORES - 1;
/// Its leaderships go elsewhere first, which takes election timers and whatever the machine needs for them.
const ELECTIONS: usize = 6;

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let flags = ["--flow-control", arguments.mode.as_str()];
    let mut field = Field::start(&arguments.cluster, &flags, arguments.groups).await?;
    let leaders = field.settled().await?;
    let healthy: Vec<usize> = (0..STOPPED).collect();
    let keyspaces = field.led_by(&leaders, &healthy)?;
    let addresses = healthy.iter().map(|store| field.cluster.stores[*store].client.clone()).collect();
    let plan = Plan { addresses, keyspaces, ..arguments.plan() };
    println!(
        "{} groups, {} of them led by healthy stores and written to, flow control {}",
        leaders.len(),
        plan.keyspaces.len(),
        arguments.mode
    );
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let before = tell("all answer", load.watch_seconds(length).await);
    let at_first = field.leaders().await?;
    field.cluster.stop(STOPPED)?;
    let mut seconds = load.watch_seconds(length).await;
    let after = field.leaders().await?;
    let settled = seconds.split_off(seconds.len().min(ELECTIONS));
    let _ = tell("stopped, elections", seconds);
    let stopped = tell("stopped", settled);
    field.cluster.go_on(STOPPED)?;
    let back = tell("it is back", load.watch_seconds(length).await);
    load.end().await;
    // Leaderships of the stopped store went elsewhere, and are spread from there.
    let moved = elections(&at_first, &after, &plan.keyspaces);
    println!(
        "{moved} of the groups that are written to have another leader\nall answer: {before}\nstopped: {stopped}\nit is back: {back}"
    );
    let mut verdict = Verdict::default();
    verdict.at_least(
        "stopped: throughput / before",
        stopped.per_second() / before.per_second().max(1e-9),
        0.95,
    );
    verdict.at_most("stopped: p99 / before", stopped.ratio(0.99, &before), 1.5);
    verdict.at_most("stopped: p99.9 / before", stopped.ratio(0.999, &before), 2.0);
    Ok(verdict.holds())
}

/// Prints each second, and returns all of them together.
fn tell(what: &str, seconds: Vec<Figures>) -> Figures {
    for (n, second) in seconds.iter().enumerate() {
        let slow = second.latencies.iter().filter(|latency| **latency >= Duration::from_millis(500)).count();
        let tail = second.quantile(0.999).as_secs_f64() * 1e3;
        println!("{what}, {n:>3} s: {second}, p99.9 {tail:.1} ms, {slow} took half a second or more");
    }
    Figures::of(seconds)
}
