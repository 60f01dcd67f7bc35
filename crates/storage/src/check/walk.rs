//! One store's history of one group: what it breaks by itself, and what it knows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pontoon_raft_core::confchange::{self, ConfigurationChange};
use pontoon_raft_core::types::{Configuration, GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

use crate::check::{Rule, Violation};
use crate::records::{Base, EntryMark, Event, Recorded};

/// Entries that follow one another with the same term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: LogIndex,
    pub(super) last: LogIndex,
    pub(super) term: Term,
}

/// Entries that are committed, as a replica knew in some term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) run: Run,
    /// The replica's term when it knew: whoever leads in a later one has these entries.
    pub(super) known_in: Term,
}

/// The terms of a log, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// In order. The first one ends with what the log begins after, if that is known.
    pub(super) runs: Vec<Run>,
    /// The last entry, also if its term is not known; `None` if nothing is known of the log.
    pub(super) last: Option<LogIndex>,
}

/// A term that the replica led, and its log at that time.
#[derive(Debug)]
pub(super) struct Led {
    pub(super) term: Term,
    pub(super) log: Terms,
}

/// An entry that was in the log once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) index: LogIndex,
    pub(super) term: Term,
    pub(super) crc: u32,
}

/// What one store knows of a group.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) store: usize,
    pub(super) led: Vec<Led>,
    pub(super) committed: Vec<Committed>,
    /// Entries that were overwritten or compacted since included.
    pub(super) appended: Vec<Seen>,
    /// The log in the end.
    pub(super) log: Terms,
    /// What is committed in the end.
    pub(super) commit: LogIndex,
    /// The configurations of the log in the end, each from its index on.
    pub(super) configurations: Vec<(LogIndex, Arc<Configuration>)>,
    /// The snapshots that the log began after at some time.
    pub(super) snapshots: Vec<SnapshotMeta>,
}

/// Walks through a history. Violations go to `found`.
pub(super) fn walk(store: usize, group: GroupId, history: &[Recorded], found: &mut Vec<Violation>) -> Facts {
    let mut walk = Walk {
        group,
        found,
        life: Some(Life::default()),
        facts: Facts {
            store,
            led: Vec::new(),
            committed: Vec::new(),
            appended: Vec::new(),
            log: Terms::default(),
            commit: LogIndex::ZERO,
            configurations: Vec::new(),
            snapshots: Vec::new(),
        },
    };
    for recorded in history {
        walk.event(&recorded.event);
    }
    let mut facts = walk.facts;
    if let Some(life) = walk.life {
        facts.log = life.log.terms();
        facts.commit = life.commit;
        facts.configurations = life.log.configurations;
    }
    facts
}

/// A replica, from its creation to its end. One that is older than the records begins with nothing known.
#[derive(Debug, Default)]
struct Life {
    replica: Option<ReplicaId>,
    /// The highest so far; `None` while the records have not told any.
    term: Option<Term>,
    votes: BTreeMap<Term, ReplicaId>,
    commit: LogIndex,
    log: Log,
}

impl Life {
    /// The term in which something is known. Without one, it obliges no later leader.
    fn known_in(&self) -> Term {
        self.term.unwrap_or(Term(u64::MAX))
    }
}

/// The entries that are known to be in the log.
#[derive(Debug, Default)]
struct Log {
    /// What the log begins after, if that is known.
    base: Option<(LogIndex, Term)>,
    /// The index of the first of `entries`.
    first: LogIndex,
    entries: VecDeque<Option<(Term, u32)>>,
    configurations: Vec<(LogIndex, Arc<Configuration>)>,
}

impl Log {
    fn after(meta: &SnapshotMeta) -> Self {
        Self {
            base: Some((meta.index, meta.term)),
            first: meta.index.next(),
            entries: VecDeque::new(),
            configurations: vec![(meta.index, Arc::new(meta.configuration.clone()))],
        }
    }

    fn last(&self) -> Option<LogIndex> {
        match self.entries.len() as u64 {
            0 => self.base.map(|(index, _)| index),
            n => Some(LogIndex(self.first.0 + n - 1)),
        }
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        if let Some((base, term)) = self.base
            && base == index
        {
            return Some(term);
        }
        let at = index.0.checked_sub(self.first.0)?;
        self.entries.get(usize::try_from(at).ok()?)?.map(|(term, _)| term)
    }

    fn last_term(&self) -> Option<Term> {
        self.term(self.last()?)
    }

