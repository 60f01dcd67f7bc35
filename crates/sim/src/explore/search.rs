//! The search: a frontier, and the states that were seen.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::model::Model;
use super::seen::Seen;
use super::world::{Action, DigesterPool, World};
use crate::raft::invariants::Violation;

/// Which state is looked at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The one with the fewest steps: counterexamples are as short as can be, and the frontier needs memory.
    Breadth,
    /// The newest: little memory.
    Depth,
}

/// When a search ends without having seen everything.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States.
    pub states_max: u64,
    /// Time.
    pub time_max: Option<Duration>,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self { states_max: u64::MAX, time_max: None };
}

/// What a search saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The model's name.
    pub model: &'static str,
    /// Different states, but for those that another one covers.
    pub states: u64,
    /// Steps tried.
    pub transitions: u64,
    /// The longest way to a state on which it was first seen.
    pub depth: u32,
    /// Whether all states were seen.
    pub complete: bool,
    /// The highest committed index in any state.
    pub committed_max: u64,
    /// The most leaders (of different terms) in one state.
    pub leaders_max: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, states, transitions, depth, complete, committed_max, leaders_max } = self;
        let exhausted = if *complete { "exhausted" } else { "not exhausted" };
        write!(
            f,
            "{model}: {exhausted}; states {states}, transitions {transitions}, depth {depth}, committed up to \
             {committed_max}, at most {leaders_max} leaders at once"
        )
    }
}

/// A way to a broken property.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What was seen until then.
    pub report: Report,
    /// What broke.
    pub violation: Violation,
    /// How: one line for each step.
    pub steps: Vec<String>,
    /// The replicas before the last step.
    pub before: String,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { report, violation, steps, before } = self;
        writeln!(
            f,
            "model {} breaks \"{}\" after {} steps ({} states seen): {}",
            report.model,
            violation.invariant,
            steps.len(),
            report.states,
            violation.detail
        )?;
        for (number, step) in steps.iter().enumerate() {
            writeln!(f, "{:>4} {step}", number + 1)?;
        }
        write!(f, "before the last step:\n{before}")
    }
}

/// The last step of a way, and the way before it.
#[derive(Debug)]
struct Way {
    action: Action,
    before: Option<Rc<Self>>,
}

/// A state that was not looked at yet.
#[derive(Debug)]
struct Open {
    world: World,
    way: Option<Rc<Way>>,
    depth: u32,
}

/// Visits every state of `model`.
///
/// # Errors
/// A property is broken in one of them.
pub fn explore(model: &Model, order: Order, limits: Limits) -> Result<Report, Box<Counterexample>> {
    let began = Instant::now();
    let mut digester = DigesterPool::default();
    let mut report = Report {
        model: model.name,
        states: 1,
        transitions: 0,
        depth: 0,
        complete: true,
        committed_max: 0,
        leaders_max: 0,
    };
    let first = match World::new(model, &mut digester) {
        Ok(world) => world,
        Err(violation) => {
            let (steps, before) = (Vec::new(), String::new());
            return Err(Box::new(Counterexample { report, violation, steps, before }));
        }
    };
    let mut seen = Seen::default();
    seen.is_news(&first);
    let mut frontier = VecDeque::from([Open { world: first, way: None, depth: 0 }]);
    let mut actions = Vec::new();
    while let Some(open) = match order {
        Order::Breadth => frontier.pop_front(),
        Order::Depth => frontier.pop_back(),
    } {
        let late = || limits.time_max.is_some_and(|max| began.elapsed() > max);
        if report.states >= limits.states_max || (report.states.is_multiple_of(64) && late()) {
            report.complete = false;
            return Ok(report);
        }
        open.world.actions(model, &mut actions);
        for action in actions.drain(..) {
            report.transitions += 1;
            let next = match open.world.after(model, action, &mut digester) {
                Ok(Some(next)) => next,
                Ok(None) => continue,
                Err(violation) => {
                    let before = open.world.show();
                    let steps = retell(model, open.way.as_deref(), &open.world, action);
                    return Err(Box::new(Counterexample { report, violation, steps, before }));
                }
            };
            if !seen.is_news(&next) {
                continue;
            }
            let depth = open.depth + 1;
            report.states += 1;
            report.depth = report.depth.max(depth);
            report.committed_max = report.committed_max.max(next.committed_max().0);
            report.leaders_max = report.leaders_max.max(next.leaders());
            let way = Some(Rc::new(Way { action, before: open.way.clone() }));
            frontier.push_back(Open { world: next, way, depth });
        }
    }
    Ok(report)
}

/// The steps of a way in words, found by going it again.
fn retell(model: &Model, way: Option<&Way>, last: &World, action: Action) -> Vec<String> {
    let mut actions = Vec::new();
    let mut at = way;
    while let Some(step) = at {
        actions.push(step.action);
        at = step.before.as_deref();
    }
    let mut digester = DigesterPool::default();
    let mut steps = Vec::new();
    if let Ok(mut world) = World::new(model, &mut digester) {
        for action in actions.into_iter().rev() {
            steps.push(world.describe(action));
            match world.after(model, action, &mut digester) {
                Ok(Some(next)) => world = next,
                _ => break,
            }
        }
    }
    steps.push(last.describe(action));
    steps
}
