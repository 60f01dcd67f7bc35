//! When leases end. Which leases there are is replicated state; how much time each has left is known to the leader only,
//! by its own clock, and counted anew from the full TTL by each new leader: so no lease ends early, whatever the clocks
//! of the stores show and whoever leads. A clock goes in with each call; there is none in here.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use pontoon_raft_core::types::Term;

/// How long after a failed attempt to end a lease the next one comes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is known of one lease.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl_seconds: i64,
    /// Meaningful only while this store leads.
    deadline: Instant,
}

/// The leases of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: HashMap<i64, Lease>,
    /// The deadlines in order; empty while this store does not lead. A lease whose end was proposed is not in it.
    queue: BTreeSet<(Instant, i64)>,
    /// The term in which this store leads.
    leading: Option<Term>,
}

fn after(now: Instant, ttl_seconds: i64) -> Instant {
    // The longest TTL that is granted is 285 years; a clock may be unable to show that.
    let ttl = Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0));
    now.checked_add(ttl).unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()))
}

impl Leases {
    /// Takes all leases from a state that was loaded. Nobody leads by it yet.
    pub(crate) fn load(&mut self, leases: impl Iterator<Item = (i64, i64)>, now: Instant) {
        let lease = |(id, ttl_seconds)| (id, Lease { ttl_seconds, deadline: after(now, ttl_seconds) });
        *self = Self { granted: leases.map(lease).collect(), ..Self::default() };
    }

    /// A grant was applied.
    pub(crate) fn granted(&mut self, id: i64, ttl_seconds: i64, now: Instant) {
        let deadline = after(now, ttl_seconds);
        self.granted.insert(id, Lease { ttl_seconds, deadline });
        if self.leading.is_some() {
            self.queue.insert((deadline, id));
        }
    }

    /// A revocation, or an expiry, was applied.
    pub(crate) fn ended(&mut self, id: i64) {
        if let Some(lease) = self.granted.remove(&id) {
            self.queue.remove(&(lease.deadline, id));
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
            lease.deadline = after(now, lease.ttl_seconds);
            self.queue.insert((lease.deadline, id));
        }
    }

    /// Somebody else leads, or nobody.
    pub(crate) fn follow(&mut self) {
        self.leading = None;
        self.queue.clear();
    }

    /// Counts the TTL of a lease from now on. Returns the TTL; `None` if there is no such lease.
    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<i64> {
        let lease = self.granted.get_mut(&id)?;
        self.queue.remove(&(lease.deadline, id));
        lease.deadline = after(now, lease.ttl_seconds);
        self.queue.insert((lease.deadline, id));
        Some(lease.ttl_seconds)
    }

    /// The granted TTL, and what is left of it.
    pub(crate) fn time_to_live(&self, id: i64, now: Instant) -> Option<(i64, Duration)> {
        let lease = self.granted.get(&id)?;
        Some((lease.ttl_seconds, lease.deadline.saturating_duration_since(now)))
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
            expired.push(id);
        }
        expired
    }

    /// The command that was to end a lease did not come through. It is tried again, unless somebody renewed it.
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
        assert_eq!(leases.renew(8, t + seconds(4)), Some(5));
        assert_eq!(leases.take_expired(t + seconds(8), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(10), 9), [8, 7]);
        assert_eq!(leases.take_expired(t + seconds(99), 9), [0; 0], "on their way");
        leases.not_ended(8, t + seconds(11));
        assert_eq!(leases.take_expired(t + seconds(12), 9), [8]);
        leases.ended(8);
        leases.not_ended(8, t + seconds(13));
        assert_eq!(leases.ids(), [7]);
        assert_eq!(leases.renew(8, t), None);
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
    fn a_renewal_while_the_end_is_on_its_way_counts_if_the_end_does_not_come() {
        let t = Instant::now();
        let mut leases = Leases::default();
        leases.lead(Term(1), t);
        leases.granted(1, 10, t);
        assert_eq!(leases.take_expired(t + seconds(10), 9), [1]);
        assert_eq!(leases.renew(1, t + seconds(10)), Some(10));
        leases.not_ended(1, t + seconds(11));
        assert_eq!(leases.take_expired(t + seconds(19), 9), [0; 0]);
        assert_eq!(leases.take_expired(t + seconds(20), 9), [1]);
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
