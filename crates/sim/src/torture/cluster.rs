//! Starts, kills, stops and continues the three stores.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::args::{ChildArguments, ClusterArguments};
use super::client::Connection;
use super::verify::Address;

/// Stores in the cluster.
pub(crate) const STORES: usize = 3;

/// A store that serves nobody for so long is taken for broken.
const START_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
enum Software {
    Pontoon(PathBuf),
    Etcd(PathBuf),
}

/// One store: its addresses, its directory, and its process while it has one.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) name: String,
    /// Where clients call, `host:port`.
    pub(crate) client: String,
    pub(crate) peer: String,
    /// More flags for this store alone.
    pub(crate) flags: Vec<String>,
    process: Option<Child>,
    stopped: bool,
    /// It is none of the first stores: it joins by them.
    joins: bool,
    /// Turns true with the line that says that clients are served.
    ready: watch::Receiver<bool>,
}

/// Three stores on this machine. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Cluster {
    software: Software,
    election_timeout: Duration,
    store_flags: Vec<String>,
    dir: PathBuf,
    /// Removes the directory at the end, unless it is kept.
    temporary: Option<tempfile::TempDir>,
    pub(crate) stores: Vec<Store>,
}

/// Becomes the program; returns only if that fails. The kernel kills it when the thread that started it ends.
pub(crate) fn become_child(child: &ChildArguments) -> std::io::Error {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    std::process::Command::new(&child.program).args(&child.arguments).exec()
}

impl Cluster {
    /// Starts a new cluster and waits until each store serves clients.
    pub(crate) async fn start(arguments: &ClusterArguments) -> anyhow::Result<Self> {
        let mut cluster = Self::prepare(arguments)?;
        cluster.launch().await?;
        Ok(cluster)
    }

    /// A new cluster whose stores do not run yet.
    pub(crate) fn prepare(arguments: &ClusterArguments) -> anyhow::Result<Self> {
        let software = match (&arguments.etcd, &arguments.pontoon) {
            (Some(etcd), _) => Software::Etcd(etcd.clone()),
            (None, Some(pontoon)) => Software::Pontoon(pontoon.clone()),
            (None, None) => Software::Pontoon(std::env::current_exe()?.with_file_name("pontoon")),
        };
        let (Software::Pontoon(program) | Software::Etcd(program)) = &software;
        if !program.exists() {
            bail!("there is no {}; name the binary with --pontoon or --etcd", program.display());
        }
        let (dir, temporary) = match &arguments.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
                if std::fs::read_dir(dir)?.next().is_some() {
                    bail!("{} is not empty; name a new directory with --dir", dir.display());
                }
                (dir.clone(), None)
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("pontoon-torture-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let mut ports = free_ports(STORES * 2)?.into_iter().map(|port| format!("127.0.0.1:{port}"));
        let stores = (1..=STORES)
            .map(|number| {
                Some(Store {
                    name: format!("n{number}"),
                    client: ports.next()?,
                    peer: ports.next()?,
                    flags: Vec::new(),
                    process: None,
                    stopped: false,
                    joins: false,
                    ready: watch::channel(false).1,
                })
            })
            .collect::<Option<Vec<_>>>()
            .context("too few ports")?;
        let election_timeout = Duration::from_millis(arguments.election_timeout_ms);
        let store_flags = arguments.store_flag.clone();
        let mut cluster = Self { software, election_timeout, store_flags, dir, temporary, stores };
        if arguments.keep {
            cluster.keep();
        }
        Ok(cluster)
    }

    /// Starts all stores and waits until each serves clients.
    pub(crate) async fn launch(&mut self) -> anyhow::Result<()> {
        for index in 0..STORES {
            self.spawn(index)?;
        }
        self.wait_serving().await
    }

    /// More flags for each store.
    pub(crate) fn add_flags(&mut self, flags: impl IntoIterator<Item = String>) {
        self.store_flags.extend(flags);
    }

    /// `pontoon` or `etcd`.
    pub(crate) fn software(&self) -> &'static str {
        match self.software {
            Software::Pontoon(_) => "pontoon",
            Software::Etcd(_) => "etcd",
        }
    }

    /// The binary of the stores.
    pub(crate) fn program(&self) -> &Path {
        let (Software::Pontoon(program) | Software::Etcd(program)) = &self.software;
        program
    }

