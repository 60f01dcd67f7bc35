//! From what was given (`ServeArgs`) to what is certain (`Config`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pontoon_kv::{Limits, Retention};
use pontoon_node::Failures;

use crate::error::UsageError;
use crate::identity;

mod address;
pub(crate) mod layers;
mod tls;
pub(crate) mod units;

use units::{Quota, Retained};

pub(crate) use address::{
    ClientListener, HostPort, NamedAddress, check_store_name, keyspace_name, store_name,
};
pub(crate) use tls::TlsConfig;

/// The name of a store that was given none and starts alone, as in etcd.
const DEFAULT_NAME: &str = "default";

/// How much of the past is kept without being asked to forget it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompactionMode {
    /// By time.
    #[default]
    Periodic,
    /// By number of revisions.
    Revision,
}

/// The flags of `pontoon serve`: each checked by itself, not yet against each other.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Directory that holds everything this store must not forget
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,

    /// This store's name, unique in its cluster [default for a new cluster of one: default]
    #[arg(long, value_name = "NAME", value_parser = store_name)]
    pub(crate) name: Option<String>,

    /// Serve clients here; with =KEYSPACE all calls on it go to that keyspace; repeatable
    #[arg(
        long,
        value_name = "HOST:PORT[=KEYSPACE]",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    pub(crate) listen_client: Vec<ClientListener>,

    /// Address that clients are told [default: the first --listen-client]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise_client: Option<HostPort>,

    /// Take peer traffic here
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2380")]
    pub(crate) listen_peer: HostPort,

    /// Address that peers are told [default: --listen-peer, or what the directory was prepared with if that is 0.0.0.0]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise_peer: Option<HostPort>,

    /// Static start of a new cluster: names and advertised peer addresses, the same set on every store
    #[arg(long, value_name = "NAME=HOST:PORT,..", value_delimiter = ',')]
    pub(crate) initial_cluster: Vec<NamedAddress>,

    /// Cluster and store ids are derived from this and the names of --initial-cluster
    #[arg(long, value_name = "TOKEN", default_value = "pontoon")]
    pub(crate) cluster_token: String,

    /// Join a running cluster: peer addresses of its stores, one or more; for a data directory that is new
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',')]
    pub(crate) join: Vec<HostPort>,

    /// As etcd's: with `existing`, the other addresses of --initial-cluster serve as --join
    #[arg(long, value_name = "STATE", default_value = "new", value_parser = ["new", "existing"])]
    pub(crate) initial_cluster_state: String,

    /// Dial this peer here instead of at its advertised address; repeatable
    #[arg(long, value_name = "NAME=HOST:PORT", value_delimiter = ',')]
    pub(crate) dial: Vec<NamedAddress>,

    /// Time without a leader after which one is elected, 100ms to 10m; counts only when a cluster is new
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::election_timeout)]
    pub(crate) election_timeout: Duration,

    /// What waits for tokens of the stores that it is sent to: nothing, elastic work, or all
    #[arg(long, value_name = "off|elastic|all", default_value = pontoon_flow::Mode::default().name())]
    #[arg(value_parser = units::flow_mode)]
    pub(crate) flow_control: pontoon_flow::Mode,

    /// Allow `pontoon failure-test` to make this store fail; for tests, never for production
    #[arg(long)]
    pub(crate) enable_failure_injection: bool,

    /// Bytes that each keyspace may hold before it takes no more puts; 0: 2GiB, -1: no bound
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = units::quota)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) quota_backend_bytes: Quota,

    /// Bytes of large answers that are gathered and sent at a time, and so the most that one may have; as many again for
    /// those of transactions
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = units::answers_bytes)]
    pub(crate) answers_bytes_max: u64,

    /// What --auto-compaction-retention counts: `periodic` time, `revision` revisions
    #[arg(long, value_name = "MODE", value_enum, default_value_t, hide_possible_values = true)]
    pub(crate) auto_compaction_mode: CompactionMode,

    /// Forget what is older than this in each keyspace: a time (bare: hours), or so many revisions; 0: keep all
    #[arg(long, value_name = "N|D", default_value = "0", value_parser = units::retention)]
    pub(crate) auto_compaction_retention: Retained,

    /// How often watchers that ask for progress hear that nothing happened
    #[arg(long, value_name = "D", default_value = "5s", value_parser = units::progress_interval)]
    pub(crate) watch_progress_interval: Duration,

    /// How long a login of a user is good for; seconds and less are for tests of clients
    #[arg(long, value_name = "D", default_value = "24h", value_parser = units::token_ttl)]
    pub(crate) auth_token_ttl: Duration,

    /// Serve /metrics, /livez, /readyz and /health over HTTP here
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics_listen: Option<HostPort>,

    #[command(flatten)]
    pub(crate) tls: tls::TlsArgs,

    /// Exit when standard input ends or the parent dies; `pontoon dev` starts its children with it
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

