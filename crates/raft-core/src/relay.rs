//! Commands that one host relays to the leader's host, where a message may be lost and a connection may break: what is asked
//! when, and how nothing is taken twice. Beside [`Attempt`](crate::Attempt), which says what a change of leaders means.
//!
//! The relaying host numbers what it hands on ([`Relay`]). When it has heard nothing of a command for an election timer, it asks
//! about it by number. The leader's host keeps a [`Ledger`] for each host that relays: which numbers it has seen in the present
//! term. So it can answer "in progress", which keeps the command from timing out; or that it never saw it, and then it never
//! will: the number is void from there on, a late copy is ignored, and the relaying host may hand the command on again. Who gets
//! no answer for two election timers though the leader stays gives up, as in ovsdb.
//!
//! Each message also carries the lowest number that is still open, so the ledger remembers gaps, and not everything.
//!
//! A ledger is lost with its process, and what it had taken is not: it is in the log. So a ledger knows nothing of the terms that
//! the replica may have led before it started, up to the one it had stored, and says nothing of them; an entry of a later term
//! will tell.
//!
//! ```
//! use pontoon_raft_core::{EntryId, Term};
//! use pontoon_raft_core::relay::{Ledger, Relay, Verdict};
//!
//! let (mut relay, mut ledger) = (Relay::default(), Ledger::after(Term(2)));
//! let lost = relay.sent(0, EntryId(7), Term(3), 1000);
//! let taken = relay.sent(0, EntryId(8), Term(3), 1000);
//! assert_eq!(ledger.receive(Term(3), taken, true), Verdict::Take); // 7 was lost on the wire.
//! let due = relay.due(1000, 1000, |_, _| true);
//! assert_eq!(due.ask.len(), 2);
//! assert_eq!(ledger.asked(Term(3), taken, true), Verdict::InProgress);
//! assert_eq!(ledger.asked(Term(3), lost, true), Verdict::NotTaken); // The host may hand it on again...
//! assert_eq!(ledger.receive(Term(3), lost, true), Verdict::NotTaken); // ...for a late copy means nothing now.
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::command_status::CommandStatus;
use crate::types::{EntryId, Term};

/// More numbers than this are never open at once on an honest host, whose budget of waiting commands is smaller. A ledger
/// remembers at most this many gaps.
pub const GAPS_MAX: u64 = 1 << 17;

/// Names one attempt of a relaying host, and says which earlier ones are still open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RelayNumber {
    /// The attempt. Numbers grow by one from attempt to attempt; 0 is none.
    pub number: u64,
    /// Attempts below this one are over: nothing will be asked about them.
    pub floor: u64,
}

/// One attempt that is open.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: EntryId,
    term: Term,
    /// When it was sent, or the leader last said that it is in progress.
    heard_at: u64,
    /// When it was sent, or last asked about.
    asked_at: u64,
}

/// What a relaying host has handed on, for one group.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    last: u64,
    open: BTreeMap<u64, Open>,
    look_at: Option<u64>,
}

/// What a relaying host should do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Ask the leader of this term about these.
    pub ask: Vec<(EntryId, Term, RelayNumber)>,
    /// Nothing was heard of these for two election timers: if the leader that they were sent to still leads, their callers hear
    /// [`CommandStatus::TimedOut`].
    pub silent: Vec<(EntryId, Term)>,
}

