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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pontoon_raft_core::types::{Configuration, HardState, ReplicaId, SnapshotMeta, StoreId};

    use super::*;
    use crate::records::{EntryMark, Event, Recorded};

    const G: GroupId = GroupId(1);

    fn judge(histories: Vec<Vec<Event>>) -> Vec<(Rule, usize, Option<LogIndex>)> {
        let mut found = Vec::new();
        let mut facts = Vec::new();
        for (store, events) in histories.into_iter().enumerate() {
            let history: Vec<_> = (1..).zip(events).map(|(batch, event)| Recorded { batch, event }).collect();
            facts.push(walk::walk(store, G, &history, &mut found));
        }
        across::compare(G, &facts, &mut found);
        found.into_iter().map(|v| (v.rule, v.store, v.index)).collect()
    }

    fn replica(n: u64) -> ReplicaId {
        ReplicaId { store: StoreId(n), number: 1 }
    }

    fn append(first: u64, terms: &[u64]) -> Event {
        let mark = |term: &u64| EntryMark { term: Term(*term), crc: 0, configuration: None };
        Event::Append { first: LogIndex(first), entries: terms.iter().map(mark).collect() }
    }

    fn term(term: u64) -> Event {
        Event::HardState(HardState { term: Term(term), voted_for: None })
    }

    /// A journal that begins in the midst of a replica's life does not say in which term it was. What was committed then
    /// binds no leader that may have been earlier.
    #[test]
    fn what_was_committed_in_an_unknown_term_binds_nobody() {
        let later = || {
            vec![
                Event::Created(replica(2)),
                term(3),
                append(1, &[3; 10]),
                Event::Leads(Term(3)),
                term(5),
                append(11, &[5; 5]),
            ]
        };
        let unknown = vec![append(12, &[5; 4]), Event::Commit(LogIndex(15))];
        assert_eq!(judge(vec![unknown, later()]), []);
        let known = vec![term(2), append(11, &[2]), Event::Commit(LogIndex(11))];
        let found = judge(vec![known, later()]);
        assert!(found.contains(&(Rule::LeaderCompleteness, 1, Some(LogIndex(11)))), "{found:?}");
    }

    /// A replica that was destroyed takes its votes and its log with it; the next one has another number.
    #[test]
    fn a_new_replica_begins_anew() {
        let vote = |n| Event::HardState(HardState { term: Term(4), voted_for: Some(replica(n)) });
        let second = ReplicaId { number: 2, ..replica(1) };
        let history = vec![
            Event::Created(replica(1)),
            vote(1),
            append(1, &[4, 4]),
            Event::Commit(LogIndex(2)),
            Event::Destroyed,
            // Late, and ignored.
            Event::Commit(LogIndex(1)),
            Event::Created(second),
            term(3),
            vote(2),
        ];
        assert_eq!(judge(vec![history]), []);
    }

    #[test]
    fn configurations_follow_one_another_by_the_steps_that_raft_allows() {
        let voters = |ids: &[u64]| Configuration::of_voters(ids.iter().map(|n| replica(*n)));
        let joint = Configuration {
            outgoing_voters: voters(&[1, 2, 3]).voters,
            next_learners: [replica(1)].into(),
            ..voters(&[2, 4, 5])
        };
        let left = Configuration { learners: [replica(1)].into(), ..voters(&[2, 4, 5]) };
        let chain = |configurations: Vec<Configuration>| {
            let begin = SnapshotMeta { configuration: voters(&[1, 2, 3]), ..SnapshotMeta::default() };
            let mark =
                |c: Configuration| EntryMark { term: Term(1), crc: 0, configuration: Some(Arc::new(c)) };
            let entries = configurations.into_iter().map(mark).collect();
            let append = Event::Append { first: LogIndex(1), entries };
            let events = vec![Event::Created(replica(1)), Event::Snapshot(Box::new(begin)), term(1), append];
            judge(vec![events])
        };
        let learner = Configuration { learners: [replica(4)].into(), ..voters(&[1, 2, 3]) };
        assert_eq!(chain(vec![learner, voters(&[1, 2, 3, 4]), voters(&[2, 3, 4])]), []);
        assert_eq!(chain(vec![joint.clone(), left.clone()]), []);
        let breaks = |configurations: Vec<Configuration>, at: u64| {
            let found = chain(configurations);
            assert_eq!(found, [(Rule::ConfigurationChain, 0, Some(LogIndex(at)))]);
        };
        breaks(vec![voters(&[4, 5, 6])], 1);
        breaks(vec![Configuration::default()], 1);
        breaks(vec![Configuration { learners: [replica(2)].into(), ..voters(&[1, 2, 3]) }], 1);
        // A joint configuration is left for its own target, and keeps who may decide until then.
        breaks(vec![joint.clone(), voters(&[2, 4, 5])], 2);
        breaks(vec![Configuration { outgoing_voters: voters(&[1, 2]).voters, ..joint }, left], 1);
    }
}
