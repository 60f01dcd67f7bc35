//! The handle: what a process does with its groups.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use pontoon_flow::Class;
use pontoon_raft_core::types::{
    Configuration, EntryId, GroupId, LogIndex, ReplicaId, SnapshotMeta, StoreId, Term,
};
use pontoon_raft_core::{Config as CoreConfig, Group, InitialState, ServerChangeDone};
use pontoon_storage::{Batch, GroupWrite, LogStore};
use pontoon_transport::{Transport, TransportConfig};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::apply::{Applier, ApplyHandle, ApplyPool, Work, meta_at};
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::doubts::Doubts;
use crate::error::{OpenGroupError, ProposeError, ReadError, StartError, StopReason};
use crate::failure::{Failures, FailuresForbidden, Injection};
use crate::flow::{Flow, FlowView, GroupFlow};
use crate::group_host::{GroupHost, LogSize};
use crate::inbound::{Delivery, LogEntries, shard_of, worker_of};
use crate::lineage::Lineages;
use crate::link_timers::LinkTimers;
use crate::membership::EVENTS_MAX;
use crate::meta::META_GROUP;
use crate::proposals::{Budget, EntryIds, Waiter};
use crate::shard::{Input, Shard};
use crate::shared::GroupShared;
use crate::state_machine::StateMachine;
use crate::status::GroupStatus;
use crate::timers::Timers;
use crate::waking::Waking;
use crate::work_class;

/// Elastic commands of this store's callers may take this part of the budget of waiting commands.
const ELASTIC_PART: usize = 4;

/// A running store: shards, apply workers, and the groups that they own. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("store", &self.inner.config.store).finish_non_exhaustive()
    }
}

struct Inner {
    config: Arc<NodeConfig>,
    clock: Clock,
    log: LogStore,
    transport: Transport,
    lineages: Arc<Lineages>,
    ids: Arc<EntryIds>,
    shards: Arc<[UnboundedSender<Input>]>,
    apply: ApplyHandle,
    groups: RwLock<HashMap<GroupId, Arc<GroupShared>>>,
    doubts: Arc<Doubts>,
    member_events: broadcast::Sender<(GroupId, ServerChangeDone)>,
    /// Opening reads the disk; one at a time is enough and keeps two openings of one group apart.
    opening: Mutex<()>,
    proposals: Arc<Budget>,
    /// Elastic commands have to fit into this as well, so that they leave room for the others.
    elastic: Arc<Budget>,
    flow: Arc<Flow>,
    failures: Arc<Failures>,
    reads: Arc<Budget>,
    stopping: AtomicBool,
    threads: Mutex<Option<(ApplyPool, Vec<JoinHandle<()>>)>>,
}

impl Inner {
    /// Why nothing is taken for a group any more, if that is so.
    fn stopped(&self, shared: &GroupShared) -> Option<StopReason> {
        let stopping = || self.stopping.load(Ordering::Relaxed).then_some(StopReason::Stopping);
        shared.stopped().or_else(stopping)
    }
}

/// How a replica that the log store does not have yet begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Birth<'a> {
    /// As one of the group's first voters.
    Founding(&'a [ReplicaId]),
    /// Into a group that exists: without members, until its leader says who they are.
    Joining(ReplicaId),
}

impl<'a> Birth<'a> {
    fn founders(self) -> Option<&'a [ReplicaId]> {
        match self {
            Self::Founding(voters) => Some(voters),
            Self::Joining(_) => None,
        }
    }

    fn replica(self, on: StoreId) -> Option<ReplicaId> {
        match self {
            Self::Founding(voters) => voters.iter().copied().find(|r| r.store == on),
            Self::Joining(replica) => Some(replica).filter(|r| r.store == on),
        }
    }

    fn configuration(self) -> Configuration {
        Configuration::of_voters(self.founders().unwrap_or_default().iter().copied())
    }
}

/// What is waited for, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Commands of this store's callers that wait.
    pub proposals: usize,
    /// Their bytes.
    pub proposal_bytes: usize,
    /// Reads that wait.
    pub reads: usize,
}

