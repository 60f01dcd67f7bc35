//! A replica's host: its disk, its state machine, and how it carries out what the core asks for.

use std::collections::BTreeMap;

use pontoon_raft_core::*;

use super::clients::Asked;
use super::{Interpreter, Parcel, number, replica};

/// A replica with what a store has around it.
pub(super) struct Host {
    pub(super) group: Option<Group<MemLog>>,
    pub(super) log: MemLog,
    pub(super) held: bool,
    pub(super) tickets: Vec<Ticket>,
    pub(super) hard_state: HardState,
    pub(super) durable: HardState,
    /// The log's end if the power failed now.
    pub(super) durable_last: LogIndex,
    pub(super) snapshot: SnapshotMeta,
    pub(super) applied: LogIndex,
    pub(super) role: (Role, Term, Option<ReplicaId>),
    /// Commands whose clients wait here, as a store keeps them.
    pub(super) asked: BTreeMap<u128, Asked>,
    /// What it has relayed to leaders elsewhere, and what others have relayed to it, in each of their lives.
    pub(super) relay: relay::Relay,
    pub(super) ledgers: BTreeMap<(u64, u64), relay::Ledger>,
    /// Which life this is, of all hosts' lives.
    pub(super) life: u64,
    /// The term that was stored when it started; the highest there is if that is in doubt.
    pub(super) restored: Term,
    /// The latest term of which an entry was applied here.
    pub(super) applied_term: Term,
    /// It starts in doubt, until that is settled.
    pub(super) doubt: bool,
}

impl Host {
    /// The process ends, and what it had in memory.
    pub(super) fn die(&mut self) {
        self.group = None;
        self.tickets.clear();
        self.asked.clear();
        self.held = false;
    }
}

impl Interpreter {
    pub(super) fn cluster(&mut self, words: &[&str]) {
        *self = Self { lives: self.lives, trace: std::mem::take(&mut self.trace), ..Self::default() };
        let (voters, mut learners, mut joining) = (number(words[1]), 0, 0);
        for word in &words[2..] {
            match word.split_once('=') {
                Some(("learners", n)) => learners = number(n),
                Some(("joining", n)) => joining = number(n),
                Some(("quiesce", ms)) => self.config.quiesce_after_ms = Some(number(ms)),
                Some(("lease", ms)) => self.config.lease_margin_ms = Some(number(ms)),
                Some(("append", bytes)) => self.config.append_bytes_max = number(bytes),
                Some(("inflight", n)) => {
                    self.config.inflight_messages_max = usize::try_from(number(n)).expect("small");
                }
                Some(("window", bytes)) => self.config.inflight_bytes_max = number(bytes),
                Some(("uncommitted", bytes)) => self.config.uncommitted_bytes_max = number(bytes),
                Some(("priority", of)) => {
                    let (n, priority) = of.split_once(':').expect("N:P");
                    self.priorities.insert(number(n), u32::try_from(number(priority)).expect("small"));
                }
                _ if *word == "align" => self.config.align_heartbeats = true,
                _ if *word == "nopv" => self.config.pre_vote = false,
                _ if *word == "nocq" => self.config.check_quorum = false,
                _ => panic!("unknown option {word}"),
            }
        }
        let configuration = Configuration {
            voters: (1..=voters).map(replica).collect(),
            learners: (voters + 1..=voters + learners).map(replica).collect(),
            ..Configuration::default()
        };
        for n in 1..=voters + learners + joining {
            let known = if n <= voters + learners { configuration.clone() } else { Configuration::default() };
            let host = Host {
                group: None,
                log: MemLog::default(),
                held: false,
                tickets: Vec::new(),
                hard_state: HardState::default(),
                durable: HardState::default(),
                durable_last: LogIndex::ZERO,
                snapshot: SnapshotMeta { configuration: known, ..SnapshotMeta::default() },
                applied: LogIndex::ZERO,
                role: (Role::Follower, Term::ZERO, None),
                asked: BTreeMap::new(),
                relay: relay::Relay::default(),
                ledgers: BTreeMap::new(),
                life: 0,
                restored: Term::ZERO,
                applied_term: Term::ZERO,
                doubt: false,
            };
            self.hosts.insert(n, host);
            self.start(n);
        }
    }

    pub(super) fn start(&mut self, n: u64) {
        self.lives += 1;
        let priority = self.priorities.get(&n).copied().unwrap_or(self.config.priority);
        let config = Config { id: replica(n), seed: self.lives, priority, ..self.config.clone() };
        let now = self.now;
        let host = self.hosts.get_mut(&n).unwrap();
        host.life = self.lives;
        host.restored = if host.doubt { Term(u64::MAX) } else { host.hard_state.term };
        (host.relay, host.ledgers) = (relay::Relay::default(), BTreeMap::new());
        let initial = InitialState {
            hard_state: host.hard_state,
            commit: LogIndex::ZERO,
            applied: host.applied,
            snapshot: host.snapshot.clone(),
            last_index: host.log.last(),
            doubt: host.doubt,
        };
        host.group = Some(Group::new(config, initial, host.log.clone(), now).unwrap());
    }

