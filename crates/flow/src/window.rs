//! How much may be begun towards one store: about what it admits in the time that a command should be under way.
//!
//! The limit of a pool is made for the quickest store and the longest way. For a store that takes a mebibyte a second it is many
//! seconds of data, and whatever begins then is done long after its caller has given up. So the evaluation pool has a *window*
//! below the limit: bytes that were admitted lately, for each [`TARGET_MS`]. By Little's law that bounds the time from the
//! beginning of a command to its admission, and it takes no pace from anybody whose way is shorter than that: such a store never
//! has so much under way. A store that shows no delay has a window that only its limit bounds.

use crate::limits::POOL_BYTES_MAX;

/// What is begun should be admitted within this time, in milliseconds. Too short: a way that is longer than this, or a disk
/// whose syncs are, has its throughput cut. Too long: what a slow quorum has under way is old when it is done.
pub(crate) const TARGET_MS: u64 = 500;
/// The least window, in bytes: a few large entries, and enough to find out by how fast the store is.
pub(crate) const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// The most: no limit is above it.
pub(crate) const WINDOW_BYTES_MAX: u64 = POOL_BYTES_MAX;
/// It is judged so often, in milliseconds: longer than the time between two reports under load.
const STRETCH_MS: u64 = 250;
/// So many stretches are remembered, and the best of them counts: a short stall is no slow store.
const STRETCHES: usize = 4;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    bytes: u64,
    /// What would have been admitted in [`TARGET_MS`] at the rate of each of the last stretches, in turn.
    fits: [u64; STRETCHES],
    /// Which of them is the oldest.
    at: usize,
    /// When the present stretch began, and what was admitted in it.
    since: u64,
    admitted: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: WINDOW_BYTES_MAX, fits: [0; STRETCHES], at: 0, since: 0, admitted: 0 }
    }
}

impl Window {
    /// Its size at present.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was sent was admitted.
    pub(crate) const fn admitted(&mut self, bytes: u64) {
        self.admitted = self.admitted.saturating_add(bytes);
    }

    /// It is `now`, and so much was sent and is not admitted. Returns whether it has grown.
    pub(crate) fn pass(&mut self, now: u64, under_way: u64) -> bool {
        let passed = now.saturating_sub(self.since);
        if passed < STRETCH_MS {
            return false;
        }
        self.since = now;
        let admitted = u128::from(std::mem::take(&mut self.admitted));
        let fits = u64::try_from(admitted * u128::from(TARGET_MS) / u128::from(passed)).unwrap_or(u64::MAX);
        self.fits[self.at] = fits;
        self.at = (self.at + 1) % STRETCHES;
        let before = self.bytes;
        let best = self.fits.into_iter().max().unwrap_or(0);
        // Half of the time leaves room for what comes in waves; between half and all of it, the window follows the rate.
        let quick = under_way.saturating_mul(2) <= fits;
        let bytes = match under_way {
            _ if quick => before.saturating_mul(2).max(best),
            // Little is asked of it, which says nothing about what it could do.
            ..=WINDOW_BYTES_MIN => before,
            _ => best,
        };
        self.bytes = bytes.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        self.bytes > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store at the end of a way: what is sent is admitted `way_ms` later at the earliest, `rate` bytes a second at the most.
    struct Store {
        window: Window,
        rate: u64,
        way_ms: u64,
        now: u64,
        /// When it was sent, and how much of it is left.
        under_way: std::collections::VecDeque<(u64, u64)>,
        admitted: u64,
        /// The longest way of what was admitted since the last look, in milliseconds.
        longest_ms: u64,
    }

    const STEP_MS: u64 = 5;

    impl Store {
        fn new(rate: u64, way_ms: u64) -> Self {
            let (window, under_way) = (Window::default(), std::collections::VecDeque::new());
            Self { window, rate, way_ms, now: 0, under_way, admitted: 0, longest_ms: 0 }
        }

        /// So many bytes a second are offered, and begin as far as the window allows.
        fn play(&mut self, ms: u64, offered: u64) {
            let mut waits = 0;
            self.admitted = 0;
            self.longest_ms = 0;
            for _ in 0..ms / STEP_MS {
                self.now += STEP_MS;
                let held: u64 = self.under_way.iter().map(|(_, bytes)| bytes).sum();
                self.window.pass(self.now, held);
                waits = (waits + offered * STEP_MS / 1000).min(offered);
                let begins = waits.min(self.window.bytes().min(16 << 20).saturating_sub(held));
                if begins > 0 {
                    waits -= begins;
                    self.under_way.push_back((self.now, begins));
                }
                let mut left = self.rate * STEP_MS / 1000;
                while let Some((sent, bytes)) = self.under_way.front_mut()
                    && *sent + self.way_ms <= self.now
                    && left > 0
                {
                    let taken = left.min(*bytes);
                    (*bytes, left) = (*bytes - taken, left - taken);
                    self.window.admitted(taken);
                    self.admitted += taken;
                    self.longest_ms = self.longest_ms.max(self.now - *sent);
                    if *bytes == 0 {
                        self.under_way.pop_front();
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_slow_store_has_under_way_is_never_old() {
        for rate in [600 << 10, 2 << 20, 20 << 20] {
            let mut store = Store::new(rate, 1);
            store.play(5_000, 4 * rate);
            store.play(20_000, 4 * rate);
            assert!(store.admitted >= 20 * rate / 100 * 98, "{} at {rate}", store.admitted);
            // Where the least window is more than that, it is what it is.
            let most = (3 * TARGET_MS / 2).max(WINDOW_BYTES_MIN * 1000 / rate + 2 * STEP_MS);
            assert!(store.longest_ms <= most, "{} ms at {rate}", store.longest_ms);
        }
    }

    #[test]
    fn a_long_way_costs_no_throughput() {
        for way_ms in [1, 50, 150, 400] {
            let mut store = Store::new(30 << 20, way_ms);
            // Idle, a little, and then as much as it takes.
            store.play(3_000, 0);
            store.play(3_000, 10 << 10);
            store.play(2_000, 40 << 20);
            store.play(5_000, 40 << 20);
            let limit = (16 << 20) * 1000 / (way_ms + STEP_MS);
            let most = (5 * (30 << 20)).min(5 * limit);
            assert!(store.admitted >= most / 10 * 9, "{} of {most} with {way_ms} ms", store.admitted);
        }
    }

    #[test]
    fn a_stall_is_forgotten_at_once_and_a_slow_time_soon() {
        let mut store = Store::new(30 << 20, 2);
        store.play(5_000, 20 << 20);
        store.rate = 0;
        store.play(400, 20 << 20);
        assert!(store.window.bytes() >= 8 << 20, "{} in a short stall", store.window.bytes());
        store.play(3_000, 20 << 20);
        assert_eq!(store.window.bytes(), WINDOW_BYTES_MIN, "it has hung for long");
        store.rate = 30 << 20;
        store.play(2_000, 20 << 20);
        store.play(2_000, 20 << 20);
        assert!(store.admitted >= 2 * (20 << 20) / 10 * 9, "{} two seconds later", store.admitted);
        assert!(store.window.bytes() >= 16 << 20, "{}", store.window.bytes());
    }
}