    pub(crate) fn election_timeout(&self) -> Duration {
        self.election_timeout
    }

    /// Where data, logs and the history are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory behind.
    pub(crate) fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            self.dir = temporary.keep();
        }
    }

    pub(crate) fn clients(&self) -> Vec<String> {
        self.stores.iter().map(|store| store.client.clone()).collect()
    }

    pub(crate) fn addresses(&self) -> Vec<Address> {
        let address = |store: &Store| Address { name: store.name.clone(), client: store.client.clone() };
        self.stores.iter().map(address).collect()
    }

    pub(crate) fn pid(&self, index: usize) -> Option<u32> {
        self.stores[index].process.as_ref().and_then(Child::id)
    }

    fn flags(&self, index: usize) -> Vec<String> {
        let store = &self.stores[index];
        let data = self.dir.join(&store.name).display().to_string();
        let all = |scheme: &str| {
            let peers = self
                .stores
                .iter()
                .filter(|store| !store.joins)
                .map(|store| format!("{}={scheme}{}", store.name, store.peer));
            peers.collect::<Vec<_>>().join(",")
        };
        let millis = self.election_timeout.as_millis();
        let flags: Vec<(&str, String)> = match self.software {
            Software::Pontoon(_) => vec![
                if store.joins {
                    (
                        "--join",
                        self.stores[..STORES].iter().map(|s| s.peer.as_str()).collect::<Vec<_>>().join(","),
                    )
                } else {
                    ("--initial-cluster", all(""))
                },
                ("--data-dir", data),
                ("--name", store.name.clone()),
                ("--listen-client", store.client.clone()),
                ("--listen-peer", store.peer.clone()),
                ("--advertise-peer", store.peer.clone()),
                ("--election-timeout", format!("{millis}ms")),
            ],
            Software::Etcd(_) => vec![
                ("--data-dir", data),
                ("--name", store.name.clone()),
                ("--listen-client-urls", format!("http://{}", store.client)),
                ("--advertise-client-urls", format!("http://{}", store.client)),
                ("--listen-peer-urls", format!("http://{}", store.peer)),
                ("--initial-advertise-peer-urls", format!("http://{}", store.peer)),
                ("--initial-cluster", all("http://")),
                ("--initial-cluster-token", "torture".to_owned()),
                ("--election-timeout", millis.to_string()),
                ("--heartbeat-interval", (millis / 10).max(1).to_string()),
                ("--logger", "zap".to_owned()),
            ],
        };
        let subcommand = matches!(self.software, Software::Pontoon(_)).then(|| "serve".to_owned());
        subcommand
            .into_iter()
            .chain(flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]))
            .chain(self.store_flags.iter().chain(&store.flags).cloned())
            .collect()
    }

    /// Starts the process of a store; does not wait for it.
    pub(crate) fn spawn(&mut self, index: usize) -> anyhow::Result<()> {
        let log = self.log(index);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut process = Command::new(std::env::current_exe()?)
            .arg("child")
            .arg(self.program())
            .arg("--")
            .args(self.flags(index))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.program().display()))?;
        let (ready, receiver) = watch::channel(false);
        if let Some(stdout) = process.stdout.take() {
            // Reads on to the end, so that the store never blocks on a full pipe.
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.starts_with("ready ") {
                        ready.send_replace(true);
                    }
                }
            });
        }
        let store = &mut self.stores[index];
        store.process = Some(process);
        store.stopped = false;
        store.ready = receiver;
        Ok(())
    }

    /// Adds a store that joins when it is spawned; its index.
    pub(crate) fn add_joining(&mut self) -> anyhow::Result<usize> {
        let ports = free_ports(2)?;
        let [client, peer] = [0, 1].map(|n| format!("127.0.0.1:{}", ports[n]));
        let index = self.stores.len();
        let ready = watch::channel(false).1;
        let name = format!("n{}", index + 1);
        let flags = Vec::new();
        self.stores.push(Store {
            name,
            client,
            peer,
            process: None,
            stopped: false,
            joins: true,
            flags,
            ready,
        });
        Ok(index)
    }

    /// The file with what the store writes to standard error.
    pub(crate) fn log(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.stores[index].name))
    }

    fn signal(&self, index: usize, signal: Signal) -> anyhow::Result<()> {
        let name = &self.stores[index].name;
        let pid = self.pid(index).with_context(|| format!("{name} has no process"))?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id is positive")?;
        kill_process(pid, signal).with_context(|| format!("signal {signal:?} to {name}"))
    }

    /// What stores become that are started from now on.
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.software = Software::Pontoon(program.to_owned());
    }

    /// SIGTERM, and waits for the end, which must be one in order.
    pub(crate) async fn terminate(&mut self, index: usize) -> anyhow::Result<()> {
        self.signal(index, Signal::TERM)?;
        let name = self.stores[index].name.clone();
        let mut process =
            self.stores[index].process.take().with_context(|| format!("{name} has no process"))?;
        let status = tokio::time::timeout(START_MAX, process.wait())
            .await
            .with_context(|| format!("{name} does not end after SIGTERM"))??;
        if !status.success() {
            self.keep();
            bail!("{name} ended with {status} after SIGTERM; {}", tail(&self.log(index)));
        }
        Ok(())
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.kill_all(&[index]).await
    }

    /// kill -9 of several at once.
    pub(crate) async fn kill_all(&mut self, indexes: &[usize]) -> anyhow::Result<()> {
        for &index in indexes {
            self.signal(index, Signal::KILL)?;
        }
        for &index in indexes {
            if let Some(mut process) = self.stores[index].process.take() {
                process.wait().await?;
            }
        }
        Ok(())
    }

    /// SIGSTOP.
    pub(crate) fn stop(&mut self, index: usize) -> anyhow::Result<()> {
        self.signal(index, Signal::STOP)?;
        self.stores[index].stopped = true;
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn go_on(&mut self, index: usize) -> anyhow::Result<()> {
        self.signal(index, Signal::CONT)?;
        self.stores[index].stopped = false;
        Ok(())
    }

    /// The stores whose processes ended though nobody killed them, with how.
    pub(crate) fn deaths(&mut self) -> Vec<(usize, String)> {
        let mut deaths = Vec::new();
        for (index, store) in self.stores.iter_mut().enumerate() {
            if let Some(process) = &mut store.process
                && let Ok(Some(status)) = process.try_wait()
            {
                store.process = None;
                deaths.push((index, status.to_string()));
            }
        }
        deaths
    }

    /// Whatever is stopped goes on, whatever has no process gets one, and each store answers its clients.
    pub(crate) async fn all_up(&mut self) -> anyhow::Result<()> {
        for index in 0..STORES {
            if self.stores[index].process.is_none() {
                self.spawn(index)?;
            } else if self.stores[index].stopped {
                self.go_on(index)?;
            }
        }
        self.wait_serving().await
    }

    /// Waits until each store says that it serves clients, and does.
    pub(crate) async fn wait_serving(&mut self) -> anyhow::Result<()> {
        for index in 0..STORES {
            self.wait_store(index).await?;
        }
        Ok(())
    }

    /// Waits until a store says that it serves clients, and does: a linearizable read is answered.
    pub(crate) async fn wait_store(&mut self, index: usize) -> anyhow::Result<()> {
        let until = Instant::now() + START_MAX;
        loop {
            let says = matches!(self.software, Software::Etcd(_)) || *self.stores[index].ready.borrow();
            if says && serves(&self.stores[index].client).await {
                return Ok(());
            }
            let death = self.deaths().into_iter().find(|&(dead, _)| dead == index);
            let log = self.log(index);
            if let Some((_, status)) = death {
                self.keep();
                bail!("{} ended at its start: {status}; {}", self.stores[index].name, tail(&log));
            }
            if Instant::now() > until {
                self.keep();
                let what = if says { "answers no read" } else { "has not said that it is ready" };
                bail!("{} {what} after {START_MAX:?}; {}", self.stores[index].name, tail(&log));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn serves(address: &str) -> bool {
    let Ok(mut connection) = Connection::open(address, Duration::from_secs(2)).await else { return false };
    connection.get(None, b"ready?".to_vec(), false).await.is_ok()
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
    format!("the end of {}:\n  {last}", log.display())
}

/// Ports that nobody listens on now, below those that the kernel gives to outgoing connections: a store must find its
/// port free when it is started again.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let first = 15_000 + (std::process::id() % 1_500) * 10;
    let ports: Vec<u16> = (first..32_000)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .take(count)
        .collect();
    if ports.len() < count {
        bail!("no free ports on 127.0.0.1 between {first} and 32000");
    }
    Ok(ports)
}
