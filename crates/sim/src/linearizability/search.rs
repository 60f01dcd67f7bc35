//! The search over the operations of one key.
//!
//! Answered operations are in a list of their events, calls and returns, in the order of time. Every
//! operation whose call stands before the first return of the list may be next: it is taken out of the list
//! with both its events, and the search goes on from the new state. When nothing fits, the latest
//! operation is put back and the next candidate is tried. Success is an empty list.
//!
//! Two observations save most of the work. A read that fits the state as it is can be taken at once, without ever
//! trying anything else in its place: whatever order there is, it stays one with that read moved here. And a
//! value must not be overwritten while an answer that shows it is left and nobody is left to write it again.
//!
//! Operations with unknown outcome have no return and may be left out. They are candidates only after all
//! answered ones, and only where they make a difference: in a shortest explanation no unknown operation is
//! followed by one to which it does not matter, for it could be left out. That keeps hundreds of timed-out
//! writes from doubling the work each.

use std::collections::{HashMap, HashSet};

use super::history::Operation;
use super::model::Model;

/// How much work one key may cost before the answer is [`Outcome::Undecided`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls of [`Model::step`].
    pub steps_max: u64,
    /// Remembered pairs of (operations done, state), about 150 bytes each.
    pub configurations_max: usize,
}

impl Default for Limits {
    /// Some ten seconds and some hundred megabytes.
    fn default() -> Self {
        Self { steps_max: 100_000_000, configurations_max: 4_000_000 }
    }
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The operations in an order that explains them, as positions in the given slice. Unknown operations that
    /// are not in it had no effect.
    Linearizable(Vec<usize>),
    /// There is no such order.
    NotLinearizable,
    /// The limits were reached before either was certain.
    Undecided,
}

/// A set of operations, small in the usual case. Trailing zero words do not count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Mask {
    Inline([u64; 2]),
    Heap(Box<[u64]>),
}

/// What has been done, and where that led to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Configuration<S> {
    /// All answered operations called before this one are done.
    frontier: u32,
    /// The unknown operations that are done, then the answered ones from the word of the frontier on.
    done: Mask,
    state: S,
    /// The state before the last operation, if that one's outcome is unknown: it must still prove useful.
    before_unknown: Option<S>,
}

#[derive(Clone, Copy, Debug)]
enum Cursor {
    /// An event of the list; only reads that do not change the state are looked for.
    Fitting(u32),
    /// An event of the list.
    Answered(u32),
    /// A position in `unknown`; the time of the first return in the list.
    Unknown(u32, u64),
    /// Nothing is left to try.
    End,
}

#[derive(Debug)]
struct Frame<S> {
    state: S,
    before_unknown: Option<S>,
    highest_done: usize,
    chosen: Cursor,
}

/// The events of the answered operations in the order of time, as a doubly linked list.
#[derive(Debug)]
struct Events {
    /// Per event: the operation, and whether this is its return.
    what: Vec<(u32, bool)>,
    next: Vec<u32>,
    prev: Vec<u32>,
    /// Per operation: its call and its return.
    places: Vec<(u32, u32)>,
}

impl Events {
    /// `times`: call and return of each operation.
    fn new(times: &[(u64, u64)]) -> Self {
        let mut order: Vec<(u64, bool, u32)> = Vec::with_capacity(times.len() * 2);
        for (operation, &(call, at)) in (0u32..).zip(times) {
            order.push((call, false, operation));
            order.push((at.max(call), true, operation));
        }
        // A call at the very time of a return counts as before it: they overlap.
        order.sort_unstable();
        let mut places = vec![(0, 0); times.len()];
        for (event, &(_, is_return, operation)) in (0u32..).zip(&order) {
            let place = &mut places[operation as usize];
            *(if is_return { &mut place.1 } else { &mut place.0 }) = event;
        }
        // One more place at the end: the sentinel, which is before the first and after the last event.
        let count = u32::try_from(order.len()).expect("fewer than 2^31 operations on one key");
        Self {
            what: order.into_iter().map(|(_, is_return, operation)| (operation, is_return)).collect(),
            next: (1..=count).chain([0]).collect(),
            prev: [count].into_iter().chain(0..count).collect(),
            places,
        }
    }

    fn sentinel(&self) -> u32 {
        u32::try_from(self.what.len()).expect("checked when built")
    }

    fn first(&self) -> u32 {
        self.next[self.what.len()]
    }

    fn remove(&mut self, operation: u32) {
        let (call, ret) = self.places[operation as usize];
        for event in [call as usize, ret as usize] {
            self.next[self.prev[event] as usize] = self.next[event];
            self.prev[self.next[event] as usize] = self.prev[event];
        }
    }

