//! What is refused when a store is opened, under which name, and with which words. Each directory is good but for one
//! thing; the first test shows that without that thing it opens.

mod common;

use common::format::{self, Group, Marker, Pairs};
use common::*;
use pontoon_raft_core::types::*;
use pontoon_storage::disk::Disk;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{OpenError, Options};

const JOURNAL: u64 = 0x77;
const WAY_BACK: &str = "wipe this data directory and rejoin as a learner";

/// A directory with three batches in two segments and a cold group.
struct Dir {
    header: Option<Vec<u8>>,
    marker: Option<Marker>,
    /// Records of segments 1 and 2.
    records: [Vec<u8>; 2],
    cold: Pairs,
    /// Without its sum, it is made good.
    cold_file: Option<Vec<u8>>,
    files: Vec<(&'static str, Vec<u8>)>,
    missing: Vec<&'static str>,
}

fn first() -> Vec<u8> {
    let entries = Some((1, vec![1, 1]));
    format::batch(&[Group { id: 1, create: true, hard_state: Some((1, None)), entries, ..Group::default() }])
}
fn more(first: u64, terms: &[u64]) -> Group {
    Group { id: 1, entries: Some((first, terms.to_vec())), ..Group::default() }
}

impl Dir {
    fn good() -> Self {
        let mut cold = format::cold_base(JOURNAL, 4);
        cold.push((format::cold_key(b'm', &[2]), format::cold_meta(0, (3, None), (4, 2), (6, 3))));
        for (index, term) in [(5, 2), (6, 3)] {
            let entry = format::entry(2, index, term, b"cold");
            cold.push((format::cold_key(b'e', &[2, index]), format::cold_entry(&entry)));
        }
        let mut records = format::record(1, 1, &first());
        records.extend(format::record(1, 2, &format::batch(&[more(3, &[1])])));
        let last = format::record(2, 3, &format::batch(&[more(4, &[1, 1])]));
        Self {
            header: Some(format::header(1, 1, 2)),
            marker: Some(Marker { checkpoint: 4, reached: 2, ..Marker::new(JOURNAL) }),
            records: [records, last],
            cold,
            cold_file: None,
            files: Vec::new(),
            missing: Vec::new(),
        }
    }

