//! A background thread that keeps one segment ready, so that the writer never fills a file with zeroes itself, and that
//! a full disk is met while there is still room to write. It looks at the room now and then, too: others fill disks.

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::journal::segment::{self, Segment};
use crate::space;
use crate::state::{Shared, SpareError, State};

/// How many segments lie ready.
const SPARES: usize = 1;
/// How often the room on the disk is looked at, and a spare that could not be made is tried again. What fills a disk of
/// its own accord takes seconds for the reserve.
const LOOK: Duration = Duration::from_secs(1);
/// The rest after each portion of zeroes of a new segment: about 32 MiB/s, several times what a busy store writes.
const FILL_REST: Duration = Duration::from_millis(30);
/// How many files without content are kept to be used again; more are removed.
const RETIRED_MAX: usize = 2;

/// Runs until the writer has ended: it may still need a segment while the store is being closed.
pub(crate) fn run(shared: &Shared, mut next_file: u64) {
    let mut newest = 0;
    loop {
        let Some(job) = wait_for_work(shared, &mut newest) else { return };
        if let Some(reached) = job.reached
            && let Err(e) = shared.marker.update(&*shared.disk, |m| m.reached = m.reached.max(reached))
        {
            // Without room the old marker stays, which asks for less and is as true as before.
            if e.kind() != io::ErrorKind::StorageFull {
                shared.fail(&format!("writing MARKER failed: {e}"));
                return;
            }
            shared.space.at_best_low();
        }
        if job.make {
            make_one(shared, &job, &mut next_file);
        }
        if let Err(e) = drop_surplus(shared) {
            tracing::warn!(error = %e, "cannot remove an old journal file");
        }
        space::look(shared);
    }
}

struct Job {
    make: bool,
    /// A batch known to be durable, when the writer has gone to another segment since the last time.
    reached: Option<u64>,
    bytes: u64,
    /// The writer stands and waits.
    urgent: bool,
}

fn wait_for_work(shared: &Shared, newest: &mut u32) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.writer_gone || state.failed.is_some() {
            return None;
        }
        let active = state.newest_segment().segment.id;
        let wanted = state.spare_wanted.filter(|bytes| state.spares.front().is_none_or(|s| s.bytes < *bytes));
        let make = wanted.is_some() || state.spares.len() < SPARES;
        let reached = (active != *newest && *newest != 0).then_some(state.durable);
        *newest = active;
        let retry_later = make && state.spare_error.is_some() && wanted.is_none();
        if reached.is_some() || (make && !retry_later) {
            return Some(Job {
                make,
                reached,
                bytes: shared.options.segment_bytes.max(wanted.unwrap_or(0).next_multiple_of(4096)),
                urgent: wanted.is_some(),
            });
        }
        let timed_out;
        (state, timed_out) = shared.spare_work.wait_for(state, LOOK);
        if timed_out {
            if !retry_later {
                return Some(Job { make: false, reached: None, bytes: 0, urgent: false });
            }
            state.spare_error = None;
        }
    }
}

/// A file of the right size that nobody reads any more.
fn take_retired(state: &mut State, bytes: u64) -> Option<Arc<Segment>> {
    let at = state.retired.iter().position(|s| s.bytes == bytes && Arc::strong_count(s) == 1)?;
    Some(state.retired.swap_remove(at))
}

fn make_one(shared: &Shared, job: &Job, next_file: &mut u64) {
    let (small, retired): (Vec<Arc<Segment>>, _) = {
        let mut state = shared.lock();
        // A spare that is too small for a giant round goes; its id is given to the one that is made now.
        let small = if job.urgent { mem::take(&mut state.spares).into() } else { Vec::new() };
        (small, take_retired(&mut state, job.bytes))
    };
    let made = (|| {
        // The newest first: a gap in the ids would look like a segment that was lost.
        for small in small.iter().rev() {
            shared.disk.remove(&small.name)?;
            shared.disk.sync_names()?;
        }
        let id = shared.lock().next_segment();
        match retired {
            Some(old) => segment::reuse(&old, shared.journal, id),
            None => make_new(shared, job, id, next_file),
        }
    })();
    let mut state = shared.lock();
    match made {
        Ok(spare) => {
            state.spares.push_back(Arc::new(spare));
            state.spare_error = None;
        }
        Err(e) => {
            tracing::warn!(error = %e, "cannot make a spare journal segment; will try again");
            state.spare_error = Some(SpareError { what: e.to_string(), urgent: job.urgent });
        }
    }
    drop(state);
    shared.progress.notify();
}

fn make_new(shared: &Shared, job: &Job, id: u32, next_file: &mut u64) -> io::Result<Segment> {
    // With the writer waiting, the reserve is there to be used.
    let reserve = if job.urgent { 0 } else { shared.options.space_reserve_bytes };
    let free = shared.disk.free_bytes()?;
    if free < job.bytes + reserve {
        let text = format!("{free} bytes are free, {} and a reserve of {reserve} are needed", job.bytes);
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    let name = segment::file_name(*next_file);
    *next_file += 1;
    // Zeroes compete with the syncs that clients wait for; until the writer needs the segment there is time.
    let rest = || {
        let state = shared.lock();
        if !job.urgent && state.spare_wanted.is_none() && !state.stopping {
            // A wait, not a sleep: who closes the store or needs the segment wakes it.
            drop(shared.spare_work.wait_for(state, FILL_REST));
        }
    };
    segment::make(&*shared.disk, &name, shared.journal, id, job.bytes, &rest)
}

fn drop_surplus(shared: &Shared) -> io::Result<()> {
    let surplus: Vec<_> = {
        let mut state = shared.lock();
        let mut kept = 0;
        let (keep, drop) = mem::take(&mut state.retired).into_iter().partition(|s| {
            let reusable = s.bytes == shared.options.segment_bytes;
            kept += usize::from(reusable);
            (reusable && kept <= RETIRED_MAX) || Arc::strong_count(s) > 1
        });
        state.retired = keep;
        drop
    };
    for old in &surplus {
        shared.disk.remove(&old.name)?;
    }
    if surplus.is_empty() { Ok(()) } else { shared.disk.sync_names() }
}
