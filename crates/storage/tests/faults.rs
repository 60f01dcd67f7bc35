//! A disk that fails, fills up or hangs.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::*;
use pontoon_raft_core::types::*;
use pontoon_storage::disk::Disk;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{GroupWrite, LogStore, Options, Space};

fn store_with_spare(options: Options) -> (MemoryDisk, LogStore) {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, options).unwrap();
    until("a spare", || store.stats().spare_segments > 0);
    put(&store, vec![create(1), append(1, 1, 3, 1, 50)]).unwrap();
    (disk, store)
}

#[test]
fn a_failing_sync_is_final() {
    for fail in [MemoryDisk::fail_syncs_after, MemoryDisk::fail_writes_after] {
        let (disk, store) = store_with_spare(small());
        fail(&disk, 0);
        let first = put(&store, vec![append(1, 4, 1, 1, 50)]).unwrap_err();
        assert!(first.reason.contains("injected") && first.reason.contains("journal"), "{first}");
        assert!(store.stats().failed.is_some());
        fail(&disk, u64::MAX); // well again, and still not believed
        assert_eq!(put(&store, vec![append(1, 5, 1, 1, 50)]), Err(first.clone()));
        assert!(store.put_note("a", b"b").is_err());
        assert_eq!(store.failed(), Some(first));
        assert_eq!(store.stats().rounds, 1, "no second try");
        drop(store);
        // Entry 4 was never acknowledged: it may be there or not.
        let (store, _) = open_memory(&disk, small()).unwrap();
        assert!(matches!(store.group(GroupId(1)).unwrap().last_index.0, 3 | 4));
        put(&store, vec![GroupWrite { truncate_from: Some(LogIndex(4)), ..append(1, 4, 1, 2, 50) }]).unwrap();
    }
}

#[test]
fn every_failing_operation_ends_in_a_store_that_recovers() {
    for n in 0..150 {
        for fail in [MemoryDisk::fail_syncs_after, MemoryDisk::fail_writes_after] {
            let disk = MemoryDisk::new();
            let (store, _) = open_memory(&disk, small()).unwrap();
            let mut random = Random(n);
            let mut model = Model::default();
            let mut models = vec![model.clone()];
            fail(&disk, n);
            let mut acknowledged = 0;
            for _ in 0..120 {
                let batch = model.random_batch(&mut random, 4);
                models.push(model.clone());
                match put(&store, batch) {
                    Ok(()) => acknowledged += 1,
                    Err(_) => break,
                }
            }
            drop(store);
            fail(&disk, u64::MAX);
            let (store, report) = open_memory(&disk, small()).unwrap();
            assert!(report.last_batch >= acknowledged);
            models[report.last_batch as usize].check(&store);
        }
    }
}

#[test]
fn a_full_disk_is_told_before_the_log_is_in_danger_and_recovers() {
    let (disk, store) = store_with_spare(small());
    disk.set_capacity(Some(40 << 10));
    let mut index = 3;
    let mut append_some = |n: u64| {
        for _ in 0..n {
            index += 1;
            put(&store, vec![append(1, index, 1, 1, 1000)]).unwrap();
        }
    };
    append_some(14);
    until("space_low", || store.space() != Space::Enough);
    assert!(
        store.no_space().is_some_and(|told| told.to_string().starts_with("no space on the file system of"))
    );
    append_some(2); // the segment that lay ready still takes writes
    disk.set_capacity(None);
    until("room again", || store.space() == Space::Enough);
    append_some(60);
    assert_eq!(store.stats().failed, None);
}

/// Others fill disks, too: nobody writes to the store, and it notices all the same.
#[test]
fn a_disk_that_others_fill_is_noticed() {
    let mut options = small();
    options.space_reserve_bytes = 64 << 10;
    let (disk, store) = store_with_spare(options);
    let used: u64 = Disk::list(&disk).unwrap().iter().map(|name| disk.read(name).unwrap().len() as u64).sum();
    assert_eq!(store.space(), Space::Enough);
    disk.set_capacity(Some(used + (50 << 10)));
    until("less room than the reserve", || store.space() == Space::Low);
    assert!(store.stats().space_low);
    disk.set_capacity(Some(used + (20 << 10)));
    until("half of the reserve is gone", || store.space() == Space::AlmostNone);
    // As much as the reserve is not enough for the way back.
    disk.set_capacity(Some(used + (70 << 10)));
    until("a little more room", || store.space() == Space::Low);
    disk.set_capacity(Some(used + (90 << 10)));
    until("room again", || store.space() == Space::Enough);
}

