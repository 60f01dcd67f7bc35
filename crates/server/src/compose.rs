//! A checked `Config` becomes a running store: every part is started here, in order, and stopped here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use pontoon_kv::{Engine, EngineOptions, EtcdServices, UpkeepStats};
use pontoon_node::lineage::{Fenced, LineageError};
use pontoon_node::meta::{GroupRecord, META_GROUP, Registry, RegistryMachine, StoreRecord, StoreState};
use pontoon_node::state_machine::StateMachine as _;
use pontoon_node::{DriverStep, Node, NodeConfig, StartError};
use pontoon_proto::peer::v1::membership_server::MembershipServer;
use pontoon_raft_core::types::{ReplicaId, StoreId};
use pontoon_storage::{Header, LogStore, OpenError, Options};
use pontoon_transport::TransportConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::AdminService;
use crate::client_server::ClientServer;
use crate::config::{Bootstrap, Config};
use crate::consensus::{NodeConsensus, Schemes};
use crate::directory::KeyspaceDirectory;
use crate::error::UsageError;
use crate::forward::ForwardLayer;
use crate::join::{self, JoinNote, MembershipService};
use crate::members::Members;
use crate::reconcile::Reconciler;
use crate::tls::{CertificateLayer, Tls};
use crate::vouch::{self, Vouchers};
use crate::{health, shutdown};

/// How long requests in flight may take to finish once the store stops.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// How long a store that cannot tell the others its addresses puts off saying that it is ready.
const ANNOUNCED_MAX: Duration = Duration::from_secs(3);

/// How often a store that joins looks whether it leads already.
const LEADS_INTERVAL: Duration = Duration::from_millis(100);

/// Messages of strangers on the peer listener are no longer than this.
const JOIN_BYTES_MAX: usize = 16 << 10;

