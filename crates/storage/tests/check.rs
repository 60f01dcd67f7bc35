//! Every guarantee, broken in the records of one store of a good cluster, with good checksums, and found by its name.

mod common;

use std::sync::Arc;

use common::format;
use common::*;
use pontoon_raft_core::types::*;
use pontoon_storage::check::{Findings, Rule, check};
use pontoon_storage::disk::Disk;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::records::{Event, StoreRecords};
use pontoon_storage::{GroupWrite, Header, LogStore, OpenError};

const G: u64 = 1;
const SEGMENT: &str = "journal-00000001.seg";
/// Where records begin in a segment.
const RECORDS_AT: usize = 4096;
/// Where the flags of a batch's first group are in a record's body, and the fields behind them.
const FLAGS_AT: usize = 10;
const HAS_HARD_STATE: u8 = 2;
const HAS_TRUNCATE: u8 = 8;

// The batches of the good history, by what they are for.
const TERM_2: u64 = 6;
const COMMIT_8: u64 = 9;
const ENTRIES_9: u64 = 11;
const COMMIT_9: u64 = 12;
const COMPACT: u64 = 13;

fn me(store: u64) -> ReplicaId {
    replica(store)
}

fn state(term: u64, vote: u64) -> Option<HardState> {
    Some(HardState { term: Term(term), voted_for: Some(replica(vote)) })
}

fn configuration_entry(index: u64, term: u64, learner: u64) -> Entry {
    let configuration = Configuration { learners: [replica(learner)].into(), ..meta(0, 0).configuration };
    Entry { payload: Payload::Configuration(configuration), ..entry(G, index, term, 0) }
}

/// What one of three stores writes, one batch each: three terms with their leaders, commits, a new learner, a compaction.
/// Store 3 has not received the last entry.
fn history(store: u64) -> Vec<GroupWrite> {
    let leads = |term: u64, leader: u64| (store == leader).then_some(Term(term));
    let commit = |index: u64| Some(LogIndex(index));
    let entries = |terms: &[(u64, u64)]| -> Vec<Entry> {
        terms.iter().map(|(index, term)| entry(G, *index, *term, 20)).collect()
    };
    let last: &[(u64, u64)] = if store == 3 { &[(9, 3)] } else { &[(9, 3), (10, 4)] };
    vec![
        GroupWrite { create: Some(me(store)), snapshot: Some(meta(0, 0)), ..write(G) },
        GroupWrite { hard_state: state(1, 1), ..write(G) },
        GroupWrite { entries: entries(&[(1, 1), (2, 1), (3, 1)]), leads: leads(1, 1), ..write(G) },
        GroupWrite { entries: entries(&[(4, 1), (5, 1)]), commit: commit(3), ..write(G) },
        GroupWrite { hard_state: state(2, 2), ..write(G) },
        GroupWrite { entries: entries(&[(6, 2), (7, 2)]), commit: commit(5), leads: leads(2, 2), ..write(G) },
        GroupWrite { commit: commit(7), ..write(G) },
        GroupWrite { entries: vec![configuration_entry(8, 2, 4)], ..write(G) },
        GroupWrite { commit: commit(8), ..write(G) },
        // In term 3, store 3 led, and appended entry 9, which the leader of term 4 received.
        GroupWrite { hard_state: state(4, 1), ..write(G) },
        GroupWrite { entries: entries(last), leads: leads(4, 1), ..write(G) },
        GroupWrite { commit: commit(9), ..write(G) },
        GroupWrite { compact: Some(meta(2, 1)), ..write(G) },
    ]
}

fn header(store: u64) -> Header {
    let name = format!("n{store}");
    Header { cluster: 7, store: StoreId(store), name, ..Header::default() }
}

/// The closed stores of a cluster in which nothing went wrong.
fn good_cluster() -> [MemoryDisk; 3] {
    [1, 2, 3].map(|number| {
        let disk = MemoryDisk::new();
        let (store, _) = open_memory(&disk, small()).unwrap();
        store.initialize(header(number)).unwrap();
        for write in history(number) {
            put(&store, vec![write]).unwrap();
        }
        store.close();
        disk
    })
}

