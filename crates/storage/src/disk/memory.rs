//! A disk in memory that can lose power and fail on demand.
//!
//! It records every write, sync and renaming. [`MemoryDisk::after_power_cut`] builds the disk as it may be found when
//! the power goes at any point of that record: what was synced is there, of the rest any sectors may be there, in any
//! order.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskFile};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

type FileId = u64;

/// One thing that happened to the disk.
#[derive(Clone, Debug)]
enum Op {
    Create { name: String, file: FileId },
    Write { file: FileId, offset: u64, bytes: Vec<u8> },
    Sync { file: FileId },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncNames,
    Mark(u64),
}

#[derive(Clone, Debug, Default)]
struct Contents {
    names: BTreeMap<String, FileId>,
    files: HashMap<FileId, Vec<u8>>,
}

impl Contents {
    fn rename(&mut self, op: &Op) {
        match op {
            Op::Create { name, file } => {
                self.names.insert(name.clone(), *file);
            }
            Op::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Remove { name } => {
                self.names.remove(name);
            }
            _ => {}
        }
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let own = self.files.entry(file).or_default();
        let end = offset as usize + bytes.len();
        if own.len() < end {
            own.resize(end, 0);
        }
        own[offset as usize..end].copy_from_slice(bytes);
    }
}

#[derive(Debug, Default)]
struct Faults {
    writes_until_failure: Option<u64>,
    syncs_until_failure: Option<u64>,
    capacity: Option<u64>,
    unsynced: Vec<String>,
    /// Syncs of files whose names begin like this do not return.
    hung: Option<String>,
    /// Writes take at most so many bytes at a time.
    write_bytes_max: Option<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    start: Contents,
    now: Contents,
    record: Option<Vec<Op>>,
    next_file: FileId,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    unhung: Condvar,
}

/// A directory in memory. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

/// A small generator of random numbers (SplitMix64), so that a seed always means the same.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

impl MemoryDisk {
    /// An empty disk that does not record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk that records what happens to it.
    #[must_use]
    pub fn recording() -> Self {
        let disk = Self::default();
        disk.lock().record = Some(Vec::new());
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records from now on; what is there now counts as durable.
    pub fn record(&self) {
        let mut inner = self.lock();
        inner.start = inner.now.clone();
        inner.record = Some(Vec::new());
    }

    /// Writes a number into the record: something that happened outside, such as an acknowledgement.
    pub fn mark(&self, n: u64) {
        self.lock().note(|| Op::Mark(n));
    }

    /// How many things were recorded.
    #[must_use]
    pub fn recorded(&self) -> usize {
        self.lock().record.as_ref().map_or(0, Vec::len)
    }

    /// The disk after a power cut behind the first `at` things that were recorded, and the largest mark among them.
    /// `seed` decides which unsynced sectors and names survive.
    #[must_use]
    pub fn after_power_cut(&self, at: usize, seed: u64) -> (Self, Option<u64>) {
        let inner = self.lock();
        let record = inner.record.as_deref().unwrap_or_default();
        let mut random = Random(seed);
        let mut durable = inner.start.clone();
        let mut unsynced: BTreeMap<FileId, Vec<(u64, &[u8])>> = BTreeMap::new();
        let mut unsynced_names: Vec<&Op> = Vec::new();
        let mut mark = None;
        for op in &record[..at.min(record.len())] {
            match op {
                Op::Write { file, offset, bytes } => {
                    unsynced.entry(*file).or_default().push((*offset, bytes));
                }
                Op::Sync { file } => {
                    for (offset, bytes) in unsynced.remove(file).unwrap_or_default() {
                        durable.write(*file, offset, bytes);
                    }
                }
                Op::Create { .. } | Op::Rename { .. } | Op::Remove { .. } => unsynced_names.push(op),
                Op::SyncNames => unsynced_names.drain(..).for_each(|op| durable.rename(op)),
                Op::Mark(n) => mark = mark.max(Some(*n)),
            }
        }
        // File systems keep the order of names; of data any sector may have reached the disk.
        let names = random.below(unsynced_names.len() as u64 + 1) as usize;
        unsynced_names[..names].iter().for_each(|op| durable.rename(op));
        let chance = random.below(5);
        for (file, writes) in unsynced {
            for (offset, bytes) in writes {
                let mut from = 0;
                while from < bytes.len() {
                    let at = offset as usize + from;
                    let to = (from + SECTOR - at % SECTOR).min(bytes.len());
                    if random.below(4) < chance {
                        durable.write(file, at as u64, &bytes[from..to]);
                    }
                    from = to;
                }
            }
        }
        (Self::with(durable, inner.next_file), mark)
    }

    /// A copy as of now, with nothing recorded and no faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.lock();
        Self::with(inner.now.clone(), inner.next_file)
    }