/// Runs a store until it is told to stop.
///
/// # Errors
/// The data directory is in the wrong state, an address cannot be bound, or a part fails while it runs.
pub(crate) async fn serve(mut config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    shutdown::watch_signals(stop.clone())?;
    let listeners = Listeners::bind(&config).await?;

    let tls = Tls::load(&config.tls)?;
    let (log, note) = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || open_log(&config)).await??
    };
    let note = match note {
        Some(note) if note.granted.is_none() => {
            let mut note = note;
            let client = config.advertise_client.to_string();
            let joined = join::ask_until_let_in(&config.data_dir, &client, tls.links.as_ref(), &mut note);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                joined = joined => joined?,
            }
            config.failures.reach(DriverStep::NoteGranted.before());
            note.save(&config.data_dir)?;
            config.failures.reach(DriverStep::NoteGranted.after());
            Some(note)
        }
        note => note,
    };
    let opened = {
        let (config, note) = (config.clone(), note.clone());
        tokio::task::spawn_blocking(move || Opened::open(&config, log, note.as_ref())).await??
    };
    let Opened { log, engine, registry, machine, header, mut own } = opened;
    if config.advertise_peer.is_unspecified()
        && let Ok(prepared) = header.peer_address.parse()
    {
        // Nobody can dial that; the directory was made with an address that they can.
        config.advertise_peer = prepared;
        own.peer_address = config.advertise_peer.to_string();
    }
    let granted = note.and_then(|note| note.granted);
    let timer_ms = match registry.borrow().election_timer_ms {
        0 => u64::try_from(config.election_timeout.as_millis()).unwrap_or(u64::MAX),
        founded_with => founded_with,
    };
    let mut node_config = NodeConfig::new(header.store);
    node_config.election_timer_ms = timer_ms;
    node_config.propose_timeout = Duration::from_secs(5) + 2 * config.election_timeout;
    node_config.read_timeout = node_config.propose_timeout;
    node_config.flow = config.flow_control;
    node_config.failures = Arc::clone(&config.failures);
    if config.failures.allowed() {
        tracing::warn!(
            "failures may be made on purpose here: any client may end this process (--enable-failure-injection)"
        );
    }
    let mut links = TransportConfig::new(header.cluster, header.store, header.name.clone());
    links.advertise = config.advertise_peer.to_string();
    links.election_timer_ms = timer_ms;
    links.tls = tls.links.clone();
    let node = match Node::start(node_config, random_u64()?, log, links) {
        Ok(node) => node,
        Err(StartError::Lineage(LineageError::Fenced { reason, removed })) => {
            return Err(fenced(&config, &header, &Fenced { by: None, reason, removed }));
        }
        Err(error) => return Err(error).context("cannot start the node"),
    };
    own.lineage = node.identity().lineage;
    own.start = node.identity().start;

    let tasks = TaskTracker::new();
    let peers = pontoon_tls::accept(listeners.peer, tls.peers.clone());
    // Peers are served for as long as the node runs: leaderships are handed over through them.
    let peers_stop = CancellationToken::new();
    let peer_server = pontoon_transport::server_builder()
        .add_service(node.transport().peer_service())
        .add_service(
            MembershipServer::new(MembershipService::new(node.clone(), registry.clone(), header.cluster))
                .max_decoding_message_size(JOIN_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(peers, peers_stop.clone().cancelled_owned());
    let peer_server = tokio::spawn(async move {
        if let Err(error) = peer_server.await {
            tracing::error!(%error, "the peer listener failed");
        }
    });

    let directory = Arc::new(KeyspaceDirectory::default());
    let reconciler = Reconciler {
        node: node.clone(),
        engine: engine.clone(),
        directory: Arc::clone(&directory),
        registry: registry.clone(),
        own: own.clone(),
        dial: config.dial.iter().map(|(name, address)| (name.clone(), address.to_string())).collect(),
        advertised: node.advertised(),
        data_dir: config.data_dir.clone(),
        followed: None,
    };
    let upkeep = Arc::new(UpkeepStats::default());
    let pages = health::routes(node.clone(), engine.clone(), Arc::clone(&upkeep));
    if let Some(listener) = listeners.metrics {
        tasks.spawn(health::serve(listener, pages.clone(), stop.clone()));
    }
    let known = Arc::clone(&registry.borrow());
    reconciler.dial(&known);
    let mut others: BTreeMap<_, _> = known
        .stores
        .values()
        .filter(|s| s.store != own.store && s.state() != StoreState::Reserved && !node.is_removed(s.id()))
        .map(|s| (StoreId(s.store), s.name.clone()))
        .collect();
    let own_meta = match &granted {
        None => None,
        Some(granted) => {
            // What the registry says here is of the cluster's first day; who is there now was told with the permission.
            others.clear();
            for peer in &granted.stores {
                let address = config
                    .dial
                    .get(&peer.name)
                    .map_or_else(|| peer.peer_address.clone(), ToString::to_string);
                node.transport().set_peer(StoreId(peer.store), address);
                others.insert(StoreId(peer.store), peer.name.clone());
            }
            Some(ReplicaId { store: header.store, number: granted.replica_number })
        }
    };
    let consensus = NodeConsensus::new(
        node.clone(),
        registry.clone(),
        &header,
        config.election_timeout,
        Schemes { clients_encrypted: tls.clients.is_some(), peers_encrypted: tls.peers.is_some() },
    );
    let leases = pontoon_kv::expire_leases(engine.clone(), Arc::new(consensus.clone()));
    tasks.spawn(stop.clone().run_until_cancelled_owned(leases));
    let looked_after = pontoon_kv::look_after(
        engine.clone(),
        Arc::new(consensus.clone()),
        config.limits,
        config.retention,
        upkeep,
    );
    tasks.spawn(stop.clone().run_until_cancelled_owned(looked_after));
    let admin = AdminService::new(
        node.clone(),
        registry.clone(),
        Arc::clone(&directory),
        header.clone(),
        &config,
        tls.stores.clone(),
    );
    let takes_part = Arc::new(AtomicBool::new(false));
    let asks_for_certificates = config.tls.client_auth;
    let server = ClientServer {
        node: node.clone(),
        etcd: EtcdServices::new(consensus, Arc::<KeyspaceDirectory>::clone(&directory), config.limits),
        admin,
        pages,
        certificates: CertificateLayer(Vouchers::new(registry.clone())),
        forward: ForwardLayer::new(
            node.clone(),
            directory,
            registry.clone(),
            Arc::clone(&takes_part),
            tls.stores.clone(),
        ),
        tls: tls.clients.clone(),
        admission: ClientServer::admission(),
    };
    tasks.spawn(stop.clone().run_until_cancelled_owned(tls.watch()));
    for (listener, bound) in listeners.clients {
        tasks.spawn(server.clone().run(listener, bound, stop.clone()));
    }
    let mut announcement = registry.clone();
    let mut membership = registry.clone();
    let joins = own_meta.is_some();
    let own_id = own.store;
    let ready = async {
        if joins {
            is_member(&mut membership, own_id).await;
        }
        announced(&mut announcement, own).await;
        announce_ready(&header, &config);
        anyhow::Ok(())
    };
    let take_part = async {
        // Nothing votes or acknowledges before: see `pontoon_node::lineage`.
        node.introduce(&others).await?;
        open_meta(&node, &known, own_meta, machine).await?;
        let members = Members { node: node.clone(), registry: registry.clone() };
        if joins {
            // What it has is the registry of the first day: nothing of that is to be followed before it has heard more.
            let mut caught_up = registry.clone();
            tokio::select! {
                () = is_member(&mut caught_up, own_id) => {}
                () = leads_meta(&node) => {}
            }
        } else {
            reconciler.open_groups(&known).await;
        }
        takes_part.store(true, Ordering::Release);
        tasks.spawn(reconciler.run(stop.clone()));
        tasks.spawn(members.run(stop.clone()));
        if asks_for_certificates {
            let secret = vouch::keep_secret(node.clone(), registry.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(secret));
        }
        Ok(())
    };
    let run = async {
        tokio::try_join!(ready, take_part)?;
        std::future::pending::<anyhow::Result<Infallible>>().await
    };
    let end = tokio::select! {
        biased;
        fenced = node.fenced() => End::Fenced(fenced),
        () = stop.cancelled() => End::Told,
        Err(failed) = run => return Err(failed),
    };
    let leaving = registry.borrow().stores.get(&own_id).is_some_and(|s| s.state() == StoreState::Leaving);
    if let End::Fenced(why) = &end
        && why.removed
    {
        config.failures.reach(DriverStep::NoteGone.before());
        if let Err(error) = std::fs::write(config.data_dir.join(GONE), &why.reason) {
            tracing::warn!(%error, "cannot leave a sign for `pontoon inspect`; the log has it noted");
        }
        config.failures.reach(DriverStep::NoteGone.after());
    }
    match &end {
        End::Told => shutdown::hand_over(&node).await,
        // Its links are down already: there is nobody to hand over to.
        End::Fenced(_) => stop.cancel(),
    }
    tasks.close();
    if tokio::time::timeout(DRAIN_MAX, tasks.wait()).await.is_err() {
        tracing::info!("some client streams were still open and are cut");
    }
    node.shutdown().await;
    peers_stop.cancel();
    peer_server.abort();
    tokio::task::spawn_blocking(move || drop(engine)).await?;
    end.outcome(&config, &header, leaving)
}

/// Why a store ends.
enum End {
    /// A signal.
    Told,
    /// Its directory must not act as this store.
    Fenced(Fenced),
}

impl End {
    /// `leaving`: it was to leave, so that it is gone now is what was wished.
    fn outcome(self, config: &Config, header: &Header, leaving: bool) -> anyhow::Result<()> {
        match self {
            Self::Told => Ok(()),
            Self::Fenced(why) if why.removed && leaving => {
                tracing::info!(name = header.name, "has left the cluster");
                Ok(())
            }
            Self::Fenced(why) => Err(fenced(config, header, &why)),
        }
    }
}

/// A directory that must not act as its store: exit code 2.
fn fenced(config: &Config, header: &Header, why: &Fenced) -> anyhow::Error {
    let reason = &why.reason;
    if why.removed {
        return UsageError::new(format!(
            "--data-dir {} cannot run as store {} ({}): {reason}; a store that is gone never comes back; to run one here \
             again, give a new directory and --join",
            config.data_dir.display(),
            header.name,
            header.store,
        ))
        .into();
    }
    let by = match why.by {
        Some(store) => format!("store {store} refuses it: "),
        None => String::new(),
    };
    UsageError::new(format!(
        "--data-dir {} must not run as store {} ({}): {by}{reason}; a store that has forgotten its votes or acknowledged \
         writes must not vote again; start it with the directory that it ran on last, and if that is lost, leave this \
         store stopped: the others go on without it (see \"Replacing a dead store\" in the documentation)",
        config.data_dir.display(),
        header.name,
        header.store,
    ))
    .into()
}

/// Waits until the cluster knows how this store is reached: whoever is told that it is ready may ask any store for the
/// members. A store whose peers are not there yet serves what it can, so the wait has an end.
async fn announced(registry: &mut watch::Receiver<Arc<Registry>>, own: StoreRecord) {
    let is_known = |known: &StoreRecord| {
        (&known.name, &known.peer_address, &known.client_address)
            == (&own.name, &own.peer_address, &own.client_address)
    };
    let known = registry.wait_for(|registry| registry.stores.get(&own.store).is_some_and(is_known));
    if tokio::time::timeout(ANNOUNCED_MAX, known).await.is_err() {
        tracing::info!(
            "ready, but the cluster does not know this store's address yet: no quorum was there to tell"
        );
    }
}

/// Waits until this store's own registry says that it is a member: then it has what the others have.
async fn is_member(registry: &mut watch::Receiver<Arc<Registry>>, own: u64) {
    let member = |r: &Arc<Registry>| r.stores.get(&own).is_some_and(|s| s.state() != StoreState::Joining);
    if registry.wait_for(member).await.is_err() {
        // The registry's machine is gone: so is the group, and the store with it.
        std::future::pending::<()>().await;
    }
}

/// The one line on standard output.
#[allow(clippy::print_stdout, reason = "the contract of `pontoon serve`: exactly one line, for scripts")]
fn announce_ready(header: &Header, config: &Config) {
    println!(
        "ready name={} store={} cluster={:016x} client={} peer={}",
        header.name, header.store, header.cluster, config.advertise_client, config.advertise_peer
    );
}

/// An id for a new store or cluster.
pub(crate) fn random_id() -> anyhow::Result<u64> {
    Ok(random_u64()?.max(1))
}

fn random_u64() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot draw random numbers from the system")?;
    Ok(u64::from_le_bytes(bytes))
}

