//! How the stores' memory behaves while one follower is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use super::args::MemoryArguments;
use super::client::Connection;
use super::cluster::{Cluster, STORES};
use super::failover::leader;

/// Time from line to line.
const EVERY: Duration = Duration::from_secs(10);

/// Runs the load and prints the figures; whether the follower caught up.
pub(crate) async fn run(arguments: &MemoryArguments) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start(&arguments.cluster).await?;
    tokio::time::sleep(cluster.election_timeout()).await;
    let leader = leader(&cluster).await?;
    let stopped = (leader + 1) % STORES;
    println!(
        "{}: {} clients, values of {} bytes on {} keys; {} leads, {} is stopped for {} s",
        cluster.software(),
        arguments.clients,
        arguments.value_size,
        arguments.keys,
        cluster.stores[leader].name,
        cluster.stores[stopped].name,
        arguments.seconds
    );
    println!("MiB: VmRSS (RssAnon of it)");
    let role = |index: usize| match index {
        _ if index == leader => "leader",
        _ if index == stopped => "stopped",
        _ => "follower",
    };
    let heads =
        (0..STORES).map(|index| format!("{:>18}", format!("{} {}", cluster.stores[index].name, role(index))));
    println!("{:>22}{}{:>14}", "", heads.collect::<String>(), "puts/s");
    line(&cluster, "before the load", None)?;

    let done = Arc::new(AtomicU64::new(0));
    let load = load(&cluster, arguments, stopped, &done);
    let warm_up = Duration::from_secs(arguments.warm_up.max(1));
    tokio::time::sleep(warm_up).await;
    line(&cluster, "warm", Some(done.swap(0, Ordering::Relaxed) as f64 / warm_up.as_secs_f64()))?;
    // The same for so long with all of them well: what grows then is nobody's fault.
    let length = Duration::from_secs(arguments.seconds);
    let control = watch(&cluster, leader, length, "well", &done).await?;
    cluster.stop(stopped)?;
    let growth = watch(&cluster, leader, length, "stopped", &done).await?;
    println!(
        "the leader's RssAnon grew by {control:.1} MiB with all well, and by {growth:.1} MiB with one stopped"
    );
    drop(load);
    line(&cluster, "load ended", None)?;

    let mut connection = open(&cluster.stores[leader].client).await?;
    let goal = connection.revision(None).await.map_err(|error| anyhow::anyhow!("{}", error.text()))?;
    cluster.go_on(stopped)?;
    let start = Instant::now();
    let limit = Duration::from_secs(arguments.catch_up_seconds);
    let caught_up = loop {
        if start.elapsed() > limit {
            break None;
        }
        if let Ok(mut connection) = open(&cluster.stores[stopped].client).await
            && connection.revision(None).await.is_ok_and(|revision| revision >= goal)
        {
            break Some(start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    match caught_up {
        Some(took) => println!("caught up with revision {goal} {:.2} s after SIGCONT", took.as_secs_f64()),
        None => println!("NOT caught up with revision {goal} within {limit:?}"),
    }
    line(&cluster, "caught up", None)?;
    tokio::time::sleep(EVERY).await;
    line(&cluster, "10 s later", None)?;
    if caught_up.is_none() {
        cluster.keep();
        println!("data directories and logs: {}", cluster.dir().display());
    }
    Ok(caught_up.is_some())
}

async fn open(address: &str) -> anyhow::Result<Connection> {
    let connection = Connection::open(address, Duration::from_secs(5)).await;
    connection.map_err(|error| anyhow::anyhow!("{}", error.text()))
}

/// Lets the load run, with a line every now and then. Returns how far the leader's memory got beyond what it was, in MiB.
async fn watch(
    cluster: &Cluster,
    leader: usize,
    length: Duration,
    what: &str,
    done: &AtomicU64,
) -> anyhow::Result<f64> {
    let (start, first) = (Instant::now(), mib(cluster, leader, "RssAnon:")?);
    let (mut most, mut told) = (first, Instant::now());
    while start.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(1).min(length.saturating_sub(start.elapsed()))).await;
        most = most.max(mib(cluster, leader, "RssAnon:")?);
        if told.elapsed() + Duration::from_millis(500) >= EVERY || start.elapsed() >= length {
            let rate = done.swap(0, Ordering::Relaxed) as f64 / told.elapsed().as_secs_f64();
            line(cluster, &format!("{:.0} s {what}", start.elapsed().as_secs_f64()), Some(rate))?;
            told = Instant::now();
        }
    }
    Ok(most - first)
}

/// A line of a store's `/proc/PID/status`, in MiB.
fn mib(cluster: &Cluster, index: usize, name: &str) -> anyhow::Result<f64> {
    let pid = cluster.pid(index).context("every store has a process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("{} ended by itself", cluster.stores[index].name))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.unwrap_or(0.0) / 1024.0)
}

fn line(cluster: &Cluster, label: &str, rate: Option<f64>) -> anyhow::Result<()> {
    let mut text = format!("{label:>22}");
    for index in 0..STORES {
        let (all, anonymous) = (mib(cluster, index, "VmRSS:")?, mib(cluster, index, "RssAnon:")?);
        text.push_str(&format!("{:>18}", format!("{all:.0} ({anonymous:.0})")));
    }
    if let Some(rate) = rate {
        text.push_str(&format!("{rate:>14.0}"));
    }
    println!("{text}");
    Ok(())
}

/// Starts the clients on the stores that stay up, and the compaction; dropping the set ends them.
fn load(
    cluster: &Cluster,
    arguments: &MemoryArguments,
    stopped: usize,
    done: &Arc<AtomicU64>,
) -> JoinSet<()> {
    let up: Vec<String> = (0..STORES)
        .filter(|&index| index != stopped)
        .map(|index| cluster.stores[index].client.clone())
        .collect();
    let mut tasks = JoinSet::new();
    for client in 0..arguments.clients {
        let address = up[client as usize % up.len()].clone();
        let done = Arc::clone(done);
        let (keys, clients) = (arguments.keys.max(1), arguments.clients.max(1));
        let value = vec![b'x'; arguments.value_size];
        let mut ticks = arguments.rate.map(|rate| {
            let each = Duration::from_secs_f64(f64::from(clients) / rate.max(0.001));
            tokio::time::interval(each)
        });
        tasks.spawn(async move {
            let mut connection = None;
            let mut number = client;
            let failed = AtomicBool::new(false);
            loop {
                let Some(open) = &mut connection else {
                    connection = Connection::open(&address, Duration::from_secs(5)).await.ok();
                    tokio::time::sleep(Duration::from_millis(u64::from(connection.is_none()) * 50)).await;
                    continue;
                };
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                number = number.wrapping_add(clients);
                let key = format!("m/{:06}", number % keys).into_bytes();
                match open.put(None, key, value.clone()).await {
                    Ok(_) => {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        if !failed.swap(true, Ordering::Relaxed) && client == 0 {
                            println!("  a client's first error: {}", error.text());
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        });
    }
    if arguments.compact_every > 0 {
        let every = Duration::from_secs(arguments.compact_every);
        let address = up[0].clone();
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Ok(mut connection) = Connection::open(&address, Duration::from_secs(5)).await else {
                    continue;
                };
                if let Ok(revision) = connection.revision(None).await {
                    let _ = connection.compact(None, revision).await;
                }
            }
        });
    }
    tasks
}
