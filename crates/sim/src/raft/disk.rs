//! A simulated disk: what is written can be read at once and is durable only after its sync; a crash loses the rest.
//! [`Volume`] is one replica's part of it. The simulation shares it between the host and the core ([`Disk`]); the
//! explorer gives each core its own, which is cloned with it ([`OwnDisk`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;

use pontoon_raft_core::{
    Entry, HardState, LogIndex, LogReadError, LogView, Persist, SnapshotMeta, Term, Ticket,
};

use super::machine::Machine;

/// Entries that can no longer be denied: they are durable, or others have seen them.
#[derive(Clone, Debug, Hash)]
pub struct Written {
    /// The term of the entry before them.
    pub prev_term: Term,
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Written {
    /// These entries, after one of `prev_term`.
    pub fn new(prev_term: Term, entries: &[Entry]) -> Self {
        Self { prev_term, entries: entries.to_vec() }
    }
}

/// What a disk can contain.
#[derive(Clone, Debug, Default, Hash)]
pub struct Content {
    /// Term and vote.
    pub hard_state: HardState,
    /// The commit note.
    pub commit: LogIndex,
    /// What the log begins after.
    pub snapshot: SnapshotMeta,
    /// A state of the machine at or above the snapshot.
    pub machine: Machine,
    /// The log.
    pub entries: VecDeque<Entry>,
}

impl Content {
    /// The last entry.
    pub fn last(&self) -> LogIndex {
        self.snapshot.index + self.entries.len() as u64
    }

