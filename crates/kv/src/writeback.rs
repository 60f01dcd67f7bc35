//! Keeps the engine's journal nearly synced, so that a full sync is short.
//!
//! Nothing that is applied needs a sync of its own; only the log's compaction asks for one, now and then, and the engine
//! holds its writer lock during it: every apply of the store waits for the disk to take all that has gathered. So this
//! thread has the disk take it in small portions, through a file handle of its own and without any lock of the engine's.
//! It promises nothing; the full sync does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// How long commits gather before the disk is asked to take them. Shorter costs syncs, longer makes the full one long.
const GATHER: Duration = Duration::from_millis(200);

/// The thread, and what wakes it.
#[derive(Debug)]
pub(crate) struct Writeback {
    shared: Arc<Shared>,
    waker: Option<Thread>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    dirty: AtomicBool,
    stop: AtomicBool,
}

impl Writeback {
    /// Starts the thread for the engine in `dir`. Without it, should it not start, syncs only take longer.
    pub(crate) fn start(dir: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("kv-writeback".into()).spawn(move || run(&dir, &theirs));
        let thread = thread.inspect_err(|e| tracing::warn!(error = %e, "no thread for early writeback")).ok();
        Self { shared, waker: thread.as_ref().map(|t| t.thread().clone()), thread }
    }

    /// Something was committed. Cheap; wakes nobody who is awake.
    pub(crate) fn committed(&self) {
        if !self.shared.dirty.swap(true, Ordering::AcqRel)
            && let Some(waker) = &self.waker
        {
            waker.unpark();
        }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It holds nothing that could be lost.
            let _ = thread.join();
        }
    }
}

fn run(dir: &Path, shared: &Shared) {
    loop {
        while !shared.dirty.load(Ordering::Acquire) {
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            thread::park();
        }
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        thread::park_timeout(GATHER);
        shared.dirty.store(false, Ordering::Release);
        // A failure shows again, and counts, at the next full sync.
        if let Some(journal) = newest_journal(dir) {
            let _ = File::open(journal).and_then(|file| file.sync_data());
        }
    }
}

/// The engine numbers its journal files; the one with the highest number is written to.
fn newest_journal(dir: &Path) -> Option<PathBuf> {
    let numbered = |path: PathBuf| {
        let is_journal = path.extension().is_some_and(|e| e == "jnl");
        let number = path.file_stem()?.to_str()?.parse::<u64>().ok()?;
        is_journal.then_some((number, path))
    };
    let files = fs::read_dir(dir).ok()?.filter_map(|entry| numbered(entry.ok()?.path()));
    files.max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_journal_that_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest_journal(dir.path()), None);
        for name in ["0.jnl", "9.jnl", "10.jnl", "11.tmp", "x.jnl"] {
            File::create(dir.path().join(name)).unwrap();
        }
        assert_eq!(newest_journal(dir.path()), Some(dir.path().join("10.jnl")));
    }

    #[test]
    fn the_engines_journal_has_the_name_that_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let engine = crate::Engine::open(dir.path(), &crate::EngineOptions::default()).unwrap();
        assert!(newest_journal(dir.path()).is_some(), "fjall has renamed its journals");
        drop(engine);
    }

    #[test]
    fn ends_when_dropped_also_while_it_gathers() {
        let dir = tempfile::tempdir().unwrap();
        let writeback = Writeback::start(dir.path().to_owned());
        writeback.committed();
        writeback.committed();
        drop(writeback);
    }
}
