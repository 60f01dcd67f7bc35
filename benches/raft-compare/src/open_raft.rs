//! Three nodes of openraft in memory, with function calls for a network.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    BasicNode, Config, EntryPayload, LogId, LogState, OptionalSend, Raft, RaftLogReader, RaftSnapshotBuilder,
    SnapshotMeta, SnapshotPolicy, StorageError, StoredMembership, Vote,
};

use crate::trio::command;

openraft::declare_raft_types!(
    pub Types:
        D = Command,
        R = (),
);

/// A command; cloning it is cheap, as in the other libraries.
#[derive(Clone, Debug)]
pub struct Command(#[allow(dead_code)] bytes::Bytes);

type Entry = openraft::Entry<Types>;
type Result<T> = std::result::Result<T, StorageError<u64>>;

#[derive(Debug, Default)]
struct LogInner {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<LogInner>>);

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>> {
        Ok(self.0.lock().unwrap().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let inner = self.0.lock().unwrap();
        let last = inner.entries.last_key_value().map(|(_, entry)| entry.log_id).or(inner.purged);
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<()> {
        self.0.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>> {
        Ok(self.0.lock().unwrap().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.lock().unwrap().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<()> {
        let _ = self.0.lock().unwrap().entries.split_off(&from.index);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<()> {
        let mut inner = self.0.lock().unwrap();
        let kept = inner.entries.split_off(&(upto.index + 1));
        inner.entries = kept;
        inner.purged = Some(upto);
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct Machine {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: String::new(),
        };
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(Vec::new())) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            replies.push(());
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        _snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<()> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        Ok(None)
    }
}

type Nodes = Arc<Mutex<BTreeMap<u64, Raft<Types>>>>;

#[derive(Clone)]
struct Network(Nodes);

struct Link(Nodes, u64);

impl Link {
    fn target(&self) -> Raft<Types> {
        self.0.lock().unwrap()[&self.1].clone()
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Link {
        Link(Arc::clone(&self.0), target)
    }
}

type Rpc<T> = std::result::Result<T, RPCError<u64, BasicNode, RaftError<u64>>>;

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<u64>> {
        let target = self.target();
        Ok(target.append_entries(rpc).await.expect("nobody stops"))
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _option: RPCOption) -> Rpc<VoteResponse<u64>> {
        let target = self.target();
        Ok(target.vote(rpc).await.expect("nobody stops"))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<Types>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> std::result::Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let target = self.target();
        Ok(target.install_full_snapshot(vote, snapshot).await.expect("nobody stops"))
    }
}

pub(crate) struct Trio {
    runtime: tokio::runtime::Runtime,
    leader: Raft<Types>,
}

impl Trio {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let nodes = Nodes::default();
        let leader = runtime.block_on(async {
            let config = Config {
                heartbeat_interval: 1_000,
                election_timeout_min: 3_000,
                election_timeout_max: 5_000,
                max_payload_entries: 1024,
                snapshot_policy: SnapshotPolicy::LogsSinceLast(20_000),
                max_in_snapshot_log_to_keep: 20_000,
                ..Config::default()
            };
            let config = Arc::new(config.validate().expect("a good configuration"));
            for id in 1..=3 {
                let network = Network(Arc::clone(&nodes));
                let (log, machine) = (Log::default(), Machine::default());
                let node = Raft::new(id, Arc::clone(&config), network, log, machine).await.expect("a new node");
                nodes.lock().unwrap().insert(id, node);
            }
            let first = nodes.lock().unwrap()[&1].clone();
            let members: BTreeMap<_, _> = (1..=3).map(|id| (id, BasicNode::default())).collect();
            first.initialize(members).await.expect("it may");
            let timeout = Some(std::time::Duration::from_secs(60));
            let metrics = first
                .wait(timeout)
                .metrics(|metrics| metrics.current_leader.is_some(), "a leader")
                .await
                .expect("a leader");
            nodes.lock().unwrap()[&metrics.current_leader.expect("waited for")].clone()
        });
        Self { runtime, leader }
    }

    /// Writes batches, with so many of them under way.
    pub(crate) fn run(&self, batch: u64, entries: u64, under_way: usize) {
        self.runtime.block_on(async {
            let mut running = FuturesUnordered::new();
            for _ in 0..entries / batch {
                if running.len() >= under_way {
                    running.next().await;
                }
                running.push(async {
                    let mut answers = Vec::new();
                    for _ in 0..batch {
                        let command = Command(bytes::Bytes::from(command()));
                        answers.push(self.leader.client_write_ff(command).await.expect("it leads"));
                    }
                    for answer in answers {
                        answer.await.expect("an answer").expect("it leads");
                    }
                });
            }
            while running.next().await.is_some() {}
        });
    }
}
