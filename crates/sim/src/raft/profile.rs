//! What kind of weather a seed brings. Each run draws its own, so that rare mixtures come up too.

use super::rng::Rng;

/// The parameters of one run. Rates are per thousand.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Stores: each one process with one disk and one clock.
    pub stores: u64,
    /// Groups that share them.
    pub groups: u64,
    /// Replicas of each group that vote from the start.
    pub voters: u64,
    /// Replicas of each group that may be added.
    pub spares: u64,
    /// Messages lost.
    pub loss: u64,
    /// Messages delivered twice.
    pub duplication: u64,
    /// Messages that take much longer, and so arrive out of order.
    pub straggling: u64,
    /// The usual delay, at most.
    pub delay_ms_max: u64,
    /// A disk sync, at most.
    pub sync_ms_max: u64,
    /// Milliseconds between two faults, at most.
    pub fault_every_ms: u64,
    /// Milliseconds between two requests of clients, at most.
    pub request_every_ms: u64,
    /// How long the bad weather lasts.
    pub duration_ms: u64,
    /// A group may fall silent after this long.
    pub quiesce_after_ms: Option<u64>,
    /// Whether heartbeats of all groups leave together.
    pub align_heartbeats: bool,
    /// Whether replicas ask before an election.
    pub pre_vote: bool,
    /// Bytes per append.
    pub append_bytes_max: u64,
    /// Appends in flight.
    pub inflight_messages_max: usize,
    /// The most entries that a compaction leaves.
    pub log_entries_max: u64,
    /// Whether the members change.
    pub membership: bool,
    /// Whether logs are compacted, so that snapshots are needed.
    pub compaction: bool,
    /// Whether stores lose power.
    pub crashes: bool,
    /// Whether links are cut, one way or both, or flap.
    pub partitions: bool,
    /// Whether stores pause.
    pub pauses: bool,
    /// Whether disks hang for seconds, or fail for good.
    pub disk_faults: bool,
    /// Milliseconds that each store's clock counts in a second: the slowest and the fastest.
    pub clocks: (u64, u64),
    /// Reads are answered under leases, with this margin for what the clocks disagree.
    pub lease_margin_ms: Option<u64>,
    /// Servers are added and removed with their phases, instead of by bare changes of the configuration.
    pub server_changes: bool,
    /// The transport takes more and less for whom, at random.
    pub credits: bool,
    /// A torn record leaves the store in doubt, and sometimes the last record that was acknowledged is lost.
    pub doubts: bool,
    /// Leaders fall in quick succession, each with entries that few others have (figure 3.7 of the thesis).
    pub usurpers: bool,
}

/// Every so many-th seed has hundreds of groups.
pub const CROWD_EVERY: u64 = 20;

impl Profile {
    /// Draws the weather of a seed.
    pub fn draw(seed: u64, rng: &mut Rng) -> Self {
        let crowd = seed % CROWD_EVERY == CROWD_EVERY - 1;
        let several = !crowd && seed % 5 == 2;
        let calm = rng.chance(150);
        let rate = |rng: &mut Rng, max| if calm || rng.chance(300) { 0 } else { rng.below(max) };
        let append_bytes_max = rng.pick(&[1, 200, 1_000, 256 << 10]).unwrap_or(1_000);
        // One entry per round trip is a slow pace; clients who write faster only build a backlog.
        let request_ms_min = if append_bytes_max < 1_000 { 100 } else { 5 };
        let groups = match (crowd, several) {
            (true, _) => rng.between(100, 300),
            (_, true) => rng.between(2, 30),
            _ => 1,
        };
        let (voters, spares, stores) = if groups > 1 {
            let stores = rng.between(3, 7);
            let voters = rng.pick(&[3, 3, 3, 5]).unwrap_or(3).min(stores);
            (voters, rng.below(2).min(stores - voters), stores)
        } else {
            let voters = rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]).unwrap_or(3);
            let spares = rng.below(3);
            (voters, spares, (voters + spares).max(3))
        };
        let mut profile = Self {
            stores,
            groups,
            voters,
            spares,
            loss: rate(rng, 250),
            duplication: rate(rng, 200),
            straggling: rate(rng, 150),
            delay_ms_max: rng.between(1, 40),
            sync_ms_max: if rng.chance(150) { rng.between(100, 600) } else { rng.between(1, 30) },
            fault_every_ms: rng.between(100, 3_000),
            request_every_ms: rng.between(request_ms_min, 400),
            duration_ms: match (crowd, several) {
                (true, _) => rng.between(2_000, 5_000),
                (_, true) => rng.between(4_000, 12_000),
                _ => rng.between(5_000, 30_000),
            },
            quiesce_after_ms: (groups > 40 || rng.chance(500)).then(|| rng.between(100, 1_500)),
            pre_vote: !rng.chance(200),
            append_bytes_max,
            inflight_messages_max: rng.pick(&[1, 2, 8, 256]).unwrap_or(8),
            log_entries_max: rng.between(1, 60),
            membership: rng.chance(500),
            compaction: rng.chance(600),
            crashes: !rng.chance(200),
            partitions: !rng.chance(250),
            pauses: rng.chance(400),
            disk_faults: rng.chance(400),
            clocks: if rng.chance(400) { (1_000, 1_000) } else { (750, 1_300) },
            lease_margin_ms: None,
            // By the seed and not by the generator, so that the other seeds keep their stories.
            align_heartbeats: seed % 3 == 2,
            server_changes: [4, 7].contains(&(seed % 11)),
            credits: [5, 4].contains(&(seed % 11)),
            doubts: [1, 7, 9, 11].contains(&(seed % 13)),
            usurpers: seed.is_multiple_of(5),
        };
        // Clocks that run at 750 and 1,300 ‰ would need a margin of nearly half the timer.
        if [5, 7].contains(&(seed % 11)) && profile.clocks == (1_000, 1_000) {
            profile.lease_margin_ms = Some(20);
        }
        profile
    }
}