/// How a store runs: complete, and checked against itself.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Holds everything this store must not forget; it may not exist yet.
    pub(crate) data_dir: PathBuf,
    /// The name that was given. An initialised data directory knows its store's name and must agree with this
    /// one.
    pub(crate) name: Option<String>,
    /// Where clients are served; at least one, no address twice.
    pub(crate) listen_client: Vec<ClientListener>,
    /// What clients are told.
    pub(crate) advertise_client: HostPort,
    /// Where peers are served.
    pub(crate) listen_peer: HostPort,
    /// What peers are told.
    pub(crate) advertise_peer: HostPort,
    /// `--initial-cluster` as given: empty, or without a name or an address twice. Counts only for a new data directory,
    /// through [`Config::bootstrap`].
    pub(crate) initial_cluster: Vec<NamedAddress>,
    /// What the ids of a new cluster are derived from, with the names.
    pub(crate) cluster_token: String,
    /// Peers of a running cluster that a new data directory joins; empty: it starts a new one.
    pub(crate) join: Vec<HostPort>,
    /// Peers by name that are dialled elsewhere than where they say they are.
    pub(crate) dial: BTreeMap<String, HostPort>,
    /// The election timeout of a new cluster: 100 ms to 10 min, whole milliseconds.
    pub(crate) election_timeout: Duration,
    /// What flow control governs.
    pub(crate) flow_control: pontoon_flow::Mode,
    /// Failures that are made on purpose, where that is allowed.
    pub(crate) failures: Arc<Failures>,
    /// Where metrics and health are served over HTTP; `None`: nowhere.
    pub(crate) metrics_listen: Option<HostPort>,
    /// What clients may do, in each keyspace.
    pub(crate) limits: Limits,
    /// How much of the past each keyspace keeps; `None`: all that nobody compacts.
    pub(crate) retention: Option<Retention>,
    /// Memory for large answers.
    pub(crate) answers_bytes_max: u64,
    /// Certificates of clients and peers.
    pub(crate) tls: TlsConfig,
}

/// The first members of a new cluster, with their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bootstrap {
    /// The cluster's id.
    pub(crate) cluster: u64,
    /// This store; also among `stores`.
    pub(crate) own: InitialStore,
    /// All first stores, sorted by name.
    pub(crate) stores: Vec<InitialStore>,
}

/// One store of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InitialStore {
    /// Its id.
    pub(crate) store: u64,
    /// Its name.
    pub(crate) name: String,
    /// Where peers reach it.
    pub(crate) address: HostPort,
}

