//! Commands that wait for tokens: for how long, and how much memory they may hold, over all groups of a store.
//!
//! A command waits in its group, first come first served, and groups take turns. What waits is bounded three ways, and whoever
//! meets a bound hears at once that nothing was executed, and can try again:
//!
//! - Its **age**. Where more is offered than the followers' stores take, a line without such a bound serves those who have
//!   waited longest, which are those whose callers give up next: all the work is done, and all of it too late. A line that comes
//!   and goes is good for something, and its commands have time. One that has stood for long is only delay, so its commands have
//!   less.
//! - Its **bytes**, with what a call costs beside its command.
//! - Its group's **share**: a group may hold as much as is still free. One alone has half of the room, and of many each has the
//!   same, whatever one of them does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pontoon_flow::{Class, PerClass};

use crate::proposals::{Budget, Place};

/// A regular command waits so long at most, in milliseconds, in a line that comes and goes: callers have seconds.
const REGULAR_MS_MAX: u64 = 2_000;
/// And so long in a line that has stood for longer than that.
const REGULAR_STANDING_MS_MAX: u64 = 500;
/// An elastic command waits so long at most, in milliseconds: nobody is in a hurry, but it should be told before its caller's time
/// is up.
const ELASTIC_MS_MAX: u64 = 4_000;
/// What a command costs beside its data while it waits: its call with its stream, tasks and buffers.
const CHARGE_BYTES: usize = 8 << 10;
/// What may wait on this store, with the charge.
const ROOM_BYTES: PerClass<usize> = PerClass { regular: 64 << 20, elastic: 16 << 20 };

/// What waits on one store.
#[derive(Debug)]
pub(crate) struct Line {
    room: PerClass<Arc<Budget>>,
    /// Since when regular commands wait without a break; of no meaning while none does.
    since: AtomicU64,
}

/// A command's place in it. Given back when it begins, is refused, or its caller has gone.
#[derive(Debug)]
pub(crate) struct Spot {
    since: u64,
    /// Nobody reads it; it is given back by being dropped.
    _place: Place,
}

impl Default for Line {
    fn default() -> Self {
        Self::of(ROOM_BYTES)
    }
}

impl Line {
    fn of(room: PerClass<usize>) -> Self {
        let budget = |bytes| Budget::new(usize::MAX, bytes);
        let room = PerClass { regular: budget(room.regular), elastic: budget(room.elastic) };
        Self { room, since: AtomicU64::new(0) }
    }

    /// Regular commands that wait, and their bytes.
    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        self.room.regular.held()
    }
}

/// One look at the commands of one group that wait, in their order.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    line: &'a Line,
    now: u64,
    /// What those before hold.
    own: PerClass<usize>,
}

impl<'a> Look<'a> {
    pub(crate) fn new(line: &'a Line, now: u64) -> Self {
        Self { line, now, own: PerClass::default() }
    }

    /// A command that may not begin now: whether it waits, or goes on waiting. If not it is to be refused.
    pub(crate) fn waits(&mut self, spot: &mut Option<Spot>, class: Class, bytes: usize) -> bool {
        let Self { line, now, own } = self;
        let (room, own, cost) = (line.room.get(class), own.get_mut(class), bytes + CHARGE_BYTES);
        if spot.is_none() {
            let (waiting, held) = room.held();
            if *own + cost > room.bytes_max().saturating_sub(held) && waiting > 0 {
                return false;
            }
            let Some(place) = room.take(cost) else { return false };
            if class == Class::Regular && waiting == 0 {
                line.since.store(*now, Ordering::Relaxed);
            }
            *spot = Some(Spot { since: *now, _place: place });
        }
        *own += cost;
        let most = match class {
            Class::Elastic => ELASTIC_MS_MAX,
            Class::Regular if line.stands_for(*now) > REGULAR_MS_MAX => REGULAR_STANDING_MS_MAX,
            Class::Regular => REGULAR_MS_MAX,
        };
        let waits = spot.as_ref().is_some_and(|spot| now.saturating_sub(spot.since) <= most);
        if !waits {
            *spot = None;
        }
        waits
    }
}

