//! One group's flow control, while this store leads it in one term.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, Term};

use crate::class::{Bytes, Class, PerClass};
use crate::follower::Admitted;
use crate::limits::{ASK_AFTER_MS, GRANT_BYTES_MIN, Mode, PROBE_GRACE_MS};
use crate::pools::{Held, Pools};
use crate::stream::{EntryCost, Force, Stream};

/// How Raft sends to a follower at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowerState {
    /// Where the logs part is being found out, or it does not answer.
    Probe,
    /// Appends are pipelined; `next` is what is sent next.
    Replicate {
        /// Raft's `next_index`.
        next: LogIndex,
    },
    /// It gets a snapshot.
    Snapshot,
    /// Its store does not report what it admits, so nothing is held for it.
    Uncontrolled,
}

/// What a leader has with one follower.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// Nothing is held, and it counts for nothing (I6).
    Away,
    /// It was streamed to until just now. Nothing is held (I7), but it counts when the quorum's safety is weighed.
    Grace { until: u64 },
    /// Its store is of a version without flow control: it counts as if it always had tokens.
    Uncontrolled,
    /// It is streamed to.
    Open(Stream),
}

/// The controller of one group and term. Its owner tells it what happened, settles ([`Controller::settle`]) whenever it has
/// looked at the group, and closes it ([`Controller::close`]) before it forgets it.
#[derive(Debug)]
pub struct Controller {
    pub(crate) group: GroupId,
    pub(crate) term: Term,
    pub(crate) me: ReplicaId,
    /// The entry after the last one that was appended.
    pub(crate) next: LogIndex,
    pub(crate) configuration: Configuration,
    pub(crate) links: BTreeMap<ReplicaId, Link>,
    /// The entries that were appended since the last settling.
    fresh: Vec<EntryCost>,
    /// About what an older entry takes.
    mean_bytes: u64,
    /// Commands wait for tokens.
    pub(crate) waits: PerClass<bool>,
    /// When something was sent or admitted last.
    moved_at: u64,
    /// Nothing happened since it was settled.
    settled: bool,
}

impl Controller {
    /// The controller of the leader `me` in `term`, whose log ends before `next`. Nobody is streamed to yet.
    #[must_use]
    pub fn new(
        group: GroupId,
        term: Term,
        me: ReplicaId,
        next: LogIndex,
        configuration: Configuration,
    ) -> Self {
        let others = configuration.members().into_iter().filter(|replica| *replica != me);
        Self {
            group,
            term,
            me,
            next,
            links: others.map(|replica| (replica, Link::Away)).collect(),
            configuration,
            fresh: Vec::new(),
            mean_bytes: 0,
            waits: PerClass::default(),
            moved_at: 0,
            settled: false,
        }
    }

    /// The term in which it controls.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The configuration it knows.
    #[must_use]
    pub const fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// What an entry takes on average whose size is not known, because it was in the log before.
    pub const fn set_mean_entry_bytes(&mut self, bytes: u64) {
        self.mean_bytes = bytes;
    }

    /// Another configuration is in force. What was held for those who left comes back.
    pub fn set_configuration(&mut self, pools: &mut Pools, configuration: &Configuration) {
        if self.configuration == *configuration {
            return;
        }
        let members: BTreeSet<_> =
            configuration.members().into_iter().filter(|replica| *replica != self.me).collect();
        let gone: Vec<_> = self.links.keys().filter(|replica| !members.contains(replica)).copied().collect();
        for replica in gone {
            self.disconnect(pools, replica, Link::Away);
            self.links.remove(&replica);
        }
        for replica in members {
            self.links.entry(replica).or_insert(Link::Away);
        }
        self.configuration = configuration.clone();
    }

    /// Raft sends to `replica` in this way from now on.
    pub fn follower(&mut self, pools: &mut Pools, now: u64, replica: ReplicaId, state: FollowerState) {
        let next = self.next;
        self.settled = false;
        let Some(link) = self.links.get_mut(&replica) else { return };
        match (state, link) {
            (FollowerState::Replicate { next: sends }, Link::Open(stream)) if stream.from == sends => {}
            (FollowerState::Replicate { next: sends }, _) => {
                // A new stream, or one whose place is another than it was: what is under way is not known any more.
                self.disconnect(pools, replica, Link::Open(Stream::new(sends.min(next), next)));
            }
            (FollowerState::Probe, Link::Open(stream)) => {
                let has_queue = stream.from < next;
                let grace = Link::Grace { until: now.saturating_add(PROBE_GRACE_MS) };
                self.disconnect(pools, replica, if has_queue { Link::Away } else { grace });
            }
            (FollowerState::Probe, Link::Grace { until }) if *until > now => {}
            (FollowerState::Uncontrolled, Link::Uncontrolled) => {}
            (FollowerState::Uncontrolled, _) => self.disconnect(pools, replica, Link::Uncontrolled),
            (FollowerState::Probe | FollowerState::Snapshot, Link::Away) => {}
            (FollowerState::Probe | FollowerState::Snapshot, _) => {
                self.disconnect(pools, replica, Link::Away);
            }
        }
    }

    /// These entries were appended to the leader's log, in order. Their evaluation tokens are taken for every follower that is
    /// streamed to.
    pub fn appended(&mut self, pools: &mut Pools, entries: &[EntryCost]) {
        self.settled = false;
        let mut cost = Bytes::ZERO;
        for entry in entries {
            if entry.index < self.next {
                continue;
            }
            *cost.get_mut(entry.class) += entry.bytes;
            self.next = entry.index.next();
            self.fresh.push(*entry);
        }
        pools.elastic_began(cost.elastic);
        for (replica, link) in &mut self.links {
            if let Link::Open(stream) = link {
                stream.fresh += cost;
                pools.take_eval(replica.store, cost);
            }
        }
    }