impl Config {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// One line that names both flags that do not fit, or the one that breaks a rule. When the data directory
    /// is new, [`Config::bootstrap`]'s errors too, so that they come before anything is created.
    pub(crate) fn from_args(args: ServeArgs) -> Result<Self, UsageError> {
        let client_addresses: Vec<_> = args.listen_client.iter().map(|l| &l.address).collect();
        if let Some(twice) = first_duplicate(client_addresses.iter().copied()) {
            return Err(UsageError::new(format!(
                "--listen-client {twice} is given twice; each address has one listener; leave one of them out"
            )));
        }
        for (flag, address) in
            [("--listen-peer", Some(&args.listen_peer)), ("--metrics-listen", args.metrics_listen.as_ref())]
        {
            if let Some(address) = address.filter(|address| client_addresses.contains(address)) {
                return Err(UsageError::new(format!(
                    "--listen-client and {flag} are both {address}; each needs its own port; change one of them"
                )));
            }
        }
        if args.metrics_listen.as_ref() == Some(&args.listen_peer) {
            return Err(UsageError::new(format!(
                "--listen-peer and --metrics-listen are both {}; each needs its own port; change one of them",
                args.listen_peer
            )));
        }
        if let Some(name) = first_duplicate(args.initial_cluster.iter().map(|entry| &entry.name)) {
            return Err(UsageError::new(format!(
                "--initial-cluster names {name} twice; names are unique; rename or remove one of them"
            )));
        }
        if let Some(address) = first_duplicate(args.initial_cluster.iter().map(|entry| &entry.address)) {
            return Err(UsageError::new(format!(
                "--initial-cluster has the address {address} twice; each store has its own; correct one of them"
            )));
        }
        if let Some(name) = first_duplicate(args.dial.iter().map(|entry| &entry.name)) {
            return Err(UsageError::new(format!(
                "--dial names {name} twice; a peer is dialled at one address; leave one of them out"
            )));
        }
        if args.cluster_token.is_empty() || args.cluster_token.contains('\0') {
            return Err(UsageError::new(
                "--cluster-token is empty or holds a zero byte; it is text; give another, or none for the default",
            ));
        }
        if args.data_dir.exists() && !args.data_dir.is_dir() {
            return Err(UsageError::new(format!(
                "--data-dir {} is not a directory; a store keeps many files; give a directory",
                args.data_dir.display()
            )));
        }
        let advertise_client =
            args.advertise_client.clone().unwrap_or_else(|| args.listen_client[0].address.clone());
        let advertise_peer = args.advertise_peer.clone().unwrap_or_else(|| args.listen_peer.clone());
        let join = joined(&args, &advertise_peer)?;
        let config = Self {
            data_dir: args.data_dir,
            name: args.name,
            listen_client: args.listen_client,
            advertise_client,
            advertise_peer,
            join,
            listen_peer: args.listen_peer,
            initial_cluster: args.initial_cluster,
            cluster_token: args.cluster_token,
            dial: args.dial.into_iter().map(|entry| (entry.name, entry.address)).collect(),
            election_timeout: args.election_timeout,
            flow_control: args.flow_control,
            failures: Failures::new(args.enable_failure_injection),
            metrics_listen: args.metrics_listen,
            limits: Limits {
                quota_bytes: args.quota_backend_bytes.0,
                watch_progress_interval: args.watch_progress_interval,
                auth_token_ttl: args.auth_token_ttl,
                ..Limits::default()
            },
            answers_bytes_max: args.answers_bytes_max,
            retention: retention(args.auto_compaction_mode, args.auto_compaction_retention)?,
            tls: TlsConfig::from_args(args.tls)?,
        };
        if config.data_dir_is_new() {
            if config.join.is_empty() {
                config.bootstrap()?;
            } else {
                config.joining_name()?;
            }
        }
        Ok(config)
    }

    /// The name of a store that joins: it has to be given, as the name of one that is given none is taken.
    ///
    /// # Errors
    /// There is none, or this store's address cannot be dialled.
    pub(crate) fn joining_name(&self) -> Result<String, UsageError> {
        if self.advertise_peer.is_unspecified() {
            return Err(UsageError::new(format!(
                "--advertise-peer is {}; peers cannot dial an unspecified address; give the address that they reach this \
                 store at",
                self.advertise_peer
            )));
        }
        self.name.clone().ok_or_else(|| {
            UsageError::new("--join needs --name; a store that joins has a name of its own; give one")
        })
    }