impl Line {
    fn stands_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.since.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: usize) -> Line {
        Line::of(PerClass { regular: bytes, elastic: bytes })
    }

    /// A group with so many spots asks for one more until it is refused.
    fn fill(line: &Line, spots: &mut Vec<Option<Spot>>, now: u64) {
        loop {
            let mut look = Look::new(line, now);
            for spot in spots.iter_mut() {
                assert!(look.waits(spot, Class::Regular, 0));
            }
            let mut spot = None;
            if !look.waits(&mut spot, Class::Regular, 0) {
                return;
            }
            spots.push(spot);
        }
    }

    #[test]
    fn a_group_may_hold_as_much_as_is_free() {
        let line = line(100 * CHARGE_BYTES);
        let (mut hot, mut cold) = (Vec::new(), Vec::new());
        fill(&line, &mut hot, 0);
        assert_eq!(hot.len(), 50, "one alone has half");
        fill(&line, &mut cold, 0);
        assert_eq!(cold.len(), 25, "there is room for others");
        hot.clear();
        fill(&line, &mut cold, 0);
        assert_eq!(cold.len(), 50, "what is given back is there for them");
        assert_eq!(line.held(), (50, 50 * CHARGE_BYTES));
    }

    #[test]
    fn one_that_is_too_large_for_the_room_may_wait_alone() {
        let line = line(CHARGE_BYTES);
        let (mut first, mut second) = (None, None);
        assert!(Look::new(&line, 0).waits(&mut first, Class::Regular, 1 << 20));
        assert!(!Look::new(&line, 0).waits(&mut second, Class::Regular, 1 << 20));
        assert!(first.is_some() && second.is_none());
    }

    #[test]
    fn a_command_has_time_and_less_of_it_in_a_line_that_stands() {
        let line = line(100 * CHARGE_BYTES);
        let begins = |spot: &mut Option<Spot>, now| Look::new(&line, now).waits(spot, Class::Regular, 0);
        let (mut first, mut second) = (None, None);
        assert!(begins(&mut first, 1_000));
        assert!(begins(&mut second, 1_900));
        assert!(begins(&mut first, 1_000 + REGULAR_MS_MAX), "it has time");
        // From here on the line stands, and what has waited too long for one that does is refused.
        let late = 1_001 + REGULAR_MS_MAX;
        assert!(!begins(&mut first, late) && first.is_none());
        assert!(!begins(&mut second, late) && second.is_none());
        assert_eq!(line.held(), (0, 0), "who is refused holds nothing");
        // It was empty: the next ones have time again.
        assert!(begins(&mut first, 10_000));
        assert!(begins(&mut first, 10_000 + REGULAR_MS_MAX));
        // Never empty for long: a new command has less time from the beginning.
        assert!(begins(&mut second, 10_000 + REGULAR_MS_MAX));
        first = None;
        assert!(begins(&mut second, 10_000 + REGULAR_MS_MAX + REGULAR_STANDING_MS_MAX));
        assert!(!begins(&mut second, 10_001 + REGULAR_MS_MAX + REGULAR_STANDING_MS_MAX));
        assert!(first.is_none());
    }

    #[test]
    fn elastic_commands_have_their_own_room_and_more_time() {
        let line = line(10 * CHARGE_BYTES);
        let mut regular = Vec::new();
        fill(&line, &mut regular, 0);
        let mut elastic = None;
        assert!(Look::new(&line, 0).waits(&mut elastic, Class::Elastic, 0));
        assert!(Look::new(&line, ELASTIC_MS_MAX).waits(&mut elastic, Class::Elastic, 0));
        assert!(!Look::new(&line, ELASTIC_MS_MAX + 1).waits(&mut elastic, Class::Elastic, 0));
    }
}
