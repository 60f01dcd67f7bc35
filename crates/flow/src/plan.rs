//! Who may be sent to now, and who must be, so that the group keeps a quorum without a queue.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use pontoon_raft_core::types::ReplicaId;

use crate::class::Class;
use crate::controller::{Controller, Link};
use crate::limits::{Limits, Mode, PROBE_BYTES};
use crate::pools::Pools;
use crate::stream::Force;

impl Controller {
    /// Decides what each follower may be sent in this round: `tell` hears it in bytes, `None` for no bound. `elastic`: among the
    /// entries that are about to be sent are elastic ones.
    ///
    /// A follower without a queue gets everything or nothing: everything as long as there is a token, into debt if need be,
    /// because queues that flap cost more than a debt of one round. One with a queue gets what it was granted. If fewer than a
    /// quorum would be left without a queue, those that are least loaded are sent to in spite of their tokens, first such
    /// without a queue, within the aggregate cap of their store.
    pub fn plan(&mut self, pools: &mut Pools, elastic: bool, mut tell: impl FnMut(ReplicaId, Option<u64>)) {
        let paced = pools.mode() == Mode::All;
        if paced {
            self.unsettle();
            let group = self.group;
            for (replica, link) in &mut self.links {
                if let Link::Open(stream) = link {
                    stream.granted += pools.fetch_grant((group, *replica));
                }
            }
            self.keep_a_quorum(pools, elastic);
        }
        for (replica, link) in &self.links {
            let credit = match link {
                _ if !paced => None,
                Link::Uncontrolled => None,
                Link::Away | Link::Grace { .. } => {
                    let some = pools.send_available(replica.store, Class::Elastic) > 0;
                    Some(if some { PROBE_BYTES } else { 0 })
                }
                Link::Open(stream) if stream.force.is_some() => Some(pools.force_room(replica.store)),
                Link::Open(stream) if stream.from < self.queue_end() => Some(stream.granted),
                Link::Open(_) if has_tokens(pools, *replica, elastic) => None,
                Link::Open(_) => Some(0),
            };
            tell(*replica, credit);
        }
    }

    /// Denies queues, and flushes them, until each set of voters has a quorum without one; stops flushing what is not needed.
    fn keep_a_quorum(&mut self, pools: &Pools, elastic: bool) {
        let mut contributes: BTreeSet<ReplicaId> = BTreeSet::from([self.me]);
        let end = self.queue_end();
        for (replica, link) in &self.links {
            let counts = match link {
                Link::Away => false,
                Link::Grace { .. } | Link::Uncontrolled => true,
                Link::Open(stream) => {
                    stream.force == Some(Force::Flush)
                        || (stream.from == end && has_tokens(pools, *replica, elastic))
                }
            };
            if counts {
                contributes.insert(*replica);
            }
        }
        for set in [self.configuration.voters.clone(), self.configuration.outgoing_voters.clone()] {
            while contributes.intersection(&set).count() < quorum(set.len()) {
                let candidates = set.iter().filter(|replica| !contributes.contains(replica));
                let best = candidates
                    .filter(|replica| pools.force_room(replica.store) > 0)
                    .filter_map(|replica| match &self.links.get(replica)? {
                        Link::Open(stream) => Some((stream.from < end, load(pools, *replica), *replica)),
                        _ => None,
                    })
                    .min();
                let Some((queue, _, replica)) = best else { break };
                contributes.insert(replica);
                if let Some(Link::Open(stream)) = self.links.get_mut(&replica) {
                    stream.force = Some(if queue { Force::Flush } else { Force::Deny });
                }
            }
        }
        if self.configuration.is_joint() {
            return;
        }
        // More than are needed: the most loaded go back to their own pace.
        let voters = &self.configuration.voters;
        let mut excess = contributes.intersection(voters).count().saturating_sub(quorum(voters.len()));
        let mut flushed: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(link, Link::Open(stream) if stream.force == Some(Force::Flush)))
            .map(|(replica, _)| (Reverse(load(pools, *replica)), *replica))
            .collect();
        flushed.sort_unstable();
        for (_, replica) in flushed {
            let is_voter = self.configuration.voters.contains(&replica);
            if is_voter && excess == 0 {
                continue;
            }
            excess -= usize::from(is_voter);
            if let Some(Link::Open(stream)) = self.links.get_mut(&replica) {
                stream.force = None;
            }
        }
    }
}

/// Whether entries may be sent at once: a token of each class that is needed.
fn has_tokens(pools: &Pools, replica: ReplicaId, elastic: bool) -> bool {
    pools.send_available(replica.store, Class::Regular) > 0
        && (!elastic || pools.send_available(replica.store, Class::Elastic) > 0)
}

/// How loaded a store is, in tenths of its elastic limit, then in tokens for evaluation; the id decides the rest.
fn load(pools: &Pools, replica: ReplicaId) -> (i64, i64, ReplicaId) {
    let Limits { elastic_bytes, .. } = pools.limits();
    let tenth = i64::try_from(elastic_bytes / 10).unwrap_or(i64::MAX).max(1);
    let left = pools.send_available(replica.store, Class::Elastic).div_euclid(tenth);
    (-left, -pools.eval_available(replica.store, Class::Elastic), replica)
}

/// A majority of so many voters; nothing of an empty set.
pub(crate) const fn quorum(voters: usize) -> usize {
    if voters == 0 { 0 } else { voters / 2 + 1 }
}
