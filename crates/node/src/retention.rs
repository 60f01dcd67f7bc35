//! How much of a group's log is kept, and when it is cut.

use pontoon_raft_core::types::{LogIndex, SnapshotMeta};

use crate::config::NodeConfig;
use crate::group_host::GroupHost;

/// Entries kept behind the applied index whatever their size, so that tiny entries do not make followers need snapshots.
const KEEP_ENTRIES: u64 = 5_000;

/// Cuts that drop fewer entries and bytes than this are not worth a record.
const CUT_ENTRIES_MIN: u64 = 1_000;
const CUT_BYTES_MIN: u64 = 1 << 20;

/// Whether the state machine should be made durable so that the log can be cut: when there is enough news since the last
/// time, whether or not the log could be cut then (a slow follower may have held it).
pub(crate) fn wants_sync(host: &GroupHost, config: &NodeConfig) -> bool {
    let applied = host.shared.applied();
    !host.syncing
        && applied > host.synced
        && (host.size.total().saturating_sub(host.synced_total) >= config.compact_after_bytes
            || applied.0 - host.synced.0 >= config.compact_after_entries)
}

/// Up to where the log may be cut now, if that is worth it.
pub(crate) fn compaction(host: &GroupHost, config: &NodeConfig) -> Option<SnapshotMeta> {
    let worth = |upto: LogIndex| {
        upto.0.saturating_sub(host.snapshot.index.0) >= CUT_ENTRIES_MIN
            || (upto > host.snapshot.index && host.size.bytes_until(upto) >= CUT_BYTES_MIN)
    };
    if host.restoring.is_some() || !worth(host.synced) {
        return None;
    }
    let by_entries = LogIndex(host.shared.applied().0.saturating_sub(KEEP_ENTRIES));
    let by_bytes = host.size.index_with_bytes_after(config.keep_bytes).unwrap_or(LogIndex::ZERO);
    let floor =
        host.size.index_with_bytes_after(config.keep_bytes_for_slow_follower).unwrap_or(LogIndex::ZERO);
    let mut upto = by_entries.max(by_bytes).min(host.synced).min(host.core.compaction_limit(floor));
    for (_, index) in &host.sending {
        upto = upto.min(*index);
    }
    if worth(upto) { host.core.snapshot_meta(upto) } else { None }
}
