//! Writing the cold tier anew when its file has grown far beyond what is in it: sled uses room again, but gives none
//! back.
//!
//! The new generation is filled beside the old one and synced; then `MARKER` names it, and from there on it is the one
//! that counts. Before, a crash leaves an unused generation, which the next opening removes; after, the old one is that.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{CHUNK_BYTES, Failure, Pace, io};
use crate::cold::contents::Contents;
use crate::cold::{self, Changes, Cold, tier};
use crate::state::Shared;
use crate::stats::Counters;

/// How many bytes of the file there may be for each byte of contents, beyond `Options::cold_slack_bytes`. About four is
/// usual for sled, and rewriting what is usual would go on for ever.
const AMPLIFICATION_MAX: u64 = 8;
/// How long to wait for readers of the old generation. Whoever is not done then leaves it to the next opening.
const READERS_WAIT: Duration = Duration::from_secs(10);

/// Rewrites the cold tier if its space amplification has passed the bound.
pub(super) fn if_bloated(shared: &Shared) -> Result<(), Failure> {
    let disk_bytes = shared.cold.current().disk_bytes().map_err(io("reading the cold tier"))?;
    let live_bytes = shared.cold.contents().bytes;
    shared.counters.cold_is(disk_bytes, live_bytes);
    if disk_bytes <= AMPLIFICATION_MAX * live_bytes + shared.options.cold_slack_bytes {
        return Ok(());
    }
    // For the time of the copying there are both.
    let free = shared.disk.free_bytes().unwrap_or(0);
    if free < 2 * live_bytes + shared.options.space_reserve_bytes {
        tracing::warn!(free, disk_bytes, live_bytes, "no room to rewrite the cold tier; will try again");
        return Ok(());
    }
    let generation = shared.cold.generation() + 1;
    tracing::info!(disk_bytes, live_bytes, generation, "rewriting the cold tier");
    match rewrite(shared, generation) {
        // Nothing depends on the new generation yet.
        Err(Failure::Io(what))
            if shared.disk.free_bytes().unwrap_or(0) < shared.options.space_reserve_bytes =>
        {
            tracing::warn!(what, "cannot rewrite the cold tier; will try again");
            remove(shared, generation);
            Ok(())
        }
        outcome => outcome,
    }
}

fn rewrite(shared: &Shared, generation: u64) -> Result<(), Failure> {
    let place = &shared.cold.place;
    if place.generations().map_err(io("listing the cold tier"))?.contains(&generation) {
        place.remove(generation).map_err(io("removing an unused cold tier"))?;
    }
    let new = place.open(generation).map_err(io("making a new cold tier"))?;
    let contents = copy(shared, &*new)?;
    // The last thing, as in a checkpoint: who finds this number in the tier has everything that was written before it.
    let checkpoint = shared.marker.get().checkpoint + 1;
    let mut changes = Changes::default();
    changes.put(cold::checkpoint_key(), cold::encode_number(checkpoint));
    let contents = tier::apply_to(&*new, contents, changes).map_err(io("writing the new cold tier"))?;
    new.sync().map_err(io("syncing the new cold tier"))?;
    shared.disk.sync_names().map_err(io("syncing the directory"))?;
    tracing::debug!(generation, "rewrite synced");
    shared.marker.update(&*shared.disk, |m| m.cold_generation = generation).map_err(io("writing MARKER"))?;
    tracing::debug!(generation, "rewrite marked");
    let disk_bytes = new.disk_bytes().map_err(io("reading the cold tier"))?;
    shared.counters.cold_is(disk_bytes, contents.bytes);
    Counters::add(&shared.counters.cold_rewrites, 1);
    let (old_generation, old) = shared.cold.replace(generation, new, contents);
    if is_last(&old) {
        drop(old);
        remove(shared, old_generation);
    }
    Ok(())
}

/// Copies everything, and checks on the way that it is what it should be: damage must not be carried over.
fn copy(shared: &Shared, new: &dyn Cold) -> Result<Contents, Failure> {
    let old = shared.cold.current();
    let mut pace = Pace::new();
    let mut contents = Contents::default();
    let mut after = Vec::new();
    loop {
        let page = old.page(&after, CHUNK_BYTES).map_err(io("reading the cold tier"))?;
        let Some((last, _)) = page.last() else { break };
        after.clone_from(last);
        let mut changes = Changes::default();
        for (key, value) in page {
            if key != cold::contents_key() {
                changes.put(key, value);
            }
        }
        pace.keep(shared, changes.bytes)?;
        Counters::add(&shared.counters.checkpoint_bytes, changes.bytes as u64);
        contents = tier::apply_to(new, contents, changes).map_err(io("writing the new cold tier"))?;
    }
    if contents != shared.cold.contents() {
        let what = format!(
            "the cold tier has {} keys with {} bytes, and must have {} with {}: something in it was lost or changed",
            contents.keys,
            contents.bytes,
            shared.cold.contents().keys,
            shared.cold.contents().bytes,
        );
        return Err(Failure::Io(what));
    }
    Ok(contents)
}

/// Waits until nobody else reads the replaced generation.
fn is_last(old: &Arc<dyn Cold>) -> bool {
    let began = Instant::now();
    while Arc::strong_count(old) > 1 {
        if began.elapsed() > READERS_WAIT {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

fn remove(shared: &Shared, generation: u64) {
    let removed: io::Result<()> = shared.cold.place.remove(generation);
    if let Err(e) = removed {
        tracing::warn!(error = %e, generation, "cannot remove an unused cold tier; the next opening will try again");
    }
}
