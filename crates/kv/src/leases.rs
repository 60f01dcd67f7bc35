//! When leases end. Which leases there are is replicated state; how much time each has left is known to the leader only,
//! by its own clock, and counted anew from the full TTL by each new leader: so no lease ends early, whatever the clocks
//! of the stores show and whoever leads. A clock goes in with each call; there is none in here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pontoon_raft_core::types::Term;
use tokio::sync::Notify;

/// How long after a failed attempt to end a lease the next one comes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is known of one lease.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl_seconds: i64,
    /// Meaningful only while this store leads.
    deadline: Instant,
    /// The term in which its end was proposed. While that term lasts the lease may end at any time, even when an
    /// attempt is said to have failed, so it is not renewed any more.
    ending: Option<Term>,
}

/// What became of a request to renew a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Its TTL in seconds, which counts from now on.
    Renewed(i64),
    /// Its time was over, and its end is under way: whether it lives is known when it has ended, or somebody else
    /// leads. [`Leases::changes`] tells when to ask again.
    Ending,
    /// There is no such lease.
    Unknown,
}

/// The leases of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: HashMap<i64, Lease>,
    /// The deadlines in order; empty while this store does not lead. A lease whose end is on its way is not in it.
    queue: BTreeSet<(Instant, i64)>,
    /// The term in which this store leads.
    leading: Option<Term>,
    /// Woken when something has happened that may decide an [`Renewal::Ending`].
    changes: Arc<Notify>,
}

fn after(now: Instant, ttl_seconds: i64) -> Instant {
    // The longest TTL that is granted is 285 years; a clock may be unable to show that.
    let ttl = Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0));
    now.checked_add(ttl).unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()))
}

impl Leases {
    /// Takes all leases from a state that was loaded. Nobody leads by it yet.
    pub(crate) fn load(&mut self, leases: impl Iterator<Item = (i64, i64)>, now: Instant) {
        let deadline = |ttl_seconds| after(now, ttl_seconds);
        let lease =
            |(id, ttl_seconds)| (id, Lease { ttl_seconds, deadline: deadline(ttl_seconds), ending: None });
        self.granted = leases.map(lease).collect();
        self.follow();
    }

