//! T16: links that are dead one way, or whose far side takes nothing any more, without either saying so. The store that leads
//! most is dumb (what it sends gets lost); the one that does then is deaf (what it is sent gets lost); and from the one that
//! does in the end nobody takes anything.

use std::time::Duration;

use tokio::time::Instant;

use super::super::cluster::STORES;
use super::field::{Field, Leaders};
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, MIB, Verdict};

/// A probe after a silence of an election timer and a second, the end after the same again, and half a second to notice it.
const FOUND_MAX: f64 = 4.5;
/// How often links are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Nobody has to answer before others lead.
const FAILOVER_MAX: f64 = 5.0;
/// The bound of what waits and is in flight on one lane, by default.
const LANE_BYTES_MAX: f64 = (8 << 20) as f64;

#[derive(Clone, Copy)]
enum Ill {
    Dumb,
    Deaf,
    /// Others do not take what it sends; unlike a dumb one it feels that its sockets fill up.
    Unread,
}

impl Ill {
    fn set(self, field: &Field, store: usize, ill: bool) {
        for other in (0..STORES).filter(|other| *other != store) {
            match self {
                Self::Dumb => field.set_lost(store, other, ill),
                Self::Deaf => field.set_lost(other, store, ill),
                Self::Unread => field.set_unread(store, other, ill),
            }
        }
    }
}

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let field = Field::start(&arguments.cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let mut verdict = Verdict::default();
    let length = Duration::from_secs(arguments.seconds);
    let keyspaces = field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?;
    let mut plan = Plan { addresses: field.cluster.clients(), keyspaces, ..arguments.plan() };
    plan.rate = Some(arguments.offered(&plan).await?);
    for (what, ill) in
        [("nobody hears it", Ill::Dumb), ("it hears nobody", Ill::Deaf), ("nobody reads it", Ill::Unread)]
    {
        let at_first = field.settled().await?;
        let led = |store: &usize| field.led_by(&at_first, &[*store]).map_or(0, |led| led.len());
        let store = (0..STORES).max_by_key(led).unwrap_or(0);
        // Asked of the others: whoever asks the store that nobody hears measures that.
        let others: Vec<_> = (0..STORES).filter(|other| *other != store).collect();
        plan.addresses = others.iter().map(|other| field.cluster.stores[*other].client.clone()).collect();
        let mut load = Load::start(&plan).await?;
        let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
        let before = load.watch(length).await;
        println!("before: {before}");
        let seen = watch(&field, &mut load, length, ill, store).await?;
        let after = field.leaders_at(others[0]).await?;
        ill.set(&field, store, false);
        let led = led(&store);
        println!("{what} (it led {led} of {} groups): {}", plan.keyspaces.len(), seen.figures);
        if let Some(found) = seen.found {
            println!("its links were found dead after {:.2} s", found.as_secs_f64());
        }
        let found = seen.found.map_or(f64::INFINITY, |found| found.as_secs_f64());
        verdict.at_most(&format!("{what}: seconds until a link was found dead"), found, FOUND_MAX);
        let worst = seen.figures.quantile(1.0).as_secs_f64();
        verdict.at_most(&format!("{what}: the longest wait of a write, s"), worst, FAILOVER_MAX);
        verdict.at_most(&format!("{what}: elections of one group"), terms(&at_first, &after), 1.0);
        verdict.at_most(
            &format!("{what}: held for one lane, MiB"),
            seen.held as f64 / MIB,
            LANE_BYTES_MAX / MIB,
        );
        let healed = load.watch(length).await;
        println!("healed: {healed}");
        verdict.at_least(
            &format!("{what}: throughput healed / before"),
            healed.per_second() / before.per_second(),
            0.95,
        );
        load.end().await;
    }
    Ok(verdict.holds())
}

/// The most terms by which one group went on.
fn terms(before: &Leaders, after: &Leaders) -> f64 {
    let gone_on = |(name, (_, term)): (&String, &(Option<u64>, u64))| {
        after.get(name).map_or(0, |(_, now)| now.saturating_sub(*term))
    };
    before.iter().map(gone_on).max().unwrap_or(0) as f64
}

struct Seen {
    figures: Figures,
    /// When one of the links to or from it was first given up.
    found: Option<Duration>,
    /// The most that one lane of any store held to be sent, and in flight.
    held: u64,
}

async fn watch(
    field: &Field,
    load: &mut Load,
    length: Duration,
    ill: Ill,
    store: usize,
) -> anyhow::Result<Seen> {
    let mut losses = Vec::new();
    for store in 0..STORES {
        losses.push(lost(field, store).await?.0);
    }
    let (mut found, mut held) = (None, 0);
    let _ = load.take();
    let start = Instant::now();
    ill.set(field, store, true);
    while start.elapsed() < length {
        for (store, before) in losses.iter().enumerate() {
            let (lost, holds) = lost(field, store).await?;
            held = held.max(holds);
            if lost > *before && found.is_none() {
                found = Some(start.elapsed());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(Seen { figures: load.take(), found, held })
}

/// How often a store has lost one of its connections, and the most that one lane of it holds.
async fn lost(field: &Field, store: usize) -> anyhow::Result<(u64, u64)> {
    let connections = field.status(store).await?.connections;
    let held = connections.iter().map(|link| link.queued_bytes + link.in_flight_bytes).max();
    Ok((connections.iter().map(|link| link.disconnections).sum(), held.unwrap_or(0)))
}
