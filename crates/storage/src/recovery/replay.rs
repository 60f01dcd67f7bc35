//! Building the index again: what the cold tier says, then what the journal says since.
//!
//! The cold tier knows each group as of some batch, and the journal usually begins before that one. Up to that batch the
//! journal only tells where entries lie; after it, every rule of the log is checked as it is when a batch is submitted.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use pontoon_raft_core::types::{GroupId, LogIndex, Term};

use crate::codec::{self, Change, Decoder, Slot};
use crate::cold::contents::Contents;
use crate::cold::{self, Cold, Key, Meta, Tombstone};
use crate::error::OpenError;
use crate::index::{CLEAN, ColdGarbage, GroupIndex, GroupMap, Place};
use crate::marker::Marker;
use crate::recovery::scan::{Replayed, ReplayedItem};
use crate::state::{Note, Tomb};

/// A group as of the cold tier, while the journal has not come so far.
#[derive(Debug)]
struct Base {
    meta: Meta,
    entries: Vec<(Place, Option<Term>)>,
}

impl Base {
    fn set(&mut self, index: LogIndex, place: Place, term: Term) {
        if let Some(at) = index.0.checked_sub(self.meta.snapshot.index.0 + 1)
            && let Some(own) = self.entries.get_mut(at as usize)
        {
            *own = (place, Some(term));
        }
    }

    fn into_index(self) -> GroupIndex {
        let meta = self.meta;
        let mut term = meta.snapshot.term;
        let last = self.entries.len();
        // An entry that is missing now may be cut or compacted by what follows; until then it needs some term.
        let entries = self.entries.into_iter().enumerate().map(|(at, (place, found))| {
            term = found.unwrap_or(if at + 1 == last { meta.last_term } else { term });
            (place, term)
        });
        GroupIndex::recovered(meta.replica, meta.hard_state, meta.commit, &meta.snapshot, entries)
    }
}

#[derive(Debug)]
enum Group {
    Base(Base),
    Live(GroupIndex),
}

#[derive(Debug)]
struct DeadGroup {
    as_of: u64,
    tomb: Tomb,
}

/// The state of an opening.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    groups: GroupMap<Group>,
    dead: GroupMap<DeadGroup>,
    notes: BTreeMap<String, Note>,
    /// Every entry that the cold tier holds.
    cold_entries: Vec<(GroupId, LogIndex)>,
    /// Entries of the cold tier that cannot be read, and why: an error only if they are needed.
    unreadable: HashMap<(GroupId, LogIndex), &'static str>,
    garbage: Vec<ColdGarbage>,
    /// The last checkpoint that the cold tier has.
    checkpoint: u64,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) groups: GroupMap<Box<GroupIndex>>,
    pub(crate) tombs: GroupMap<Tomb>,
    pub(crate) notes: BTreeMap<String, Note>,
    pub(crate) garbage: Vec<ColdGarbage>,
    pub(crate) entries: u64,
    pub(crate) checkpoint: u64,
}

/// An entry of the cold tier whose pieces are being gathered.
struct Pieces {
    group: GroupId,
    index: LogIndex,
    len: usize,
    bytes: Vec<u8>,
}