fn read(disk: &MemoryDisk) -> StoreRecords {
    StoreRecords::read_on(Arc::new(disk.clone()), &[]).unwrap()
}

fn judge(disks: &[MemoryDisk]) -> Findings {
    check(&disks.iter().map(read).collect::<Vec<_>>())
}

/// Changes the body of the record with a batch, and makes its checksums good again.
fn rewrite(disk: &MemoryDisk, batch: u64, change: impl FnOnce(&mut Vec<u8>)) {
    let bytes = disk.read(SEGMENT).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (mut at, mut records, mut change) = (RECORDS_AT, Vec::new(), Some(change));
    while bytes[at..at + 4] == *b"PTJ1" {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let mut body = bytes[at + 32..at + 32 + len].to_vec();
        let first = number(at + 8);
        if first == batch {
            let before = body.clone();
            change.take().unwrap()(&mut body);
            assert_ne!(body, before, "the change changes nothing");
        }
        records.extend(format::record(number(at + 16), first, &body));
        at += (32 + len).next_multiple_of(8);
    }
    assert!(change.is_none(), "there is no record that begins with batch {batch}");
    let mut out = bytes[..RECORDS_AT].to_vec();
    out.extend(records);
    out.resize(bytes.len(), 0);
    disk.put(SEGMENT, out);
}

/// Replaces bytes that occur once.
fn replace(body: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let mut places = (0..body.len()).filter(|at| body[*at..].starts_with(from));
    let at = places.next().expect("the bytes occur");
    assert_eq!(places.next(), None, "the bytes occur twice");
    body.splice(at..at + from.len(), to.iter().copied());
}

/// Says one more thing in front of the others.
fn add_field(body: &mut Vec<u8>, flag: u8, bytes: &[u8]) {
    assert_eq!(body[FLAGS_AT] & flag, 0);
    body[FLAGS_AT] |= flag;
    body.splice(FLAGS_AT + 1..FLAGS_AT + 1, bytes.iter().copied());
}

