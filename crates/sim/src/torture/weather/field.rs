//! A cluster whose stores reach each other through proxies, and its keyspaces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::status_response::View;
use pontoon_proto::v1::{
    ClusterStatus, CreateKeyspaceRequest, IdentityRequest, ListKeyspacesRequest, MemoryRequest,
    SetFlowControlRequest, StatusRequest,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::super::args::ClusterArguments;
use super::super::cluster::{Cluster, STORES};
use super::super::metrics::counter;
use super::proxy::{Proxy, Wire};

/// Leaders that stay where they are for so long have been spread.
const SETTLED: Duration = Duration::from_secs(6);
/// Making the keyspaces and spreading their leaders may take so long.
const SETTLE_MAX: Duration = Duration::from_secs(300);

/// Three stores.
pub(crate) struct Field {
    pub(crate) cluster: Cluster,
    /// What goes to store `i` goes over `wires[i]`.
    pub(crate) wires: Vec<Wire>,
    /// What store `i` sends to store `j` goes through `proxies[i][j]`.
    proxies: Vec<Vec<Proxy>>,
    /// The stores' ids.
    ids: Vec<u64>,
}

/// Makes keyspaces of three replicas, `w0` and so on.
pub(crate) async fn make_keyspaces(address: &str, keyspaces: u64) -> anyhow::Result<()> {
    let client = admin(address).await?;
    let mut tasks = JoinSet::new();
    for worker in 0..8 {
        let mut client = client.clone();
        tasks.spawn(async move {
            for n in (worker..keyspaces).step_by(8) {
                let until = Instant::now() + SETTLE_MAX;
                loop {
                    let request = CreateKeyspaceRequest { name: format!("w{n}"), replicas: STORES as u32 };
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

/// Who leads a keyspace, and in which term.
pub(crate) type Leaders = BTreeMap<String, (Option<u64>, u64)>;

pub(crate) async fn admin(address: &str) -> anyhow::Result<AdminClient<Channel>> {
    Ok(AdminClient::new(Endpoint::from_shared(format!("http://{address}"))?.connect().await?))
}

impl Field {
    /// Starts the stores with these flags, and makes keyspaces.
    pub(crate) async fn start(
        arguments: &ClusterArguments,
        flags: &[&str],
        keyspaces: u64,
    ) -> anyhow::Result<Self> {
        Self::start_prepared(Cluster::prepare(arguments)?, flags, keyspaces).await
    }

    /// The same with stores that were prepared before.
    pub(crate) async fn start_prepared(
        mut cluster: Cluster,
        flags: &[&str],
        keyspaces: u64,
    ) -> anyhow::Result<Self> {
        let wires: Vec<_> = (0..STORES).map(|_| Wire::new()).collect();
        let mut proxies = Vec::new();
        for from in 0..STORES {
            let (mut row, mut dials) = (Vec::new(), Vec::new());
            for (store, wire) in cluster.stores.iter().zip(&wires) {
                let proxy = Proxy::over(wire.clone(), store.peer.parse()?).await.context("a proxy")?;
                dials.push(format!("{}={}", store.name, proxy.address));
                row.push(proxy);
            }
            cluster.stores[from].flags = vec!["--dial".to_owned(), dials.join(",")];
            proxies.push(row);
        }
        cluster.add_flags(flags.iter().map(|flag| (*flag).to_owned()));
        cluster.launch().await?;
        let mut ids = Vec::new();
        for store in &cluster.stores {
            ids.push(admin(&store.client).await?.identity(IdentityRequest {}).await?.into_inner().store);
        }
        let field = Self { cluster, wires, proxies, ids };
        make_keyspaces(&field.cluster.stores[0].client, keyspaces).await?;
        Ok(field)
    }

    /// Who leads what, as the first store knows it.
    pub(crate) async fn leaders(&self) -> anyhow::Result<Leaders> {
        self.leaders_at(0).await
    }

    /// The same, as another store knows it.
    pub(crate) async fn leaders_at(&self, store: usize) -> anyhow::Result<Leaders> {
        let mut client = admin(&self.cluster.stores[store].client).await?;
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

    /// Whether these two stores cannot reach each other. Both reach the others.
    pub(crate) fn set_apart(&self, one: usize, other: usize, apart: bool) {
        self.proxies[one][other].set_cut(apart);
        self.proxies[other][one].set_cut(apart);
    }

    /// Whether what `from` sends to `to` gets lost, on all connections between them.
    pub(crate) fn set_lost(&self, from: usize, to: usize, lost: bool) {
        self.proxies[from][to].set_cut_towards(lost);
        self.proxies[to][from].set_cut_back(lost);
    }

    /// Whether `to` takes nothing off the connections that `from` has opened, which carry all that `from` says.
    pub(crate) fn set_unread(&self, from: usize, to: usize, unread: bool) {
        self.proxies[from][to].set_cut_towards(unread);
    }

    /// A counter in a store's metrics.
    pub(crate) async fn counter(&self, store: usize, name: &str) -> anyhow::Result<f64> {
        counter(&self.cluster.stores[store].client, name).await
    }

    /// What flow control governs from now on, on all stores.
    pub(crate) async fn set_flow_control(&self, mode: &str) -> anyhow::Result<()> {
        for store in &self.cluster.stores {
            let request = SetFlowControlRequest { mode: Some(mode.to_owned()), ..Default::default() };
            admin(&store.client).await?.set_flow_control(request).await?;
        }
        Ok(())
    }

    /// What a store says about itself.
    pub(crate) async fn status(&self, store: usize) -> anyhow::Result<ClusterStatus> {
        let mut client = admin(&self.cluster.stores[store].client).await?;
        match client.status(StatusRequest::default()).await?.into_inner().view {
            Some(View::Cluster(status)) => Ok(status),
            _ => bail!("no status of the cluster"),
        }
    }

    /// What a store holds in memory by its own books, in bytes, by purpose.
    pub(crate) async fn books(&self, store: usize) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut client = admin(&self.cluster.stores[store].client).await?;
        let figures = client.memory(MemoryRequest {}).await?.into_inner().figures;
        Ok(figures.into_iter().map(|figure| (figure.name, figure.value)).collect())
    }

    /// How many entries this store has yet to apply that another one has applied.
    pub(crate) async fn lag(&self, store: usize) -> anyhow::Result<u64> {
        let mut most = BTreeMap::<u64, u64>::new();
        for other in (0..STORES).filter(|other| *other != store) {
            for group in self.status(other).await?.groups {
                let seen = most.entry(group.group_id).or_default();
                *seen = group.applied.unwrap_or(0).max(*seen);
            }
        }
        let own: BTreeMap<_, _> =
            self.status(store).await?.groups.into_iter().map(|g| (g.group_id, g.applied)).collect();
        let behind =
            |(group, most): (&u64, &u64)| most.saturating_sub(own.get(group).copied().flatten().unwrap_or(0));
        Ok(most.iter().map(behind).sum())
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
