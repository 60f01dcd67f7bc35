//! `etcdserverpb.Lease`.
//!
//! Grants and revocations are commands like any other, and work on every store. How much time a lease has left is
//! known to the leader only, so keep-alives and questions for it are answered by the leader's store; the server passes
//! those that come to another one on. The leader makes sure that it still leads before it promises a client more time:
//! who leads after it counts from the full TTL anyway.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use pontoon_proto::etcdserverpb::lease_server::Lease;
use pontoon_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use pontoon_raft_core::types::Term;
use tonic::{Code, Request, Response, Status, Streaming};

use super::session::{Session, needs_leader};
use super::{EtcdServices, LEASE_COST_BYTES, gather};
use crate::answers::Meter;
use crate::auth::Access;
use crate::command::Command;
use crate::consensus::{Consensus, read_status};
use crate::error::EtcdError;
use crate::leases::Renewal;
use crate::mvcc::state::Keyspace;

/// etcd's bound: larger ones do not fit into the clocks of some clients.
const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Free ids that are tried when the client leaves the choice to the server. One is nearly always enough.
const CHOICES_MAX: usize = 8;

/// How often a keep-alive of a lease that is about to end makes sure that this store still leads.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The shortest TTL that is granted: a leader can be replaced in less than that.
fn ttl_seconds_min(election_timeout: Duration) -> i64 {
    let seconds = (election_timeout.as_secs_f64() * 1.5).ceil();
    (seconds as i64).max(1)
}

/// How long a stream whose client asked for a leader goes on without one: three election timers, as in etcd.
pub(super) fn leaderless_max(election_timeout: Duration) -> Duration {
    3 * election_timeout
}

pub(super) fn random_id() -> Result<i64, Status> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Status::internal(format!("pontoon: no random numbers from the system: {e}")))?;
    Ok((i64::from_le_bytes(bytes) & i64::MAX).max(1))
}

impl<C: Consensus> EtcdServices<C> {
    /// The term in which this store leads the keyspace, as far as it knows.
    fn leading(&self, keyspace: &Keyspace) -> Result<Term, Status> {
        let status = self.consensus().status(keyspace.group());
        match status.map(|status| (status.leader, status.term)) {
            Some((Some(leader), term)) if leader == self.consensus().store_id() => Ok(term),
            Some((Some(_), _)) => Err(Status::unavailable("etcdserver: leader changed")),
            _ => Err(Status::unavailable("etcdserver: no leader")),
        }
    }

    /// Makes sure that this store leads, with a quorum as witness, and knows of all leases that were granted before.
    async fn lead_leases(&self, keyspace: &Keyspace) -> Result<(), Status> {
        let term = self.leading(keyspace)?;
        let barrier = self.consensus().read_barrier(keyspace.group()).await;
        barrier.map_err(|e| read_status(&e))?;
        if self.leading(keyspace)? != term {
            return Err(Status::unavailable("etcdserver: leader changed"));
        }
        keyspace.leases().lead(term, Instant::now());
        Ok(())
    }

    /// Resolves when no leader has been known for so long that clients should look for another store.
    async fn leader_lost(&self, keyspace: &Session) {
        let patience = leaderless_max(self.consensus().election_timeout());
        let mut seen = Instant::now();
        while seen.elapsed() < patience {
            tokio::time::sleep(LOOK_AGAIN.min(patience)).await;
            if !self.knows_no_leader(keyspace) {
                seen = Instant::now();
            }
        }
    }

    async fn renew(&self, keyspace: &Keyspace, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let ttl = loop {
            let changes = keyspace.leases().changes();
            let mut changed = pin!(changes.notified());
            changed.as_mut().enable();
            self.lead_leases(keyspace).await?;
            let renewal = keyspace.leases().renew(id, Instant::now());
            match renewal {
                Renewal::Renewed(ttl) => break ttl,
                // An unknown lease is told by a TTL of zero.
                Renewal::Unknown => break 0,
                // (Leadership can be lost without a change of the leases.)
                Renewal::Ending => _ = tokio::time::timeout(LOOK_AGAIN, changed).await,
            }
        };
        Ok(LeaseKeepAliveResponse { header: self.header(keyspace, keyspace.revision()), id, ttl })
    }
}

