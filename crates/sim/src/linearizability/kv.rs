//! The model of an etcd key: a value with the revision that wrote it.

use std::sync::Arc;

use super::history::Operation;
use super::model::Model;

/// A call on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvInput {
    /// Which key; with the keyspace in front where there are several.
    pub key: Arc<str>,
    /// What to do with it.
    pub action: Action,
}

/// What a call does. Values are numbers; a test that writes each number once sees most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Linearizable read.
    Get,
    /// Write, whatever was there.
    Put(u64),
    /// Delete, whatever was there.
    Delete,
    /// A transaction: if the comparison holds put the value, else read the key.
    Cas(Compare, u64),
}

/// The condition of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key exists with this value.
    Value(u64),
    /// The key was last written at this revision; 0: it does not exist.
    ModRevision(u64),
}

/// A key as a read or a transaction saw it: value and mod_revision (0: not recorded), or absent.
pub type Seen = Option<(u64, u64)>;

/// What a call was answered. A `revision` is that of the response's header; 0: not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOutput {
    /// To a get.
    Got {
        /// What was there.
        seen: Seen,
        /// The revision that was read.
        revision: u64,
    },
    /// To a put, and to a transaction whose comparison held.
    Written {
        /// The revision of the write.
        revision: u64,
    },
    /// To a delete.
    Deleted {
        /// What the response gives as the previous pair; `None` if there was nothing to delete.
        previous: Seen,
        /// The revision of the delete, or the current one if there was nothing to delete.
        revision: u64,
    },
    /// To a transaction whose comparison did not hold.
    NotSwapped {
        /// What was there.
        seen: Seen,
        /// The revision that was read.
        revision: u64,
    },
}

impl KvOutput {
    /// The revision of the response's header; 0: not recorded.
    pub fn revision(&self) -> u64 {
        match *self {
            Self::Got { revision, .. }
            | Self::Written { revision }
            | Self::Deleted { revision, .. }
            | Self::NotSwapped { revision, .. } => revision,
        }
    }

    /// Whether the call wrote something, that is whether `revision` is its own.
    pub fn wrote(&self) -> bool {
        matches!(self, Self::Written { .. } | Self::Deleted { previous: Some(_), .. })
    }
}

/// A call with its answer.
pub type KvOperation = Operation<KvInput, KvOutput>;

/// Whether the order must also be that of the revisions in the answers' headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revisions {
    /// Header revisions are ignored: only what was read and written counts.
    Ignore,
    /// A write must have a greater revision than everything before it, a read none smaller.
    Check,
}

/// The sequential specification of an etcd key.
#[derive(Clone, Copy, Debug)]
pub struct KvModel {
    /// What counts.
    pub revisions: Revisions,
}

/// The state of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KvState {
    value: Option<Written>,
    /// The keyspace is at this revision or later. Stays 0 if revisions are ignored.
    floor: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Written {
    value: u64,
    at: At,
}

/// The revision of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Exactly(u64),
    /// Nobody was told, or a write whose answer carries no revision.
    NotBefore(u64),
}

impl KvModel {
    /// The model that also holds the order of revisions against the history.
    pub const CHECK_REVISIONS: Self = Self { revisions: Revisions::Check };
    /// The model that looks at values only.
    pub const VALUES: Self = Self { revisions: Revisions::Ignore };

    fn write(&self, state: &KvState, value: Option<u64>, revision: u64) -> Option<KvState> {
        let checked = self.revisions == Revisions::Check;
        if checked && revision != 0 && revision <= state.floor {
            return None;
        }
        let least = if checked { state.floor + 1 } else { 0 };
        let at = if revision != 0 { At::Exactly(revision) } else { At::NotBefore(least) };
        Some(KvState {
            value: value.map(|value| Written { value, at }),
            floor: if checked { least.max(revision) } else { 0 },
        })
    }

    /// The state after somebody saw the key like this.
    fn see(&self, state: &KvState, seen: Seen, revision: u64) -> Option<KvState> {
        if self.revisions == Revisions::Check
            && revision != 0
            && (revision < state.floor || seen.is_some_and(|(_, at)| at > revision))
        {
            return None;
        }
        let value = match (state.value, seen) {
            (None, None) => None,
            (Some(written), Some((value, at))) if written.value == value => {
                let at = if at == 0 { written.at } else { written.at.refine(at)? };
                Some(Written { value, at })
            }
            _ => return None,
        };
        Some(KvState { value, floor: self.floor(state, revision.max(seen.map_or(0, |(_, at)| at))) })
    }

