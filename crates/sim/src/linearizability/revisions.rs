//! What etcd's revisions must fulfil besides, over all keys of a keyspace.
//!
//! - Two writes never share a revision.
//! - Revisions follow real time: what was answered before another call began has a smaller revision than that
//!   call's write, and no greater one than what that call read.
//! - A read at revision r sees all writes up to r, and nothing later. That holds for serializable reads too,
//!   which may be old but never wrong.
//! - One revision of a key has one value, whoever reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::kv::{Action, KvModel, KvOperation, Seen};
use super::model::Model as _;

/// A rule of revisions that is broken; the operations are given as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevisionViolation {
    /// Two writes share a revision.
    Shared {
        /// The revision.
        revision: u64,
        /// The writes.
        operations: [String; 2],
    },
    /// An operation that began after another was answered has too small a revision.
    Backwards {
        /// The one that was answered first.
        earlier: String,
        /// The one that began later.
        later: String,
    },
    /// A read does not show the latest acknowledged write up to its revision.
    Missed {
        /// The write; `None`: none that is known of, so the read shows something nobody wrote.
        write: Option<String>,
        /// The read.
        read: String,
    },
    /// The same revision of a key with two values.
    TwoValues {
        /// The key.
        key: Arc<str>,
        /// The revision that wrote it.
        revision: u64,
        /// The values.
        values: [u64; 2],
    },
}

impl fmt::Display for RevisionViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { revision, operations: [one, two] } => {
                write!(f, "two writes share revision {revision}: {one}; {two}")
            }
            Self::Backwards { earlier, later } => {
                write!(f, "revisions run backwards: {earlier}; and after its answer: {later}")
            }
            Self::Missed { write: Some(write), read } => {
                write!(f, "a read does not show a write at or before its revision: {write}; {read}")
            }
            Self::Missed { write: None, read } => write!(f, "a read shows what nobody wrote: {read}"),
            Self::TwoValues { key, revision, values: [one, two] } => {
                write!(f, "key {key} has two values at revision {revision}: {one} and {two}")
            }
        }
    }
}

/// Checks the operations of **one** keyspace. `serializable` are reads that were allowed to be old: `Get`s with
/// their answers, which count for what they show but not for when.
///
/// Operations whose header revision was not recorded are left out.
pub fn check_revisions(history: &[KvOperation], serializable: &[KvOperation]) -> Vec<RevisionViolation> {
    let mut violations = Vec::new();
    shared(history, &mut violations);
    backwards(history, &mut violations);
    missed(history, serializable, &mut violations);
    violations
}

fn describe(operation: &KvOperation) -> String {
    let what = KvModel::CHECK_REVISIONS.describe(&operation.input, operation.output());
    format!("client {} {}: {what}", operation.client, operation.input.key)
}

fn revision(operation: &KvOperation) -> Option<u64> {
    operation.output().map(|output| output.revision()).filter(|&revision| revision != 0)
}

fn wrote(operation: &KvOperation) -> bool {
    operation.output().is_some_and(|output| output.wrote())
}

fn shared(history: &[KvOperation], violations: &mut Vec<RevisionViolation>) {
    let mut writes: Vec<(u64, &KvOperation)> =
        history.iter().filter(|o| wrote(o)).filter_map(|o| Some((revision(o)?, o))).collect();
    writes.sort_by_key(|&(revision, _)| revision);
    for pair in writes.windows(2) {
        if pair[0].0 == pair[1].0 {
            let operations = [describe(pair[0].1), describe(pair[1].1)];
            violations.push(RevisionViolation::Shared { revision: pair[0].0, operations });
        }
    }
}

fn backwards(history: &[KvOperation], violations: &mut Vec<RevisionViolation>) {
    let mut answers: Vec<(u64, u64, &KvOperation)> =
        history.iter().filter_map(|o| Some((o.completion.as_ref()?.at, revision(o)?, o))).collect();
    let mut calls = answers.clone();
    answers.sort_by_key(|&(at, ..)| at);
    calls.sort_by_key(|&(_, _, operation)| operation.call);
    let mut answers = answers.into_iter().peekable();
    let mut highest: Option<(u64, &KvOperation)> = None;
    for (_, revision, operation) in calls {
        while let Some((_, earlier, answered)) = answers.next_if(|&(at, ..)| at < operation.call) {
            if highest.is_none_or(|(highest, _)| earlier > highest) {
                highest = Some((earlier, answered));
            }
        }
        let Some((earlier, answered)) = highest else { continue };
        if revision < earlier || (wrote(operation) && revision == earlier) {
            let (earlier, later) = (describe(answered), describe(operation));
            violations.push(RevisionViolation::Backwards { earlier, later });
        }
    }
}