    /// Whether the data directory is missing or empty. One that is not empty may still be uninitialised: a
    /// start that was cut short; only its header tells.
    fn data_dir_is_new(&self) -> bool {
        match std::fs::read_dir(&self.data_dir) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => !self.data_dir.exists(),
        }
    }

    /// The first members of the cluster that a new data directory starts: those of `--initial-cluster`, or
    /// this store alone when there is none. An initialised directory has its members in its own records and
    /// must not ask.
    ///
    /// # Errors
    /// This store is not in `--initial-cluster`, or is there with another address than peers are told.
    pub(crate) fn bootstrap(&self) -> Result<Bootstrap, UsageError> {
        let name = self.name.as_deref().unwrap_or(DEFAULT_NAME);
        let mut entries = self.initial_cluster.clone();
        if entries.is_empty() {
            entries.push(NamedAddress { name: name.to_owned(), address: self.advertise_peer.clone() });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let Some(own) = entries.iter().find(|entry| entry.name == name) else {
            let given =
                if self.name.is_some() { "--name" } else { "this store's name (no --name was given)" };
            return Err(UsageError::new(format!(
                "{given} is {name}, but --initial-cluster has {}; a store is a member of the cluster it starts; \
                 correct one of them",
                names.join(", ")
            )));
        };
        if own.address != self.advertise_peer {
            return Err(UsageError::new(format!(
                "--initial-cluster has {own}, but --advertise-peer is {}; peers are told one address; \
                 make them the same",
                self.advertise_peer
            )));
        }
        if let Some(bad) = entries.iter().find(|entry| entries.len() > 1 && entry.address.is_unspecified()) {
            return Err(UsageError::new(format!(
                "--initial-cluster has {bad}; peers cannot dial an unspecified address; \
                 give the address that they reach {} at",
                bad.name
            )));
        }
        let store = |entry: &NamedAddress| InitialStore {
            store: identity::store_id(&self.cluster_token, names.iter().copied(), &entry.name),
            name: entry.name.clone(),
            address: entry.address.clone(),
        };
        Ok(Bootstrap {
            cluster: identity::cluster_id(&self.cluster_token, names.iter().copied()),
            own: store(own),
            stores: entries.iter().map(store).collect(),
        })
    }
}

/// What the two flags of auto-compaction mean together.
fn retention(mode: CompactionMode, keep: Retained) -> Result<Option<Retention>, UsageError> {
    match (mode, keep) {
        (_, Retained::Number(0)) => Ok(None),
        (CompactionMode::Periodic, Retained::Number(hours)) => {
            Ok(Some(Retention::Period(Duration::from_secs(3600 * u64::from(hours)))))
        }
        (CompactionMode::Periodic, Retained::Period(period)) => Ok(Some(Retention::Period(period))),
        (CompactionMode::Revision, Retained::Number(n)) => Ok(Some(Retention::Revisions(i64::from(n)))),
        (CompactionMode::Revision, Retained::Period(_)) => Err(UsageError::new(
            "--auto-compaction-retention is a time, but --auto-compaction-mode is revision, which counts revisions; give a \
             number, or the mode periodic",
        )),
    }
}

