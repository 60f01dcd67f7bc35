//! What can be set, and what cannot.

/// The least that a limit of a pool can be set to, in bytes: below it every large entry stops everything.
pub const POOL_BYTES_MIN: u64 = 1 << 20;
/// The most that a limit of a pool can be set to, in bytes: what every leader's store may have under way to one store.
pub const POOL_BYTES_MAX: u64 = 64 << 20;
/// The most that the limit of what is forced can be set to, in bytes.
pub const FORCED_BYTES_MAX: u64 = 2 * POOL_BYTES_MAX;

/// The least that is granted to a send queue at once: less would send single entries.
pub(crate) const GRANT_BYTES_MIN: u64 = 4 << 10;
/// The most that is granted to a send queue at once while nobody else waits.
pub(crate) const GRANT_BYTES_MAX: u64 = 4 << 20;
/// The most while others wait: about an append, so that queues of many groups are fed in turn.
pub(crate) const GRANT_BYTES_SHARED: u64 = 256 << 10;
/// The most that one group may begin at once while other groups wait for the same stores.
pub(crate) const TURN_BYTES: u64 = 1 << 20;
/// What a probe may carry while there are tokens; it holds none (I7), so it must be small.
pub(crate) const PROBE_BYTES: u64 = 4 << 10;

/// For how long a follower that was streamed to a moment ago, without a queue, still counts when the quorum's safety is
/// weighed, in milliseconds. A single drop or a refused append must not flush entries onto a store that is overloaded.
pub const PROBE_GRACE_MS: u64 = 400;
/// A leader that holds tokens and hears nothing of them for this long asks, in milliseconds.
pub const ASK_AFTER_MS: u64 = 1_000;

/// What flow control governs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: no tokens are counted.
    Off,
    /// Elastic work waits for tokens. What regular work has under way is counted, and held back by nothing: no send queue
    /// is formed on purpose.
    #[default]
    ElasticOnly,
    /// Everything: send queues form, and are fed at elastic priority.
    All,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::ElasticOnly, Self::All];

    /// The name in flags and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::ElasticOnly => "elastic",
            Self::All => "all",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// The limits of the pools; each destination store has an evaluation pool and a send pool of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What may be held for regular and elastic work together. Default 16 MiB: at 100 ms round trip, 160 MB/s to each
    /// store. Too small: throughput is this divided by the round trip. Too large: a slow store receives more before it is
    /// noticed.
    pub regular_bytes: u64,
    /// Elastic work has no tokens once regular and elastic together hold this much. Default 8 MiB. Never above
    /// `regular_bytes`.
    pub elastic_bytes: u64,
    /// What may be under way to one store beyond its tokens, because the quorum of some group needed it, over all groups.
    /// Default 32 MiB. Too small: groups whose only quorum includes a slow store go at its admission's pace. Too large:
    /// their entries pile up there.
    pub forced_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { regular_bytes: 16 << 20, elastic_bytes: 8 << 20, forced_bytes: 32 << 20 }
    }
}

impl Limits {
    /// The nearest limits that are allowed.
    #[must_use]
    pub fn clamped(self) -> Self {
        let regular_bytes = self.regular_bytes.clamp(POOL_BYTES_MIN, POOL_BYTES_MAX);
        Self {
            regular_bytes,
            elastic_bytes: self.elastic_bytes.clamp(POOL_BYTES_MIN, regular_bytes),
            forced_bytes: self.forced_bytes.clamp(POOL_BYTES_MIN, FORCED_BYTES_MAX),
        }
    }
}