/// Bound before anything is opened, so that a taken port changes nothing on disk.
struct Listeners {
    clients: Vec<(TcpListener, Option<String>)>,
    peer: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for listener in &config.listen_client {
            let bound = bind("--listen-client", &listener.address.to_string()).await?;
            clients.push((bound, listener.keyspace.clone()));
        }
        let peer = bind("--listen-peer", &config.listen_peer.to_string()).await?;
        let metrics = match &config.metrics_listen {
            Some(address) => Some(bind("--metrics-listen", &address.to_string()).await?),
            None => None,
        };
        Ok(Self { clients, peer, metrics })
    }
}

async fn bind(flag: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        UsageError::new(format!(
            "{flag} {address} cannot be bound: {error}; each listener needs a free address of this machine; stop what \
             uses it or give another"
        ))
        .into()
    })
}

/// Everything that lives in the data directory.
struct Opened {
    log: LogStore,
    engine: Engine,
    registry: watch::Receiver<Arc<Registry>>,
    machine: RegistryMachine,
    header: Header,
    own: StoreRecord,
}

/// A sign for `pontoon inspect`. What keeps the directory from starting again is the note in its log.
const GONE: &str = "GONE";

/// Whether a data directory is of a store that left its cluster or was kicked.
pub(crate) fn is_gone(dir: &Path) -> bool {
    dir.join(GONE).exists()
}

