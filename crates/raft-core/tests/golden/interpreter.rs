//! The commands of the golden scripts.
//!
//! ```text
//! cluster N [learners=M] [joining=K]                  N voters, M learners, K replicas that know nobody
//!     quiesce=MS lease=MARGIN nopv nocq               when to fall silent; leases; no pre-vote; no check-quorum
//!     append=BYTES inflight=N window=BYTES uncommitted=BYTES   bounds          priority=N:P   of one replica
//! at MS               the time is now MS              tick N       replica N is told the time
//! run MS              time passes; every deadline is kept, every message delivered
//! campaign N          N takes leadership              timeout N    time passes until N's deadline; N is told
//! propose N ID..      commands                        prereq N ID P  a command that needs P before it
//! read N CONTEXT      a read index                    transfer N M | transfer N best
//! change N +4 ~5 -2   add voter, learner; remove      joint N ..   the same, to stay      leave N
//! add N M | kick N M  a server, with its phases       phases N     of the servers that are added or removed
//! timer N [MS]        the election timer              compact N I  entries before I are dropped
//! limit N FLOOR       how far it may compact          credit N M BYTES|none   what the transport takes for M
//! ask N ID..          clients of N's host: it proposes, or passes the command to the leader's host, and waits for the id
//! hold N | release N  N's disk hangs | syncs all      crash N      what N did not sync is lost; N starts again
//! stop N | start N    a clean stop                    lost N       N's host saw the leader's store die
//! tear N [I TERM VOTE]   N starts again in doubt; its disk has lost what is behind I, and knows TERM and VOTE (0: none)
//! wake N              unreachable N M                 fail N       N's disk fails          link N M   it stands again
//! cut A>B             messages are lost               mend         isolate N
//! deliver A>B         what waits on the link          drop A>B     is lost           deliver   what waits now
//! repeat A>B          delivered, and still waiting    late A>B     the newest first
//! settle              delivers until nothing waits    status N..   quiet CMD         without the trace
//! step A>B TERM WHAT  a forged message: hb R C, app P T C I@T.., acc I, vote I T
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use pontoon_raft_core::*;

struct Host {
    group: Option<Group<MemLog>>,
    log: MemLog,
    held: bool,
    tickets: Vec<Ticket>,
    hard_state: HardState,
    durable: HardState,
    /// The log's end if the power failed now.
    durable_last: LogIndex,
    snapshot: SnapshotMeta,
    applied: LogIndex,
    role: (Role, Term, Option<ReplicaId>),
    /// Commands whose clients wait here, as a store keeps them.
    asked: BTreeMap<u128, Attempt>,
    /// The latest term of which an entry was applied here.
    applied_term: Term,
    /// It starts in doubt, until that is settled.
    doubt: bool,
}

/// What travels between two stores.
#[derive(Clone)]
enum Parcel {
    Core(Message),
    /// A host passes a command to the leader that it knows of.
    Command {
        from: u64,
        to: u64,
        term: Term,
        id: u128,
    },
    /// Its answer, if nothing was appended.
    NotTaken {
        from: u64,
        to: u64,
        term: Term,
        id: u128,
    },
}

impl Parcel {
    fn link(&self) -> (u64, u64) {
        match self {
            Self::Core(message) => (message.from.store.0, message.to.store.0),
            Self::Command { from, to, .. } | Self::NotTaken { from, to, .. } => (*from, *to),
        }
    }
}

#[derive(Default)]
pub(crate) struct Interpreter {
    hosts: BTreeMap<u64, Host>,
    config: Config,
    now: u64,
    priorities: BTreeMap<u64, u32>,
    waiting: VecDeque<Parcel>,
    cut: BTreeSet<(u64, u64)>,
    lives: u64,
    trace: String,
}

fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("a number is expected: {word}"))
}

fn link(word: &str) -> (u64, u64) {
    let (from, to) = word.split_once('>').unwrap_or_else(|| panic!("a link is expected: {word}"));
    (number(from), number(to))
}

impl Interpreter {
    pub(crate) fn run(&mut self, input: &str) -> String {
        for line in input.lines() {
            writeln!(self.trace, "> {line}").unwrap();
            let words: Vec<_> = line.split_whitespace().collect();
            let quiet = words.first() == Some(&"quiet");
            let before = self.trace.len();
            self.command(if quiet { &words[1..] } else { &words });
            self.drive();
            if quiet {
                self.trace.truncate(before);
            }
        }
        std::mem::take(&mut self.trace)
    }

    fn say(&mut self, line: &str) {
        writeln!(self.trace, "{line}").unwrap();
    }

    fn group(&mut self, n: u64) -> &mut Group<MemLog> {
        self.hosts
            .get_mut(&n)
            .and_then(|host| host.group.as_mut())
            .unwrap_or_else(|| panic!("{n} is not running"))
    }

