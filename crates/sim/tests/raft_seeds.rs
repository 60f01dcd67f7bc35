//! Seeds of the simulation; every failure names the command that replays it. CI runs 2,000 of them in a release build
//! (`pontoon-seeds`), `just soak` as many as time allows.

use std::collections::BTreeSet;

use pontoon_sim::raft::run;

/// The first seeds: debug builds are slow. Among them are twelve with several groups, two of these with hundreds.
const SEEDS: u64 = 48;

#[test]
fn seeds() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let kinds = std::sync::Mutex::new(BTreeSet::new());
    let failures: Vec<String> = std::thread::scope(|scope| {
        let worker = |first: u64| {
            let seeds = (first..=SEEDS).step_by(usize::try_from(threads).expect("small"));
            let outcomes = seeds.map(|seed| (seed, std::panic::catch_unwind(|| run(seed, false))));
            let failures = outcomes.filter_map(|(seed, outcome)| match outcome {
                Ok(Ok(report)) => {
                    kinds.lock().expect("nobody panics with it").extend(report.counts.into_keys());
                    None
                }
                Ok(Err(failure)) => Some(failure.to_string()),
                Err(_) => Some(format!("seed {seed} panicked")),
            });
            failures.collect::<Vec<_>>()
        };
        let workers: Vec<_> = (1..=threads).map(|first| scope.spawn(move || worker(first))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught inside")).collect()
    });
    let kinds = kinds.into_inner().expect("nobody panics with it");
    assert!(failures.is_empty(), "{} of {SEEDS} seeds failed:\n{}", failures.len(), failures.join("\n"));
    let weather = KINDS.into_iter().filter(|kind| !kinds.contains(kind)).collect::<Vec<_>>();
    assert!(weather.is_empty(), "the weather is too good: no {weather:?}");
}

/// What must have happened in some of the seeds.
const KINDS: [&str; 16] = [
    "power cuts",
    "torn records",
    "lost records",
    "doubts settled",
    "hung disks",
    "failed disks",
    "pauses",
    "partitions",
    "flapping links",
    "snapshots installed",
    "compactions",
    "changes of members",
    "joint configurations",
    "transfers",
    "changes of the timer",
    "commands retried",
];

/// Hundreds of groups on a few stores.
#[test]
fn a_crowd() {
    let report = run(CROWD, false).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(report.groups >= 100, "seed {CROWD} has {} groups only", report.groups);
    assert!(report.acknowledged > 100, "{} commands in all", report.acknowledged);
}

/// A seed with more than a hundred groups.
const CROWD: u64 = 19;

/// One seed, run twice, does the same: not only in the end, but event by event.
#[test]
fn one_seed_is_one_story() {
    for seed in [3, 1_000_003, 77] {
        let [once, again] = [(); 2].map(|()| run(seed, true).unwrap_or_else(|failure| panic!("{failure}")));
        assert!(!once.trace.is_empty());
        for (number, (a, b)) in once.trace.iter().zip(&again.trace).enumerate() {
            assert_eq!(a, b, "seed {seed} tells line {number} in two ways");
        }
        assert_eq!(once, again, "seed {seed}");
    }
}

/// Seeds that once found something, and what. They run for ever. (A change of the simulation gives them other stories; what they
/// found is kept by the golden scripts of `pontoon-raft-core`, the explorer's models and the invariants, as told here.)
const STORIES: [(&[u64], &str); 8] = [
    (
        &[31, 88, 199],
        "Without pre-vote, a candidate with an outdated log tried again and again, and each refusal reset the timers of those \
         who could have won: no leader for ever. Script `outdated_candidate`.",
    ),
    (
        &[276, 396, 559, 1345],
        "Small appends in a wide window, with loss and reordering: each late refusal and each late acknowledgement made the \
         leader send the whole window again, until there was nothing else on the network.",
    ),
    (
        &[1421],
        "A command that was cut off one log was reported as overwritten, retried under its id, and then the first one came back \
         from another replica's log and was executed too. Scripts `overwritten`, `overwritten_and_back`.",
    ),
    (
        &[2144, 2527, 2602],
        "A leader wrote the entry that takes its own vote away and crashed before anybody had it: the others could not be \
         elected without its vote, and it did not stand any more. Script `demoted_leader_must_stand`.",
    ),
    (
        &[511_216, 1_009_619],
        "A mistake of the simulation: a leader of term 3 was elected by a vote that was long under way, after the leader of term \
         4 had committed entries of term 1. It may lack them; leader completeness now compares with the term that committed. \
         Model `late-leader`.",
    ),
    (
        &[3_015_085],
        "A mistake of the simulation: a lone voter that loses power before its disk knows of its election may lead the same term \
         again, with another log. Leader completeness forgets elections that nobody else knows of.",
    ),
    (
        &[2_016_411],
        "The busiest run that is still bounded: a window of 256 one-entry appends, sent again to each follower at every heartbeat. \
         The bound on events (`no storm`) is above it.",
    ),
    (
        &[4_341],
        "Named among the seeds that found something in the first sessions; what, was not written down.",
    ),
];

#[test]
fn seeds_with_a_story() {
    for (seeds, story) in STORIES {
        for seed in seeds {
            if let Err(failure) = run(*seed, false) {
                panic!("{failure}\nit once had this story: {story}");
            }
        }
    }
}
