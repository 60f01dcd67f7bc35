//! Commands whose clients wait at a host, and how hosts hand them to the leader's host: what a store does around its cores, with
//! the same parts ([`Attempt`], [`relay`], [`CommandStatus`]).

use pontoon_raft_core::relay::{RelayNumber, Verdict};
use pontoon_raft_core::*;

use super::{Interpreter, Parcel};

/// How long a command that was not taken waits before it is handed on again.
const RETRY_MS: u64 = 50;

/// A command whose client waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    attempt: Attempt,
    /// The attempt's number, if it was relayed.
    number: u64,
    prerequisite: Option<EntryId>,
    /// It is not handed on again before.
    not_before: u64,
}

/// A command on its way to the leader's host, or a question about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    /// Which life of the host that relays it.
    run: u64,
    term: Term,
    at: RelayNumber,
    id: u128,
    prerequisite: Option<EntryId>,
    asks: bool,
}

/// What the leader's host says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    term: Term,
    number: u64,
    id: u128,
    status: CommandStatus,
}

fn proposal(id: u128, prerequisite: Option<EntryId>) -> Proposal {
    Proposal { prerequisite, ..Proposal::new(EntryId(id), "command!") }
}

impl Interpreter {
    /// Clients of `n` ask for a command.
    pub(super) fn ask(&mut self, n: u64, id: u128, prerequisite: Option<EntryId>) {
        let host = self.hosts.get_mut(&n).expect("such a host");
        host.asked.insert(id, Asked { attempt: Attempt::default(), number: 0, prerequisite, not_before: 0 });
        if host.group.as_ref().is_none_or(|group| group.status().failed) {
            self.end(n, id, CommandStatus::IoError);
        }
    }

    /// The client of `n` waits no longer.
    pub(super) fn give_up(&mut self, n: u64, id: u128) {
        let status = self.hosts[&n].asked.get(&id).expect("its client waits").attempt.given_up();
        self.end(n, id, status);
    }

    /// All that wait at `n` hear the same.
    pub(super) fn end_all(&mut self, n: u64, status: CommandStatus) {
        for id in self.hosts[&n].asked.keys().copied().collect::<Vec<_>>() {
            self.end(n, id, status);
        }
    }

    fn end(&mut self, n: u64, id: u128, status: CommandStatus) {
        let asked = self.hosts.get_mut(&n).and_then(|host| host.asked.remove(&id));
        if asked.is_some() {
            self.tell(&format!("{n} tells its client of {id:x}: {status}"));
        }
    }

