//! Torn records are cut and told; damage is refused; neither ever gives a wrong answer.

mod common;

use common::*;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{LogStore, OpenError, Options};

const SEGMENT: &str = "journal-00000001.seg";

fn one_segment() -> Options {
    let mut options = small();
    options.segment_bytes = 64 << 10;
    options
}

/// The first workload of `batches` that fits one segment.
fn killed(batches: u64, options: &Options) -> (MemoryDisk, MemoryDisk, Vec<Model>) {
    (11..)
        .map(|seed| killed_after(batches, options, seed))
        .find(|(before, after, _)| batches > 100 || before.read(SEGMENT) != after.read(SEGMENT))
        .unwrap()
}

/// A store that was killed: its disk before the last batch and after it, and the models after each.
fn killed_after(batches: u64, options: &Options, seed: u64) -> (MemoryDisk, MemoryDisk, Vec<Model>) {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, options.clone()).unwrap();
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut models = vec![model.clone()];
    let mut before = disk.copy();
    for _ in 0..batches {
        before = disk.copy();
        let batch = model.random_batch(&mut random, 4);
        models.push(model.clone());
        put(&store, batch).unwrap();
    }
    // Until the next segment lies ready, nothing tells of the newest one but itself.
    while store.stats().spare_segments == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    (before, disk.copy(), models)
}

#[test]
fn a_last_record_torn_at_any_byte_is_cut_and_told() {
    let (before, after, models) = killed(20, &one_segment());
    let (old, new) = (before.read(SEGMENT).unwrap(), after.read(SEGMENT).unwrap());
    let start = (0..new.len()).find(|i| old[*i] != new[*i]).unwrap() & !7;
    let end = (0..new.len()).rfind(|i| old[*i] != new[*i]).unwrap() + 1;
    for cut in start..=end {
        // Also the other way round: the first part lost, the rest there.
        for front_lost in [false, true] {
            let disk = after.copy();
            disk.damage(SEGMENT, |bytes| {
                let lost = if front_lost { start..cut } else { cut..end };
                bytes[lost.clone()].copy_from_slice(&old[lost]);
            });
            let whole = disk.read(SEGMENT).unwrap() == new;
            let (store, report) = open_memory(&disk, one_segment()).unwrap();
            assert_eq!(report.last_batch, if whole { 20 } else { 19 }, "cut at {cut}");
            models[report.last_batch as usize].check(&store);
            assert_eq!(report.torn_tail.is_some(), report.doubt);
            if !whole && !front_lost && cut > start {
                let torn = report.torn_tail.expect("told");
                assert_eq!((torn.offset, torn.batch), (start as u64, 20));
            }
            if cut % 16 == 0 && report.doubt {
                drop(store);
                let (store, again) = open_memory(&disk, one_segment()).unwrap();
                assert!(again.doubt && again.torn_tail.is_none());
                store.settle_doubt().unwrap();
                put(&store, vec![create(50)]).unwrap();
                drop(store);
                assert!(!open_memory(&disk, one_segment()).unwrap().1.doubt);
            }
        }
    }
}

#[test]
fn a_torn_record_after_an_orderly_end_is_damage() {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, one_segment()).unwrap();
    put(&store, vec![create(1)]).unwrap();
    put(&store, vec![append(1, 1, 1, 1, 500)]).unwrap();
    store.close();
    disk.damage(SEGMENT, |bytes| {
        let last = bytes.iter().rposition(|b| *b != 0).unwrap();
        bytes[last - 20] ^= 1;
    });
    let refused = open_memory(&disk, one_segment()).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::ShorterThanMarker { .. } | OpenError::Damaged { .. }), "{text}");
    assert!(text.contains("wipe this data directory and rejoin as a learner"), "{text}");
}

/// Opens a damaged store: refused, or right.
fn refused_or_right(disk: &MemoryDisk, options: &Options, models: &[Model], what: &str) -> bool {
    let Ok((store, report)) = open_memory(disk, options.clone()) else { return true };
    let last = models.len() as u64 - 1;
    assert!(
        report.last_batch == last || (report.last_batch + 1 == last && report.doubt),
        "{what}: {report:?}"
    );
    models[report.last_batch as usize].check(&store);
    false
}

