//! A new store on its way into a cluster that runs: it asks one store after the other to be let in, until one says yes or
//! never. What it knows is in its directory before it asks, so it may be killed at any moment and goes on when it is started
//! again.

use std::path::Path;
use std::time::Duration;

use pontoon_node::meta::{Registry, RegistryMachine, StoreRecord};
use pontoon_node::state_machine::StateMachine as _;
use pontoon_proto::peer::v1::membership_client::MembershipClient;
use pontoon_proto::peer::v1::{JoinOutcome, JoinReply, JoinRequest, KnownStore};
use pontoon_raft_core::types::StoreId;
use pontoon_storage::{Header, LogStore};
use pontoon_tls::ClientTls;
use tonic::transport::Endpoint;

use crate::config::HostPort;
use crate::error::{UsageError, one_line};

mod note;
mod service;

pub(crate) use note::{Granted, JoinNote, Peer};
pub(crate) use service::{MembershipService, PROTOCOL_VERSION};

/// How often each of the known stores is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one store may take: it may have to wait for its cluster's disks.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// What is still in the way is said again after so many rounds.
const SAY_AGAIN_ROUNDS: u64 = 10;
/// Addresses learned from answers: more stores than this nobody needs to know in order to join.
const REMOTES_MAX: usize = 64;

/// Asks until this store is let in; the note has then what its directory is to know.
///
/// # Errors
/// A store says never (exit code 2), or the directory cannot be written.
pub(crate) async fn ask_until_let_in(
    dir: &Path,
    client: &str,
    tls: Option<&ClientTls>,
    note: &mut JoinNote,
) -> anyhow::Result<()> {
    let mut rounds = 0;
    let mut last_said = String::new();
    loop {
        let mut why = Vec::new();
        for address in note.remotes.clone() {
            let reply = match ask(&address, client, tls, note).await {
                Ok(reply) => reply,
                Err(error) => {
                    why.push(format!("{address}: {error}"));
                    continue;
                }
            };
            let learned = learn(note, &reply);
            match reply.outcome() {
                JoinOutcome::Accepted => {
                    note.granted = Some(granted(reply));
                    tracing::info!(at = %address, "the cluster lets this store in");
                    return Ok(());
                }
                JoinOutcome::Refused => {
                    return Err(UsageError::new(format!(
                        "--data-dir {}: {address} does not let this store in: {}",
                        dir.display(),
                        reply.reason
                    ))
                    .into());
                }
                JoinOutcome::Retry | JoinOutcome::Unspecified => {
                    if learned {
                        note.save(dir)?;
                    }
                    why.push(format!("{address}: {}", reply.reason));
                }
            }
        }
        let why = why.join("; ");
        if why != last_said || rounds % SAY_AGAIN_ROUNDS == 0 {
            tracing::warn!(why, "not let into the cluster yet: asking again each second");
            last_said = why;
        }
        rounds += 1;
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

async fn ask(
    address: &str,
    client: &str,
    tls: Option<&ClientTls>,
    note: &JoinNote,
) -> Result<JoinReply, String> {
    let request = JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        cluster: note.cluster.unwrap_or(0),
        store: note.store,
        lineage: note.lineage,
        name: note.name.clone(),
        peer_address: note.peer_address.clone(),
        client_address: client.to_owned(),
    };
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
        let connector = pontoon_tls::connector(tls.cloned());
        let channel = endpoint
            .connect_timeout(ANSWER_MAX)
            .connect_with_connector(connector)
            .await
            .map_err(|e| one_line(&e.into()))?;
        let mut membership = MembershipClient::new(channel);
        membership.join(request).await.map(tonic::Response::into_inner).map_err(|s| s.message().to_owned())
    };
    tokio::time::timeout(ANSWER_MAX, asked).await.map_err(|_| format!("no answer within {ANSWER_MAX:?}"))?
}

/// Takes over the addresses of an answer; whether there was a new one.
fn learn(note: &mut JoinNote, reply: &JoinReply) -> bool {
    let before = note.remotes.len();
    for store in &reply.stores {
        let fits = store.peer_address.parse::<HostPort>().is_ok_and(|a| !a.is_unspecified());
        if fits
            && store.peer_address != note.peer_address
            && note.remotes.len() < REMOTES_MAX
            && !note.remotes.contains(&store.peer_address)
        {
            note.remotes.push(store.peer_address.clone());
        }
    }
    note.remotes.len() > before
}

fn granted(reply: JoinReply) -> Granted {
    let peers = |stores: Vec<KnownStore>| {
        stores
            .into_iter()
            .map(|s| Peer { store: s.store, name: s.name, peer_address: s.peer_address })
            .collect()
    };
    Granted {
        cluster: reply.cluster,
        store: reply.store,
        replica_number: reply.replica_number,
        stores: peers(reply.stores),
        founders: peers(reply.founders),
        election_timer_ms: reply.election_timer_ms,
    }
}

/// Makes the directory that of a store of its cluster. The header comes last: a crash before it leaves what is done again.
///
/// # Errors
/// The directory cannot be written.
pub(crate) fn establish(dir: &Path, log: &LogStore, note: &JoinNote, client: &str) -> anyhow::Result<()> {
    let Some(granted) = &note.granted else { return Ok(()) };
    // What the others had before the first entry of the meta group's log; this store applies the same log.
    let founders = granted.founders.iter().map(|s| StoreRecord {
        store: s.store,
        name: s.name.clone(),
        peer_address: s.peer_address.clone(),
        ..StoreRecord::default()
    });
    let mut registry = Registry::bootstrap(founders);
    registry.election_timer_ms = granted.election_timer_ms;
    let (mut machine, _) = RegistryMachine::open(&dir.join("meta"), registry)?;
    machine.sync()?;
    log.initialize(Header {
        cluster: granted.cluster,
        store: StoreId(granted.store),
        name: note.name.clone(),
        peer_address: note.peer_address.clone(),
        client_address: client.to_owned(),
    })?;
    Ok(())
}