    /// Raft sends these entries to `to`: they are accounted until they are admitted.
    pub fn sent(&mut self, pools: &mut Pools, now: u64, to: ReplicaId, range: Range<LogIndex>) {
        self.settled = false;
        let range = range.start..range.end.min(self.next);
        let Some(Link::Open(stream)) = self.links.get(&to) else { return };
        if range.is_empty() {
            return;
        }
        if stream.from != range.start {
            // Sent again from an earlier place, or from a later one.
            let stream = Stream::new(range.start, self.next);
            self.disconnect(pools, to, Link::Open(stream));
        }
        let Some(Link::Open(stream)) = self.links.get_mut(&to) else { return };
        let last = range.end.prev();
        let cost = stream.take(range, self.next, &self.fresh, self.mean_bytes);
        // What was granted is held already.
        let from_grant = stream.granted.min(cost.waited);
        stream.granted -= from_grant;
        let mut taken = cost.fresh;
        taken.elastic += cost.waited - from_grant;
        let forced = if stream.force.is_some() { taken.total() } else { 0 };
        stream.note_sent(last, &cost, forced);
        pools.take_send(to.store, taken, forced);
        self.moved_at = now;
    }

    /// A follower says what it has admitted. Of another term: it is about another log, and nothing moves.
    pub fn admitted(&mut self, pools: &mut Pools, now: u64, from: ReplicaId, admitted: Admitted) {
        if admitted.term != self.term {
            return;
        }
        let Some(Link::Open(stream)) = self.links.get_mut(&from) else { return };
        let mut held = Held::default();
        for class in Class::ALL {
            let freed = stream.admit(class, *admitted.upto.get(class));
            held.eval += freed.eval;
            held.send += freed.send;
            held.forced += freed.forced;
        }
        if held != Held::default() {
            self.moved_at = now;
            pools.admitted(from.store, held);
        }
    }

    /// The group was looked at. What was appended and not sent is a queue from here on; queues that have no tokens wait for
    /// them; and whoever waits behind this group has its turn.
    pub fn settle(&mut self, pools: &mut Pools) {
        let paced = pools.mode() == Mode::All;
        for (replica, link) in &mut self.links {
            let Link::Open(stream) = link else { continue };
            let fresh = std::mem::take(&mut stream.fresh);
            if !fresh.is_zero() {
                pools.eval_becomes_elastic(replica.store, fresh.regular);
                stream.queued += fresh.total();
            }
            if stream.force == Some(Force::Deny) {
                stream.force = None;
            }
            let key = (self.group, *replica);
            let empty = stream.from == self.next;
            if empty || !paced {
                stream.force = None;
            }
            if empty || !paced || stream.force.is_some() || stream.granted < GRANT_BYTES_MIN {
                let unused = std::mem::take(&mut stream.granted);
                if unused > 0 {
                    pools.give_grant(replica.store, unused);
                }
            }
            if empty || !paced || stream.force.is_some() {
                pools.leave_queue(key);
            } else if stream.granted == 0 && !pools.waits_to_send(key) {
                let before = stream.initial.0.saturating_sub(stream.from.0);
                let wants = stream.queued.saturating_add(before.saturating_mul(self.mean_bytes));
                // A tenth more: sizes are estimated, and a rest would wait once more.
                pools.wait_to_send(key, wants.saturating_add(wants / 10));
            }
        }
        self.fresh.clear();
        self.settled = true;
        pools.end_turns(self.group);
        pools.dispatch_all();
    }

    /// Whether the leader should ask its followers: tokens are held, and nothing was heard of them for a while. Its Raft group
    /// should not fall silent either while this is so.
    #[must_use]
    pub fn asks(&self, now: u64) -> bool {
        self.next_deadline().is_some_and(|at| at <= now)
    }

    /// When to look at the group next; `None`: not before something else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let holds = |link: &Link| matches!(link, Link::Open(stream) if stream.has_sent());
        self.links.values().any(holds).then(|| self.moved_at.saturating_add(ASK_AFTER_MS))
    }

    /// The question was asked.
    pub const fn asked(&mut self, now: u64) {
        self.moved_at = now;
    }

    /// The term, or the leadership, is over: everything comes back.
    pub fn close(mut self, pools: &mut Pools) {
        let replicas: Vec<_> = self.links.keys().copied().collect();
        for replica in replicas {
            self.disconnect(pools, replica, Link::Away);
        }
        pools.forget(self.group);
    }

    pub(crate) const fn is_settled(&self) -> bool {
        self.settled
    }

    pub(crate) const fn unsettle(&mut self) {
        self.settled = false;
    }

    /// Where queues end: this round's entries are in none yet.
    pub(crate) fn queue_end(&self) -> LogIndex {
        self.fresh.first().map_or(self.next, |entry| entry.index)
    }

    /// Everything that is held for `replica` comes back, and `link` takes the place of what was.
    fn disconnect(&mut self, pools: &mut Pools, replica: ReplicaId, link: Link) {
        let Some(place) = self.links.get_mut(&replica) else { return };
        if let Link::Open(stream) = std::mem::replace(place, link) {
            pools.leave_queue((self.group, replica));
            if stream.granted > 0 {
                pools.give_grant(replica.store, stream.granted);
            }
            pools.disconnected(replica.store, stream.held());
        }
    }
}