impl Replay {
    /// Reads the whole cold tier, checking every value, and their sum. The journal has at most `journal_entries_max`
    /// entries.
    pub(crate) fn load_cold(
        &mut self,
        cold: &dyn Cold,
        marker: &Marker,
        path: &str,
        journal_entries_max: u64,
    ) -> Result<Contents, OpenError> {
        let mut metas: HashMap<GroupId, Meta> = HashMap::new();
        let mut tombstones: HashMap<GroupId, Tombstone> = HashMap::new();
        let mut slots: Vec<(GroupId, LogIndex, Slot)> = Vec::new();
        let (mut checkpoint, mut journal) = (0, None);
        let mut pieces: Option<Pieces> = None;
        let (mut contents, mut expected) = (Contents::default(), None);
        cold.scan(&mut |key, value| {
            let parsed = cold::parse_key(key)?;
            if parsed != Key::Contents {
                contents.add(key, value);
            }
            match parsed {
                Key::Contents => expected = Some(Contents::decode(value)?),
                Key::Meta(group) => {
                    metas.insert(group, Meta::decode(value)?);
                }
                Key::Tombstone(group) => {
                    tombstones.insert(group, Tombstone::decode(value)?);
                }
                Key::Note(key) => {
                    let value = Bytes::copy_from_slice(codec::unsealed(value)?);
                    self.notes.insert(key, Note { value, dirty: CLEAN });
                }
                Key::Checkpoint => {
                    checkpoint = cold::decode_number(value)?;
                    // The next one has the next number.
                    if checkpoint > codec::INDEX_MAX {
                        return Err(codec::DecodeError("the checkpoint's number is too large"));
                    }
                }
                Key::Journal => journal = Some(cold::decode_number(value)?),
                Key::Entry(group, index, 0) => {
                    self.gathered(pieces.take(), &mut slots);
                    let len = Decoder::new(value).u32()? as usize;
                    pieces = Some(Pieces { group, index, len, bytes: value[4..].to_vec() });
                }
                Key::Entry(group, index, _) => {
                    // A longer entry at this index once had more pieces than the present one.
                    if let Some(p) = pieces.as_mut().filter(|p| (p.group, p.index) == (group, index))
                        && p.bytes.len() < p.len
                    {
                        p.bytes.extend_from_slice(value);
                    }
                }
            }
            Ok(())
        })
        .map_err(|e| OpenError::Cold { path: path.to_owned(), reason: e.to_string() })?;
        self.gathered(pieces, &mut slots);
        self.checkpoint = checkpoint;
        match journal {
            Some(found) if found != marker.journal => {
                return Err(OpenError::Foreign { file: path.to_owned(), found, expected: marker.journal });
            }
            Some(_) if checkpoint >= marker.checkpoint => {}
            _ => return Err(OpenError::ColdBehindMarker { found: checkpoint, expected: marker.checkpoint }),
        }
        if expected != Some(contents) && (marker.cold_is_summed || expected.is_some()) {
            if let Some(((id, index), why)) = self.unreadable.iter().min() {
                let what = format!("entry {index} in the cold tier is damaged: {why}");
                return Err(OpenError::Group { group: id.0, what });
            }
            let expected = expected.unwrap_or_default();
            return Err(OpenError::ColdIncomplete {
                path: path.to_owned(),
                found_keys: contents.keys,
                found_bytes: contents.bytes,
                expected_keys: expected.keys,
                expected_bytes: expected.bytes,
            });
        }
        self.take_groups(metas, tombstones, slots, journal_entries_max)?;
        Ok(contents)
    }

    fn gathered(&mut self, pieces: Option<Pieces>, slots: &mut Vec<(GroupId, LogIndex, Slot)>) {
        let Some(Pieces { group, index, bytes, len }) = pieces else { return };
        self.cold_entries.push((group, index));
        let bytes = Bytes::from(bytes);
        if bytes.len() != len {
            self.unreadable.insert((group, index), "a piece of it is missing");
            return;
        }
        match codec::decode_entry(bytes.clone(), group, index).and_then(|_| codec::entry_slot(&bytes)) {
            Ok(slot) => slots.push((group, index, slot)),
            Err(e) => {
                self.unreadable.insert((group, index), e.0);
            }
        }
    }

    fn take_groups(
        &mut self,
        metas: HashMap<GroupId, Meta>,
        tombstones: HashMap<GroupId, Tombstone>,
        slots: Vec<(GroupId, LogIndex, Slot)>,
        journal_entries_max: u64,
    ) -> Result<(), OpenError> {
        let entries_max = journal_entries_max + self.cold_entries.len() as u64;
        for (id, meta) in metas {
            // The younger of the two knows whether the group lives; both are written when it does.
            if tombstones.get(&id).is_some_and(|tombstone| tombstone.as_of > meta.as_of) {
                continue;
            }
            let Some(len) = meta.last_index.0.checked_sub(meta.snapshot.index.0) else {
                let what = "the cold tier's metadata say that the log ends before it begins".to_owned();
                return Err(OpenError::Group { group: id.0, what });
            };
            // Before memory is taken for them: a number, even with a good checksum, may claim anything.
            if len > entries_max {
                let what = format!(
                    "the cold tier's metadata say that the log has {len} entries, and there is room for at most {entries_max} in the store"
                );
                return Err(OpenError::Group { group: id.0, what });
            }
            self.groups
                .insert(id, Group::Base(Base { meta, entries: vec![(Place::MISSING, None); len as usize] }));
        }
        for (id, tombstone) in tombstones {
            let tomb = Tomb { replica: tombstone.replica, dirty: CLEAN };
            self.dead.insert(id, DeadGroup { as_of: tombstone.as_of, tomb });
        }
        for (id, index, slot) in slots {
            if let Some(Group::Base(base)) = self.groups.get_mut(&id) {
                base.set(index, Place::cold(slot.shape), slot.term);
            }
        }
        Ok(())
    }

