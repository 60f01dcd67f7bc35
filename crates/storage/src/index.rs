//! What is known of each group, and where its entries are.

use std::collections::VecDeque;
use std::ops::Range;

use pontoon_raft_core::types::{Entry, GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

use crate::batch::GroupState;
use crate::codec::{self, Change, Decoder, Shape, Slot};

/// In no segment: written by nobody yet. `Place::offset` is then the low half of the batch's number.
pub(crate) const PENDING: u32 = u32::MAX;
/// In no segment: in sled. Segment ids begin at 1, so places of a group never go down from first to last entry.
pub(crate) const COLD: u32 = 0;
/// No segment holds changes of the group that sled lacks.
pub(crate) const CLEAN: u32 = u32::MAX;

/// Where an entry lies: 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) shape: Shape,
}

/// Entries of sled that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ColdGarbage {
    pub(crate) group: GroupId,
    pub(crate) range: Range<u64>,
}

/// One group. Small when idle: the configuration is kept encoded, and nothing else is allocated beyond the places.
#[derive(Debug)]
pub(crate) struct GroupIndex {
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    pub(crate) commit: LogIndex,
    /// What the log begins after: index, term, and the whole `SnapshotMeta` encoded.
    base_index: LogIndex,
    base_term: Term,
    base: Box<[u8]>,
    /// One for each entry; the first is at `base_index + 1`.
    places: VecDeque<Place>,
    /// Where each term begins. Runs wholly at or before `base_index` are dropped.
    terms: Vec<(LogIndex, Term)>,
    /// The last entries, in memory. Those that are not written yet are always here.
    pub(crate) tail: VecDeque<Entry>,
    /// The oldest segment with a change to this group that sled does not have; `CLEAN` if there is none.
    pub(crate) dirty: u32,
}

fn encode_meta(meta: &SnapshotMeta) -> Box<[u8]> {
    let mut out = Vec::with_capacity(128);
    codec::put_snapshot(&mut out, meta);
    out.into_boxed_slice()
}

