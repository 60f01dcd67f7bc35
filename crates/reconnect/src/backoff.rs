//! How long to wait after a failure: pure arithmetic.

/// The least back-off, least probe interval and least patience for an attempt that can be configured.
///
/// A second, because a shorter one turns a list of dead remotes into a flood, and a healthy remote that is loaded
/// needs about that long to answer.
pub const FLOOR_MS: u64 = 1000;

/// The default upper limit of the back-off: a remote that comes back is found within 8 s.
pub const DEFAULT_MAX_BACKOFF_MS: u64 = 8000;

/// The two limits between which the back-off doubles.
///
/// Invariant: `FLOOR_MS <= min_ms <= max_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackoffLimits {
    min_ms: u64,
    max_ms: u64,
}

impl Default for BackoffLimits {
    fn default() -> Self {
        Self { min_ms: FLOOR_MS, max_ms: DEFAULT_MAX_BACKOFF_MS }
    }
}

impl BackoffLimits {
    /// Makes limits of any two numbers: both are raised to a second, a maximum of 0 means the default of 8 s, and a
    /// maximum below the minimum is raised to it.
    #[must_use]
    pub fn new(min_ms: u64, max_ms: u64) -> Self {
        let min_ms = min_ms.max(FLOOR_MS);
        let max_ms = if max_ms == 0 { DEFAULT_MAX_BACKOFF_MS } else { max_ms.max(FLOOR_MS) };
        Self { min_ms, max_ms: max_ms.max(min_ms) }
    }

    /// The back-off after the first failure.
    #[must_use]
    pub const fn min_ms(self) -> u64 {
        self.min_ms
    }

    /// The back-off that is never exceeded.
    #[must_use]
    pub const fn max_ms(self) -> u64 {
        self.max_ms
    }

    /// The back-off that follows `backoff_ms` after one more failure.
    ///
    /// From half of the maximum (rounded down) on, the next value is the maximum itself.
    #[must_use]
    pub const fn grow(self, backoff_ms: u64) -> u64 {
        if backoff_ms < self.min_ms {
            self.min_ms
        } else if backoff_ms < self.max_ms / 2 {
            // Below half of a u64, so doubling cannot overflow.
            2 * backoff_ms
        } else {
            self.max_ms
        }
    }

    /// How many attempts a machine can start within `window_ms` of being enabled when every attempt fails at once,
    /// with `free_tries` tries without back-off.
    ///
    /// This is the bound against which a client that reaches nobody is measured.
    #[must_use]
    pub fn attempts_within(self, window_ms: u64, free_tries: u64) -> u64 {
        // The first attempt is immediate; 0 and 1 free tries are the same.
        let mut attempts = free_tries.max(1);
        let (mut elapsed_ms, mut backoff_ms) = (0u64, 0u64);
        loop {
            backoff_ms = self.grow(backoff_ms);
            if backoff_ms == self.max_ms {
                // From here on the pace is constant.
                return attempts.saturating_add(window_ms.saturating_sub(elapsed_ms) / self.max_ms);
            }
            elapsed_ms = elapsed_ms.saturating_add(backoff_ms);
            if elapsed_ms > window_ms {
                return attempts;
            }
            attempts = attempts.saturating_add(1);
        }
    }
}

/// How long one attempt may take: as long as the present back-off, but at least a second.
#[must_use]
pub const fn attempt_patience_ms(backoff_ms: u64) -> u64 {
    if backoff_ms > FLOOR_MS { backoff_ms } else { FLOOR_MS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(limits: BackoffLimits, n: usize) -> Vec<u64> {
        let mut backoff = 0;
        (0..n)
            .map(|_| {
                backoff = limits.grow(backoff);
                backoff
            })
            .collect()
    }

    #[test]
    fn doubles_and_jumps_to_the_maximum() {
        assert_eq!(sequence(BackoffLimits::default(), 5), [1000, 2000, 4000, 8000, 8000]);
        assert_eq!(sequence(BackoffLimits::new(1000, 5000), 5), [1000, 2000, 4000, 5000, 5000]);
        // Half is rounded down: 1000 is not below 1000.
        assert_eq!(sequence(BackoffLimits::new(1000, 2001), 3), [1000, 2001, 2001]);
    }

    #[test]
    fn limits_are_repaired() {
        assert_eq!(BackoffLimits::new(0, 0), BackoffLimits::default());
        assert_eq!(BackoffLimits::new(9000, 0), BackoffLimits { min_ms: 9000, max_ms: 9000 });
        assert_eq!(BackoffLimits::new(5000, 1), BackoffLimits { min_ms: 5000, max_ms: 5000 });
        assert_eq!(
            BackoffLimits::new(u64::MAX, u64::MAX),
            BackoffLimits { min_ms: u64::MAX, max_ms: u64::MAX }
        );
        assert_eq!(BackoffLimits::new(u64::MAX, u64::MAX).grow(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_minute_of_failures() {
        // At 0, 1, 3, 7, 15, 23, 31, 39, 47 and 55 s.
        assert_eq!(BackoffLimits::default().attempts_within(60_000, 0), 10);
        assert_eq!(BackoffLimits::default().attempts_within(60_000, 3), 12);
        assert_eq!(BackoffLimits::default().attempts_within(0, 0), 1);
        assert_eq!(BackoffLimits::default().attempts_within(14_999, 1), 4);
        assert_eq!(BackoffLimits::default().attempts_within(15_000, 1), 5);
    }
}
