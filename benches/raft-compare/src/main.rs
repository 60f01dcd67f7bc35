//! Pontoon's Raft core beside raft-rs 0.7 and openraft 0.9, in one run: three replicas in memory, 256-byte commands.
//!
//! - `pontoon` and `raft-rs` run in one thread, with the same loop: take what arrived, then do what is to do. Both keep their
//!   logs in memory and cut them every 20,000 entries; both have pre-vote and check-quorum on; raft-rs batches its appends.
//! - `openraft` is not sans-IO: three nodes on a runtime of two threads, function calls for a network. "Lockstep" waits for
//!   each batch of writes; "pipelined" keeps eight batches under way. Its writes are done when the leader has applied them.
//!
//! Pontoon's core proves more than the others' on the way: it holds messages back until what they claim is durable. Nothing
//! is switched off for the comparison.

mod open_raft;
mod raft_rs;
#[path = "../../../crates/raft-core/benches/trio/mod.rs"]
mod trio;

use std::alloc::System;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The libraries take turns this many times; the best of each counts.
const RUNS: usize = 5;

/// One measured run: nanoseconds and allocations per entry.
fn measure(batch: u64, entries: u64, mut run: impl FnMut(u64, u64)) -> (f64, f64) {
    run(batch, entries / 10);
    let region = Region::new(ALLOCATOR);
    let start = Instant::now();
    run(batch, entries);
    let (elapsed, stats) = (start.elapsed(), region.change());
    let count = (entries / batch * batch) as f64;
    (elapsed.as_secs_f64() * 1e9 / count, (stats.allocations + stats.reallocations) as f64 / count)
}

fn main() {
    let entries: u64 =
        std::env::var("PONTOON_BENCH_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    println!(
        "three replicas in memory, {}-byte commands, {entries} entries a run, best of {RUNS}; an entry itself is 2 allocations",
        trio::COMMAND_BYTES
    );
    println!("library   mode       batch   entries/s   ns/entry   allocations/entry   pontoon is");
    for pipelined in [false, true] {
        for batch in [1, 16, 256] {
            let mut best = [(f64::MAX, 0.0); 3];
            for _ in 0..RUNS {
                let mut ours = trio::Trio::new();
                let mut theirs = raft_rs::Trio::new();
                let figures = if pipelined {
                    [
                        measure(batch, entries, |b, n| ours.pipelined(b, n)),
                        measure(batch, entries, |b, n| theirs.pipelined(b, n)),
                    ]
                } else {
                    [
                        measure(batch, entries, |b, n| ours.lockstep(b, n)),
                        measure(batch, entries, |b, n| theirs.lockstep(b, n)),
                    ]
                };
                for (best, figure) in best.iter_mut().zip(figures) {
                    if figure.0 < best.0 {
                        *best = figure;
                    }
                }
            }
            // Much slower per entry: fewer entries, once.
            let open = open_raft::Trio::new();
            let count = (entries / 10).max(batch * 20);
            best[2] = measure(batch, count, |b, n| open.run(b, n, if pipelined { 8 } else { 1 }));
            let mode = if pipelined { "pipelined" } else { "lockstep" };
            for (name, (ns, allocations)) in ["pontoon", "raft-rs", "openraft"].into_iter().zip(best) {
                let ratio = if name == "pontoon" { String::new() } else { format!("{:.2} x as fast", ns / best[0].0) };
                println!("{name:<9} {mode:<10} {batch:>5} {:>11.0} {ns:>10.0} {allocations:>19.3}   {ratio}", 1e9 / ns);
            }
        }
    }
}