    /// Hands on what `n`'s clients wait for and no leader has: to the group here, or to the leader's host.
    pub(super) fn hand_on(&mut self, n: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&n) else { return };
        let Some(group) = host.group.as_mut() else { return };
        let (Some(leader), term) = (group.leader().map(|leader| leader.store.0), group.term()) else {
            return;
        };
        let (mut lines, mut ends) = (Vec::new(), Vec::new());
        let ready = |asked: &Asked| !asked.attempt.is_under_way() && asked.not_before <= now;
        for (id, asked) in host.asked.iter_mut().filter(|(_, asked)| ready(asked)) {
            let prerequisite = asked.prerequisite;
            if leader != n {
                let at = host.relay.sent(now, EntryId(*id), term, group.election_timer_ms());
                let number = at.number;
                lines.push(format!(
                    "{n} -> {leader} passes command {id:x} on as number {number}, to the leader of term {term}"
                ));
                let relayed = Relayed { run: host.life, term, at, id: *id, prerequisite, asks: false };
                self.waiting.push_back(Parcel::Command { from: n, to: leader, relayed });
                asked.attempt.handed_on(term);
                asked.number = number;
                continue;
            }
            match group.propose(now, [proposal(*id, prerequisite)]) {
                Ok(range) => {
                    lines.push(format!("{n} proposes {id:x} as entry {}", range.start));
                    asked.attempt.handed_on(term);
                    asked.number = 0;
                }
                // The next leader takes it.
                Err(error) if error.status() == CommandStatus::NotLeader => {}
                Err(error) => ends.push((*id, error.status())),
            }
        }
        for line in lines {
            self.tell(&line);
        }
        for (id, status) in ends {
            self.end(n, id, status);
        }
    }

    /// When `n` should look after what it has relayed, or hand on what was not taken.
    pub(super) fn clients_deadline(&self, n: u64) -> Option<u64> {
        let host = &self.hosts[&n];
        let retries = host.asked.values().filter(|asked| !asked.attempt.is_under_way());
        let retry = retries.map(|asked| asked.not_before).filter(|at| *at > self.now).min();
        [retry, host.relay.next_deadline()].into_iter().flatten().min()
    }

    /// `n` looks after what it has relayed, if it is time.
    pub(super) fn look_after(&mut self, n: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&n) else { return };
        if host.relay.next_deadline().is_none_or(|at| now < at) {
            return;
        }
        let Some(group) = &host.group else { return };
        let (term, timer) = (group.term(), group.election_timer_ms());
        let Some(leader) = group.leader().map(|leader| leader.store.0) else {
            return host.relay.later(now, timer);
        };
        let asked = &host.asked;
        let due = host.relay.due(now, timer, |id, number| {
            asked.get(&id.0).is_some_and(|asked| asked.attempt.is_under_way() && asked.number == number)
        });
        let run = host.life;
        // Of attempts of earlier terms the log will tell.
        for (EntryId(id), _, at) in due.ask.into_iter().filter(|(_, of, _)| *of == term) {
            let RelayNumber { number, floor } = at;
            self.tell(&format!(
                "{n} -> {leader} asks about command {id:x}, number {number} (open from {floor} on)"
            ));
            let relayed = Relayed { run, term, at, id, prerequisite: None, asks: true };
            self.waiting.push_back(Parcel::Command { from: n, to: leader, relayed });
        }
        for (EntryId(id), _) in due.silent.into_iter().filter(|(_, of)| *of == term) {
            self.end(n, id, CommandStatus::TimedOut);
        }
    }

    /// A relayed command, or a question about one, arrives at `n`.
    pub(super) fn relayed(&mut self, from: u64, n: u64, relayed: Relayed) {
        let now = self.now;
        let Relayed { run, term, at, id, prerequisite, asks } = relayed;
        let host = self.hosts.get_mut(&n).expect("it was looked for");
        let group = host.group.as_mut().expect("it was looked for");
        let leads = group.is_leader() && group.term() == term;
        let restored = host.restored;
        let ledger = host.ledgers.entry((from, run)).or_insert_with(|| relay::Ledger::after(restored));
        let verdict = if asks { ledger.asked(term, at, leads) } else { ledger.receive(term, at, leads) };
        let mut status = verdict.status();
        if verdict == Verdict::Take {
            match group.propose(now, [proposal(id, prerequisite)]) {
                Ok(range) => return self.tell(&format!("{n} proposes {id:x} as entry {}", range.start)),
                Err(error) => {
                    ledger.refused(term, at.number);
                    status = Some(error.status());
                }
            }
        }
        let number = at.number;
        let Some(status) = status else {
            return self.tell(&format!("{n} says nothing of command {id:x}, number {number}"));
        };
        self.tell(&format!("{n} -> {from} command {id:x}, number {number} of term {term}: {status}"));
        let answer = Answer { term, number, id, status };
        self.waiting.push_back(Parcel::Answer { from: n, to: from, answer });
    }

    /// The leader's host has answered to `n`.
    pub(super) fn answered(&mut self, n: u64, answer: Answer) {
        let now = self.now;
        let Answer { term, number, id, status } = answer;
        let host = self.hosts.get_mut(&n).expect("it was looked for");
        let asked = host.asked.get_mut(&id).filter(|asked| asked.number == number);
        match asked.map_or(Heard::Late, |asked| asked.attempt.heard(term, status)) {
            Heard::Late => {}
            Heard::Wait => {
                host.relay.in_progress(now, EntryId(id), term, number);
            }
            Heard::HandOn => {
                host.relay.over(number);
                host.asked.entry(id).and_modify(|asked| asked.not_before = now + RETRY_MS);
            }
            Heard::End(status) => self.end(n, id, status),
        }
    }

    /// An entry is applied at `n`: its client hears of it, and those who wait for earlier leaders learn that they wait in vain.
    pub(super) fn applied_entry(&mut self, n: u64, entry: &Entry) {
        self.end(n, entry.id.0, CommandStatus::Success);
        let host = self.hosts.get_mut(&n).expect("it applies");
        if entry.term <= host.applied_term {
            return;
        }
        host.applied_term = entry.term;
        let settled =
            host.asked.iter_mut().filter_map(|(id, a)| a.attempt.settled(entry.term).then_some(*id));
        for id in settled.collect::<Vec<_>>() {
            self.tell(&format!("{n} knows that command {id:x} is in no log"));
        }
    }

    /// A snapshot that ends in `term` took the place of entries at `n`.
    pub(super) fn skipped(&mut self, n: u64, term: Term) {
        let skipped = self.hosts[&n].asked.iter().filter(|(_, asked)| asked.attempt.skipped(term));
        for id in skipped.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tell(&format!("{n} cannot tell whether {id:x} is in the snapshot"));
            self.end(n, id, CommandStatus::TimedOut);
        }
    }
}