#[test]
fn a_full_disk_fails_the_write_only_when_nothing_is_left() {
    let (disk, store) = store_with_spare(small());
    disk.set_capacity(Some(0));
    let mut index = 3;
    let failed = loop {
        index += 1;
        if let Err(failed) = put(&store, vec![append(1, index, 1, 1, 1000)]) {
            break failed;
        }
    };
    assert!(index > 16, "the first segment and the spare were used");
    assert!(failed.reason.contains("no journal segment is left"), "{failed}");
    let last = index - 1;
    drop(store);
    disk.set_capacity(None);
    let (store, report) = open_memory(&disk, small()).unwrap();
    assert!(!report.doubt);
    assert_eq!(store.group(GroupId(1)).unwrap().last_index, LogIndex(last));
}

#[test]
fn readers_and_submitters_do_not_wait_for_a_hanging_disk() {
    let (disk, store) = store_with_spare(small());
    disk.hang(true);
    let (sender, receiver) = mpsc::channel();
    for i in 4..20 {
        let sender = sender.clone();
        store.submit(of(vec![append(1, i, 1, 1, 50)]), Box::new(move |o| sender.send(o).unwrap()));
    }
    assert_eq!(all_entries(&store, 1).len(), 19);
    until("the round is seen to hang", || store.sync_pending_micros() > 1000);
    assert!(store.stats().pending_bytes > 0);
    assert!(receiver.try_recv().is_err());
    disk.hang(false);
    for _ in 4..20 {
        receiver.recv().unwrap().unwrap();
    }
    until("the round is over", || store.sync_pending_micros() == 0);
}

/// The system may take any part of a write; the rest has to follow.
#[test]
fn short_writes_are_continued() {
    for bytes_max in [61, 512, 4096] {
        let disk = MemoryDisk::new();
        disk.set_write_bytes_max(Some(bytes_max));
        let (store, _) = open_memory(&disk, small()).unwrap();
        let mut random = Random(bytes_max as u64);
        let mut model = Model::default();
        for _ in 0..150 {
            put(&store, model.random_batch(&mut random, 4)).unwrap();
        }
        assert!(store.stats().checkpoints > 0);
        drop(store);
        let (store, report) = open_memory(&disk, small()).unwrap();
        assert_eq!(report.last_batch, 150);
        model.check(&store);
    }
}

#[test]
fn a_sync_that_hangs_ten_seconds_is_told_and_outlived() {
    let (disk, store) = store_with_spare(small());
    disk.hang(true);
    let (sender, receiver) = mpsc::channel();
    store.submit(of(vec![append(1, 4, 1, 1, 50)]), Box::new(move |o| sender.send(o).unwrap()));
    let ten = Duration::from_secs(10);
    assert_eq!(receiver.recv_timeout(ten), Err(mpsc::RecvTimeoutError::Timeout), "nothing is acknowledged");
    assert!(store.sync_pending_micros() >= 9_000_000, "the host is told, and can give leaderships away");
    assert_eq!(all_entries(&store, 1).len(), 4, "readers go on");
    assert_eq!(store.failed(), None);
    disk.hang(false);
    receiver.recv().unwrap().unwrap();
    until("the round is over", || store.sync_pending_micros() == 0);
    put(&store, vec![append(1, 5, 1, 1, 50)]).unwrap();
    assert!(store.stats().sync_micros_max >= 9_000_000);
}