    fn floor(&self, state: &KvState, revision: u64) -> u64 {
        if self.revisions == Revisions::Check { state.floor.max(revision) } else { 0 }
    }

    /// Whether the comparison cannot fail; with an unknown revision it can.
    fn surely_holds(state: &KvState, compare: Compare) -> bool {
        match (compare, state.value) {
            (Compare::Value(value), Some(written)) => written.value == value,
            (Compare::ModRevision(revision), Some(written)) => written.at == At::Exactly(revision),
            (Compare::ModRevision(revision), None) => revision == 0,
            (Compare::Value(_), None) => false,
        }
    }

    /// The state if the comparison holds, as far as it can.
    fn if_holds(state: &KvState, compare: Compare) -> Option<KvState> {
        match (compare, state.value) {
            (Compare::Value(value), Some(written)) if written.value == value => Some(state.clone()),
            (Compare::ModRevision(0), None) => Some(state.clone()),
            (Compare::ModRevision(revision), Some(written)) if revision != 0 => {
                let at = written.at.refine(revision)?;
                Some(KvState { value: Some(Written { at, ..written }), ..*state })
            }
            _ => None,
        }
    }
}

impl At {
    fn covers(self, special: Self) -> bool {
        match (self, special) {
            (Self::Exactly(one), Self::Exactly(two)) => one == two,
            (Self::Exactly(_), Self::NotBefore(_)) => false,
            (Self::NotBefore(least), Self::Exactly(at) | Self::NotBefore(at)) => least <= at,
        }
    }

    fn refine(self, revision: u64) -> Option<Self> {
        match self {
            Self::Exactly(at) => at == revision,
            Self::NotBefore(least) => least <= revision,
        }
        .then_some(Self::Exactly(revision))
    }
}

impl Model for KvModel {
    type Input = KvInput;
    type Output = KvOutput;
    type State = KvState;
    type Key = Arc<str>;

    fn key(&self, input: &KvInput) -> Arc<str> {
        Arc::clone(&input.key)
    }

    fn initial(&self) -> KvState {
        KvState { value: None, floor: 0 }
    }

    fn step(&self, state: &KvState, input: &KvInput, output: Option<&KvOutput>) -> Option<KvState> {
        match (input.action, output) {
            (Action::Get, None) => Some(state.clone()),
            (Action::Get, Some(&KvOutput::Got { seen, revision })) => self.see(state, seen, revision),
            (Action::Put(value), None) => self.write(state, Some(value), 0),
            (Action::Put(value), Some(&KvOutput::Written { revision })) => {
                self.write(state, Some(value), revision)
            }
            // A delete of nothing takes no revision.
            (Action::Delete, None) if state.value.is_none() => Some(state.clone()),
            (Action::Delete, None) => self.write(state, None, 0),
            (Action::Delete, Some(&KvOutput::Deleted { previous: None, revision })) => {
                self.see(state, None, revision)
            }
            (Action::Delete, Some(&KvOutput::Deleted { previous: Some(pair), revision })) => {
                let state = self.see(state, Some(pair), 0)?;
                self.write(&state, None, revision)
            }
            (Action::Cas(compare, value), None) => match Self::if_holds(state, compare) {
                Some(state) => self.write(&state, Some(value), 0),
                None => Some(state.clone()),
            },
            (Action::Cas(compare, value), Some(&KvOutput::Written { revision })) => {
                self.write(&Self::if_holds(state, compare)?, Some(value), revision)
            }
            (Action::Cas(compare, _), Some(&KvOutput::NotSwapped { seen, revision })) => {
                let state = self.see(state, seen, revision)?;
                (!Self::surely_holds(&state, compare)).then_some(state)
            }
            // An answer to another question.
            _ => None,
        }
    }

    fn rank(&self, _input: &KvInput, output: &KvOutput) -> Option<u64> {
        let revision = output.revision();
        (self.revisions == Revisions::Check && revision != 0)
            .then(|| revision * 2 + u64::from(!output.wrote()))
    }

    /// The less is known of revisions, the more can happen.
    fn covers(&self, general: &KvState, special: &KvState) -> bool {
        general.floor <= special.floor
            && match (general.value, special.value) {
                (None, None) => true,
                (Some(general), Some(special)) => {
                    general.value == special.value && general.at.covers(special.at)
                }
                _ => false,
            }
    }