    fn command(&mut self, words: &[&str]) {
        let now = self.now;
        let arg = |i: usize| number(words[i]);
        match words[0] {
            "cluster" => self.cluster(words),
            "at" => self.now = arg(1),
            "tick" => self.group(arg(1)).tick(now),
            "timeout" => {
                let Some(deadline) = self.group(arg(1)).next_deadline() else {
                    return self.say("no deadline");
                };
                self.now = self.now.max(deadline);
                let now = self.now;
                self.group(arg(1)).tick(now);
            }
            "run" => self.run_for(arg(1)),
            "campaign" => self.group(arg(1)).campaign(now),
            "resign" => self.group(arg(1)).resign(now),
            "propose" => {
                let proposals: Vec<_> = words[2..]
                    .iter()
                    .map(|id| Proposal::new(EntryId(number(id).into()), vec![b'x'; 8]))
                    .collect();
                let result = self.group(arg(1)).propose(now, proposals);
                self.result(result.map(|range| format!("entries {} to {}", range.start, range.end.prev())));
            }
            "prereq" => {
                let proposal = Proposal {
                    prerequisite: Some(EntryId(arg(3).into())),
                    ..Proposal::new(EntryId(arg(2).into()), "p")
                };
                let result = self.group(arg(1)).propose(now, [proposal]);
                self.result(result.map(|range| format!("entry {}", range.start)));
            }
            "add" | "kick" => {
                let (group, server) = (self.group(arg(1)), replica(arg(2)));
                let result = match words[0] {
                    "add" => group.add_server(now, server),
                    _ => group.remove_server(now, server),
                };
                self.result(result.map(|phase| format!("{phase}")));
            }
            "phases" => {
                let changes = self.group(arg(1)).status().server_changes;
                for (server, phase) in &changes {
                    self.say(&format!("{}: {phase}", server.store.0));
                }
                if changes.is_empty() {
                    self.say("none");
                }
            }
            "limit" => {
                let limit = self.group(arg(1)).compaction_limit(LogIndex(arg(2)));
                self.say(&format!("up to {limit}"));
            }
            "credit" => {
                let bytes = (words[3] != "none").then(|| arg(3));
                self.group(arg(1)).send_credit(now, replica(arg(2)), bytes);
            }
            "link" => self.group(arg(1)).link_established(now, replica(arg(2))),
            "ask" => {
                for id in &words[2..] {
                    let host = self.hosts.get_mut(&arg(1)).unwrap();
                    host.asked.insert(number(id).into(), Attempt::default());
                }
            }
            "read" => self.group(arg(1)).read_index(now, arg(2)),
            "transfer" => {
                let to = (words[2] != "best").then(|| replica(arg(2)));
                let result = self.group(arg(1)).transfer_leadership(now, to);
                self.result(result.map(|()| "transferring".into()));
            }
            "change" | "joint" | "leave" => {
                let changes = words[2..].iter().map(|word| {
                    let id = replica(number(&word[1..]));
                    match &word[..1] {
                        "+" => MemberChange::AddVoter(id),
                        "~" => MemberChange::AddLearner(id),
                        _ => MemberChange::Remove(id),
                    }
                });
                let change = match words[0] {
                    "change" => ConfigurationChange::Change(changes.collect()),
                    "joint" => ConfigurationChange::EnterJoint(changes.collect()),
                    _ => ConfigurationChange::Leave,
                };
                let result = self.group(arg(1)).propose_configuration(now, EntryId::NONE, &change);
                self.result(result.map(|index| format!("entry {index}")));
            }
            "timer" if words.len() == 2 => {
                let millis = self.group(arg(1)).election_timer_ms();
                self.say(&format!("{millis} ms"));
            }
            "timer" => {
                let result = self.group(arg(1)).propose_election_timer(now, EntryId::NONE, arg(2));
                self.result(result.map(|index| format!("entry {index}")));
            }
            "compact" => {
                let first = LogIndex(arg(2));
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                let group = host.group.as_mut().unwrap();
                host.snapshot = group.snapshot_meta(first.prev()).expect("what is compacted is committed");
                host.log.compact(first);
                group.compacted(first);
            }
            "hold" => self.hosts.get_mut(&arg(1)).unwrap().held = true,
            "release" => {
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                host.held = false;
                host.durable = host.hard_state;
                host.durable_last = host.log.last();
                if let Some(ticket) = host.tickets.drain(..).next_back() {
                    host.group.as_mut().unwrap().persisted(now, ticket);
                }
            }
            "crash" | "stop" => {
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                host.group = None;
                host.tickets.clear();
                host.asked.clear();
                host.held = false;
                if words[0] == "crash" {
                    host.log.truncate(host.durable_last.next());
                    host.hard_state = host.durable;
                    self.start(arg(1));
                }
            }
            "start" => self.start(arg(1)),
            "tear" => {
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                host.group = None;
                host.tickets.clear();
                host.asked.clear();
                host.held = false;
                host.doubt = true;
                let mut last = host.durable_last;
                host.hard_state = host.durable;
                if words.len() > 2 {
                    last = LogIndex(arg(2));
                    let voted_for = (arg(4) > 0).then(|| replica(arg(4)));
                    host.hard_state = HardState { term: Term(arg(3)), voted_for };
                }
                host.log.truncate(last.next());
                host.durable_last = last;
                host.durable = host.hard_state;
                host.applied = host.applied.min(last);
                self.start(arg(1));
            }
            "fail" => self.group(arg(1)).persist_failed(),
            "lost" => self.group(arg(1)).leader_lost(now),
            "wake" => self.group(arg(1)).wake(now),
            "unreachable" => self.group(arg(1)).unreachable(now, replica(arg(2))),
            "cut" => {
                self.cut.insert(link(words[1]));
            }
            "isolate" => {
                for other in self.hosts.keys() {
                    self.cut.insert((*other, arg(1)));
                    self.cut.insert((arg(1), *other));
                }
            }
            "mend" => self.cut.clear(),
            "deliver" | "drop" | "repeat" | "late" => {
                let wanted = words.get(1).map(|word| link(word));
                let mut chosen = VecDeque::new();
                for parcel in std::mem::take(&mut self.waiting) {
                    if wanted.is_some_and(|wanted| wanted != parcel.link()) {
                        self.waiting.push_back(parcel);
                    } else if words[0] == "late" {
                        chosen.push_front(parcel);
                    } else {
                        if words[0] == "repeat" {
                            self.waiting.push_back(parcel.clone());
                        }
                        chosen.push_back(parcel);
                    }
                }
                if words[0] != "drop" {
                    chosen.into_iter().for_each(|parcel| self.deliver(parcel));
                }
            }
            "settle" => self.settle(),
            "status" => {
                for word in &words[1..] {
                    let status = self.group(number(word)).status();
                    let line = format!("{status}{}", if status.quiesced { ", quiesced" } else { "" });
                    self.say(&line.replace("000000000000000", "").replace("/1", ""));
                }
            }
            "step" => {
                let (from, to) = link(words[1]);
                let body = match words[3] {
                    "hb" => Body::Heartbeat(Heartbeat {
                        round: arg(4),
                        leader_commit: LogIndex(arg(5)),
                        quiesce: false,
                    }),
                    "acc" => Body::AppendReply(AppendReply::Accepted { match_index: LogIndex(arg(4)) }),
                    "vote" => Body::RequestVote(VoteRequest {
                        last_log_index: LogIndex(arg(4)),
                        last_log_term: Term(arg(5)),
                        leadership_transfer: false,
                    }),
                    "app" => {
                        let entries = words[7..].iter().map(|word| {
                            let (index, term) = word.split_once('@').unwrap();
                            let id = EntryId(u128::from(number(index)) << 8 | u128::from(number(term)));
                            let payload = Payload::Command("f".into());
                            Entry { index: LogIndex(number(index)), term: Term(number(term)), id, payload }
                        });
                        Body::AppendEntries(AppendEntries {
                            prev_log_index: LogIndex(arg(4)),
                            prev_log_term: Term(arg(5)),
                            leader_commit: LogIndex(arg(6)),
                            entries: Entries::Inline(entries.collect()),
                        })
                    }
                    other => panic!("unknown message {other}"),
                };
                let (from, to) = (replica(from), replica(to));
                self.deliver(Parcel::Core(Message { from, to, term: Term(arg(2)), doubt: None, body }));
            }
            other => panic!("unknown command {other}"),
        }
    }

