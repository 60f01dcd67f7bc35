//! May a command begin? Regular ones when a quorum has room for them, elastic ones when every live replica has.

use std::collections::BTreeSet;

use pontoon_raft_core::types::{ReplicaId, StoreId};

use crate::class::Class;
use crate::controller::{Controller, Link};
use crate::limits::{Mode, TURN_BYTES};
use crate::plan::quorum;
use crate::pools::Pools;

/// Whether commands of a group may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As long as what began in this round is below so many bytes; the command that passes it goes as well.
    Go {
        /// Not 0.
        bytes: u64,
    },
    /// Not now. The group is woken ([`Pools::take_wakes`]) when it is worth another look.
    Wait,
}

impl Controller {
    /// Whether commands of `class` may begin. Those that may are to be appended, or given up, before the group is settled.
    ///
    /// A regular command needs a quorum of each set of voters in which the leader, and followers with evaluation tokens and
    /// without a queue, are counted; an elastic one needs tokens for every follower that is streamed to beside, and goes at the
    /// pace that all elastic work shares. A follower that
    /// is not streamed to cannot be waited for: it counts for nothing, and if so few are streamed to that there is no quorum at
    /// all, what is appended is bounded by Raft's own limit of uncommitted bytes alone.
    pub fn evaluate(&mut self, pools: &mut Pools, class: Class) -> Verdict {
        let verdict = match (pools.mode(), class) {
            (Mode::Off, _) | (Mode::ElasticOnly, Class::Regular) => Verdict::Go { bytes: u64::MAX },
            (Mode::ElasticOnly | Mode::All, _) => self.weigh(pools, class),
        };
        match verdict {
            Verdict::Go { .. } => {
                if std::mem::take(self.waits.get_mut(class)) {
                    pools.leave_wait(class, self.group);
                }
            }
            Verdict::Wait => *self.waits.get_mut(class) = true,
        }
        verdict
    }

    fn weigh(&self, pools: &mut Pools, class: Class) -> Verdict {
        let first_in_line = pools.has_turn(class, self.group);
        let paced = pools.mode() == Mode::All;
        let end = self.queue_end();
        // Nobody overtakes: tokens that others wait for are not there, but for whoever has a turn.
        let tokens = |store: StoreId| {
            let behind = !first_in_line && pools.is_behind(store, class, self.group);
            let available = pools.eval_available(store, class);
            if behind { 0 } else { u64::try_from(available).unwrap_or(0) }
        };
        let room = |replica: &ReplicaId| match self.links.get(replica) {
            Some(Link::Uncontrolled) => Some(u64::MAX),
            Some(Link::Open(stream)) => {
                let queue = paced && class == Class::Regular && stream.from < end;
                Some(if queue { 0 } else { tokens(replica.store) })
            }
            Some(Link::Away | Link::Grace { .. }) | None => None,
        };
        let mut least = u64::MAX;
        for set in [&self.configuration.voters, &self.configuration.outgoing_voters] {
            let mut rooms: Vec<_> =
                set.iter().filter(|replica| **replica != self.me).filter_map(room).collect();
            rooms.sort_unstable_by(|a, b| b.cmp(a));
            let needed = quorum(set.len()).saturating_sub(usize::from(set.contains(&self.me)));
            if let Some(last) = needed.min(rooms.len()).checked_sub(1) {
                least = least.min(rooms[last]);
            }
        }
        if class == Class::Elastic {
            least = self.links.keys().filter_map(room).fold(least, u64::min);
        }
        let stores: BTreeSet<_> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(link, Link::Open(_)))
            .map(|(replica, _)| replica.store)
            .collect();
        if class == Class::Elastic {
            least = least.min(pools.allowance());
        }
        if least > 0 {
            let contended = stores.iter().any(|store| pools.is_contended(*store, class, self.group));
            return Verdict::Go { bytes: if contended { least.min(TURN_BYTES) } else { least } };
        }
        let mut without: Vec<_> = stores.iter().copied().filter(|store| tokens(*store) == 0).collect();
        if without.is_empty() {
            // There are tokens, so it is the pace that has to be waited for; any store's line will do for that.
            pools.is_short();
            without.extend(stores.first());
        }
        for store in without {
            pools.wait_to_begin(store, class, self.group);
        }
        Verdict::Wait
    }
}
