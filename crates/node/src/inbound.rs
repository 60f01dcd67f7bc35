//! Where the transport delivers: sorts what comes in by shard.

use std::sync::Arc;

use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};
use pontoon_storage::LogStore;
use pontoon_transport::{
    Claim, EntrySource, Inbound, ProposalReply, ReceivePermit, Refused, RelayedProposal, Report,
    SnapshotSink, Unwelcome,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::apply::{ApplyHandle, Work};
use crate::flow::Flow;
use crate::lineage::{Fenced, Lineages};
use crate::shard::Input;

/// The way from the transport into the shards.
pub(crate) struct Delivery {
    pub(crate) shards: Arc<[UnboundedSender<Input>]>,
    pub(crate) apply: ApplyHandle,
    pub(crate) lineages: Arc<Lineages>,
    pub(crate) flow: Arc<Flow>,
}

/// Which shard owns a group. Ids are handed out in order, so this spreads them evenly.
pub(crate) fn shard_of(group: GroupId, shards: usize) -> usize {
    (group.0 % shards as u64) as usize
}

impl Delivery {
    fn send(&self, shard: usize, input: Input) {
        // Fails only while the node stops.
        let _ = self.shards[shard].send(input);
    }

    /// Splits `items` by the shard of their group and sends each part.
    fn spread<T>(&self, items: Vec<T>, group: impl Fn(&T) -> GroupId, input: impl Fn(Vec<T>) -> Input) {
        let n = self.shards.len();
        let Some(first) = items.first() else { return };
        let shard = shard_of(group(first), n);
        if items.iter().all(|item| shard_of(group(item), n) == shard) {
            self.send(shard, input(items));
            return;
        }
        let mut parts: Vec<Vec<T>> = (0..n).map(|_| Vec::new()).collect();
        for item in items {
            parts[shard_of(group(&item), n)].push(item);
        }
        for (shard, part) in parts.into_iter().enumerate() {
            if !part.is_empty() {
                self.send(shard, input(part));
            }
        }
    }

    fn everywhere(&self, input: impl Fn() -> Input) {
        for shard in 0..self.shards.len() {
            self.send(shard, input());
        }
    }
}

impl Inbound for Delivery {
    fn receive(&self, _from: StoreId, messages: Vec<(GroupId, Message)>, permit: ReceivePermit) {
        let permit = Arc::new(permit);
        self.spread(
            messages,
            |(group, _)| *group,
            |messages| Input::Receive { messages, permit: Arc::clone(&permit) },
        );
    }

    fn proposals(&self, from: StoreId, proposals: Vec<RelayedProposal>) {
        self.spread(proposals, |p| p.group, |proposals| Input::Relayed { from, proposals });
    }

    fn proposal_replies(&self, _from: StoreId, replies: Vec<ProposalReply>) {
        self.spread(replies, |r| r.group, |replies| Input::Replies { replies });
    }

    fn reports(&self, _from: StoreId, reports: Vec<Report>) {
        self.spread(reports, |r| r.group, |reports| Input::Reports { reports });
    }

    fn features(&self, store: StoreId, features: u64) {
        self.flow.note_features(store, features);
    }

    fn unreachable(&self, store: StoreId, groups: Vec<GroupId>) {
        self.spread(groups, |group| *group, |groups| Input::Unreachable { store, groups });
    }

    fn link_down(&self, store: StoreId, refused: bool) {
        if !refused {
            self.lineages.lost(store);
        }
        self.everywhere(|| Input::LinkDown { store, refused });
    }

    fn link_up(&self, store: StoreId) {
        self.lineages.welcomed(store);
        self.everywhere(|| Input::LinkUp { store });
    }

    fn admit(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        self.lineages.admit(from, claim)
    }

    fn meet(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        self.lineages.meet(from, claim)
    }

    fn reached(&self, from: StoreId, batch: u64) {
        self.lineages.reached(from, batch);
    }

    fn fenced(&self, by: StoreId, reason: String) {
        self.lineages.fence(Fenced { by: Some(by), reason, removed: false });
    }

    fn removed(&self, store: StoreId) -> Option<String> {
        self.lineages.removed(store)
    }

    fn advertised(&self, from: StoreId, address: &str) {
        self.lineages.advertise(from, address);
    }

    fn removed_by(&self, by: StoreId, reason: String) {
        self.lineages.fence(Fenced { by: Some(by), reason, removed: true });
    }

    fn snapshot_begin(
        &self,
        _from: StoreId,
        group: GroupId,
        message: Message,
    ) -> Result<Box<dyn SnapshotSink>, Refused> {
        let Body::InstallSnapshot(meta) = &message.body else {
            return Err(Refused::Failed { reason: "the header is no InstallSnapshot".to_owned() });
        };
        let (answer, staged) = std::sync::mpsc::channel();
        let worker = worker_of(group, self.apply.workers());
        self.apply.send(worker, Work::Stage(group, meta.index, answer));
        match staged.recv() {
            Ok(Ok(sink)) => Ok(sink),
            Ok(Err(error)) => Err(Refused::Failed { reason: error.to_string() }),
            Err(_) => Err(Refused::Failed { reason: "the store is stopping".to_owned() }),
        }
    }

    fn snapshot_sent(&self, _to: StoreId, group: GroupId, replica: ReplicaId, ok: bool) {
        self.send(shard_of(group, self.shards.len()), Input::SnapshotSent { group, to: replica, ok });
    }
}

/// Which apply worker owns a group's state machine.
pub(crate) fn worker_of(group: GroupId, workers: usize) -> usize {
    (group.0 % workers as u64) as usize
}

/// Reads entries for the transport when it builds a frame.
pub(crate) struct LogEntries(pub(crate) LogStore);

impl EntrySource for LogEntries {
    fn entries(
        &self,
        group: GroupId,
        prev: pontoon_raft_core::types::LogIndex,
        last: pontoon_raft_core::types::LogIndex,
        last_term: pontoon_raft_core::types::Term,
        bytes_max: u64,
    ) -> Option<Vec<pontoon_raft_core::types::Entry>> {
        // The term is compared after the read: the log can only have changed to another term at `last` in between,
        // and then the message is stale. Equal terms at one index mean equal logs up to it.
        let entries = self.0.entries(group, prev.next()..last.next(), bytes_max).ok()?;
        (self.0.term(group, last) == Some(last_term)).then_some(entries)
    }

    fn durable(&self) -> u64 {
        self.0.durable_batch().0
    }
}
