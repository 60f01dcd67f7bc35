//! What is known of each group, and where its entries are.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use pontoon_raft_core::types::{GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

use crate::batch::GroupState;
use crate::codec::{self, Change, Decoder, Shape};

/// The journal holds no changes of the group, the tombstone or the note that sled lacks.
pub(crate) const CLEAN: u64 = u64::MAX;

/// Where an entry lies: 12 bytes. It is known from the moment of submission on: where in the journal a batch lies is
/// looked up when the entry is read, see `State::location`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The low half of the number of the batch that brought it. Live batches are far fewer than it can tell apart.
    batch: u32,
    /// Where it begins in its batch; or one of the two below.
    offset: u32,
    pub(crate) shape: Shape,
}

/// The offset of an entry that lies in sled.
const COLD: u32 = u32::MAX;
/// The offset of an entry that was not found yet.
const NOWHERE: u32 = u32::MAX - 1;

impl Place {
    /// Stands for an entry that was not found yet.
    pub(crate) const MISSING: Self = Self { batch: 0, offset: NOWHERE, shape: Shape::MISSING };

    /// In the journal, at an offset in a batch. A batch is far shorter than 4 GiB, see `BATCH_BYTES_MAX`.
    pub(crate) fn in_batch(batch: u64, offset: u32, shape: Shape) -> Self {
        Self { batch: batch as u32, offset, shape }
    }

    pub(crate) fn cold(shape: Shape) -> Self {
        Self { batch: 0, offset: COLD, shape }
    }

    pub(crate) fn is_cold(self) -> bool {
        self.offset == COLD
    }

    fn is_missing(self) -> bool {
        self.offset == NOWHERE
    }

    /// How many batches after `batch` its own was submitted. It was not submitted before that one.
    fn batches_after(self, batch: u64) -> u64 {
        u64::from(self.batch.wrapping_sub(batch as u32))
    }

    /// The number of its batch and its offset there. `next` is the number of the next batch to be submitted.
    pub(crate) fn batch_and_offset(self, next: u64) -> (u64, usize) {
        let ago = (next as u32).wrapping_sub(self.batch);
        (next.wrapping_sub(u64::from(ago)), self.offset as usize)
    }
}

/// Groups' numbers are given one after the other, by us, so any spread of their bits will do; the standard library's
/// hash costs more than all else that is done for a group in a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupHasher(u64);

impl Hasher for GroupHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, n: u64) {
        // 2^64 divided by the golden ratio. The table uses the lowest and the highest bits: both shall depend on all.
        let product = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Something for each of many groups.
pub(crate) type GroupMap<V> = HashMap<GroupId, V, BuildHasherDefault<GroupHasher>>;

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
    /// The first batch with a change to this group that sled does not have; `CLEAN` if there is none.
    pub(crate) dirty: u64,
    /// The log begins later than sled knows: what sled says of the group counts entries that are gone.
    pub(crate) begins_later: bool,
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
            dirty: CLEAN,
            begins_later: false,
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
            group.push_place(place);
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

    fn push_place(&mut self, place: Place) {
        // By half of what there is: a table that doubles would take twice what it needs.
        if self.places.len() == self.places.capacity() && self.places.len() >= 64 {
            self.places.reserve_exact(self.places.len() / 2);
        }
        self.places.push_back(place);
    }