#[test]
fn a_flipped_bit_in_the_journal_is_never_believed() {
    let (_, disk, models) = killed(20, &one_segment());
    let end = disk.read(SEGMENT).unwrap().iter().rposition(|b| *b != 0).unwrap();
    let mut random = Random(3);
    let mut refused = 0;
    for at in (0..48).chain((4096..end + 40).step_by(3)) {
        let disk = disk.copy();
        disk.damage(SEGMENT, |bytes| bytes[at] ^= 1 << random.between(0, 7));
        refused += u64::from(refused_or_right(&disk, &one_segment(), &models, &format!("byte {at}")));
    }
    assert!(refused > (end as u64 - 4096) / 6);
}

#[test]
fn a_flipped_bit_in_any_file_is_never_believed() {
    let (_, disk, models) = killed(250, &small());
    let mut random = Random(4);
    let names = pontoon_storage::disk::Disk::list(&disk).unwrap();
    assert!(names.len() >= 6, "{names:?}");
    for name in &names {
        let len = disk.read(name).unwrap().len() as u64;
        for _ in 0..60 {
            let at = random.between(0, len - 1) as usize;
            let disk = disk.copy();
            disk.damage(name, |bytes| bytes[at] ^= 1 << random.between(0, 7));
            refused_or_right(&disk, &small(), &models, &format!("{name}, byte {at}"));
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let (_, disk, models) = killed(250, &small());
    let mut named = 0;
    for name in pontoon_storage::disk::Disk::list(&disk).unwrap() {
        let disk = disk.copy();
        pontoon_storage::disk::Disk::remove(&disk, &name).unwrap();
        match open_memory(&disk, small()) {
            Ok((store, report)) => {
                // A spare.
                assert_eq!(report.last_batch as usize, models.len() - 1, "{name}");
                models.last().unwrap().check(&store);
            }
            Err(e) => {
                let text = e.to_string();
                assert!(text.contains("rejoin as a learner"), "{name}: {text}");
                named += 1;
            }
        }
    }
    assert!(named >= 4, "{named}");
}

#[test]
fn files_of_another_store_and_newer_formats_are_refused() {
    let (_, disk, _) = killed(3, &one_segment());
    let (_, other, _) = killed(3, &one_segment());
    let bytes = other.read(SEGMENT).unwrap();
    disk.damage(SEGMENT, |own| *own = bytes);
    let refused = open_memory(&disk, one_segment()).unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");

    let (_, disk, _) = killed(3, &one_segment());
    for file in ["MARKER", SEGMENT] {
        let disk = disk.copy();
        disk.damage(file, |bytes| {
            // The format follows the checksum and the magic.
            bytes[12] = 99;
            let end = if file == SEGMENT { 40 } else { bytes.len() };
            let crc = crc32c::crc32c(&bytes[4..end]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
        });
        let refused = open_memory(&disk, one_segment()).unwrap_err();
        assert!(matches!(refused, OpenError::NewerFormat { found: 99, .. }), "{file}: {refused}");
    }
}

/// How many places of each kind of file; `just damage-storage` takes 1,000 of each.
fn flips(usual: u64) -> u64 {
    std::env::var("PONTOON_FLIPS").map_or(usual, |n| n.parse().unwrap())
}

/// What came of an opening, in a word. What is refused must say what to do.
fn outcome<T>(opened: &Result<T, OpenError>) -> &'static str {
    let Err(error) = opened else { return "right" };
    let text = error.to_string();
    assert!(text.contains("rejoin as a learner"), "{text}");
    match error {
        OpenError::Damaged { .. } => "damaged",
        OpenError::Foreign { .. } => "foreign",
        OpenError::NewerFormat { .. } => "newer format",
        OpenError::MissingFile { .. } => "missing file",
        OpenError::SequenceGap { .. } => "sequence gap",
        OpenError::ShorterThanMarker { .. } => "shorter than marker",
        OpenError::ColdBehindMarker { .. } => "cold tier behind marker",
        OpenError::ColdIncomplete { .. } => "cold tier incomplete",
        OpenError::Cold { .. } => "cold tier unusable",
        OpenError::Group { .. } => "group does not add up",
        other => panic!("an outcome without a name: {other:?}"),
    }
}

#[test]
fn a_flipped_bit_in_any_kind_of_file_is_never_believed() {
    let (_, disk, models) = killed(120, &small());
    let (store, _) = open_memory(&disk, small()).unwrap();
    let header = pontoon_storage::Header { cluster: 1, ..Default::default() };
    store.initialize(header).unwrap();
    drop(store);
    // As it is after a kill, so that a torn tail is one of the outcomes.
    disk.damage("MARKER", |bytes| {
        bytes[56] = 0;
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    });
    let names = pontoon_storage::disk::Disk::list(&disk).unwrap();
    let mut random = Random(11);
    for kind in ["HEADER", "MARKER", "journal", "COLD"] {
        let files: Vec<_> = names.iter().filter(|name| name.starts_with(kind)).collect();
        let mut outcomes = std::collections::BTreeMap::new();
        for n in 0..flips(250) {
            let name = files[random.between(0, files.len() as u64 - 1) as usize];
            let used = disk.read(name).unwrap().iter().rposition(|b| *b != 0).unwrap_or(0) as u64;
            // The small files are gone through from end to end; the others as far as they are used, and a bit further.
            let bit = if used < 200 { n % ((used + 1) * 8) } else { random.between(0, used * 8 + 4000) };
            let disk = disk.copy();
            disk.damage(name, |bytes| {
                if let Some(byte) = bytes.get_mut(bit as usize / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            });
            let opened = open_memory(&disk, small());
            *outcomes.entry(outcome(&opened)).or_insert(0) += 1;
            if let Ok((store, report)) = opened {
                let last = models.len() as u64 - 1;
                let one_less = report.last_batch + 1 == last && report.doubt && report.torn_tail.is_some();
                assert!(report.last_batch == last || one_less, "{name}, bit {bit}: {report:?}");
                models[report.last_batch as usize].check(&store);
            }
        }
        eprintln!("{kind}: {outcomes:?}");
        assert!(outcomes.keys().any(|outcome| *outcome != "right"), "{kind}: {outcomes:?}");
    }
}

/// sled panics on damage, takes a damaged database for a new one, and loses its last writes without a word when the
/// damage is near its end.
#[test]
fn a_flipped_bit_in_sleds_files_is_never_believed() {
    let dir = memory_dir();
    let (store, _) = LogStore::open(dir.path(), small_sled()).unwrap();
    let mut random = Random(5);
    let mut model = Model::default();
    for _ in 0..300 {
        put(&store, model.random_batch(&mut random, 5)).unwrap();
    }
    until_stats(&store, |stats| stats.checkpoint_entries > 0);
    store.close();
    let cold = dir.path().join("cold");
    let names: Vec<_> = std::fs::read_dir(&cold)
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.file_type().unwrap().is_file())
        .map(|file| file.file_name().into_string().unwrap())
        .collect();
    for kind in ["conf", "db", "snap."] {
        let name = names.iter().find(|name| name.starts_with(kind)).unwrap();
        let good = std::fs::read(cold.join(name)).unwrap();
        let used = good.iter().rposition(|b| *b != 0).unwrap() as u64;
        let mut outcomes = std::collections::BTreeMap::new();
        for n in 0..flips(20) {
            // A small file from end to end; the large one anywhere it is used.
            let bit = if used < 200 { n * 7 % ((used + 1) * 8) } else { random.between(0, used * 8 + 7) };
            let copy = memory_dir();
            copy_dir(dir.path(), copy.path());
            let mut bytes = good.clone();
            bytes[bit as usize / 8] ^= 1 << (bit % 8);
            std::fs::write(copy.path().join("cold").join(name), bytes).unwrap();
            let opened = LogStore::open(copy.path(), small_sled());
            *outcomes.entry(outcome(&opened)).or_insert(0) += 1;
            if let Ok((store, _)) = opened {
                model.check(&store);
            }
        }
        eprintln!("{kind}: {outcomes:?}");
        if kind == "db" {
            assert!(outcomes.keys().any(|outcome| *outcome != "right"), "{outcomes:?}");
        }
    }
}
