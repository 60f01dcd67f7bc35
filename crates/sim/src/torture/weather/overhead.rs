//! What flow control costs while all is well: the same cluster with it off and on, in turn, as fast as it goes.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, Verdict};

const MODES: [&str; 3] = ["off", "elastic", "all"];

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let mut seen: [Vec<Figures>; 3] = Default::default();
    // In turn, so that a machine that gets slower does so for each of them.
    for round in 0..arguments.rounds.max(1) {
        for (mode, seen) in MODES.iter().zip(&mut seen) {
            let field = Field::start(&arguments.cluster, &["--flow-control", mode], arguments.groups).await?;
            let leaders = field.settled().await?;
            let plan = Plan {
                addresses: field.cluster.clients(),
                keyspaces: field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?,
                value_bytes: arguments.value_size,
                elastic: false,
                rate: None,
            };
            let length = Duration::from_secs(arguments.seconds);
            let mut load = Load::start(&plan).await?;
            let _ = load.watch(length / 6).await;
            let figures = load.watch(length).await;
            println!("round {}, {mode}: {figures}", round + 1);
            seen.push(figures);
            load.end().await;
        }
    }
    let median = |seen: &[Figures], of: fn(&Figures) -> f64| {
        let mut all: Vec<f64> = seen.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let p99 = |figures: &Figures| figures.quantile(0.99).as_secs_f64();
    let (rate_off, p99_off) = (median(&seen[0], Figures::per_second), median(&seen[0], p99));
    let mut verdict = Verdict::default();
    for (mode, seen) in MODES.iter().zip(&seen).skip(1) {
        let rate = median(seen, Figures::per_second) / rate_off;
        verdict.at_least(&format!("throughput with {mode} / off"), rate, 0.98);
        verdict.at_most(&format!("p99 with {mode} / off"), median(seen, p99) / p99_off.max(1e-6), 1.05);
    }
    Ok(verdict.holds())
}
