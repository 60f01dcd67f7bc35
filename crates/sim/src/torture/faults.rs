//! The seeded schedule of kills and stops.

use std::time::{Duration, Instant};

use super::args::Fault;
use super::cluster::{Cluster, STORES, tail};
use super::random::SplitMix64;

/// What was done to the stores.
#[derive(Debug, Default)]
pub(crate) struct FaultLog {
    pub(crate) kills: u32,
    pub(crate) stops: u32,
    /// When and what, for the summary of a failed run; seconds from the origin of the history.
    pub(crate) lines: Vec<String>,
    /// Stores that ended by themselves.
    pub(crate) deaths: Vec<String>,
}

impl FaultLog {
    pub(crate) fn note(&mut self, origin: Instant, what: &str) {
        self.lines.push(format!("{:9.3} s  {what}", origin.elapsed().as_secs_f64()));
    }
}

/// Every `every` a fault hits a random store, for `length`.
pub(crate) async fn inject(
    cluster: &mut Cluster,
    faults: &[Fault],
    every: Duration,
    length: Duration,
    random: &mut SplitMix64,
    origin: Instant,
) -> anyhow::Result<FaultLog> {
    let mut log = FaultLog::default();
    let faults: Vec<Fault> = faults.iter().copied().filter(|&fault| fault != Fault::None).collect();
    let start = Instant::now();
    let mut due = every;
    while !faults.is_empty() && due < length {
        // All choices are made in the same order, however long things take: one seed, one schedule.
        let index = random.below(STORES);
        let fault = faults[random.below(faults.len())];
        let kill_pause = random.millis(700, 1_300);
        let stop_pause = random.millis(1_000, 2_000).min(every.mul_f64(0.95));
        tokio::time::sleep_until((start + due).into()).await;
        for (dead, status) in cluster.deaths() {
            let text = format!(
                "{} ended by itself: {status}; {}",
                cluster.stores[dead].name,
                tail(&cluster.log(dead))
            );
            log.note(origin, &text);
            log.deaths.push(text);
            cluster.spawn(dead)?;
        }
        let name = cluster.stores[index].name.clone();
        match fault {
            Fault::Kill => {
                log.note(origin, &format!("kill -9 {name}"));
                log.kills += 1;
                cluster.kill(index).await?;
                tokio::time::sleep(kill_pause).await;
                log.note(origin, &format!("start {name}"));
                cluster.spawn(index)?;
            }
            Fault::Stop => {
                log.note(origin, &format!("SIGSTOP {name}"));
                log.stops += 1;
                cluster.stop(index)?;
                tokio::time::sleep(stop_pause).await;
                log.note(origin, &format!("SIGCONT {name}"));
                cluster.go_on(index)?;
            }
            Fault::None => {}
        }
        due += every;
    }
    tokio::time::sleep_until((start + length).into()).await;
    Ok(log)
}
