//! The node's clock: milliseconds since it started, from the monotonic clock alone.

use std::time::{Duration, Instant};

/// Reads the time for the cores, which have no clock of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Now.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The moment at which `now` will have reached `at`.
    pub(crate) fn instant(&self, at: u64) -> Instant {
        // A deadline centuries away is as good as one a year away: the shard looks again then.
        self.origin + Duration::from_millis(at.min(self.now() + 365 * 86_400_000))
    }
}