impl Node {
    /// Starts the runtime of one store on the current tokio runtime. `origin` must be unique to this run of this store
    /// (draw it from the system's randomness): it keeps entry ids apart. Writes one note to the log, which counts the
    /// start, and waits for the disk; nothing else should have been written since the log was opened, so that peers hear
    /// how far it was then.
    ///
    /// # Errors
    /// A thread cannot be started, the start cannot be noted, or peers have refused this directory for good.
    pub fn start(
        config: NodeConfig,
        origin: u64,
        log: LogStore,
        mut transport: TransportConfig,
    ) -> Result<Self, StartError> {
        let lineages = Arc::new(Lineages::begin(&log, origin)?);
        transport.identity = Some(lineages.identity());
        let config = Arc::new(config);
        let clock = Clock::start();
        let ids = Arc::new(EntryIds::new(origin));
        let link_timers = LinkTimers::default();
        let pool = ApplyPool::start(config.apply_threads, &log, &ids, &link_timers)?;
        let apply = pool.handle();
        let (shards, inboxes): (Vec<_>, Vec<_>) =
            (0..config.shards.max(1)).map(|_| unbounded_channel()).unzip();
        let shards: Arc<[_]> = shards.into();
        let flow = Arc::new(Flow::new(config.flow, config.flow_limits));
        let failures = Arc::clone(&config.failures);
        let delivery = Delivery {
            shards: Arc::clone(&shards),
            apply: apply.clone(),
            lineages: Arc::clone(&lineages),
            flow: Arc::clone(&flow),
        };
        let transport = Transport::start(
            transport,
            Arc::new(delivery),
            Arc::new(LogEntries(log.clone())),
            tokio::runtime::Handle::current(),
        );
        link_timers.attach(&transport);
        let doubts = Doubts::new(&log);
        let member_events = broadcast::Sender::new(EVENTS_MAX);
        let tasks = inboxes
            .into_iter()
            .enumerate()
            .map(|(n, inbox)| {
                let shard = Shard {
                    config: Arc::clone(&config),
                    clock,
                    log: log.clone(),
                    transport: transport.clone(),
                    apply: apply.clone(),
                    inbox,
                    own_inbox: shards[n].clone(),
                    shards: Arc::clone(&shards),
                    flow: Arc::clone(&flow),
                    failures: Arc::clone(&failures),
                    wakes: std::collections::BTreeSet::new(),
                    groups: HashMap::new(),
                    earlier: HashMap::new(),
                    timers: Timers::default(),
                    dirty: Vec::new(),
                    permits: Vec::new(),
                    doubts: Arc::clone(&doubts),
                    waking: Waking::default(),
                    member_events: member_events.clone(),
                    failed: false,
                };
                tokio::spawn(shard.run())
            })
            .collect();
        let inner = Inner {
            proposals: Budget::new(config.proposals_max, config.proposal_bytes_max),
            elastic: Budget::new(
                (config.proposals_max / ELASTIC_PART).max(1),
                (config.proposal_bytes_max / ELASTIC_PART).max(1),
            ),
            reads: Budget::new(config.reads_max, usize::MAX),
            flow,
            failures,
            config,
            clock,
            log,
            transport,
            lineages,
            ids,
            shards,
            apply,
            groups: RwLock::default(),
            doubts,
            member_events,
            opening: Mutex::new(()),
            stopping: AtomicBool::new(false),
            threads: Mutex::new(Some((pool, tasks))),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This store.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.inner.config.store
    }

    /// The links to the other stores.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// The log store.
    #[must_use]
    pub fn log(&self) -> &LogStore {
        &self.inner.log
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.inner.config
    }

    pub(crate) fn lineages(&self) -> &Arc<Lineages> {
        &self.inner.lineages
    }

    pub(crate) fn member_events(&self) -> &broadcast::Sender<(GroupId, ServerChangeDone)> {
        &self.inner.member_events
    }

    /// Hands something to the shard of a group; `false` if the group is not served here.
    pub(crate) fn tell_shard(&self, group: GroupId, input: Input) -> bool {
        self.shared(group).is_some_and(|shared| self.inner.shards[shared.shard].send(input).is_ok())
    }

    /// What waits now.
    #[must_use]
    pub fn load(&self) -> Load {
        let (proposals, proposal_bytes) = self.inner.proposals.held();
        Load { proposals, proposal_bytes, reads: self.inner.reads.held().0 }
    }

    /// Opens this store's replica of a group, and creates it in the log store first if it is not there: `voters` is the
    /// group's first configuration then (and otherwise without meaning: the log knows better). Blocks on the disk; call
    /// it where that is allowed.
    ///
    /// # Errors
    /// The log and the state machine do not fit together, or cannot be read or written.
    pub fn open_group(
        &self,
        group: GroupId,
        voters: &[ReplicaId],
        machine: Box<dyn StateMachine>,
    ) -> Result<(), OpenGroupError> {
        self.open_replica(group, Birth::Founding(voters), machine)
    }

    pub(crate) fn open_replica(
        &self,
        group: GroupId,
        birth: Birth<'_>,
        machine: Box<dyn StateMachine>,
    ) -> Result<(), OpenGroupError> {
        let _one_at_a_time = self.inner.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared(group).is_some() {
            return Ok(());
        }
        let is_new = self.inner.log.group(group).is_none();
        let (host, applier) = self.prepare(group, birth, machine)?;
        let shared = Arc::clone(&host.shared);
        self.inner.apply.send(shared.worker, Work::Open(Box::new(applier)));
        let shard = shared.shard;
        self.inner.groups.write().unwrap_or_else(PoisonError::into_inner).insert(group, shared);
        let _ = self.inner.shards[shard].send(Input::Open { host: Box::new(host) });
        if is_new && birth.founders().is_some_and(|voters| self.stands_first(group, voters)) {
            let (answer, _) = oneshot::channel();
            let _ = self.inner.shards[shard].send(Input::TakeLeadership { group, answer });
        }
        Ok(())
    }

    /// Whether this store's replica stands for the first election of a new group at once: a group should not have to
    /// wait for a time-out to have its first leader, and new groups' leaders should be spread over the stores.
    fn stands_first(&self, group: GroupId, voters: &[ReplicaId]) -> bool {
        let mut stores: Vec<_> = voters.iter().map(|v| v.store).collect();
        stores.sort_unstable();
        stores.get((group.0 % stores.len().max(1) as u64) as usize) == Some(&self.store())
    }

    fn prepare(
        &self,
        group: GroupId,
        birth: Birth<'_>,
        mut machine: Box<dyn StateMachine>,
    ) -> Result<(GroupHost, Applier), OpenGroupError> {
        let inner = &self.inner;
        let state = match inner.log.group(group) {
            Some(state) => state,
            None => self.create_replica(group, birth, machine.as_ref())?,
        };
        if state.snapshot.index > machine.applied() {
            // A crash came between the log's reset to a received snapshot and the machine's.
            machine
                .activate(state.snapshot.index)
                .map_err(|source| OpenGroupError::Machine { group, source })?;
        }
        let applied = machine.applied();
        if applied < state.snapshot.index || applied > state.last_index {
            return Err(OpenGroupError::Disagree {
                group,
                applied,
                first: state.snapshot.index.next(),
                last: state.last_index,
            });
        }
        let meta = meta_at(&inner.log, group, &state.snapshot, applied)
            .map_err(|source| OpenGroupError::Log { group, source })?;
        let (shards, workers) = (inner.shards.len(), inner.apply.workers());
        let shared =
            Arc::new(GroupShared::new(group, shard_of(group, shards), worker_of(group, workers), applied));
        let config = CoreConfig {
            id: state.replica,
            election_timer_ms: inner.config.election_timer_ms,
            // Different on every store, for every group and after every restart.
            seed: inner.ids.fold() ^ state.replica.store.0.rotate_left(17) ^ group.0,
            quiesce_after_ms: inner
                .config
                .quiesce_after
                .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            align_heartbeats: true,
            ..CoreConfig::default()
        };
        let in_doubt = inner.doubts.in_doubt();
        let restored = if in_doubt { Term(u64::MAX) } else { state.hard_state.term };
        let initial = InitialState {
            hard_state: state.hard_state,
            commit: state.commit,
            applied,
            snapshot: state.snapshot.clone(),
            last_index: state.last_index,
            doubt: in_doubt,
        };
        let core = Group::new(config, initial, inner.log.reader(group), inner.clock.now())
            .map_err(|source| OpenGroupError::Core { group, reason: source.to_string() })?;
        let size = self.log_size(group, &state.snapshot, state.last_index)?;
        let flow = GroupFlow::new(applied, inner.config.flow_backlog);
        let host = GroupHost::new(core, Arc::clone(&shared), state.snapshot, size, meta.term, restored, flow);
        let applier =
            Applier { shared: Arc::clone(&shared), machine, inbox: inner.shards[shared.shard].clone(), meta };
        Ok((host, applier))
    }

    /// Writes the first record of a new replica.
    fn create_replica(
        &self,
        group: GroupId,
        birth: Birth<'_>,
        machine: &dyn StateMachine,
    ) -> Result<pontoon_storage::GroupState, OpenGroupError> {
        let replica =
            birth.replica(self.store()).ok_or(OpenGroupError::NotAMember { group, store: self.store() })?;
        // The log store would take this for a mistake of ours that endangers everything, and fail.
        if self.inner.log.tombstone(group).is_some_and(|destroyed| replica.number <= destroyed.number) {
            return Err(OpenGroupError::Destroyed { group, replica });
        }
        if machine.applied() > LogIndex::ZERO {
            // State without a log: the log's directory was lost or replaced. Starting here could vote twice.
            return Err(OpenGroupError::LogLost { group, applied: machine.applied() });
        }
        let mut write = GroupWrite { group, ..GroupWrite::default() };
        write.create = Some(replica);
        write.snapshot = Some(SnapshotMeta {
            configuration: birth.configuration(),
            election_timer_ms: self.inner.config.election_timer_ms,
            ..SnapshotMeta::default()
        });
        let (done, written) = std::sync::mpsc::channel();
        let mut batch = Batch::default();
        batch.groups.push(write);
        self.inner.log.submit(
            batch,
            Box::new(move |result| {
                let _ = done.send(result.is_ok());
            }),
        );
        if written.recv() != Ok(true) {
            return Err(OpenGroupError::NotWritten { group });
        }
        self.inner.log.group(group).ok_or(OpenGroupError::NotWritten { group })
    }

    /// Measures a log that was there already.
    fn log_size(
        &self,
        group: GroupId,
        snapshot: &SnapshotMeta,
        last: LogIndex,
    ) -> Result<LogSize, OpenGroupError> {
        let mut size = LogSize::default();
        let mut next = snapshot.index.next();
        while next <= last {
            let page = self
                .inner
                .log
                .entries(group, next..last.next(), 1 << 20)
                .map_err(|source| OpenGroupError::Log { group, source })?;
            for entry in page {
                next = entry.index.next();
                size.append(entry.index, entry.size_bytes());
            }
        }
        Ok(size)
    }

    /// Stops serving a group on this store, and returns when its state machine is dropped. Its data stay.
    pub async fn close_group(&self, group: GroupId) {
        let shared = self.inner.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        if let Some(shared) = shared {
            let (done, closed) = oneshot::channel();
            let _ = self.inner.shards[shared.shard].send(Input::Close { group, done: Some(done) });
            // The sender is dropped, never used: an error is the answer.
            let _ = closed.await;
        }
    }

    /// Closes a group that is deleted, or whose replica here was removed from it, and forgets its log; only a replica with a
    /// higher number can be opened here again. Returns when that is durable.
    ///
    /// # Errors
    /// The log store has failed.
    pub async fn destroy_group(&self, group: GroupId) -> Result<(), OpenGroupError> {
        self.close_group(group).await;
        if self.inner.log.group(group).is_none() {
            return Ok(());
        }
        let (done, written) = oneshot::channel();
        let write = GroupWrite { group, destroy: true, ..GroupWrite::default() };
        self.inner.log.submit(
            Batch { groups: vec![write] },
            Box::new(move |result| {
                let _ = done.send(result.is_ok());
            }),
        );
        if written.await != Ok(true) {
            return Err(OpenGroupError::NotWritten { group });
        }
        self.inner.doubts.settled(group);
        Ok(())
    }

    fn shared(&self, group: GroupId) -> Option<Arc<GroupShared>> {
        self.inner.groups.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// Whether the log's last record may be missing though it was acknowledged, and not all groups have settled that: until
    /// then their replicas here count for nothing. [`Node::group_status`] tells it of each group.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        self.inner.doubts.in_doubt()
    }

    /// The groups that this store serves.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> =
            self.inner.groups.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        groups.sort_unstable();
        groups
    }

