//! What takes the records of two stores to see.

use std::collections::HashMap;

use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, SnapshotMeta, Term};

use crate::check::walk::{Committed, Facts, Run, Terms};
use crate::check::{Rule, Violation};

/// Compares what the stores know of a group.
pub(super) fn compare(group: GroupId, facts: &[Facts], found: &mut Vec<Violation>) {
    let mut across = Across { group, facts, found };
    across.leaders();
    across.same_entries();
    for (n, a) in facts.iter().enumerate() {
        for b in &facts[n + 1..] {
            across.prefixes(a, b);
            across.committed(a, b);
        }
    }
    for leader in facts {
        across.completeness(leader);
        for other in facts.iter().filter(|other| other.store != leader.store) {
            across.snapshots(leader, other);
        }
    }
}

struct Across<'a> {
    group: GroupId,
    facts: &'a [Facts],
    found: &'a mut Vec<Violation>,
}

/// The lowest entry about which two logs differ, as far as both are known: its index, and the two terms.
fn first_difference(a: &[Run], b: &[Run]) -> Option<(LogIndex, Term, Term)> {
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let from = x.first.max(y.first);
        if from <= x.last.min(y.last) && x.term != y.term {
            return Some((from, x.term, y.term));
        }
        if x.last <= y.last {
            i += 1;
        } else {
            j += 1;
        }
    }
    None
}

/// The highest index at which both logs have an entry of the same term.
fn last_agreement(a: &[Run], b: &[Run]) -> Option<LogIndex> {
    let (mut i, mut j) = (0, 0);
    let mut agreed = None;
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let to = x.last.min(y.last);
        if x.first.max(y.first) <= to && x.term == y.term {
            agreed = Some(to);
        }
        if x.last <= y.last {
            i += 1;
        } else {
            j += 1;
        }
    }
    agreed
}

/// Where a term begins in a log, if the entry before is known to be of an earlier one.
fn beginning(runs: &[Run], term: Term) -> Option<LogIndex> {
    runs.windows(2)
        .find(|pair| pair[1].term == term && pair[0].term < term && pair[0].last.next() == pair[1].first)
        .map(|pair| pair[1].first)
}

