//! Power cuts under the real sled: a layer over a real directory drops, at any moment, any part of what was not synced.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::power::PowerDisk;
use common::*;
use pontoon_storage::{LogStore, OpenError, Options};
use tempfile::TempDir;

const GROUPS: u64 = 5;

/// A directory as a power cut left it.
struct Cut {
    dir: TempDir,
    acknowledged: u64,
}

/// Writes `batches` batches while the power is cut again and again, each time in a copy. Syncs of `left_out` are not
/// carried out once the store is open.
fn record(
    seed: u64,
    batches: u64,
    cuts: u64,
    left_out: Option<&str>,
    options: &Options,
) -> (Vec<Model>, Vec<Cut>) {
    let dir = memory_dir();
    let disk = PowerDisk::new(dir.path());
    let (store, _) = LogStore::open_on(Arc::new(disk.clone()), options.clone()).unwrap();
    if let Some(prefix) = left_out {
        disk.ignore_syncs_of(prefix);
    }
    let acknowledged = Arc::new(AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut models = vec![model.clone()];
    let found = std::thread::scope(|scope| {
        let (acknowledged, disk, over) = (&acknowledged, &disk, &over);
        let cutter = scope.spawn(move || {
            let mut random = Random(!seed);
            let mut found = Vec::new();
            let mut next = disk.syncs();
            while !over.load(Ordering::SeqCst) && (found.len() as u64) < cuts {
                // Counted in syncs and not in time, so that a busy machine has its cuts as well.
                if disk.syncs() < next {
                    std::thread::yield_now();
                    continue;
                }
                let dir = memory_dir();
                let seed = random.next();
                let acknowledged = disk.cut(dir.path(), seed, || acknowledged.load(Ordering::SeqCst));
                found.push(Cut { dir, acknowledged });
                next = disk.syncs() + random.between(1, batches / cuts.max(1));
            }
            found
        });
        for n in 1..=batches {
            let batch = model.random_batch(&mut random, GROUPS);
            models.push(model.clone());
            let acknowledged = Arc::clone(acknowledged);
            let done = move |outcome: Result<(), _>| {
                outcome.unwrap();
                acknowledged.store(n, Ordering::SeqCst);
            };
            store.submit(of(batch), Box::new(done));
            let began = Instant::now();
            while acknowledged_is_behind(&store) {
                assert_eq!(store.failed(), None, "seed {seed}");
                assert!(began.elapsed() < Duration::from_secs(60));
                std::thread::yield_now();
            }
        }
        store.clone().close();
        over.store(true, Ordering::SeqCst);
        cutter.join().unwrap()
    });
    assert!(store.stats().checkpoints > 0, "no checkpoint was reached");
    (models, found)
}

/// A few batches may be on their way.
fn acknowledged_is_behind(store: &LogStore) -> bool {
    store.stats().pending_bytes > 20_000
}

/// What is wrong with it, if something is.
fn judge(cut: &Cut, models: &[Model], options: &Options) -> Option<String> {
    let told = |e: OpenError| format!("{} acknowledged, refused: {e}", cut.acknowledged);
    let (store, report) = match LogStore::open(cut.dir.path(), options.clone()) {
        Ok(opened) => opened,
        Err(e) => return Some(told(e)),
    };
    if report.last_batch < cut.acknowledged {
        return Some(format!("{} acknowledged, {} there", cut.acknowledged, report.last_batch));
    }
    models[report.last_batch as usize].check(&store);
    put(&store, vec![create(99), append(99, 1, 3, 1, 700)]).unwrap();
    drop(store);
    let (store, again) = LogStore::open(cut.dir.path(), options.clone()).unwrap();
    assert_eq!(again.last_batch, report.last_batch + 1);
    assert_eq!(all_entries(&store, 99).len(), 3);
    None
}

fn run(seeds: std::ops::Range<u64>, left_out: Option<&str>, options: &Options) -> (u64, Vec<String>) {
    let (mut cuts, mut failures) = (0, Vec::new());
    for seed in seeds {
        let (models, found) = record(seed, 250, 12, left_out, options);
        for cut in &found {
            cuts += 1;
            failures.extend(judge(cut, &models, options).map(|what| format!("seed {seed}: {what}")));
        }
    }
    (cuts, failures)
}

fn seeds() -> u64 {
    std::env::var("PONTOON_POWER_SEEDS").map_or(3, |n| n.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_with_sled_underneath() {
    let (cuts, failures) = run(0..seeds(), None, &small_sled());
    assert!(failures.is_empty(), "{} of {cuts}: {failures:#?}", failures.len());
    // The same while sled is written anew after each checkpoint.
    let (more, failures) = run(100..101 + seeds() / 2, None, &small());
    assert!(failures.is_empty(), "{} of {more}: {failures:#?}", failures.len());
    eprintln!("{} power cuts", cuts + more);
    assert!(cuts + more > 20, "{cuts} and {more} cuts");
}

#[test]
fn the_same_test_fails_without_the_sync_of_sleds_file() {
    let (cuts, failures) = run(0..2, Some("cold"), &small_sled());
    let ours = failures.iter().filter(|f| f.contains("cold tier")).count();
    assert!(ours > 0, "{cuts} cuts: {failures:#?}");
}

#[test]
fn the_same_test_fails_without_the_sync_of_the_journal() {
    let (cuts, failures) = run(0..2, Some("journal"), &small_sled());
    assert!(!failures.is_empty(), "{cuts} cuts");
}
