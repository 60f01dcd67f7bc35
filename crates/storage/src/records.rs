//! The records of a store that nobody has open, for those who inspect and check it. Nothing in its directory is changed.
//!
//! A store keeps more than its present state: the journal tells what was written in which order, as far back as it
//! reaches, and the cold tier what was before. From both comes the history of each group, which [`check`](crate::check)
//! judges.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use pontoon_raft_core::types::{
    Configuration, Entry, GroupId, HardState, LogIndex, Payload, ReplicaId, SnapshotMeta, Term,
};

use crate::batch::GroupState;
use crate::codec::{self, Change};
use crate::cold::tier::Place;
use crate::cold::{self, Cold, Key, Meta, Tombstone};
use crate::config::Options;
use crate::disk::{Disk, RealDisk};
use crate::error::OpenError;
use crate::header::Header;
use crate::journal::segment;
use crate::lock::Lock;
use crate::marker;
use crate::recovery::replay::Replay;
use crate::recovery::scan::{self, Files, Replayed, ReplayedItem};
use crate::recovery::{self, TornTail};

/// What a store's directory tells.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreRecords {
    /// Whose data this is; `None` if the store was never initialised.
    pub header: Option<Header>,
    /// The version of the format that the directory has.
    pub format: u32,
    /// The groups that live or lived here, as far back as the records reach.
    pub groups: BTreeMap<GroupId, GroupRecords>,
    /// Segments of the journal that hold something.
    pub segments: usize,
    /// The number of the last batch.
    pub last_batch: u64,
    /// The last record is not whole; opening the store would cut it off.
    pub torn_tail: Option<TornTail>,
    /// The doubt that an earlier opening left; see `RecoveryReport::doubt`.
    pub doubt: bool,
    /// Why the store would not open, although each of its files is whole: a rule of one group's log is broken.
    pub refused: Option<OpenError>,
}

/// What is known of one group.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct GroupRecords {
    /// What happened, in order.
    pub history: Vec<Recorded>,
    /// How opening the store would find the group; `None` if the group does not live here any more, or the store would
    /// not open.
    pub state: Option<GroupState>,
    /// The replica that was destroyed here last, if the group does not live here again.
    pub tombstone: Option<ReplicaId>,
    /// The entries of the log, if they were asked for.
    pub entries: Vec<Entry>,
}

/// One event of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The batch that says so.
    pub batch: u64,
    /// What happened.
    pub event: Event,
}

/// What can happen to a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It began to exist, as this replica.
    Created(ReplicaId),
    /// Everything before is summed up: this is the state of which the cold tier tells.
    AsOf(Box<Base>),
    /// Term and vote.
    HardState(HardState),
    /// The whole log was replaced.
    Snapshot(Box<SnapshotMeta>),
    /// Entries at and after this index are void.
    Truncate(LogIndex),
    /// Entries were appended.
    Append {
        /// The index of the first.
        first: LogIndex,
        /// One for each.
        entries: Vec<EntryMark>,
    },
    /// The commit index was noted.
    Commit(LogIndex),
    /// The replica leads this term.
    Leads(Term),
    /// The log begins after this.
    Compact(Box<SnapshotMeta>),
    /// The group was destroyed here.
    Destroyed,
}

/// A group as of one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// The replica.
    pub replica: ReplicaId,
    /// Term and vote.
    pub hard_state: HardState,
    /// The commit index as last noted.
    pub commit: LogIndex,
    /// What the log begins after.
    pub snapshot: SnapshotMeta,
    /// The log's entries, from `snapshot.index + 1` on; `None` for one that is nowhere.
    pub entries: Vec<Option<EntryMark>>,
}

/// What tells one entry from another without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryMark {
    /// Its term.
    pub term: Term,
    /// The checksum over the group, the index and everything in the entry.
    pub crc: u32,
    /// The configuration that it is, if it is one.
    pub configuration: Option<Arc<Configuration>>,
}

