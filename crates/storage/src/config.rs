//! The knobs of a store.

/// How a [`LogStore`](crate::LogStore) uses its disk and its memory. The defaults suit a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Size of a journal segment file, in bytes; 16 MiB. At least 16 KiB, at most 1 GiB. Smaller means more frequent
    /// checkpoints, larger means that more has to be read when the store is opened. May change between openings.
    pub segment_bytes: u64,
    /// How many segments may be live before the oldest is moved to sled and recycled; 6, at least 2. The journal's
    /// size on disk is about this plus two, times `segment_bytes`. Fewer means that entries which would soon have been
    /// compacted are written twice.
    pub live_segments_max: usize,
    /// How many bytes of recent batches the store keeps in memory for readers, over all groups; 64 MiB. Too small, and
    /// followers that are slightly behind are served from the disk. What is not durable yet stays in any case.
    pub cache_bytes: u64,
    /// How many bytes a round may hold before the batches behind it wait for the next one; 8 MiB. A single larger batch
    /// is still one round. Too large makes the slowest answer of a round slow.
    pub round_bytes_max: u64,
    /// sled's page cache, in bytes; 16 MiB. Only cold entries and metadata live there.
    pub cold_cache_bytes: u64,
    /// How large sled's file may be, in bytes, beyond eight times what is in it, before it is written anew; 64 MiB. Too
    /// small, and it is written anew often; too large, and a disk holds that much of nothing.
    pub cold_slack_bytes: u64,
    /// The pace of background checkpoints, in bytes a second; 32 MiB. Four times as quick for each segment that has filled
    /// while one was under way, beyond the first; from the second on, rounds are held back to this pace, and to a quarter of
    /// it for each further one: the journal keeps to its bound under any load.
    pub checkpoint_bytes_per_second: u64,
    /// The room that stays free on the file system, in bytes; 64 MiB. With less than this (and a segment) left, the
    /// store makes no new segment and reports it ([`LogStore::space`](crate::LogStore::space)), while what is there goes
    /// on working. Too small, and a disk that fills fast leaves no time to refuse writes.
    pub space_reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            live_segments_max: 6,
            cache_bytes: 64 << 20,
            round_bytes_max: 8 << 20,
            cold_cache_bytes: 16 << 20,
            cold_slack_bytes: 64 << 20,
            checkpoint_bytes_per_second: 32 << 20,
            space_reserve_bytes: 64 << 20,
        }
    }
}

impl Options {
    /// The smallest segment: a header page, and room for a few records.
    pub(crate) const SEGMENT_BYTES_MIN: u64 = 16 << 10;
    /// The largest segment: offsets are 32 bits wide, and one round may need a segment beyond the usual size.
    pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

    /// These options with every field inside its bounds.
    pub(crate) fn bounded(&self) -> Self {
        let mut o = self.clone();
        // Whole pages, so that the zero-fill and the last record never share a page beyond the file's end.
        o.segment_bytes =
            o.segment_bytes.clamp(Self::SEGMENT_BYTES_MIN, Self::SEGMENT_BYTES_MAX).next_multiple_of(4096);
        o.live_segments_max = o.live_segments_max.max(2);
        o.round_bytes_max = o.round_bytes_max.clamp(4096, o.segment_bytes / 2);
        o.checkpoint_bytes_per_second = o.checkpoint_bytes_per_second.max(1 << 20);
        o
    }
}
