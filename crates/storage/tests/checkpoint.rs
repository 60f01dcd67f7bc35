//! From journal to cold tier, and space given back.

mod common;

use std::path::Path;

use common::*;
use pontoon_raft_core::types::*;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{GroupWrite, LogStore, Options};

fn disk_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|f| {
            let f = f.unwrap();
            if f.file_type().unwrap().is_dir() { disk_bytes(&f.path()) } else { f.metadata().unwrap().len() }
        })
        .sum()
}

fn compact_to(store: &LogStore, group: u64, index: u64) {
    put(store, vec![GroupWrite { compact: Some(meta(index, 1)), ..write(group) }]).unwrap();
}

#[test]
fn idle_groups_do_not_hold_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), small()).unwrap();
    let idle: Vec<_> = (100..160).flat_map(|g| [create(g), append(g, 1, 3, 1, 50)]).collect();
    put(&store, idle).unwrap();
    put(&store, vec![create(1)]).unwrap();
    for n in 0..60 {
        put(&store, vec![append(1, n * 8 + 1, 8, 1, 250)]).unwrap();
        compact_to(&store, 1, n * 8 + 8);
    }
    until_stats(&store, |stats| {
        stats.live_segments <= 4 && stats.checkpoints >= 5 && stats.checkpoint_entries >= 180
    });
    let stats = store.stats();
    assert!(stats.checkpoint_entries < 300, "{stats:?}");
    for g in 100..160 {
        assert_eq!(all_entries(&store, g), (1..4).map(|i| entry(g, i, 1, 50)).collect::<Vec<_>>());
    }
    assert!(store.stats().disk_reads > 0);
    drop(store);
    let (store, report) = LogStore::open(dir.path(), small()).unwrap();
    assert_eq!(report.groups, 61);
    for g in 100..160 {
        assert_eq!(all_entries(&store, g).len(), 3);
        // An idle group wakes up: its log goes on in the journal.
        put(&store, vec![append(g, 4, 1, 2, 50)]).unwrap();
        assert_eq!(all_entries(&store, g).len(), 4);
    }
}

/// How many entries each round of the next test appends.
fn entries_per_round() -> u64 {
    std::env::var("PONTOON_SPACE_ENTRIES").map_or(20_000, |n| n.parse().unwrap())
}

/// A long log lies in the cold tier, and is compacted; wherever the checkpoints are by then, the store opens again. (Its
/// entries were removed while the cold tier still counted them, and the next opening took that for a claim that cannot be:
/// found by the ten rounds below at their full size.)
#[test]
fn a_long_log_that_was_compacted_opens_again_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.live_segments_max = 2;
    options.checkpoint_bytes_per_second = 1 << 30;
    let (mut store, _) = LogStore::open(dir.path(), options.clone()).unwrap();
    put(&store, vec![create(1), create(2)]).unwrap();
    let (mut first, mut entries) = (1, 0);
    let mut fill = |store: &LogStore, rounds: u64| {
        for _ in 0..rounds {
            put(store, vec![append(1, first, 200, 1, 60)]).unwrap();
            first += 200;
            let began = std::time::Instant::now();
            while store.stats().live_segments > 3 {
                assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", store.stats());
                std::thread::yield_now();
            }
        }
        first - 1
    };
    for rounds_after in [1, 3, 4, 5, 7] {
        let last = fill(&store, 100);
        entries = entries.max(store.stats().checkpoint_entries);
        compact_to(&store, 1, last - 10);
        fill(&store, rounds_after);
        store.close();
        store = LogStore::open(dir.path(), options.clone()).expect("it was closed in order").0;
        let kept = all_entries(&store, 1).len() as u64;
        assert_eq!(kept, 10 + 200 * rounds_after, "after {rounds_after} rounds");
        // The next turn begins without a backlog.
        let last = fill(&store, 0);
        compact_to(&store, 1, last);
    }
    assert!(entries > 10_000, "most of it went through sled: {entries}");
}

/// Nothing is ever compacted, and more is written than checkpoints are to move: rounds are held back, and the journal keeps to
/// its bound. (It grew as long as the load lasted.)
#[test]
fn who_writes_more_than_checkpoints_move_is_held_back_and_the_journal_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.segment_bytes = 256 << 10;
    options.live_segments_max = 2;
    options.checkpoint_bytes_per_second = 8 << 20;
    let bound = options.live_segments_max as u64 + 2;
    let (store, _) = LogStore::open(dir.path(), options).unwrap();
    put(&store, vec![create(1)]).unwrap();
    let (mut most, mut beyond) = (0, 0);
    // 24 MiB, which are 96 segments.
    for n in 0..384 {
        put(&store, vec![append(1, n * 64 + 1, 64, 1, 1024)]).unwrap();
        let live = store.stats().live_segments;
        most = most.max(live);
        beyond += u64::from(live > bound);
    }
    assert!(
        most >= bound,
        "it was not written to fast enough to show anything: at most {most} live segments"
    );
    // A checkpoint may be held up by the disk: then rounds are held back further, not at once.
    assert!(most <= 3 * bound, "at most {most} live segments, {beyond} times beyond {bound}");
    assert_eq!(all_entries(&store, 1).len(), 64 * 384);
}

