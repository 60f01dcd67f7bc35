//! Changing the members of a running group: adding and removing replicas, opening one that is to join, and hearing how a
//! change ended. The rules are the core's (`pontoon_raft_core`'s `server_change.rs`); here is the way to them.

use pontoon_raft_core::confchange::{ConfigurationChange, MemberChange};
use pontoon_raft_core::types::{EntryId, GroupId, ReplicaId};
use pontoon_raft_core::{ServerChangeDone, ServerChangeError, ServerPhase};
use tokio::sync::{broadcast, oneshot};

use crate::error::{ChangeMembersError, OpenGroupError};
use crate::group_host::GroupHost;
use crate::node::{Birth, Node};
use crate::shard::Input;
use crate::state_machine::StateMachine;

/// How many ends of changes a slow listener may be behind before it hears that it missed some.
pub(crate) const EVENTS_MAX: usize = 1024;

/// What is asked of a group's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberRequest {
    /// As a learner, which becomes a voter when it has caught up.
    AddVoter(ReplicaId),
    /// As a learner that stays one.
    AddLearner(ReplicaId),
    /// Out of the group, whatever it is.
    Remove(ReplicaId),
}

impl MemberRequest {
    /// Asks the core.
    pub(crate) fn ask(self, host: &mut GroupHost, now: u64) -> Result<ServerPhase, ServerChangeError> {
        match self {
            Self::AddVoter(replica) => host.core.add_server(now, replica),
            Self::Remove(replica) => host.core.remove_server(now, replica),
            Self::AddLearner(replica) => {
                if host.core.configuration().members().contains(&replica) {
                    // Also a voter: nobody loses its vote by this.
                    return Err(ServerChangeError::AlreadyPresent);
                }
                let change = ConfigurationChange::Change(vec![MemberChange::AddLearner(replica)]);
                host.core.propose_configuration(now, EntryId::NONE, &change)?;
                Ok(ServerPhase::Committing)
            }
        }
    }
}

impl Node {
    /// Opens this store's replica of a group that exists elsewhere and is to take this store in: it begins with nothing, no
    /// members, and waits for the group's leader, which must be asked to add it ([`Node::add_server`]). If the log store has
    /// the replica already, it goes on from there. Blocks on the disk; call it where that is allowed.
    ///
    /// # Errors
    /// As [`Node::open_group`]; also if this replica, or a later one of the group, was destroyed on this store.
    pub fn join_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Box<dyn StateMachine>,
    ) -> Result<(), OpenGroupError> {
        self.open_replica(group, Birth::Joining(replica), machine)
    }

    /// Asks this store's replica, which must lead the group, to add a replica as a voter: as a learner first, and with a vote
    /// when it is close behind. Returns when the change is begun; see [`Node::server_changes`] for its end, and
    /// [`Node::group_status`] for its phases. Asking again does no harm, here or at the next leader.
    ///
    /// # Errors
    /// This store does not lead the group, or the change is refused.
    pub async fn add_server(
        &self,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<ServerPhase, ChangeMembersError> {
        self.change_members(group, MemberRequest::AddVoter(replica)).await
    }

    /// As [`Node::add_server`], but the replica stays a learner: it receives the log, and neither votes nor counts. It is one
    /// when the group's configuration says so and is committed; there is no event.
    ///
    /// # Errors
    /// As [`Node::add_server`]; another change of members may have to end first.
    pub async fn add_learner(
        &self,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<ServerPhase, ChangeMembersError> {
        self.change_members(group, MemberRequest::AddLearner(replica)).await
    }

    /// Asks this store's replica, which must lead the group, to remove a replica; its own too, which then leads no longer. An
    /// addition of it that is not in the log yet is called off.
    ///
    /// # Errors
    /// This store does not lead the group, or the change is refused.
    pub async fn remove_server(
        &self,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<ServerPhase, ChangeMembersError> {
        self.change_members(group, MemberRequest::Remove(replica)).await
    }

    /// The ends of changes of members in all groups that this store leads, from now on. Who lags too far behind misses some
    /// and is told so; what counts is in the groups' configurations.
    #[must_use]
    pub fn server_changes(&self) -> broadcast::Receiver<(GroupId, ServerChangeDone)> {
        self.member_events().subscribe()
    }

    async fn change_members(
        &self,
        group: GroupId,
        request: MemberRequest,
    ) -> Result<ServerPhase, ChangeMembersError> {
        let (answer, result) = oneshot::channel();
        if !self.tell_shard(group, Input::ChangeMembers { group, request, answer }) {
            return Err(ChangeMembersError::NoReplica { group });
        }
        Ok(result.await.map_err(|_| ChangeMembersError::NoReplica { group })??)
    }
}
