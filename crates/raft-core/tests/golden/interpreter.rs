//! The commands of the golden scripts.
//!
//! ```text
//! cluster N [learners=M] [joining=K]                  N voters, M learners, K replicas that know nobody
//!     quiesce=MS lease=MARGIN nopv nocq               when to fall silent; leases; no pre-vote; no check-quorum
//!     align                                           heartbeats when a multiple of their interval is reached
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
//! ask N ID[:P]..      clients of N's host: it proposes, or passes the command to the leader's host, and waits for the id; after P
//! impatient N ID      the client waits no longer
//! hold N | release N  N's disk hangs | syncs all      crash N      what N did not sync is lost; N starts again
//! stop N | start N    a clean stop                    lost N       N's host saw the leader's store die
//! tear N [I TERM VOTE]   N starts again in doubt; its disk has lost what is behind I, and knows TERM and VOTE (0: none)
//! wake N              unreachable N M                 fail N       N's disk fails          link N M   it stands again
//! cut A>B             messages are lost               mend         isolate N
//! deliver A>B         what waits on the link          drop A>B     is lost           deliver   what waits now
//! repeat A>B          delivered, and still waiting    late A>B     the newest first
//! settle              delivers until nothing waits    status N..
//! quiet CMD           without the trace               commands CMD   with what concerns clients' commands only
//! step A>B TERM WHAT  a forged message: hb R C, app P T C I@T.., acc I, vote I T
//! ```

mod clients;
mod forged;
mod host;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use clients::{Answer, Relayed};
use host::Host;
use pontoon_raft_core::*;

/// What travels between two stores.
#[derive(Clone)]
enum Parcel {
    Core(Message),
    /// A host passes a command to the leader that it knows of, or asks about one.
    Command {
        from: u64,
        to: u64,
        relayed: Relayed,
    },
    /// What that one's host says of it.
    Answer {
        from: u64,
        to: u64,
        answer: Answer,
    },
}

impl Parcel {
    fn link(&self) -> (u64, u64) {
        match self {
            Self::Core(message) => (message.from.store.0, message.to.store.0),
            Self::Command { from, to, .. } | Self::Answer { from, to, .. } => (*from, *to),
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
    /// What of the last line's trace is about clients' commands.
    told: String,
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
            let (quiet, commands) = (words[0] == "quiet", words[0] == "commands");
            let before = self.trace.len();
            self.told.clear();
            self.command(if quiet || commands { &words[1..] } else { &words });
            self.drive();
            if quiet || commands {
                self.trace.truncate(before);
            }
            if commands {
                self.trace.push_str(&self.told);
            }
        }
        std::mem::take(&mut self.trace)
    }

    fn say(&mut self, line: &str) {
        writeln!(self.trace, "{line}").unwrap();
    }

    /// Says something about a client's command.
    fn tell(&mut self, line: &str) {
        writeln!(self.told, "{line}").unwrap();
        self.say(line);
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
            "tick" => {
                self.group(arg(1)).tick(now);
                self.look_after(arg(1));
            }
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
                let result = result.map_err(|error| format!("{} ({error})", error.status()));
                self.result(result.map(|range| format!("entries {} to {}", range.start, range.end.prev())));
            }
            "prereq" => {
                let proposal = Proposal {
                    prerequisite: Some(EntryId(arg(3).into())),
                    ..Proposal::new(EntryId(arg(2).into()), "p")
                };
                let result = self.group(arg(1)).propose(now, [proposal]);
                let result = result.map_err(|error| format!("{} ({error})", error.status()));
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
                for word in &words[2..] {
                    let (id, prerequisite) = match word.split_once(":") {
                        Some((id, after)) => (id, Some(EntryId(number(after).into()))),
                        None => (*word, None),
                    };
                    self.ask(arg(1), number(id).into(), prerequisite);
                }
            }
            "impatient" => self.give_up(arg(1), arg(2).into()),
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
                if words[0] == "stop" {
                    self.end_all(arg(1), CommandStatus::Shutdown);
                }
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                host.die();
                if words[0] == "crash" {
                    host.log.truncate(host.durable_last.next());
                    host.hard_state = host.durable;
                    self.start(arg(1));
                }
            }
            "start" => self.start(arg(1)),
            "tear" => {
                let host = self.hosts.get_mut(&arg(1)).unwrap();
                host.die();
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
            "fail" => {
                self.group(arg(1)).persist_failed();
                self.end_all(arg(1), CommandStatus::IoError);
            }
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
                let message = forged::message(words);
                self.deliver(Parcel::Core(message));
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
            let next = running.filter_map(|(n, group)| {
                let deadlines = [group.next_deadline(), self.clients_deadline(n)];
                Some((deadlines.into_iter().flatten().min()?, n))
            });
            let Some((deadline, n)) = next.min().filter(|(deadline, _)| *deadline <= end) else { break };
            self.now = self.now.max(deadline);
            let now = self.now;
            self.group(n).tick(now);
            self.look_after(n);
            self.settle();
        }
        self.now = end;
    }

    fn result<E: std::fmt::Display>(&mut self, result: Result<String, E>) {
        let line = result.unwrap_or_else(|error| format!("refused: {error}"));
        self.say(&line);
    }

    fn deliver(&mut self, parcel: Parcel) {
        let now = self.now;
        if self.cut.contains(&parcel.link()) {
            return;
        }
        let (_, to) = parcel.link();
        let Some(group) = self.hosts.get_mut(&to).and_then(|host| host.group.as_mut()) else {
            return;
        };
        match parcel {
            Parcel::Command { from, relayed, .. } => self.relayed(from, to, relayed),
            Parcel::Answer { answer, .. } => self.answered(to, answer),
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
}
