//! Reading entries: from memory, the journal or sled, never waiting for the writer.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_raft_core::log_view::LogReadError;
use pontoon_raft_core::types::{Entry, GroupId, LogIndex};

use crate::codec;
use crate::cold;
use crate::index::{COLD, Place};
use crate::journal::segment::Segment;
use crate::state::{Shared, State};
use crate::stats::Counters;

/// How often a read starts again because the checkpoint moved what it was about to read.
const TRIES: usize = 8;
/// Entries that lie behind one another are read together, up to this many bytes.
const READ_BYTES_MAX: usize = 1 << 20;

/// What a read found in the index.
struct Plan {
    /// Entries that must be read, before those in memory.
    places: Vec<(LogIndex, Place, Option<Arc<Segment>>)>,
    cached: Vec<Entry>,
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
) -> Result<Plan, LogReadError> {
    check_range(state, group, range)?;
    let index = &state.groups[&group];
    let end = index.extent(range, bytes_max);
    let tail_first = index.tail_first();
    let mut places = Vec::new();
    let mut at = range.start;
    while at < end.min(tail_first) {
        let place = index.place(at).expect("the range was checked");
        let segment = state.segments.get(&place.segment).map(|live| Arc::clone(&live.segment));
        places.push((at, place, segment));
        at = at.next();
    }
    let cached = if at < end {
        let skip = (at.0 - tail_first.0) as usize;
        index.tail.range(skip..skip + (end.0 - at.0) as usize).cloned().collect()
    } else {
        Vec::new()
    };
    Ok(Plan { places, cached })
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
        let Plan { places, cached } = plan(&shared.lock(), group, &range, bytes_max)?;
        if places.is_empty() {
            return Ok(cached);
        }
        Counters::add(&shared.counters.disk_reads, 1);
        match read(shared, group, &places) {
            Ok(mut entries) => {
                entries.extend(cached);
                return Ok(entries);
            }
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.expect("the loop ran"))
}

fn read(
    shared: &Shared,
    group: GroupId,
    places: &[(LogIndex, Place, Option<Arc<Segment>>)],
) -> Result<Vec<Entry>, LogReadError> {
    let mut entries = Vec::with_capacity(places.len());
    let mut rest = places;
    while let Some((index, place, segment)) = rest.first() {
        let fail = |reason: String| LogReadError::Storage { index: *index, reason };
        let Some(segment) = segment else {
            if place.segment != COLD {
                return Err(fail(format!("segment {} is gone", place.segment)));
            }
            let bytes = cold::get_entry(&*shared.cold.current(), group, *index)
                .map_err(|e| fail(e.to_string()))?
                .ok_or_else(|| fail("it is not in the cold tier".to_owned()))?;
            entries.push(
                codec::decode_entry(&Bytes::from(bytes), group, *index).map_err(|e| fail(e.to_string()))?,
            );
            rest = &rest[1..];
            continue;
        };
        let (mut count, mut len) = (1, place.shape.encoded_len());
        while let Some((_, next, _)) = rest.get(count)
            && next.segment == place.segment
            && next.offset as usize == place.offset as usize + len
            && len + next.shape.encoded_len() <= READ_BYTES_MAX
        {
            len += next.shape.encoded_len();
            count += 1;
        }
        let mut bytes = vec![0; len];
        segment
            .file
            .read_at(u64::from(place.offset), &mut bytes)
            .map_err(|e| fail(format!("{}, offset {}: {e}", segment.name, place.offset)))?;
        let mut bytes = Bytes::from(bytes);
        for (index, place, _) in &rest[..count] {
            let entry = codec::decode_entry(&bytes.split_to(place.shape.encoded_len()), group, *index);
            entries.push(entry.map_err(|e| LogReadError::Storage {
                index: *index,
                reason: format!("{}, offset {}: {e}", segment.name, place.offset),
            })?);
        }
        rest = &rest[count..];
    }
    Ok(entries)
}