    /// Wakes those who wait for the end of a lease, or for a new leader.
    pub(crate) fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.changes)
    }

    /// A grant was applied.
    pub(crate) fn granted(&mut self, id: i64, ttl_seconds: i64, now: Instant) {
        let deadline = after(now, ttl_seconds);
        self.granted.insert(id, Lease { ttl_seconds, deadline, ending: None });
        if self.leading.is_some() {
            self.queue.insert((deadline, id));
        }
    }

    /// A revocation, or an expiry, was applied.
    pub(crate) fn ended(&mut self, id: i64) {
        if let Some(lease) = self.granted.remove(&id) {
            self.queue.remove(&(lease.deadline, id));
            self.changes.notify_waiters();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty()
    }

    /// The leases that there are.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.granted.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// This store leads in `term`. If it did not before, every lease gets its full TTL from now on: the leader before
    /// may have renewed it a moment ago.
    pub(crate) fn lead(&mut self, term: Term, now: Instant) {
        if self.leading == Some(term) {
            return;
        }
        self.leading = Some(term);
        self.queue.clear();
        for (&id, lease) in &mut self.granted {
            if lease.ending == Some(term) {
                lease.deadline = now + RETRY_AFTER;
            } else {
                lease.deadline = after(now, lease.ttl_seconds);
                lease.ending = None;
            }
            self.queue.insert((lease.deadline, id));
        }
        self.changes.notify_waiters();
    }

    /// Somebody else leads, or nobody.
    pub(crate) fn follow(&mut self) {
        self.leading = None;
        self.queue.clear();
        self.changes.notify_waiters();
    }

    /// Counts the TTL of a lease from now on, unless its time is over: its end may be on its way then, and who was
    /// promised more time must not lose the lease. (etcd, too, lets such a renewal wait for what becomes of it.)
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Renewal {
        let Some(lease) = self.granted.get_mut(&id) else { return Renewal::Unknown };
        if lease.ending.is_some() || lease.deadline <= now {
            return Renewal::Ending;
        }
        self.queue.remove(&(lease.deadline, id));
        lease.deadline = after(now, lease.ttl_seconds);
        self.queue.insert((lease.deadline, id));
        Renewal::Renewed(lease.ttl_seconds)
    }

    /// The granted TTL, and what is left of it.
    pub(crate) fn time_to_live(&self, id: i64, now: Instant) -> Option<(i64, Duration)> {
        let lease = self.granted.get(&id)?;
        let left = if lease.ending.is_some() {
            Duration::ZERO
        } else {
            lease.deadline.saturating_duration_since(now)
        };
        Some((lease.ttl_seconds, left))
    }

    /// The leader could not look after its leases for a while: nobody could renew one in that time either.
    pub(crate) fn put_off(&mut self, by: Duration) {
        let queued = std::mem::take(&mut self.queue);
        for (_, id) in queued {
            if let Some(lease) = self.granted.get_mut(&id) {
                lease.deadline = lease.deadline.checked_add(by).unwrap_or(lease.deadline);
                self.queue.insert((lease.deadline, id));
            }
        }
        self.changes.notify_waiters();
    }

    /// Takes leases whose time is over, at most `max`. Each is to be ended by a command, or given back by
    /// [`Leases::not_ended`].
    pub(crate) fn take_expired(&mut self, now: Instant, max: usize) -> Vec<i64> {
        let mut expired = Vec::new();
        while expired.len() < max
            && let Some(&(deadline, id)) = self.queue.first()
            && deadline <= now
        {
            self.queue.pop_first();
            if let Some(lease) = self.granted.get_mut(&id) {
                lease.ending = self.leading;
            }
            expired.push(id);
        }
        expired
    }

    /// The command that was to end a lease is not known to have come through. Another one is tried in a while.
    pub(crate) fn not_ended(&mut self, id: i64, now: Instant) {
        if self.leading.is_some()
            && let Some(lease) = self.granted.get_mut(&id)
            && !self.queue.contains(&(lease.deadline, id))
        {
            lease.deadline = now + RETRY_AFTER;
            self.queue.insert((lease.deadline, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_lease_ends_when_its_time_is_over_and_not_before() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.lead(Term(1), t);
        leases.granted(7, 10, t);
        leases.granted(8, 5, t);
        assert_eq!(leases.time_to_live(7, t + seconds(4)), Some((10, seconds(6))));
        assert_eq!(leases.take_expired(t + seconds(5) - Duration::from_nanos(1), 9), [0; 0]);
        assert_eq!(leases.renew(8, t + seconds(4)), Renewal::Renewed(5));
        assert_eq!(leases.take_expired(t + seconds(8), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(10), 9), [8, 7]);
        assert_eq!(leases.take_expired(t + seconds(99), 9), [0; 0], "on their way");
        leases.not_ended(8, t + seconds(11));
        assert_eq!(leases.take_expired(t + seconds(12), 9), [8]);
        leases.ended(8);
        leases.not_ended(8, t + seconds(13));
        assert_eq!(leases.ids(), [7]);
        assert_eq!(leases.renew(8, t), Renewal::Unknown);
    }

    #[test]
    fn a_new_leader_counts_from_the_full_ttl() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.load([(1, 10), (2, 20)].into_iter(), t);
        assert_eq!(leases.take_expired(t + seconds(100), 9), [0; 0], "nobody leads");
        leases.lead(Term(3), t + seconds(100));
        assert_eq!(leases.take_expired(t + seconds(109), 9), [0; 0]);
        leases.lead(Term(3), t + seconds(109));
        assert_eq!(leases.take_expired(t + seconds(110), 9), [1], "the same leadership goes on");
        leases.follow();
        assert_eq!(leases.take_expired(t + seconds(200), 9), [0; 0]);
        // Led by another in between, and perhaps renewed there.
        leases.lead(Term(5), t + seconds(200));
        assert_eq!(leases.take_expired(t + seconds(209), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(220), 1), [1], "no more than asked for");
        assert_eq!(leases.take_expired(t + seconds(220), 1), [2]);
    }

    #[test]
    fn a_leader_that_slept_puts_the_ends_off() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.lead(Term(1), t);
        leases.granted(1, 10, t);
        leases.put_off(seconds(30));
        assert_eq!(leases.take_expired(t + seconds(39), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(40), 9), [1]);
    }

    #[test]
    fn what_may_end_is_not_renewed() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.lead(Term(1), t);
        leases.granted(1, 10, t);
        assert_eq!(
            leases.renew(1, t + seconds(10)),
            Renewal::Ending,
            "nobody has looked yet, but its time is over"
        );
        assert_eq!(leases.take_expired(t + seconds(10), 9), [1]);
        assert_eq!(leases.renew(1, t + seconds(10)), Renewal::Ending);
        // The attempt may have been in vain, or still be on its way.
        leases.not_ended(1, t + seconds(11));
        assert_eq!(leases.renew(1, t + seconds(11)), Renewal::Ending);
        assert_eq!(leases.time_to_live(1, t + seconds(11)), Some((10, Duration::ZERO)));
        // Who is not told of a leader for a moment does not forget what it proposed in this term.
        leases.follow();
        leases.lead(Term(1), t + seconds(11));
        assert_eq!(leases.renew(1, t + seconds(11)), Renewal::Ending);
        assert_eq!(leases.take_expired(t + seconds(12), 9), [1]);
        // In another term that command counts no more.
        leases.lead(Term(3), t + seconds(12));
        assert_eq!(leases.renew(1, t + seconds(13)), Renewal::Renewed(10));
        assert_eq!(leases.take_expired(t + seconds(22), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(23), 9), [1]);
    }

    #[test]
    fn the_longest_ttl_does_not_break_the_clock() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.lead(Term(1), t);
        leases.granted(1, 9_000_000_000, t);
        leases.granted(2, i64::MAX, t);
        leases.put_off(seconds(u64::MAX / 2));
        assert_eq!(leases.take_expired(t + seconds(1_000_000_000), 9), [0; 0]);
    }
}