    /// The configuration in force at an index; `None` where nothing is known.
    fn configuration(&self, index: LogIndex) -> Option<&Arc<Configuration>> {
        self.configurations.iter().rev().find(|(from, _)| *from <= index).map(|(_, c)| c)
    }

    fn truncate(&mut self, from: LogIndex) {
        let keep = from.0.saturating_sub(self.first.0);
        self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        // What an index of the base and before says is not the log's to take back.
        let base = self.base.map_or(LogIndex::ZERO, |(index, _)| index);
        self.configurations.retain(|(index, _)| *index < from || *index <= base);
    }

    fn compact(&mut self, meta: &SnapshotMeta) {
        if self.last().is_none_or(|last| last < meta.index) {
            *self = Self::after(meta);
            return;
        }
        let gone = (meta.index.next().0.saturating_sub(self.first.0)).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.first = LogIndex(self.first.0 + gone).max(meta.index.next());
        self.base = Some((meta.index, meta.term));
        self.configurations.retain(|(index, _)| *index > meta.index);
        self.configurations.insert(0, (meta.index, Arc::new(meta.configuration.clone())));
    }

    fn terms(&self) -> Terms {
        let base = self.base.into_iter().map(|(index, term)| (index, Some(term)));
        let entries = self.entries.iter().enumerate();
        let entries = entries.map(|(n, entry)| (self.first + n as u64, entry.map(|(term, _)| term)));
        Terms { runs: runs(base.chain(entries)), last: self.last() }
    }
}

fn runs(entries: impl Iterator<Item = (LogIndex, Option<Term>)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, term) in entries {
        let Some(term) = term else { continue };
        match runs.last_mut() {
            Some(run) if run.term == term && run.last.next() == index => run.last = index,
            _ => runs.push(Run { first: index, last: index, term }),
        }
    }
    runs
}

struct Walk<'a> {
    group: GroupId,
    found: &'a mut Vec<Violation>,
    /// `None` after the replica was destroyed.
    life: Option<Life>,
    facts: Facts,
}

