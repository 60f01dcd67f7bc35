//! Power cuts at every point of a recorded run: what was acknowledged is there, nothing is half there.

mod common;

use common::*;
use pontoon_raft_core::types::LogIndex;
use pontoon_storage::GroupWrite;
use pontoon_storage::disk::memory::MemoryDisk;

const GROUPS: u64 = 5;

/// Runs a workload on a recording disk. Returns the model after each batch.
fn record(seed: u64, batches: u64, disk: &MemoryDisk) -> Vec<Model> {
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut models = vec![model.clone()];
    let (store, _) = open_memory(disk, small()).unwrap();
    for n in 1..=batches {
        let batch = model.random_batch(&mut random, GROUPS);
        models.push(model.clone());
        let acknowledged = disk.clone();
        let done = Box::new(move |outcome: Result<(), _>| {
            outcome.unwrap();
            acknowledged.mark(n);
        });
        store.submit(of(batch), done);
        if random.between(0, 4) == 0 {
            put(&store, vec![]).unwrap();
            models.push(model.clone());
        }
    }
    assert!(store.stats().checkpoints > 0);
    models
}

/// What a cut at `at` left: an error text, or `None` if all is well.
fn judge(
    disk: &MemoryDisk,
    models: &[Model],
    at: usize,
    seed: u64,
    acknowledged: &dyn Fn(u64) -> u64,
) -> Option<String> {
    let (cut, mark) = disk.after_power_cut(at, seed);
    let acknowledged = mark.map_or(0, acknowledged);
    let (store, report) = match open_memory(&cut, small()) {
        Ok(opened) => opened,
        Err(e) => return Some(format!("cut {at}: {e}")),
    };
    if report.last_batch < acknowledged {
        return Some(format!("cut {at}: {acknowledged} was acknowledged, {} is there", report.last_batch));
    }
    models[report.last_batch as usize].check(&store);
    // It goes on from here, and comes back.
    put(&store, vec![create(99), append(99, 1, 3, 1, 700)]).unwrap();
    drop(store);
    let (store, again) = open_memory(&cut, small()).unwrap();
    assert_eq!(again.last_batch, report.last_batch + 1);
    assert_eq!(again.doubt, report.doubt, "doubt stays until it is settled");
    assert_eq!(all_entries(&store, 99).len(), 3);
    None
}