impl Relay {
    /// Goes on behind the last number of an earlier replica of the group on this host: the ledgers of the others know hosts, not
    /// replicas, and take a number that they have seen for one that is over.
    #[must_use]
    pub fn after(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// The last number that was given.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// A command goes to the leader of `term`. `timer_ms` is the group's election timer.
    pub fn sent(&mut self, now: u64, id: EntryId, term: Term, timer_ms: u64) -> RelayNumber {
        self.last += 1;
        self.open.insert(self.last, Open { id, term, heard_at: now, asked_at: now });
        self.look_at.get_or_insert_with(|| now.saturating_add(timer_ms));
        RelayNumber { number: self.last, floor: self.floor() }
    }

    fn floor(&self) -> u64 {
        self.open.first_key_value().map_or(self.last + 1, |(number, _)| *number)
    }

    /// The leader says that the attempt is in progress. Returns whether that one is open.
    pub fn in_progress(&mut self, now: u64, id: EntryId, term: Term, number: u64) -> bool {
        match self.open.get_mut(&number) {
            Some(open) if (open.id, open.term) == (id, term) => {
                open.heard_at = open.heard_at.max(now);
                true
            }
            _ => false,
        }
    }

    /// The attempt came to nothing, or its command is done. What is not told is found out by [`Relay::due`].
    pub fn over(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// When to call [`Relay::due`] next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.look_at
    }

    /// No leader is known: what is due waits.
    pub fn later(&mut self, now: u64, timer_ms: u64) {
        self.look_at = (!self.open.is_empty()).then(|| now.saturating_add((timer_ms / 4).max(1)));
    }

    /// What to do now. `is_open` says whether a command still waits for the attempt of that number. Not to be called while
    /// there is nobody to ask: see [`Relay::later`].
    pub fn due(&mut self, now: u64, timer_ms: u64, is_open: impl Fn(EntryId, u64) -> bool) -> Due {
        let mut due = Due::default();
        if self.look_at.is_none_or(|at| now < at) {
            return due;
        }
        self.open.retain(|number, open| is_open(open.id, *number));
        let floor = self.floor();
        for (number, open) in &mut self.open {
            if now < open.asked_at.saturating_add(timer_ms) {
                continue;
            }
            let asked = open.asked_at > open.heard_at;
            if asked && now >= open.heard_at.saturating_add(2 * timer_ms) {
                due.silent.push((open.id, open.term));
            } else {
                open.asked_at = now;
                due.ask.push((open.id, open.term, RelayNumber { number: *number, floor }));
            }
        }
        // Often enough that nothing waits much longer than it should, seldom enough that many open attempts cost little.
        self.look_at = (!self.open.is_empty()).then(|| now.saturating_add((timer_ms / 4).max(1)));
        due
    }
}

/// What to do with something that another host relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Propose it.
    Take,
    /// It was taken in this term and is in the log: say so.
    InProgress,
    /// It was not taken, and will not be: say so. The relaying host may hand the command on again.
    NotTaken,
    /// Say nothing: it is over, or only a later term can tell.
    Silent,
}

impl Verdict {
    /// What is answered to the relaying host; `None`: nothing (yet).
    #[must_use]
    pub fn status(self) -> Option<CommandStatus> {
        match self {
            Self::InProgress => Some(CommandStatus::InProgress),
            Self::NotTaken => Some(CommandStatus::NotLeader),
            Self::Take | Self::Silent => None,
        }
    }
}

/// What one other host has relayed to this one in a term, for one group.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The term of which it tells; at first the last one of which it cannot tell.
    term: Term,
    /// Nothing of `term` was heard: that was another life's.
    blank: bool,
    /// Numbers below this are over.
    floor: u64,
    /// The highest number seen.
    last: u64,
    /// Numbers up to `last` that were not seen.
    gaps: BTreeSet<u64>,
    /// Numbers that were seen and not taken.
    void: BTreeSet<u64>,
}

impl Ledger {
    /// An empty ledger of a replica that starts with the stored term `restored`. Of terms up to that one it cannot tell, unless it
    /// leads them now, for the life before may have led them. Where the stored term may be older than the life before was (a
    /// start in doubt), the highest term there is.
    #[must_use]
    pub fn after(restored: Term) -> Self {
        Self { term: restored, blank: true, floor: 0, last: 0, gaps: BTreeSet::new(), void: BTreeSet::new() }
    }

    /// A command arrives that was sent to the leader of `term`; `leads`: that is this replica, now.
    pub fn receive(&mut self, term: Term, at: RelayNumber, leads: bool) -> Verdict {
        self.look(term, at, leads, leads)
    }

    /// A question about an attempt arrives.
    pub fn asked(&mut self, term: Term, at: RelayNumber, leads: bool) -> Verdict {
        self.look(term, at, leads, false)
    }

    /// What was to be taken could not be: the leader refuses it.
    pub fn refused(&mut self, term: Term, number: u64) {
        if term == self.term {
            self.void.insert(number);
        }
    }

