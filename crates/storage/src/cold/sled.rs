//! sled as the cold tier, with its traps handled one by one.
//!
//! - `flush` is no fsync on Linux: after it, the database file is synced through a handle of our own.
//! - It reuses the place of a record as soon as the record's successor was *written*. On a disk that reorders, a power
//!   cut could take both. A place is free for use at the earliest when a whole sled segment was written behind the
//!   successor, so its file is synced several times in each segment, not only at the end of a checkpoint.
//! - Its `conf` and the directory are never synced by it: done here, at each opening.
//! - Garbage is collected only by its flusher: `flush_every_ms` stays on.
//! - It panics on damage: caught here, and told as an error.
//! - Its file lock may outlive a dropped handle for a moment: opening is tried again for one second, for that error only.
//! - A flipped bit near its end silently drops its last writes: see `marker`; and `contents` for whatever else may go.
//! - It never syncs its blob files. Values are kept small (`VALUE_BYTES_MAX`), so it does not use them; if it did, they
//!   would be synced here.
//! - Its file grows and does not shrink: see `rewrite`.
//! - No `flush_async`, no transactions, one tree.

use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::cold::{Changes, Cold, Visit};
use crate::disk::{Disk, DiskFile};

/// sled refuses to open a database with another segment size, so this is part of the format. Leaves over a quarter of it
/// become blob files: with 16 values of 32 KiB in a leaf, that never happens.
const SEGMENT_BYTES: usize = 8 << 20;
/// How often sled's flusher runs; it is the only one that collects its garbage.
const FLUSH_EVERY_MS: u64 = 500;
/// After so many bytes of keys and values the file is synced. sled writes up to six times as much to its log
/// (measured), which stays below its segment's size.
const UNSYNCED_BYTES_MAX: usize = 512 << 10;
/// Where it would put what is too long for a segment.
const BLOBS: &str = "blobs";
/// How long an opening waits for sled's own threads to let go of the file.
const LOCK_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct SledCold {
    db: sled::Db,
    /// The directory, to sync what is in it.
    files: Arc<dyn Disk>,
    /// The database file, to sync it.
    file: Arc<dyn DiskFile>,
    /// Bytes applied since the last sync.
    unsynced: AtomicUsize,
}

/// Runs `f`; a panic in it becomes an error with the panic's words.
fn guarded<T>(f: impl FnOnce() -> Result<T, sled::Error>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(e))) => Err(e),
        Ok(Err(e)) => Err(io::Error::other(e.to_string())),
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(io::Error::other(format!("sled panicked: {words}")))
        }
    }
}

fn is_lock_race(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock || e.to_string().contains("could not acquire lock")
}

impl SledCold {
    /// Opens or makes the database in `dir`, which is the directory `name` on `disk`.
    pub(crate) fn open(disk: &dyn Disk, name: &str, dir: &Path, cache_bytes: u64) -> io::Result<Self> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let began = Instant::now();
        let db = loop {
            match guarded(|| config.open()) {
                Ok(db) => break db,
                Err(e) if is_lock_race(&e) && began.elapsed() < LOCK_WAIT => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(e) => return Err(e),
            }
        };
        let files = disk.subdirectory(name)?;
        let file = files.open("db")?;
        let cold = Self { db, files, file, unsynced: AtomicUsize::new(0) };
        cold.sync()?;
        cold.files.open("conf")?.sync()?;
        cold.files.sync_names()?;
        disk.sync_names()?;
        Ok(cold)
    }
}

impl Cold for SledCold {
    fn apply(&self, changes: Changes) -> io::Result<()> {
        let bytes = changes.bytes;
        let mut batch = sled::Batch::default();
        for (key, value) in changes.into_map() {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(|| self.db.apply_batch(batch))?;
        if self.unsynced.fetch_add(bytes, Relaxed) + bytes > UNSYNCED_BYTES_MAX {
            self.sync()
        } else {
            Ok(())
        }
    }

    fn sync(&self) -> io::Result<()> {
        guarded(|| self.db.flush())?;
        self.file.sync()?;
        self.unsynced.store(0, Relaxed);
        self.sync_blobs()
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(guarded(|| self.db.get(key))?.map(|value| value.to_vec()))
    }

    fn keys(&self, from: &[u8], to: &[u8], max: usize) -> io::Result<Vec<Vec<u8>>> {
        guarded(|| self.db.range(from..to).keys().take(max).map(|key| key.map(|k| k.to_vec())).collect())
    }

    fn page(&self, after: &[u8], bytes_max: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        guarded(|| {
            let (mut page, mut bytes) = (Vec::new(), 0);
            for pair in self.db.range::<&[u8], _>((Bound::Excluded(after), Bound::Unbounded)) {
                let (key, value) = pair?;
                bytes += key.len() + value.len();
                if bytes > bytes_max && !page.is_empty() {
                    break;
                }
                page.push((key.to_vec(), value.to_vec()));
            }
            Ok(page)
        })
    }

    fn scan(&self, visit: Visit<'_>) -> io::Result<()> {
        let mut iter = self.db.iter();
        while let Some((key, value)) = guarded(|| iter.next().transpose())? {
            visit(&key, &value).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        }
        Ok(())
    }

    fn disk_bytes(&self) -> io::Result<u64> {
        self.file.len()
    }
}

impl SledCold {
    fn sync_blobs(&self) -> io::Result<()> {
        let dir = self.files.directory().map(|dir| dir.join(BLOBS));
        let any = dir.is_some_and(|dir| std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some()));
        if !any {
            return Ok(());
        }
        let blobs = self.files.subdirectory(BLOBS)?;
        for name in blobs.list()? {
            blobs.open(&name)?.sync()?;
        }
        blobs.sync_names()?;
        self.files.sync_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    /// sled keeps the sizes it was made with: they are part of the format of a data directory.
    #[test]
    fn the_segment_size_is_recorded_and_another_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let cold = dir.path().join("cold");
        drop(SledCold::open(&disk, "cold", &cold, 1 << 20).unwrap());
        let conf = std::fs::read(cold.join("conf")).unwrap();
        let conf = String::from_utf8_lossy(&conf);
        assert!(conf.contains(&format!("segment_size: {SEGMENT_BYTES}")), "{conf}");
        let other = sled::Config::new().path(&cold).segment_size(SEGMENT_BYTES / 2);
        let began = Instant::now();
        let refused = loop {
            match guarded(|| other.open()) {
                Err(e) if is_lock_race(&e) && began.elapsed() < Duration::from_secs(60) => {}
                outcome => break outcome.map(drop).unwrap_err(),
            }
        };
        assert!(refused.to_string().contains("io buffer size") && !is_lock_race(&refused), "{refused}");
        drop(SledCold::open(&disk, "cold", &cold, 1 << 20).unwrap());
    }

    #[test]
    fn only_the_lock_race_is_tried_again() {
        let race = io::Error::new(io::ErrorKind::WouldBlock, "x");
        assert!(is_lock_race(&race));
        let sleds = "IO error: could not acquire lock on \"cold/db\": Os { code: 11, kind: WouldBlock }";
        assert!(is_lock_race(&io::Error::other(sleds)));
        for other in ["corruption encountered", "sled panicked: lock", "No space left on device"] {
            assert!(!is_lock_race(&io::Error::other(other)), "{other}");
        }
    }

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let told = guarded::<()>(|| panic!("a page is gone")).unwrap_err().to_string();
        assert_eq!(told, "sled panicked: a page is gone");
    }
}
