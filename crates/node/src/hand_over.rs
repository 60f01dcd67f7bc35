//! Leaderships that this store should not have: its disk hangs, or has no room.
//!
//! A disk that **hangs** is told by a sync that has been under way for longer than the group's election timer. The leader
//! asks its best follower to lead; if it still leads after twice the timer it steps down, and whoever can stands for
//! election. While the disk hangs, this replica starts no election, and takes no leadership that is offered. Messages go
//! in and out as ever; the core holds back what the disk does not confirm. When the sync is done, so is all this. Silent groups
//! are woken for it, a few at a time (`waking.rs`), so a store whose disk hangs ends up leading nothing.
//!
//! A disk with **no room** takes no new commands. Its leader asks the other voters to lead, one after the other: which of
//! them have room, it cannot know, but one that has none does not take over. Commands wait meanwhile; if nobody takes
//! over they are refused, and reads go on. From time to time it asks again.

use pontoon_raft_core::message::{Body, Entries};
use pontoon_raft_core::types::ReplicaId;
use pontoon_storage::{LogStore, Space};

use crate::group_host::GroupHost;

/// With nobody found, the others are asked again after so many election timers: one of them may have room by now.
const ASK_AGAIN_TIMERS: u64 = 10;

/// How this store's disk is at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskHealth {
    /// For how long the sync under way has been at it.
    pub(crate) pending_ms: u64,
    pub(crate) space: Space,
}

impl DiskHealth {
    /// Two loads, no lock.
    pub(crate) fn of(log: &LogStore) -> Self {
        Self { pending_ms: log.sync_pending_micros() / 1000, space: log.space() }
    }

    /// Whether the disk hangs, by the measure of this group.
    pub(crate) fn hangs(self, host: &GroupHost) -> bool {
        self.pending_ms > host.core.election_timer_ms()
    }

    /// Whether this replica should keep away from what `message` asks for.
    pub(crate) fn declines(self, host: &GroupHost, body: &Body) -> bool {
        match body {
            Body::TimeoutNow => self.hangs(host) || self.space != Space::Enough,
            // What little room is left is for what cannot wait: votes, and what is on its way already. The leader sees a
            // follower that is behind, and sends again.
            Body::AppendEntries(append) => {
                self.space == Space::AlmostNone
                    && matches!(&append.entries, Entries::Inline(entries) if !entries.is_empty())
            }
            _ => false,
        }
    }
}

/// Whether commands may be proposed here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Room {
    #[default]
    Enough,
    /// Somebody else is being asked to lead: commands wait for that.
    Asking,
    /// Nobody else leads: commands are refused.
    Refused,
}

/// A leader's search for somebody else.
#[derive(Debug, Default)]
pub(crate) struct HandOver {
    pub(crate) room: Room,
    /// How many were asked so far.
    asked: usize,
    /// When the next one is.
    next_at: u64,
    /// A replica whose disk hangs is looked at again then, instead of at its own deadline.
    pub(crate) hold_until: Option<u64>,
    /// A failure test has put an election off until then.
    pub(crate) put_off_until: Option<u64>,
    /// The hang was told in the log.
    hang_told: bool,
}

/// The group's deadline has come.
pub(crate) fn tick(host: &mut GroupHost, now: u64, disk: DiskHealth) {
    if !disk.hangs(host) {
        if std::mem::take(&mut host.hand_over.hang_told) {
            tracing::debug!(group = %host.shared.id, "the disk syncs again");
        }
        host.hand_over.hold_until = None;
        host.core.tick(now);
        return;
    }
    let timer = host.core.election_timer_ms();
    if !host.core.is_leader() {
        // Its election would hang as well, and begin at the worst time: when the disk comes back.
        host.hand_over.hold_until = Some(now + (timer / 4).max(1));
        return;
    }
    if !std::mem::replace(&mut host.hand_over.hang_told, true) {
        tracing::debug!(group = %host.shared.id, pending_ms = disk.pending_ms, "the disk hangs: somebody else should lead");
    }
    host.core.tick(now);
    if disk.pending_ms > 2 * timer {
        host.core.resign(now);
    } else if let Err(error) = host.core.transfer_leadership(now, None) {
        tracing::debug!(group = %host.shared.id, %error, "the disk hangs, and leadership stays here for now");
    }
}

/// Looks for room elsewhere, if this replica leads and has none. Called in each round in which the group is looked at.
pub(crate) fn look_for_room(host: &mut GroupHost, now: u64, disk: DiskHealth) {
    if disk.space == Space::Enough || !host.core.is_leader() {
        if host.hand_over.room != Room::Enough {
            host.hand_over.room = Room::Enough;
            host.hand_over.asked = 0;
            host.hand_over.next_at = 0;
        }
        return;
    }
    if host.hand_over.room == Room::Enough {
        host.hand_over.room = Room::Asking;
    }
    if now < host.hand_over.next_at {
        return;
    }
    let timer = host.core.election_timer_ms();
    let others = other_voters(host);
    // The best one first, then each.
    if others.is_empty() || host.hand_over.asked > others.len() {
        if host.hand_over.room != Room::Refused {
            tracing::warn!(group = %host.shared.id, "no room here, and nobody else leads: commands are refused");
        }
        host.hand_over.room = Room::Refused;
        host.hand_over.asked = 0;
        host.hand_over.next_at = now + ASK_AGAIN_TIMERS * timer;
        return;
    }
    let to = host.hand_over.asked.checked_sub(1).map(|n| others[n]);
    if let Err(error) = host.core.transfer_leadership(now, to) {
        tracing::debug!(group = %host.shared.id, %error, "no room here, and leadership stays for now");
    }
    host.hand_over.asked += 1;
    // A transfer is given up after one timer.
    host.hand_over.next_at = now + timer + 1;
}

fn other_voters(host: &GroupHost) -> Vec<ReplicaId> {
    let own = host.core.id();
    host.core.configuration().voters.iter().copied().filter(|voter| *voter != own).collect()
}
