//! Whether the records of several stores keep Raft's guarantees. Pure: it judges what [`records`](crate::records) read.
//!
//! Each store's history of a group is walked through once (`walk`): that finds what one store alone can break, and what
//! it knows: who led, what was committed, which entries there were. Then the stores are compared (`across`).
//!
//! The records reach back as far as the journals do. What was before is known only as the state that it led to, so an old
//! violation may have left no trace; what is reported did happen.

use std::fmt;

use pontoon_raft_core::types::{GroupId, LogIndex, Term};

use crate::records::StoreRecords;

mod across;
mod walk;

/// A guarantee. The names are those of the Raft thesis, figure 3.2, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// At most one leader is elected in a term.
    ElectionSafety,
    /// A replica votes for at most one candidate in a term.
    OneVotePerTerm,
    /// A replica's term never decreases, nor do the terms of the entries in a log; no entry is of a later term than its
    /// replica.
    TermsNeverDecrease,
    /// Entries with the same index and term are the same, and so are all before them.
    LogMatching,
    /// A replica's commit index never moves back.
    CommitNeverMovesBack,
    /// What a replica knows to be committed is in its log and stays there.
    CommittedIsInLog,
    /// The same entry is committed at an index everywhere.
    StateMachineSafety,
    /// What is committed is in the log of each leader of a later term.
    LeaderCompleteness,
    /// Each configuration follows from the one before by one allowed step, and a snapshot carries the one in force.
    ConfigurationChain,
}

impl Rule {
    /// The rule's name for programs. Names never change.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ElectionSafety => "election-safety",
            Self::OneVotePerTerm => "one-vote-per-term",
            Self::TermsNeverDecrease => "terms-never-decrease",
            Self::LogMatching => "log-matching",
            Self::CommitNeverMovesBack => "commit-never-moves-back",
            Self::CommittedIsInLog => "committed-is-in-log",
            Self::StateMachineSafety => "state-machine-safety",
            Self::LeaderCompleteness => "leader-completeness",
            Self::ConfigurationChain => "configuration-chain",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A guarantee that was broken, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// The store whose records show it: its place in what was checked.
    pub store: usize,
    /// The store whose records it was compared with, if it takes two.
    pub other: Option<usize>,
    /// The group.
    pub group: GroupId,
    /// Where in the log, if it is about an entry.
    pub index: Option<LogIndex>,
    /// The term that it is about.
    pub term: Option<Term>,
    /// What was found, in words that do not name the stores.
    pub what: String,
}

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Groups of which there are records.
    pub groups: usize,
    /// Events of all histories.
    pub events: u64,
    /// Entries that were compared, each as often as a store has it.
    pub entries: u64,
    /// Every violation, by group, rule and store. Of what repeats from entry to entry, the first is named.
    pub violations: Vec<Violation>,
}

/// Judges the records of several stores of one cluster.
#[must_use]
pub fn check(stores: &[StoreRecords]) -> Findings {
    let mut groups: Vec<_> = stores.iter().flat_map(|store| store.groups.keys().copied()).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut findings = Findings { groups: groups.len(), ..Findings::default() };
    for group in groups {
        let mut found = Vec::new();
        let mut facts = Vec::new();
        for (store, records) in stores.iter().enumerate() {
            let Some(records) = records.groups.get(&group) else { continue };
            findings.events += records.history.len() as u64;
            let known = walk::walk(store, group, &records.history, &mut found);
            findings.entries += known.appended.len() as u64;
            facts.push(known);
        }
        across::compare(group, &facts, &mut found);
        found.sort_by_key(|violation| (violation.rule, violation.store, violation.other, violation.index));
        findings.violations.append(&mut found);
    }
    findings
}
