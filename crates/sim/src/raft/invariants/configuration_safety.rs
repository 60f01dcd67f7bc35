//! Configuration safety (thesis 4.1, 4.3): along any log each configuration follows legally from the one before it, and a
//! leader appends one only when the one before it is committed and it knows so, which takes a commit of its own term (the
//! erratum of 2015).

use pontoon_raft_core::{Configuration, Group, LogIndex, LogView, Payload, Persist, ReplicaId};

use super::{Violation, violated};
use crate::raft::disk::Content;

/// `disk` is what can be read before this batch.
pub(super) fn persists<L: LogView>(
    id: ReplicaId,
    group: &Group<L>,
    persist: &Persist,
    disk: &Content,
) -> Result<(), Violation> {
    let new = persist.entries.iter().filter_map(|entry| match &entry.payload {
        Payload::Configuration(configuration) => Some((entry.index, entry.term, configuration)),
        _ => None,
    });
    let mut in_force: Option<(LogIndex, &Configuration)> = None;
    for (index, term, configuration) in new {
        let (before_index, before) = in_force.unwrap_or_else(|| before(persist, disk));
        if !follows(before, configuration) {
            let detail = format!("{id} writes {configuration:?} at {index}, after {before:?}");
            return violated("configuration safety", detail);
        }
        // Whoever leads now wrote the entries of its term; what followers write was judged when its leader wrote it.
        if group.is_leader() && group.term() == term {
            let commit = group.commit_index();
            if before_index > commit {
                let detail = format!("{id} changes members at {index}, {before_index} is not committed");
                return violated("configuration safety", detail);
            }
            if group.entry_term(commit) != Some(term) {
                let detail =
                    format!("{id} changes members at {index} and has committed nothing in term {term}");
                return violated("configuration safety", detail);
            }
        }
        in_force = Some((index, configuration));
    }
    Ok(())
}

/// The configuration in force before the entries of `persist`, and where it was written.
fn before<'a>(persist: &'a Persist, disk: &'a Content) -> (LogIndex, &'a Configuration) {
    if let Some(snapshot) = &persist.snapshot {
        return (snapshot.index, &snapshot.configuration);
    }
    let end = persist.entries.first().map_or(LogIndex(u64::MAX), |entry| entry.index);
    let written = disk.entries.iter().rev().filter(|entry| entry.index < end);
    let mut configurations = written.filter_map(|entry| match &entry.payload {
        Payload::Configuration(configuration) => Some((entry.index, configuration)),
        _ => None,
    });
    configurations.next().unwrap_or((disk.snapshot.index, &disk.snapshot.configuration))
}

fn follows(old: &Configuration, new: &Configuration) -> bool {
    if old.members().is_empty() {
        // A replica that joins knows no members until the log tells it.
        return true;
    }
    if new.voters.is_empty() {
        return false;
    }
    if old.is_joint() {
        return !new.is_joint() && new.voters == old.voters;
    }
    if new.is_joint() {
        return new.outgoing_voters == old.voters;
    }
    new.voters.symmetric_difference(&old.voters).count() <= 1
}
