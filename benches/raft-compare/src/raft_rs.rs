//! Three replicas of raft-rs in memory, one thread.

use std::collections::VecDeque;

use raft::prelude::*;
use raft::storage::MemStorage;

use crate::trio::command;

/// The log is cut after this many entries, as in the other one.
const COMPACT_AFTER: u64 = 20_000;

struct Replica {
    node: RawNode<MemStorage>,
    inbox: VecDeque<Message>,
    applied: u64,
    cut: u64,
}

pub(crate) struct Trio {
    replicas: Vec<Replica>,
}

impl Trio {
    pub(crate) fn new() -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let replicas = (1..=3).map(|id| {
            let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
            let config = Config {
                id,
                election_tick: 10,
                heartbeat_tick: 3,
                max_size_per_msg: 256 << 10,
                max_inflight_msgs: 256,
                pre_vote: true,
                check_quorum: true,
                ..Config::default()
            };
            let mut node = RawNode::new(&config, storage, &logger).expect("a new node");
            node.set_batch_append(true);
            Replica { node, inbox: VecDeque::new(), applied: 0, cut: 0 }
        });
        let mut trio = Self { replicas: replicas.collect() };
        trio.replicas[0].node.campaign().expect("it may");
        while trio.replicas[0].node.raft.state != raft::StateRole::Leader || !trio.agreed() {
            trio.turn();
        }
        trio
    }

    fn agreed(&self) -> bool {
        let last = self.replicas[0].node.raft.raft_log.last_index();
        self.replicas.iter().all(|replica| replica.applied == last)
    }

    fn propose(&mut self, batch: u64) {
        for _ in 0..batch {
            self.replicas[0].node.propose(Vec::new(), command()).expect("the leader has room");
        }
    }

    fn send(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let to = message.to as usize - 1;
            self.replicas[to].inbox.push_back(message);
        }
    }

    fn turn(&mut self) {
        for i in 0..self.replicas.len() {
            let mut inbox = std::mem::take(&mut self.replicas[i].inbox);
            for message in inbox.drain(..) {
                self.replicas[i].node.step(message).expect("peers tell the truth");
            }
            self.replicas[i].inbox = inbox;
            while self.replicas[i].node.has_ready() {
                self.carry_out(i);
            }
        }
    }

    fn carry_out(&mut self, i: usize) {
        let mut ready = self.replicas[i].node.ready();
        self.send(ready.take_messages());
        let replica = &mut self.replicas[i];
        apply(replica, &ready.take_committed_entries());
        let store = replica.node.mut_store().clone();
        if !ready.entries().is_empty() {
            store.wl().append(ready.entries()).expect("contiguous");
        }
        if let Some(state) = ready.hs() {
            store.wl().set_hardstate(state.clone());
        }
        self.send(ready.take_persisted_messages());
        let replica = &mut self.replicas[i];
        let mut light = replica.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().set_commit(commit);
        }
        apply(replica, &light.take_committed_entries());
        let messages = light.take_messages();
        replica.node.advance_apply();
        if replica.applied >= replica.cut + 2 * COMPACT_AFTER {
            replica.cut = replica.applied - COMPACT_AFTER;
            store.wl().compact(replica.cut).expect("applied");
        }
        self.send(messages);
    }

    pub(crate) fn lockstep(&mut self, batch: u64, entries: u64) {
        for _ in 0..entries / batch {
            self.propose(batch);
            while !self.agreed() {
                self.turn();
            }
        }
    }

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

fn apply(replica: &mut Replica, entries: &[Entry]) {
    if let Some(last) = entries.last() {
        replica.applied = last.index;
    }
}