    /// Replicates a command and returns the state machine's reply, computed on this store. The command is executed at
    /// most once; it is handed to the leader wherever that is, and waits for one during an election. It waits for
    /// `NodeConfig::propose_timeout`; longer as long as a leader elsewhere says that the command is in progress; shorter if that
    /// leader, though it is heard, says nothing of it for two election timers.
    ///
    /// # Errors
    /// See [`ProposeError`]; only `TimedOut` and `Stopped` leave the outcome open.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the wait; the command may still be executed.
    pub async fn propose(&self, group: GroupId, data: Bytes) -> Result<Bytes, ProposeError> {
        self.propose_as(group, work_class::current(), data).await
    }

    /// [`Node::propose`] for work of this class; `propose` takes the class from [`with_class`](crate::with_class).
    ///
    /// # Errors
    /// As for `propose`. `Overloaded` also if the followers' stores had no room for the command within its time.
    pub async fn propose_as(&self, group: GroupId, class: Class, data: Bytes) -> Result<Bytes, ProposeError> {
        let inner = &self.inner;
        let shared = self.shared(group).ok_or(ProposeError::NoReplica { group })?;
        if let Some(reason) = inner.stopped(&shared) {
            return Err(ProposeError::Stopped { reason });
        }
        let _place = inner
            .proposals
            .take(data.len())
            .ok_or(ProposeError::Overloaded { what: "this store's budget of waiting commands" })?;
        let _elastic_place = match class {
            Class::Regular => None,
            Class::Elastic => Some(inner.elastic.take(data.len()).ok_or(ProposeError::Overloaded {
                what: "this store's budget of waiting elastic commands",
            })?),
        };
        let id = inner.ids.next();
        let span = tracing::debug_span!("command", %group, %id);
        self.wait_for(&shared, class, data, id).instrument(span).await
    }

