//! Groups follow stores. The leader of the meta group plans what is wished next (`pontoon_node::meta::plan`), and the leader
//! of each group makes its members what is wished and tells the registry when that is done. Nobody remembers anything: each
//! step is read off the registry and the group's own configuration, so whoever leads next goes on.

use std::sync::Arc;
use std::time::Duration;

use pontoon_node::meta::meta_command::{Change, MoveReplica, Step};
use pontoon_node::meta::{
    GroupRecord, META_GROUP, Observed, Registry, ReplicaRecord, ReplicaState, StoreState, plan,
};
use pontoon_node::{ChangeMembersError, DriverStep, Node};
use pontoon_raft_core::status::Status;
use pontoon_raft_core::types::{ReplicaId, Role, StoreId};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::reach::reached;
use crate::reconcile;
use crate::spread::Spread;

/// How often what is under way is looked at: leaders change without a word.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a cluster at rest is.
const REST_INTERVAL: Duration = Duration::from_secs(2);

/// What makes groups follow the registry.
pub(crate) struct Members {
    pub(crate) node: Node,
    pub(crate) registry: watch::Receiver<Arc<Registry>>,
}

impl Members {
    /// Does its part until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut ends = self.node.server_changes();
        let mut spread = Spread::default();
        loop {
            let registry = Arc::clone(&self.registry.borrow_and_update());
            self.lead(&registry).await;
            self.plan().await;
            if is_busy(&registry) {
                spread.wait();
            } else {
                spread.step(&self.node, &registry).await;
            }
            let pause = if is_busy(&registry) { BUSY_INTERVAL } else { REST_INTERVAL };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.registry.changed() => if changed.is_err() { return },
                end = ends.recv() => if matches!(end, Err(broadcast::error::RecvError::Closed)) { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn leads(&self, group: &GroupRecord) -> bool {
        self.node.leadership(group.id()).is_some_and(|(_, leader)| leader == Some(self.node.store()))
    }

    /// Takes the groups that this store leads one step on.
    async fn lead(&self, registry: &Registry) {
        let goes = registry.stores.get(&self.node.store().0).is_some_and(|own| own.goes());
        for group in registry.all_groups() {
            let unsettled = group.replicas.iter().any(|r| !is_settled(r));
            if !(unsettled || goes) || !self.leads(group) {
                continue;
            }
            let Some(status) = self.node.group_status(group.id()).await else { continue };
            if status.core.role != Role::Leader {
                continue;
            }
            if goes && self.hand_over(registry, group, &status.core).await {
                continue;
            }
            for replica in group.replicas.iter().filter(|r| !is_settled(r)) {
                self.step(group, replica, &status.core).await;
            }
        }
    }

    /// A store that goes leads nothing that another one can lead; whether one was asked.
    async fn hand_over(&self, registry: &Registry, group: &GroupRecord, core: &Status) -> bool {
        let own = self.node.store().0;
        let stays = |r: &&ReplicaRecord| {
            r.store != own
                && core.configuration.voters.contains(&r.id())
                && registry.stores.get(&r.store).is_some_and(|s| !s.goes())
        };
        let silent = |replica: ReplicaId| {
            core.followers.iter().find(|f| f.id == replica).and_then(|f| f.silent_ms).unwrap_or(u64::MAX)
        };
        // Commands wait while a leadership moves: it is not offered to one that may be down. (A silent group hears nobody.)
        let heard = |r: &&ReplicaRecord| core.quiesced || silent(r.id()) < core.election_timer_ms;
        let heir = group.voters().filter(stays).filter(heard).min_by_key(|r| silent(r.id()));
        let Some(heir) = heir else { return false };
        self.node.failures().reach(DriverStep::HandOver.before());
        let asked = self.node.transfer_leadership(group.id(), Some(StoreId(heir.store))).await;
        self.node.failures().reach(DriverStep::HandOver.after());
        if let Err(error) = asked {
            tracing::debug!(group = group.name, error, "leadership stays for now");
        }
        true
    }

    async fn step(&self, group: &GroupRecord, replica: &ReplicaRecord, core: &Status) {
        let id = replica.id();
        let configuration = &core.configuration;
        let settled = core.configuration_index <= core.commit_index && !configuration.is_joint();
        let done = match replica.state() {
            ReplicaState::Joining if configuration.voters.contains(&id) => settled.then_some(Step::Placed),
            ReplicaState::Joining => self.add(group, self.node.add_server(group.id(), id)).await,
            ReplicaState::JoiningLearner if configuration.members().contains(&id) => {
                settled.then_some(Step::Placed)
            }
            ReplicaState::JoiningLearner => self.add(group, self.node.add_learner(group.id(), id)).await,
            ReplicaState::Removing if !configuration.members().contains(&id) => {
                settled.then_some(Step::Removed)
            }
            ReplicaState::Removing if id == core.id && configuration.voters.len() > 1 => {
                // The next leader does it. If nobody takes over, this one removes itself at another look.
                match self.node.transfer_leadership(group.id(), None).await {
                    Ok(()) => None,
                    Err(_) => self.remove(group, id).await,
                }
            }
            ReplicaState::Removing => self.remove(group, id).await,
            ReplicaState::Voter | ReplicaState::Learner => None,
        };
        if let Some(step) = done {
            self.wish(MoveReplica {
                group: group.group,
                store: replica.store,
                number: replica.number,
                step: step as i32,
                version: 0,
            })
            .await;
        }
    }

    async fn add<T>(
        &self,
        group: &GroupRecord,
        work: impl Future<Output = Result<T, ChangeMembersError>>,
    ) -> Option<Step> {
        self.ask(DriverStep::AskToAdd, group, work).await
    }

    async fn remove(&self, group: &GroupRecord, replica: ReplicaId) -> Option<Step> {
        self.ask(DriverStep::AskToRemove, group, self.node.remove_server(group.id(), replica)).await
    }

    /// What is asked of the group is under way then, or refused for now: another look tells.
    async fn ask<T>(
        &self,
        step: DriverStep,
        group: &GroupRecord,
        work: impl Future<Output = Result<T, ChangeMembersError>>,
    ) -> Option<Step> {
        self.node.failures().reach(step.before());
        match work.await {
            Ok(_) => self.node.failures().reach(step.after()),
            Err(error) => tracing::debug!(group = group.name, %error, "a change of members waits"),
        }
        None
    }

    async fn wish(&self, change: MoveReplica) {
        self.tell(Change::MoveReplica(change)).await;
    }

    async fn tell(&self, change: Change) {
        match reconcile::change(&self.node, change.clone()).await {
            Ok(reply) if reply.is_done() => tracing::info!(?change, "the registry changes"),
            // Somebody was faster, or it has changed since.
            Ok(reply) => tracing::debug!(?change, error = reply.error, "the registry has changed meanwhile"),
            Err(error) => tracing::debug!(?change, %error, "the registry cannot be changed now"),
        }
    }

    /// The leader of the meta group wishes what comes next.
    async fn plan(&self) {
        let leads = || self.node.leadership(META_GROUP).is_some_and(|(_, l)| l == Some(self.node.store()));
        let next = |registry: &Registry| plan(registry, &self.observed());
        if !leads() || next(&self.registry.borrow()).is_empty() {
            return;
        }
        // A new leader may not have applied all that was decided; only what is certain is planned with.
        if self.node.read_barrier(META_GROUP).await.is_err() || !leads() {
            return;
        }
        let steps = next(&self.registry.borrow());
        for step in steps {
            self.tell(step).await;
        }
    }

    fn observed(&self) -> Observed {
        let mut alive = reached(&self.node.transport().links());
        alive.insert(self.node.store().0);
        Observed { alive }
    }
}

/// Whether a replica is what it is to be.
pub(crate) fn is_settled(replica: &ReplicaRecord) -> bool {
    matches!(replica.state(), ReplicaState::Voter | ReplicaState::Learner)
}

/// Whether members of groups, or stores, are on their way.
pub(crate) fn is_busy(registry: &Registry) -> bool {
    let on_its_way = |state| matches!(state, StoreState::Joining | StoreState::Leaving | StoreState::Kicked);
    registry.stores.values().any(|s| on_its_way(s.state()))
        || registry.all_groups().any(|g| g.replicas.iter().any(|r| !is_settled(r)))
}
