//! What a group looks like from this store.

use pontoon_raft_core::status::Status as CoreStatus;
use pontoon_raft_core::types::{GroupId, LogIndex};

pub use crate::group_host::Election;
use crate::group_host::GroupHost;

/// One group, as this store sees it at one moment.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// What its core knows: role, term, leader, vote, configuration, progress of the followers.
    pub core: CoreStatus,
    /// The first entry that the log holds.
    pub first_index: LogIndex,
    /// Applied on this store.
    pub applied: LogIndex,
    /// The bytes of the log, roughly.
    pub log_bytes: u64,
    /// The last election that this replica took part in as a candidate.
    pub last_election: Option<Election>,
    /// The node's clock when this was taken, in milliseconds.
    pub now_ms: u64,
    /// Commands of this store's callers that wait.
    pub waiting_commands: usize,
    /// Flow control in words, if this replica leads: for each follower its queue, and what is not admitted.
    pub flow: Option<String>,
}

impl GroupStatus {
    pub(crate) fn of(host: &GroupHost, now: u64) -> Self {
        Self {
            group: host.shared.id,
            core: host.core.status(),
            first_index: host.snapshot.index.next(),
            applied: host.shared.applied(),
            log_bytes: host.size.bytes(),
            last_election: host.election,
            now_ms: now,
            waiting_commands: host.shared.waiters.lock().len(),
            flow: host.flow.describe(),
        }
    }
}
