//! Runs seeds of the simulation, for a while or a given number of them.
#![allow(clippy::print_stdout, reason = "a command line program reports on standard output")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use pontoon_sim::raft::{Totals, run};

/// Lets many groups live through bad weather, one seed after the other, and ends at the first that breaks a property.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many seeds; without it and without --seconds: 2000.
    #[arg(long)]
    seeds: Option<u64>,
    /// How long.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many at once; as many as there are cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Shows what happened before a failure.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let count = match (arguments.seeds, arguments.seconds) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => u64::MAX - arguments.first,
        (None, None) => 2_000,
    };
    let end = arguments.seconds.map(|seconds| began + Duration::from_secs(seconds));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(0);
    let state = Mutex::new((Totals::default(), 0u64));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                loop {
                    let failed = state.lock().is_ok_and(|state| state.1 > 0);
                    if (failed && !arguments.keep_going) || end.is_some_and(|end| Instant::now() >= end) {
                        return;
                    }
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= count {
                        return;
                    }
                    let seed = arguments.first + offset;
                    let outcome = std::panic::catch_unwind(|| run(seed, arguments.trace));
                    let Ok(mut state) = state.lock() else { return };
                    match outcome {
                        Ok(Ok(report)) => state.0.add(&report),
                        Ok(Err(failure)) => {
                            state.1 += 1;
                            for line in &failure.trace {
                                println!("{line}");
                            }
                            println!("{failure}");
                        }
                        Err(_) => {
                            state.1 += 1;
                            println!("seed {seed} broke \"no panic\"\nreplay: pontoon-seeds --first {seed} --seeds 1 --trace");
                        }
                    }
                }
            });
        }
    });
    let (totals, failures) = state.into_inner().unwrap_or_default();
    println!("{totals}, {failures} failures ({:.0} s)", began.elapsed().as_secs_f64());
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