impl GroupIndex {
    pub(crate) fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            hard_state: HardState::default(),
            commit: LogIndex::ZERO,
            base_index: LogIndex::ZERO,
            base_term: Term::ZERO,
            base: encode_meta(&SnapshotMeta::default()),
            places: VecDeque::new(),
            terms: Vec::new(),
            tail: VecDeque::new(),
            dirty: CLEAN,
        }
    }

    /// A group as recovery found it.
    pub(crate) fn recovered(
        replica: ReplicaId,
        hard_state: HardState,
        commit: LogIndex,
        meta: &SnapshotMeta,
        entries: impl Iterator<Item = (Place, Term)>,
    ) -> Self {
        let mut group = Self { hard_state, commit, ..Self::new(replica) };
        group.base_index = meta.index;
        group.base_term = meta.term;
        group.base = encode_meta(meta);
        for (place, term) in entries {
            group.push_term(group.last_index().next(), term);
            group.places.push_back(place);
        }
        group
    }

    pub(crate) fn first_index(&self) -> LogIndex {
        self.base_index.next()
    }
    pub(crate) fn last_index(&self) -> LogIndex {
        self.base_index + self.places.len() as u64
    }
    pub(crate) fn last_term(&self) -> Term {
        self.terms.last().map_or(self.base_term, |(_, term)| *term)
    }
    /// The index of the first entry in `tail`; one past the last entry if it is empty.
    pub(crate) fn tail_first(&self) -> LogIndex {
        LogIndex(self.last_index().0 + 1 - self.tail.len() as u64)
    }
    pub(crate) fn place(&self, index: LogIndex) -> Option<Place> {
        let at = index.0.checked_sub(self.first_index().0)?;
        self.places.get(usize::try_from(at).ok()?).copied()
    }
    pub(crate) fn snapshot(&self) -> SnapshotMeta {
        Decoder::new(&self.base).snapshot().expect("encoded by this very struct")
    }
    pub(crate) fn state(&self) -> GroupState {
        GroupState {
            replica: self.replica,
            hard_state: self.hard_state,
            commit: self.commit,
            snapshot: self.snapshot(),
            first_index: self.first_index(),
            last_index: self.last_index(),
        }
    }
    pub(crate) fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.base_index {
            return Some(self.base_term);
        }
        if index < self.base_index || index > self.last_index() {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        Some(self.terms[run.checked_sub(1)?].1)
    }

    /// See `LogView::extent`. An end beyond the log counts as the log's end.
    pub(crate) fn extent(&self, range: &Range<LogIndex>, bytes_max: u64) -> LogIndex {
        let (mut at, mut bytes) = (range.start, 0);
        while at < range.end
            && let Some(place) = self.place(at)
        {
            bytes += place.shape.size_bytes();
            if bytes > bytes_max && at > range.start {
                break;
            }
            at = at.next();
        }
        at
    }

    fn push_term(&mut self, index: LogIndex, term: Term) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
    }

    /// The rule that `change` would break, if there is one.
    pub(crate) fn check(&self, change: &Change) -> Result<(), String> {
        if let Some(replica) = change.create
            && replica != self.replica
        {
            return Err(format!(
                "cannot create replica {replica}: the group is here as replica {}",
                self.replica
            ));
        }
        let hard_state = change.hard_state.unwrap_or(self.hard_state);
        if hard_state.term < self.hard_state.term {
            return Err(format!(
                "the term would go down from {} to {}",
                self.hard_state.term, hard_state.term
            ));
        }
        if hard_state.term == self.hard_state.term
            && let Some(vote) = self.hard_state.voted_for
            && hard_state.voted_for != Some(vote)
        {
            return Err(format!("the vote of term {} for {vote} would be changed", hard_state.term));
        }
        let (mut last, mut last_term, mut committed) = (self.last_index(), self.last_term(), self.commit);
        if let Some(meta) = &change.snapshot {
            (last, last_term) = (meta.index, meta.term);
            committed = LogIndex::ZERO;
        }
        if let Some(from) = change.truncate_from
            && from <= last
        {
            let begin = change.snapshot.as_ref().map_or(self.base_index, |meta| meta.index);
            if from <= begin {
                return Err(format!("cannot cut the log at {from}: it begins after {begin}"));
            }
            if from <= committed {
                return Err(format!("cannot cut the log at {from}: entries to {committed} are committed"));
            }
            last = from.prev();
            last_term = self.term(last).unwrap_or(last_term);
        }
        if !change.slots.is_empty() {
            if change.first != last.next() {
                return Err(format!(
                    "the log has a gap: expected entry {}, found {}",
                    last.next(),
                    change.first
                ));
            }
            for slot in &change.slots {
                if slot.term < last_term {
                    return Err(format!("entry terms go down from {last_term} to {}", slot.term));
                }
                last_term = slot.term;
            }
        }
        if last_term > hard_state.term {
            return Err(format!(
                "the log is of term {last_term}, the hard state only of {}",
                hard_state.term
            ));
        }
        if let Some(meta) = &change.compact
            && meta.term > hard_state.term
        {
            return Err(format!(
                "the snapshot is of term {}, the hard state only of {}",
                meta.term, hard_state.term
            ));
        }
        Ok(())
    }

    /// Carries out a change that [`check`](Self::check) let pass. `place` says where a slot is; the entries go to the
    /// tail. Returns the bytes by which the tail shrank or grew.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        entries: Vec<Entry>,
        place: impl Fn(&Slot) -> Place,
        garbage: &mut Vec<ColdGarbage>,
    ) -> i64 {
        let mut bytes = 0;
        if let Some(hard_state) = change.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = &change.snapshot {
            bytes -= self.clear(change.group, garbage);
            self.commit = LogIndex::ZERO;
            self.set_base(meta);
        }
        if let Some(from) = change.truncate_from {
            bytes -= self.truncate(change.group, from, garbage);
        }
        for slot in &change.slots {
            let index = self.last_index().next();
            self.push_term(index, slot.term);
            self.places.push_back(place(slot));
        }
        for entry in entries {
            bytes += cached_bytes(&entry);
            self.tail.push_back(entry);
        }
        if let Some(commit) = change.commit {
            self.commit = self.commit.max(commit.min(self.last_index()));
        }
        if let Some(meta) = &change.compact {
            bytes -= self.compact(change.group, meta, garbage);
        }
        bytes
    }

    fn set_base(&mut self, meta: &SnapshotMeta) {
        self.base_index = meta.index;
        self.base_term = meta.term;
        self.base = encode_meta(meta);
        self.commit = self.commit.max(meta.index);
    }

    /// Drops all entries. Returns the bytes the tail gave free.
    pub(crate) fn clear(&mut self, group: GroupId, garbage: &mut Vec<ColdGarbage>) -> i64 {
        self.note_garbage(group, self.first_index()..self.last_index().next(), garbage);
        self.places = VecDeque::new();
        self.terms = Vec::new();
        let bytes = self.tail.iter().map(cached_bytes).sum();
        self.tail = VecDeque::new();
        bytes
    }

    fn truncate(&mut self, group: GroupId, from: LogIndex, garbage: &mut Vec<ColdGarbage>) -> i64 {
        let from = from.max(self.first_index());
        let end = self.last_index().next();
        if from >= end {
            return 0;
        }
        self.note_garbage(group, from..end, garbage);
        let mut bytes = 0;
        for _ in from.0..end.0 {
            self.places.pop_back();
            bytes += self.tail.pop_back().as_ref().map_or(0, cached_bytes);
        }
        while self.terms.last().is_some_and(|(first, _)| *first >= from) {
            self.terms.pop();
        }
        bytes
    }

    fn compact(&mut self, group: GroupId, meta: &SnapshotMeta, garbage: &mut Vec<ColdGarbage>) -> i64 {
        if meta.index <= self.base_index {
            return 0;
        }
        if meta.index > self.last_index() {
            let bytes = self.clear(group, garbage);
            self.set_base(meta);
            return bytes;
        }
        self.note_garbage(group, self.first_index()..meta.index.next(), garbage);
        let mut bytes = 0;
        while self.tail_first() <= meta.index
            && let Some(entry) = self.tail.pop_front()
        {
            bytes += cached_bytes(&entry);
        }
        self.places.drain(..(meta.index.0 - self.base_index.0) as usize);
        // A busy group that was compacted keeps room for what it had. More than two places for an entry is too much.
        if self.places.capacity() > 64 && self.places.len() < self.places.capacity() / 2 {
            self.places.shrink_to(self.places.len() + self.places.len() / 4);
        }
        self.set_base(meta);
        let run = self.terms.partition_point(|(first, _)| *first <= meta.index);
        self.terms.drain(..run.saturating_sub(1));
        if let Some((first, _)) = self.terms.first_mut() {
            *first = (*first).max(meta.index.next());
        }
        if self.places.is_empty() {
            self.terms = Vec::new();
        }
        bytes
    }

    /// How many entries at the front are in sled.
    fn cold_len(&self) -> u64 {
        self.places.partition_point(|p| p.segment == COLD) as u64
    }

    fn note_garbage(&self, group: GroupId, dropped: Range<LogIndex>, garbage: &mut Vec<ColdGarbage>) {
        let cold_end = self.first_index().0 + self.cold_len();
        let range = dropped.start.0..dropped.end.0.min(cold_end);
        if range.start < range.end {
            garbage.push(ColdGarbage { group, range });
        }
    }

    /// Tells the entries of batch `batch` where they were written. Entries that were dropped or replaced since are
    /// not touched.
    pub(crate) fn written(&mut self, batch: u64, first: LogIndex, places: impl Iterator<Item = Place>) {
        let mut index = first;
        for place in places {
            if let Some(at) = index.0.checked_sub(self.base_index.0 + 1)
                && let Some(own) = self.places.get_mut(at as usize)
                && own.segment == PENDING
                && own.offset == batch as u32
            {
                *own = place;
            }
            index = index.next();
        }
    }

    /// The indexes of the entries that lie in `segment`.
    pub(crate) fn entries_in(&self, segment: u32) -> Range<LogIndex> {
        let start = self.places.partition_point(|p| p.segment < segment) as u64;
        let end = self.places.partition_point(|p| p.segment <= segment) as u64;
        self.first_index() + start..self.first_index() + end
    }

    /// The entry lies in sled from now on, if it is still the one at `place`.
    pub(crate) fn moved_to_cold(&mut self, index: LogIndex, place: Place) -> bool {
        let at = index.0.checked_sub(self.base_index.0 + 1);
        match at.and_then(|at| self.places.get_mut(at as usize)) {
            Some(own) if *own == place => {
                *own = Place { segment: COLD, offset: 0, shape: place.shape };
                true
            }
            _ => false,
        }
    }

    /// Gives back the room that a group has beyond what it needs, once it is so idle that its entries are cold.
    pub(crate) fn shrink(&mut self) {
        if self.cold_len() == self.places.len() as u64 {
            self.places.shrink_to_fit();
            self.terms.shrink_to_fit();
        }
    }

    /// What the group takes in memory beyond `size_of::<Self>()`, without the cached entries.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.base.len()
            + self.places.capacity() * size_of::<Place>()
            + self.terms.capacity() * size_of::<(LogIndex, Term)>()
    }

    /// The first entry that has no place.
    pub(crate) fn first_missing(&self) -> Option<LogIndex> {
        let at = self.places.iter().position(|p| p.segment == PENDING)?;
        Some(self.first_index() + at as u64)
    }

    /// Gives up cached entries to `last`, as far as they are written. Returns the bytes, and whether all are given up.
    pub(crate) fn evict(&mut self, last: LogIndex) -> (i64, bool) {
        let mut bytes = 0;
        while self.tail_first() <= last && !self.tail.is_empty() {
            if self.place(self.tail_first()).is_some_and(|p| p.segment == PENDING) {
                return (bytes, false);
            }
            bytes += self.tail.pop_front().as_ref().map_or(0, cached_bytes);
        }
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
        (bytes, true)
    }
}

