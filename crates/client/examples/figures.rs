//! Two figures of the client's connection policy, measured against real stores.
//!
//! ```text
//! figures moves 127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379 [SECONDS [LEADER_CHECK_MS]]
//!     moves the leadership of `default` every 300 ms and writes all the while through a leader-only client:
//!     how long it is without a connection, and without the right one, for each move
//! figures down [SECONDS [REMOTES]]
//!     all remotes refuse: the attempts that are made in each second, and what the back-off rule allows
//! ```
//! `pontoon dev` starts a cluster with the three addresses above.
#![allow(clippy::print_stdout, reason = "a command line program reports on standard output")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pontoon_client::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_client::proto::etcdserverpb::{MoveLeaderRequest, StatusRequest};
use pontoon_client::{Client, Config, Keyspace};
use pontoon_reconnect::BackoffLimits;
use tonic::transport::{Channel, Endpoint};

/// From move to move.
const EVERY: Duration = Duration::from_millis(300);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    match arguments.first().map(String::as_str) {
        Some("moves") if arguments.len() > 1 => {
            let remotes: Vec<_> = arguments[1].split(',').map(str::to_owned).collect();
            moves(remotes, Duration::from_secs(number(2, 60)?), Duration::from_millis(number(3, 500)?)).await
        }
        Some("down") => down(number(1, 60)?, number(2, 3)?).await,
        _ => {
            Err("usage: figures moves HOST:PORT,… [SECONDS [LEADER_CHECK_MS]] | down [SECONDS [REMOTES]]"
                .into())
        }
    }
}

/// What a watcher has seen of the session.
#[derive(Default)]
struct Seen {
    /// Who leads, by the cluster's own word, and since when.
    leader: Option<(String, Instant)>,
    /// For each move: from the cluster's word until the session was with the new leader.
    with_another: Vec<Duration>,
    /// For each time the session had no connection at all: how long.
    without_any: Vec<Duration>,
    backoff_max_ms: u64,
}

async fn moves(remotes: Vec<String>, length: Duration, check: Duration) -> Result<(), Box<dyn Error>> {
    let mut stores = HashMap::new();
    for remote in &remotes {
        let channel = Endpoint::from_shared(format!("http://{remote}"))?.connect().await?;
        let status = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await?.into_inner();
        stores.insert(status.header.ok_or("a status without a header")?.member_id, (remote.clone(), channel));
    }
    let mut config = Config::new(remotes);
    (config.leader_only, config.leader_check_interval) = (true, check);
    let keyspace = Client::new(config)?.default_keyspace().with_timeout(Duration::from_secs(30));
    keyspace.put("figures", "0").await?;
    let attempts_before = keyspace.session().stats.attempts;

    let end = Instant::now() + length;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watcher = tokio::spawn(watch(keyspace.clone(), Arc::clone(&seen), end));
    let writer = tokio::spawn(write(keyspace.clone(), end));
    let (mut done, mut refused) = (0_usize, 0_usize);
    let mut timer = tokio::time::interval(EVERY);
    while Instant::now() < end {
        timer.tick().await;
        match move_leader(&stores, done).await {
            Ok(to) => {
                done += 1;
                let mut seen = seen.lock().expect("nobody panics with it");
                seen.leader = Some((to, Instant::now()));
            }
            Err(_) => refused += 1,
        }
    }
    watcher.await?;
    let (writes, slowest, failed) = writer.await?;
    let seen = std::mem::take(&mut *seen.lock().expect("nobody panics with it"));
    println!("{done} moves in {length:?} ({refused} were refused), leader checked every {check:?}");
    println!("without any connection:   {}", figures(&seen.without_any, done));
    println!("not with the new leader:  {}", figures(&seen.with_another, done));
    println!("{writes} writes beside, the slowest took {slowest:?}, {failed} failed");
    let attempts = keyspace.session().stats.attempts - attempts_before;
    println!("{attempts} attempts to connect, the longest back-off was {} ms", seen.backoff_max_ms);
    Ok(())
}

/// Lets the leader hand over to the next store; returns its address.
async fn move_leader(
    stores: &HashMap<u64, (String, Channel)>,
    round: usize,
) -> Result<String, Box<dyn Error>> {
    let (_, any) = stores.values().next().ok_or("no stores")?;
    let leader = MaintenanceClient::new(any.clone()).status(StatusRequest {}).await?.into_inner().leader;
    let (_, channel) = stores.get(&leader).ok_or("nobody leads")?;
    let mut others: Vec<_> = stores.keys().copied().filter(|store| *store != leader).collect();
    others.sort_unstable();
    let target_id = others[round % others.len()];
    MaintenanceClient::new(channel.clone()).move_leader(MoveLeaderRequest { target_id }).await?;
    Ok(stores[&target_id].0.clone())
}

/// Looks at the session every half millisecond.
async fn watch(keyspace: Keyspace, seen: Arc<Mutex<Seen>>, end: Instant) {
    let mut without_since = None;
    while Instant::now() < end {
        let session = keyspace.session();
        {
            let mut seen = seen.lock().expect("nobody panics with it");
            seen.backoff_max_ms = seen.backoff_max_ms.max(session.stats.backoff_ms);
            match (&session.remote, without_since) {
                (None, None) => without_since = Some(Instant::now()),
                (Some(_), Some(since)) => {
                    seen.without_any.push(Instant::now() - since);
                    without_since = None;
                }
                _ => {}
            }
            if let (Some(remote), Some((leader, since))) = (&session.remote, &seen.leader)
                && remote == leader
            {
                let after = since.elapsed();
                seen.with_another.push(after);
                seen.leader = None;
            }
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

async fn write(keyspace: Keyspace, end: Instant) -> (u64, Duration, u64) {
    let (mut writes, mut slowest, mut failed) = (0, Duration::ZERO, 0);
    while Instant::now() < end {
        let start = Instant::now();
        match keyspace.put("figures", writes.to_string()).await {
            Ok(_) => writes += 1,
            Err(_) => failed += 1,
        }
        slowest = slowest.max(start.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (writes, slowest, failed)
}

fn figures(times: &[Duration], moves: usize) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(longest)) => {
            format!(
                "median {median:.1?}, longest {longest:.1?}, seen {} times in {moves} moves",
                sorted.len()
            )
        }
        _ => "never".to_owned(),
    }
}

async fn down(seconds: u64, remotes: u64) -> Result<(), Box<dyn Error>> {
    // Ports that were just free: connections are refused at once, which is what tempts a client most.
    let held =
        (0..remotes).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses =
        held.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<std::io::Result<Vec<_>>>()?;
    drop(held);
    let length = Duration::from_secs(seconds);
    let keyspace = Client::new(Config::new(addresses))?.default_keyspace().with_timeout(length);
    let call = tokio::spawn({
        let keyspace = keyspace.clone();
        async move { keyspace.put("k", "v").await }
    });
    let (mut before, mut timer) = (0, tokio::time::interval(Duration::from_secs(1)));
    timer.tick().await;
    let mut per_second = Vec::new();
    for _ in 0..seconds {
        timer.tick().await;
        let attempts = keyspace.session().stats.attempts;
        per_second.push(attempts - before);
        before = attempts;
    }
    let allowed = BackoffLimits::default().attempts_within(seconds * 1000, remotes);
    println!("{remotes} remotes down for {seconds} s: {before} attempts made, {allowed} allowed");
    println!("by the second: {per_second:?}");
    if let Err(error) = call.await? {
        println!("the write: {error}");
    }
    Ok(())
}
