//! Makes this store follow the registry: peers are dialled where they say they are, replicas that are placed here are
//! opened, those that were removed are closed and destroyed. Every step may be done twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pontoon_kv::Engine;
use pontoon_node::meta::{
    GroupKind, GroupRecord, META_GROUP, MetaCommand, MetaReply, Registry, StoreRecord, StoreState,
    meta_command,
};
use pontoon_node::state_machine::{MachineError, StateMachine};
use pontoon_node::{DriverStep, Node, OpenGroupError};
use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::HostPort;
use crate::directory::{Hosted, KeyspaceDirectory};
use crate::join::JoinNote;

/// How long to wait before a step that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What follows the registry.
pub(crate) struct Reconciler {
    pub(crate) node: Node,
    pub(crate) engine: Engine,
    pub(crate) directory: Arc<KeyspaceDirectory>,
    pub(crate) registry: watch::Receiver<Arc<Registry>>,
    /// What this store says of itself.
    pub(crate) own: StoreRecord,
    /// Peers by name that are dialled elsewhere than where they say they are.
    pub(crate) dial: BTreeMap<String, String>,
    /// Where other stores say in their greetings that they are.
    pub(crate) advertised: watch::Receiver<BTreeMap<StoreId, String>>,
    pub(crate) data_dir: PathBuf,
    /// What has been done for all groups as this has them; `None` if something is left to do.
    pub(crate) followed: Option<Arc<Registry>>,
}

/// What became of the states without a log.
enum Swept {
    /// None is left that nobody needs.
    All,
    /// There are some that the registry does not know yet.
    TooNew,
    /// To be tried again.
    Failed,
}

impl Reconciler {
    /// Follows the registry until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let registry = Arc::clone(&self.registry.borrow_and_update());
            self.advertised.mark_unchanged();
            let complete = self.follow(&registry).await;
            self.followed = complete.then_some(registry);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.registry.changed() => if changed.is_err() { return },
                changed = self.advertised.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Does what the registry asks for; `false` if something is left to try again.
    async fn follow(&mut self, registry: &Registry) -> bool {
        if !registry.is_founded() {
            return true;
        }
        self.learn_starts(registry).await;
        self.dial(registry);
        self.forget_joining(registry);
        let complete = self.open_groups(registry).await & self.forget_deleted(registry).await;
        if !complete {
            // Of a replica that could not be destroyed the log may be gone.
            self.directory.set_swept(false);
        } else if !self.directory.is_swept() {
            match self.forget_orphans(registry).await {
                Swept::All => self.directory.set_swept(true),
                // When the registry hears of them it changes, and they are looked at again.
                Swept::TooNew => {}
                Swept::Failed => return false,
            }
        }
        complete && self.announce(registry).await
    }

    /// Closes the groups that were deleted and gives their space back; `false` if that has to be tried again.
    async fn forget_deleted(&self, registry: &Registry) -> bool {
        for group in self.directory.groups_not_in(registry) {
            self.directory.remove(group);
        }
        let mut complete = true;
        for group in self.node.log().groups().into_iter().filter(|group| registry.is_deleted(*group)) {
            tracing::info!(%group, "forgets a group that was deleted");
            complete &= self.destroy(group).await;
        }
        complete
    }

    /// Destroys the replica of a group here, its log first; `false` if that has to be tried again.
    async fn destroy(&self, group: GroupId) -> bool {
        let failures = self.node.failures();
        self.directory.destroying(group);
        let destroyed = async {
            failures.reach(DriverStep::DestroyLog.before());
            self.node.destroy_group(group).await?;
            failures.reach(DriverStep::DestroyLog.after());
            self.destroy_state(group).await
        };
        let result = destroyed.await;
        match &result {
            Ok(()) => self.directory.destroyed(group),
            Err(error) => {
                tracing::error!(%group, error = format!("{error:#}"), "cannot destroy a replica");
            }
        }
        result.is_ok()
    }

    async fn destroy_state(&self, group: GroupId) -> anyhow::Result<()> {
        let engine = self.engine.clone();
        self.node.failures().reach(DriverStep::DestroyState.before());
        tokio::task::spawn_blocking(move || engine.destroy_keyspace(group)).await??;
        self.node.failures().reach(DriverStep::DestroyState.after());
        Ok(())
    }

