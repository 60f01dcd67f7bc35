//! How much room the disk has, as the background thread last saw it. Whoever asks reads one number.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::state::Shared;

/// The room on the store's file system, measured by [`Options::space_reserve_bytes`](crate::Options).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Space {
    /// The reserve is there, and a segment lies ready.
    #[default]
    Enough,
    /// The reserve is being used, or no segment could be made ready: time to refuse proposals, and to let others lead.
    Low,
    /// Half of the reserve is gone: time to take nothing any more that can wait.
    AlmostNone,
}

/// Why a store should not take writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no space on the file system of {dir}: less than the reserve of {reserve_mib} MiB and room for a journal segment is free, so writes are refused; free some room there or give it a larger disk, and they are taken again"
)]
pub struct NoSpace {
    /// The directory of the log store.
    pub dir: String,
    /// The reserve.
    pub reserve_mib: u64,
}

/// The last look.
#[derive(Debug, Default)]
pub(crate) struct SpaceSeen(AtomicU8);

impl SpaceSeen {
    pub(crate) fn get(&self) -> Space {
        match self.0.load(Relaxed) {
            0 => Space::Enough,
            1 => Space::Low,
            _ => Space::AlmostNone,
        }
    }

    pub(crate) fn set(&self, space: Space) {
        self.0.store(space as u8, Relaxed);
    }

    /// Something could not be written for lack of room.
    pub(crate) fn at_best_low(&self) {
        self.0.fetch_max(Space::Low as u8, Relaxed);
    }
}

/// Looks at the file system. Called by the thread that makes segments, about once a second.
pub(crate) fn look(shared: &Shared) {
    let free = match shared.disk.free_bytes() {
        Ok(free) => free,
        Err(error) => {
            tracing::warn!(%error, dir = shared.disk.place(), "cannot tell how much room there is");
            return;
        }
    };
    let (ready, refused) = {
        let state = shared.lock();
        (!state.spares.is_empty(), state.spare_error.is_some())
    };
    let was = shared.space.get();
    let now =
        judge(was, free, shared.options.space_reserve_bytes, shared.options.segment_bytes, ready, refused);
    if now == was {
        return;
    }
    shared.space.set(now);
    let dir = shared.disk.place();
    if now == Space::Enough {
        tracing::info!(dir, free, "there is room again: writes are taken");
    } else {
        tracing::warn!(dir, free, ?now, "the disk is filling up: writes are refused");
    }
}

/// `ready`: a spare segment is there; `refused`: making one failed.
fn judge(was: Space, free: u64, reserve: u64, segment: u64, ready: bool, refused: bool) -> Space {
    if free < reserve / 2 {
        Space::AlmostNone
    } else if free < reserve || refused {
        Space::Low
    } else if was != Space::Enough && (free < reserve.saturating_add(segment) || !ready) {
        // The way back asks for more than the way there, so that a store at the border does not go to and fro.
        Space::Low
    } else {
        Space::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_asks_for_more_than_the_way_there() {
        let at = |was, free| judge(was, free, 100, 20, true, false);
        assert_eq!(at(Space::Enough, 100), Space::Enough);
        assert_eq!(at(Space::Enough, 99), Space::Low);
        assert_eq!(at(Space::Low, 119), Space::Low);
        assert_eq!(at(Space::Low, 120), Space::Enough);
        assert_eq!(at(Space::Low, 49), Space::AlmostNone);
        assert_eq!(at(Space::AlmostNone, 50), Space::Low);
        assert_eq!(judge(Space::Enough, 1000, 100, 20, false, true), Space::Low, "no segment could be made");
        assert_eq!(judge(Space::Low, 1000, 100, 20, false, false), Space::Low, "and there still is none");
        assert_eq!(judge(Space::Enough, 0, 0, 20, true, false), Space::Enough, "no reserve, no refusal");
    }
}