/// Marks are the numbers of workload steps; `numbers` turns them into batch numbers.
fn run(seed: u64, batches: u64, unsynced: Option<&str>, cuts: usize) -> Vec<String> {
    let disk = MemoryDisk::recording();
    if let Some(prefix) = unsynced {
        disk.ignore_syncs_of(prefix);
    }
    let mut random = Random(seed);
    let mut model = Model::default();
    // The same random numbers as in `record` tell which batch numbers the steps got.
    let mut numbers = vec![0];
    let mut next = 0;
    for _ in 0..batches {
        model.random_batch(&mut random, GROUPS);
        next += 1;
        numbers.push(next);
        if random.between(0, 4) == 0 {
            next += 1;
        }
    }
    let models = record(seed, batches, &disk);
    let total = disk.recorded();
    (0..cuts)
        .filter_map(|n| {
            let at = if cuts >= total { n } else { random.between(0, total as u64) as usize };
            judge(&disk, &models, at, random.next(), &|step| numbers[step as usize])
        })
        .collect()
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_half_there() {
    for seed in 0..8 {
        let failures = run(seed, 250, None, 250);
        assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    }
}

#[test]
fn the_test_notices_a_journal_that_is_not_synced() {
    assert!(!run(1, 120, Some("journal"), 100).is_empty());
}

#[test]
fn the_test_notices_a_cold_tier_that_is_not_synced() {
    let failures = run(2, 250, Some("COLD"), 100);
    assert!(failures.iter().any(|f| f.contains("cold tier")), "{failures:#?}");
}

/// Batch `n` of a life follows from the model before it and from the number alone.
fn batch(model: &mut Model, life: u64, n: u64) -> Vec<GroupWrite> {
    model.random_batch(&mut Random(life.wrapping_mul(1 << 32).wrapping_add(n)), GROUPS + 1)
}

/// A store whose power is cut again and again: each life begins with what the last one left, in the midst of whatever it
/// was doing.
fn many_lives(seed: u64, lives: u64) -> u64 {
    let mut random = Random(seed);
    let mut disk = MemoryDisk::new();
    let mut models = vec![Model::default()];
    for life in 0..lives {
        disk.record();
        let options = if life % 4 == 0 { small_sled() } else { small() };
        let (store, report) =
            open_memory(&disk, options).unwrap_or_else(|e| panic!("seed {seed}, life {life}: {e}"));
        let last = report.last_batch as usize;
        models.truncate(last + 1);
        models[last].check(&store);
        if report.doubt {
            store.settle_doubt().unwrap();
        }
        let mut model = models[last].clone();
        let end = last as u64 + random.between(5, 90);
        for n in last as u64 + 1..=end {
            let batch = batch(&mut model, seed, n);
            models.push(model.clone());
            let mark = disk.clone();
            let done = Box::new(move |outcome: Result<(), _>| {
                outcome.unwrap();
                mark.mark(n);
            });
            store.submit(of(batch), done);
            if n % 8 == 0 || n == end {
                // Rounds of several batches, and time for the background.
                while store.stats().pending_bytes > 0 {
                    assert_eq!(store.failed(), None, "seed {seed}, life {life}");
                    std::thread::yield_now();
                }
            }
        }
        let total = disk.recorded();
        let at = random.between(total as u64 / 2, total as u64) as usize;
        let (cut, acknowledged) = disk.after_power_cut(at, random.next());
        drop(store);
        let check = cut.copy();
        let (store, report) = open_memory(&check, small())
            .unwrap_or_else(|e| panic!("seed {seed}, life {life}, cut {at}: {e}"));
        let acknowledged = acknowledged.unwrap_or(0);
        assert!(report.last_batch >= acknowledged, "seed {seed}, life {life}: {report:?}, {acknowledged}");
        drop(store);
        disk = cut;
    }
    models.len() as u64
}

/// Found by kill -9 (`crash.rs`, after some 400 kills): a checkpoint with nothing to copy did not wait for the batch that
/// had dropped the last entry of its segment. With that batch lost, the entry was in nobody's hands.
#[test]
fn a_segment_is_kept_until_the_batch_that_dropped_its_last_entry_is_durable() {
    let disk = MemoryDisk::recording();
    let mut options = small();
    options.live_segments_max = 2;
    let (store, _) = open_memory(&disk, options.clone()).unwrap();
    // So long that each fills a segment, and always dropped by the next one.
    let filler = |n: u64| GroupWrite { compact: (n > 1).then(|| meta(n - 1, 1)), ..append(1, n, 1, 1, 9000) };
    put(&store, vec![create(1), create(6), append(6, 1, 1, 1, 10), filler(1)]).unwrap();
    put(&store, vec![append(6, 2, 1, 1, 10), filler(2)]).unwrap();
    put(&store, vec![filler(3)]).unwrap();
    let began = std::time::Instant::now();
    while store.stats().checkpoints < 1 || store.stats().spare_segments < 1 {
        assert!(began.elapsed().as_secs() < 60, "{:?}", store.stats());
        std::thread::yield_now();
    }
    // The second segment has nothing but group 6's entry 2, and sled knows the group as it is now. The batch that drops
    // the entry begins the fourth segment, so that the second is to be emptied, and hangs.
    disk.hang_syncs_of(Some("journal"));
    let drops = GroupWrite { truncate_from: Some(LogIndex(2)), ..write(6) };
    store.submit(of(vec![drops, filler(4)]), Box::new(|_| ()));
    let began = std::time::Instant::now();
    while store.stats().checkpoints < 2 && began.elapsed().as_millis() < 500 {
        std::thread::yield_now();
    }
    for seed in 0..20 {
        let (cut, _) = disk.after_power_cut(disk.recorded(), seed);
        let (store, report) =
            open_memory(&cut, options.clone()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let last = if report.last_batch == 3 { 2 } else { 1 };
        assert_eq!(all_entries(&store, 6).len(), last, "seed {seed}: {report:?}");
    }
    disk.hang_syncs_of(None);
    // It goes on as soon as the batch is durable.
    let began = std::time::Instant::now();
    while store.stats().checkpoints < 2 {
        assert!(began.elapsed().as_secs() < 60, "{:?}", store.stats());
        std::thread::yield_now();
    }
}

#[test]
fn many_power_cuts_in_one_life_after_another() {
    let lives = std::env::var("PONTOON_POWER_LIVES").map_or(12, |n| n.parse().unwrap());
    for seed in 0..6 {
        assert!(many_lives(seed, lives) > 100);
    }
}