fn hard_state_bytes(term: u64, vote: u64) -> Vec<u8> {
    let mut out = term.to_le_bytes().to_vec();
    out.push(1);
    out.extend(vote.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out
}

/// The entry as it is encoded, with its own checksum.
fn entry_bytes(entry: &Entry, term: u64, data: &[u8]) -> Vec<u8> {
    let mut rest = (data.len() as u32).to_le_bytes().to_vec();
    rest.extend(term.to_le_bytes());
    rest.extend(entry.id.0.to_le_bytes());
    rest.push(1);
    rest.extend(data);
    let mut covered = G.to_le_bytes().to_vec();
    covered.extend(entry.index.0.to_le_bytes());
    covered.extend(&rest);
    let mut out = crc32c::crc32c(&covered).to_le_bytes().to_vec();
    out.extend(rest);
    out
}

/// Gives the entry that the history has at `index` in `term` another term or other data.
fn change_entry(body: &mut Vec<u8>, index: u64, term: u64, new_term: u64, new_data: Option<&[u8]>) {
    let good = entry(G, index, term, 20);
    let Payload::Command(data) = &good.payload else { unreachable!("a command") };
    let from = entry_bytes(&good, term, data);
    replace(body, &from, &entry_bytes(&good, new_term, new_data.unwrap_or(data)));
}

fn leads_bytes(term: u64) -> Vec<u8> {
    let mut out = vec![3];
    out.extend(G.to_le_bytes());
    out.extend(term.to_le_bytes());
    out
}

/// Corrupts a good cluster; exactly this must be found.
#[track_caller]
fn finds(
    corrupt: impl FnOnce(&[MemoryDisk; 3]),
    rule: Rule,
    stores: (usize, Option<usize>),
    index: Option<u64>,
    words: &str,
) {
    let disks = good_cluster();
    corrupt(&disks);
    let found = judge(&disks).violations;
    let [violation] = &found[..] else { panic!("exactly one violation: {found:#?}") };
    assert_eq!(violation.rule, rule, "{violation:?}");
    assert_eq!((violation.store, violation.other), stores, "{violation:?}");
    assert_eq!(violation.group, GroupId(G));
    assert_eq!(violation.index, index.map(LogIndex), "{violation:?}");
    assert!(violation.what.contains(words), "`{words}` is not in: {}", violation.what);
}

#[test]
fn a_good_cluster_passes() {
    let disks = good_cluster();
    let files = |disk: &MemoryDisk| {
        let mut files: Vec<_> =
            disk.list().unwrap().into_iter().map(|name| (disk.read(&name).unwrap(), name)).collect();
        files.sort();
        files
    };
    let before: Vec<_> = disks.iter().map(files).collect();
    let findings = judge(&disks);
    assert_eq!(findings.violations, []);
    assert_eq!((findings.groups, findings.entries), (1, 29));
    let after: Vec<_> = disks.iter().map(files).collect();
    assert!(before == after, "reading changed a file");
    for records in disks.iter().map(read) {
        assert!(records.refused.is_none() && records.torn_tail.is_none() && !records.doubt);
        let group = &records.groups[&GroupId(G)];
        assert_eq!(group.state.as_ref().unwrap().first_index, LogIndex(3));
        let store = records.header.unwrap().store.0;
        let led = group.history.iter().filter(|r| matches!(r.event, Event::Leads(_))).count();
        assert_eq!(led, [2, 1, 0][store as usize - 1]);
    }
}

#[test]
fn a_replica_that_joined_begins_without_members() {
    let disks = good_cluster();
    let joined = MemoryDisk::new();
    let (store, _) = open_memory(&joined, small()).unwrap();
    store.initialize(header(3)).unwrap();
    for mut write in history(3) {
        if let Some(snapshot) = &mut write.snapshot {
            snapshot.configuration = Configuration::default();
        }
        if write.compact.is_none() {
            put(&store, vec![write]).unwrap();
        }
    }
    store.close();
    let findings = judge(&[disks[0].clone(), disks[1].clone(), joined]);
    assert!(findings.violations.is_empty(), "{:?}", findings.violations);
}

#[test]
fn two_leaders_in_a_term() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], TERM_2, |body| body.extend(leads_bytes(2)));
    };
    finds(corrupt, Rule::ElectionSafety, (1, Some(2)), None, "both stores led term 2");
}

/// The records do not say who led, but its entries do: they begin at two places.
#[test]
fn a_term_that_begins_twice() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        // Store 3 has entry 9 as the first of term 4, not of term 3, and has committed less.
        rewrite(&disks[2], ENTRIES_9, |body| change_entry(body, 9, 3, 4, None));
        rewrite(&disks[2], COMMIT_9, |body| replace(body, &9u64.to_le_bytes(), &8u64.to_le_bytes()));
    };
    // Both stores that have it from its other leader say so.
    let disks = good_cluster();
    corrupt(&disks);
    let found = judge(&disks).violations;
    let told: Vec<_> = found.iter().map(|v| (v.rule, v.store, v.other, v.index)).collect();
    let rule = Rule::ElectionSafety;
    assert_eq!(told, [(rule, 0, Some(2), Some(LogIndex(10))), (rule, 1, Some(2), Some(LogIndex(10)))]);
    assert!(found[0].what.contains("it had two leaders"), "{found:?}");
}

#[test]
fn two_votes_in_a_term() {
    // Behind a vote for store 1 in term 1.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], 4, |body| add_field(body, HAS_HARD_STATE, &hard_state_bytes(1, 2)));
    };
    finds(corrupt, Rule::OneVotePerTerm, (2, None), None, "in term 1");
    // The vote is taken back.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        let mut nobody = 1u64.to_le_bytes().to_vec();
        nobody.extend([0; 17]);
        rewrite(&disks[1], 3, |body| add_field(body, HAS_HARD_STATE, &nobody));
    };
    finds(corrupt, Rule::OneVotePerTerm, (1, None), None, "then for nobody");
}