/// Makes the directory's parts, and opens its log.
///
/// # Errors
/// The directory cannot be used, or is damaged.
pub(crate) fn open_directory(dir: &Path) -> anyhow::Result<LogStore> {
    for part in ["log", "meta", "kv"] {
        let path = dir.join(part);
        std::fs::create_dir_all(&path).map_err(|error| {
            UsageError::new(format!(
                "--data-dir: cannot make {}: {error}; a store needs a directory that it may write; check the path and its \
                 owner",
                path.display()
            ))
        })?;
    }
    let (log, report) = LogStore::open(&dir.join("log"), Options::default()).map_err(wrong_state)?;
    if let Some(torn) = &report.torn_tail {
        tracing::warn!(
            ?torn,
            "the last record of the journal is not whole and was cut off: a crash while it was written leaves it so, and \
             then nobody was told that it is durable; damage of the disk would look the same"
        );
    }
    Ok(log)
}

/// Opens the log, and finds out whether the store is on its way into a cluster.
fn open_log(config: &Config) -> anyhow::Result<(LogStore, Option<JoinNote>)> {
    let dir = &config.data_dir;
    let log = open_directory(dir)?;
    let mut note = JoinNote::load(dir)?;
    if log.header().is_some() {
        return Ok((log, note));
    }
    if note.is_none() && !config.join.is_empty() {
        let name = config.joining_name()?;
        let remotes = config.join.iter().map(ToString::to_string).collect();
        note = Some(JoinNote::new(random_id()?, name, config.advertise_peer.to_string(), None, remotes));
    }
    let Some(note) = &mut note else { return Ok((log, None)) };
    if let Some(name) = config.name.as_ref().filter(|name| **name != note.name) {
        return Err(UsageError::new(format!(
            "--name is {name}, but {} was prepared to join as {}; give that name or another directory",
            dir.display(),
            note.name
        ))
        .into());
    }
    if note.granted.is_none() {
        for remote in config.join.iter().map(ToString::to_string) {
            if !note.remotes.contains(&remote) {
                note.remotes.insert(0, remote);
            }
        }
    }
    if note.lineage == 0 {
        note.lineage = pontoon_node::create_joining_lineage(&log, random_u64()?)
            .context("cannot initialise the data directory")?;
    }
    // Before anybody hears of it: a restart asks for the same.
    config.failures.reach(DriverStep::NoteJoin.before());
    note.save(dir)?;
    config.failures.reach(DriverStep::NoteJoin.after());
    Ok((log, Some(note.clone())))
}

