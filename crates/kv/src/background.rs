//! Slow work in small steps: removing compacted versions, emptying slots that nobody reads any more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::{EngineOptions, Tables};
use crate::error::StoreError;
use crate::mvcc::compaction::{self, Physical};
use crate::mvcc::{keys, once, slot};

/// Something to do in steps.
#[derive(Debug)]
pub(crate) enum Job {
    /// Remove what a keyspace's logical compaction has given up.
    Compact(Arc<Physical>),
    /// Remove the records of writes that are not remembered any more.
    Forget(once::Forgotten),
    /// Remove all records of a slot, its meta records last.
    Clear {
        /// The slot.
        slot: u64,
    },
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The thread and its queue. Dropping it ends the thread after the step it is at; what is left is found again at the
/// next start.
pub(crate) struct Background {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start(tables: Tables, options: &EngineOptions) -> Self {
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            tables,
            shared: Arc::clone(&shared),
            step: options.background_step_records.max(1),
            pause: Duration::from_millis(options.background_pause_ms),
        };
        let thread = std::thread::Builder::new().name("kv-background".into()).spawn(move || worker.run());
        let thread = match thread {
            Ok(thread) => Some(thread),
            Err(e) => {
                tracing::error!(error = %e, "no background thread: compacted versions stay on disk until a restart");
                None
            }
        };
        Self { shared, thread }
    }

    pub(crate) fn submit(&self, job: Job) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push_back(job);
        self.shared.changed.notify_one();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the background thread of the key-value engine panicked");
        }
    }
}

struct Worker {
    tables: Tables,
    shared: Arc<Shared>,
    step: usize,
    pause: Duration,
}

impl Worker {
    fn run(&self) {
        while let Some(mut job) = self.next() {
            let unfinished = match &mut job {
                Job::Compact(physical) => self.compact(physical),
                Job::Forget(forgotten) => forgotten.remove(&self.tables, self.step),
                Job::Clear { slot } => self.clear(*slot),
            };
            match unfinished {
                Ok(true) => {
                    let hurry = matches!(&job, Job::Compact(p) if p.is_awaited());
                    let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.jobs.push_back(job);
                    if !hurry && !queue.stop {
                        // A wake-up before the time is harmless.
                        drop(self.shared.changed.wait_timeout(queue, self.pause));
                    }
                }
                Ok(false) => {}
                Err(e) => {
                    tracing::error!(error = %e, ?job, "background work failed; it is tried again at the next start");
                }
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queue.stop {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn compact(&self, physical: &Physical) -> Result<bool, StoreError> {
        compaction::step(&self.tables, physical, self.step)
    }

    /// One step of emptying a slot; true if there is more.
    fn clear(&self, slot: u64) -> Result<bool, StoreError> {
        let t = &self.tables;
        let mut batch = t.db.batch();
        for table in [&t.current, &t.history, &t.index, &t.lease, &t.once, &t.control] {
            for guard in table.prefix(keys::slot_prefix(slot)) {
                batch.remove(table, guard.key()?);
                if batch.len() >= self.step {
                    batch.commit()?;
                    return Ok(true);
                }
            }
        }
        batch.remove(&t.meta, slot::cursor_key(slot));
        batch.remove(&t.meta, slot::meta_key(slot));
        batch.commit()?;
        Ok(false)
    }
}