#[test]
fn a_term_that_goes_down() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[0], TERM_2, |body| add_field(body, HAS_HARD_STATE, &hard_state_bytes(1, 1)));
    };
    finds(corrupt, Rule::TermsNeverDecrease, (0, None), None, "from 2 to 1");
    // The hard state is older than the log.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[0], 5, |body| replace(body, &hard_state_bytes(2, 2), &hard_state_bytes(1, 1)));
    };
    finds(corrupt, Rule::TermsNeverDecrease, (0, None), Some(6), "only in term 1");
}

#[test]
fn logs_that_do_not_match() {
    // The same index and term, and another entry.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], 4, |body| change_entry(body, 4, 1, 1, Some(&[7; 20])));
    };
    finds(corrupt, Rule::LogMatching, (2, Some(0)), Some(4), "two different entries");
    // The same entry, and another one before it.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[1], ENTRIES_9, |body| change_entry(body, 9, 3, 2, None));
        rewrite(&disks[1], COMMIT_9, |body| replace(body, &9u64.to_le_bytes(), &8u64.to_le_bytes()));
    };
    finds(corrupt, Rule::LogMatching, (0, Some(1)), Some(9), "the same entry at 10");
}

#[test]
fn a_commit_index_that_moves_back() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], COMMIT_8, |body| replace(body, &8u64.to_le_bytes(), &6u64.to_le_bytes()));
    };
    finds(corrupt, Rule::CommitNeverMovesBack, (2, None), Some(6), "from 7 to 6");
}

#[test]
fn committed_entries_that_are_not_in_the_log() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], COMMIT_9, |body| replace(body, &9u64.to_le_bytes(), &99u64.to_le_bytes()));
    };
    finds(corrupt, Rule::CommittedIsInLog, (2, None), Some(99), "the log ends with 9");
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], ENTRIES_9, |body| add_field(body, HAS_TRUNCATE, &8u64.to_le_bytes()));
    };
    finds(corrupt, Rule::CommittedIsInLog, (2, None), Some(8), "entries to 8 are committed");
}

#[test]
fn two_entries_that_are_committed_at_one_index() {
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], ENTRIES_9, |body| change_entry(body, 9, 3, 2, None));
    };
    // Both stores that have the other one say so.
    let disks = good_cluster();
    corrupt(&disks);
    let found = judge(&disks).violations;
    let told: Vec<_> = found.iter().map(|v| (v.rule, v.store, v.other, v.index)).collect();
    let rule = Rule::StateMachineSafety;
    assert_eq!(told, [(rule, 0, Some(2), Some(LogIndex(9))), (rule, 1, Some(2), Some(LogIndex(9)))]);
}

#[test]
fn a_leader_that_lacks_what_was_committed() {
    // It says that it led term 3 before it had the entry that was committed in term 2.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], TERM_2, |body| body.extend(leads_bytes(3)));
    };
    finds(corrupt, Rule::LeaderCompleteness, (2, Some(0)), Some(8), "its log ends before");
}

#[test]
fn configurations_that_do_not_follow() {
    // The snapshot has another voter than the log.
    let corrupt = |disks: &[MemoryDisk; 3]| {
        rewrite(&disks[2], COMPACT, |body| {
            let mut from = 3u64.to_le_bytes().to_vec();
            from.extend(1u64.to_le_bytes());
            let mut to = 9u64.to_le_bytes().to_vec();
            to.extend(1u64.to_le_bytes());
            replace(body, &from, &to);
        });
    };
    finds(corrupt, Rule::ConfigurationChain, (2, None), Some(2), "another configuration");
}

