//! `cargo bench -p pontoon-raft-core`: what committing an entry costs on three replicas in memory, all of them together, in
//! one thread: commands of 256 bytes, in batches of 1, 16 and 256. *Lockstep* proposes a batch and waits until all three
//! have applied it; *pipelined* proposes a batch each turn. Allocations are told apart: those of the entry itself (its buffer and
//! the count of its copies), those of the host for the entries of a message, and those of the core, which must be none. The same beside raft-rs and openraft in one run:
//! `cargo run --release --manifest-path benches/raft-compare/Cargo.toml`.
//!
//! `PONTOON_BENCH_ENTRIES` sets the entries per figure.
#![expect(clippy::print_stdout, reason = "the table is what it is run for")]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark measures time")]

mod trio;

use std::alloc::System;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use trio::{COMMAND_BYTES, Trio, command};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Each figure is the best of this many: what disturbs a run only makes it slower.
const RUNS: usize = 5;

fn main() {
    let entries = std::env::var("PONTOON_BENCH_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    // What every entry costs before any consensus: its buffer, and the reference count of its first copy.
    let region = Region::new(ALLOCATOR);
    let entry = bytes::Bytes::from(command());
    let copies = [entry.clone(), entry.clone(), entry];
    let own = region.change().allocations;
    drop(copies);
    println!(
        "three replicas in memory, one thread, {COMMAND_BYTES}-byte commands, {entries} entries a run, best of {RUNS}; \
         the entry itself is {own} allocations"
    );
    println!(
        "mode       batch   entries/s   ns/entry   allocations/entry: all   of the messages   of the core"
    );
    for (mode, run) in
        [("lockstep", Trio::lockstep as fn(&mut Trio, u64, u64)), ("pipelined", Trio::pipelined)]
    {
        for batch in [1, 16, 256] {
            let (mut best, mut core_per_entry): (Option<[f64; 3]>, _) = (None, 0.0);
            for _ in 0..RUNS {
                let mut trio = Trio::new();
                run(&mut trio, batch, entries / 10);
                let (region, buffers) = (Region::new(ALLOCATOR), trio.wire_buffers);
                let start = Instant::now();
                run(&mut trio, batch, entries);
                let (elapsed, stats) = (start.elapsed(), region.change());
                #[expect(clippy::cast_precision_loss, reason = "figures for people")]
                let per_entry = |n: u64| n as f64 / (entries / batch * batch) as f64;
                let all = (stats.allocations + stats.reallocations) as u64;
                let messages = trio.wire_buffers - buffers;
                let core = all.saturating_sub(messages + own as u64 * (entries / batch * batch));
                let ns = per_entry(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
                if best.is_none_or(|best| ns < best[0]) {
                    best = Some([ns, per_entry(all), per_entry(messages)]);
                    core_per_entry = per_entry(core);
                }
            }
            if let Some([ns, all, messages]) = best {
                let per_second = 1e9 / ns;
                println!(
                    "{mode:<10} {batch:>5} {per_second:>11.0} {ns:>10.0} {all:>24.4} {messages:>17.4} {core_per_entry:>13.4}"
                );
            }
        }
    }
}