    fn disk(&self) -> MemoryDisk {
        let disk = MemoryDisk::new();
        let mut files = vec![
            ("COLD", self.cold_file.clone().unwrap_or_else(|| format::cold_tier(self.cold.clone()))),
            ("journal-00000001.seg", format::segment(1, JOURNAL, 1, &self.records[0])),
            ("journal-00000002.seg", format::segment(1, JOURNAL, 2, &self.records[1])),
        ];
        files.extend(self.header.clone().map(|bytes| ("HEADER", bytes)));
        files.extend(self.marker.as_ref().map(|marker| ("MARKER", marker.bytes())));
        files.extend(self.files.clone());
        for (name, bytes) in files.into_iter().filter(|(name, _)| !self.missing.contains(name)) {
            disk.put(name, bytes);
        }
        disk
    }
}

fn options() -> Options {
    small()
}

fn files(disk: &MemoryDisk) -> Vec<(String, Option<Vec<u8>>)> {
    Disk::list(disk).unwrap().into_iter().map(|name| (name.clone(), disk.read(&name))).collect()
}

/// Opens it, which must be refused with these words, and must not change anything.
fn refused(dir: &Dir, words: &[&str]) -> OpenError {
    let disk = dir.disk();
    let before = files(&disk);
    let error = match open_memory(&disk, options()) {
        Ok((_, report)) => panic!("opened, and {words:?} was expected: {report:?}"),
        Err(error) => error,
    };
    let text = error.to_string();
    for word in words.iter().chain([&WAY_BACK]) {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
    assert!(files(&disk) == before, "a refused directory was changed: {text}");
    error
}

macro_rules! assert_named {
    ($error:expr, $pattern:pat) => {{
        let error = $error;
        assert!(matches!(error, $pattern), "{error:?}");
    }};
}

#[test]
fn the_good_directory_opens() {
    let disk = Dir::good().disk();
    let (store, report) = open_memory(&disk, options()).unwrap();
    assert_eq!((report.last_batch, report.entries, report.doubt), (3, 7, false), "{report:?}");
    assert_eq!(store.header().unwrap().name, "name");
    assert_eq!(all_entries(&store, 1).len(), 5);
    assert_eq!(all_entries(&store, 2).iter().map(|e| e.term.0).collect::<Vec<_>>(), [2, 3]);
    // Its last record may be torn: then it is cut, and told.
    let mut dir = Dir::good();
    let at = dir.records[1].len() - 20;
    dir.records[1][at] ^= 1;
    let (_, report) = open_memory(&dir.disk(), options()).unwrap();
    let torn = report.torn_tail.unwrap();
    assert_eq!((torn.file.as_str(), torn.offset, torn.batch), ("journal-00000002.seg", 4096, 3));
    assert!(report.doubt && report.last_batch == 2);
}

#[test]
fn a_bad_checksum_is_damage_and_no_torn_write_when_more_follows() {
    // Behind it in the same segment.
    let mut dir = Dir::good();
    dir.records[0][40] ^= 1;
    let error = refused(&dir, &["journal-00000001.seg", "offset 4096", "checksum", "batch 2"]);
    assert_named!(error, OpenError::Damaged { .. });
    // In the next segment.
    let mut dir = Dir::good();
    let second = format::record(1, 1, &first()).len();
    dir.records[0][second + 40] ^= 1;
    let error = refused(&dir, &["journal-00000001.seg", &format!("offset {}", 4096 + second), "batch 3"]);
    assert_named!(error, OpenError::Damaged { .. });
    // The last one, of a store that was closed in order.
    let mut dir = Dir::good();
    dir.marker = Some(Marker { clean: true, reached: 2, checkpoint: 4, ..Marker::new(JOURNAL) });
    dir.records[1][40] ^= 1;
    assert_named!(refused(&dir, &["journal-00000002.seg", "closed in order"]), OpenError::Damaged { .. });
    // Of the small files.
    for file in ["HEADER", "MARKER"] {
        let dir = Dir::good();
        let mut bytes = dir.disk().read(file).unwrap();
        bytes[20] ^= 1;
        let dir = Dir { files: vec![(file, bytes)], ..dir };
        assert_named!(refused(&dir, &[file, "checksum"]), OpenError::Damaged { .. });
    }
    // Of an entry, and of other values in the cold tier.
    let mut dir = Dir::good();
    dir.cold[4].1[40] ^= 1;
    assert_named!(refused(&dir, &["group 2", "entry 6", "damaged"]), OpenError::Group { group: 2, .. });
    let mut dir = Dir::good();
    dir.cold[2].1[10] ^= 1;
    assert_named!(refused(&dir, &["COLD", "checksum"]), OpenError::Cold { .. });
}

#[test]
fn a_gap_is_named() {
    // Of batches, within a segment, between two, and by a missing file.
    let mut dir = Dir::good();
    dir.records[0] = format::record(1, 1, &first());
    dir.records[0].extend(format::record(1, 3, &format::batch(&[more(3, &[1])])));
    let error = refused(&dir, &["journal-00000001.seg", "expected batch 2", "found batch 3"]);
    assert_named!(error, OpenError::SequenceGap { expected: 2, found: 3, .. });
    let mut dir = Dir::good();
    dir.records[1] = format::record(2, 4, &format::batch(&[more(4, &[1])]));
    assert_named!(
        refused(&dir, &["journal-00000002.seg"]),
        OpenError::SequenceGap { expected: 3, found: 4, .. }
    );
    let mut dir = Dir::good();
    let third = format::record(3, 4, &format::batch(&[more(6, &[1])]));
    dir.files.push(("journal-00000003.seg", format::segment(1, JOURNAL, 3, &third)));
    assert_eq!(open_memory(&dir.disk(), options()).unwrap().1.last_batch, 4);
    dir.missing.push("journal-00000002.seg");
    assert_named!(
        refused(&dir, &["journal-00000003.seg"]),
        OpenError::SequenceGap { expected: 3, found: 4, .. }
    );
    // Of entries.
    let mut dir = Dir::good();
    dir.records[1] = format::record(2, 3, &format::batch(&[more(5, &[1])]));
    assert_named!(refused(&dir, &["group 1", "batch 3", "gap"]), OpenError::Group { group: 1, .. });
    let mut dir = Dir::good();
    dir.cold.remove(3);
    let error = refused(&dir, &["group 2", "entry 5 is neither in the journal nor in the cold tier"]);
    assert_named!(error, OpenError::Group { group: 2, .. });
}

#[test]
fn a_log_that_is_shorter_than_the_marker_is_named() {
    let mut dir = Dir::good();
    dir.records[1].clear();
    assert_eq!(open_memory(&dir.disk(), options()).unwrap().1.last_batch, 2, "2 was all that is known");
    dir.marker.as_mut().unwrap().reached = 3;
    let error = refused(&dir, &["ends at batch 2", "batch 3 was durable"]);
    assert_named!(error, OpenError::ShorterThanMarker { found: 2, reached: 3 });
    let mut dir = Dir::good();
    dir.marker.as_mut().unwrap().checkpoint = 5;
    let error = refused(&dir, &["checkpoint 4", "checkpoint 5"]);
    assert_named!(error, OpenError::ColdBehindMarker { found: 4, expected: 5 });
}

#[test]
fn a_hard_state_that_is_older_than_the_log_is_named() {
    // In the journal.
    let mut dir = Dir::good();
    dir.records[1] = format::record(2, 3, &format::batch(&[more(4, &[2])]));
    let error = refused(&dir, &["group 1", "batch 3", "the log is of term 2, the hard state only of 1"]);
    assert_named!(error, OpenError::Group { group: 1, .. });
    // In the cold tier.
    let mut dir = Dir::good();
    dir.cold[2].1 = format::cold_meta(0, (2, None), (4, 2), (6, 3));
    let error = refused(&dir, &["group 2", "the log is of term 3, the hard state only of 2"]);
    assert_named!(error, OpenError::Group { group: 2, .. });
    // A term that goes down, a vote that changes, a committed entry that is cut.
    let voted = |term, store| Group { id: 1, hard_state: Some((term, Some((store, 1)))), ..Group::default() };
    let cut = Group { commit: Some(4), ..more(4, &[1]) };
    let cases = [
        (vec![Group { id: 1, hard_state: Some((0, None)), ..Group::default() }], "term would go down"),
        (vec![voted(3, 1), voted(3, 2)], "vote of term 3"),
        (vec![cut, Group { truncate_from: Some(4), ..more(4, &[1]) }], "committed"),
        (vec![Group { id: 9, ..more(1, &[1]) }], "does not exist"),
    ];
    for (groups, words) in cases {
        let mut dir = Dir::good();
        dir.records[1] = format::record(2, 3, &format::batch(&groups));
        assert_named!(refused(&dir, &["batch 3 in journal-00000002.seg", words]), OpenError::Group { .. });
    }
}

#[test]
fn a_missing_file_is_named() {
    for (file, words) in [
        ("MARKER", "there is a HEADER"),
        ("COLD", "MARKER says that this store has a cold tier"),
        ("journal-00000001.seg", "MARKER says that the journal begins there"),
    ] {
        let dir = Dir { missing: vec![file], ..Dir::good() };
        let name = if file.starts_with("journal") { "journal segment 1" } else { file };
        assert_named!(refused(&dir, &[name, "is missing", words]), OpenError::MissingFile { .. });
    }
    // Without the header, there are still the records, and a cold tier that a checkpoint wrote.
    let dir = Dir { header: None, missing: vec!["MARKER"], ..Dir::good() };
    assert_named!(refused(&dir, &["MARKER", "with records"]), OpenError::MissingFile { .. });
    let missing = vec!["MARKER", "journal-00000001.seg", "journal-00000002.seg"];
    let dir = Dir { header: None, missing: missing.clone(), ..Dir::good() };
    assert_named!(refused(&dir, &["MARKER", "written by a checkpoint"]), OpenError::MissingFile { .. });
    let mut dir = Dir { header: None, missing, ..Dir::good() };
    dir.missing.push("COLD");
    dir.files.push(("COLD-00000001", format::cold_tier(dir.cold.clone())));
    assert_named!(refused(&dir, &["MARKER", "rewritten"]), OpenError::MissingFile { .. });
    // The last segment, which had what the marker knows of.
    let mut dir = Dir { missing: vec!["journal-00000002.seg"], ..Dir::good() };
    dir.marker.as_mut().unwrap().reached = 3;
    assert_named!(refused(&dir, &["ends at batch 2"]), OpenError::ShorterThanMarker { .. });
    // The generation that the marker names.
    let mut dir = Dir::good();
    dir.marker.as_mut().unwrap().cold_generation = 3;
    assert_named!(refused(&dir, &["COLD-00000003", "is missing"]), OpenError::MissingFile { .. });
}

#[test]
fn files_of_another_store_are_named() {
    let mut dir = Dir::good();
    dir.files.push(("journal-00000002.seg", format::segment(1, JOURNAL + 1, 2, &dir.records[1])));
    let error = refused(&dir, &["journal-00000002.seg", "another store", "0000000000000078"]);
    assert_named!(error, OpenError::Foreign { .. });
    let mut dir = Dir::good();
    dir.cold[0] = format::cold_base(JOURNAL + 1, 4).remove(0);
    assert_named!(refused(&dir, &["COLD", "another store"]), OpenError::Foreign { .. });
    // Two files that say they are the same segment.
    let mut dir = Dir::good();
    dir.files.push(("journal-00000009.seg", format::segment(1, JOURNAL, 2, &dir.records[1])));
    assert_named!(refused(&dir, &["segment 2", "an id is given once"]), OpenError::Damaged { .. });
    // A header of another store: `initialize` refuses it, see the contract tests.
    let (store, _) = open_memory(&Dir::good().disk(), options()).unwrap();
    let other = pontoon_storage::Header { cluster: 1, store: StoreId(3), ..Default::default() };
    let refused = store.initialize(other).unwrap_err().to_string();
    assert!(refused.contains("belongs to cluster 0000000000000001, store 0000000000000002"), "{refused}");
}

#[test]
fn a_newer_format_is_named() {
    let dir = Dir { header: Some(format::header(2, 1, 2)), ..Dir::good() };
    let error = refused(&dir, &["HEADER has format version 2", "up to 1", "start that one"]);
    assert_named!(error, OpenError::NewerFormat { found: 2, known: 1, .. });
    let mut dir = Dir::good();
    dir.marker.as_mut().unwrap().format = 4;
    let error = refused(&dir, &["MARKER has format version 4", "up to 3"]);
    assert_named!(error, OpenError::NewerFormat { found: 4, known: 3, .. });
    let mut dir = Dir::good();
    dir.files.push(("journal-00000002.seg", format::segment(2, JOURNAL, 2, &dir.records[1])));
    let error = refused(&dir, &["journal-00000002.seg has format version 2"]);
    assert_named!(error, OpenError::NewerFormat { found: 2, known: 1, .. });
}

/// sled's own checks see neither of these: every record that is there is good.
#[test]
fn a_cold_tier_that_lost_something_in_its_middle_is_named() {
    let with_sum_of = |all: &Pairs, kept: Pairs| {
        let mut kept = kept;
        kept.push(format::cold_sum(all));
        Dir { cold_file: Some(format::cold_file(&kept)), ..Dir::good() }
    };
    let all = Dir::good().cold;
    // The group is gone with all its entries.
    let dir = with_sum_of(&all, all[..2].to_vec());
    let error = refused(&dir, &["COLD", "2 keys", "5 keys", "lost or changed"]);
    assert_named!(error, OpenError::ColdIncomplete { found_keys: 2, expected_keys: 5, .. });
    // It went back in time: an older term, whose vote would be given again.
    let mut old = all.clone();
    old[2].1 = format::cold_meta(0, (3, Some((9, 1))), (4, 2), (6, 3));
    assert_named!(refused(&with_sum_of(&all, old), &["lost or changed"]), OpenError::ColdIncomplete { .. });
    // The sum itself is gone.
    let dir = Dir { cold_file: Some(format::cold_file(&all)), ..Dir::good() };
    assert_named!(refused(&dir, &["lost or changed"]), OpenError::ColdIncomplete { expected_keys: 0, .. });
    // Format 1 had none.
    let mut dir = dir;
    dir.marker.as_mut().unwrap().format = 1;
    let disk = dir.disk();
    for _ in 0..2 {
        assert_eq!(open_memory(&disk, options()).unwrap().1.entries, 7);
    }
}

#[test]
fn a_number_that_claims_too_much_is_refused_before_memory_is_taken() {
    // A log of 2^60 entries in the cold tier.
    let mut dir = Dir::good();
    dir.cold[2].1 = format::cold_meta(0, (3, None), (4, 2), (1 << 60, 3));
    let error = refused(&dir, &["group 2", "there is room for at most"]);
    assert_named!(error, OpenError::Group { group: 2, .. });
    // More entries in a batch than bytes, an entry longer than its record, a note longer than all.
    let count =
        [&[0, 1][..], &1u64.to_le_bytes(), &[0x10], &4u64.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    let mut long = format::batch(&[more(4, &[1])]);
    let at = long.len() - 9 - 33 + 4;
    long[at..at + 4].copy_from_slice(&(u32::MAX - 40).to_le_bytes());
    let note = [&[0, 2][..], &u32::MAX.to_le_bytes(), b"key"].concat();
    for body in [count, long, note] {
        let mut dir = Dir::good();
        dir.records[1] = format::record(2, 3, &body);
        let error = refused(&dir, &["journal-00000002.seg", "offset 4096"]);
        assert_named!(error, OpenError::Damaged { .. });
    }
    // A record longer than its segment cannot be told from a torn head: it is the last.
    let mut dir = Dir::good();
    dir.records[1] = format::record_claiming(2, 3, b"x", u32::MAX);
    let (_, report) = open_memory(&dir.disk(), options()).unwrap();
    assert!(report.torn_tail.unwrap().reason.contains("longer than its segment"));
}

/// Numbers from which others are counted, each with good checksums around it: nothing may overflow.
#[test]
fn a_number_at_the_end_of_its_range_is_refused() {
    const MAX: u64 = u64::MAX;
    let with_marker = |change: &dyn Fn(&mut Marker)| {
        let mut dir = Dir::good();
        change(dir.marker.as_mut().unwrap());
        dir
    };
    let changes: [&dyn Fn(&mut Marker); 5] = [
        &|m| m.start_batch = 0,
        &|m| m.start_batch = MAX,
        &|m| m.reached = MAX,
        &|m| m.checkpoint = MAX,
        &|m| m.cold_generation = MAX,
    ];
    for change in changes {
        assert_named!(refused(&with_marker(change), &["MARKER"]), OpenError::Damaged { .. });
    }
    for id in [0, u64::from(u32::MAX), MAX] {
        let marked = with_marker(&|m| m.start_segment = id);
        assert_named!(refused(&marked, &["MARKER", "segment"]), OpenError::Damaged { .. });
        let mut dir = Dir::good();
        dir.files = vec![("journal-00000009.seg", format::segment(1, JOURNAL, id, &[]))];
        assert_named!(refused(&dir, &["journal-00000009.seg", "segment"]), OpenError::Damaged { .. });
    }
    // Indexes, in the journal: a log that begins after the last one there is, entries, and what is cut.
    let snapshot = |flag: u8| {
        let mut body = [&[0, 1][..], &1u64.to_le_bytes(), &[flag], &MAX.to_le_bytes()].concat();
        body.extend([0; 16 + 1 + 8]);
        body
    };
    let cut = format::batch(&[Group { id: 1, truncate_from: Some(MAX), ..Group::default() }]);
    let commit = format::batch(&[Group { id: 1, commit: Some(MAX), ..Group::default() }]);
    for body in [snapshot(0x04), snapshot(0x40), cut, commit, format::batch(&[more(MAX, &[1])])] {
        let mut dir = Dir::good();
        dir.records[1] = format::record(2, 3, &body);
        let error = refused(&dir, &["journal-00000002.seg", "an index is too large"]);
        assert_named!(error, OpenError::Damaged { .. });
    }
    // And in the cold tier.
    let meta = (format::cold_key(b'm', &[3]), format::cold_meta(0, (3, None), (MAX, 2), (MAX, 3)));
    let entry = (format::cold_key(b'e', &[2, MAX]), format::cold_entry(&format::entry(2, MAX, 2, b"cold")));
    for pair in [meta, entry] {
        let mut dir = Dir::good();
        dir.cold.push(pair);
        assert_named!(refused(&dir, &["COLD", "an index is too large"]), OpenError::Cold { .. });
    }
    let mut dir = Dir::good();
    dir.cold.splice(.., format::cold_base(JOURNAL, MAX));
    assert_named!(refused(&dir, &["COLD", "number is too large"]), OpenError::Cold { .. });
    // Names that nobody here would give are nobody's here.
    let mut dir = Dir::good();
    dir.files = vec![("journal-ffffffffffffffff.seg", vec![]), ("journal-+0000003.seg", vec![7; 9000])];
    assert_eq!(open_memory(&dir.disk(), options()).unwrap().1.last_batch, 3);
}

/// A file without a readable header may be anything, of any length; it counts if it holds records that are needed.
#[test]
fn a_segment_whose_header_is_damaged_is_named_by_what_it_holds() {
    let mut dir = Dir::good();
    let mut bytes = dir.disk().read("journal-00000002.seg").unwrap();
    bytes[5] ^= 1;
    // The record lies across two of the parts in which such files are read.
    let mut far = vec![0; (1 << 20) - 16];
    far.extend(&dir.records[1]);
    let mut long = bytes[..10].to_vec();
    long.extend(&far[10..]);
    for bytes in [bytes, long] {
        dir.files = vec![("journal-00000002.seg", bytes)];
        let error = refused(&dir, &["journal-00000002.seg", "header is unreadable", "records of segment 2"]);
        assert_named!(error, OpenError::Damaged { .. });
    }
}