/// Two voters change at once: an entry that all stores have, so all of them tell.
#[test]
fn a_configuration_that_jumps() {
    // Disks of their own: a file of another life, such as a spare segment, would not fit these histories.
    let disks = [1, 2, 3].map(|store| {
        let jump = Configuration::of_voters([replica(1), replica(5), replica(6)]);
        let jump = Entry { payload: Payload::Configuration(jump), ..entry(G, 8, 2, 0) };
        let disk = MemoryDisk::new();
        let (log, _) = open_memory(&disk, small()).unwrap();
        log.initialize(header(store)).unwrap();
        for mut write in history(store) {
            if write.entries.first().is_some_and(|entry| entry.index == LogIndex(8)) {
                write.entries = vec![jump.clone()];
            }
            put(&log, vec![write]).unwrap();
        }
        log.close();
        disk
    });
    let found = judge(&disks).violations;
    assert_eq!(found.len(), 3, "{found:#?}");
    for (n, violation) in found.iter().enumerate() {
        assert_eq!((violation.rule, violation.store), (Rule::ConfigurationChain, n));
        assert_eq!(violation.index, Some(LogIndex(8)));
        assert!(violation.what.contains("more than one voter"), "{violation:?}");
    }
}

/// The journal begins late, and most of what is known comes from the cold tier.
#[test]
fn what_is_in_the_cold_tier_is_judged_too() {
    let write_all = |vote_of_4: u64, change: u64| {
        let disk = MemoryDisk::new();
        let (store, _) = open_memory(&disk, small()).unwrap();
        store.initialize(header(vote_of_4)).unwrap();
        put(&store, vec![create(G), create(2)]).unwrap();
        let first = GroupWrite { commit: Some(LogIndex(40)), ..append(G, 1, 50, 3, 100) };
        put(&store, vec![first]).unwrap();
        if change > 0 {
            let cut =
                GroupWrite { truncate_from: Some(LogIndex(45)), ..append(G, 45, 6, 4, change as usize) };
            put(&store, vec![cut]).unwrap();
        }
        for n in 0..30 {
            put(&store, vec![append(2, n * 10 + 1, 10, 1, 400)]).unwrap();
            put(&store, vec![GroupWrite { compact: Some(meta(n * 10 + 8, 1)), ..write(2) }]).unwrap();
        }
        while store.stats().checkpoint_entries < 50 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        store.close();
        disk
    };
    let (a, b, c, d) = (write_all(1, 0), write_all(2, 0), write_all(3, 100), write_all(4, 101));
    let records = read(&a);
    assert!(
        matches!(records.groups[&GroupId(G)].history[0].event, Event::AsOf(_)),
        "the journal lost group 1"
    );
    assert_eq!(judge(&[a.clone(), b.clone(), c.clone()]).violations, []);
    let found = judge(&[a, b, c, d]).violations;
    let told: Vec<_> = found.iter().map(|v| (v.rule, v.store, v.other, v.index)).collect();
    assert_eq!(told, [(Rule::LogMatching, 3, Some(2), Some(LogIndex(45)))]);
}

#[test]
fn a_directory_is_read_without_a_change_and_not_while_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), small()).unwrap();
    store.initialize(header(1)).unwrap();
    put(&store, vec![create(G), create(2)]).unwrap();
    put(&store, vec![GroupWrite { commit: Some(LogIndex(9)), ..append(G, 1, 9, 1, 40_000) }]).unwrap();
    for n in 0..30 {
        put(&store, vec![append(2, n * 10 + 1, 10, 1, 400)]).unwrap();
        put(&store, vec![GroupWrite { compact: Some(meta(n * 10 + 8, 1)), ..write(2) }]).unwrap();
    }
    let locked = StoreRecords::read(dir.path(), &[]).unwrap_err();
    assert!(matches!(locked, OpenError::Locked { .. }), "{locked}");
    let state = store.group(GroupId(G)).unwrap();
    store.close();

    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let records = StoreRecords::read(dir.path(), &[GroupId(G)]).unwrap();
    assert!(records.refused.is_none(), "{:?}", records.refused);
    let group = &records.groups[&GroupId(G)];
    assert_eq!(group.state.as_ref(), Some(&state));
    assert_eq!(group.entries, (1..=9).map(|n| entry(G, n, 1, 40_000)).collect::<Vec<_>>());
    assert_eq!(records.groups[&GroupId(2)].entries, []);
    assert_eq!(check(&[records]).violations, []);
    assert_eq!(contents(dir.path()), contents(copy.path()), "reading changed a file");
    let (store, report) = LogStore::open(dir.path(), small()).unwrap();
    assert!(!report.doubt && report.torn_tail.is_none());
    assert_eq!(store.group(GroupId(G)), Some(state));
}