/// What a cached entry counts for.
pub(crate) fn cached_bytes(entry: &Entry) -> i64 {
    (size_of::<Entry>() as u64 + entry.size_bytes()) as i64
}

#[cfg(test)]
mod tests {
    use pontoon_raft_core::types::{Configuration, StoreId};

    use super::*;

    /// 10,000 idle groups must not cost more than a few megabytes.
    #[test]
    fn an_idle_group_is_small() {
        assert_eq!(size_of::<Place>(), 12);
        let replica = |n| ReplicaId { store: StoreId(n), number: 1 };
        let configuration = Configuration::of_voters([replica(1), replica(2), replica(3)]);
        let meta = SnapshotMeta { configuration, ..SnapshotMeta::default() };
        let entries = (0..3).map(|_| (Place { segment: COLD, offset: 0, shape: Shape::MISSING }, Term(1)));
        let group = GroupIndex::recovered(replica(1), HardState::default(), LogIndex(3), &meta, entries);
        assert_eq!(group.tail.capacity(), 0);
        // The table of groups has room for up to 16 where 7 are in it, for a number and a pointer each.
        let table = (size_of::<(GroupId, Box<GroupIndex>)>() + 1) * 16 / 7;
        let bytes = table + size_of::<GroupIndex>() + group.heap_bytes();
        assert!(bytes <= 500, "{bytes} bytes");
    }
}