impl Opened {
    /// Opens the rest of the data directory, and makes a new store of it if it is empty.
    fn open(config: &Config, log: LogStore, note: Option<&JoinNote>) -> anyhow::Result<Self> {
        let dir = &config.data_dir;
        if let (None, Some(note)) = (log.header(), note) {
            config.failures.reach(DriverStep::Establish.before());
            join::establish(dir, &log, note, &config.advertise_client.to_string())
                .context("cannot initialise the data directory")?;
            config.failures.reach(DriverStep::Establish.after());
        }
        let (header, bootstrap) = match log.header() {
            Some(header) => (Self::check_known(config, header)?, Registry::default()),
            None => Self::initialize(config, &log)?,
        };
        let (machine, registry) = RegistryMachine::open(&dir.join("meta"), bootstrap).map_err(wrong_state)?;
        let options =
            EngineOptions { answers_bytes_max: config.answers_bytes_max, ..EngineOptions::default() };
        let engine = Engine::open(&dir.join("kv"), &options)
            .with_context(|| format!("cannot open {}", dir.join("kv").display()))?;
        let own = StoreRecord {
            store: header.store.0,
            name: header.name.clone(),
            peer_address: config.advertise_peer.to_string(),
            client_address: config.advertise_client.to_string(),
            // Known when the node has counted this start.
            ..StoreRecord::default()
        };
        Ok(Self { log, engine, registry, machine, header, own })
    }