    fn with(contents: Contents, next_file: FileId) -> Self {
        let inner = Inner { start: contents.clone(), now: contents, next_file, ..Inner::default() };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), unhung: Condvar::new() }) }
    }

    /// The bytes of a file.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.lock();
        inner.now.names.get(name).and_then(|file| inner.now.files.get(file)).cloned()
    }

    /// Lays a file on the disk, durable as it is: what was there before the disk's life in this process began.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.lock();
        inner.next_file += 1;
        let file = inner.next_file;
        let inner = &mut *inner;
        for contents in [&mut inner.start, &mut inner.now] {
            contents.names.insert(name.to_owned(), file);
            contents.files.insert(file, bytes.clone());
        }
    }

    /// Replaces a file's bytes, as damage does: nothing is recorded.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        if let Some(file) = inner.now.names.get(name).copied() {
            change(inner.now.files.entry(file).or_default());
        }
    }

    /// The write after `n` more fails half-way, and all later ones.
    pub fn fail_writes_after(&self, n: u64) {
        self.lock().faults.writes_until_failure = Some(n);
    }

    /// The sync after `n` more fails, and all later ones.
    pub fn fail_syncs_after(&self, n: u64) {
        self.lock().faults.syncs_until_failure = Some(n);
    }

    /// Each write takes at most so many bytes, as the system is free to do: the caller has to come again with the rest.
    pub fn set_write_bytes_max(&self, bytes: Option<usize>) {
        self.lock().faults.write_bytes_max = bytes;
    }

    /// The disk holds at most so many bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().faults.capacity = bytes;
    }

    /// Syncs of files whose names begin like this are answered and not carried out: a disk that lies, or a program that
    /// forgot to sync.
    pub fn ignore_syncs_of(&self, prefix: &str) {
        self.lock().faults.unsynced.push(prefix.to_owned());
    }

    /// While set, syncs do not return.
    pub fn hang(&self, hung: bool) {
        self.hang_syncs_of(hung.then_some(""));
    }

    /// While set, syncs of files whose names begin like this do not return.
    pub fn hang_syncs_of(&self, prefix: Option<&str>) {
        self.lock().faults.hung = prefix.map(str::to_owned);
        self.shared.unhung.notify_all();
    }
}

impl Inner {
    fn note(&mut self, op: impl FnOnce() -> Op) {
        if let Some(record) = &mut self.record {
            record.push(op());
        }
    }

    fn change_names(&mut self, op: Op) {
        self.now.rename(&op);
        self.note(|| op);
    }

    fn used(&self) -> u64 {
        self.now.names.values().filter_map(|f| self.now.files.get(f)).map(|bytes| bytes.len() as u64).sum()
    }
}

fn failure() -> io::Error {
    io::Error::other("injected I/O error")
}

/// Counts down; `true` from the end of the count on.
fn is_due(count: &mut Option<u64>) -> bool {
    match count {
        None => false,
        Some(0) => true,
        Some(n) => {
            *n -= 1;
            false
        }
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.lock().now.names.get(name) {
            Some(file) => Ok(Arc::new(MemoryFile { disk: self.clone(), file: *file, name: name.to_owned() })),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.lock();
        inner.next_file += 1;
        let file = inner.next_file;
        inner.now.files.insert(file, Vec::new());
        inner.change_names(Op::Create { name: name.to_owned(), file });
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lock().change_names(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.lock().change_names(Op::Remove { name: name.to_owned() });
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().now.names.keys().cloned().collect())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if is_due(&mut inner.faults.syncs_until_failure) {
            return Err(failure());
        }
        inner.note(|| Op::SyncNames);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.lock();
        Ok(inner.faults.capacity.map_or(u64::MAX / 4, |capacity| capacity.saturating_sub(inner.used())))
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    file: FileId,
    name: String,
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.lock();
        let bytes = inner.now.files.get(&self.file).map_or(&[][..], Vec::as_slice);
        let part = bytes.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(part.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_some_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        let bytes = &bytes[..bytes.len().min(inner.faults.write_bytes_max.unwrap_or(usize::MAX))];
        let failed = is_due(&mut inner.faults.writes_until_failure);
        let bytes = if failed { &bytes[..bytes.len() / 2] } else { bytes };
        let len = inner.now.files.get(&self.file).map_or(0, Vec::len) as u64;
        let growth = (offset + bytes.len() as u64).saturating_sub(len);
        if inner.faults.capacity.is_some_and(|capacity| inner.used() + growth > capacity) && growth > 0 {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "injected: no space left"));
        }
        inner.now.write(self.file, offset, bytes);
        inner.note(|| Op::Write { file: self.file, offset, bytes: bytes.to_vec() });
        if failed { Err(failure()) } else { Ok(bytes.len()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        while inner.faults.hung.as_ref().is_some_and(|prefix| self.name.starts_with(prefix)) {
            inner = self.disk.shared.unhung.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if is_due(&mut inner.faults.syncs_until_failure) {
            return Err(failure());
        }
        if !inner.faults.unsynced.iter().any(|prefix| self.name.starts_with(prefix)) {
            inner.note(|| Op::Sync { file: self.file });
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().now.files.get(&self.file).map_or(0, Vec::len) as u64)
    }
}
