//! Reading entries: from memory, the journal or sled, never waiting for the writer.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_raft_core::log_view::LogReadError;
use pontoon_raft_core::types::{Entry, GroupId, LogIndex};

use crate::codec;
use crate::cold;
use crate::journal::segment::Segment;
use crate::state::{Shared, State};
use crate::stats::Counters;

/// How often a read starts again because the checkpoint moved what it was about to read.
const TRIES: usize = 8;
/// Entries that lie behind one another are read together, up to this many bytes.
const READ_BYTES_MAX: usize = 1 << 20;

/// Where an entry was found.
enum Source {
    /// Encoded, in memory.
    Memory(Bytes),
    /// In a segment, at an offset, with an encoded length.
    Journal(Arc<Segment>, u64, usize),
    Cold,
}

fn check_range(state: &State, group: GroupId, range: &Range<LogIndex>) -> Result<(), LogReadError> {
    let Some(index) = state.groups.get(&group) else {
        return Err(LogReadError::Missing { index: range.start, last: LogIndex::ZERO });
    };
    if range.start < index.first_index() {
        return Err(LogReadError::Compacted { index: range.start, first: index.first_index() });
    }
    let last = index.last_index();
    if range.end.prev() > last {
        return Err(LogReadError::Missing { index: range.start.max(last.next()), last });
    }
    Ok(())
}

fn plan(
    state: &State,
    group: GroupId,
    range: &Range<LogIndex>,
    bytes_max: u64,
) -> Result<Vec<Source>, LogReadError> {
    check_range(state, group, range)?;
    let index = &state.groups[&group];
    let end = index.extent(range, bytes_max);
    let source = |at: LogIndex| {
        let place = index.place(at).expect("the range was checked");
        if place.is_cold() {
            return Ok(Source::Cold);
        }
        let len = place.shape.encoded_len();
        let (batch, offset) = place.batch_and_offset(state.next_batch);
        if let Some(bytes) = state.recent.get(batch) {
            return Ok(Source::Memory(bytes.slice(offset..offset + len)));
        }
        let (segment, batch_at) = state.location(batch).ok_or_else(|| LogReadError::Storage {
            index: at,
            reason: format!("the segment of batch {batch} is gone"),
        })?;
        Ok(Source::Journal(Arc::clone(segment), batch_at + offset as u64, len))
    };
    (range.start.0..end.0).map(|at| source(LogIndex(at))).collect()
}

/// See `LogView::entries`.
pub(crate) fn entries(
    shared: &Shared,
    group: GroupId,
    range: Range<LogIndex>,
    bytes_max: u64,
) -> Result<Vec<Entry>, LogReadError> {
    if range.start >= range.end {
        return Ok(Vec::new());
    }
    let mut failure = None;
    for _ in 0..TRIES {
        let sources = plan(&shared.lock(), group, &range, bytes_max)?;
        if sources.iter().any(|source| !matches!(source, Source::Memory(_))) {
            Counters::add(&shared.counters.disk_reads, 1);
        }
        match read(shared, group, range.start, &sources) {
            Ok(entries) => return Ok(entries),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.expect("the loop ran"))
}

fn read(
    shared: &Shared,
    group: GroupId,
    first: LogIndex,
    sources: &[Source],
) -> Result<Vec<Entry>, LogReadError> {
    let mut entries = Vec::with_capacity(sources.len());
    while let Some(source) = sources.get(entries.len()) {
        let index = first + entries.len() as u64;
        let fail = |reason: String| LogReadError::Storage { index, reason };
        match source {
            Source::Memory(bytes) => {
                entries.push(codec::parse_entry(bytes.clone(), index).map_err(|e| fail(e.to_string()))?);
            }
            Source::Cold => {
                let bytes = cold::get_entry(&*shared.cold.current(), group, index)
                    .map_err(|e| fail(e.to_string()))?
                    .ok_or_else(|| fail("it is not in the cold tier".to_owned()))?;
                let entry = codec::decode_entry(bytes.into(), group, index);
                entries.push(entry.map_err(|e| fail(e.to_string()))?);
            }
            Source::Journal(segment, at, _) => {
                let lens = run(&sources[entries.len()..], segment, *at);
                let mut bytes = vec![0; lens.iter().sum()];
                segment
                    .file
                    .read_at(*at, &mut bytes)
                    .map_err(|e| fail(format!("{}, offset {at}: {e}", segment.name)))?;
                let mut bytes = Bytes::from(bytes);
                for len in lens {
                    let index = first + entries.len() as u64;
                    let entry = codec::decode_entry(bytes.split_to(len), group, index);
                    entries.push(entry.map_err(|e| LogReadError::Storage {
                        index,
                        reason: format!("{}, read at offset {at}: {e}", segment.name),
                    })?);
                }
            }
        }
    }
    Ok(entries)
}

/// The lengths of the entries that lie behind one another, the first at `at` of `segment`.
fn run(sources: &[Source], segment: &Arc<Segment>, mut at: u64) -> Vec<usize> {
    let (mut lens, mut bytes) = (Vec::new(), 0);
    for source in sources {
        let Source::Journal(other, begin, len) = source else { break };
        if !Arc::ptr_eq(other, segment) || *begin != at || (bytes + len > READ_BYTES_MAX && bytes > 0) {
            break;
        }
        lens.push(*len);
        bytes += len;
        at += *len as u64;
    }
    lens
}
