//! A cluster of real `pontoon serve` processes on free loopback ports.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::{HashKvRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest};
use tonic::transport::{Channel, Endpoint};

/// How long anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One store.
pub(crate) struct Store {
    pub(crate) name: String,
    pub(crate) client: u16,
    pub(crate) peer: u16,
    directory: PathBuf,
    child: Option<Child>,
    /// It is no store of `--initial-cluster`.
    joined: bool,
}

/// Three stores, and the directory that holds their data and logs.
pub(crate) struct Cluster {
    pub(crate) stores: Vec<Store>,
    initial_cluster: String,
    extra: Vec<String>,
    directory: tempfile::TempDir,
}

/// A store on other ports than its cluster's.
pub(crate) struct Elsewhere {
    child: Child,
    log: PathBuf,
}

impl Elsewhere {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end and returns its exit code.
    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "it does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that were free a moment ago; all are held until all are known, so that they differ.
pub(crate) fn free_ports(n: usize) -> Vec<u16> {
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|l| l.local_addr().expect("bound").port()).collect()
}

impl Cluster {
    /// Starts `n` stores and waits until each serves clients.
    pub(crate) fn start(n: usize, extra: &[&str]) -> Self {
        let mut cluster = Self::new(n, extra);
        cluster.restart_all();
        cluster
    }

    /// Chooses ports and directories.
    pub(crate) fn new(n: usize, extra: &[&str]) -> Self {
        let ports = free_ports(2 * n);
        let directory = tempfile::tempdir().expect("a directory");
        let stores: Vec<_> = (0..n)
            .map(|i| Store {
                name: format!("n{}", i + 1),
                client: ports[2 * i],
                peer: ports[2 * i + 1],
                directory: directory.path().join(format!("n{}", i + 1)),
                child: None,
                joined: false,
            })
            .collect();
        let initial_cluster =
            stores.iter().map(|s| format!("{}=127.0.0.1:{}", s.name, s.peer)).collect::<Vec<_>>().join(",");
        Self { stores, initial_cluster, extra: extra.iter().map(|s| (*s).to_owned()).collect(), directory }
    }

    /// Adds a store that is to join.
    pub(crate) fn add(&mut self, i: usize) {
        assert_eq!(i, self.stores.len(), "stores are added in order");
        let ports = free_ports(2);
        let name = format!("n{}", i + 1);
        let directory = self.directory.path().join(&name);
        self.stores.push(Store {
            name,
            client: ports[0],
            peer: ports[1],
            directory,
            child: None,
            joined: true,
        });
    }

    /// Further flags of the stores that are started from now on.
    pub(crate) fn extra_mut(&mut self) -> &mut Vec<String> {
        &mut self.extra
    }

    /// Starts a store and does not wait for it.
    pub(crate) fn spawn(&mut self, i: usize) {
        let first = ["--initial-cluster".to_owned(), self.initial_cluster.clone()];
        self.spawn_with(i, if self.stores[i].joined { &[] } else { &first });
    }

    /// Starts a store that joins by these others.
    pub(crate) fn spawn_joining(&mut self, i: usize, via: &[usize]) {
        let via: Vec<_> = via.iter().map(|i| format!("127.0.0.1:{}", self.stores[*i].peer)).collect();
        self.stores[i].joined = true;
        self.spawn_with(i, &["--join".to_owned(), via.join(",")]);
    }

    /// Starts a store by what is in its directory.
    pub(crate) fn spawn_prepared(&mut self, i: usize) {
        self.stores[i].joined = true;
        self.spawn_with(i, &[]);
    }

    /// Starts a store that joins in etcd's way.
    pub(crate) fn spawn_existing(&mut self, i: usize) {
        let (name, peer) = (self.stores[i].name.clone(), self.stores[i].peer);
        let all = format!("{},{name}=127.0.0.1:{peer}", self.initial_cluster);
        self.stores[i].joined = true;
        let how =
            ["--initial-cluster", all.as_str(), "--initial-cluster-state", "existing"].map(str::to_owned);
        self.spawn_with(i, &how);
    }

    /// Gives a store that does not run other ports.
    pub(crate) fn move_elsewhere(&mut self, i: usize) {
        let ports = free_ports(2);
        (self.stores[i].client, self.stores[i].peer) = (ports[0], ports[1]);
    }