/// Whom a new store asks to be let in.
fn joined(args: &ServeArgs, own: &HostPort) -> Result<Vec<HostPort>, UsageError> {
    let existing = args.initial_cluster_state == "existing";
    if !args.join.is_empty() && !args.initial_cluster.is_empty() && !existing {
        return Err(UsageError::new(
            "--join and --initial-cluster are both given; one joins a cluster, the other starts one; leave one of them out, \
             or say --initial-cluster-state existing",
        ));
    }
    let mut join = args.join.clone();
    if existing {
        join.extend(args.initial_cluster.iter().map(|entry| entry.address.clone()).filter(|a| a != own));
        if join.is_empty() {
            return Err(UsageError::new(
                "--initial-cluster-state existing needs the address of another store in --initial-cluster or --join; a \
                 store joins a cluster by one of its members; name one",
            ));
        }
    }
    if join.contains(own) {
        return Err(UsageError::new(format!(
            "--join has {own}, which is this store's own peer address; a store joins by another one; name one of those"
        )));
    }
    Ok(join)
}

fn first_duplicate<'a, T: Ord>(items: impl IntoIterator<Item = &'a T>) -> Option<&'a T> {
    let mut seen = BTreeSet::new();
    items.into_iter().find(|item| !seen.insert(*item))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    const THREE: &str = "--initial-cluster n1=127.0.0.1:2380,n2=127.0.0.1:22380,n3=127.0.0.1:32380";

    fn config(flags: &str) -> Result<Config, String> {
        let all = format!("serve --data-dir /no/such/dir {flags}");
        let serve = Serve::try_parse_from(all.split_whitespace()).map_err(|e| e.to_string())?;
        Config::from_args(serve.args).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let config = config("").expect("valid");
        assert_eq!(config.listen_client[0].to_string(), "127.0.0.1:2379");
        assert_eq!(config.advertise_client.to_string(), "127.0.0.1:2379");
        assert_eq!(config.listen_peer.to_string(), "127.0.0.1:2380");
        assert_eq!(config.advertise_peer.to_string(), "127.0.0.1:2380");
        assert_eq!(config.election_timeout, Duration::from_secs(1));
        assert_eq!(config.metrics_listen, None);
        let bootstrap = config.bootstrap().expect("a cluster of one");
        assert_eq!(bootstrap.own.name, "default");
        assert_eq!(bootstrap.stores, std::slice::from_ref(&bootstrap.own));
    }

    #[test]
    fn what_keyspaces_may_hold_and_keep() {
        let default = config("").expect("valid");
        assert_eq!((default.limits, default.retention), (Limits::default(), None));
        let keeps = |flags: &str| config(flags).expect("valid").retention;
        let hours = |n: u64| Some(Retention::Period(Duration::from_secs(3600 * n)));
        assert_eq!(keeps("--auto-compaction-retention 8"), hours(8));
        assert_eq!(keeps("--auto-compaction-retention 2h"), hours(2));
        let by_revision = keeps("--auto-compaction-mode=revision --auto-compaction-retention=1000");
        assert_eq!(by_revision, Some(Retention::Revisions(1000)));
        let quota = |flags: &str| config(flags).expect("valid").limits.quota_bytes;
        assert_eq!(quota("--quota-backend-bytes 8GiB"), Some(8 << 30));
        assert_eq!(quota("--quota-backend-bytes -1"), None);
        assert_eq!(quota("--quota-backend-bytes=0"), Some(2 << 30));
    }

    #[test]
    fn all_stores_of_a_static_start_agree() {
        let of =
            |flags: &str| config(&format!("{THREE} {flags}")).expect("valid").bootstrap().expect("valid");
        let n1 = of("--name n1");
        let n2 = of("--name n2 --listen-peer 0.0.0.0:22380 --advertise-peer 127.0.0.1:22380");
        let swapped = config(
            "--name n1 --initial-cluster n3=127.0.0.1:32380 --initial-cluster n1=127.0.0.1:2380,n2=127.0.0.1:22380",
        );
        assert_eq!(swapped.expect("valid").bootstrap().expect("valid"), n1);
        assert_eq!((n1.cluster, &n1.stores), (n2.cluster, &n2.stores));
        assert_eq!(n1.own, n1.stores[0]);
        assert_eq!(n2.own, n2.stores[1]);
        let other = of("--name n1 --cluster-token other");
        assert_ne!(other.cluster, n1.cluster);
        assert_ne!(other.own.store, n1.own.store);
    }

    #[test]
    fn flags_that_do_not_fit_are_both_named() {
        for (flags, parts) in [
            (format!("{THREE} --name n4"), vec!["--name is n4", "n1, n2, n3"]),
            (THREE.to_owned(), vec!["no --name", "n1, n2, n3"]),
            (format!("{THREE} --name n2"), vec!["n2=127.0.0.1:22380", "--advertise-peer is 127.0.0.1:2380"]),
            ("--initial-cluster a=h:1,a=h:2".to_owned(), vec!["names a twice"]),
            ("--initial-cluster a=h:1,b=h:1".to_owned(), vec!["address h:1 twice"]),
            ("--listen-client h:1 --listen-client h:1=ks".to_owned(), vec!["h:1 is given twice"]),
            ("--listen-client h:1 --listen-peer h:1".to_owned(), vec!["--listen-client and --listen-peer"]),
            ("--listen-peer h:1 --metrics-listen h:1".to_owned(), vec!["--listen-peer and --metrics-listen"]),
            ("--dial a=h:1 --dial a=h:2".to_owned(), vec!["--dial names a twice"]),
            ("--cluster-token=".to_owned(), vec!["--cluster-token is empty"]),
            (
                "--name a --listen-peer 0.0.0.0:1 --initial-cluster a=0.0.0.0:1,b=h:2".to_owned(),
                vec!["a=0.0.0.0:1", "unspecified"],
            ),
            ("--tls-cert c.pem".to_owned(), vec!["--tls-cert without --tls-key and --tls-ca"]),
            (
                "--tls-peer-ca c.pem".to_owned(),
                vec!["--tls-peer-ca without --tls-peer-cert and --tls-peer-key"],
            ),
            ("--tls-client-auth".to_owned(), vec!["--tls-client-auth", "without --tls-cert"]),
            ("--election-timeout 50ms".to_owned(), vec!["100ms to 10m"]),
            ("--quota-backend-bytes 5".to_owned(), vec!["at least 2 MiB"]),
            (
                "--auto-compaction-mode revision --auto-compaction-retention 5m".to_owned(),
                vec!["--auto-compaction-retention", "--auto-compaction-mode"],
            ),
            ("--auto-compaction-retention 5ms".to_owned(), vec!["1s or longer"]),
            ("--watch-progress-interval 1ms".to_owned(), vec!["100ms or longer"]),
            ("--auth-token-ttl 1ms".to_owned(), vec!["1s or longer"]),
            ("--initial-cluster-state existing".to_owned(), vec!["another store in --initial-cluster"]),
            ("--initial-cluster-state old".to_owned(), vec!["new", "existing"]),
            ("--join h:1".to_owned(), vec!["--join needs --name"]),
            ("--name a --join 127.0.0.1:2380".to_owned(), vec!["own peer address"]),
            (format!("{THREE} --name n1 --join h:1"), vec!["--join and --initial-cluster"]),
            ("--name a --listen-peer 0.0.0.0:1 --join h:1".to_owned(), vec!["unspecified"]),
        ] {
            let error = config(&flags).map(|_| ()).expect_err(&flags);
            for part in parts {
                assert!(error.contains(part), "{flags}: {error}");
            }
        }
    }

    #[test]
    fn a_used_data_directory_is_not_held_against_initial_cluster() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("something"), "").expect("a written file");
        let dir = dir.path().to_str().expect("a printable path");
        let used = config(&format!("{THREE} --name n4")).expect_err("new");
        assert!(used.contains("n4"));
        let all = format!("serve --data-dir {dir} {THREE} --name n4");
        let serve = Serve::try_parse_from(all.split_whitespace()).expect("valid");
        assert!(Config::from_args(serve.args).is_ok());
    }
}
