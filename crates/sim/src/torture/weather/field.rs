//! A cluster whose stores reach each other through proxies, and its keyspaces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::{CreateKeyspaceRequest, IdentityRequest, ListKeyspacesRequest};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::super::args::ClusterArguments;
use super::super::cluster::{Cluster, STORES};
use super::proxy::Proxy;

/// Leaders that stay where they are for so long have been spread.
const SETTLED: Duration = Duration::from_secs(6);
/// Making the keyspaces and spreading their leaders may take so long.
const SETTLE_MAX: Duration = Duration::from_secs(300);

/// Three stores. What goes to store `i` goes through `proxies[i]`.
pub(crate) struct Field {
    pub(crate) cluster: Cluster,
    pub(crate) proxies: Vec<Proxy>,
    /// The stores' ids.
    ids: Vec<u64>,
}

/// Who leads a keyspace, and in which term.
pub(crate) type Leaders = BTreeMap<String, (Option<u64>, u64)>;

async fn admin(address: &str) -> anyhow::Result<AdminClient<Channel>> {
    Ok(AdminClient::new(Endpoint::from_shared(format!("http://{address}"))?.connect().await?))
}

impl Field {
    /// Starts the stores with these flags, and makes keyspaces.
    pub(crate) async fn start(
        arguments: &ClusterArguments,
        flags: &[&str],
        keyspaces: u64,
    ) -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(arguments)?;
        let mut proxies = Vec::new();
        for store in &cluster.stores {
            proxies.push(Proxy::to(store.peer.parse()?).await.context("a proxy")?);
        }
        let dials = cluster.stores.iter().zip(&proxies);
        let dials: Vec<_> = dials.map(|(store, proxy)| format!("{}={}", store.name, proxy.address)).collect();
        cluster.add_flags(["--dial".to_owned(), dials.join(",")]);
        cluster.add_flags(flags.iter().map(|flag| (*flag).to_owned()));
        cluster.launch().await?;
        let mut ids = Vec::new();
        for store in &cluster.stores {
            ids.push(admin(&store.client).await?.identity(IdentityRequest {}).await?.into_inner().store);
        }
        let field = Self { cluster, proxies, ids };
        field.make(keyspaces).await?;
        Ok(field)
    }

    async fn make(&self, keyspaces: u64) -> anyhow::Result<()> {
        let client = admin(&self.cluster.stores[0].client).await?;
        let mut tasks = JoinSet::new();
        for worker in 0..8 {
            let mut client = client.clone();
            tasks.spawn(async move {
                for n in (worker..keyspaces).step_by(8) {
                    let until = Instant::now() + SETTLE_MAX;
                    loop {
                        let request =
                            CreateKeyspaceRequest { name: format!("w{n}"), replicas: STORES as u32 };
                        match client.create_keyspace(request).await {
                            Ok(_) => break,
                            // A try before this one got through.
                            Err(status) if status.code() == Code::AlreadyExists => break,
                            Err(status) if Instant::now() > until => return Err(status),
                            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                        }
                    }
                }
                Ok(())
            });
        }
        while let Some(made) = tasks.join_next().await {
            made?.context("making the keyspaces")?;
        }
        Ok(())
    }

    /// Who leads what, as the first store knows it.
    pub(crate) async fn leaders(&self) -> anyhow::Result<Leaders> {
        let mut client = admin(&self.cluster.stores[0].client).await?;
        let list = client.list_keyspaces(ListKeyspacesRequest {}).await?.into_inner().keyspaces;
        let own = list.into_iter().filter(|keyspace| keyspace.name.starts_with('w'));
        Ok(own.map(|keyspace| (keyspace.name, (keyspace.leader, keyspace.term))).collect())
    }

    /// Waits until each keyspace has a leader and no leadership moves any more.
    pub(crate) async fn settled(&self) -> anyhow::Result<Leaders> {
        let until = Instant::now() + SETTLE_MAX;
        let (mut last, mut since) = (self.leaders().await?, Instant::now());
        while since.elapsed() < SETTLED || last.values().any(|(leader, _)| leader.is_none()) {
            if Instant::now() > until {
                bail!("leaderships still move after {SETTLE_MAX:?}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.leaders().await?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }

    /// The keyspaces that one of these stores leads.
    pub(crate) fn led_by(&self, leaders: &Leaders, stores: &[usize]) -> anyhow::Result<Arc<[String]>> {
        let ids: Vec<u64> = stores.iter().map(|store| self.ids[*store]).collect();
        let led =
            leaders.iter().filter(|(_, (leader, _))| leader.is_some_and(|leader| ids.contains(&leader)));
        let names: Arc<[String]> = led.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            bail!("none of the keyspaces is led by one of {stores:?}: make more with --groups");
        }
        Ok(names)
    }

    /// What a store's process holds in memory, in bytes: its anonymous pages.
    pub(crate) fn memory_bytes(&self, store: usize) -> anyhow::Result<u64> {
        let pid = self.cluster.pid(store).context("every store has a process")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.context("RssAnon in /proc")? << 10)
    }
}

/// How many of these keyspaces had an election between two looks.
pub(crate) fn elections(before: &Leaders, after: &Leaders, keyspaces: &[String]) -> usize {
    let term = |leaders: &Leaders, name: &String| leaders.get(name).map(|(_, term)| *term);
    keyspaces.iter().filter(|name| term(before, name) != term(after, name)).count()
}
