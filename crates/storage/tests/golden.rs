//! Data directories as earlier versions wrote them: this version must read them, to the last entry.
//!
//! `tests/golden/<name>/` holds one directory each, with `contents.txt`, which says what is in it. A new format version
//! gets a new directory, the old ones stay: `PONTOON_GOLDEN=v2 cargo test -p pontoon-storage --test golden -- --ignored`.

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::*;
use pontoon_raft_core::types::*;
use pontoon_storage::disk::Disk;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{GroupWrite, Header, LogStore};

/// sled's file grows by this much at a time, and is full of zeroes: they are not kept in the repository.
const SLED_SEGMENT_BYTES: usize = 8 << 20;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every kind of thing that a store keeps, in the journal and in the cold tier.
fn fill(store: &LogStore) {
    let header = Header {
        cluster: 0x1234,
        store: StoreId(1),
        name: "golden".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
        client_address: "127.0.0.1:2".to_owned(),
    };
    store.initialize(header).unwrap();
    let joint = Configuration {
        voters: [replica(1), replica(2)].into(),
        outgoing_voters: [replica(1)].into(),
        learners: [replica(4)].into(),
        next_learners: [replica(5)].into(),
        auto_leave: true,
    };
    let kinds = [Payload::Noop, Payload::Configuration(joint), Payload::ElectionTimer { millis: 250 }];
    let kinds = (1..).zip(kinds).map(|(i, payload)| Entry {
        index: LogIndex(i),
        term: Term(2),
        id: EntryId(u128::from(i) << 64),
        payload,
    });
    let voted = HardState { term: Term(2), voted_for: Some(replica(3)) };
    put(store, vec![create(1), GroupWrite { entries: kinds.collect(), hard_state: Some(voted), ..write(1) }])
        .unwrap();
    put(store, vec![create(2), append(2, 1, 3, 1, 50), create(3), append(3, 1, 1, 1, 40_000)]).unwrap();
    put(store, vec![create(4), append(4, 1, 2, 1, 10)]).unwrap();
    put(store, vec![GroupWrite { destroy: true, ..write(4) }]).unwrap();
    store.put_note("early", b"in the cold tier").unwrap();
    put(store, vec![create(5)]).unwrap();
    for n in 0..12 {
        put(store, vec![append(5, n * 8 + 1, 8, 1, 500)]).unwrap();
        put(store, vec![GroupWrite { compact: Some(meta(n * 8 + 6, 1)), ..write(5) }]).unwrap();
    }
    while store.stats().checkpoint_entries < 7 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // Across the border: the first entries are cold, these are not.
    let commit = GroupWrite { commit: Some(LogIndex(4)), leads: Some(Term(3)), ..append(2, 4, 2, 3, 60) };
    put(store, vec![commit, create(6), append(6, 1, 1, 1, 0)]).unwrap();
    let cut = GroupWrite { truncate_from: Some(LogIndex(5)), ..append(2, 5, 1, 4, 30) };
    put(store, vec![cut]).unwrap();
    let replaced = GroupWrite { snapshot: Some(meta(70, 2)), hard_state: hard_state(2), ..write(6) };
    put(store, vec![replaced]).unwrap();
    store.put_note("late", b"in the journal").unwrap();
}

/// Everything that can be read from a store.
fn contents(store: &LogStore) -> String {
    let mut out = String::new();
    writeln!(out, "{:?}", store.header()).unwrap();
    for note in ["early", "late"] {
        writeln!(out, "note {note}: {:?}", store.note(note)).unwrap();
    }
    writeln!(out, "tombstone of 4: {:?}", store.tombstone(GroupId(4))).unwrap();
    for group in store.groups() {
        writeln!(out, "group {group}: {:?}", store.group(group).unwrap()).unwrap();
        for entry in all_entries(store, group.0) {
            let text = match &entry.payload {
                Payload::Command(data) => format!("{} bytes, crc {:08x}", data.len(), crc32c::crc32c(data)),
                other => format!("{other:?}"),
            };
            writeln!(out, "  {} term {} id {:x}: {text}", entry.index, entry.term, entry.id.0).unwrap();
        }
    }
    out
}

/// Writes this version's directories.
#[test]
#[ignore = "only after a change of the format"]
fn write_this_version() {
    let Ok(version) = std::env::var("PONTOON_GOLDEN") else { return };
    let save = |name: &str, file: &str, bytes: &[u8]| {
        let path = golden().join(format!("{version}-{name}")).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, small()).unwrap();
    fill(&store);
    save("memory", "contents.txt", contents(&store).as_bytes());
    store.close();
    for name in Disk::list(&disk).unwrap() {
        save("memory", &name, &disk.read(&name).unwrap());
    }

    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), small()).unwrap();
    fill(&store);
    save("sled", "contents.txt", contents(&store).as_bytes());
    store.close();
    for file in files_below(dir.path()) {
        let name = file.strip_prefix(dir.path()).unwrap().to_str().unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        if name.ends_with("/db") {
            bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
        }
        if name != "LOCK" {
            save("sled", name, &bytes);
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The directories that are kept, and their contents in words.
fn versions(kind: &str) -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> = std::fs::read_dir(golden())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(kind))
        .map(|path| (path.clone(), std::fs::read_to_string(path.join("contents.txt")).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn every_version_is_read_from_memory() {
    let versions = versions("-memory");
    assert!(!versions.is_empty());
    for (from, expected) in versions {
        let disk = MemoryDisk::new();
        for file in std::fs::read_dir(&from).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name != "contents.txt" {
                disk.put(name, std::fs::read(&path).unwrap());
            }
        }
        for _ in 0..2 {
            let (store, report) = open_memory(&disk, small()).unwrap();
            assert!(!report.doubt && report.torn_tail.is_none(), "{report:?}");
            assert_eq!(contents(&store), expected, "{}", from.display());
            assert!(store.stats().disk_reads > 0, "some entries are cold");
        }
    }
}

#[test]
fn every_version_is_read_with_sled() {
    let versions = versions("-sled");
    assert!(!versions.is_empty());
    for (from, expected) in versions {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&from, dir.path());
        for db in files_below(dir.path()).iter().filter(|path| path.ends_with("db")) {
            let file = std::fs::File::options().write(true).open(db).unwrap();
            let len = (file.metadata().unwrap().len() as usize).next_multiple_of(SLED_SEGMENT_BYTES);
            file.set_len(len as u64).unwrap();
        }
        for _ in 0..2 {
            let (store, report) = LogStore::open(dir.path(), small()).unwrap();
            assert!(!report.doubt && report.torn_tail.is_none(), "{report:?}");
            assert_eq!(contents(&store), expected, "{}", from.display());
        }
    }
}
