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
//! ```
//! use pontoon_raft_core::{EntryId, Term};
//! use pontoon_raft_core::relay::{Ledger, Relay, Verdict};
//!
//! let (mut relay, mut ledger) = (Relay::default(), Ledger::default());
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
    /// Nothing was heard of these for two election timers.
    pub silent: Vec<(EntryId, Term)>,
}

impl Relay {
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

/// What one other host has relayed to this one in a term, for one group.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    term: Term,
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
        if number == 0 || floor > number || term < self.term {
            return Verdict::Silent;
        }
        if term > self.term {
            // Numbers below the floor are over, so of this term there are none.
            *self = Self { term, ..Self::default() };
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

    #[test]
    fn a_refusal_is_remembered_and_a_later_term_starts_anew() {
        let mut ledger = Ledger::default();
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

    proptest! {
        /// However messages and questions are lost, doubled and reordered: no attempt is taken twice, none is taken after the
        /// host has heard that it was not, and none that was taken is denied.
        #[test]
        fn nothing_is_taken_twice(
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..200),
        ) {
            let (mut relay, mut ledger) = (Relay::default(), Ledger::default());
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
                    _ if network.is_empty() => {}
                    _ => {
                        let place = which.index(network.len());
                        let (at, asks) = if step == 2 { network[place] } else { network.remove(place) };
                        let verdict =
                            if asks { ledger.asked(Term(1), at, true) } else { ledger.receive(Term(1), at, true) };
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
        }
    }
}