    /// A directory that is a store already: it knows better than the flags, but must not be another store's.
    fn check_known(config: &Config, header: Header) -> anyhow::Result<Header> {
        if let Some(name) = config.name.as_ref().filter(|name| **name != header.name) {
            return Err(UsageError::new(format!(
                "--name is {name}, but {} belongs to the store {}; a directory has one store for ever; give its name \
                 or another directory",
                config.data_dir.display(),
                header.name
            ))
            .into());
        }
        if !config.join.is_empty() {
            tracing::info!("the data directory is initialised already: --join is ignored");
        } else if !config.initial_cluster.is_empty() {
            let named = Config { name: Some(header.name.clone()), ..config.clone() };
            let bootstrap = named.bootstrap()?;
            if bootstrap.cluster != header.cluster {
                return Err(UsageError::new(format!(
                    "--initial-cluster and --cluster-token mean the cluster {:016x}, but {} belongs to the cluster \
                     {:016x}; a store never changes its cluster; correct the flags or give another directory",
                    bootstrap.cluster,
                    config.data_dir.display(),
                    header.cluster
                ))
                .into());
            }
            tracing::info!("the data directory is initialised already: --initial-cluster is ignored");
        }
        Ok(header)
    }

    /// Makes a new store. The header comes last: a crash before it leaves a directory that is made anew.
    fn initialize(config: &Config, log: &LogStore) -> anyhow::Result<(Header, Registry)> {
        let bootstrap = config.bootstrap()?;
        let client = config.advertise_client.to_string();
        let registry = found(&config.data_dir, log, &bootstrap, &client, config.election_timeout)?;
        let header = log.header().context("the header was just written")?;
        Ok((header, registry))
    }
}

/// Makes an empty directory that of a store of a new cluster, and returns the registry that the cluster begins with.
///
/// # Errors
/// The directory cannot be written.
pub(crate) fn found(
    dir: &Path,
    log: &LogStore,
    bootstrap: &Bootstrap,
    client: &str,
    election_timeout: Duration,
) -> anyhow::Result<Registry> {
    let mut registry = Registry::bootstrap(bootstrap.stores.iter().map(|store| StoreRecord {
        store: store.store,
        name: store.name.clone(),
        peer_address: store.address.to_string(),
        ..StoreRecord::default()
    }));
    registry.election_timer_ms = u64::try_from(election_timeout.as_millis()).unwrap_or(u64::MAX);
    let (mut machine, _) = RegistryMachine::open(&dir.join("meta"), registry.clone())?;
    machine.sync()?;
    let header = Header {
        cluster: bootstrap.cluster,
        store: StoreId(bootstrap.own.store),
        name: bootstrap.own.name.clone(),
        peer_address: bootstrap.own.address.to_string(),
        client_address: client.to_owned(),
    };
    // Before the header: a directory that has one and no lineage is of a version that knew none.
    pontoon_node::create_lineage(log, random_u64()?).context("cannot initialise the data directory")?;
    log.initialize(header).context("cannot initialise the data directory")?;
    Ok(registry)
}

/// A data directory that must not be used as it is: exit code 2.
pub(crate) fn wrong_state(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    match error.downcast_ref::<OpenError>() {
        Some(OpenError::Io { .. }) => error,
        _ => UsageError::new(crate::error::one_line(&error)).into(),
    }
}

/// Waits until this store leads the meta group, and has applied all that was decided before. One that joins can come to that
/// before anybody has noted that it is a member: then there is nobody else to do so.
async fn leads_meta(node: &Node) {
    let leads = || node.leadership(META_GROUP).is_some_and(|(_, leader)| leader == Some(node.store()));
    while !leads() || node.read_barrier(META_GROUP).await.is_err() {
        tokio::time::sleep(LEADS_INTERVAL).await;
    }
}

/// Opens the meta group: as one of its founders, or, with `joining`, as the replica under which it was let in.
async fn open_meta(
    node: &Node,
    registry: &Registry,
    joining: Option<ReplicaId>,
    machine: RegistryMachine,
) -> anyhow::Result<()> {
    let founders = registry.meta.as_ref().map(GroupRecord::founder_ids).unwrap_or_default();
    let node = node.clone();
    let opened = tokio::task::spawn_blocking(move || match joining {
        Some(own) => node.join_group(META_GROUP, own, Box::new(machine)),
        // The log knows better than the founders, if there is one.
        None => node.open_group(META_GROUP, &founders, Box::new(machine)),
    });
    opened.await?.map_err(wrong_state)
}