    /// Undoes the latest `remove`.
    fn restore(&mut self, operation: u32) {
        let (call, ret) = self.places[operation as usize];
        for event in [ret, call] {
            self.next[self.prev[event as usize] as usize] = event;
            self.prev[self.next[event as usize] as usize] = event;
        }
    }
}

/// The operations with a rank, and how far the search has come in their order.
#[derive(Debug)]
struct Ranks {
    /// Per answered operation.
    ranks: Vec<Option<u64>>,
    /// Answered operations that have a rank, lowest first.
    order: Vec<u32>,
    /// Per answered operation: its place in `order`.
    places: Vec<usize>,
    done: Vec<bool>,
    /// All places before this one are done.
    low: usize,
}

impl Ranks {
    fn new(ranks: Vec<Option<u64>>) -> Self {
        let mut order: Vec<u32> =
            (0u32..).zip(&ranks).filter(|(_, rank)| rank.is_some()).map(|(o, _)| o).collect();
        order.sort_by_key(|&operation| ranks[operation as usize]);
        let mut places = vec![0; ranks.len()];
        for (place, &operation) in order.iter().enumerate() {
            places[operation as usize] = place;
        }
        Self { done: vec![false; order.len()], ranks, order, places, low: 0 }
    }

    /// Whether nothing with a lower rank is left.
    fn allows(&self, operation: u32) -> bool {
        let rank = self.ranks[operation as usize];
        rank.is_none() || self.order.get(self.low).is_none_or(|&low| rank <= self.ranks[low as usize])
    }

    fn remove(&mut self, operation: u32) {
        if self.ranks[operation as usize].is_some() {
            self.done[self.places[operation as usize]] = true;
            while self.done.get(self.low) == Some(&true) {
                self.low += 1;
            }
        }
    }

    fn restore(&mut self, operation: u32) {
        if self.ranks[operation as usize].is_some() {
            let place = self.places[operation as usize];
            self.done[place] = false;
            self.low = self.low.min(place);
        }
    }
}

/// Which values are still to be seen, and by how many operations they can still be written.
#[derive(Debug, Default)]
struct Values {
    /// Per value: answers left that show it, operations left that can write it.
    left: HashMap<u64, (u32, u32)>,
    /// Per position in the history: the value that is needed, the value that is provided.
    of: Vec<(Option<u64>, Option<u64>)>,
}

impl Values {
    fn new(of: Vec<(Option<u64>, Option<u64>)>, positions: impl Iterator<Item = usize>) -> Self {
        let mut values = Self { left: HashMap::new(), of };
        for position in positions {
            values.restore(position);
        }
        values
    }

    fn remove(&mut self, position: usize) {
        let (needed, provided) = self.of[position];
        if let Some(left) = needed.and_then(|value| self.left.get_mut(&value)) {
            left.0 -= 1;
        }
        if let Some(left) = provided.and_then(|value| self.left.get_mut(&value)) {
            left.1 -= 1;
        }
    }

    fn restore(&mut self, position: usize) {
        let (needed, provided) = self.of[position];
        if let Some(value) = needed {
            self.left.entry(value).or_default().0 += 1;
        }
        if let Some(value) = provided {
            self.left.entry(value).or_default().1 += 1;
        }
    }

    /// Whether the value may go away, now that everything done has been removed.
    fn may_go(&self, value: u64) -> bool {
        self.left.get(&value).is_none_or(|&(needed, provided)| needed == 0 || provided > 0)
    }
}

struct Search<'a, M: Model> {
    model: &'a M,
    operations: &'a [&'a Operation<M::Input, M::Output>],
    /// Positions in `operations`, by time of call.
    answered: Vec<usize>,
    unknown: Vec<usize>,
    events: Events,
    ranks: Ranks,
    values: Values,
    /// Bits of the answered operations that are done.
    answered_done: Vec<u64>,
    unknown_done: Vec<u64>,
    /// No answered operation after this one is done.
    highest_done: usize,
    stack: Vec<Frame<M::State>>,
    seen: HashSet<Configuration<M::State>>,
}

