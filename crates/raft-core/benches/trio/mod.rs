//! Three replicas in memory, driven in one thread: what the benchmarks measure.

use std::collections::VecDeque;

use bytes::Bytes;
use pontoon_raft_core::*;

/// The size of a command, as the figures name it.
pub(crate) const COMMAND_BYTES: usize = 256;

/// The log is cut after this many entries, so that memory stays flat.
const COMPACT_AFTER: u64 = 20_000;

/// A command of [`COMMAND_BYTES`]: the one buffer that an entry is made of.
pub(crate) fn command() -> Vec<u8> {
    vec![b'x'; COMMAND_BYTES]
}

struct Replica {
    group: Group<MemLog>,
    log: MemLog,
    /// Its buffers are used again and again.
    ready: Ready,
    inbox: VecDeque<Message>,
    snapshot: SnapshotMeta,
    applied: LogIndex,
}

/// Three replicas, the first of them the leader.
pub(crate) struct Trio {
    replicas: Vec<Replica>,
    next_id: u128,
    /// Buffers of entries that this host, not the core, made for messages.
    pub(crate) wire_buffers: u64,
}

fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

impl Trio {
    pub(crate) fn new() -> Self {
        let snapshot = SnapshotMeta {
            configuration: Configuration::of_voters((1..=3).map(replica)),
            ..SnapshotMeta::default()
        };
        let replicas = (1..=3).map(|n| {
            let config = Config { id: replica(n), seed: n, ..Config::default() };
            let initial = InitialState { snapshot: snapshot.clone(), ..InitialState::default() };
            let log = MemLog::default();
            let group = Group::new(config, initial, log.clone(), 0).expect("a new group");
            let (ready, inbox, applied) = (Ready::default(), VecDeque::new(), LogIndex::ZERO);
            Replica { group, log, ready, inbox, snapshot: snapshot.clone(), applied }
        });
        let mut trio = Self { replicas: replicas.collect(), next_id: 0, wire_buffers: 0 };
        trio.replicas[0].group.campaign(0);
        while !trio.replicas[0].group.is_leader() || !trio.agreed() {
            trio.turn();
        }
        trio
    }

    /// Whether all have applied all.
    fn agreed(&self) -> bool {
        let last = self.replicas[0].group.last_index();
        self.replicas.iter().all(|replica| replica.applied == last)
    }

    /// `batch` commands enter the leader's log.
    fn propose(&mut self, batch: u64) {
        let next_id = &mut self.next_id;
        let commands = (0..batch).map(|_| {
            *next_id += 1;
            Proposal { id: EntryId(*next_id), data: Bytes::from(command()), prerequisite: None }
        });
        self.replicas[0].group.propose(0, commands).expect("the leader has room");
    }

    /// Each replica takes what arrived and does what is to do.
    fn turn(&mut self) {
        for i in 0..self.replicas.len() {
            let mut inbox = std::mem::take(&mut self.replicas[i].inbox);
            for message in inbox.drain(..) {
                self.replicas[i].group.step(0, message).expect("peers tell the truth");
            }
            self.replicas[i].inbox = inbox;
            while self.replicas[i].group.has_ready() {
                self.carry_out(i);
            }
        }
    }

    fn carry_out(&mut self, i: usize) {
        let mut ready = std::mem::take(&mut self.replicas[i].ready);
        let replica = &mut self.replicas[i];
        replica.group.ready_into(&mut ready);
        if let Some(persist) = &ready.persist {
            replica.log.write(persist);
            replica.group.persisted(0, persist.ticket);
        }
        let log = replica.log.clone();
        for mut message in ready.messages.drain(..) {
            if let Body::AppendEntries(append) = &mut message.body
                && let Entries::Interval { last, .. } = append.entries
            {
                let range = append.prev_log_index.next()..last.next();
                self.wire_buffers += u64::from(!range.is_empty());
                append.entries = Entries::Inline(log.entries(range, u64::MAX).expect("the log is there"));
            }
            let to = usize::try_from(message.to.store.0 - 1).expect("three of them");
            self.replicas[to].inbox.push_back(message);
        }
        let replica = &mut self.replicas[i];
        if let Some(range) = ready.committed.clone() {
            replica.applied = range.end.prev();
            replica.group.applied(replica.applied);
            // What all have is kept a while, as any host does.
            if replica.applied.0 >= replica.snapshot.index.0 + 2 * COMPACT_AFTER {
                let upto = LogIndex(replica.applied.0 - COMPACT_AFTER);
                replica.snapshot = replica.group.snapshot_meta(upto).expect("committed");
                replica.log.compact(upto.next());
                replica.group.compacted(upto.next());
            }
        }
        replica.ready = ready;
    }

    /// Proposes a batch and waits until all three have applied it, `entries` in all.
    pub(crate) fn lockstep(&mut self, batch: u64, entries: u64) {
        for _ in 0..entries / batch {
            self.propose(batch);
            while !self.agreed() {
                self.turn();
            }
        }
    }

    /// Proposes a batch each turn, and waits only at the end.
    pub(crate) fn pipelined(&mut self, batch: u64, entries: u64) {
        for _ in 0..entries / batch {
            self.propose(batch);
            self.turn();
        }
        while !self.agreed() {
            self.turn();
        }
    }
}
