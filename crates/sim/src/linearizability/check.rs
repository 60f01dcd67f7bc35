//! Split by key, verdict.

use std::collections::BTreeMap;
use std::fmt;

use super::history::Operation;
use super::model::Model;
use super::search::{Limits, Outcome, search};
use super::shrink::{Window, shrink};

/// A key whose history has no explanation.
#[derive(Clone, Debug)]
pub struct Violation<K> {
    /// Which key.
    pub key: K,
    /// Operations on this key in the whole history.
    pub operations: usize,
    /// The smallest part of it that fails; empty for all but the first few keys.
    pub window: Window,
}

/// The answer for a whole history.
#[derive(Clone, Debug)]
pub enum Verdict<K> {
    /// Every key has an explanation.
    Linearizable,
    /// These keys have none.
    NotLinearizable(Vec<Violation<K>>),
    /// No key is known to fail, but for these the limits were reached.
    Undecided(Vec<K>),
}

impl<K> Verdict<K> {
    /// Whether every key has an explanation.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }
}

/// What [`check`] found, and over how much.
#[derive(Clone, Debug)]
pub struct Report<K> {
    /// Keys in the history.
    pub keys: usize,
    /// Operations in the history.
    pub operations: usize,
    /// Those of them without an answer.
    pub unknown: usize,
    /// The answer.
    pub verdict: Verdict<K>,
}

impl<K: fmt::Debug> fmt::Display for Report<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Linearizable => write!(f, "linearizable")?,
            Verdict::NotLinearizable(violations) => {
                write!(f, "NOT LINEARIZABLE on {} keys", violations.len())?;
            }
            Verdict::Undecided(keys) => write!(f, "undecided on {} keys, e.g. {:?}", keys.len(), keys[0])?,
        }
        write!(
            f,
            " ({} operations on {} keys, {} of them without an answer)",
            self.operations, self.keys, self.unknown
        )?;
        if let Verdict::NotLinearizable(violations) = &self.verdict {
            for violation in violations.iter().filter(|violation| !violation.window.entries.is_empty()) {
                write!(
                    f,
                    "\n\nkey {:?}, {} operations; these cannot be brought into an order:\n{}",
                    violation.key, violation.operations, violation.window
                )?;
            }
        }
        Ok(())
    }
}

/// Windows of failing keys are looked for only for so many keys: the first ones tell the story.
const WINDOWS_MAX: usize = 5;

/// An operation on an object of this model.
type OperationOf<'a, M> = &'a Operation<<M as Model>::Input, <M as Model>::Output>;

/// Checks every key of a history; `limits` are for each key.
pub fn check<M: Model>(
    model: &M,
    history: &[Operation<M::Input, M::Output>],
    limits: &Limits,
) -> Report<M::Key> {
    let mut by_key: BTreeMap<M::Key, Vec<OperationOf<'_, M>>> = BTreeMap::new();
    for operation in history {
        by_key.entry(model.key(&operation.input)).or_default().push(operation);
    }
    let keys = by_key.len();
    let mut failing = Vec::new();
    let mut undecided = Vec::new();
    for (key, operations) in by_key {
        match search(model, &operations, limits) {
            Outcome::Linearizable(_) => {}
            Outcome::Undecided => undecided.push(key),
            Outcome::NotLinearizable => failing.push((key, operations)),
        }
    }
    // The shortest histories make the plainest windows.
    failing.sort_by_key(|(_, operations)| operations.len());
    let violations: Vec<_> = failing
        .into_iter()
        .enumerate()
        .map(|(place, (key, operations))| {
            let window =
                if place < WINDOWS_MAX { shrink(model, &operations, limits) } else { Window::default() };
            Violation { key, operations: operations.len(), window }
        })
        .collect();
    let verdict = if !violations.is_empty() {
        Verdict::NotLinearizable(violations)
    } else if !undecided.is_empty() {
        Verdict::Undecided(undecided)
    } else {
        Verdict::Linearizable
    };
    Report {
        keys,
        operations: history.len(),
        unknown: history.iter().filter(|operation| operation.completion.is_none()).count(),
        verdict,
    }
}