/// Looks for an order of the operations, all on one key, that the model accepts.
pub fn search<M: Model>(
    model: &M,
    operations: &[&Operation<M::Input, M::Output>],
    limits: &Limits,
) -> Outcome {
    Search::new(model, operations).run(limits)
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, operations: &'a [&'a Operation<M::Input, M::Output>]) -> Self {
        let mut answered: Vec<usize> =
            (0..operations.len()).filter(|&o| operations[o].completion.is_some()).collect();
        answered.sort_by_key(|&o| operations[o].call);
        let mut unknown = relevant_unknown(model, operations);
        unknown.sort_by_key(|&o| operations[o].call);
        let times: Vec<(u64, u64)> = answered
            .iter()
            .filter_map(|&o| operations[o].completion.as_ref().map(|c| (operations[o].call, c.at)))
            .collect();
        let ranks = answered
            .iter()
            .map(|&o| operations[o].output().and_then(|output| model.rank(&operations[o].input, output)))
            .collect();
        let values = operations.iter().map(|operation| {
            let needed = operation.output().and_then(|output| model.needs(&operation.input, output));
            (needed, model.provides(&operation.input))
        });
        let values = Values::new(values.collect(), answered.iter().chain(&unknown).copied());
        Self {
            model,
            operations,
            values,
            events: Events::new(&times),
            ranks: Ranks::new(ranks),
            answered_done: vec![0; answered.len().div_ceil(64)],
            unknown_done: vec![0; unknown.len().div_ceil(64)],
            answered,
            unknown,
            highest_done: 0,
            stack: Vec::new(),
            seen: HashSet::new(),
        }
    }

    fn run(mut self, limits: &Limits) -> Outcome {
        let mut state = self.model.initial();
        let mut before_unknown: Option<M::State> = None;
        let mut cursor = Cursor::Fitting(self.events.first());
        let mut steps = 0;
        loop {
            if self.events.first() == self.events.sentinel() {
                return Outcome::Linearizable(self.order());
            }
            let candidate = self.candidate(cursor);
            if matches!(candidate, Cursor::End) {
                let Some(frame) = self.stack.pop() else { return Outcome::NotLinearizable };
                self.unmark(frame.chosen, frame.highest_done);
                state = frame.state;
                before_unknown = frame.before_unknown;
                // What fitted can be taken first in every order, so nothing else need be tried here.
                cursor = match frame.chosen {
                    Cursor::Fitting(_) => Cursor::End,
                    chosen => self.after(chosen),
                };
                continue;
            }
            if steps == limits.steps_max || self.seen.len() >= limits.configurations_max {
                return Outcome::Undecided;
            }
            steps += 1;
            cursor = self.after(candidate);
            let Some(next) = self.try_step(candidate, &state, before_unknown.as_ref()) else { continue };
            if matches!(candidate, Cursor::Fitting(_)) {
                if next != state {
                    continue;
                }
                cursor = Cursor::End;
            }
            let highest_done = self.highest_done;
            self.mark(candidate);
            let before = self.model.holds(&state);
            let goes = before.filter(|_| self.model.holds(&next) != before);
            let next_before_unknown = matches!(candidate, Cursor::Unknown(..)).then(|| state.clone());
            if goes.is_none_or(|value| self.values.may_go(value))
                && self.remember(&next, next_before_unknown.as_ref())
            {
                self.stack.push(Frame { state, before_unknown, highest_done, chosen: candidate });
                state = next;
                before_unknown = next_before_unknown;
                cursor = Cursor::Fitting(self.events.first());
            } else {
                self.unmark(candidate, highest_done);
            }
        }
    }

    /// The first candidate from the cursor on.
    fn candidate(&self, mut cursor: Cursor) -> Cursor {
        loop {
            match cursor {
                Cursor::Fitting(event) => {
                    let (operation, is_return) = self.events.what[event as usize];
                    if is_return {
                        cursor = Cursor::Answered(self.events.first());
                        continue;
                    }
                    let input = &self.operations[self.answered[operation as usize]].input;
                    if self.model.is_observation(input) && self.ranks.allows(operation) {
                        return cursor;
                    }
                }
                Cursor::Answered(event) => {
                    let (operation, is_return) = self.events.what[event as usize];
                    if is_return {
                        let first = self.operations[self.answered[operation as usize]].completion.as_ref();
                        cursor = Cursor::Unknown(0, first.map_or(u64::MAX, |completion| completion.at));
                        continue;
                    }
                    if self.ranks.allows(operation) {
                        return cursor;
                    }
                }
                Cursor::Unknown(position, limit) => {
                    let index = position as usize;
                    if self.unknown.get(index).is_none_or(|&o| self.operations[o].call > limit) {
                        return Cursor::End;
                    }
                    if self.unknown_done[index / 64] & (1 << (index % 64)) == 0 {
                        return cursor;
                    }
                }
                Cursor::End => return Cursor::End,
            }
            cursor = self.after(cursor);
        }
    }

    fn after(&self, cursor: Cursor) -> Cursor {
        match cursor {
            Cursor::Fitting(event) => Cursor::Fitting(self.events.next[event as usize]),
            Cursor::Answered(event) => Cursor::Answered(self.events.next[event as usize]),
            Cursor::Unknown(position, limit) => Cursor::Unknown(position + 1, limit),
            Cursor::End => Cursor::End,
        }
    }

    /// The position in the history of what the cursor points at.
    fn position(&self, cursor: Cursor) -> usize {
        match cursor {
            Cursor::Fitting(event) | Cursor::Answered(event) => {
                self.answered[self.events.what[event as usize].0 as usize]
            }
            Cursor::Unknown(position, _) => self.unknown[position as usize],
            Cursor::End => unreachable!("the end is never chosen"),
        }
    }

    fn try_step(
        &self,
        candidate: Cursor,
        state: &M::State,
        before_unknown: Option<&M::State>,
    ) -> Option<M::State> {
        let operation = self.operations[self.position(candidate)];
        let next = self.model.step(state, &operation.input, operation.output())?;
        // The unknown operation before this one is useless if this one does as well without it.
        let useless = before_unknown.is_some_and(|before| {
            let without = self.model.step(before, &operation.input, operation.output());
            without.is_some_and(|without| self.model.covers(&without, &next))
        });
        (!useless).then_some(next)
    }

    fn mark(&mut self, chosen: Cursor) {
        self.values.remove(self.position(chosen));
        match chosen {
            Cursor::Fitting(event) | Cursor::Answered(event) => {
                let operation = self.events.what[event as usize].0;
                let index = operation as usize;
                self.answered_done[index / 64] |= 1 << (index % 64);
                self.highest_done = self.highest_done.max(index);
                self.events.remove(operation);
                self.ranks.remove(operation);
            }
            Cursor::Unknown(position, _) => {
                self.unknown_done[position as usize / 64] |= 1 << (position % 64);
            }
            Cursor::End => {}
        }
    }

    /// Undoes the latest `mark`.
    fn unmark(&mut self, chosen: Cursor, highest_done: usize) {
        self.values.restore(self.position(chosen));
        match chosen {
            Cursor::Fitting(event) | Cursor::Answered(event) => {
                let operation = self.events.what[event as usize].0;
                let index = operation as usize;
                self.answered_done[index / 64] &= !(1 << (index % 64));
                self.highest_done = highest_done;
                self.events.restore(operation);
                self.ranks.restore(operation);
            }
            Cursor::Unknown(position, _) => {
                self.unknown_done[position as usize / 64] &= !(1 << (position % 64));
            }
            Cursor::End => {}
        }
    }

    /// Remembers that the search was here; `false` if it was before.
    fn remember(&mut self, state: &M::State, before_unknown: Option<&M::State>) -> bool {
        let first = self.events.first();
        // The first event is always the call of the first operation that is not done.
        let frontier =
            if first == self.events.sentinel() { return true } else { self.events.what[first as usize].0 };
        let from = frontier as usize / 64;
        let to = (self.highest_done / 64).max(from);
        let words = self.unknown_done.iter().chain(&self.answered_done[from..=to]).copied();
        let done = if self.unknown_done.len() + to - from < 2 {
            let mut inline = [0; 2];
            for (word, value) in inline.iter_mut().zip(words) {
                *word = value;
            }
            Mask::Inline(inline)
        } else {
            Mask::Heap(words.collect())
        };
        let state = state.clone();
        let before_unknown = before_unknown.cloned();
        self.seen.insert(Configuration { frontier, done, state, before_unknown })
    }

    fn order(&self) -> Vec<usize> {
        self.stack.iter().map(|frame| self.position(frame.chosen)).collect()
    }
}

/// The unknown operations whose effect could matter to anybody.
fn relevant_unknown<M: Model>(model: &M, operations: &[&Operation<M::Input, M::Output>]) -> Vec<usize> {
    let (mut left, mut observers): (Vec<usize>, Vec<usize>) = (0..operations.len())
        .filter(|&o| operations[o].completion.is_some() || !model.is_observation(&operations[o].input))
        .partition(|&o| operations[o].completion.is_none());
    let mut relevant = Vec::new();
    while !left.is_empty() && !observers.is_empty() {
        let (found, rest): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|&unknown| {
            let input = &operations[unknown].input;
            observers.iter().any(|&observer| model.observes(operations[observer], input))
        });
        relevant.extend(&found);
        observers = found;
        left = rest;
    }
    relevant
}
