//! Reads without a round trip, as an option (Raft thesis 6.4.1): a leader that a quorum has answered lately is still the
//! leader, because those who answered elect nobody else for a whole election timer.
//!
//! **The clock assumption.** From the moment a heartbeat was built to the end of the lease, T minus the margin later, the
//! clocks of two stores must not drift apart by more than the margin (`Config::lease_margin_ms`); and the `now` that a host tells
//! must not be older than the margin when it is told (a host that reads its clock, is paused, and then hands over what arrived
//! meanwhile with the old time breaks it). A host that cannot promise this leaves the option off and gets the same answers by
//! a heartbeat round. All voters must have the option on, check-quorum too, and the same election timer: a voter without it
//! does not know that it is bound.
//!
//! What binds a voter, for T from the last word of a leader, *whatever its role or term is by then* (a stray message of a newer
//! term ends a follower's role, and must not end the promise that its answer was): it gives nobody a vote and does not stand
//! itself. The same after a start, because what it promised before is forgotten. The one exception is an election that the leader
//! asked for; a leader that has asked for one grants itself no more leases in its term.
//!
//! A follower's answer counts for a lease only if the heartbeat told it of the newest committed election timer: it
//! protects the leader for as long as *its* timer says, and an older one may have been shorter.

use std::collections::VecDeque;

use crate::quorum::joint;
use crate::raft::{Raft, RoleState};
use crate::types::{LogIndex, ReplicaId};

/// More heartbeat rounds than this within a timer are not remembered; the lease is then a little shorter.
const ROUNDS_MAX: usize = 64;

/// A leader's memory of its heartbeat rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    /// Rounds that may still be answered: number, when they were built.
    rounds: VecDeque<(u64, u64)>,
    /// The newest committed election timer that the followers' answers are about.
    timer_index: LogIndex,
    /// This leader asked somebody to take over: that election is not held up by anybody's promise.
    pub(crate) given_up: bool,
}

impl Raft {
    /// Whether leases are on. Without check-quorum nobody would keep the promise.
    fn leases(&self) -> Option<u64> {
        self.config.lease_margin_ms.filter(|_| self.config.check_quorum)
    }

    /// Whether this voter has promised to elect nobody else yet; until when.
    pub(crate) fn bound_until(&self) -> Option<u64> {
        self.leases()?;
        let until = self.bound_since?.saturating_add(self.election_timer_ms);
        (self.now < until).then_some(until)
    }

    /// A round of heartbeats goes out.
    pub(crate) fn lease_round(&mut self, round: u64) {
        if self.leases().is_none() {
            return;
        }
        let (commit, timer_index) = (self.log.commit(), self.log.election_timer_index());
        let RoleState::Leader(leader) = &mut self.role else { return };
        let lease = &mut leader.lease;
        if lease.timer_index != timer_index {
            // Another timer is in force: who promised what under the old one does not count.
            lease.timer_index = timer_index;
            lease.rounds.clear();
            for progress in leader.followers.values_mut() {
                (progress.lease_from, progress.lease_round) = (0, None);
            }
        }
        if lease.rounds.len() >= ROUNDS_MAX {
            lease.rounds.pop_front();
        }
        lease.rounds.push_back((round, self.now));
        for progress in leader.followers.values_mut() {
            if progress.lease_round.is_none() && commit.min(progress.match_index) >= timer_index {
                progress.lease_round = Some(round);
            }
        }
    }

    /// A follower answered a round.
    pub(crate) fn lease_answer(&mut self, from: ReplicaId, round: u64) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.followers.get_mut(&from) else { return };
        if progress.doubt.is_some() || progress.lease_round.is_none_or(|first| round < first) {
            return;
        }
        if let Some((_, at)) = leader.lease.rounds.iter().find(|(number, _)| *number == round) {
            progress.lease_from = progress.lease_from.max(*at);
        }
    }

    /// Whether a read may be answered now without asking anybody.
    pub(crate) fn holds_lease(&self) -> bool {
        let (Some(margin), RoleState::Leader(leader)) = (self.leases(), &self.role) else { return false };
        let lease = &leader.lease;
        if lease.given_up || lease.timer_index != self.log.election_timer_index() {
            return false;
        }
        let id = self.id();
        let since = joint::reached(self.log.configuration(), |voter| {
            if voter == id { self.now } else { leader.followers.get(&voter).map_or(0, |p| p.lease_from) }
        });
        // 0 is "never": a clock that begins at 0 loses the lease of its first moment, which hurts nobody.
        since > 0 && self.now.saturating_add(margin) < since.saturating_add(self.election_timer_ms)
    }
}
