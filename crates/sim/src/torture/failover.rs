//! How long no write is served after the leader is killed.
//!
//! Probes are sent at fixed times, whether earlier ones were answered or not, to both survivors in turn: a measure that
//! waits for its answers would skip the very time it is to measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::args::FailoverArguments;
use super::client::{CallError, Connection};
use super::cluster::{Cluster, STORES};
use super::random::SplitMix64;

/// When nothing is served for so long, the try is given up.
const GAP_MAX: Duration = Duration::from_secs(30);

/// Runs the tries; whether no gap was longer than two election timeouts.
pub(crate) async fn run(arguments: &FailoverArguments) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start(&arguments.cluster).await?;
    let limit = cluster.election_timeout() * 2;
    println!(
        "{}: {} tries, election timeout {:?}, one probe every {} ms",
        cluster.software(),
        arguments.tries,
        cluster.election_timeout(),
        arguments.probe_every_ms
    );
    println!(" try  killed  first write by a survivor  writes by both");
    let every = Duration::from_millis(arguments.probe_every_ms.max(1));
    let mut random = SplitMix64::new(u64::from(std::process::id()), 0);
    let (mut firsts, mut boths) = (Vec::new(), Vec::new());
    for number in 1..=arguments.tries {
        cluster.all_up().await?;
        // Not always at the same point between two heartbeats.
        tokio::time::sleep(cluster.election_timeout() + random.millis(0, 500)).await;
        let leader = leader(&cluster).await?;
        let name = cluster.stores[leader].name.clone();
        let (first, both) = attempt(&mut cluster, leader, every).await?;
        println!("{number:>4}  {name:>6}  {:>22.0} ms  {:>11.0} ms", millis(first), millis(both));
        firsts.push(first);
        boths.push(both);
    }
    for (what, gaps) in [("first write by a survivor", &mut firsts), ("writes by both survivors", &mut boths)]
    {
        gaps.sort_unstable();
        let middle = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
        let longest = gaps.last().copied().unwrap_or_default();
        println!("{what}: median {:.0} ms, max {:.0} ms", millis(middle), millis(longest));
    }
    let late = boths.iter().filter(|&&gap| gap > limit).count();
    println!("{} of {} within two election timeouts ({limit:?})", boths.len() - late, boths.len());
    if late > 0 {
        cluster.keep();
        println!("data directories and logs: {}", cluster.dir().display());
    }
    Ok(late == 0)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The store that says of itself that it leads.
pub(crate) async fn leader(cluster: &Cluster) -> anyhow::Result<usize> {
    leader_of(&cluster.clients()).await
}

/// The same, among stores at these addresses.
pub(crate) async fn leader_of(addresses: &[String]) -> anyhow::Result<usize> {
    let until = Instant::now() + GAP_MAX;
    while Instant::now() < until {
        for (index, address) in addresses.iter().enumerate() {
            let Ok(mut connection) = Connection::open(address, Duration::from_secs(1)).await else {
                continue;
            };
            let Ok(status) = connection.status(None).await else { continue };
            if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                return Ok(index);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no store says that it leads");
}

/// Kills the leader under probes; the time to the first acknowledged write, and until each survivor acknowledged one.
async fn attempt(
    cluster: &mut Cluster,
    leader: usize,
    every: Duration,
) -> anyhow::Result<(Duration, Duration)> {
    let mut survivors = Vec::new();
    for index in (0..STORES).filter(|&index| index != leader) {
        let connection = Connection::open(&cluster.stores[index].client, Duration::from_secs(2)).await;
        survivors.push(connection.map_err(|error| anyhow::anyhow!("{}", error.text()))?);
    }
    let origin = Instant::now();
    let killed = Arc::new(AtomicBool::new(false));
    // When each survivor acknowledged the first write that was sent after the kill; microseconds, MAX: not yet.
    let acknowledged: Arc<Vec<AtomicU64>> =
        Arc::new(survivors.iter().map(|_| AtomicU64::new(u64::MAX)).collect());
    let probes = {
        let (killed, acknowledged) = (Arc::clone(&killed), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(every);
            let mut in_flight = tokio::task::JoinSet::new();
            for number in 0_u64.. {
                timer.tick().await;
                while in_flight.try_join_next().is_some() {}
                let after_kill = killed.load(Ordering::SeqCst);
                let which = usize::try_from(number % 2).expect("0 or 1");
                let mut connection = survivors[which].clone();
                let acknowledged = Arc::clone(&acknowledged);
                in_flight.spawn(async move {
                    let key = format!("probe/{which}").into_bytes();
                    let value = number.to_string().into_bytes();
                    match connection.put(None, key, value).await {
                        Ok(_) if after_kill => {
                            let at = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
                            acknowledged[which].fetch_min(at, Ordering::SeqCst);
                        }
                        Ok(_) | Err(CallError::Refused(_) | CallError::Unknown(_)) => {}
                    }
                });
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let kill_at = origin.elapsed();
    let kill = cluster.kill(leader).await;
    killed.store(true, Ordering::SeqCst);
    let until = Instant::now() + GAP_MAX;
    let read = |index: usize| acknowledged[index].load(Ordering::SeqCst);
    while Instant::now() < until && (read(0) == u64::MAX || read(1) == u64::MAX) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    probes.abort();
    kill?;
    let gap = |index: usize| {
        let at = Some(read(index)).filter(|&at| at != u64::MAX)?;
        Some(Duration::from_micros(at).saturating_sub(kill_at))
    };
    let context = || format!("no write was served within {GAP_MAX:?} after the leader was killed");
    let (one, two) = (gap(0).with_context(context), gap(1).with_context(context));
    if one.is_err() || two.is_err() {
        cluster.keep();
        eprintln!("logs: {}", cluster.dir().display());
    }
    let (one, two) = (one?, two?);
    Ok((one.min(two), one.max(two)))
}
