//! The other side: a store is asked, on its peer listener, to let a new one in. Whoever asks is a stranger, so everything it
//! says is checked here, and few are heard at a time.

use std::sync::Arc;
use std::time::Duration;

use pontoon_node::Node;
use pontoon_node::meta::{MetaReply, Registry, StoreRecord, meta_command};
use pontoon_proto::peer::v1::membership_server::Membership;
use pontoon_proto::peer::v1::{JoinOutcome, JoinReply, JoinRequest, KnownStore};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

use crate::config::{HostPort, check_store_name};
use crate::reconcile;

/// The version of the peer protocol.
pub(crate) const PROTOCOL_VERSION: u32 = 1;
/// Strangers that are heard at a time.
const ASKING_MAX: usize = 16;
/// How long the registry may take.
const DECIDED_MAX: Duration = Duration::from_secs(4);

/// Lets stores in.
pub(crate) struct MembershipService {
    node: Node,
    registry: watch::Receiver<Arc<Registry>>,
    cluster: u64,
    asking: Semaphore,
}

impl MembershipService {
    pub(crate) fn new(node: Node, registry: watch::Receiver<Arc<Registry>>, cluster: u64) -> Self {
        Self { node, registry, cluster, asking: Semaphore::new(ASKING_MAX) }
    }

    async fn decide(&self, request: JoinRequest) -> JoinReply {
        let answer = |outcome: JoinOutcome, reason: String| JoinReply {
            outcome: outcome.into(),
            reason,
            ..self.reply()
        };
        if let Err(reason) = self.check(&request) {
            return answer(JoinOutcome::Refused, reason);
        }
        let Ok(_place) = self.asking.try_acquire() else {
            return answer(JoinOutcome::Retry, "too many ask at the same time".to_owned());
        };
        let record = StoreRecord {
            store: request.store,
            name: request.name,
            peer_address: request.peer_address,
            client_address: request.client_address,
            lineage: request.lineage,
            ..StoreRecord::default()
        };
        let change = reconcile::change(&self.node, meta_command::Change::AddStore(record));
        match tokio::time::timeout(DECIDED_MAX, change).await {
            Ok(Ok(reply)) if reply.is_done() => self.let_in(&reply),
            Ok(Ok(reply)) if reply.exists => answer(JoinOutcome::Retry, reply.error),
            Ok(Ok(reply)) => answer(JoinOutcome::Refused, reply.error),
            Ok(Err(error)) => {
                answer(JoinOutcome::Retry, format!("the registry cannot be changed now: {error}"))
            }
            Err(_) => answer(JoinOutcome::Retry, "the registry did not answer in time".to_owned()),
        }
    }

    fn check(&self, request: &JoinRequest) -> Result<(), String> {
        if request.protocol_version != PROTOCOL_VERSION {
            let theirs = request.protocol_version;
            return Err(format!(
                "protocol version {theirs} is not {PROTOCOL_VERSION}; join with a build of this version"
            ));
        }
        if request.cluster != 0 && request.cluster != self.cluster {
            return Err(format!(
                "this is cluster {:016x}, not {:016x}; name stores of the cluster that is meant, or another cluster id",
                self.cluster, request.cluster
            ));
        }
        if request.store == 0 || request.lineage == 0 {
            return Err("a store that joins must say its id and its directory's lineage".to_owned());
        }
        check_store_name(&request.name)?;
        for (what, address) in [("peer", &request.peer_address), ("client", &request.client_address)] {
            let parsed: HostPort =
                address.parse().map_err(|e| format!("its {what} address {address:?}: {e}"))?;
            if what == "peer" && parsed.is_unspecified() {
                return Err(format!("its peer address {address} cannot be dialled; give --advertise-peer"));
            }
        }
        Ok(())
    }

    fn reply(&self) -> JoinReply {
        let registry = self.registry.borrow();
        JoinReply {
            cluster: self.cluster,
            stores: registry.stores.values().map(known).collect(),
            ..JoinReply::default()
        }
    }

    fn let_in(&self, reply: &MetaReply) -> JoinReply {
        let registry = self.registry.borrow();
        JoinReply {
            outcome: JoinOutcome::Accepted.into(),
            store: reply.store,
            replica_number: reply.number,
            cluster: self.cluster,
            stores: registry.stores.values().filter(|s| s.store != reply.store).map(known).collect(),
            founders: registry.founders.iter().map(known).collect(),
            election_timer_ms: registry.election_timer_ms,
            ..JoinReply::default()
        }
    }
}

fn known(store: &StoreRecord) -> KnownStore {
    KnownStore { store: store.store, name: store.name.clone(), peer_address: store.peer_address.clone() }
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        Ok(Response::new(self.decide(request.into_inner()).await))
    }
}
