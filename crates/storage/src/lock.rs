//! `LOCK`: one process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::OpenError;

const FILE: &str = "LOCK";
/// A process that was killed a moment ago may still be closing its files.
const WAIT: Duration = Duration::from_millis(500);

/// Held as long as the store is open; the operating system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Of a store that is about to be opened.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Self::hold(file.map_err(OpenError::io("open", path.display().to_string()))?, dir)
    }

    /// Of a directory that is only read: nothing is made in it. Without the file (in a copy, for example) there is
    /// nobody to keep away.
    pub(crate) fn acquire_existing(dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = dir.join(FILE);
        match File::open(&path) {
            Ok(file) => Self::hold(file, dir).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(OpenError::io("open", path.display().to_string())(e)),
        }
    }

    fn hold(file: File, dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if began.elapsed() < WAIT => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::Locked { dir: dir.display().to_string() });
                }
                Err(TryLockError::Error(e)) => {
                    return Err(OpenError::io("lock", path.display().to_string())(e));
                }
            }
        }
    }
}