impl Walk<'_> {
    fn violated(&mut self, rule: Rule, index: Option<LogIndex>, term: Option<Term>, what: String) {
        let (store, group) = (self.facts.store, self.group);
        self.found.push(Violation { rule, store, other: None, group, index, term, what });
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Created(replica) => {
                if self.life.as_ref().is_none_or(|life| life.replica.is_some_and(|own| own != *replica)) {
                    self.life = Some(Life::default());
                }
                if let Some(life) = self.life.as_mut().filter(|life| life.replica.is_none()) {
                    life.replica = Some(*replica);
                    // It is new, unless the records began before: then the log is known already.
                    if life.log.last().is_none() && life.term.is_none() {
                        life.term = Some(Term::ZERO);
                        life.log = Log::after(&SnapshotMeta::default());
                        life.log.configurations.clear();
                    }
                }
                return;
            }
            Event::AsOf(base) => return self.as_of(base),
            Event::Destroyed => {
                self.life = None;
                return;
            }
            _ => {}
        }
        // A late write to a replica that was destroyed changes nothing.
        let Some(mut life) = self.life.take() else { return };
        match event {
            Event::HardState(state) => self.hard_state(&mut life, *state),
            Event::Snapshot(meta) => self.snapshot(&mut life, meta),
            Event::Truncate(from) => self.truncate(&mut life, *from),
            Event::Append { first, entries } => self.append(&mut life, *first, entries),
            Event::Commit(commit) => self.commit(&mut life, *commit),
            Event::Leads(term) => {
                if self.facts.led.last().is_none_or(|led| led.term != *term) {
                    self.facts.led.push(Led { term: *term, log: life.log.terms() });
                }
            }
            Event::Compact(meta) => self.compact(&mut life, meta),
            Event::Created(_) | Event::AsOf(_) | Event::Destroyed => unreachable!("handled above"),
        }
        self.life = Some(life);
    }

    fn hard_state(&mut self, life: &mut Life, state: HardState) {
        if let Some(term) = life.term
            && state.term < term
        {
            let what = format!("the term goes down from {term} to {}", state.term);
            self.violated(Rule::TermsNeverDecrease, None, Some(state.term), what);
        }
        match (life.votes.get(&state.term).copied(), state.voted_for) {
            (Some(before), now) if now != Some(before) => {
                let now = now.map_or_else(|| "nobody".to_owned(), |now| now.to_string());
                let what = format!("in term {} it votes for {before}, and then for {now}", state.term);
                self.violated(Rule::OneVotePerTerm, None, Some(state.term), what);
            }
            (None, Some(vote)) => drop(life.votes.insert(state.term, vote)),
            _ => {}
        }
        life.term = life.term.max(Some(state.term));
    }

    fn snapshot(&mut self, life: &mut Life, meta: &SnapshotMeta) {
        if meta.index < life.commit {
            let what = format!(
                "the log is replaced by a snapshot of entry {}, and entries to {} are committed",
                meta.index, life.commit
            );
            self.violated(Rule::CommitNeverMovesBack, Some(meta.index), Some(meta.term), what);
        }
        life.log = Log::after(meta);
        self.begins_after(life, meta);
    }

    /// What a log begins after is committed.
    fn begins_after(&mut self, life: &mut Life, meta: &SnapshotMeta) {
        if meta.index > LogIndex::ZERO {
            let run = Run { first: meta.index, last: meta.index, term: meta.term };
            self.know_committed(run, life.known_in());
        }
        life.commit = life.commit.max(meta.index);
        self.facts.snapshots.push(meta.clone());
    }

    fn truncate(&mut self, life: &mut Life, from: LogIndex) {
        if from <= life.commit && life.log.last().is_some_and(|last| from <= last) {
            let what =
                format!("the log is cut at entry {from}, and entries to {} are committed", life.commit);
            self.violated(Rule::CommittedIsInLog, Some(from), life.log.term(from), what);
        }
        life.log.truncate(from);
    }

    fn append(&mut self, life: &mut Life, first: LogIndex, entries: &[EntryMark]) {
        // A gap, which recovery refuses, or the first that is known of this log.
        match life.log.last() {
            Some(last) if first == last.next() => {}
            Some(last) if first <= last => life.log.truncate(first),
            _ => life.log = Log { first, ..Log::default() },
        }
        if life.log.entries.is_empty() {
            life.log.first = first;
        }
        for (n, mark) in entries.iter().enumerate() {
            self.push(life, first + n as u64, mark);
        }
        if let Some(term) = life.term
            && let Some((n, mark)) = entries.iter().enumerate().find(|(_, mark)| mark.term > term)
        {
            let what = format!("the entry is of term {}, and its replica only in term {term}", mark.term);
            let index = first + n as u64;
            self.violated(Rule::TermsNeverDecrease, Some(index), Some(mark.term), what);
            // Told once, and nothing that is known from here on is put into too early a term.
            life.term = Some(mark.term);
        }
    }

    fn push(&mut self, life: &mut Life, index: LogIndex, mark: &EntryMark) {
        if let Some(before) = life.log.last_term()
            && mark.term < before
        {
            let what = format!("the terms of the log go down from {before} to {}", mark.term);
            self.violated(Rule::TermsNeverDecrease, Some(index), Some(mark.term), what);
        }
        if let Some(new) = &mark.configuration {
            if let Some(old) = life.log.configuration(index)
                && let Err(what) = follows(old, new)
            {
                self.violated(Rule::ConfigurationChain, Some(index), Some(mark.term), what.to_owned());
            }
            life.log.configurations.push((index, Arc::clone(new)));
        }
        life.log.entries.push_back(Some((mark.term, mark.crc)));
        self.facts.appended.push(Seen { index, term: mark.term, crc: mark.crc });
    }

    fn commit(&mut self, life: &mut Life, commit: LogIndex) {
        if commit < life.commit {
            let what = format!("the commit index moves back from {} to {commit}", life.commit);
            self.violated(Rule::CommitNeverMovesBack, Some(commit), life.log.term(commit), what);
            return;
        }
        let mut reached = commit;
        if let Some(last) = life.log.last()
            && commit > last
        {
            let what = format!("entries to {commit} are committed, and the log ends with {last}");
            self.violated(Rule::CommittedIsInLog, Some(commit), None, what);
            reached = last;
        }
        self.advance(life, reached);
    }

    /// Entries to `commit` are committed now, as far as they are known.
    fn advance(&mut self, life: &mut Life, commit: LogIndex) {
        if let Some(last) = life.log.last() {
            let from = life.commit.next().max(life.log.first);
            let to = commit.min(last);
            let entries = (from.0..=to.0).map(LogIndex).map(|index| (index, life.log.term(index)));
            for run in runs(entries) {
                self.know_committed(run, life.known_in());
            }
        }
        life.commit = life.commit.max(commit);
    }

    fn know_committed(&mut self, run: Run, known_in: Term) {
        match self.facts.committed.last_mut() {
            // What a log begins after was committed before, in most cases.
            Some(c)
                if c.run.term == run.term
                    && c.run.first <= run.first
                    && run.last <= c.run.last
                    && c.known_in <= known_in => {}
            Some(c) if c.known_in == known_in && c.run.term == run.term && c.run.last.next() == run.first => {
                c.run.last = run.last;
            }
            _ => self.facts.committed.push(Committed { run, known_in }),
        }
    }

    fn compact(&mut self, life: &mut Life, meta: &SnapshotMeta) {
        if life.log.base.is_some_and(|(base, _)| meta.index <= base) {
            return;
        }
        if let Some(term) = life.log.term(meta.index)
            && term != meta.term
        {
            let what = format!("the log had an entry of term {term} there, its snapshot says {}", meta.term);
            self.violated(Rule::LogMatching, Some(meta.index), Some(meta.term), what);
        }
        if life.log.term(meta.index).is_some()
            && let Some(own) = life.log.configuration(meta.index)
            && **own != meta.configuration
        {
            let what = "the snapshot carries another configuration than the one in force there".to_owned();
            self.violated(Rule::ConfigurationChain, Some(meta.index), Some(meta.term), what);
        }
        // Only what is committed is compacted, whether it was noted or not.
        self.advance(life, meta.index);
        life.log.compact(meta);
        self.begins_after(life, meta);
    }

    /// The cold tier sums up what was before. It is compared with what the journal told of that time, and replaces it.
    fn as_of(&mut self, base: &Base) {
        let mut life = self.life.take().unwrap_or_default();
        if life.replica.is_some_and(|replica| replica != base.replica) {
            life = Life::default();
        }
        life.replica = Some(base.replica);
        self.hard_state(&mut life, base.hard_state);
        if base.commit < life.commit {
            let what = format!("the commit index moves back from {} to {}", life.commit, base.commit);
            self.violated(Rule::CommitNeverMovesBack, Some(base.commit), None, what);
        }
        // What the journal told already was judged then; entries of before the journal are new.
        let before = std::mem::replace(&mut life.log, Log::after(&base.snapshot));
        self.begins_after(&mut life, &base.snapshot);
        for (n, mark) in base.entries.iter().enumerate() {
            let index = base.snapshot.index.next() + n as u64;
            match mark {
                Some(mark) if before.term(index) == Some(mark.term) => {
                    if let Some(configuration) = &mark.configuration {
                        life.log.configurations.push((index, Arc::clone(configuration)));
                    }
                    life.log.entries.push_back(Some((mark.term, mark.crc)));
                }
                Some(mark) => self.push(&mut life, index, mark),
                None => life.log.entries.push_back(None),
            }
        }
        if let Some(term) = life.log.last_term()
            && let Some(own) = life.term
            && term > own
        {
            let what = format!("the entry is of term {term}, and its replica only in term {own}");
            self.violated(Rule::TermsNeverDecrease, life.log.last(), Some(term), what);
        }
        // All of it anew: before, the term in which it was known was not, perhaps.
        life.commit = base.snapshot.index.min(base.commit);
        self.commit(&mut life, base.commit);
        self.life = Some(life);
    }
}

/// Whether one configuration may stand behind the other in a log.
fn follows(old: &Configuration, new: &Configuration) -> Result<(), &'static str> {
    if new.voters.is_empty() {
        return Err("the configuration has no voter");
    }
    if new.voters.intersection(&new.learners).next().is_some() {
        return Err("the configuration has a replica as voter and as learner");
    }
    if old.members().is_empty() {
        // A replica that joined a running group: who was there before is not in its log.
        return Ok(());
    }
    if old.is_joint() {
        return match confchange::apply(old, &ConfigurationChange::Leave) {
            Ok(left) if left == *new => Ok(()),
            _ => Err("a joint configuration is followed by another one than the one it leads to"),
        };
    }
    if new.is_joint() {
        if new.outgoing_voters != old.voters {
            return Err("the joint configuration's outgoing voters are not the voters before it");
        }
        return Ok(());
    }
    if old.voters.symmetric_difference(&new.voters).count() > 1 {
        return Err("more than one voter changes without a joint configuration");
    }
    Ok(())
}
