//! `pontoon bench`: load over the etcd API, and how it went.
//!
//! It speaks nothing but etcd's own API (unless `--keyspaces` asks for Pontoon's), so the same command
//! measures etcd. The load shares the machine with what it measures more often than not: it builds keys and
//! values once, uses one thread, and keeps one histogram per thread and kind of request.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Global;
use super::output::{note, table};
use crate::config::units;
use load::Outcome;

mod load;
mod material;
mod preload;
mod watch;
mod wire;

/// Percent of reads in `mixed` unless told otherwise.
const READS_DEFAULT: u8 = 50;

/// Longest latency that is told apart, in microseconds: above any `--timeout` that makes sense.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What to load with.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    #[command(flatten)]
    Requests(RequestCommand),
    /// Write at a steady rate, without watchers and then with many, and see when and whether each hears of it
    Watch(watch::WatchArgs),
}

/// Loads of requests that are answered.
#[derive(Debug, Subcommand)]
pub(crate) enum RequestCommand {
    /// Write random keys
    Put(BenchArgs),
    /// Read random keys, which are written first if they are not there
    Get {
        #[command(flatten)]
        reads: ReadArgs,
        #[command(flatten)]
        common: BenchArgs,
    },
    /// Read and write random keys
    Mixed {
        /// Percent of the requests that read
        #[arg(long, value_name = "PERCENT", default_value_t = READS_DEFAULT,
              value_parser = clap::value_parser!(u8).range(0..=100))]
        reads: u8,
        #[command(flatten)]
        read_args: ReadArgs,
        #[command(flatten)]
        common: BenchArgs,
    },
}

/// Flags of loads that read.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReadArgs {
    /// Read what the asked store has, which may be old, instead of the latest
    #[arg(long)]
    serializable: bool,
}

/// Flags of all loads.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// Clients: each has one request in flight
    #[arg(long, value_name = "C", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,

    /// Connections, spread over the endpoints in turn and shared by the clients [default: one per endpoint]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: Option<u32>,

    /// Bytes in each value; they do not compress
    #[arg(long, value_name = "SIZE", default_value = "256", value_parser = value_size)]
    value_size: usize,

    /// How long to measure, after the warm-up
    #[arg(long, value_name = "D", default_value = "10s", value_parser = units::positive_duration)]
    duration: Duration,

    /// How long to load before measuring
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::duration)]
    warm_up: Duration,

    /// How many different keys, over all keyspaces
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,

    /// Spread the requests over keyspaces bench-0 to bench-(K-1), which are made if they do not exist; 0:
    /// name no keyspace
    #[arg(long, value_name = "K", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100_000))]
    keyspaces: u32,

    /// Start this many requests per second, whether or not earlier ones were answered in time, and count
    /// latency from when each should have started [default: each client sends its next request when the last
    /// is answered]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,

    /// Threads that load; more than one only where the load itself is the bottleneck
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,

    /// Where the choice of keys begins; the same seed, the same keys
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

fn value_size(text: &str) -> Result<usize, String> {
    const MAX: u64 = 1 << 20;
    match units::size(text)? {
        size if size <= MAX => usize::try_from(size).map_err(|error| error.to_string()),
        _ => Err("a value has at most 1MiB, so that its request stays below etcd's limit of 1.5 MiB".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.1 => Ok(rate),
        _ => Err("a rate is a number of requests per second, at least 0.1".into()),
    }
}

/// A load, completely described.
#[derive(Clone, Debug)]
struct Load {
    op: &'static str,
    /// 0 to 100.
    reads_percent: u8,
    serializable: bool,
    connections: u32,
    args: BenchArgs,
}

impl Load {
    fn new(command: RequestCommand, endpoints: usize) -> Self {
        let (op, reads_percent, serializable, args) = match command {
            RequestCommand::Put(args) => ("put", 0, false, args),
            RequestCommand::Get { reads, common } => ("get", 100, reads.serializable, common),
            RequestCommand::Mixed { reads, read_args, common } => {
                ("mixed", reads, read_args.serializable, common)
            }
        };
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX);
        // More connections than clients would idle.
        let connections = args.connections.unwrap_or(endpoints).min(args.clients);
        Self { op, reads_percent, serializable, connections, args }
    }
}