/// Whatever is in the files of a directory, reading it ends, and changes nothing.
#[test]
fn garbage_in_any_file_is_refused_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), small()).unwrap();
    store.initialize(header(1)).unwrap();
    for write in history(1) {
        put(&store, vec![write]).unwrap();
    }
    store.close();
    let files: Vec<_> = contents(dir.path()).into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    assert!(files.len() >= 5, "{} files", files.len());
    let mut refused = 0;
    for (name, good) in &files {
        let path = dir.path().join(name);
        let garbage = fill(1, 2, 3, good.len());
        for bytes in [good[..good.len() / 2].to_vec(), garbage, vec![0xff; good.len()], Vec::new()] {
            std::fs::write(&path, &bytes).unwrap();
            match StoreRecords::read(dir.path(), &[GroupId(G)]) {
                Ok(records) => drop(check(&[records])),
                Err(_) => refused += 1,
            }
            assert!(std::fs::read(&path).unwrap() == bytes, "{name} was changed");
        }
        std::fs::write(&path, good).unwrap();
    }
    assert!(refused >= 12, "{refused}");
    assert_eq!(check(&[StoreRecords::read(dir.path(), &[]).unwrap()]).violations, []);
}

/// Every file below a directory, and what is in it.
fn contents(dir: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found
                .extend(contents(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.push((name, std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// What opening a damaged store says is what reading it says.
#[test]
fn damage_is_told_as_opening_tells_it() {
    let [good, ..] = good_cluster();
    for (name, at) in [(SEGMENT, RECORDS_AT + 40), ("MARKER", 20), ("HEADER", 20), ("COLD", 30)] {
        let disk = good.copy();
        let mut bytes = disk.read(name).unwrap();
        bytes[at] ^= 1;
        disk.put(name, bytes);
        let read = StoreRecords::read_on(Arc::new(disk.clone()), &[]).unwrap_err();
        let opened = open_memory(&disk, small()).unwrap_err();
        assert_eq!(read.to_string(), opened.to_string());
    }
    let empty = StoreRecords::read_on(Arc::new(MemoryDisk::new()), &[]).unwrap_err();
    assert!(matches!(empty, OpenError::NoStore { .. }), "{empty}");
    let disk = good.copy();
    Disk::remove(&disk, "MARKER").unwrap();
    let read = StoreRecords::read_on(Arc::new(disk.clone()), &[]).unwrap_err();
    assert!(matches!(&read, OpenError::MissingFile { file, .. } if file == "MARKER"), "{read}");

    // Whole files, and a log that does not add up: a gap has no rule of Raft's, so it is told as it is.
    let disk = good.copy();
    rewrite(&disk, 4, |body| change_first(body, 4, 5));
    let records = self::read(&disk);
    let told = records.refused.as_ref().unwrap().to_string();
    assert_eq!(told, open_memory(&disk, small()).unwrap_err().to_string());
    assert!(told.contains("gap") || told.contains("checksum"), "{told}");
}

/// Another index for the first of the entries.
fn change_first(body: &mut Vec<u8>, from: u64, to: u64) {
    let mut before = from.to_le_bytes().to_vec();
    before.extend(2u32.to_le_bytes());
    let mut after = to.to_le_bytes().to_vec();
    after.extend(2u32.to_le_bytes());
    replace(body, &before, &after);
}