    fn needs(&self, input: &KvInput, output: &KvOutput) -> Option<u64> {
        match (input.action, output) {
            (_, KvOutput::Got { seen, .. } | KvOutput::NotSwapped { seen, .. }) => {
                seen.map(|(value, _)| value)
            }
            (_, KvOutput::Deleted { previous, .. }) => previous.map(|(value, _)| value),
            (Action::Cas(Compare::Value(value), _), KvOutput::Written { .. }) => Some(value),
            _ => None,
        }
    }

    fn provides(&self, input: &KvInput) -> Option<u64> {
        match input.action {
            Action::Put(value) | Action::Cas(_, value) => Some(value),
            Action::Get | Action::Delete => None,
        }
    }

    fn holds(&self, state: &KvState) -> Option<u64> {
        state.value.map(|written| written.value)
    }

    fn is_observation(&self, input: &KvInput) -> bool {
        input.action == Action::Get
    }

    fn observes(&self, operation: &KvOperation, input: &KvInput) -> bool {
        /// Whether somebody who saw this could have seen the effect of the action.
        fn explains(action: Action, seen: Seen) -> bool {
            match action {
                Action::Get => false,
                Action::Put(value) | Action::Cas(_, value) => seen.is_some_and(|(seen, _)| seen == value),
                Action::Delete => seen.is_none(),
            }
        }
        match (operation.input.action, operation.output()) {
            (Action::Get, None) => false,
            // Whoever overwrites blindly sees nothing. A revision more or less in front of it does not matter: with
            // fewer writes before it every answer stays possible.
            (Action::Put(_), _) | (Action::Delete, None) => false,
            (_, Some(&KvOutput::Got { seen, .. } | &KvOutput::NotSwapped { seen, .. })) => {
                explains(input.action, seen)
            }
            (_, Some(&KvOutput::Deleted { previous, .. })) => explains(input.action, previous),
            (Action::Cas(compare, _), _) => match (compare, input.action) {
                (Compare::Value(value), Action::Put(put) | Action::Cas(_, put)) => put == value,
                // A key that an unknown operation wrote has an unknown revision, so it may be any.
                (Compare::ModRevision(revision), Action::Put(_) | Action::Cas(..)) => revision != 0,
                (Compare::ModRevision(0), Action::Delete) => true,
                _ => false,
            },
            (Action::Get | Action::Delete, Some(&KvOutput::Written { .. })) => false,
        }
    }

    /// A write becomes one that may happen at any time or never, and whatever was there before.
    fn forget(&self, operation: &KvOperation) -> Option<KvOperation> {
        let action = match operation.input.action {
            Action::Get => return None,
            _ if operation.output().is_some_and(|output| !output.wrote()) => return None,
            Action::Put(value) | Action::Cas(_, value) => Action::Put(value),
            Action::Delete => Action::Delete,
        };
        let input = KvInput { key: Arc::clone(&operation.input.key), action };
        Some(Operation::unknown(operation.client, operation.call, input))
    }

    fn describe(&self, input: &KvInput, output: Option<&KvOutput>) -> String {
        let seen = |seen: Seen| match seen {
            None => "absent".to_owned(),
            Some((value, 0)) => format!("{value}"),
            Some((value, at)) => format!("{value} (mod {at})"),
        };
        let revision = |revision: u64| match revision {
            0 => String::new(),
            revision => format!(" @{revision}"),
        };
        let asked = match input.action {
            Action::Get => "get".to_owned(),
            Action::Put(value) => format!("put {value}"),
            Action::Delete => "delete".to_owned(),
            Action::Cas(Compare::Value(old), new) => format!("if value = {old} put {new}"),
            Action::Cas(Compare::ModRevision(0), new) => format!("if absent put {new}"),
            Action::Cas(Compare::ModRevision(old), new) => format!("if mod = {old} put {new}"),
        };
        let answered = match output {
            None => "?".to_owned(),
            Some(&KvOutput::Got { seen: pair, revision: r }) => format!("{}{}", seen(pair), revision(r)),
            Some(&KvOutput::Written { revision: r }) => format!("written{}", revision(r)),
            Some(&KvOutput::Deleted { previous: None, revision: r }) => {
                format!("nothing there{}", revision(r))
            }
            Some(&KvOutput::Deleted { previous, revision: r }) => {
                format!("deleted {}{}", seen(previous), revision(r))
            }
            Some(&KvOutput::NotSwapped { seen: pair, revision: r }) => {
                format!("not swapped, saw {}{}", seen(pair), revision(r))
            }
        };
        format!("{asked} -> {answered}")
    }
}