impl StoreRecords {
    /// Reads the directory of a stopped store. The entries of the groups `whole` are kept, of the others only marks.
    ///
    /// sled changes what it opens, so its files are copied to the directory for temporary files first, and need that
    /// much room there.
    ///
    /// # Errors
    /// Another process has the directory, it holds no store, or it is damaged: what opening it would say.
    pub fn read(dir: &Path, whole: &[GroupId]) -> Result<Self, OpenError> {
        let place = || dir.display().to_string();
        let _lock = Lock::acquire_existing(dir)?;
        let disk = RealDisk::read_only(dir).map_err(OpenError::io("open directory", place()))?;
        let copies = tempfile::tempdir().map_err(OpenError::io("make a directory in", temp_place()))?;
        let records = Self::read_with(Arc::new(disk), copies.path(), whole);
        remove(copies);
        records
    }

    /// The same for a store on another [`Disk`], which is only read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_on(disk: Arc<dyn Disk>, whole: &[GroupId]) -> Result<Self, OpenError> {
        Self::read_with(disk, Path::new(""), whole)
    }

    fn read_with(disk: Arc<dyn Disk>, copies: &Path, whole: &[GroupId]) -> Result<Self, OpenError> {
        let header = Header::read(&*disk)?;
        let marker = recovery::read_marker(&*disk)?;
        let Some(marker) = marker else { return Err(no_marker(&*disk, header.is_some())) };
        let files = Files::read(&*disk, &marker)?;
        let place = Place::new(disk, Options::default().cold_cache_bytes);
        let name = place.name(marker.cold_generation);
        if !place.has(marker.cold_generation).map_err(OpenError::io("look for", &name))? {
            let rule = "MARKER says that this store has a cold tier";
            return Err(OpenError::MissingFile { file: name, rule });
        }
        let unusable = |e: io::Error| OpenError::Cold { path: name.clone(), reason: e.to_string() };
        let cold = place.open_copy(marker.cold_generation, copies).map_err(unusable)?;
        let mut replay = Replay::default();
        replay.load_cold(&*cold, &marker, &name, files.entries_max())?;
        let mut gathered = Gathered { whole, ..Gathered::default() };
        gathered.read_cold(&*cold).map_err(unusable)?;
        drop(cold);
        let mut refused = None;
        let scanned = scan::run(&files, &marker, |found| {
            let damaged = gathered.add(&found).err();
            // What recovery would refuse is for `check` to name; the rest of the history is read all the same.
            if refused.is_none() {
                refused = replay.apply(found).err().or(damaged);
            }
            Ok(())
        })?;
        let mut groups = gathered.finish();
        let outcome = match refused {
            Some(refused) => Err(refused),
            None => replay.finish(),
        };
        let refused = match outcome {
            Ok(outcome) => {
                for (id, index) in outcome.groups {
                    let group = groups.entry(id).or_default();
                    let (first, last) = (index.first_index(), index.last_index());
                    group.entries.retain(|entry| (first..=last).contains(&entry.index));
                    group.tombstone = None;
                    group.state = Some(index.state());
                }
                for (id, tomb) in outcome.tombs {
                    let group = groups.entry(id).or_default();
                    group.tombstone = group.state.is_none().then_some(tomb.replica);
                }
                None
            }
            Err(refused) => Some(refused),
        };
        Ok(Self {
            header,
            format: marker.format,
            groups,
            segments: scanned.live.len(),
            last_batch: scanned.next_batch - 1,
            torn_tail: scanned.torn,
            doubt: marker.doubt,
            refused,
        })
    }
}

fn temp_place() -> String {
    std::env::temp_dir().display().to_string()
}