impl Across<'_> {
    fn violated(
        &mut self,
        rule: Rule,
        (store, other): (usize, Option<usize>),
        (index, term): (Option<LogIndex>, Option<Term>),
        what: String,
    ) {
        self.found.push(Violation { rule, store, other, group: self.group, index, term, what });
    }

    fn has(&self, rule: Rule, a: usize, b: usize) -> bool {
        let pair = [(a, Some(b)), (b, Some(a))];
        self.found
            .iter()
            .any(|v| v.rule == rule && v.group == self.group && pair.contains(&(v.store, v.other)))
    }

    /// Two stores that say of themselves that they led the same term.
    fn leaders(&mut self) {
        let mut leaders: HashMap<Term, usize> = HashMap::new();
        for facts in self.facts {
            for led in &facts.led {
                let first = *leaders.entry(led.term).or_insert(facts.store);
                if first != facts.store {
                    let what = format!("both stores led term {}", led.term);
                    let place = (None, Some(led.term));
                    self.violated(Rule::ElectionSafety, (first, Some(facts.store)), place, what);
                }
            }
        }
    }

    /// Entries with the same index and term, whenever and wherever they were appended.
    fn same_entries(&mut self) {
        let mut entries: HashMap<(LogIndex, Term), (u32, usize)> = HashMap::new();
        for facts in self.facts {
            let mut first: Option<(LogIndex, Term, usize)> = None;
            for seen in &facts.appended {
                let (crc, store) = *entries.entry((seen.index, seen.term)).or_insert((seen.crc, facts.store));
                if crc != seen.crc && first.is_none_or(|(index, ..)| seen.index < index) {
                    first = Some((seen.index, seen.term, store));
                }
            }
            if let Some((index, term, store)) = first {
                let what = format!("two different entries have index {index} and term {term}");
                let other = (store != facts.store).then_some(store);
                self.violated(Rule::LogMatching, (facts.store, other), (Some(index), Some(term)), what);
            }
        }
    }

    /// Before an entry that both logs have, they are the same.
    fn prefixes(&mut self, a: &Facts, b: &Facts) {
        if self.has(Rule::LogMatching, a.store, b.store) {
            return;
        }
        let (x, y) = (&a.log.runs, &b.log.runs);
        if let Some((index, one, two)) = first_difference(x, y)
            && let Some(same) = last_agreement(x, y)
            && same > index
        {
            let what = format!(
                "both logs have the same entry at {same}, but before it, at {index}, one of term {one} and one of \
                 term {two}"
            );
            let stores = (a.store, Some(b.store));
            return self.violated(Rule::LogMatching, stores, (Some(index), Some(one)), what);
        }
        // The entries of a term begin where its one leader's log ended.
        for run in x {
            if let (Some(here), Some(there)) = (beginning(x, run.term), beginning(y, run.term))
                && here != there
            {
                let what = format!(
                    "the entries of term {} begin at {here} in one log and at {there} in the other: it had two leaders",
                    run.term
                );
                let place = (Some(here), Some(run.term));
                return self.violated(Rule::ElectionSafety, (a.store, Some(b.store)), place, what);
            }
        }
    }

    fn committed(&mut self, a: &Facts, b: &Facts) {
        let difference = a
            .committed
            .iter()
            .find_map(|x| b.committed.iter().find_map(|y| first_difference(&[x.run], &[y.run])));
        if let Some((index, one, two)) = difference {
            let what = format!(
                "entry {index} is committed with term {one} on one store, and with term {two} on the other"
            );
            let place = (Some(index), Some(one));
            self.violated(Rule::StateMachineSafety, (a.store, Some(b.store)), place, what);
        }
    }

    /// Each log of a leader, and each log that ends with an entry of a leader, has what was committed in earlier terms.
    fn completeness(&mut self, leader: &Facts) {
        for led in &leader.led {
            if self.complete(leader, led.term, &led.log) {
                return;
            }
        }
        // Its last entry's leader had everything, and so must whoever has that entry.
        if let Some(run) = leader.log.runs.last()
            && leader.log.last == Some(run.last)
        {
            self.complete(leader, run.term, &leader.log);
        }
    }

    /// Whether something is missing.
    fn complete(&mut self, leader: &Facts, term: Term, log: &Terms) -> bool {
        for other in self.facts {
            if other.store != leader.store && self.has(Rule::StateMachineSafety, leader.store, other.store) {
                continue;
            }
            let earlier = other.committed.iter().filter(|committed| committed.known_in < term);
            let lacking = earlier.filter_map(|committed| lacks(log, committed)).min();
            if let Some((index, found)) = lacking {
                let found = match found {
                    Some(found) => format!("it has an entry of term {found} there"),
                    None => "its log ends before".to_owned(),
                };
                let what =
                    format!("entry {index} was committed before term {term}, whose leader lacks it: {found}");
                let stores = (leader.store, (other.store != leader.store).then_some(other.store));
                self.violated(Rule::LeaderCompleteness, stores, (Some(index), Some(term)), what);
                return true;
            }
        }
        false
    }

    /// A snapshot carries the configuration that the other store's log has in force there.
    fn snapshots(&mut self, a: &Facts, b: &Facts) {
        let Some(first) = b.configurations.first().map(|(index, _)| *index) else { return };
        let end = b.commit.min(b.log.last.unwrap_or_default());
        // A replica that joined a running group begins without members, and hears who they are from the log: that says
        // nothing, and contradicts nobody.
        let known = |configuration: &Configuration| !configuration.members().is_empty();
        let of_b = |meta: &&SnapshotMeta| first <= meta.index && meta.index <= end;
        for meta in a.snapshots.iter().filter(of_b).filter(|meta| known(&meta.configuration)) {
            let there = b.configurations.iter().rev().find(|(from, _)| *from <= meta.index);
            // By one store's own log already, or by another pair of stores.
            let is_told = self.found.iter().any(|v| {
                v.rule == Rule::ConfigurationChain
                    && v.index == Some(meta.index)
                    && [a.store, b.store].contains(&v.store)
            });
            let differs = |there: &Configuration| known(there) && *there != meta.configuration;
            if there.is_some_and(|(_, configuration)| differs(configuration)) && !is_told {
                let what = "the snapshot carries another configuration than the other store's log has in force there";
                let place = (Some(meta.index), Some(meta.term));
                self.violated(Rule::ConfigurationChain, (a.store, Some(b.store)), place, what.to_owned());
            }
        }
    }
}

/// The lowest of these committed entries that a log lacks, and what it has instead.
fn lacks(log: &Terms, committed: &Committed) -> Option<(LogIndex, Option<Term>)> {
    let run = committed.run;
    if let Some((index, _, found)) = first_difference(&[run], &log.runs) {
        return Some((index, Some(found)));
    }
    let last = log.last?;
    (run.last > last).then(|| (run.first.max(last.next()), None))
}
