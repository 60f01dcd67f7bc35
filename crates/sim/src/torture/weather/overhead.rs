//! What flow control costs while all is well: one cluster as fast as it goes, with flow control off and on in turn.

use std::time::Duration;

use super::super::cluster::STORES;
use super::field::Field;
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, Verdict};

/// Each round goes through them and back, so that a machine that gets slower or faster does so for each of them.
const MODES: [&str; 3] = ["off", "elastic", "all"];
/// After a switch nothing is measured for so long.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "off"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let plan = Plan {
        addresses: field.cluster.clients(),
        keyspaces: field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?,
        ..arguments.plan()
    };
    let mut load = Load::start(&plan).await?;
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let length = Duration::from_secs(arguments.seconds);
    // Of each mode, beside what it was with flow control off in the same half of the round.
    let mut throughput: [Vec<f64>; 3] = Default::default();
    let mut p99: [Vec<f64>; 3] = Default::default();
    for round in 0..2 * arguments.rounds.max(1) {
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        let mut seen: [Figures; 3] = Default::default();
        for at in order {
            field.set_flow_control(MODES[at]).await?;
            let _ = load.watch(SETTLE).await;
            seen[at] = load.watch(length).await;
            println!("round {}, {}: {}", round + 1, MODES[at], seen[at]);
        }
        for at in 1..MODES.len() {
            throughput[at].push(seen[at].per_second() / seen[0].per_second());
            p99[at].push(seen[at].ratio(0.99, &seen[0]));
        }
    }
    load.end().await;
    let mut verdict = Verdict::default();
    for at in 1..MODES.len() {
        let mode = MODES[at];
        let (less, more) = (spread(&mut throughput[at]), spread(&mut p99[at]));
        println!("{mode} / off, quartiles: throughput {less:.3?}, p99 {more:.3?}");
        verdict.at_least(&format!("throughput with {mode} / off"), less[1], 0.98);
        verdict.at_most(&format!("p99 with {mode} / off"), more[1], 1.05);
    }
    Ok(verdict.holds())
}

/// The quartiles; the second is the median.
fn spread(all: &mut [f64]) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
    let middle = all.len() / 2;
    let median =
        if all.len().is_multiple_of(2) { (all[middle - 1] + all[middle]) / 2.0 } else { all[middle] };
    [at(0.25), median, at(0.75)]
}