/// `PONTOON_SPACE_ENTRIES=100000 cargo test --release` makes it a million in all.
#[test]
fn ten_times_append_and_compact_stays_bounded_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    // A small journal, so that nearly all goes through sled before it is compacted.
    options.segment_bytes = 256 << 10;
    options.live_segments_max = 2;
    options.checkpoint_bytes_per_second = 1 << 30;
    options.cold_slack_bytes = 24 << 20;
    let (store, _) = LogStore::open(dir.path(), options).unwrap();
    put(&store, vec![create(1), create(2), append(2, 1, 3, 1, 100)]).unwrap();
    let mut sizes = Vec::new();
    let (mut first, per_round) = (1, entries_per_round());
    // However slow the disk is: what is compacted too early does not go through sled.
    let wait_for_checkpoints = || {
        let began = std::time::Instant::now();
        while store.stats().live_segments > 4 {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", store.stats());
            std::thread::yield_now();
        }
    };
    for _ in 0..10 {
        for _ in 0..per_round / 200 {
            put(&store, vec![append(1, first, 200, 1, 60)]).unwrap();
            first += 200;
            wait_for_checkpoints();
        }
        // A few stay, as for a follower that lags.
        compact_to(&store, 1, first - 1 - 10);
        sizes.push(disk_bytes(dir.path()) >> 20);
    }
    // Garbage is removed, and sled rewritten, by the checkpoints that follow. What is left fits the bound of
    // amplification, with the slack.
    let given_back = |stats: &pontoon_storage::Stats| {
        stats.cold_rewrites > 0
            && stats.cold_live_bytes <= 4 << 20
            && stats.cold_disk_bytes <= 8 * stats.cold_live_bytes + (24 << 20)
    };
    let began = std::time::Instant::now();
    while !given_back(&store.stats()) {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", store.stats());
        put(&store, vec![append(1, first, 200, 1, 60)]).unwrap();
        first += 200;
        compact_to(&store, 1, first - 1 - 10);
        wait_for_checkpoints();
    }
    sizes.push(disk_bytes(dir.path()) >> 20);
    let stats = store.stats();
    eprintln!(
        "MiB on disk after each round of {per_round}: {sizes:?}; {} rewrites, {} entries went through sled",
        stats.cold_rewrites, stats.checkpoint_entries
    );
    // Most of it went that way, and it is gone.
    assert!(stats.checkpoint_entries > 5 * per_round, "{stats:?}");
    // Not more in the end than in the middle, plus two segments of sled.
    assert!(sizes[9] <= sizes[4] * 3 / 2 + 16 && sizes[10] <= sizes[4] + 16, "{sizes:?}");
    assert_eq!(all_entries(&store, 1).len(), 10);
    assert_eq!(all_entries(&store, 2).len(), 3);
    store.close();
    let (store, report) = LogStore::open(dir.path(), Options::default()).unwrap();
    assert_eq!((report.groups, report.entries), (2, 13));
    assert_eq!(all_entries(&store, 1).len(), 10);
    // One generation of sled is there, and it is not the first.
    let generations =
        std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let generations: Vec<_> = generations.filter(|name| name.starts_with("cold")).collect();
    assert!(generations.len() == 1 && generations[0] != "cold", "{generations:?}");
}

#[test]
fn a_rewrite_keeps_everything_and_readers_do_not_notice() {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, small()).unwrap();
    put(&store, vec![create(1), create(2), append(2, 1, 40, 1, 60)]).unwrap();
    store.put_note("kept", b"value").unwrap();
    put(&store, vec![create(3), GroupWrite { destroy: true, ..write(3) }]).unwrap();
    let expected: Vec<_> = (1..=40).map(|i| entry(2, i, 1, 60)).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let began = std::time::Instant::now();
            let mut n = 0;
            // How often it is rewritten meanwhile is up to the checkpoint thread; a few times it must be.
            while n < 300 || store.stats().cold_rewrites <= 3 {
                assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", store.stats());
                put(&store, vec![append(1, n * 8 + 1, 8, 1, 500)]).unwrap();
                if n % 20 == 19 {
                    compact_to(&store, 1, n * 8);
                }
                n += 1;
            }
        });
        while !writer.is_finished() {
            assert_eq!(all_entries(&store, 2), expected);
        }
    });
    assert!(store.stats().cold_rewrites > 3, "{:?}", store.stats());
    drop(store);
    let (store, _) = open_memory(&disk, small()).unwrap();
    assert_eq!(all_entries(&store, 2), expected);
    assert_eq!(store.note("kept").as_deref(), Some(&b"value"[..]));
    assert!(store.is_tombstoned(GroupId(3)));
    let cold = pontoon_storage::disk::Disk::list(&disk).unwrap();
    assert_eq!(cold.iter().filter(|name| name.starts_with("COLD")).count(), 1, "{cold:?}");
}