    /// Destroys the states that have no log, and get none: their replica was destroyed, or never quite opened, when the
    /// process died.
    async fn forget_orphans(&self, registry: &Registry) -> Swept {
        let engine = self.engine.clone();
        let listed = tokio::task::spawn_blocking(move || engine.groups()).await;
        let states = match listed {
            Ok(Ok(groups)) => groups,
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot list the states of groups");
                return Swept::Failed;
            }
            // Fails only while the runtime stops.
            Err(_) => return Swept::Failed,
        };
        let mut swept = Swept::All;
        for group in states {
            let log = self.node.log();
            if log.group(group).is_some() {
                continue;
            }
            let is_orphan = match registry.groups.get(&group.0) {
                // It is about to be opened, unless the registry is older than what was done by its word.
                Some(record) => record.on(self.node.store().0).is_none_or(|own| {
                    log.tombstone(group).is_some_and(|destroyed| own.number <= destroyed.number)
                }),
                None if group.0 < registry.next_group => true,
                // After a restart the registry may not have heard yet that there was such a group.
                None => {
                    swept = Swept::TooNew;
                    false
                }
            };
            if !is_orphan {
                continue;
            }
            tracing::info!(%group, "destroys a state whose replica is gone");
            if let Err(error) = self.destroy_state(group).await {
                tracing::error!(%group, error = format!("{error:#}"), "cannot destroy a state");
                return Swept::Failed;
            }
            self.directory.destroyed(group);
        }
        swept
    }

    /// Dials the peers that the registry knows, and no one else. Where a running process says that it is counts more than
    /// what the registry has: a store that has moved can tell the registry only when others speak with it.
    pub(crate) fn dial(&self, registry: &Registry) {
        let transport = self.node.transport();
        let advertised = self.advertised.borrow().clone();
        for store in registry.stores.values().filter(|s| s.store != self.own.store) {
            if store.state() == StoreState::Reserved || self.node.is_removed(store.id()) {
                continue;
            }
            let said = advertised.get(&store.id());
            let said = said.filter(|a| a.parse::<HostPort>().is_ok_and(|a| !a.is_unspecified()));
            let address = self.dial.get(&store.name).or(said).unwrap_or(&store.peer_address);
            if !address.is_empty() {
                transport.set_peer(store.id(), address.clone());
            }
        }
        let gone: BTreeMap<_, _> =
            registry.removed.iter().map(|(id, gone)| (StoreId(*id), gone.reason().to_owned())).collect();
        let closes: Vec<_> = gone.keys().copied().collect();
        self.node.set_removed_stores(gone);
        for store in closes {
            transport.remove_peer(store);
        }
        if let Some(own) = registry.removed.get(&self.own.store) {
            self.node.mark_removed(own.reason().to_owned());
        }
    }

    /// A store that has become a member needs no note of how it came.
    fn forget_joining(&self, registry: &Registry) {
        let is_member =
            registry.stores.get(&self.own.store).is_some_and(|own| own.state() != StoreState::Joining);
        if !is_member || !JoinNote::is_in(&self.data_dir) {
            return;
        }
        self.node.failures().reach(DriverStep::ForgetJoin.before());
        if let Err(error) = JoinNote::remove(&self.data_dir) {
            tracing::warn!(%error, "cannot remove the note of how this store joined");
        }
        self.node.failures().reach(DriverStep::ForgetJoin.after());
    }

    /// Compares what the registry says of the stores' data directories with what was seen of them.
    async fn learn_starts(&self, registry: &Registry) {
        let starts: Vec<_> =
            registry.stores.values().map(|s| (StoreId(s.store), s.lineage, s.start)).collect();
        let node = self.node.clone();
        let learned = tokio::task::spawn_blocking(move || {
            for (store, lineage, start) in starts {
                node.learn_start(store, lineage, start);
            }
        });
        // Fails only while the runtime stops.
        let _ = learned.await;
    }

    /// Opens the groups that the registry knows; `false` if one could not be opened.
    pub(crate) async fn open_groups(&self, registry: &Registry) -> bool {
        let mut complete = true;
        for group in registry.groups.values() {
            // Most changes of the registry are about one group of many.
            let followed = self.followed.as_ref().is_some_and(|f| f.groups.get(&group.group) == Some(group));
            if !followed && matches!(group.kind(), GroupKind::Kv | GroupKind::Log) {
                complete &= self.open(group).await;
            }
        }
        complete
    }

    async fn open(&self, record: &GroupRecord) -> bool {
        let (group, store) = (record.id(), self.node.store());
        let own = record.on(store.0).map(|r| r.id());
        let mut here = self.node.log().group(group).map(|state| state.replica);
        if let Some(removed) = here.filter(|replica| record.has_removed(*replica)) {
            tracing::info!(%group, name = record.name, replica = %removed, "destroys a replica that was removed");
            self.directory.closing(group);
            self.directory.follow(record, store);
            if !self.destroy(group).await {
                return false;
            }
            here = None;
        }
        let Some(own) = own else {
            self.directory.follow(record, store);
            return true;
        };
        if self.directory.is_open(group) {
            self.directory.follow(record, store);
            return true;
        }
        let destroyed = self.node.log().tombstone(group);
        if destroyed.is_some_and(|destroyed| own.number <= destroyed.number) {
            // After a restart the registry may be older than what was done by its word.
            tracing::debug!(%group, name = record.name, "was destroyed, as the registry is about to hear");
            self.directory.follow(record, store);
            return true;
        }
        // A crash may have come between the end of an earlier replica's log and that of its state.
        let leftover = here.is_none() && destroyed.is_some();
        let (engine, node, record_) = (self.engine.clone(), self.node.clone(), record.clone());
        self.node.failures().reach(DriverStep::OpenReplica.before());
        let opened = tokio::task::spawn_blocking(move || {
            if leftover {
                engine.destroy_keyspace(group)?;
            }
            let (machine, hosted) =
                open_machine(&engine, &record_).with_context(|| format!("the state of {}", record_.name))?;
            open_replica(&node, &record_, own, machine)?;
            anyhow::Ok(hosted)
        });
        match opened.await {
            Ok(Ok(hosted)) => {
                self.node.failures().reach(DriverStep::OpenReplica.after());
                // What an earlier replica had left went before.
                self.directory.destroyed(group);
                self.directory.follow(record, store);
                self.directory.opened(group, hosted);
                self.directory.follow(record, store);
                true
            }
            Ok(Err(error)) => {
                tracing::error!(%group, name = record.name, error = format!("{error:#}"), "cannot open a replica");
                false
            }
            Err(panicked) => {
                tracing::error!(%group, name = record.name, %panicked, "cannot open a replica");
                false
            }
        }
    }

    /// Tells the others this store's name, addresses and start, if they know other ones.
    async fn announce(&self, registry: &Registry) -> bool {
        let Some(known) = registry.stores.get(&self.own.store) else { return true };
        let own = StoreRecord { state: known.state, learner: known.learner, ..self.own.clone() };
        if *known == own {
            return true;
        }
        match change(&self.node, meta_command::Change::AnnounceStore(self.own.clone())).await {
            Ok(reply) if reply.error.is_empty() => true,
            Ok(reply) if reply.removed => {
                self.node.mark_removed(reply.error);
                true
            }
            Ok(reply) => {
                tracing::error!(error = reply.error, "the cluster does not take this store's announcement");
                true
            }
            Err(error) => {
                tracing::debug!(%error, "cannot announce this store yet");
                false
            }
        }
    }
}