    fn spawn_with(&mut self, i: usize, how: &[String]) {
        let store = &mut self.stores[i];
        assert!(store.child.is_none(), "{} runs already", store.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("{}.log", store.name)))
            .expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .arg("serve")
            .arg("--data-dir")
            .arg(&store.directory)
            .args(["--name", &store.name])
            .args(["--listen-client", &format!("127.0.0.1:{}", store.client)])
            .args(["--listen-peer", &format!("127.0.0.1:{}", store.peer)])
            .args(how)
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("starts");
        store.child = Some(child);
    }

    /// Reads the one line that says that the store serves clients.
    pub(crate) fn wait_ready(&mut self, i: usize) {
        let store = &mut self.stores[i];
        let stdout = store.child.as_mut().expect("runs").stdout.take().expect("piped");
        let (line_tx, line_rx) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = line_tx.send(line);
        });
        let line = line_rx.recv_timeout(PATIENCE).unwrap_or_default();
        assert!(
            line.starts_with(&format!("ready name={} store=", store.name)) && line.ends_with('\n'),
            "{} said {line:?}; its log:\n{}",
            self.stores[i].name,
            self.log(i)
        );
    }

    /// The store's log so far.
    pub(crate) fn log(&self, i: usize) -> String {
        let path = self.directory.path().join(format!("{}.log", self.stores[i].name));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Kills whoever runs, and checks that the records of all stores keep Raft's guarantees.
    pub(crate) fn kill_and_check(self) {
        let all: Vec<_> = (0..self.stores.len()).collect();
        self.kill_and_check_of(&all);
    }

    /// As [`Self::kill_and_check`], of these stores.
    pub(crate) fn kill_and_check_of(mut self, stores: &[usize]) {
        for i in 0..self.stores.len() {
            if self.stores[i].child.is_some() {
                self.kill(i);
            }
        }
        let checked = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .arg("check-cluster")
            .args(stores.iter().map(|i| &self.stores[*i].directory))
            .output()
            .expect("the binary runs");
        let (found, error) =
            (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert_eq!(checked.status.code(), Some(0), "{found}\n{error}");
    }

    /// The store's data directory.
    pub(crate) fn data_dir(&self, i: usize) -> &Path {
        &self.stores[i].directory
    }

    /// A place beside the data directories.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whether the process runs.
    pub(crate) fn runs(&mut self, i: usize) -> bool {
        self.stores[i].child.as_mut().is_some_and(|c| c.try_wait().expect("waits").is_none())
    }

    /// Starts a store on this directory at other ports.
    pub(crate) fn spawn_elsewhere(&self, directory: &Path) -> Elsewhere {
        let ports = free_ports(2);
        let log = directory.with_extension("log");
        let child = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .arg("serve")
            .arg("--data-dir")
            .arg(directory)
            .args(["--listen-client", &format!("127.0.0.1:{}", ports[0])])
            .args(["--listen-peer", &format!("127.0.0.1:{}", ports[1])])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(File::create(directory.with_extension("out")).expect("a file"))
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("starts");
        Elsewhere { child, log }
    }

    pub(crate) fn pid(&self, i: usize) -> u32 {
        self.stores[i].child.as_ref().expect("runs").id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, i: usize) {
        let mut child = self.stores[i].child.take().expect("runs");
        child.kill().expect("kills");
        child.wait().expect("ends");
    }

    /// Sends a signal by its number's name, as `kill` takes it.
    pub(crate) fn signal(&self, i: usize, signal: &str) {
        let done = Command::new("kill").args([&format!("-{signal}"), &self.pid(i).to_string()]).status();
        assert!(done.expect("kill runs").success());
    }

    /// Waits for the end of a store that was told to stop, and returns its exit code.
    pub(crate) fn wait_exit(&mut self, i: usize) -> Option<i32> {
        let start = Instant::now();
        loop {
            // Left in its place, so that it does not outlive a test that gives up.
            let child = self.stores[i].child.as_mut().expect("runs");
            if let Some(status) = child.try_wait().expect("waits") {
                self.stores[i].child = None;
                return status.code();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} does not stop; its log:\n{}",
                self.stores[i].name,
                self.log(i)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a store that was killed and waits until it serves clients.
    pub(crate) fn restart(&mut self, i: usize) {
        self.spawn(i);
        self.wait_ready(i);
    }

    /// Starts all stores (all must be down) and waits until they serve clients.
    pub(crate) fn restart_all(&mut self) {
        for i in 0..self.stores.len() {
            self.spawn(i);
        }
        for i in 0..self.stores.len() {
            self.wait_ready(i);
        }
    }

    pub(crate) fn endpoint(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.stores[i].client)
    }

    pub(crate) async fn channel(&self, i: usize) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.endpoint(i))).expect("an address");
        retry("connect", || async { endpoint.connect().await.map_err(|e| e.to_string()) }).await
    }

    pub(crate) async fn kv(&self, i: usize) -> KvClient<Channel> {
        KvClient::new(self.channel(i).await)
    }

    /// Puts, again until it is acknowledged.
    pub(crate) async fn put(&self, i: usize, key: &str, value: &str) {
        let kv = self.kv(i).await;
        retry("put", || {
            let mut kv = kv.clone();
            let request = PutRequest {
                key: key.to_owned().into(),
                value: value.to_owned().into(),
                ..PutRequest::default()
            };
            async move { kv.put(request).await.map_err(|e| e.to_string()) }
        })
        .await;
    }

    /// Reads a prefix; linearizable unless `serializable`.
    pub(crate) async fn range(&self, i: usize, prefix: &str, serializable: bool) -> RangeResponse {
        let kv = self.kv(i).await;
        let mut range_end = prefix.as_bytes().to_vec();
        *range_end.last_mut().expect("a prefix") += 1;
        let request = RangeRequest {
            key: prefix.to_owned().into(),
            range_end: range_end.into(),
            serializable,
            ..RangeRequest::default()
        };
        retry("range", || {
            let (mut kv, request) = (kv.clone(), request.clone());
            async move { kv.range(request).await.map(tonic::Response::into_inner).map_err(|e| e.to_string()) }
        })
        .await
    }

    /// The store that leads `default`.
    pub(crate) async fn leader(&self, among: &[usize]) -> usize {
        for _ in 0..600 {
            for &i in among {
                let mut client = MaintenanceClient::new(self.channel(i).await);
                if let Ok(status) = client.status(StatusRequest::default()).await {
                    let status = status.into_inner();
                    if status.header.is_some_and(|h| h.member_id == status.leader) {
                        return i;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no leader; the log of the first store:\n{}", self.log(among[0]));
    }

    /// Waits until all stores have the same hash at the same revision, and returns it.
    pub(crate) async fn equal_hashes(&self) -> (i64, u32) {
        self.equal_hashes_of(&(0..self.stores.len()).collect::<Vec<_>>()).await
    }

    /// As [`Self::equal_hashes`], of these stores.
    pub(crate) async fn equal_hashes_of(&self, stores: &[usize]) -> (i64, u32) {
        let start = Instant::now();
        loop {
            // A linearizable read brings each store up to date before its hash is taken.
            let mut revision = 0;
            for &i in stores {
                let header = self.range(i, "\0", false).await.header.expect("a header");
                revision = revision.max(header.revision);
            }
            let mut hashes = Vec::new();
            for &i in stores {
                let mut client = MaintenanceClient::new(self.channel(i).await);
                let request = HashKvRequest { revision };
                hashes.push(
                    client.hash_kv(request).await.map(|r| r.into_inner().hash).map_err(|e| e.to_string()),
                );
            }
            if let Ok(first) = &hashes[0]
                && hashes.iter().all(|h| h.as_ref() == Ok(first))
            {
                return (revision, *first);
            }
            assert!(start.elapsed() < PATIENCE, "hashes at revision {revision}: {hashes:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for store in &mut self.stores {
            if let Some(mut child) = store.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for i in 0..self.stores.len() {
                let log = self.log(i);
                let tail: Vec<_> = log.lines().rev().take(30).collect();
                eprintln!("--- the end of {}'s log", self.stores[i].name);
                for line in tail.into_iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

/// Tries until it works or patience ends.
pub(crate) async fn retry<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    attempt: impl Fn() -> F,
) -> T {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                assert!(start.elapsed() < PATIENCE, "{what}: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
