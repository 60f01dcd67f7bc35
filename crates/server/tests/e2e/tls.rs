//! TLS with real clients: who is served, who may use what, and certificates that are renewed while stores run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pontoon_proto::authpb::UserAddOptions;
use pontoon_proto::etcdserverpb::auth_client::AuthClient;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, PutRequest, RangeRequest,
};
use pontoon_tls::testing::Authority;
use pontoon_tls::{Certificate, ClientTls};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE, retry};
use crate::drivers::{Play, points};
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
    // A keyspace of its own on one store: the other two pass everything on, and say whose certificate they have seen.
    let made =
        pontoon(&cluster, 0, &files, Some(&nobody), &["keyspace", "create", "tenant-a", "--replicas", "1"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    users_of_a_tenant_come_by_any_store(&cluster, &files, &root, &alice, &nobody).await;
    // Who says that he passes on what others ask is not taken for them, nor for himself.
    let forged = format!("v1.726f6f74.9999999999.{}", "0".repeat(64));
    for header in ["grpcgateway-accept", "pontoon-forwarded"] {
        let mut kv = client(&cluster, &files, &root, "localhost").await;
        let mut put = tonic::Request::new(PutRequest { key: b"k".to_vec().into(), ..PutRequest::default() });
        put.metadata_mut().insert(header, "1".parse().expect("ASCII"));
        put.metadata_mut().insert("pontoon-vouched", forged.parse().expect("ASCII"));
        let status = kv.put(put).await.expect_err("nobody");
        assert_eq!(status.message(), "etcdserver: user name is empty", "{header}");
    }
    ok(2, &root, &["auth", "disable"]);
    ok(1, &nobody, &["put", "k", "v"]);
}

/// A keyspace with one replica asks for users by their certificates, through each of the three stores.
async fn users_of_a_tenant_come_by_any_store(
    cluster: &Cluster,
    files: &Files,
    root: &Certificate,
    alice: &Certificate,
    nobody: &Certificate,
) {
    let channel = |i: usize, own: &Certificate| {
        let tls = ClientTls::load(files.ca.clone(), Some(own.clone())).expect("usable files");
        let at = format!("http://127.0.0.1:{}", cluster.stores[i].client);
        let endpoint = Endpoint::from_shared(at).expect("an address");
        let endpoint = endpoint.origin("http://tenant-a.db.example:2379".parse().expect("an address"));
        endpoint.connect_with_connector_lazy(pontoon_tls::connector(Some(tls)))
    };
    let user = |name: &str| AuthUserAddRequest {
        name: name.into(),
        options: Some(UserAddOptions { no_password: true }),
        ..AuthUserAddRequest::default()
    };
    let mut auth = AuthClient::new(channel(0, nobody));
    auth.user_add(user("root")).await.expect("is added");
    auth.user_add(user("alice")).await.expect("is added");
    let role = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(role).await.expect("is granted");
    auth.auth_enable(AuthEnableRequest {}).await.expect("is enabled");
    let put = || PutRequest { key: b"k".to_vec().into(), ..PutRequest::default() };
    for i in 0..3 {
        // The first word of a store has to wait for the cluster's secret.
        let kv = KvClient::new(channel(i, root));
        retry("root's put", || {
            let mut kv = kv.clone();
            async move { kv.put(put()).await.map_err(|e| e.to_string()) }
        })
        .await;
        let no_right = KvClient::new(channel(i, alice)).put(put()).await.expect_err("alice has no role");
        assert_eq!(no_right.message(), "etcdserver: permission denied", "store {i}");
        let stranger = KvClient::new(channel(i, nobody)).put(put()).await.expect_err("nobody");
        assert_eq!(stranger.message(), "etcdserver: permission denied", "store {i}");
        // Whose word it is, is the store's to say.
        let mut lie = tonic::Request::new(put());
        let forged = format!("v1.726f6f74.9999999999.{}", "0".repeat(64));
        lie.metadata_mut().insert("pontoon-vouched", forged.parse().expect("ASCII"));
        let caught = KvClient::new(channel(i, alice)).put(lie).await.expect_err("alice is not root");
        assert_eq!(caught.message(), "etcdserver: permission denied", "store {i}");
    }
}

/// A play of `drivers.rs`: only stores that ask for certificates make a secret to vouch with.
#[tokio::test(flavor = "multi_thread")]
async fn stores_that_die_while_they_make_their_secret_have_one_after_all() {
    let authority = Authority::new("ours");
    let files = Files::new(&authority);
    let of = |name| authority.issue(files.directory.path(), name, &[]);
    let (root, alice, nobody) = (of("root"), of("alice"), of("mallory"));
    for point in points(Play::Found) {
        let flags = files.flags();
        let mut cluster = Cluster::new(3, &flags.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.extra_mut().push("--enable-failure-injection".to_owned());
        let unarmed = cluster.extra_mut().clone();
        cluster.extra_mut().extend(["--failure-test".to_owned(), point.to_string()]);
        (0..3).for_each(|i| cluster.spawn(i));
        *cluster.extra_mut() = unarmed;
        let start = Instant::now();
        while (0..3).all(|i| cluster.runs(i)) {
            assert!(start.elapsed() < PATIENCE, "nobody came by {point}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The others are armed, too.
        for i in 0..3 {
            if cluster.runs(i) {
                cluster.kill(i);
            } else {
                assert_eq!(cluster.wait_exit(i), None, "it died at {point}");
            }
        }
        cluster.restart_all();
        let create = ["keyspace", "create", "tenant-a", "--replicas", "1"];
        retry("a keyspace", || async {
            let made = pontoon(&cluster, 0, &files, Some(&nobody), &create);
            if made.status.success() { Ok(()) } else { Err(text(&made.stderr)) }
        })
        .await;
        users_of_a_tenant_come_by_any_store(&cluster, &files, &root, &alice, &nobody).await;
        cluster.kill_and_check();
    }
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

/// Stores come and go with certificates alone: one joins by `join-cluster`, one by flags, one is kicked and one leaves, and
/// every command about them speaks TLS; a joiner without a fitting certificate is told so and can go on with one.
#[tokio::test(flavor = "multi_thread")]
async fn stores_join_leave_and_are_kicked_where_everything_asks_for_certificates() {
    let authority = Authority::new("ours");
    let files = Files::new(&authority);
    let mut cluster = files.start();
    let run = |cluster: &Cluster, i: usize, args: &[&str]| {
        let output = pontoon(cluster, i, &files, Some(&files.client), args);
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stderr), cluster.log(i));
        text(&output.stdout)
    };
    run(&cluster, 0, &["log", "create", "orders"]);

    // Prepared offline; first with certificates of nobody the others know.
    cluster.add(3);
    let dir = cluster.data_dir(3).display().to_string();
    let (peer, remote) =
        (format!("127.0.0.1:{}", cluster.stores[3].peer), format!("127.0.0.1:{}", cluster.stores[0].peer));
    let prepared = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["join-cluster", &dir, "--name", "n4", "--advertise-peer", &peer, "--remote", &remote])
        .output()
        .expect("runs");
    assert!(prepared.status.success(), "{}", text(&prepared.stderr));
    let strange = Files::new(&Authority::new("strange"));
    let own_files = std::mem::replace(cluster.extra_mut(), strange.flags());
    cluster.spawn_prepared(3);
    wait_for(&cluster, 3, "asking again each second");
    let log = cluster.log(3);
    assert!(log.contains("UnknownIssuer") || log.contains("UnknownCA"), "it says why:\n{log}");
    cluster.kill(3);
    // Then without any: the others speak TLS and it does not.
    cluster.extra_mut().clear();
    cluster.spawn_prepared(3);
    let start = Instant::now();
    while cluster.log(3).matches("asking again each second").count() < 2 {
        assert!(start.elapsed() < PATIENCE, "{}", cluster.log(3));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.kill(3);
    *cluster.extra_mut() = own_files;
    let listed = run(&cluster, 0, &["store", "list"]);
    assert!(!listed.contains("n4"), "nobody was let in: {listed}");
    cluster.spawn_prepared(3);
    cluster.wait_ready(3);
    // By flags.
    cluster.add(4);
    cluster.spawn_joining(4, &[3]);
    cluster.wait_ready(4);
    let listed = run(&cluster, 4, &["store", "list", "--output", "json"]);
    assert_eq!(listed.matches("\"member\"").count(), 5, "{listed}");

    // What an operator asks, of a store that came over TLS, with and without a certificate.
    let commands: &[&[&str]] = &[
        &["status"],
        &["status", "--group", "default"],
        &["store", "list"],
        &["moves"],
        &["memory"],
        &["cid"],
        &["sid"],
        &["keyspace", "create", "tenant"],
        &["keyspace", "describe", "tenant"],
        &["log", "append", "orders", "one"],
        &["log", "read", "orders"],
        &["take-leadership", "default"],
        &["transfer-leadership", "default", "n1"],
        &["change-election-timer", "default", "1100ms"],
        &["set-backlog-threshold", "500", "64MiB"],
        &["recover", "history"],
    ];
    for args in commands {
        run(&cluster, 4, args);
        let nobody = pontoon(&cluster, 4, &files, None, args);
        assert_eq!(nobody.status.code(), Some(1), "{args:?}");
        assert!(text(&nobody.stderr).contains("give --cert and --key"), "{args:?}: {}", text(&nobody.stderr));
    }
    let backup = cluster.beside("backup");
    run(&cluster, 4, &["backup", path(&backup)]);
    run(&cluster, 3, &["leave", "--wait", "60s"]);
    assert_eq!(cluster.wait_exit(3), Some(0), "{}", cluster.log(3));
    run(&cluster, 0, &["kick", "n5", "--wait", "60s"]);
    assert_eq!(cluster.wait_exit(4), Some(2), "{}", cluster.log(4));
    let listed = run(&cluster, 1, &["store", "list", "--output", "json"]);
    assert_eq!(listed.matches("\"member\"").count(), 3, "{listed}");
    run(&cluster, 2, &["log", "read", "orders"]);
}

fn wait_for(cluster: &Cluster, i: usize, what: &str) {
    let start = Instant::now();
    while !cluster.log(i).contains(what) {
        assert!(start.elapsed() < PATIENCE, "nothing of {what:?} in its log:\n{}", cluster.log(i));
        std::thread::sleep(Duration::from_millis(50));
    }
}