    /// Hands a command to its shard, and waits for what becomes of it.
    async fn wait_for(
        &self,
        shared: &GroupShared,
        class: Class,
        data: Bytes,
        id: EntryId,
    ) -> Result<Bytes, ProposeError> {
        let began = tokio::time::Instant::now();
        let (inner, group) = (&self.inner, shared.id);
        tracing::trace!(bytes = data.len(), "proposed");
        let (reply, mut answer) = oneshot::channel();
        shared.waiters.lock().insert(id, Waiter::new(reply, class, data));
        let _gone = Forget { shared, id };
        if let Some(reason) = shared.stopped() {
            // It stopped between the first look and the insertion, and has answered those who were there.
            return Err(ProposeError::Stopped { reason });
        }
        inner.shards[shared.shard]
            .send(Input::Propose { group, id })
            .map_err(|_| ProposeError::Stopped { reason: StopReason::Stopping })?;
        let mut deadline = began + inner.config.propose_timeout;
        loop {
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(Ok(result)) => {
                    tracing::trace!(done = result.is_ok(), "answered");
                    // What drives the stores themselves is no client's.
                    if class == Class::Regular && group != META_GROUP && result.is_ok() {
                        inner.flow.note_answered(began.elapsed());
                    }
                    return result;
                }
                Ok(Err(_)) => return Err(ProposeError::Stopped { reason: StopReason::Closed }),
                Err(_) => tracing::debug!("no answer in time"),
            }
            // Taken away and judged at once, so that nobody can hand it to a leader in between.
            let mut waiters = shared.waiters.lock();
            let alive = waiters.get(&id).and_then(|waiter| waiter.alive_until);
            if let Some(alive) = alive.filter(|alive| *alive > deadline) {
                deadline = alive;
                continue;
            }
            return match waiters.remove(&id) {
                Some(waiter) if !waiter.attempt.is_under_way() && shared.waits_for_room() => {
                    Err(ProposeError::Overloaded { what: "what the followers' stores take now" })
                }
                Some(waiter) if !waiter.attempt.is_under_way() => Err(ProposeError::NoLeader),
                Some(_) => Err(ProposeError::TimedOut),
                None => answer.try_recv().unwrap_or(Err(ProposeError::TimedOut)),
            };
        }
    }

    /// Waits until this store's state contains everything that was acknowledged anywhere before the call (thesis 6.4).
    /// Returns the applied index.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_barrier(&self, group: GroupId) -> Result<LogIndex, ReadError> {
        let inner = &self.inner;
        let shared = self.shared(group).ok_or(ReadError::NoReplica { group })?;
        if let Some(reason) = inner.stopped(&shared) {
            return Err(ReadError::Stopped { reason });
        }
        let _place = inner
            .reads
            .take(0)
            .ok_or(ReadError::Overloaded { what: "this store's budget of waiting reads" })?;
        let (reader, answer) = oneshot::channel();
        inner.shards[shared.shard]
            .send(Input::Read { group, reader })
            .map_err(|_| ReadError::Stopped { reason: StopReason::Stopping })?;
        match tokio::time::timeout(inner.config.read_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ReadError::Stopped { reason: StopReason::Closed }),
            Err(_) => Err(ReadError::TimedOut),
        }
    }

    /// A recent term and leader of a group, without asking its shard; `None` if it is not served here.
    #[must_use]
    pub fn leadership(&self, group: GroupId) -> Option<(u64, Option<StoreId>)> {
        self.shared(group).map(|shared| (shared.term(), shared.leader()))
    }

    /// Regular commands of clients that this node has answered since it started, and the microseconds that they took together.
    #[must_use]
    pub fn answered(&self) -> (u64, u64) {
        self.inner.flow.answered()
    }

    /// How many members a group had lately, without asking its shard; more in the middle of a change. `None` if it is not
    /// served here.
    #[must_use]
    pub fn member_count(&self, group: GroupId) -> Option<usize> {
        self.shared(group).map(|shared| shared.members())
    }

    /// Recent commit and applied indexes of a group on this store, without asking its shard; `None` if it is not
    /// served here.
    #[must_use]
    pub fn progress(&self, group: GroupId) -> Option<(LogIndex, LogIndex)> {
        self.shared(group).map(|shared| {
            let applied = shared.applied();
            (shared.commit().max(applied), applied)
        })
    }

    /// The group as its shard sees it; `None` if it is not served here.
    pub async fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        let shared = self.shared(group)?;
        let (answer, status) = oneshot::channel();
        self.inner.shards[shared.shard].send(Input::Status { group, answer }).ok()?;
        status.await.ok().flatten()
    }

    /// Moves leadership to the replica on `to`, or to the best follower. Returns once the transfer has begun.
    ///
    /// # Errors
    /// This store does not lead the group, or the target does not fit; the text says which.
    pub async fn transfer_leadership(&self, group: GroupId, to: Option<StoreId>) -> Result<(), String> {
        self.ask(group, |answer| Input::Transfer { group, to, answer }).await
    }

    /// Starts an election for this store's replica, even though another one leads.
    ///
    /// # Errors
    /// The group has no replica here.
    pub async fn take_leadership(&self, group: GroupId) -> Result<(), String> {
        self.ask(group, |answer| Input::TakeLeadership { group, answer }).await
    }

    /// Proposes another election timer for a group, in milliseconds. Returns once the change is in the leader's log; it
    /// is in force when it is committed, see [`Node::group_status`].
    ///
    /// # Errors
    /// This store does not lead the group, another change is not committed yet, or the timer is out of bounds or more
    /// than twice the one in force; the text says which.
    pub async fn change_election_timer(&self, group: GroupId, millis: u64) -> Result<(), String> {
        let id = self.inner.ids.next();
        self.ask(group, |answer| Input::ElectionTimer { group, id, millis, answer }).await
    }

    async fn ask(
        &self,
        group: GroupId,
        input: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Input,
    ) -> Result<(), String> {
        let shared =
            self.shared(group).ok_or_else(|| format!("group {group} has no replica on this store"))?;
        let (answer, result) = oneshot::channel();
        let _ = self.inner.shards[shared.shard].send(input(answer));
        result.await.unwrap_or_else(|_| Err("this store is stopping".to_owned()))
    }

    /// Begins to stop: new requests are refused and leaderships are handed over.
    pub fn hand_over(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        for shard in self.inner.shards.iter() {
            let _ = shard.send(Input::HandOver);
        }
    }

    /// Flow control at this moment: the tokens for each destination store, and who waits for them.
    #[must_use]
    pub fn flow(&self) -> FlowView {
        self.inner.flow.view()
    }

    /// Switches what flow control governs, while the store runs.
    pub fn set_flow_mode(&self, mode: pontoon_flow::Mode) {
        self.inner.flow.set_mode(mode);
        for shard in self.inner.shards.iter() {
            let _ = shard.send(Input::FlowSwitched);
        }
    }

    /// Changes the limits of the token pools, to the nearest that are allowed, while the store runs.
    pub fn set_flow_limits(&self, limits: pontoon_flow::Limits) {
        self.inner.flow.set_limits(limits);
        for shard in self.inner.shards.iter() {
            let _ = shard.send(Input::FlowSwitched);
        }
    }

    /// The failures that are made on purpose in this process.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.inner.failures
    }

    /// Makes a failure from now on, or none any more. See [`Injection`].
    ///
    /// # Errors
    /// They are not allowed in this process.
    pub fn failure_test(&self, test: Option<Injection>) -> Result<(), FailuresForbidden> {
        self.inner.failures.arm(test)?;
        tracing::warn!(
            test = test.map_or_else(|| "clear".to_owned(), |test| test.to_string()),
            "failure test"
        );
        let peers: std::collections::BTreeSet<_> =
            self.inner.transport.links().into_iter().map(|link| link.store).collect();
        for shard in self.inner.shards.iter() {
            // All groups are looked at; and what was kept back meanwhile is as lost as what a broken link had.
            let _ = shard.send(Input::FlowSwitched);
            for store in peers.iter().filter(|_| test.is_none()) {
                let _ = shard.send(Input::LinkUp { store: *store });
            }
        }
        Ok(())
    }

    /// How many groups this store leads.
    #[must_use]
    pub fn groups_led(&self) -> usize {
        let groups = self.inner.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.values().filter(|g| g.leader() == Some(self.store())).count()
    }

    /// Stops everything. What was acknowledged is durable; what still waits hears that the store has stopped.
    pub async fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.transport.shutdown();
        let groups: Vec<_> =
            std::mem::take(&mut *self.inner.groups.write().unwrap_or_else(PoisonError::into_inner))
                .into_values()
                .collect();
        for shared in groups {
            shared.stop(StopReason::Stopping);
            let _ = self.inner.shards[shared.shard].send(Input::Close { group: shared.id, done: None });
        }
        let threads = self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((pool, tasks)) = threads {
            for task in &tasks {
                task.abort();
            }
            for task in tasks {
                let _ = task.await;
            }
            let _ = tokio::task::spawn_blocking(move || pool.stop()).await;
        }
    }
}

/// Removes a waiter whose caller has gone away.
struct Forget<'a> {
    shared: &'a GroupShared,
    id: EntryId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiters.lock().remove(&self.id);
    }
}
