//! TLS with real clients: who is served, who may use what, and certificates that are renewed while stores run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest};
use pontoon_tls::testing::Authority;
use pontoon_tls::{Certificate, ClientTls};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE};
use crate::etcdctl;

/// Certificates of one cluster, in files.
struct Files {
    directory: tempfile::TempDir,
    ca: PathBuf,
    store: Certificate,
    client: Certificate,
}

impl Files {
    fn new(authority: &Authority) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let (ca, store) = (authority.write(at), authority.issue(at, "store", &[]));
        let client = authority.issue(at, "client", &[]);
        Self { ca, store, client, directory }
    }

    /// The flags of a store that shows and demands certificates everywhere.
    fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--tls-client-auth".to_owned()];
        for side in ["tls", "tls-peer"] {
            for (flag, file) in [("cert", &self.store.chain), ("key", &self.store.key), ("ca", &self.ca)] {
                flags.extend([format!("--{side}-{flag}"), file.display().to_string()]);
            }
        }
        flags
    }

    fn start(&self) -> Cluster {
        let flags = self.flags();
        let mut cluster = Cluster::new(3, &flags.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.restart_all();
        cluster
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a printable path")
}

fn with_etcdctl(cluster: &Cluster, i: usize, files: &Files, client: &Certificate, args: &[&str]) -> Output {
    Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=https://127.0.0.1:{}", cluster.stores[i].client))
        .args(["--command-timeout=20s", "--dial-timeout=5s", "--cacert", path(&files.ca)])
        .args(["--cert", path(&client.chain), "--key", path(&client.key)])
        .args(args)
        .output()
        .expect("etcdctl runs")
}

fn pontoon(
    cluster: &Cluster,
    i: usize,
    files: &Files,
    client: Option<&Certificate>,
    args: &[&str],
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    command.args(["--endpoints", &format!("127.0.0.1:{}", cluster.stores[i].client), "--timeout", "10s"]);
    command.args(["--cacert", path(&files.ca)]);
    if let Some(client) = client {
        command.args(["--cert", path(&client.chain), "--key", path(&client.key)]);
    }
    command.args(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A client that dials a store by its address and asks for a host of its own choice.
async fn client(cluster: &Cluster, files: &Files, own: &Certificate, host: &str) -> KvClient<Channel> {
    let tls = ClientTls::load(files.ca.clone(), Some(own.clone())).expect("usable files");
    let at = format!("http://127.0.0.1:{}", cluster.stores[0].client);
    let origin = format!("http://{host}:2379").parse().expect("an address");
    let endpoint = Endpoint::from_shared(at).expect("an address").origin(origin);
    KvClient::new(endpoint.connect_with_connector(pontoon_tls::connector(Some(tls))).await.expect("connects"))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_the_authority_are_served_and_bound_ones_for_their_keyspaces() {
    let authority = Authority::new("ours");
    let files = Files::new(&authority);
    let cluster = files.start();

    // The stores found each other over TLS, and commands reach the leader from any of them.
    let made = pontoon(
        &cluster,
        0,
        &files,
        Some(&files.client),
        &["keyspace", "create", "tenant-a", "--replicas", "1"],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    if etcdctl::available() {
        for i in 0..3 {
            let put = with_etcdctl(&cluster, i, &files, &files.client, &["put", "k", "v"]);
            assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
        }
        let members = with_etcdctl(&cluster, 1, &files, &files.client, &["member", "list"]);
        assert_eq!(
            text(&members.stdout).matches("https://127.0.0.1:").count(),
            6,
            "{}",
            text(&members.stdout)
        );
    }

    // Without a certificate, or with one of somebody else, nobody is served.
    let nobody = pontoon(&cluster, 0, &files, None, &["status"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("give --cert and --key"), "{}", text(&nobody.stderr));
    let mallory = Authority::new("theirs").issue(files.directory.path(), "mallory", &[]);
    let refused = pontoon(&cluster, 0, &files, Some(&mallory), &["status"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    assert!(cluster.log(0).contains("UnknownIssuer"), "the store says why:\n{}", cluster.log(0));

    // A certificate that is bound to a keyspace is good for that one, on whichever store it lives.
    let bound = authority.issue(files.directory.path(), "alice", &["pontoon://keyspace/tenant-a"]);
    let mut own = client(&cluster, &files, &bound, "tenant-a.db.example").await;
    let put = PutRequest { key: b"k".to_vec().into(), ..PutRequest::default() };
    own.put(put.clone()).await.expect("its own keyspace");
    let mut other = client(&cluster, &files, &bound, "localhost").await;
    let status = other.put(put).await.expect_err("another keyspace");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("bound to the keyspaces tenant-a"), "{status:?}");
    let admin = pontoon(&cluster, 0, &files, Some(&bound), &["keyspace", "list"]);
    assert!(text(&admin.stderr).contains("the admin API is for all of them"), "{}", text(&admin.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_logs_its_owner_in_where_users_are_asked_for() {
    if !etcdctl::available() {
        return;
    }
    let authority = Authority::new("ours");
    let files = Files::new(&authority);
    let cluster = files.start();
    let of = |name| authority.issue(files.directory.path(), name, &[]);
    let (root, alice, nobody) = (of("root"), of("alice"), of("mallory"));
    let run = |i: usize, who: &Certificate, args: &[&str]| {
        let output = with_etcdctl(&cluster, i, &files, who, args);
        (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let ok = |i: usize, who: &Certificate, args: &[&str]| {
        let (done, out) = run(i, who, args);
        assert!(done, "{args:?} at store {i}: {out}");
        out
    };
    let refused = |i: usize, who: &Certificate, args: &[&str], why: &str| {
        let (done, out) = run(i, who, args);
        assert!(!done && out.contains(why), "{args:?} at store {i}: {out}");
    };
    // Before users are asked for, a certificate says no more than that it is of the authority.
    ok(0, &nobody, &["put", "k", "v"]);
    ok(0, &nobody, &["user", "add", "root", "--no-password"]);
    ok(0, &nobody, &["user", "add", "alice", "--no-password"]);
    ok(0, &nobody, &["user", "add", "bob:bobpw"]);
    ok(0, &nobody, &["role", "add", "app"]);
    ok(0, &nobody, &["role", "grant-permission", "app", "--prefix=true", "readwrite", "app/"]);
    ok(0, &nobody, &["user", "grant-role", "alice", "app"]);
    ok(0, &nobody, &["auth", "enable"]);
    for i in 0..3 {
        ok(i, &root, &["put", "k", "v"]);
        ok(i, &alice, &["put", "app/k", "v"]);
        assert_eq!(ok(i, &alice, &["get", "app/k", "--print-value-only"]), "v\n");
        refused(i, &alice, &["put", "k", "v"], "permission denied");
        refused(i, &alice, &["user", "list"], "permission denied");
        refused(i, &nobody, &["put", "app/k", "v"], "permission denied");
        // A token comes before the certificate.
        refused(i, &root, &["--user=bob:bobpw", "put", "k", "v"], "permission denied");
        // What only the leader knows: the store that passes the call on says who asks.
        let granted = ok(i, &alice, &["lease", "grant", "600"]);
        let id = granted.split_whitespace().nth(1).expect("lease ID granted").to_owned();
        ok(i, &alice, &["put", "app/leased", "v", &format!("--lease={id}")]);
        for asked in 0..3 {
            let kept = ok(asked, &alice, &["lease", "keep-alive", "--once", &id]);
            assert!(kept.contains("keepalived with TTL(600)"), "{kept}");
            let left = ok(asked, &alice, &["lease", "timetolive", "--keys", &id]);
            assert!(left.contains("app/leased"), "{left}");
        }
    }
    // Who says that he passes on what others ask is not taken for them, nor for himself.
    for header in ["grpcgateway-accept", "pontoon-forwarded"] {
        let mut kv = client(&cluster, &files, &root, "localhost").await;
        let mut put = tonic::Request::new(PutRequest { key: b"k".to_vec().into(), ..PutRequest::default() });
        put.metadata_mut().insert(header, "1".parse().expect("ASCII"));
        let status = kv.put(put).await.expect_err("nobody");
        assert_eq!(status.message(), "etcdserver: user name is empty", "{header}");
    }
    ok(2, &root, &["auth", "disable"]);
    ok(1, &nobody, &["put", "k", "v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_stores_run_and_a_stranger_joins_no_link() {
    let first = Authority::new("first");
    let files = Files::new(&first);
    let mut cluster = files.start();
    let written = pontoon(&cluster, 0, &files, Some(&files.client), &["keyspace", "list"]);
    assert!(written.status.success(), "{}", text(&written.stderr));

    // A store whose peer certificate is of another authority gets no link, and says why.
    cluster.kill(2);
    let strange = Files::new(&Authority::new("strange"));
    let own_files = std::mem::replace(cluster.extra_mut(), strange.flags());
    cluster.spawn(2);
    let start = Instant::now();
    while !cluster.log(2).contains("UnknownIssuer") && !cluster.log(2).contains("UnknownCA") {
        assert!(start.elapsed() < PATIENCE, "nothing in its log:\n{}", cluster.log(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.kill(2);
    *cluster.extra_mut() = own_files;
    cluster.spawn(2);
    cluster.wait_ready(2);

    // New files of a new authority: old clients are refused once a store has seen them, new ones are served.
    let second = Authority::new("second");
    let (_, _) = (second.write(files.directory.path()), second.issue(files.directory.path(), "store", &[]));
    let renewed = second.issue(files.directory.path(), "renewed", &[]);
    let start = Instant::now();
    for i in 0..3 {
        while !pontoon(&cluster, i, &files, Some(&renewed), &["sid"]).status.success() {
            assert!(
                start.elapsed() < PATIENCE,
                "store {i} has not taken over the new files:\n{}",
                cluster.log(i)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let mut kv = client(&cluster, &files, &renewed, "localhost").await;
    kv.put(PutRequest { key: b"k".to_vec().into(), ..PutRequest::default() }).await.expect("a quorum");
    // Links that are made from now on use the new files too.
    cluster.kill(1);
    cluster.spawn(1);
    cluster.wait_ready(1);
    kv.range(RangeRequest { key: b"k".to_vec().into(), ..RangeRequest::default() }).await.expect("is read");
    cluster.kill_and_check();
}
