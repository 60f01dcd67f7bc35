//! Waits until the cluster serves.

use std::time::Duration;

use anyhow::{Context, bail};
use pontoon_proto::etcdserverpb::RangeRequest;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::v1::CreateKeyspaceRequest;
use pontoon_proto::v1::admin_client::AdminClient;
use tonic::Code;

use super::plan::Plan;
use crate::cli::connect::{Dialer, refusal};
use crate::config::HostPort;

/// Pause between two attempts: short beside an election, and cheap.
const RETRY: Duration = Duration::from_millis(50);

/// How long the stores may take until they serve. Far more than they need, even on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Waits until every store answers a linearizable read, which takes a leader and a majority, exactly as a
/// write does. Then makes the keyspaces `ks-1` to `ks-N` that do not exist, and returns their names.
pub(super) async fn bring_up(plan: &Plan, keyspaces: u32, timeout: Duration) -> anyhow::Result<Vec<String>> {
    let all_answer = async {
        for store in &plan.stores {
            while !answers(&store.client, timeout).await {
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    if tokio::time::timeout(READY_WITHIN, all_answer).await.is_err() {
        let logs = plan.log_pattern();
        bail!("the cluster does not take requests after {READY_WITHIN:?}; see the logs in {logs}");
    }
    let names: Vec<_> = (1..=keyspaces).map(|i| format!("ks-{i}")).collect();
    create_keyspaces(&Dialer::plain(timeout), &plan.stores[0].client, &names).await?;
    Ok(names)
}

async fn answers(address: &HostPort, timeout: Duration) -> bool {
    let read = async {
        let mut client = KvClient::new(Dialer::plain(timeout).channel(address).await.ok()?);
        client.range(RangeRequest { key: "pontoon-dev".into(), ..RangeRequest::default() }).await.ok()
    };
    matches!(tokio::time::timeout(timeout, read).await, Ok(Some(_)))
}

/// Makes those of the keyspaces that do not exist yet.
pub(crate) async fn create_keyspaces(
    dialer: &Dialer,
    address: &HostPort,
    names: &[String],
) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut client = AdminClient::new(dialer.channel(address).await?);
    for name in names {
        let request = CreateKeyspaceRequest { name: name.clone(), replicas: 0 };
        match tokio::time::timeout(dialer.timeout(), client.create_keyspace(request)).await {
            Ok(Ok(_made)) => {}
            Ok(Err(status)) if status.code() == Code::AlreadyExists => {}
            Ok(Err(status)) => {
                return Err(refusal(dialer, address, &status).context(format!("creating keyspace {name}")));
            }
            Err(elapsed) => {
                return Err(elapsed).with_context(|| format!("creating keyspace {name} at {address}"));
            }
        }
    }
    Ok(())
}