/// What was written to a key.
#[derive(Default)]
struct Written<'a> {
    /// By revision; the value that is there from then on.
    known: BTreeMap<u64, (Option<u64>, &'a KvOperation)>,
    /// Values of puts whose outcome or revision is unknown.
    values: BTreeSet<u64>,
    /// When the first delete began whose outcome or revision is unknown.
    unknown_delete: Option<u64>,
}

fn missed<'a>(
    history: &'a [KvOperation],
    serializable: &'a [KvOperation],
    violations: &mut Vec<RevisionViolation>,
) {
    let mut keys: BTreeMap<&Arc<str>, Written<'a>> = BTreeMap::new();
    for operation in history {
        let written = keys.entry(&operation.input.key).or_default();
        let value = match operation.input.action {
            Action::Get => continue,
            Action::Put(value) | Action::Cas(_, value) => Some(value),
            Action::Delete => None,
        };
        match (operation.completion.is_some(), wrote(operation), revision(operation)) {
            (true, false, _) => {}
            (true, true, Some(revision)) => {
                written.known.insert(revision, (value, operation));
            }
            _ => match value {
                Some(value) => {
                    written.values.insert(value);
                }
                None => {
                    let call = written.unknown_delete.map_or(operation.call, |at| at.min(operation.call));
                    written.unknown_delete = Some(call);
                }
            },
        }
    }
    let mut values: BTreeMap<(&Arc<str>, u64), u64> = BTreeMap::new();
    let empty = Written::default();
    for read in history.iter().chain(serializable) {
        let Some((seen, upto)) = shown(read) else { continue };
        let key = &read.input.key;
        let written = keys.get(key).unwrap_or(&empty);
        if let Some((value, at)) = seen.filter(|&(_, at)| at != 0) {
            let first = *values.entry((key, at)).or_insert(value);
            if first != value {
                let (key, values) = (Arc::clone(key), [first, value]);
                violations.push(RevisionViolation::TwoValues { key, revision: at, values });
            }
        }
        if let Err(write) = explained(written, read, seen, upto) {
            violations.push(RevisionViolation::Missed { write, read: describe(read) });
        }
    }
}

/// What an operation shows of its key, and the last revision that counts for it.
fn shown(operation: &KvOperation) -> Option<(Seen, u64)> {
    use super::kv::KvOutput::{Deleted, Got, NotSwapped};
    match *operation.output()? {
        Got { seen, revision } | NotSwapped { seen, revision } => Some((seen, revision)),
        Deleted { previous: None, revision } => Some((None, revision)),
        // What was there just before.
        Deleted { previous, revision } => Some((previous, revision.saturating_sub(1))),
        _ => None,
    }
    .filter(|&(seen, revision)| revision != 0 && seen.is_none_or(|(_, at)| at != 0))
}

/// Whether what a read at `upto` shows can be; if not, the write it ought to show.
fn explained(written: &Written<'_>, read: &KvOperation, seen: Seen, upto: u64) -> Result<(), Option<String>> {
    let last = written.known.range(..=upto).next_back().map(|(&at, &(value, write))| (at, value, write));
    match (last, seen) {
        (None, None) => Ok(()),
        (Some((at, Some(value), _)), Some((seen, seen_at))) if at == seen_at && seen == value => Ok(()),
        (Some((_, None, _)), None) => Ok(()),
        // Later than what is known of, by a write whose answer is missing.
        (last, Some((seen, at)))
            if at <= upto
                && last.as_ref().is_none_or(|&(last, ..)| at > last)
                && written.values.contains(&seen) =>
        {
            Ok(())
        }
        (Some(_), None)
            if written.unknown_delete.is_some_and(|call| {
                read.completion.as_ref().is_some_and(|completion| call <= completion.at)
            }) =>
        {
            Ok(())
        }
        (last, _) => Err(last.map(|(.., write)| describe(write))),
    }
}
