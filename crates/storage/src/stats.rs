//! Counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the store has done since it was opened, and how it is now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Disk syncs of the journal: one per round, and those for new segments.
    pub syncs: u64,
    /// Rounds written: one record, one sync each.
    pub rounds: u64,
    /// Batches written.
    pub batches: u64,
    /// Entries written.
    pub entries: u64,
    /// Bytes of records written to the journal. What is written again of the block that a record begins in, and the
    /// zeroes to the end of its last block, do not count.
    pub bytes_written: u64,
    /// Bytes of batches that were submitted and are not durable yet.
    pub pending_bytes: u64,
    /// Bytes of recent batches in memory for readers, those that are not durable yet among them.
    pub cached_bytes: u64,
    /// Groups that exist.
    pub groups: u64,
    /// Segments with something live in them, the one being written included.
    pub live_segments: u64,
    /// Segments ready to be written.
    pub spare_segments: u64,
    /// Segments that were given free by checkpoints.
    pub checkpoints: u64,
    /// Entries that checkpoints moved to sled.
    pub checkpoint_entries: u64,
    /// Bytes of keys and values that checkpoints wrote to sled.
    pub checkpoint_bytes: u64,
    /// Bytes of keys and values in sled, as of the last checkpoint.
    pub cold_live_bytes: u64,
    /// Bytes of sled's file, as of the last checkpoint.
    pub cold_disk_bytes: u64,
    /// How often sled was written anew because its file had grown too far beyond its contents.
    pub cold_rewrites: u64,
    /// Reads that had to go to the journal or to sled.
    pub disk_reads: u64,
    /// How long the newest sync took, in microseconds.
    pub last_sync_micros: u64,
    /// How long the longest sync took, in microseconds.
    pub sync_micros_max: u64,
    /// For how long the round that is being written has been at it, in microseconds; 0 while none is. It tells of a
    /// disk that hangs.
    pub sync_pending_micros: u64,
    /// How long opening took, in seconds.
    pub recovery_seconds: f64,
    /// The disk has less room than the reserve, or no spare segment could be made; the store works on with what it has.
    pub space_low: bool,
    /// The first failure, if there was one: the store takes no writes any more.
    pub failed: Option<String>,
}

/// The counters that threads add to without the store's lock.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) syncs: AtomicU64,
    pub(crate) rounds: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) checkpoint_entries: AtomicU64,
    pub(crate) checkpoint_bytes: AtomicU64,
    pub(crate) cold_live_bytes: AtomicU64,
    pub(crate) cold_disk_bytes: AtomicU64,
    pub(crate) cold_rewrites: AtomicU64,
    pub(crate) disk_reads: AtomicU64,
    pub(crate) last_sync_micros: AtomicU64,
    pub(crate) sync_micros_max: AtomicU64,
    /// Microseconds since the store was opened at which the running round began, plus one; 0: none runs.
    pub(crate) round_began: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    pub(crate) fn cold_is(&self, disk_bytes: u64, live_bytes: u64) {
        self.cold_disk_bytes.store(disk_bytes, Relaxed);
        self.cold_live_bytes.store(live_bytes, Relaxed);
    }

    pub(crate) fn fill(&self, stats: &mut Stats) {
        stats.syncs = self.syncs.load(Relaxed);
        stats.rounds = self.rounds.load(Relaxed);
        stats.batches = self.batches.load(Relaxed);
        stats.entries = self.entries.load(Relaxed);
        stats.bytes_written = self.bytes_written.load(Relaxed);
        stats.checkpoints = self.checkpoints.load(Relaxed);
        stats.checkpoint_entries = self.checkpoint_entries.load(Relaxed);
        stats.checkpoint_bytes = self.checkpoint_bytes.load(Relaxed);
        stats.cold_live_bytes = self.cold_live_bytes.load(Relaxed);
        stats.cold_disk_bytes = self.cold_disk_bytes.load(Relaxed);
        stats.cold_rewrites = self.cold_rewrites.load(Relaxed);
        stats.disk_reads = self.disk_reads.load(Relaxed);
        stats.last_sync_micros = self.last_sync_micros.load(Relaxed);
        stats.sync_micros_max = self.sync_micros_max.load(Relaxed);
    }
}
