//! What must hold after every step: one file per property. Each keeps what it must remember of the whole run.

mod acknowledged;
mod commit_monotonicity;
mod configuration_safety;
mod durable_claims;
mod election_safety;
mod kept_acknowledgements;
mod leader_append_only;
mod leader_completeness;
mod linearizable_reads;
mod log_matching;
mod pre_vote;
mod state_machine_safety;
mod vote_durability;

use std::collections::BTreeMap;

use pontoon_raft_core::{Entry, Group, LogIndex, LogView, Message, Persist, ReplicaId, Term};

use super::disk::{Content, Written};
pub use acknowledged::Acknowledged;
pub use linearizable_reads::LinearizableReads;

/// A broken property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

pub(crate) fn violated<T>(invariant: &'static str, detail: String) -> Result<T, Violation> {
    Err(Violation { invariant, detail })
}

/// A committed entry.
#[derive(Clone, Copy, Debug, Hash)]
struct Commit {
    /// The entry's term.
    term: Term,
    /// The term of the leader who committed it.
    committed_in: Term,
}

/// All properties of one run.
#[derive(Clone, Debug, Default, Hash)]
pub struct Invariants {
    election_safety: election_safety::ElectionSafety,
    leader_append_only: leader_append_only::LeaderAppendOnly,
    log_matching: log_matching::LogMatching,
    leader_completeness: leader_completeness::LeaderCompleteness,
    state_machine_safety: state_machine_safety::StateMachineSafety,
    vote_durability: vote_durability::VoteDurability,
    pre_vote: pre_vote::PreVote,
    kept_acknowledgements: kept_acknowledgements::KeptAcknowledgements,
    commit_monotonicity: commit_monotonicity::CommitMonotonicity,
    /// What clients were told.
    pub acknowledged: Acknowledged,
    /// What readers were told.
    pub reads: LinearizableReads,
    /// Every entry that any replica knew to be committed.
    committed: BTreeMap<LogIndex, Commit>,
}

impl Invariants {
    /// The highest index that any replica knows to be committed.
    pub fn committed_max(&self) -> LogIndex {
        self.committed.last_key_value().map_or(LogIndex::ZERO, |(index, _)| *index)
    }

    /// A replica did something.
    pub fn stepped<L: LogView>(&mut self, id: ReplicaId, group: &Group<L>) -> Result<(), Violation> {
        self.commit_monotonicity.stepped(id, group)?;
        self.pre_vote.stepped(id, group)?;
        self.kept_acknowledgements.stepped(id, group)?;
        let known = self.committed_max();
        self.election_safety.stepped(id, group)?;
        self.leader_completeness.stepped(group, &self.committed)?;
        self.leader_append_only.stepped(id, group)?;
        let mut index = known.next();
        while index <= group.commit_index() {
            if let Some(term) = group.entry_term(index) {
                // A leader knows it first, and commits in its own term.
                let commit = Commit { term, committed_in: group.term() };
                self.leader_completeness.commits(index, commit)?;
                self.committed.insert(index, commit);
            }
            index = index.next();
        }
        Ok(())
    }

    /// A message took its receiver from one term to another.
    pub fn received(&self, message: &Message, before: Term, after: Term) -> Result<(), Violation> {
        pre_vote::received(message, before, after)
    }

    /// A host asks its replica what to do, and may have to write; `disk` is what can be read before.
    pub fn ready<L: LogView>(
        &mut self,
        id: ReplicaId,
        group: &Group<L>,
        persist: Option<&Persist>,
        disk: &Content,
    ) -> Result<(), Violation> {
        self.leader_append_only.ready(id, group, persist)?;
        let Some(persist) = persist else { return Ok(()) };
        configuration_safety::persists(id, group, persist, disk)?;
        self.commit_monotonicity.persists(id, persist)
    }

    /// A replica has entries that it cannot deny any more.
    pub fn written(&mut self, id: ReplicaId, written: &[Written]) -> Result<(), Violation> {
        written.iter().try_for_each(|written| self.log_matching.written(id, written))
    }

    /// A replica lets a message go; `disk` is what is durable there.
    pub fn sends<L: LogView>(
        &mut self,
        message: &Message,
        group: &Group<L>,
        disk: &Content,
    ) -> Result<(), Violation> {
        durable_claims::sends(message, group, disk)?;
        self.kept_acknowledgements.sends(message);
        self.vote_durability.sends(message, disk)
    }

    /// A replica executes an entry; `disk` is what is durable there.
    pub fn applies(&mut self, id: ReplicaId, entry: &Entry, disk: &Content) -> Result<(), Violation> {
        if disk.last() < entry.index {
            return violated(
                "durable before applied",
                format!("{id} executes {}, not durable there", entry.index),
            );
        }
        if let Some(stored) = disk.entry(entry.index)
            && stored != entry
        {
            return violated(
                "durable before applied",
                format!("{id} executes {entry:?}, its disk has {stored:?}"),
            );
        }
        self.state_machine_safety.applies(id, entry)
    }

    /// A replica has lost its last record, though it was acknowledged; `disk` is what is left. What it said before does not bind
    /// it any more: whether that harms anybody, the other properties show.
    pub fn lost(&mut self, id: ReplicaId, disk: &Content) {
        self.kept_acknowledgements.lost(id);
        self.vote_durability.lost(id, disk);
    }

    /// A replica starts anew.
    pub fn restarted(&mut self, id: ReplicaId) {
        self.commit_monotonicity.restarted(id);
        self.pre_vote.restarted(id);
        self.leader_append_only.restarted(id);
        self.leader_completeness.restarted(id);
    }
}