/// What is told about one kind of request.
#[derive(Serialize)]
struct Figures {
    requests: u64,
    ops_per_s: f64,
    mean_us: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

impl Figures {
    fn new(completed: u64, latency_us: &Histogram<u64>, duration: Duration) -> Self {
        Self {
            requests: completed,
            ops_per_s: (completed as f64 / duration.as_secs_f64() * 10.0).round() / 10.0,
            mean_us: (latency_us.mean() * 10.0).round() / 10.0,
            p50_us: latency_us.value_at_quantile(0.5),
            p99_us: latency_us.value_at_quantile(0.99),
            p999_us: latency_us.value_at_quantile(0.999),
            max_us: latency_us.max(),
        }
    }
}

#[derive(Serialize)]
struct Report {
    op: &'static str,
    endpoints: Vec<String>,
    clients: u32,
    connections: u32,
    keyspaces: u32,
    keys: u32,
    value_size: usize,
    duration_s: f64,
    rate: Option<f64>,
    errors: u64,
    /// The errors by their text.
    error_kinds: BTreeMap<String, u64>,
    #[serde(flatten)]
    all: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    get: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    put: Option<Figures>,
}

impl Report {
    fn new(load: &Load, global: &Global, outcome: &Outcome) -> anyhow::Result<Self> {
        let duration = load.args.duration;
        let mut latency_us = outcome.gets.latency_us.clone();
        latency_us.add(&outcome.puts.latency_us)?;
        let part = |side: &load::Side| {
            (load.op == "mixed").then(|| Figures::new(side.completed, &side.latency_us, duration))
        };
        Ok(Self {
            op: load.op,
            endpoints: global.endpoints.iter().map(ToString::to_string).collect(),
            clients: load.args.clients,
            connections: load.connections,
            keyspaces: load.args.keyspaces,
            keys: load.args.keys,
            value_size: load.args.value_size,
            duration_s: duration.as_secs_f64(),
            rate: load.args.rate,
            errors: outcome.errors.values().sum(),
            error_kinds: outcome.errors.clone(),
            all: Figures::new(outcome.gets.completed + outcome.puts.completed, &latency_us, duration),
            get: part(&outcome.gets),
            put: part(&outcome.puts),
        })
    }

    fn table(&self) -> String {
        let row = |op: &str, figures: &Figures, errors: String| {
            [
                op.to_owned(),
                self.clients.to_string(),
                self.connections.to_string(),
                figures.requests.to_string(),
                errors,
                format!("{:.1}", figures.ops_per_s),
                millis(figures.p50_us),
                millis(figures.p99_us),
                millis(figures.p999_us),
                millis(figures.max_us),
            ]
        };
        let mut rows = vec![row(self.op, &self.all, self.errors.to_string())];
        rows.extend(self.get.as_ref().map(|figures| row("  get", figures, "-".into())));
        rows.extend(self.put.as_ref().map(|figures| row("  put", figures, "-".into())));
        table(
            &[
                "load",
                "clients>",
                "connections>",
                "requests>",
                "errors>",
                "ops/s>",
                "p50>",
                "p99>",
                "p99.9>",
                "max>",
            ],
            rows,
        )
    }
}

fn millis(us: u64) -> String {
    format!("{:.2}ms", us as f64 / 1000.0)
}

/// Loads, measures and reports.
pub(crate) fn run(command: BenchCommand, global: &Global) -> anyhow::Result<ExitCode> {
    let load = match command {
        BenchCommand::Requests(command) => Load::new(command, global.endpoints.len()),
        BenchCommand::Watch(args) => return watch::run(&args, global),
    };
    preload::run(&load, global)?;
    let outcome = load::run(&load, global)?;
    let report = Report::new(&load, global, &outcome)?;
    for (error, count) in &report.error_kinds {
        note(&format!("{count} times: {error}"));
    }
    if report.all.requests == 0 {
        bail!(
            "no request was answered within {:?}; the reasons are above, if there were any; check --endpoints",
            load.args.duration
        );
    }
    global.output.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}