/// Threads of sled may hold its files for a moment longer than its handle.
fn remove(copies: tempfile::TempDir) {
    const TRIES: u32 = 100;
    let path = copies.path().to_owned();
    for _ in 0..TRIES {
        if std::fs::remove_dir_all(&path).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    tracing::warn!(path = %path.display(), "a temporary directory stays behind");
}

/// Without `MARKER` there never was a store, or it is damaged.
fn no_marker(disk: &dyn Disk, has_header: bool) -> OpenError {
    let missing = |rule| OpenError::MissingFile { file: marker::FILE.to_owned(), rule };
    if has_header {
        return missing("there is a HEADER, so this was a working store");
    }
    match disk.list() {
        Ok(names) if names.iter().any(|name| segment::file_number(name).is_some()) => {
            missing("there are journal segments")
        }
        Ok(_) => OpenError::NoStore { dir: disk.place() },
        Err(e) => OpenError::io("list", disk.place())(e),
    }
}

/// The histories as they are read.
#[derive(Default)]
struct Gathered<'a> {
    whole: &'a [GroupId],
    histories: BTreeMap<GroupId, Vec<Recorded>>,
    entries: BTreeMap<GroupId, BTreeMap<LogIndex, Entry>>,
    metas: BTreeMap<GroupId, Meta>,
    tombstones: BTreeMap<GroupId, Tombstone>,
    cold_marks: BTreeMap<GroupId, Vec<(LogIndex, EntryMark)>>,
}

impl Gathered<'_> {
    /// The cold tier was checked before: an entry that cannot be read is garbage, or found to be missing later.
    fn read_cold(&mut self, cold: &dyn Cold) -> io::Result<()> {
        let mut found = Vec::new();
        cold.scan(&mut |key, value| {
            match cold::parse_key(key)? {
                Key::Meta(group) => drop(self.metas.insert(group, Meta::decode(value)?)),
                Key::Tombstone(group) => drop(self.tombstones.insert(group, Tombstone::decode(value)?)),
                Key::Entry(group, index, 0) => found.push((group, index)),
                _ => {}
            }
            Ok(())
        })?;
        for (group, index) in found {
            let Ok(Some(bytes)) = cold::get_entry(cold, group, index) else { continue };
            let bytes = Bytes::from(bytes);
            if let Ok(mark) = self.mark(&bytes, group, index) {
                self.cold_marks.entry(group).or_default().push((index, mark));
            }
        }
        Ok(())
    }

    /// What tells this entry from another; keeps it if it is of a group that is kept whole.
    fn mark(
        &mut self,
        bytes: &[u8],
        group: GroupId,
        index: LogIndex,
    ) -> Result<EntryMark, codec::DecodeError> {
        let crc = codec::checked_entry(bytes, group, index)?;
        let slot = codec::entry_slot(bytes)?;
        let mut configuration = None;
        let keep = self.whole.contains(&group);
        if keep || slot.shape.is_configuration() {
            let entry = codec::decode_entry(Bytes::copy_from_slice(bytes), group, index)?;
            if let Payload::Configuration(c) = &entry.payload {
                configuration = Some(Arc::new(c.clone()));
            }
            if keep {
                self.entries.entry(group).or_default().insert(index, entry);
            }
        }
        Ok(EntryMark { term: slot.term, crc, configuration })
    }

    fn add(&mut self, found: &Replayed<'_>) -> Result<(), OpenError> {
        let batch = found.batch;
        match &found.item {
            ReplayedItem::Note(..) => Ok(()),
            ReplayedItem::Leads(group, term) => {
                self.push(*group, batch, Event::Leads(*term));
                Ok(())
            }
            ReplayedItem::Group(change) => self.add_change(found, change),
        }
    }

    fn push(&mut self, group: GroupId, batch: u64, event: Event) {
        self.histories.entry(group).or_default().push(Recorded { batch, event });
    }

    /// In the order in which a batch is carried out.
    fn add_change(&mut self, found: &Replayed<'_>, change: &Change<'_>) -> Result<(), OpenError> {
        let (group, batch) = (change.group, found.batch);
        let mut damaged = Ok(());
        let mut marks = Vec::with_capacity(change.slots.len());
        for (n, slot) in change.slots.iter().enumerate() {
            let (at, index) = (slot.offset as usize, change.first + n as u64);
            let bytes = &found.body[at..at + slot.shape.encoded_len()];
            let mark = self.mark(bytes, group, index).unwrap_or_else(|e| {
                damaged = Err(OpenError::Damaged {
                    file: found.file.to_owned(),
                    offset: u64::from(found.body_at) + at as u64,
                    what: format!("group {group}, entry {index}: {e}"),
                    evidence: "the record's checksum is good: it was written like this".to_owned(),
                });
                EntryMark { term: slot.term, crc: 0, configuration: None }
            });
            marks.push(mark);
        }
        let append = (!marks.is_empty()).then_some(Event::Append { first: change.first, entries: marks });
        let events = [
            change.create.map(Event::Created),
            change.hard_state.map(Event::HardState),
            change.snapshot.as_deref().map(|meta| Event::Snapshot(Box::new(meta.clone()))),
            change.truncate_from.map(Event::Truncate),
            append,
            change.commit.map(Event::Commit),
            change.compact.as_deref().map(|meta| Event::Compact(Box::new(meta.clone()))),
            change.destroy.then_some(Event::Destroyed),
        ];
        for event in events.into_iter().flatten() {
            self.push(group, batch, event);
        }
        damaged
    }

    /// Puts what the cold tier says where it belongs: behind everything that it has in it.
    fn finish(mut self) -> BTreeMap<GroupId, GroupRecords> {
        let mut groups: BTreeMap<GroupId, GroupRecords> = BTreeMap::new();
        for (id, tombstone) in &self.tombstones {
            if self.metas.get(id).is_some_and(|meta| meta.as_of >= tombstone.as_of) {
                continue;
            }
            self.metas.remove(id);
            let history = self.histories.entry(*id).or_default();
            insert(history, tombstone.as_of, Event::Destroyed);
        }
        for (id, meta) in &self.metas {
            let history = self.histories.entry(*id).or_default();
            let base = base(meta, self.cold_marks.remove(id).unwrap_or_default(), history);
            insert(history, meta.as_of, Event::AsOf(Box::new(base)));
        }
        for (id, history) in self.histories {
            groups.entry(id).or_default().history = history;
        }
        for (id, entries) in self.entries {
            groups.entry(id).or_default().entries = entries.into_values().collect();
        }
        groups
    }
}