    /// Delivers until nothing waits.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.drive();
            let Some(parcel) = self.waiting.pop_front() else { return };
            self.deliver(parcel);
        }
        panic!("it never settles");
    }

    fn run_for(&mut self, millis: u64) {
        let end = self.now + millis;
        self.settle();
        loop {
            let running = self.hosts.iter().filter_map(|(n, host)| Some((*n, host.group.as_ref()?)));
            let next = running.filter_map(|(n, group)| Some((group.next_deadline()?, n))).min();
            let Some((deadline, n)) = next.filter(|(deadline, _)| *deadline <= end) else { break };
            self.now = self.now.max(deadline);
            let now = self.now;
            self.group(n).tick(now);
            self.settle();
        }
        self.now = end;
    }

    fn result<E: std::fmt::Display>(&mut self, result: Result<String, E>) {
        let line = result.unwrap_or_else(|error| format!("refused: {error}"));
        self.say(&line);
    }

    fn cluster(&mut self, words: &[&str]) {
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
                applied_term: Term::ZERO,
                doubt: false,
            };
            self.hosts.insert(n, host);
            self.start(n);
        }
    }

    fn start(&mut self, n: u64) {
        self.lives += 1;
        let priority = self.priorities.get(&n).copied().unwrap_or(self.config.priority);
        let config = Config { id: replica(n), seed: self.lives, priority, ..self.config.clone() };
        let now = self.now;
        let host = self.hosts.get_mut(&n).unwrap();
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

    /// Hands on what `n`'s clients wait for and no leader has: to the group here, or to the leader's host.
    fn hand_on(&mut self, n: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&n) else { return };
        let Some(group) = host.group.as_mut() else { return };
        let (Some(leader), term) = (group.leader().map(|leader| leader.store.0), group.term()) else {
            return;
        };
        let mut lines = Vec::new();
        for (id, attempt) in host.asked.iter_mut().filter(|(_, attempt)| !attempt.is_under_way()) {
            if leader != n {
                lines.push(format!("{n} -> {leader} passes command {id:x} on, to the leader of term {term}"));
                self.waiting.push_back(Parcel::Command { from: n, to: leader, term, id: *id });
                attempt.handed_on(term);
            } else if let Ok(range) = group.propose(now, [Proposal::new(EntryId(*id), "command!")]) {
                lines.push(format!("{n} proposes {id:x} as entry {}", range.start));
                attempt.handed_on(term);
            }
        }
        for line in lines {
            self.say(&line);
        }
    }

    fn deliver(&mut self, parcel: Parcel) {
        let now = self.now;
        if self.cut.contains(&parcel.link()) {
            return;
        }
        let (from, to) = parcel.link();
        let Some(group) = self.hosts.get_mut(&to).and_then(|host| host.group.as_mut()) else {
            return;
        };
        match parcel {
            Parcel::Command { term, id, .. } => {
                let fits = group.is_leader() && group.term() == term;
                let proposed =
                    fits.then(|| group.propose(now, [Proposal::new(EntryId(id), "command!")]).ok()).flatten();
                if let Some(range) = proposed {
                    self.say(&format!("{to} proposes {id:x} as entry {}", range.start));
                } else {
                    self.say(&format!("{to} -> {from} does not take command {id:x} in term {term}"));
                    self.waiting.push_back(Parcel::NotTaken { from: to, to: from, term, id });
                }
            }
            Parcel::NotTaken { term, id, .. } => {
                if let Some(attempt) = self.hosts.get_mut(&to).and_then(|host| host.asked.get_mut(&id)) {
                    attempt.refused(term);
                }
            }
            Parcel::Core(message) => {
                let (sender, receiver) = (message.from, message.to);
                let snapshot = matches!(message.body, Body::InstallSnapshot(_));
                if let Err(error) = group.step(now, message) {
                    let line =
                        format!("{to} refuses: {error}").replace("000000000000000", "").replace("/1", "");
                    self.say(&line);
                }
                if snapshot
                    && let Some(group) =
                        self.hosts.get_mut(&sender.store.0).and_then(|host| host.group.as_mut())
                {
                    group.snapshot_sent(now, receiver, true);
                }
            }
        }
        self.drive();
    }

    /// Carries out what all replicas ask for.
    fn drive(&mut self) {
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
                host.asked.retain(|id, attempt| {
                    let unknown = attempt.skipped(snapshot.term);
                    if unknown {
                        lines.push(format!("{n} tells its client that the outcome of {id:x} is unknown"));
                    }
                    !unknown
                });
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
            for entry in &entries {
                if host.asked.remove(&entry.id.0).is_some() {
                    lines.push(format!("{n} tells its client that {:x} is done", entry.id.0));
                }
                if entry.term > host.applied_term {
                    host.applied_term = entry.term;
                    for (id, _) in
                        host.asked.iter_mut().filter_map(|(id, a)| a.settled(entry.term).then_some((id, a)))
                    {
                        lines.push(format!("{n} knows that command {id:x} is in no log"));
                    }
                }
            }
            host.applied = range.end.prev();
            host.group.as_mut().unwrap().applied(range.end.prev());
        }
        for read in ready.reads {
            let index = read.index.map_or_else(|| "ask again".into(), |index| format!("index {index}"));
            lines.push(format!("{n} read {}: {index}", read.context));
        }
        for dropped in ready.dropped {
            lines.push(format!("{n} command {:x} was overwritten", dropped.id.0));
        }
        for ServerChangeDone { replica, add, outcome } in ready.server_changes {
            let what = if add { "adding" } else { "removing" };
            lines.push(format!("{n} {what} {}: {outcome:?}", replica.store.0));
        }
        for line in lines {
            self.say(&line);
        }
    }
}
