//! Makes this store follow the registry: peers are dialled where they say they are, groups that are placed here are
//! opened, groups that are gone are closed. Every step may be done twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pontoon_kv::Engine;
use pontoon_node::Node;
use pontoon_node::meta::{
    GroupKind, GroupRecord, META_GROUP, MetaCommand, MetaReply, Registry, StoreRecord, meta_command,
};
use pontoon_raft_core::types::{GroupId, StoreId};
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::directory::KeyspaceDirectory;

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
}

impl Reconciler {
    /// Follows the registry until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let registry = Arc::clone(&self.registry.borrow_and_update());
            let complete = self.follow(&registry).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.registry.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Does what the registry asks for; `false` if something is left to try again.
    async fn follow(&self, registry: &Registry) -> bool {
        self.learn_starts(registry).await;
        self.dial(registry);
        let complete = self.open_groups(registry).await & self.forget_deleted(registry).await;
        complete && self.announce(registry).await
    }

    /// Closes the groups that were deleted and gives their space back; `false` if that has to be tried again.
    async fn forget_deleted(&self, registry: &Registry) -> bool {
        for group in self.directory.groups_not_in(registry) {
            self.directory.remove(group);
        }
        // Ids are handed out in order and never again: one below the next that is not there was deleted. Others may be
        // so new that this store's registry does not know them yet.
        let deleted = |g: &GroupId| {
            *g != META_GROUP && g.0 < registry.next_group && !registry.groups.contains_key(&g.0)
        };
        let mut complete = true;
        for group in self.node.log().groups().into_iter().filter(deleted) {
            tracing::info!(%group, "forgets a keyspace that was deleted");
            let engine = self.engine.clone();
            let forgotten = async {
                self.node.destroy_group(group).await?;
                tokio::task::spawn_blocking(move || engine.destroy_keyspace(group)).await??;
                anyhow::Ok(())
            };
            if let Err(error) = forgotten.await {
                tracing::error!(%group, error = format!("{error:#}"), "cannot forget a deleted keyspace");
                complete = false;
            }
        }
        complete
    }

    /// Dials the peers that the registry knows.
    pub(crate) fn dial(&self, registry: &Registry) {
        for store in registry.stores.values().filter(|s| s.store != self.own.store) {
            let address = self.dial.get(&store.name).unwrap_or(&store.peer_address);
            self.node.transport().set_peer(StoreId(store.store), address.clone());
        }
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
            if group.kind() == GroupKind::Kv {
                complete &= self.open(group).await;
            }
        }
        complete
    }

    async fn open(&self, record: &GroupRecord) -> bool {
        let group = record.id();
        if self.directory.knows(group) {
            return true;
        }
        let voters = record.voter_ids();
        if voters.iter().all(|v| v.store != self.node.store()) {
            self.directory.insert_remote(record);
            return true;
        }
        let own = voters.iter().find(|v| v.store == self.node.store());
        let destroyed = self.node.log().tombstone(group);
        if own.zip(destroyed).is_some_and(|(own, destroyed)| own.number <= destroyed.number) {
            // After a restart the registry may be older than what was done by its word: the keyspace was deleted.
            tracing::debug!(%group, name = record.name, "was deleted, as the registry is about to hear");
            return true;
        }
        let (engine, node, name) = (self.engine.clone(), self.node.clone(), record.name.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let machine = engine.open_keyspace(group).with_context(|| format!("the state of {name}"))?;
            let keyspace = machine.keyspace();
            node.open_group(group, &voters, Box::new(machine))?;
            anyhow::Ok(keyspace)
        });
        match opened.await {
            Ok(Ok(keyspace)) => {
                self.directory.insert(record, keyspace);
                true
            }
            Ok(Err(error)) => {
                tracing::error!(%group, name = record.name, error = format!("{error:#}"), "cannot open a keyspace");
                false
            }
            Err(panicked) => {
                tracing::error!(%group, name = record.name, %panicked, "cannot open a keyspace");
                false
            }
        }
    }

    /// Tells the others this store's name, addresses and start, if they know other ones.
    async fn announce(&self, registry: &Registry) -> bool {
        if registry.stores.get(&self.own.store) == Some(&self.own) {
            return true;
        }
        match change(&self.node, meta_command::Change::AnnounceStore(self.own.clone())).await {
            Ok(reply) if reply.error.is_empty() => true,
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

/// Carries a change of the registry out and returns its answer.
///
/// # Errors
/// The change could not be proposed, or its outcome is not known.
pub(crate) async fn change(
    node: &Node,
    change: meta_command::Change,
) -> Result<MetaReply, pontoon_node::ProposeError> {
    let reply = node.propose(META_GROUP, MetaCommand { change: Some(change) }.to_bytes()).await?;
    // The reply comes from this process's own state machine.
    Ok(MetaReply::decode(reply).unwrap_or_else(|error| MetaReply {
        error: format!("the registry's reply cannot be decoded: {error}"),
        ..MetaReply::default()
    }))
}