/// The state machine of a group's kind, and what it is read through.
fn open_machine(
    engine: &Engine,
    record: &GroupRecord,
) -> Result<(Box<dyn StateMachine>, Hosted), MachineError> {
    Ok(match record.kind() {
        GroupKind::Log => {
            let machine = engine.open_log(record.id())?;
            let hosted = Hosted::Log(machine.state());
            (Box::new(machine), hosted)
        }
        GroupKind::Kv | GroupKind::Meta => {
            let machine = engine.open_keyspace(record.id())?;
            let hosted = Hosted::Kv(machine.keyspace());
            (Box::new(machine), hosted)
        }
    })
}

/// Opens this store's replica of a group: as one of its founders, or as one that waits to be taken in.
///
/// # Errors
/// See [`Node::open_group`].
pub(crate) fn open_replica(
    node: &Node,
    record: &GroupRecord,
    own: ReplicaId,
    machine: Box<dyn StateMachine>,
) -> Result<(), OpenGroupError> {
    let founders = record.founder_ids();
    if founders.contains(&own) {
        node.open_group(record.id(), &founders, machine)
    } else {
        node.join_group(record.id(), own, machine)
    }
}

/// Carries a change of the registry out and returns its answer.
///
/// # Errors
/// The change could not be proposed, or its outcome is not known.
pub(crate) async fn change(
    node: &Node,
    change: meta_command::Change,
) -> Result<MetaReply, pontoon_node::ProposeError> {
    let step = DriverStep::of(&change);
    if let Some(step) = step {
        node.failures().reach(step.before());
    }
    let reply = node.propose(META_GROUP, MetaCommand { change: Some(change) }.to_bytes()).await?;
    // The reply comes from this process's own state machine.
    let reply = MetaReply::decode(reply).unwrap_or_else(|error| MetaReply {
        error: format!("the registry's reply cannot be decoded: {error}"),
        ..MetaReply::default()
    });
    if let Some(step) = step.filter(|_| reply.is_done()) {
        node.failures().reach(step.after());
    }
    Ok(reply)
}
