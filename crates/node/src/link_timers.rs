//! The links' probe interval follows the groups' election timers.
//!
//! A store's links carry all groups, and each group has an election timer of its own, which changes through its log. A
//! dead link has to be found as soon as the most impatient group needs it, so the shortest timer counts. It is told to the
//! transport when a group is opened or closed, and when the entry that changes its timer is applied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pontoon_raft_core::types::GroupId;
use pontoon_transport::Transport;

/// The election timers of the groups that this store serves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkTimers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In milliseconds.
    timers: Mutex<HashMap<GroupId, u64>>,
    transport: OnceLock<Transport>,
}

impl LinkTimers {
    /// Begins to tell this transport.
    pub(crate) fn attach(&self, transport: &Transport) {
        let timers = self.lock();
        if self.0.transport.set(transport.clone()).is_ok() {
            self.tell(&timers);
        }
    }

    /// A group was opened with this timer, or changed to it.
    pub(crate) fn set(&self, group: GroupId, millis: u64) {
        let mut timers = self.lock();
        if timers.insert(group, millis) != Some(millis) {
            self.tell(&timers);
        }
    }

    /// A group was closed.
    pub(crate) fn remove(&self, group: GroupId) {
        let mut timers = self.lock();
        if timers.remove(&group).is_some() {
            self.tell(&timers);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GroupId, u64>> {
        self.0.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the lock held, so that the latest word is the right one.
    fn tell(&self, timers: &HashMap<GroupId, u64>) {
        if let (Some(transport), Some(shortest)) = (self.0.transport.get(), timers.values().min()) {
            transport.set_election_timer(*shortest);
        }
    }
}
