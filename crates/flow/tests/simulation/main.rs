//! Groups, followers and a bad network around the real controllers, pools and trackers: research tests T11, T12, T13, T15.
//!
//! After every event everything that is held must be accounted for ([`pontoon_flow::check`]); in the end, when nothing is lost
//! any more, all commands begin, all followers catch up, and all pools are full again while their leaders still lead. A failure
//! names its seed: `PONTOON_FLOW_FIRST=seed PONTOON_FLOW_SEEDS=1 cargo test -p pontoon-flow --test simulation`.
#![allow(clippy::print_stdout, reason = "how much was played is worth a line")]

mod group;
mod rng;
mod world;

use rng::Rng;
use world::{Profile, World};

/// What the continuous build runs; `just soak-flow` runs the lot.
const SEEDS: u64 = 60;
const EVENTS: u64 = 4_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn run(name: &str, part: u64, profile: impl Fn(&mut Rng) -> Profile) {
    let first = number("PONTOON_FLOW_FIRST", 1);
    let seeds = number("PONTOON_FLOW_SEEDS", SEEDS * part / 100);
    let events = number("PONTOON_FLOW_EVENTS", EVENTS);
    let mut totals = world::Totals::default();
    for seed in first..first + seeds {
        let mut rng = Rng::new(seed);
        let profile = profile(&mut rng);
        let mut world = World::new(rng, profile);
        for event in 0..events {
            if let Err(violation) = world.step() {
                panic!("{name}: seed {seed}, event {event}: {violation}");
            }
        }
        if let Err(stuck) = world.heal() {
            panic!("{name}: seed {seed}, after healing: {stuck}");
        }
        totals.add(&world.totals);
    }
    println!("{name}: {seeds} seeds of {events} events: {totals:?}");
    totals.expect_all(seeds * events);
}

/// T11: crashes, loss, duplicates, reordering, leaders that come and go, members that come and go, joint configurations,
/// snapshots, truncation, destruction, other limits and modes.
#[test]
fn everything_that_is_held_is_accounted_for() {
    run("conservation", 100, |rng| Profile {
        loss: rng.between(0, 200),
        vector_loss: rng.between(0, 300),
        duplicates: rng.between(0, 200),
        upheaval: rng.between(1, 30),
        replay: 50,
    });
}

/// T12: half of all reports are lost, and streams break; what is held comes back all the same.
#[test]
fn lost_reports_cost_no_tokens() {
    run("lost reports", 50, |_| Profile {
        loss: 100,
        vector_loss: 500,
        duplicates: 50,
        upheaval: 5,
        replay: 0,
    });
}

/// T13: reports of older terms, and of replicas that left, come again and again; the world checks that none of them moves a
/// token.
#[test]
fn stale_reports_move_nothing() {
    run("stale reports", 50, |_| Profile {
        loss: 20,
        vector_loss: 0,
        duplicates: 300,
        upheaval: 20,
        replay: 400,
    });
}