    fn look(&mut self, term: Term, at: RelayNumber, leads: bool, take: bool) -> Verdict {
        let RelayNumber { number, floor } = at;
        let unknown = if self.blank { term <= self.term && !leads } else { term < self.term };
        if number == 0 || floor > number || unknown {
            return Verdict::Silent;
        }
        if self.blank || term > self.term {
            // Numbers below the floor are over, so of this term there are none.
            *self = Self { blank: false, ..Self::after(term) };
        }
        if floor > self.floor {
            self.floor = floor;
            self.gaps = self.gaps.split_off(&floor);
            self.void = self.void.split_off(&floor);
            self.last = self.last.max(floor - 1);
        }
        if number < self.floor {
            // A later message has overtaken this one.
            return Verdict::Silent;
        }
        if number > self.last {
            if self.gaps.len() as u64 + (number - self.last) > GAPS_MAX {
                // Only a host that lies. Nothing is promised to it.
                return Verdict::Silent;
            }
            self.gaps.extend(self.last + 1..=number);
            self.last = number;
        }
        if self.gaps.remove(&number) {
            if take {
                return Verdict::Take;
            }
            self.void.insert(number);
            return Verdict::NotTaken;
        }
        if self.void.contains(&number) {
            return Verdict::NotTaken;
        }
        // Taken. Whether it will be committed only the leader of its term can say.
        if leads { Verdict::InProgress } else { Verdict::Silent }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: u64 = 1000;

    #[test]
    fn it_asks_each_timer_and_gives_up_after_two_of_silence() {
        let mut relay = Relay::default();
        let at = relay.sent(0, EntryId(1), Term(2), T);
        assert_eq!((at, relay.next_deadline()), (RelayNumber { number: 1, floor: 1 }, Some(T)));
        assert_eq!(relay.due(T - 1, T, |_, _| true), Due::default());
        assert_eq!(relay.due(T, T, |_, _| true).ask, [(EntryId(1), Term(2), at)]);
        assert_eq!(relay.due(T + T / 4, T, |_, _| true), Due::default(), "not again at once");
        assert!(relay.in_progress(T + 300, EntryId(1), Term(2), 1));
        assert!(!relay.in_progress(T + 300, EntryId(1), Term(3), 1), "another attempt");
        let due = relay.due(2 * T, T, |_, _| true);
        assert_eq!((due.ask.len(), due.silent.len()), (1, 0), "kept alive");
        let due = relay.due(3 * T + 300, T, |_, _| true);
        assert_eq!(due.silent, [(EntryId(1), Term(2))]);
        assert_eq!(relay.due(4 * T, T, |_, _| false), Due::default());
        assert_eq!(relay.next_deadline(), None, "nothing is open");
        assert_eq!(relay.sent(4 * T, EntryId(2), Term(2), T), RelayNumber { number: 2, floor: 2 });
    }

    /// A replica that went and came back to the same host relays to a leader that has seen the earlier one.
    #[test]
    fn the_next_replica_of_a_host_is_heard_where_the_one_before_was() {
        let (mut first, mut ledger) = (Relay::default(), Ledger::after(Term(1)));
        for n in 0..5 {
            let at = first.sent(0, EntryId(n), Term(2), T);
            assert_eq!(ledger.receive(Term(2), at, true), Verdict::Take);
            first.over(at.number);
        }
        let mut next = Relay::after(first.last());
        let at = next.sent(0, EntryId(9), Term(2), T);
        assert_eq!(ledger.receive(Term(2), at, true), Verdict::Take);
        assert_eq!(ledger.asked(Term(2), at, true), Verdict::InProgress);
    }

    #[test]
    fn a_refusal_is_remembered_and_a_later_term_starts_anew() {
        let mut ledger = Ledger::after(Term(1));
        let at = |number, floor| RelayNumber { number, floor };
        assert_eq!(ledger.receive(Term(2), at(5, 4), true), Verdict::Take);
        ledger.refused(Term(2), 5);
        assert_eq!(ledger.asked(Term(2), at(5, 4), true), Verdict::NotTaken);
        assert_eq!(ledger.receive(Term(2), at(6, 4), true), Verdict::Take);
        assert_eq!(
            ledger.asked(Term(2), at(6, 4), false),
            Verdict::Silent,
            "it leads no more: a later term tells"
        );
        assert_eq!(
            ledger.receive(Term(2), at(7, 4), false),
            Verdict::NotTaken,
            "it never led when this came"
        );
        assert_eq!(ledger.receive(Term(3), at(8, 8), true), Verdict::Take);
        assert_eq!(ledger.asked(Term(2), at(6, 4), true), Verdict::Silent);
        assert_eq!(ledger.receive(Term(3), at(9 + GAPS_MAX, 8), true), Verdict::Silent, "too far ahead");
        assert_eq!(ledger.receive(Term(3), at(0, 0), true), Verdict::Silent);
        assert_eq!(ledger.receive(Term(3), at(9, 10), true), Verdict::Silent, "over before it came");
    }

    /// What a process forgets is still in the log.
    #[test]
    fn a_host_that_starts_anew_denies_nothing_of_before() {
        let at = RelayNumber { number: 1, floor: 1 };
        let mut ledger = Ledger::after(Term(1));
        assert_eq!(ledger.receive(Term(2), at, true), Verdict::Take);
        let mut ledger = Ledger::after(Term(2));
        assert_eq!(ledger.asked(Term(2), at, false), Verdict::Silent, "it may have led term 2 before");
        assert_eq!(ledger.receive(Term(2), at, false), Verdict::Silent);
        assert_eq!(ledger.asked(Term(3), at, false), Verdict::NotTaken, "it did not lead term 3");
        let mut ledger = Ledger::after(Term(u64::MAX));
        assert_eq!(ledger.asked(Term(3), at, false), Verdict::Silent, "its record of term 3 may be lost");
        assert_eq!(ledger.receive(Term(4), at, true), Verdict::Take);
        assert_eq!(ledger.asked(Term(4), at, false), Verdict::Silent, "taken, and it leads no more");
    }

    /// What the property plays: 0 hands a command on, 1 lets a timer pass, 2 delivers a message that stays on the way, 3 one for
    /// the last time, 4 starts the leader's host anew. The number picks the message, as a fraction of how many there are.
    type Step = (u8, u64);

    /// However messages and questions are lost, doubled and reordered, and the leader's host restarted: no attempt is taken twice,
    /// none is taken after the host has heard that it was not, and none that was taken is denied.
    fn nothing_is_taken_twice(steps: &[Step]) -> Result<(), TestCaseError> {
        let (mut relay, mut ledger, mut leads) = (Relay::default(), Ledger::after(Term(0)), true);
        let mut network = Vec::new();
        let (mut taken, mut denied) = (BTreeSet::new(), BTreeSet::new());
        let mut now = 0;
        for (step, which) in steps {
            match step {
                0 => {
                    let id = EntryId(u128::from(relay.last) + 1);
                    network.push((relay.sent(now, id, Term(1), T), false));
                }
                1 => {
                    now += T;
                    // The host forgets what was denied (it hands it on again, as another attempt), and some that are done.
                    let open = |id: EntryId, number| {
                        !denied.contains(&number) && (!id.0.is_multiple_of(3) || !taken.contains(&number))
                    };
                    let due = relay.due(now, T, open);
                    network.extend(due.ask.into_iter().map(|(_, _, at)| (at, true)));
                }
                4 => (ledger, leads) = (Ledger::after(Term(1)), false),
                _ if network.is_empty() => {}
                _ => {
                    #[expect(clippy::cast_possible_truncation, reason = "below the length")]
                    let place = ((u128::from(*which) * network.len() as u128) >> 64) as usize;
                    let (at, asks) = if *step == 2 { network[place] } else { network.remove(place) };
                    let verdict = if asks {
                        ledger.asked(Term(1), at, leads)
                    } else {
                        ledger.receive(Term(1), at, leads)
                    };
                    match verdict {
                        Verdict::Take => {
                            prop_assert!(taken.insert(at.number), "{} is taken twice", at.number);
                            prop_assert!(!denied.contains(&at.number), "{} is taken after all", at.number);
                        }
                        Verdict::NotTaken => {
                            prop_assert!(!taken.contains(&at.number), "{} was taken", at.number);
                            denied.insert(at.number);
                        }
                        Verdict::InProgress => prop_assert!(taken.contains(&at.number)),
                        Verdict::Silent => {}
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_is_taken_twice_whatever_happens(
            steps in prop::collection::vec((0u8..5, any::<u64>()), 1..200),
        ) {
            nothing_is_taken_twice(&steps)?;
        }
    }

    /// What the property has found, kept.
    #[test]
    fn what_the_property_found() {
        // A number below a floor that was seen already was answered "in progress", though it was never taken.
        let below_the_floor: [Step; 9] = [
            (0, 0),
            (0, 0),
            (1, 0),
            (0, 0),
            (0, 0),
            (2, 6_148_914_691_236_517_206),
            (1, 0),
            (2, 13_835_058_055_282_163_712),
            (2, 4_611_686_018_427_387_904),
        ];
        // The leader's host starts anew in the term in which it took a command, and is asked about it: it denied what is in the log.
        let restarted: [Step; 5] = [(0, 0), (2, 0), (4, 0), (1, 0), (3, u64::MAX)];
        for steps in [&below_the_floor[..], &restarted] {
            nothing_is_taken_twice(steps).unwrap_or_else(|found| panic!("{found}"));
        }
    }
}
