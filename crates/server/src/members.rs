//! Groups follow stores. The leader of the meta group plans what is wished next (`pontoon_node::meta::plan`), and the leader
//! of each group makes its members what is wished and tells the registry when that is done. Nobody remembers anything: each
//! step is read off the registry and the group's own configuration, so whoever leads next goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pontoon_node::meta::meta_command::{Change, MoveReplica, Step};
use pontoon_node::meta::{
    GroupRecord, META_GROUP, Observed, Registry, ReplicaRecord, ReplicaState, StoreState, plan,
};
use pontoon_node::{ChangeMembersError, DriverStep, Node};
use pontoon_raft_core::status::Status;
use pontoon_raft_core::types::{Configuration, ReplicaId, Role, StoreId};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::move_pace::MovePace;
use crate::reach::reached;
use crate::reconcile;
use crate::spread::Spread;

/// How often what is under way is looked at: leaders change without a word.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a cluster at rest is.
const REST_INTERVAL: Duration = Duration::from_secs(2);

/// The pace of moves, with a clock.
struct Paced {
    origin: Instant,
    pace: MovePace,
}

impl Paced {
    fn new() -> Self {
        Self { origin: Instant::now(), pace: MovePace::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn pass(&mut self, node: &Node, moving: bool) {
        self.pace.pass(self.now(), node.answered(), moving);
    }

    fn may_step(&self) -> bool {
        self.pace.may_step(self.now())
    }

    fn stepped(&mut self) {
        self.pace.stepped(self.now());
    }

    /// How long a step has to wait; a look at what is under way need not come sooner, either.
    fn wait(&self) -> Duration {
        match self.pace.wait(self.now()) {
            Duration::ZERO => BUSY_INTERVAL,
            wait => wait,
        }
    }
}

/// How long a group may take to confirm who leads it: the other groups wait meanwhile, and there is another look.
const CONFIRM_MAX: Duration = Duration::from_millis(500);

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
        let mut pace = Paced::new();
        loop {
            let registry = Arc::clone(&self.registry.borrow_and_update());
            pace.pass(&self.node, is_busy(&registry));
            self.lead(&registry, &mut pace).await;
            self.plan().await;
            if is_busy(&registry) {
                spread.wait();
            } else {
                spread.step(&self.node, &registry).await;
            }
            let pause = if is_busy(&registry) { pace.wait().min(BUSY_INTERVAL) } else { REST_INTERVAL };
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
    ///
    /// The registry here may be older than what the others know. Replica numbers are never given again, so what it wishes to
    /// be removed stays to be removed; but a replica that it wishes to join may have gone meanwhile. Then it is taken in as a
    /// learner that never answers, which costs the group nothing, and goes again when the registry here has caught up
    /// ([`strangers`]). What the registry is told on the other hand is asked of the group first ([`Members::is_gone`]).
    async fn lead(&self, registry: &Registry, pace: &mut Paced) {
        let goes = registry.stores.get(&self.node.store().0).is_some_and(|own| own.goes());
        for group in registry.all_groups() {
            let unsettled = group.replicas.iter().any(|r| !is_settled(r));
            let more = self.node.member_count(group.id()).is_some_and(|n| n > group.replicas.len());
            if !(unsettled || goes || more) || !self.leads(group) {
                continue;
            }
            let Some(status) = self.node.group_status(group.id()).await else { continue };
            if status.core.role != Role::Leader {
                continue;
            }
            if goes && let Some(heir) = self.heir(registry, group, &status.core) {
                if status.core.transferring_to.is_none() && pace.may_step() {
                    self.hand_over(group, heir).await;
                    pace.stepped();
                }
                continue;
            }
            for replica in group.replicas.iter().filter(|r| !is_settled(r)) {
                self.step(group, replica, &status.core, pace).await;
            }
            for stranger in strangers(group, &status.core.configuration) {
                tracing::info!(group = group.name, replica = %stranger, "removes a replica that came back after its removal");
                self.remove(group, stranger, pace).await;
            }
        }
    }

    /// A store that goes leads nothing that another one can lead: who is that?
    fn heir(&self, registry: &Registry, group: &GroupRecord, core: &Status) -> Option<StoreId> {
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
        let heir = group.voters().filter(stays).filter(heard).min_by_key(|r| silent(r.id()))?;
        Some(StoreId(heir.store))
    }

    async fn hand_over(&self, group: &GroupRecord, heir: StoreId) {
        self.node.failures().reach(DriverStep::HandOver.before());
        let asked = self.node.transfer_leadership(group.id(), Some(heir)).await;
        self.node.failures().reach(DriverStep::HandOver.after());
        if let Err(error) = asked {
            tracing::debug!(group = group.name, error, "leadership stays for now");
        }
    }

    async fn step(&self, group: &GroupRecord, replica: &ReplicaRecord, core: &Status, pace: &mut Paced) {
        let id = replica.id();
        // What has begun goes on by itself; more begins when clients can bear it.
        let waits = core.server_changes.iter().any(|(changing, _)| *changing == id) || !pace.may_step();
        let configuration = &core.configuration;
        let settled = core.configuration_index <= core.commit_index && !configuration.is_joint();
        let done = match replica.state() {
            ReplicaState::Joining if configuration.voters.contains(&id) => settled.then_some(Step::Placed),
            ReplicaState::JoiningLearner if configuration.members().contains(&id) => {
                settled.then_some(Step::Placed)
            }
            ReplicaState::Joining | ReplicaState::JoiningLearner if waits => None,
            ReplicaState::Joining => self.add(group, self.node.add_server(group.id(), id), pace).await,
            ReplicaState::JoiningLearner => {
                self.add(group, self.node.add_learner(group.id(), id), pace).await
            }
            ReplicaState::Removing if !configuration.members().contains(&id) => {
                (settled && self.is_gone(group, id).await).then_some(Step::Removed)
            }
            ReplicaState::Removing if waits => None,
            ReplicaState::Removing if id == core.id && configuration.voters.len() > 1 => {
                // The next leader does it. If nobody takes over, this one removes itself at another look.
                match self.node.transfer_leadership(group.id(), None).await {
                    Ok(()) => None,
                    Err(_) => self.remove(group, id, pace).await,
                }
            }
            ReplicaState::Removing => self.remove(group, id, pace).await,
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

    /// Whether the group, not only this replica of it, has let a member go. The member's store destroys it as soon as the
    /// registry says so; somebody else may lead already, and have it among the voters.
    async fn is_gone(&self, group: &GroupRecord, replica: ReplicaId) -> bool {
        let barrier = self.node.read_barrier(group.id());
        if !matches!(tokio::time::timeout(CONFIRM_MAX, barrier).await, Ok(Ok(_))) {
            return false;
        }
        let Some(Status { role, configuration, configuration_index, commit_index, .. }) =
            self.node.group_status(group.id()).await.map(|status| status.core)
        else {
            return false;
        };
        role == Role::Leader
            && configuration_index <= commit_index
            && !configuration.members().contains(&replica)
    }

    async fn add<T>(
        &self,
        group: &GroupRecord,
        work: impl Future<Output = Result<T, ChangeMembersError>>,
        pace: &mut Paced,
    ) -> Option<Step> {
        self.ask(DriverStep::AskToAdd, group, work, pace).await
    }

    async fn remove(&self, group: &GroupRecord, replica: ReplicaId, pace: &mut Paced) -> Option<Step> {
        self.ask(DriverStep::AskToRemove, group, self.node.remove_server(group.id(), replica), pace).await
    }

    /// What is asked of the group is under way then, or refused for now: another look tells.
    async fn ask<T>(
        &self,
        step: DriverStep,
        group: &GroupRecord,
        work: impl Future<Output = Result<T, ChangeMembersError>>,
        pace: &mut Paced,
    ) -> Option<Step> {
        self.node.failures().reach(step.before());
        match work.await {
            Ok(_) => {
                pace.stepped();
                self.node.failures().reach(step.after());
            }
            // What is refused costs nobody anything, and must not keep the others waiting.
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

/// Members of a group that were removed from it by the registry: a leader that had not heard of it took them in again.
fn strangers(group: &GroupRecord, configuration: &Configuration) -> Vec<ReplicaId> {
    configuration.members().into_iter().filter(|member| group.has_removed(*member)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_the_registry_has_removed_are_strangers() {
        let replica = |store, number| ReplicaId { store: StoreId(store), number };
        let group = GroupRecord {
            group: 7,
            replicas: vec![
                ReplicaRecord::new(1, 1, ReplicaState::Voter),
                ReplicaRecord::new(2, 2, ReplicaState::Removing),
            ],
            next_number: 4,
            ..GroupRecord::default()
        };
        // The third was removed. Of the fourth this registry has not heard yet: it may be newer than that.
        let configuration = Configuration {
            voters: [replica(1, 1), replica(2, 2)].into(),
            learners: [replica(3, 3), replica(4, 4)].into(),
            ..Configuration::default()
        };
        assert_eq!(strangers(&group, &configuration), [replica(3, 3)]);
    }
}
