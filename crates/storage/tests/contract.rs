//! What the store promises, on a real directory with sled and on the disk in memory.

mod common;

use std::sync::{Arc, Mutex, mpsc};

use common::*;
use pontoon_raft_core::log_view::{LogReadError, LogView};
use pontoon_raft_core::types::*;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::*;

/// Runs a test on both kinds of store; the function given opens the store again and again.
fn on_both(test: impl Fn(&mut dyn FnMut() -> (LogStore, RecoveryReport))) {
    let disk = MemoryDisk::new();
    test(&mut || open_memory(&disk, small()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    test(&mut || LogStore::open(dir.path(), small()).unwrap());
}

#[test]
fn entries_are_readable_at_once_and_after_reopening() {
    on_both(|open| {
        let (store, report) = open();
        assert!(report.created);
        put(&store, vec![create(7), create(8)]).unwrap();
        let (sender, receiver) = mpsc::channel();
        store.submit(
            of(vec![append(7, 1, 5, 1, 100), append(8, 1, 2, 1, 10)]),
            Box::new(move |o| sender.send(o).unwrap()),
        );
        assert_eq!(store.entries(GroupId(7), index_range(1, 6), u64::MAX).unwrap().len(), 5);
        receiver.recv().unwrap().unwrap();
        store.close();
        let (store, report) = open();
        assert_eq!((report.created, report.groups, report.entries, report.doubt), (false, 2, 7, false));
        assert_eq!(all_entries(&store, 7), (1..6).map(|i| entry(7, i, 1, 100)).collect::<Vec<_>>());
        assert_eq!(store.group(GroupId(7)).unwrap().snapshot, meta(0, 0));
    });
}

#[test]
fn done_is_called_in_submit_order() {
    on_both(|open| {
        let (store, _) = open();
        put(&store, vec![create(1)]).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let seqs: Vec<_> = (1..=200)
            .map(|i| {
                let order = Arc::clone(&order);
                store.submit(
                    of(vec![append(1, i, 1, 1, 20)]),
                    Box::new(move |_| order.lock().unwrap().push(i)),
                )
            })
            .collect();
        assert!(seqs.windows(2).all(|w| w[0].0 + 1 == w[1].0));
        store.clone().close();
        assert_eq!(*order.lock().unwrap(), (1..=200).collect::<Vec<_>>());
        let stats = store.stats();
        assert_eq!(stats.batches, 201);
        assert!(stats.rounds <= 201 && stats.pending_bytes == 0);
    });
}

#[test]
fn threads_that_commit_at_once_share_rounds_and_each_waits_for_its_own() {
    const THREADS: u64 = 8;
    const EACH: u64 = 40;
    on_both(|open| {
        let (store, _) = open();
        put(&store, (1..=THREADS).map(create).collect()).unwrap();
        std::thread::scope(|scope| {
            for group in 1..=THREADS {
                let store = &store;
                scope.spawn(move || {
                    let mut before = BatchSeq(0);
                    for i in 1..=EACH {
                        let batch = of(vec![append(group, i, 1, 1, 20)]);
                        // One thread only hands its batches over, so that the writer thread has a part in it.
                        let number = if group == 1 {
                            store.submit(batch, Box::new(|outcome| outcome.unwrap()))
                        } else {
                            let number = store.commit(batch).unwrap();
                            assert!(store.durable_batch() >= number);
                            number
                        };
                        assert!(number > before);
                        before = number;
                    }
                });
            }
        });
        // Closing answers what was only handed over.
        let other = store.clone();
        store.close();
        let stats = other.stats();
        assert_eq!((stats.batches, stats.pending_bytes), (THREADS * EACH + 1, 0));
        assert!(other.commit(of(vec![])).unwrap_err().reason.contains("closed"));
        drop(other);
        let (store, report) = open();
        assert_eq!(report.last_batch, THREADS * EACH + 1);
        for group in 1..=THREADS {
            assert_eq!(all_entries(&store, group).len() as u64, EACH);
        }
    });
}

#[test]
fn ranges_are_bounded_by_bytes_and_checked() {
    on_both(|open| {
        let (store, _) = open();
        put(&store, vec![create(1), append(1, 1, 10, 1, 52)]).unwrap();
        let g = GroupId(1);
        let log = store.reader(g);
        // Each entry counts 100 bytes.
        assert_eq!(log.extent(index_range(1, 11), 250), LogIndex(3));
        assert_eq!(log.entries(index_range(1, 11), 250).unwrap().len(), 2);
        assert_eq!(log.extent(index_range(4, 11), 1), LogIndex(5), "at least one");
        assert_eq!(log.extent(index_range(4, 4), 1), LogIndex(4));
        assert_eq!(log.entries(index_range(4, 4), 1), Ok(vec![]));
        assert_eq!(
            log.entries(index_range(9, 12), 9999),
            Err(LogReadError::Missing { index: LogIndex(11), last: LogIndex(10) })
        );
        let compact = GroupWrite { compact: Some(meta(4, 1)), ..write(1) };
        put(&store, vec![compact]).unwrap();
        assert_eq!(
            log.entries(index_range(4, 6), 9999),
            Err(LogReadError::Compacted { index: LogIndex(4), first: LogIndex(5) })
        );
        assert_eq!(store.term(g, LogIndex(4)), Some(Term(1)));
        assert_eq!(store.term(g, LogIndex(3)), None);
        assert_eq!(store.group(g).unwrap().first_index, LogIndex(5));
    });
}

#[test]
fn every_kind_of_entry_survives() {
    on_both(|open| {
        let (store, _) = open();
        let joint = Configuration {
            voters: [replica(1), replica(2)].into(),
            outgoing_voters: [replica(1)].into(),
            learners: [replica(4)].into(),
            next_learners: [replica(5)].into(),
            auto_leave: true,
        };
        let kinds = [
            Payload::Noop,
            Payload::Configuration(joint),
            Payload::ElectionTimer { millis: 250 },
            Payload::Command(vec![9; 100_000].into()),
        ];
        let entries: Vec<_> = kinds
            .into_iter()
            .enumerate()
            .map(|(i, payload)| Entry {
                index: LogIndex(i as u64 + 1),
                term: Term(2),
                id: EntryId(i as u128),
                payload,
            })
            .collect();
        let voted = HardState { term: Term(2), voted_for: Some(replica(3)) };
        let w = GroupWrite { entries: entries.clone(), hard_state: Some(voted), ..write(1) };
        put(&store, vec![create(1), w]).unwrap();
        let sizes: u64 = entries.iter().map(Entry::size_bytes).sum();
        assert_eq!(store.extent(GroupId(1), index_range(1, 5), sizes), LogIndex(5));
        assert_eq!(store.extent(GroupId(1), index_range(1, 5), sizes - 1), LogIndex(4));
        drop(store);
        let (store, _) = open();
        assert_eq!(all_entries(&store, 1), entries);
        assert_eq!(store.group(GroupId(1)).unwrap().hard_state, voted);
        assert_eq!(store.extent(GroupId(1), index_range(1, 5), sizes), LogIndex(5));
    });
}

#[test]
fn a_destroyed_group_is_remembered_and_late_writes_are_ignored() {
    on_both(|open| {
        let (store, _) = open();
        let g = GroupId(3);
        put(&store, vec![create(3), append(3, 1, 3, 1, 10)]).unwrap();
        put(&store, vec![GroupWrite { destroy: true, ..write(3) }]).unwrap();
        assert!(store.is_tombstoned(g) && store.group(g).is_none());
        put(&store, vec![append(3, 4, 1, 1, 10)]).unwrap();
        drop(store);
        let (store, _) = open();
        assert_eq!(store.tombstone(g), Some(replica(1)));
        let again = GroupWrite { create: Some(ReplicaId { number: 2, ..replica(1) }), ..write(3) };
        put(&store, vec![again]).unwrap();
        assert!(!store.is_tombstoned(g));
        drop(store);
        let (store, _) = open();
        assert_eq!(store.group(g).unwrap().replica.number, 2);
        assert_eq!(store.group(g).unwrap().last_index, LogIndex(0));
        put(&store, vec![GroupWrite { destroy: true, ..write(3) }]).unwrap();
        let old = GroupWrite { create: Some(replica(1)), ..write(3) };
        let refused = put(&store, vec![old]).unwrap_err();
        assert!(refused.reason.contains("never reused"), "{refused}");
    });
}

#[test]
fn a_batch_that_breaks_a_rule_fails_the_store_and_names_the_rule() {
    let cases: Vec<(&str, Vec<GroupWrite>)> = vec![
        ("gap", vec![append(1, 5, 1, 1, 10)]),
        (
            "entry 6 follows entry 4",
            vec![GroupWrite { entries: vec![entry(1, 4, 1, 10), entry(1, 6, 1, 10)], ..write(1) }],
        ),
        ("too large for an index", vec![GroupWrite { compact: Some(meta(u64::MAX, 1)), ..write(1) }]),
        ("too large for an index", vec![GroupWrite { snapshot: Some(meta(u64::MAX, 1)), ..write(1) }]),
        ("does not exist", vec![append(2, 1, 1, 1, 10)]),
        ("term would go down", vec![GroupWrite { hard_state: hard_state(0), ..write(1) }]),
        ("hard state only", vec![GroupWrite { hard_state: None, ..append(1, 4, 1, 9, 10) }]),
        ("committed", vec![GroupWrite { truncate_from: Some(LogIndex(2)), ..write(1) }]),
        (
            "vote of term",
            vec![
                GroupWrite {
                    hard_state: Some(HardState { term: Term(3), voted_for: Some(replica(1)) }),
                    ..write(1)
                },
                GroupWrite {
                    hard_state: Some(HardState { term: Term(3), voted_for: Some(replica(2)) }),
                    ..write(1)
                },
            ],
        ),
    ];
    for (rule, groups) in cases {
        let disk = MemoryDisk::new();
        let (store, _) = open_memory(&disk, small()).unwrap();
        let commit = GroupWrite { commit: Some(LogIndex(2)), ..append(1, 1, 3, 1, 10) };
        put(&store, vec![create(1), commit]).unwrap();
        let refused = put(&store, groups).unwrap_err();
        assert!(refused.reason.contains(rule), "expected {rule}, found {refused}");
        assert_eq!(put(&store, vec![append(1, 4, 1, 1, 10)]), Err(refused), "final");
        drop(store);
        let (store, _) = open_memory(&disk, small()).unwrap();
        assert_eq!(store.group(GroupId(1)).unwrap().last_index, LogIndex(3), "nothing of it was written");
    }
}

#[test]
fn header_and_notes() {
    on_both(|open| {
        let (store, _) = open();
        assert_eq!(store.header(), None);
        let header = Header {
            cluster: 1,
            store: StoreId(2),
            name: "a".to_owned(),
            peer_address: "127.0.0.1:1".to_owned(),
            client_address: "127.0.0.1:2".to_owned(),
        };
        store.initialize(header.clone()).unwrap();
        store.put_note("k", b"one").unwrap();
        store.put_note("k", b"two").unwrap();
        store.put_note("l", b"").unwrap();
        assert!(matches!(store.put_note("m", &[0; 100_000]), Err(NoteError::TooLong { .. })));
        drop(store);
        let (store, _) = open();
        assert_eq!(store.header(), Some(header.clone()));
        assert_eq!(store.note("k").as_deref(), Some(&b"two"[..]));
        assert_eq!(store.note("l").as_deref(), Some(&b""[..]));
        assert_eq!(store.note("m"), None);
        let foreign = store.initialize(Header { cluster: 9, ..header.clone() });
        assert!(matches!(foreign, Err(InitializeError::Foreign { .. })));
        store.initialize(Header { name: "b".to_owned(), ..header }).unwrap();
        assert_eq!(store.header().unwrap().name, "b");
    });
}

#[test]
fn a_directory_belongs_to_one_opener() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), small()).unwrap();
    let second = LogStore::open(dir.path(), small()).unwrap_err();
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    assert!(second.to_string().contains("another process"));
    drop(store);
    LogStore::open(dir.path(), small()).unwrap();
}

#[test]
fn a_closed_store_refuses_and_the_last_handle_may_die_in_a_callback() {
    let disk = MemoryDisk::new();
    let (store, _) = open_memory(&disk, small()).unwrap();
    let other = store.clone();
    store.close();
    assert!(put(&other, vec![create(1)]).unwrap_err().reason.contains("closed"));
    drop(other);
    let (store, _) = open_memory(&disk, small()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let own = store.clone();
    drop(store);
    let handle = own.clone();
    own.submit(
        of(vec![create(1)]),
        Box::new(move |o| {
            drop(handle);
            sender.send(o).unwrap();
        }),
    );
    drop(own);
    receiver.recv().unwrap().unwrap();
}