#[tonic::async_trait]
impl<C: Consensus> Lease for EtcdServices<C> {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let mut request = request.into_inner();
        if request.ttl > TTL_SECONDS_MAX {
            return Err(EtcdError::LeaseTtlTooLarge.status());
        }
        request.ttl = request.ttl.max(ttl_seconds_min(self.consensus().election_timeout()));
        self.make_room(&keyspace, None, LEASE_COST_BYTES).await?;
        let chosen_here = request.id == 0;
        let mut choices = CHOICES_MAX;
        loop {
            if chosen_here {
                request.id = random_id()?;
            }
            let granted: Result<LeaseGrantResponse, Status> =
                self.propose(&keyspace, None, Command::LeaseGrant(request).encode()).await;
            match granted {
                Err(refused) if refused.code() == Code::FailedPrecondition && chosen_here && choices > 0 => {
                    choices -= 1;
                }
                granted => {
                    let mut response = granted?;
                    self.complete(&keyspace, &mut response.header);
                    return Ok(Response::new(response));
                }
            }
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let command = Command::LeaseRevoke(request.into_inner()).encode();
        let mut response: LeaseRevokeResponse = self.propose(&keyspace, None, command).await?;
        self.complete(&keyspace, &mut response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        // One at a time: a client that does not read its answers is not read from. The stream ends with the first
        // error, and the client comes again, to whoever leads then.
        let needs_leader = needs_leader(request.metadata());
        let state = Some((self.clone(), keyspace, request.into_inner()));
        let answers = stream::unfold(state, move |state| async move {
            let (services, keyspace, mut requests) = state?;
            let answer = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => services.renew(&keyspace, request.id).await,
                    Ok(None) => return None,
                    Err(status) => Err(status),
                },
                () = services.leader_lost(&keyspace), if needs_leader => {
                    Err(Status::unavailable("etcdserver: no leader"))
                }
            };
            let next = answer.is_ok().then_some((services, keyspace, requests));
            Some((answer, next))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        let LeaseTimeToLiveRequest { id, keys } = *request.get_ref();
        self.lead_leases(&keyspace).await?;
        let left = keyspace.leases().time_to_live(id, Instant::now());
        let mut meter = keyspace.answers().meter();
        let mut response = LeaseTimeToLiveResponse {
            header: self.header(&keyspace, keyspace.revision()),
            id,
            // An unknown lease is told by this.
            ttl: -1,
            granted_ttl: 0,
            keys: Vec::new(),
        };
        if let Some((granted, left)) = left {
            response.granted_ttl = granted;
            response.ttl = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            if keys {
                let reader = keyspace.clone();
                let read = move |meter: &mut Meter| reader.keys_of_lease(id, meter);
                (response.keys, meter) = gather(keyspace.answers(), false, read).await?;
                // Who may not read one of them is told of none.
                keyspace.permit_user()?;
                for key in &response.keys {
                    keyspace.permit(Access::Read, key, &[])?;
                }
            }
        }
        Ok(meter.respond(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let keyspace = self.session(request.metadata(), request.extensions()).await?;
        self.read_barrier(&keyspace).await?;
        let leases = keyspace.leases().ids().into_iter().map(|id| LeaseStatus { id }).collect();
        let header = self.header(&keyspace, keyspace.revision());
        keyspace.answers().charged(LeaseLeasesResponse { header, leases }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_ttl_outlives_an_election() {
        for (ms, seconds) in [(100, 1), (1000, 2), (2000, 3), (600_000, 900)] {
            assert_eq!(ttl_seconds_min(Duration::from_millis(ms)), seconds);
        }
    }

    #[test]
    fn chosen_ids_are_positive() {
        for _ in 0..100 {
            assert!(random_id().unwrap() > 0);
        }
    }
}