#[test]
fn the_index_is_small_for_busy_and_for_idle_groups() {
    let disk = MemoryDisk::new();
    let mut options = small();
    options.segment_bytes = 1 << 20;
    let (store, _) = open_memory(&disk, options.clone()).unwrap();
    put(&store, vec![create(1)]).unwrap();
    let empty = store.index_bytes();
    let per_entry = |store: &LogStore, live: u64| {
        let bytes = (store.index_bytes() - empty) as f64 / live as f64;
        assert!(bytes <= 24.0, "{bytes} bytes for each of {live} entries");
    };
    // At every size on the way, since a table that doubles is at its worst just behind a power of two.
    for n in 0..700 {
        put(&store, vec![append(1, n * 100 + 1, 100, 1, 0)]).unwrap();
        if n >= 2 {
            per_entry(&store, (n + 1) * 100);
        }
    }
    for left in [50_000, 20_000, 3_000, 1_000] {
        compact_to(&store, 1, 70_000 - left);
        per_entry(&store, left);
    }
    drop(store);

    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, options.clone()).unwrap();
    const IDLE: u64 = 5_000;
    for g in 0..IDLE {
        // Also those that were busy once.
        let count = if g % 10 == 0 { 60 } else { 3 };
        let keep = GroupWrite { compact: (count > 3).then(|| meta(count - 3, 1)), ..write(g + 10) };
        put(&store, vec![create(g + 10), append(g + 10, 1, count, 1, 20), keep]).unwrap();
    }
    put(&store, vec![create(1)]).unwrap();
    let began = std::time::Instant::now();
    let mut next = 1;
    while store.stats().checkpoint_entries < IDLE * 3 {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", store.stats());
        put(&store, vec![append(1, next, 50, 1, 1000)]).unwrap();
        compact_to(&store, 1, next + 49);
        next += 50;
    }
    let idle = |store: &LogStore| store.index_bytes() / IDLE;
    assert!(idle(&store) <= 500, "{} bytes for each idle group", idle(&store));
    drop(store);
    let (store, _) = open_memory(&disk, options).unwrap();
    assert!(idle(&store) <= 500, "{} bytes for each idle group after reopening", idle(&store));
}

#[test]
fn a_backlog_that_is_never_compacted_moves_to_the_cold_tier_and_is_read_from_there() {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, small()).unwrap();
    put(&store, vec![create(1)]).unwrap();
    for n in 0..300 {
        put(&store, vec![append(1, n + 1, 1, 1, 700)]).unwrap();
    }
    let expected: Vec<_> = (1..=300).map(|i| entry(1, i, 1, 700)).collect();
    assert_eq!(all_entries(&store, 1), expected);
    until_stats(&store, |stats| stats.checkpoint_entries > 100);
    // Cut deep into the cold part, and grow again with other entries.
    let cut = GroupWrite { truncate_from: Some(LogIndex(50)), ..append(1, 50, 5, 2, 700) };
    put(&store, vec![cut]).unwrap();
    for n in 55..300 {
        put(&store, vec![append(1, n, 1, 2, 700)]).unwrap();
    }
    let expected: Vec<_> = (1..300).map(|i| entry(1, i, if i < 50 { 1 } else { 2 }, 700)).collect();
    assert_eq!(all_entries(&store, 1), expected);
    drop(store);
    let (store, _) = open_memory(&disk, small()).unwrap();
    assert_eq!(all_entries(&store, 1), expected);
}

#[test]
fn readers_keep_reading_while_segments_are_recycled() {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, small()).unwrap();
    put(&store, vec![create(1), create(2)]).unwrap();
    put(&store, vec![append(2, 1, 40, 1, 60)]).unwrap();
    let expected: Vec<_> = (1..=40).map(|i| entry(2, i, 1, 60)).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..400 {
                put(&store, vec![append(1, n * 4 + 1, 4, 1, 500)]).unwrap();
                compact_to(&store, 1, n * 4 + 4);
            }
        });
        while !writer.is_finished() {
            assert_eq!(all_entries(&store, 2), expected);
        }
    });
    assert!(store.stats().checkpoints > 10);
}