    /// Carries out what all replicas ask for.
    pub(super) fn drive(&mut self) {
        for n in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.hand_on(n);
            while self.hosts[&n].group.as_ref().is_some_and(Group::has_ready) {
                let ready = self.group(n).ready();
                self.carry_out(n, ready);
                self.hand_on(n);
            }
        }
    }

    fn carry_out(&mut self, n: u64, ready: Ready) {
        let (now, mut lines) = (self.now, Vec::new());
        let (mut skipped, mut applied) = (None, Vec::new());
        let host = self.hosts.get_mut(&n).unwrap();
        if host.doubt && !host.group.as_ref().unwrap().in_doubt() {
            host.doubt = false;
            lines.push(format!("{n} is in doubt no more"));
        }
        if let Some(change) = ready.state_change {
            let role = (change.role, change.term, change.leader);
            if role != host.role {
                host.role = role;
                let leader =
                    change.leader.map_or_else(|| "unknown".into(), |leader| leader.store.0.to_string());
                lines.push(format!("{n} is {} of term {}, leader {leader}", change.role, change.term));
            }
        }
        for message in ready.messages {
            lines.push(message.to_string());
            let read = |append: &mut AppendEntries| {
                let Entries::Interval { last, .. } = append.entries else { return };
                let range = append.prev_log_index.next()..last.next();
                append.entries = Entries::Inline(host.log.entries(range, u64::MAX).unwrap());
            };
            let mut message = message;
            // The persist below must be readable first.
            if let Some(persist) = &ready.persist
                && !host.tickets.contains(&persist.ticket)
            {
                host.log.write(persist);
                host.tickets.push(persist.ticket);
            }
            if let Body::AppendEntries(append) = &mut message.body {
                read(append);
            }
            self.waiting.push_back(Parcel::Core(message));
        }
        if let Some(persist) = ready.persist {
            if !host.tickets.contains(&persist.ticket) {
                host.log.write(&persist);
                host.tickets.push(persist.ticket);
            }
            host.hard_state = persist.hard_state.unwrap_or(host.hard_state);
            let mut what = Vec::new();
            if let Some(state) = persist.hard_state {
                let vote = state.voted_for.map_or_else(|| "nobody".into(), |id| id.store.0.to_string());
                what.push(format!("term {} vote {vote}", state.term));
            }
            if let Some(snapshot) = persist.snapshot {
                what.push(format!("snapshot {}", snapshot.index));
                skipped = Some(snapshot.term);
                host.applied = snapshot.index;
                host.snapshot = snapshot;
            }
            if let Some(from) = persist.truncate_from {
                what.push(format!("cut from {from}"));
                host.durable_last = host.durable_last.min(from.prev());
            }
            if !persist.entries.is_empty() {
                let entries: Vec<_> =
                    persist.entries.iter().map(|e| format!("{}@{}", e.index, e.term)).collect();
                what.push(format!("entries {}", entries.join(" ")));
            }
            lines.push(format!(
                "{n} writes {}{}",
                what.join(", "),
                if host.held { " (not durable)" } else { "" }
            ));
            if !host.held {
                host.tickets.clear();
                host.durable = host.hard_state;
                host.durable_last = host.log.last();
                host.group.as_mut().unwrap().persisted(now, persist.ticket);
            }
        }
        if let Some(range) = ready.committed {
            let entries = host.log.entries(range.clone(), u64::MAX).unwrap();
            let what: Vec<_> = entries
                .iter()
                .map(|entry| match &entry.payload {
                    Payload::Noop => format!("{} no-op", entry.index),
                    Payload::Command(_) => format!("{} command {:x}", entry.index, entry.id.0),
                    Payload::Configuration(_) => format!("{} configuration", entry.index),
                    Payload::ElectionTimer { millis } => format!("{} timer {millis}", entry.index),
                })
                .collect();
            lines.push(format!("{n} applies {}", what.join(", ")));
            host.applied = range.end.prev();
            host.group.as_mut().unwrap().applied(range.end.prev());
            applied = entries;
        }
        for read in ready.reads {
            let index = read.index.map_or_else(|| "ask again".into(), |index| format!("index {index}"));
            lines.push(format!("{n} read {}: {index}", read.context));
        }
        for dropped in ready.dropped {
            lines.push(format!("{n} command {:x} was overwritten: {}", dropped.id.0, dropped.status));
        }
        for ServerChangeDone { replica, add, outcome } in ready.server_changes {
            let what = if add { "adding" } else { "removing" };
            lines.push(format!("{n} {what} {}: {outcome:?}", replica.store.0));
        }
        for line in lines {
            self.say(&line);
        }
        if let Some(term) = skipped {
            self.skipped(n, term);
        }
        for entry in applied {
            self.applied_entry(n, &entry);
        }
    }
}
