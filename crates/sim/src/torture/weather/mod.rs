//! Bad weather between real stores on loopback, and what it costs those that have nothing to do with it: ratios and bounds of
//! one run, and exit code 1 where a bound is missed. To be run on a machine that does nothing else.

mod apart;
mod classes;
mod control;
pub(crate) mod field;
mod half_open;
mod hot;
mod hung;
pub(crate) mod load;
mod memory;
mod overhead;
mod proxy;
mod quorum;
mod restart;
mod slow;
mod stopped;
mod storm;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::ClusterArguments;
use load::{Load, Plan};

const MIB: f64 = (1 << 20) as f64;

/// Which test. The numbers are those of the flow control notes.
#[derive(Debug, Args)]
pub(crate) struct WeatherArguments {
    #[command(subcommand)]
    test: Test,
}

#[derive(Debug, Subcommand)]
enum Test {
    /// T1: one follower gets a tenth of what it needs, then it is stopped.
    SlowFollower(LoadArguments),
    /// A follower is stopped under full load: the slowest writes of the others, for each second.
    StoppedFollower(LoadArguments),
    /// T2: the delay of heartbeats while the log lane of a slow link is full.
    Control(ControlArguments),
    /// T3: the same while giant entries cross the link.
    GiantEntries(ControlArguments),
    /// T5: a store comes back to a large backlog in many groups.
    Restart(LoadArguments),
    /// T7: both followers take less than is offered.
    SlowQuorum(LoadArguments),
    /// T10: one follower lags in many groups, and the other one goes.
    ForceFlush(LoadArguments),
    /// T14: one hot group beside others.
    HotGroup(LoadArguments),
    /// T16: links that are dead one way, and peers that take nothing.
    HalfOpen(LoadArguments),
    /// T18: the disk of a store that leads hangs; needs root.
    HungDisk(LoadArguments),
    /// T17: two stores cannot reach each other, and both reach the third.
    Apart(LoadArguments),
    /// T8: a flood of elastic work beside regular work.
    Classes(LoadArguments),
    /// What flow control costs while all is well.
    Overhead(LoadArguments),
}

/// A test with three processes under load.
#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    /// How long each phase lasts.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Keyspaces, each a group of three replicas.
    #[arg(long, default_value_t = 500)]
    groups: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_size: usize,
    /// Which part of the most that the cluster can do is offered, where a fixed rate is.
    #[arg(long, default_value_t = 0.5)]
    share: f64,
    /// What flow control governs (stopped-follower only; the others say themselves).
    #[arg(long, default_value = "elastic")]
    mode: String,
    /// How often the modes are measured in turn, there and back (overhead only).
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// How long load runs before anything is measured.
    #[arg(long, default_value_t = 10)]
    warm_up: u64,
    /// What is written while the store is away (restart only).
    #[arg(long, default_value_t = 1024)]
    backlog_mib: u64,
    /// Keys of each keyspace that are written to.
    #[arg(long, default_value_t = 1000)]
    keys: u64,
}

impl LoadArguments {
    /// Regular writes as fast as they are answered, to nobody yet.
    fn plan(&self) -> Plan {
        Plan {
            addresses: Vec::new(),
            keyspaces: Arc::default(),
            value_bytes: self.value_size,
            elastic: false,
            rate: None,
            keys: self.keys.max(1),
        }
    }

    /// Finds out how much the cluster can do. Returns the rate that is to be offered.
    async fn offered(&self, plan: &Plan) -> anyhow::Result<f64> {
        let mut load = Load::start(&Plan { rate: None, ..plan.clone() }).await?;
        let warm_up = Duration::from_secs(self.seconds.div_ceil(6));
        let _ = load.watch(warm_up).await;
        let most = load.watch(warm_up).await;
        load.end().await;
        println!("the most: {most}");
        Ok((most.per_second() * self.share).max(1.0))
    }
}

/// A test of one link, within this process.
#[derive(Debug, Args)]
pub(crate) struct ControlArguments {
    /// How long the log lane is full.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// What the link carries each way, in bytes a second.
    #[arg(long, default_value_t = 10_000_000)]
    rate: u64,
}

/// What was measured, beside its bound.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    missed: usize,
}

impl Verdict {
    pub(crate) fn at_most(&mut self, what: &str, measured: f64, bound: f64) {
        self.line(what, measured, "at most", bound, measured <= bound);
    }

    pub(crate) fn at_least(&mut self, what: &str, measured: f64, bound: f64) {
        self.line(what, measured, "at least", bound, measured >= bound);
    }

    fn line(&mut self, what: &str, measured: f64, rule: &str, bound: f64, holds: bool) {
        println!("{} {what}: {measured:.3} ({rule} {bound})", if holds { "ok    " } else { "MISSED" });
        self.missed += usize::from(!holds);
    }

    pub(crate) fn holds(&self) -> bool {
        self.missed == 0
    }
}

/// Runs a test; whether all bounds hold.
///
/// # Errors
/// The stores could not be started or driven, so nothing can be said.
pub(crate) async fn run(arguments: &WeatherArguments) -> anyhow::Result<bool> {
    match &arguments.test {
        Test::SlowFollower(arguments) => slow::run(arguments).await,
        Test::StoppedFollower(arguments) => stopped::run(arguments).await,
        Test::Control(arguments) => control::run(arguments, control::Entries::Usual).await,
        Test::GiantEntries(arguments) => control::run(arguments, control::Entries::Giant).await,
        Test::Restart(arguments) => restart::run(arguments).await,
        Test::SlowQuorum(arguments) => quorum::run(arguments).await,
        Test::ForceFlush(arguments) => storm::run(arguments).await,
        Test::HotGroup(arguments) => hot::run(arguments).await,
        Test::HalfOpen(arguments) => half_open::run(arguments).await,
        Test::HungDisk(arguments) => hung::run(arguments).await,
        Test::Apart(arguments) => apart::run(arguments).await,
        Test::Classes(arguments) => classes::run(arguments).await,
        Test::Overhead(arguments) => overhead::run(arguments).await,
    }
}
