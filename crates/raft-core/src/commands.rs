//! Commands by their ids: prerequisites, and the fate of those that were overwritten.

use std::collections::BTreeSet;

use crate::command_status::CommandStatus;
use crate::log::Log;
use crate::log_view::LogView;
use crate::ready::Dropped;
use crate::types::{Entry, EntryId, LogIndex, Payload, Term};

/// How much of the log is read at once when it must be searched.
pub(crate) const PAGE_BYTES: u64 = 1 << 20;

/// The id of the last command in the log; a prerequisite must equal it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastCommand {
    /// This one.
    Known(EntryId),
    /// The log was cut or replaced since: it must be searched when somebody asks.
    Unknown,
}

impl LastCommand {
    pub(crate) fn appended(&mut self, entry: &Entry) {
        if matches!(entry.payload, Payload::Command(_)) {
            *self = Self::Known(entry.id);
        }
    }

    pub(crate) fn truncated(&mut self) {
        *self = Self::Unknown;
    }

    /// The id, searched for in the log if need be; [`EntryId::NONE`] if the log holds no command since its snapshot.
    pub(crate) fn get(&mut self, log: &Log, view: &dyn LogView) -> EntryId {
        if let Self::Known(id) = *self {
            return id;
        }
        let id = last_command(log.unstable()).unwrap_or_else(|| search(log, view));
        *self = Self::Known(id);
        id
    }
}

fn last_command(entries: &[Entry]) -> Option<EntryId> {
    entries.iter().rev().find(|entry| matches!(entry.payload, Payload::Command(_))).map(|entry| entry.id)
}

/// Goes back from the end in steps that double, so that a recent command is found with little reading.
fn search(log: &Log, view: &dyn LogView) -> EntryId {
    let first = log.first();
    let (mut end, mut step) = (log.handed().next(), 16);
    while end > first {
        let start = LogIndex(end.0.saturating_sub(step).max(first.0));
        let mut found = None;
        let mut at = start;
        while at < end {
            let Ok(entries) = view.entries(at..end, PAGE_BYTES) else { return EntryId::NONE };
            let Some(last) = entries.last() else { return EntryId::NONE };
            at = last.index.next();
            found = last_command(&entries).or(found);
        }
        if let Some(id) = found {
            return id;
        }
        (end, step) = (start, step * 2);
    }
    EntryId::NONE
}

/// Commands that were cut off this replica's log, and whose fate is not settled yet.
///
/// A cut proves nothing by itself: the entry may live on another replica, which may be elected next and bring it back
/// (figure 3.7 of the thesis). Only when another entry is *committed* at its index is it certain that the command will
/// never be executed from there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overwritten(BTreeSet<(LogIndex, Term, EntryId)>);

impl Overwritten {
    /// Remembers the commands at and after `from`, which are about to be cut off.
    pub(crate) fn cut(&mut self, log: &Log, view: &dyn LogView, from: LogIndex) {
        for_each_command(log, view, from, |entry| {
            self.0.insert((entry.index, entry.term, entry.id));
        });
    }

    /// A snapshot at `index` replaces the log, which contradicts it there. What follows a contradiction can never be
    /// committed; of what comes before, nothing is known any more.
    pub(crate) fn replaced(
        &mut self,
        log: &Log,
        view: &dyn LogView,
        index: LogIndex,
        dropped: &mut Vec<Dropped>,
    ) {
        self.0.clear();
        for_each_command(log, view, index.next(), |entry| dropped.push(overwritten(entry.id)));
    }

    /// The commit index rose: tells the fate of what lies below it.
    pub(crate) fn settle(&mut self, log: &Log, dropped: &mut Vec<Dropped>) {
        if self.0.is_empty() {
            return;
        }
        let open = self.0.split_off(&(log.commit().next(), Term::ZERO, EntryId::NONE));
        for (index, term, id) in std::mem::replace(&mut self.0, open) {
            // The same term at the same index is the same entry: it came back.
            if log.terms.term(index).is_some_and(|committed| committed != term) {
                dropped.push(overwritten(id));
            }
        }
    }
}

fn overwritten(id: EntryId) -> Dropped {
    Dropped { id, status: CommandStatus::LostLeadership }
}

/// Visits the commands with an id at and after `from`.
fn for_each_command(log: &Log, view: &dyn LogView, from: LogIndex, mut visit: impl FnMut(&Entry)) {
    let mut visit_all = |entries: &[Entry]| {
        let commands =
            entries.iter().filter(|e| matches!(e.payload, Payload::Command(_)) && e.id != EntryId::NONE);
        commands.for_each(&mut visit);
    };
    // What was handed out is in the host's log. If it cannot be read, the waiting simply goes on.
    let (mut at, end) = (from.max(log.first()), log.handed().next());
    while at < end && !log.has_replacement() {
        let Ok(entries) = view.entries(at..end, PAGE_BYTES) else { break };
        let Some(last) = entries.last() else { break };
        at = last.index.next();
        visit_all(&entries);
    }
    let kept = log.unstable().partition_point(|entry| entry.index < from);
    visit_all(&log.unstable()[kept..]);
}