/// Behind all events to this batch.
fn insert(history: &mut Vec<Recorded>, as_of: u64, event: Event) {
    let at = history.partition_point(|recorded| recorded.batch <= as_of);
    history.insert(at, Recorded { batch: as_of, event });
}

/// The state that the cold tier tells of. Its entries lie there or, if they were appended since the journal's begin, in
/// the journal.
fn base(meta: &Meta, cold: Vec<(LogIndex, EntryMark)>, history: &[Recorded]) -> Base {
    // Recovery has compared the length with what there is room for.
    let len = meta.last_index.0.saturating_sub(meta.snapshot.index.0) as usize;
    let mut entries = vec![None; len];
    let mut set = |index: LogIndex, mark: &EntryMark| {
        if let Some(at) = index.0.checked_sub(meta.snapshot.index.0 + 1)
            && let Some(entry) = entries.get_mut(at as usize)
        {
            *entry = Some(mark.clone());
        }
    };
    for (index, mark) in &cold {
        set(*index, mark);
    }
    for recorded in history.iter().take_while(|recorded| recorded.batch <= meta.as_of) {
        if let Event::Append { first, entries } = &recorded.event {
            for (n, mark) in entries.iter().enumerate() {
                set(*first + n as u64, mark);
            }
        }
    }
    Base {
        replica: meta.replica,
        hard_state: meta.hard_state,
        commit: meta.commit,
        snapshot: meta.snapshot.clone(),
        entries,
    }
}