/// Whatever is left on the disk when it fills up: the store goes on, or says what has failed; all that it acknowledged
/// is there when there is room again.
#[test]
fn a_disk_that_fills_at_any_point_loses_nothing() {
    let mut outcomes = std::collections::BTreeMap::new();
    for n in 0..20 {
        let disk = MemoryDisk::new();
        let mut options = small();
        options.space_reserve_bytes = if n % 2 == 0 { 0 } else { 64 << 10 };
        let (store, _) = open_memory(&disk, options.clone()).unwrap();
        disk.set_capacity(Some((40 << 10) + n * (21 << 10)));
        let mut random = Random(n);
        let mut model = Model::default();
        let mut models = vec![model.clone()];
        let mut acknowledged = 0;
        let mut outcome = "went on";
        for _ in 0..250 {
            let batch = model.random_batch(&mut random, 4);
            models.push(model.clone());
            match put(&store, batch) {
                Ok(()) => acknowledged += 1,
                Err(e) => {
                    let told = ["no journal segment is left", "no space left", "StorageFull"];
                    assert!(told.iter().any(|words| e.reason.contains(words)), "{e}");
                    outcome = "failed, and said so";
                    break;
                }
            }
        }
        if store.space() != Space::Enough && outcome == "went on" {
            outcome = "went on, short of room";
        }
        *outcomes.entry(outcome).or_insert(0) += 1;
        disk.set_capacity(None);
        // A look at the room takes up to a second, so not in every round.
        if store.failed().is_none() && n % 4 == 0 {
            until("room again", || store.space() == Space::Enough);
        }
        drop(store);
        let (store, report) = open_memory(&disk, options).unwrap();
        assert!(report.last_batch >= acknowledged, "{report:?}");
        models[report.last_batch as usize].check(&store);
    }
    eprintln!("{outcomes:?}");
    assert!(outcomes.len() > 1, "{outcomes:?}");
}

/// Run by `just small-disk`, which mounts a real file system of 128 MiB: sled meets a full disk as well there.
#[test]
#[ignore = "needs PONTOON_SMALL_DISK, a directory on a small file system"]
fn on_a_small_real_file_system() {
    let base = std::env::var("PONTOON_SMALL_DISK").expect("PONTOON_SMALL_DISK is not set");
    let dir = tempfile::tempdir_in(&base).unwrap();
    let mut options = Options::default();
    options.segment_bytes = 1 << 20;
    options.live_segments_max = 4;
    options.space_reserve_bytes = 12 << 20;
    let (store, _) = LogStore::open(dir.path(), options.clone()).unwrap();
    put(&store, vec![create(1), create(2)]).unwrap();
    let mut index = 0;
    let mut append_some = |store: &LogStore, n: u64| -> Result<(), pontoon_storage::StoreFailed> {
        for _ in 0..n {
            // Group 1 is never compacted: its entries go to sled.
            put(store, vec![append(1, index + 1, 4, 1, 1000)])?;
            index += 4;
        }
        Ok(())
    };
    append_some(&store, 3000).unwrap();
    until("a checkpoint", || store.stats().checkpoint_entries > 0);
    // Somebody else fills the disk up to the reserve: told in time, writes and reads go on.
    let ballast = std::path::Path::new(&base).join("ballast");
    let fill = |leave: u64| {
        use std::io::Write;
        let mut file = std::fs::File::options().append(true).create(true).open(&ballast).unwrap();
        let piece = vec![7; 64 << 10];
        while free(&base) > leave && file.write_all(&piece).is_ok() {}
        let _ = file.sync_all();
    };
    fill(11 << 20);
    until("less room than the reserve", || store.space() != Space::Enough);
    append_some(&store, 50).unwrap();
    assert_eq!(store.failed(), None);
    std::fs::remove_file(&ballast).unwrap();
    until("room again, by itself", || store.space() == Space::Enough);
    append_some(&store, 2000).unwrap();
    // Nothing at all is left.
    fill(0);
    let failed = loop {
        if let Err(failed) = append_some(&store, 1) {
            break failed;
        }
    };
    eprintln!("with nothing left: {failed}");
    assert!(
        failed.reason.contains("no journal segment is left") || failed.reason.contains("No space"),
        "{failed}"
    );
    drop(store);
    std::fs::remove_file(&ballast).unwrap();
    let (store, report) = LogStore::open(dir.path(), options).unwrap();
    assert!(!report.doubt, "{report:?}");
    let last = store.group(GroupId(1)).unwrap().last_index.0;
    assert!(last >= index, "{last} is there, {index} was acknowledged");
    let read = all_entries(&store, 1);
    assert_eq!(read.len() as u64, last);
    assert!(read.iter().zip(1..).all(|(found, i)| *found == entry(1, i, 1, 1000)));
}

fn free(path: &str) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}