    /// Carries out what the journal says.
    pub(crate) fn apply(&mut self, found: Replayed<'_>) -> Result<(), OpenError> {
        let Replayed { batch, batch_at, file, item, .. } = found;
        match item {
            // For those who check several stores; see `records`.
            ReplayedItem::Leads(..) => Ok(()),
            ReplayedItem::Note(key, value) => {
                let note = self.notes.entry(key).or_insert(Note { value: Bytes::new(), dirty: CLEAN });
                note.value = value;
                note.dirty = note.dirty.min(batch);
                Ok(())
            }
            ReplayedItem::Group(change) => {
                let group = change.group.0;
                self.apply_change(&change, batch, batch_at).map_err(|rule| OpenError::Group {
                    group,
                    what: format!("batch {batch} in {file} does not follow from what is before it: {rule}"),
                })
            }
        }
    }

    fn apply_change(&mut self, change: &Change<'_>, batch: u64, batch_at: u32) -> Result<(), String> {
        let id = change.group;
        if let Some(Group::Base(base)) = self.groups.get_mut(&id)
            && batch <= base.meta.as_of
        {
            for (n, slot) in change.slots.iter().enumerate() {
                let place = Place::in_batch(batch, slot.offset - batch_at, slot.shape);
                base.set(change.first + n as u64, place, slot.term);
            }
            return Ok(());
        }
        if !self.groups.contains_key(&id) {
            let dead = self.dead.get_mut(&id);
            if let Some(dead) = dead {
                if batch <= dead.as_of {
                    return Ok(());
                }
                dead.tomb.dirty = dead.tomb.dirty.min(batch);
                if change.create.is_none() {
                    return Ok(());
                }
            }
            let replica = change.create.ok_or("the group does not exist")?;
            self.groups.insert(id, Group::Live(GroupIndex::new(replica)));
        }
        let slot = self.groups.get_mut(&id).expect("looked up or inserted above");
        if let Group::Base(base) = slot {
            let empty = Base { meta: base.meta.clone(), entries: Vec::new() };
            let base = std::mem::replace(base, empty);
            *slot = Group::Live(base.into_index());
        }
        let Group::Live(group) = slot else { unreachable!("made live above") };
        group.check(change)?;
        group.apply(change, batch, batch_at, &mut self.garbage);
        if change.destroy {
            group.clear(id, &mut self.garbage);
            let older = self.dead.get(&id).map_or(CLEAN, |dead| dead.tomb.dirty);
            let tomb = Tomb { replica: group.replica, dirty: group.dirty.min(older) };
            self.groups.remove(&id);
            self.dead.insert(id, DeadGroup { as_of: 0, tomb });
        }
        Ok(())
    }

    /// Checks that every log is whole.
    pub(crate) fn finish(self) -> Result<Outcome, OpenError> {
        let mut groups = GroupMap::with_capacity_and_hasher(self.groups.len(), Default::default());
        let mut entries = 0;
        for (id, group) in self.groups {
            let group = match group {
                Group::Live(group) => group,
                Group::Base(base) => base.into_index(),
            };
            if let Some(index) = group.first_missing() {
                let why = self.unreadable.get(&(id, index)).copied();
                let what = match why {
                    Some(why) => format!("entry {index} in the cold tier is damaged: {why}"),
                    None => format!("entry {index} is neither in the journal nor in the cold tier"),
                };
                return Err(OpenError::Group { group: id.0, what });
            }
            if group.last_term() > group.hard_state.term {
                let what = format!(
                    "the log is of term {}, the hard state only of {}: it is older than the log",
                    group.last_term(),
                    group.hard_state.term
                );
                return Err(OpenError::Group { group: id.0, what });
            }
            entries += group.last_index().0 + 1 - group.first_index().0;
            groups.insert(id, Box::new(group));
        }
        let mut garbage = self.garbage;
        for (group, index) in self.cold_entries {
            let used = groups.get(&group).and_then(|g| g.place(index)).is_some_and(Place::is_cold);
            if !used {
                garbage.push(ColdGarbage { group, range: index.0..index.0 + 1 });
            }
        }
        let tombs = self.dead.into_iter().map(|(id, dead)| (id, dead.tomb)).collect();
        Ok(Outcome { groups, tombs, notes: self.notes, garbage, entries, checkpoint: self.checkpoint })
    }
}