    /// The entry at `index`.
    pub fn entry(&self, index: LogIndex) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.snapshot.index.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The term of what `write` appends to.
    fn applied(&mut self, write: &Write) -> Option<Written> {
        self.apply(write);
        let Write::Persist(persist, _) = write else { return None };
        let prev = persist.entries.first()?.index.prev();
        let prev_term = self.entry(prev).map_or(self.snapshot.term, |entry| entry.term);
        Some(Written::new(prev_term, &persist.entries))
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::Persist(persist, restored) => {
                if let Some(hard_state) = persist.hard_state {
                    self.hard_state = hard_state;
                }
                if let Some(snapshot) = &persist.snapshot {
                    self.snapshot = snapshot.clone();
                    self.entries.clear();
                    self.machine = restored.clone().expect("a snapshot comes with its state");
                }
                if let Some(from) = persist.truncate_from {
                    assert!(from > self.snapshot.index, "the compacted log is cut at {from}");
                    self.entries.truncate((from.0 - self.snapshot.index.0 - 1).try_into().expect("small"));
                }
                for entry in &persist.entries {
                    assert_eq!(entry.index, self.last().next(), "the log has a gap");
                    self.entries.push_back(entry.clone());
                }
                self.commit = persist.commit;
            }
            Write::Compact(snapshot, machine) => {
                if snapshot.index > self.snapshot.index {
                    let drop = snapshot.index.0 - self.snapshot.index.0;
                    self.entries.drain(..usize::try_from(drop).expect("small"));
                    self.snapshot = snapshot.clone();
                }
                self.machine = machine.clone();
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Write {
    /// A batch of the core, and the state that its snapshot brings.
    Persist(Persist, Option<Machine>),
    /// The log's begin moves; the state of the machine is saved.
    Compact(SnapshotMeta, Machine),
}

/// One replica's part of a disk.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// What survives a crash.
    durable: Content,
    /// What can be read.
    cached: Content,
    /// What leads from one to the other, oldest first.
    /// Each with the round of the disk that it belongs to.
    pending: VecDeque<(u64, Write)>,
    /// What the last record brought, if the disk may lose it.
    last: Option<Last>,
}

/// The newest durable record, so that it can be taken back.
#[derive(Clone, Debug, Default)]
struct Last {
    /// What was durable before it.
    before: Content,
    /// Its round; 0: there was none.
    round: u64,
    writes: Vec<Write>,
}

impl Volume {
    /// A volume that contains a fresh replica.
    pub fn new(snapshot: SnapshotMeta) -> Self {
        let content = Content { snapshot, ..Content::default() };
        Self { durable: content.clone(), cached: content, pending: VecDeque::new(), last: None }
    }

    /// The same, on a disk that may lose its last record.
    #[must_use]
    pub fn forgetful(mut self) -> Self {
        self.last = Some(Last { before: self.durable.clone(), ..Last::default() });
        self
    }

    /// What survives a crash.
    pub fn durable(&self) -> &Content {
        &self.durable
    }

    /// What can be read.
    pub fn cached(&self) -> &Content {
        &self.cached
    }

    fn write(&mut self, round: u64, write: Write) {
        self.cached.apply(&write);
        self.pending.push_back((round, write));
    }

    /// Takes a batch of the core over, and the state that its snapshot brings; the disk will write it in `round`.
    pub fn persist(&mut self, round: u64, persist: Persist, restored: Option<Machine>) {
        self.write(round, Write::Persist(persist, restored));
    }

    /// Moves the log's begin and saves the machine.
    pub fn compact(&mut self, round: u64, snapshot: SnapshotMeta, machine: Machine) {
        self.write(round, Write::Compact(snapshot, machine));
    }

    /// The oldest batch of the core that is not durable, and its round.
    pub fn oldest_pending(&self) -> Option<(u64, Ticket)> {
        self.pending.iter().find_map(|(round, write)| match write {
            Write::Persist(persist, _) => Some((*round, persist.ticket)),
            Write::Compact(..) => None,
        })
    }

    /// The round of the newest write that is not durable; 0 if there is none.
    pub fn newest_round(&self) -> u64 {
        self.pending.back().map_or(0, |(round, _)| *round)
    }

    /// What belongs to `round` and to those before it is durable now. Returns the entries among it.
    pub fn synced(&mut self, round: u64) -> Vec<Written> {
        let (mut written, mut record) = (Vec::new(), Vec::new());
        while self.pending.front().is_some_and(|(of, _)| *of <= round) {
            if let Some((_, write)) = self.pending.pop_front() {
                written.extend(self.durable.applied(&write));
                record.push(write);
            }
        }
        self.recorded(round, record);
        written
    }

    /// `writes` are a record that is durable now.
    fn recorded(&mut self, round: u64, writes: Vec<Write>) {
        let Some(last) = &mut self.last else { return };
        if writes.is_empty() {
            return;
        }
        for write in std::mem::replace(&mut last.writes, writes) {
            last.before.apply(&write);
        }
        last.round = round;
    }

    /// The round of the last durable record; 0: there was none, or it cannot be lost.
    pub fn last_round(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.round)
    }

    /// The last durable record is damaged, and cut off. Called between a crash and the next start.
    pub fn lose_last(&mut self) {
        let Some(last) = &mut self.last else { return };
        last.writes.clear();
        last.round = 0;
        self.durable = last.before.clone();
        self.cached = self.durable.clone();
    }

    /// The power fails: of what was not synced, only rounds before `end` have reached the disk.
    /// Returns the entries that did.
    pub fn crash(&mut self, end: u64) -> Vec<Written> {
        let (mut written, mut record) = (Vec::new(), Vec::new());
        for (round, write) in std::mem::take(&mut self.pending) {
            if round < end {
                written.extend(self.durable.applied(&write));
                record.push(write);
            }
        }
        self.recorded(end.saturating_sub(1), record);
        self.cached = self.durable.clone();
        written
    }

    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError> {
        let (mut found, mut bytes, mut index) = (Vec::new(), 0, range.start);
        while index < range.end {
            let Some(entry) = self.cached.entry(index) else {
                let first = self.cached.snapshot.index.next();
                let last = self.cached.last();
                return Err(if index < first {
                    LogReadError::Compacted { index, first }
                } else {
                    LogReadError::Missing { index, last }
                });
            };
            bytes += entry.size_bytes();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
            index = index.next();
        }
        Ok(found)
    }

    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        let (mut bytes, mut index) = (0, range.start);
        while index < range.end {
            let entry = self.cached.entry(index).expect("the core asks only for what it handed out");
            bytes += entry.size_bytes();
            if bytes > bytes_max && index > range.start {
                break;
            }
            index = index.next();
        }
        index
    }

