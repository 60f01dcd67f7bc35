//! Stores that leave or are kicked, and the replicas that move because of it.

use pontoon_node::meta::{ReplicaState, meta_command};
use pontoon_proto::v1 as api;
use tonic::Status;

use super::AdminService;
use crate::members::is_settled;

impl AdminService {
    pub(super) async fn leave_cluster(&self) -> Result<api::LeaveResponse, Status> {
        self.remove(self.header.store.0, false).await?;
        Ok(api::LeaveResponse { store: self.header.store.0, name: self.header.name.clone() })
    }

    pub(super) async fn kick(&self, text: &str) -> Result<api::KickStoreResponse, Status> {
        self.catch_up().await;
        let gone = |(id, gone): &(&u64, &pontoon_node::meta::RemovedStore)| {
            gone.name == text || format!("{id:016x}") == text.to_ascii_lowercase()
        };
        let meant = match self.store_meant(text) {
            Ok(store) => store,
            Err(unknown) => {
                // Asked for again, perhaps because the first answer was lost.
                let registry = self.registry();
                let found = registry.removed.iter().find(gone);
                let Some((id, gone)) = found else { return Err(unknown) };
                return Ok(api::KickStoreResponse { store: *id, name: gone.name.clone(), gone: true });
            }
        };
        self.remove(meant.store, true).await?;
        let gone = !self.registry().stores.contains_key(&meant.store);
        Ok(api::KickStoreResponse { store: meant.store, name: meant.name, gone })
    }

    async fn remove(&self, store: u64, kick: bool) -> Result<(), Status> {
        let remove = meta_command::RemoveStore { store, kick };
        let reply = self.change(meta_command::Change::RemoveStore(remove)).await?;
        match reply {
            reply if reply.is_done() => Ok(()),
            reply if reply.missing => Err(Status::not_found(reply.error)),
            reply => Err(Status::failed_precondition(reply.error)),
        }
    }

    pub(super) fn moves(&self, store: u64) -> api::ListMovesResponse {
        let registry = self.registry();
        let mut answer = api::ListMovesResponse::default();
        let concerns = |of: u64| store == 0 || store == of;
        for group in registry.all_groups() {
            answer.replicas +=
                group.replicas.iter().filter(|r| store != 0 && r.store == store).count() as u64;
            // A replica that comes because another one goes is news for both stores.
            let goes_here = group.replicas.iter().any(|r| concerns(r.store));
            for replica in group.replicas.iter().filter(|r| goes_here && !is_settled(r)) {
                let phase = match replica.state() {
                    ReplicaState::Removing => api::MemberPhase::Remove,
                    _ => api::MemberPhase::CatchUp,
                };
                answer.moves.push(api::Move {
                    group: group.name.clone(),
                    group_id: group.group,
                    store: replica.store,
                    name: registry.stores.get(&replica.store).map(|s| s.name.clone()).unwrap_or_default(),
                    phase: phase.into(),
                });
            }
        }
        answer.known = registry.stores.contains_key(&store);
        answer
    }
}
