//! A directory made of bytes that somebody else chose, and everything that can be asked of it: what the fuzz target and
//! the replay of its corpus do. Nothing may panic, and nothing may take memory in proportion to a length that the bytes
//! merely claim.

use std::sync::Arc;

use pontoon_raft_core::types::{GroupId, LogIndex};
use pontoon_storage::check::check;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::records::StoreRecords;
use pontoon_storage::{LogStore, Options};

use super::format::{self, Group, Marker};

const JOURNAL: u64 = 7;

/// What the rest of the bytes is used as. Checksums around it are made good, so that what is behind them is reached.
pub(crate) const KINDS: u8 = 9;

fn put_pair(pairs: &mut format::Pairs, key: Vec<u8>, value: Vec<u8>) {
    pairs.retain(|(k, _)| *k != key);
    pairs.push((key, value));
    pairs.sort();
}

/// The directory that `data` stands for: its first byte says which file the rest is.
pub(crate) fn disk_of(data: &[u8]) -> MemoryDisk {
    let (kind, rest) = data.split_first().map_or((0, data), |(kind, rest)| (kind % KINDS, rest));
    let good = format::batch(&[Group {
        id: 1,
        create: true,
        hard_state: Some((1, None)),
        entries: Some((1, vec![1, 1])),
        ..Group::default()
    }]);
    let mut header = format::header(1, 1, 2);
    let mut marker = Marker::new(JOURNAL).bytes();
    let mut records = format::record(1, 1, &good);
    let mut pairs = format::cold_base(JOURNAL, 0);
    let (mut raw_cold, mut head) = (None, None);
    match kind {
        0 => header = format::sealed(rest),
        1 => marker = format::sealed(rest),
        2 => records.extend(format::record(1, 2, rest)),
        3 => records = rest.to_vec(),
        4 => put_pair(&mut pairs, format::cold_key(b'm', &[1]), format::sealed(rest)),
        5 => put_pair(&mut pairs, format::cold_key(b'e', &[1, 1]), rest.to_vec()),
        6 => {
            let cut = rest.first().map_or(0, |n| usize::from(*n) + 1).min(rest.len());
            put_pair(&mut pairs, rest[..cut].to_vec(), rest[cut..].to_vec());
        }
        7 => raw_cold = Some(rest.to_vec()),
        _ => head = Some(format::sealed(rest)),
    }
    let mut segment = format::segment(1, JOURNAL, 1, &records);
    if let Some(head) = head {
        let len = head.len().min(segment.len());
        segment[..len].copy_from_slice(&head[..len]);
    }
    let disk = MemoryDisk::new();
    disk.put("HEADER", header);
    disk.put("MARKER", marker);
    disk.put("journal-00000001.seg", segment);
    disk.put("COLD", raw_cold.unwrap_or_else(|| format::cold_tier(pairs)));
    disk
}

/// Opens it and reads everything, and judges it as `pontoon check-cluster` does. `true`: it opened.
pub(crate) fn exercise(data: &[u8]) -> bool {
    let disk = disk_of(data);
    let records = StoreRecords::read_on(Arc::new(disk.clone()), &[GroupId(1)]);
    if let Ok(records) = records {
        let _ = check(&[records]);
    }
    let mut options = Options::default();
    options.segment_bytes = format::SEGMENT_BYTES as u64;
    options.space_reserve_bytes = 0;
    let Ok((store, _)) = LogStore::open_on(Arc::new(disk), options) else { return false };
    for group in store.groups() {
        let state = store.group(group).expect("listed");
        let _ = store.tombstone(group);
        let _ = store.term(group, state.last_index);
        let mut at = state.first_index;
        while at <= state.last_index {
            match store.entries(group, at..state.last_index.next(), 4096) {
                Ok(entries) => at = LogIndex(at.0 + entries.len() as u64),
                Err(_) => break,
            }
        }
    }
    let _ = (store.header(), store.note("x"));
    true
}
