//! `pontoon cid` and `pontoon sid`: who is asked.

use pontoon_proto::v1::{IdentityRequest, IdentityResponse};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::Hex;

#[derive(Serialize)]
struct ClusterId {
    cluster: Hex,
}

#[derive(Serialize)]
struct StoreIdentity {
    store: Hex,
    name: String,
    address: String,
    client: String,
}

async fn identity(global: &Global) -> anyhow::Result<IdentityResponse> {
    ask(global, Repeat::Harmless, async |client| client.identity(IdentityRequest {}).await).await
}

/// Prints the cluster's id.
pub(crate) async fn cid(global: &Global) -> anyhow::Result<()> {
    let identity = identity(global).await?;
    let answer = ClusterId { cluster: Hex(identity.cluster) };
    global.output.print(&answer, |answer| answer.cluster.to_string())
}

/// Prints the id of the store that answers.
pub(crate) async fn sid(global: &Global) -> anyhow::Result<()> {
    let identity = identity(global).await?;
    let answer = StoreIdentity {
        store: Hex(identity.store),
        name: identity.name,
        address: identity.peer_address,
        client: identity.client_address,
    };
    global.output.print(&answer, |answer| answer.store.to_string())
}