    /// The rule that `change` would break, if there is one.
    pub(crate) fn check(&self, change: &Change<'_>) -> Result<(), String> {
        if let Some(replica) = change.create
            && replica != self.replica
        {
            return Err(format!(
                "cannot create replica {replica}: the group is here as replica {}",
                self.replica
            ));
        }
        let metas = [change.snapshot.as_deref(), change.compact.as_deref()];
        if let Some(meta) = metas.into_iter().flatten().find(|meta| meta.index.0 > codec::INDEX_MAX) {
            return Err(format!("the log cannot begin after {}: that is too large for an index", meta.index));
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
        if let Some(meta) = change.snapshot.as_deref() {
            (last, last_term) = (meta.index, meta.term);
            committed = LogIndex::ZERO;
        }
        if let Some(from) = change.truncate_from
            && from <= last
        {
            let begin = change.snapshot.as_deref().map_or(self.base_index, |meta| meta.index);
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
            for slot in change.slots.iter() {
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
        if let Some(meta) = change.compact.as_deref()
            && meta.term > hard_state.term
        {
            return Err(format!(
                "the snapshot is of term {}, the hard state only of {}",
                meta.term, hard_state.term
            ));
        }
        Ok(())
    }

    /// Carries out a change that [`check`](Self::check) let pass, and that is in `batch`. Slots' offsets count from
    /// `batch_at`.
    pub(crate) fn apply(
        &mut self,
        change: &Change<'_>,
        batch: u64,
        batch_at: u32,
        garbage: &mut Vec<ColdGarbage>,
    ) {
        self.dirty = self.dirty.min(batch);
        if let Some(hard_state) = change.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = change.snapshot.as_deref() {
            self.clear(change.group, garbage);
            self.commit = LogIndex::ZERO;
            self.set_base(meta);
        }
        if let Some(from) = change.truncate_from {
            self.truncate(change.group, from, garbage);
        }
        let mut index = self.last_index();
        for slot in change.slots.iter() {
            index = index.next();
            self.push_term(index, slot.term);
            self.push_place(Place::in_batch(batch, slot.offset - batch_at, slot.shape));
        }
        if let Some(commit) = change.commit {
            self.commit = self.commit.max(commit.min(self.last_index()));
        }
        if let Some(meta) = change.compact.as_deref() {
            self.compact(change.group, meta, garbage);
        }
    }

    fn set_base(&mut self, meta: &SnapshotMeta) {
        self.base_index = meta.index;
        self.base_term = meta.term;
        self.base = encode_meta(meta);
        self.begins_later = true;
        self.commit = self.commit.max(meta.index);
    }

    /// Drops all entries.
    pub(crate) fn clear(&mut self, group: GroupId, garbage: &mut Vec<ColdGarbage>) {
        self.note_garbage(group, self.first_index()..self.last_index().next(), garbage);
        self.places = VecDeque::new();
        self.terms = Vec::new();
    }

    fn truncate(&mut self, group: GroupId, from: LogIndex, garbage: &mut Vec<ColdGarbage>) {
        let from = from.max(self.first_index());
        let end = self.last_index().next();
        if from >= end {
            return;
        }
        self.note_garbage(group, from..end, garbage);
        self.places.truncate((from.0 - self.first_index().0) as usize);
        while self.terms.last().is_some_and(|(first, _)| *first >= from) {
            self.terms.pop();
        }
    }

    fn compact(&mut self, group: GroupId, meta: &SnapshotMeta, garbage: &mut Vec<ColdGarbage>) {
        if meta.index <= self.base_index {
            return;
        }
        if meta.index > self.last_index() {
            self.clear(group, garbage);
            self.set_base(meta);
            return;
        }
        self.note_garbage(group, self.first_index()..meta.index.next(), garbage);
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
    }

    /// How many entries at the front are in sled.
    fn cold_len(&self) -> u64 {
        self.places.partition_point(|p| p.is_cold()) as u64
    }

    fn note_garbage(&self, group: GroupId, dropped: Range<LogIndex>, garbage: &mut Vec<ColdGarbage>) {
        let cold_end = self.first_index().0 + self.cold_len();
        let range = dropped.start.0..dropped.end.0.min(cold_end);
        if range.start < range.end {
            garbage.push(ColdGarbage { group, range });
        }
    }

    /// The indexes of the entries that came with `batches`, before which there is nothing of this group in the journal.
    pub(crate) fn entries_of(&self, batches: &Range<u64>) -> Range<LogIndex> {
        let many = batches.end - batches.start;
        let start = self.cold_len();
        let end =
            self.places.partition_point(|p| p.is_cold() || p.batches_after(batches.start) < many) as u64;
        self.first_index() + start..self.first_index() + end
    }

    /// The entry lies in sled from now on, if it is still the one at `place`.
    pub(crate) fn moved_to_cold(&mut self, index: LogIndex, place: Place) -> bool {
        let at = index.0.checked_sub(self.base_index.0 + 1);
        match at.and_then(|at| self.places.get_mut(at as usize)) {
            Some(own) if *own == place => {
                *own = Place::cold(place.shape);
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
        let at = self.places.iter().position(|p| p.is_missing())?;
        Some(self.first_index() + at as u64)
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft_core::types::{Configuration, StoreId};

    use super::*;

    /// A place keeps half of its batch's number.
    #[test]
    fn batches_are_told_apart_where_the_low_half_of_their_numbers_begins_again() {
        let start = (1 << 32) - 2;
        let hot = (0..5).map(|n| Place::in_batch(start + n, 10 * n as u32, Shape::MISSING));
        let places = [Place::cold(Shape::MISSING)].into_iter().chain(hot).map(|place| (place, Term(1)));
        let meta = SnapshotMeta { index: LogIndex(6), ..SnapshotMeta::default() };
        let group =
            GroupIndex::recovered(ReplicaId::default(), HardState::default(), LogIndex(6), &meta, places);
        let entries = |batches: Range<u64>| {
            let range = group.entries_of(&batches);
            (range.start.0, range.end.0)
        };
        assert_eq!(entries(start..start + 1), (8, 9), "7 is in sled");
        assert_eq!(entries(start..start + 3), (8, 11));
        assert_eq!(entries(start..start + 9), (8, 13));
        for n in 0..5 {
            let place = group.place(LogIndex(8 + n)).unwrap();
            assert_eq!(place.batch_and_offset(start + 5), (start + n, 10 * n as usize));
            assert_eq!(place.batch_and_offset(start + 1_000_000), (start + n, 10 * n as usize));
        }
    }

    /// 10,000 idle groups must not cost more than a few megabytes.
    #[test]
    fn an_idle_group_is_small() {
        assert_eq!(size_of::<Place>(), 12);
        let replica = |n| ReplicaId { store: StoreId(n), number: 1 };
        let configuration = Configuration::of_voters([replica(1), replica(2), replica(3)]);
        let meta = SnapshotMeta { configuration, ..SnapshotMeta::default() };
        let entries = (0..3).map(|_| (Place::cold(Shape::MISSING), Term(1)));
        let group = GroupIndex::recovered(replica(1), HardState::default(), LogIndex(3), &meta, entries);
        // The table of groups has room for up to 16 where 7 are in it, for a number and a pointer each.
        let table = (size_of::<(GroupId, Box<GroupIndex>)>() + 1) * 16 / 7;
        let bytes = table + size_of::<GroupIndex>() + group.heap_bytes();
        assert!(bytes <= 500, "{bytes} bytes");
    }
}