    /// Everything that can make a difference later; tickets only by their order.
    fn hash_meaning(&self, hasher: &mut impl Hasher) {
        self.durable.hash(hasher);
        if let Some(last) = &self.last {
            last.before.hash(hasher);
            last.writes.is_empty().hash(hasher);
        }
        let last = self.last.iter().flat_map(|last| &last.writes);
        for write in last.chain(self.pending.iter().map(|(_, write)| write)) {
            match write {
                Write::Persist(persist, restored) => {
                    (0, persist.hard_state, &persist.snapshot, persist.truncate_from).hash(hasher);
                    (&persist.entries, persist.commit, restored).hash(hasher);
                }
                Write::Compact(snapshot, machine) => (1, snapshot, machine).hash(hasher),
            }
        }
    }
}

/// A volume that the host and the core's view of the log share.
#[derive(Clone, Debug, Default)]
pub struct Disk(Rc<RefCell<Volume>>);

impl Disk {
    /// A disk that contains a fresh replica; `forgetful`: it may lose its last record.
    pub fn new(snapshot: SnapshotMeta, forgetful: bool) -> Self {
        let volume = Volume::new(snapshot);
        Self(Rc::new(RefCell::new(if forgetful { volume.forgetful() } else { volume })))
    }

    /// See [`Volume::persist`].
    pub fn persist(&self, round: u64, persist: Persist, restored: Option<Machine>) {
        self.0.borrow_mut().persist(round, persist, restored);
    }

    /// See [`Volume::compact`].
    pub fn compact(&self, round: u64, snapshot: SnapshotMeta, machine: Machine) {
        self.0.borrow_mut().compact(round, snapshot, machine);
    }

    /// See [`Volume::synced`].
    pub fn synced(&self, round: u64) -> Vec<Written> {
        self.0.borrow_mut().synced(round)
    }

    /// See [`Volume::crash`].
    pub fn crash(&self, end: u64) -> Vec<Written> {
        self.0.borrow_mut().crash(end)
    }

    /// See [`Volume::last_round`].
    pub fn last_round(&self) -> u64 {
        self.0.borrow().last_round()
    }

    /// See [`Volume::lose_last`].
    pub fn lose_last(&self) {
        self.0.borrow_mut().lose_last();
    }

    /// Looks at what is durable.
    pub fn durable<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(self.0.borrow().durable())
    }

    /// Looks at what can be read.
    pub fn cached<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(self.0.borrow().cached())
    }
}

impl LogView for Disk {
    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError> {
        self.0.borrow().entries(range, bytes_max)
    }

    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        self.0.borrow().extent(range, bytes_max)
    }
}

/// A volume that belongs to one core and is cloned with it. Its `Debug` is a digest of what it means, for the explorer.
#[derive(Clone, Default)]
pub struct OwnDisk(RefCell<Volume>);

impl OwnDisk {
    /// A disk that holds `volume`.
    pub fn new(volume: Volume) -> Self {
        Self(RefCell::new(volume))
    }

    /// Looks at it.
    pub fn look<T>(&self, look: impl FnOnce(&Volume) -> T) -> T {
        look(&self.0.borrow())
    }

    /// Changes it.
    pub fn change<T>(&self, change: impl FnOnce(&mut Volume) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }
}

impl fmt::Debug for OwnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hasher = DefaultHasher::new();
        self.0.borrow().hash_meaning(&mut hasher);
        write!(f, "OwnDisk {:016x}", hasher.finish())
    }
}

impl LogView for OwnDisk {
    fn entries(&self, range: Range<LogIndex>, bytes_max: u64) -> Result<Vec<Entry>, LogReadError> {
        self.0.borrow().entries(range, bytes_max)
    }

    fn extent(&self, range: Range<LogIndex>, bytes_max: u64) -> LogIndex {
        self.0.borrow().extent(range, bytes_max)
    }
}
