//! A whole cluster in a directory, and another one made from it.

use std::path::Path;
use std::process::Command;

use pontoon_node::DriverStep;
use pontoon_proto::etcdserverpb::auth_client::AuthClient;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest,
    PutRequest,
};
use serde_json::Value;
use tonic::Request;

use crate::cluster::Cluster;
use crate::drivers::{Play, points};

const USER: &str = "root:secret";

fn run(cluster: &Cluster, args: &[&str]) -> (Option<i32>, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(args)
        .args(["--output", "json", "--timeout", "20s", "--endpoints", &cluster.endpoint(0)])
        .output()
        .expect("runs");
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), document, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn done(cluster: &Cluster, args: &[&str]) -> Value {
    let (code, document, error) = run(cluster, args);
    assert_eq!(code, Some(0), "{args:?}: {error}");
    document
}

fn of<T>(keyspace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pontoon-keyspace", keyspace.parse().expect("ASCII"));
    request
}

async fn put(cluster: &Cluster, keyspace: &str, n: usize) {
    let mut kv = KvClient::new(cluster.channel(0).await);
    let key = format!("k{}", n % 7);
    let put = PutRequest { key: key.into(), value: vec![b'x'; 100 * n].into(), ..Default::default() };
    kv.put(of(keyspace, put)).await.expect("writes");
}

/// A keyspace that asks for a user.
async fn guard(cluster: &Cluster, keyspace: &str) {
    let mut auth = AuthClient::new(cluster.channel(0).await);
    let (name, password) = USER.split_once(':').expect("both");
    let user = AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
    auth.user_add(of(keyspace, user)).await.expect("added");
    auth.role_add(of(keyspace, AuthRoleAddRequest { name: name.into() })).await.expect("added");
    let grant = AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
    auth.user_grant_role(of(keyspace, grant)).await.expect("granted");
    auth.auth_enable(of(keyspace, AuthEnableRequest {})).await.expect("enabled");
}

fn entries(cluster: &Cluster, log: &str) -> Vec<(Value, Value)> {
    let read = done(cluster, &["log", "read", log]);
    let entries = read["entries"].as_array().cloned().unwrap_or_default();
    entries.into_iter().map(|e| (e["id"].clone(), e["data"].clone())).collect()
}

fn revision(cluster: &Cluster, keyspace: &str) -> Value {
    done(cluster, &["keyspace", "describe", keyspace])["revision"].clone()
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("MANIFEST")).expect("a manifest")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_saved_and_another_one_made_of_it_whoever_dies_on_the_way() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    for keyspace in ["tenant", "empty", "zz-guarded"] {
        done(&cluster, &["keyspace", "create", keyspace]);
    }
    done(&cluster, &["log", "create", "orders", "--replicas", "1"]);
    done(&cluster, &["log", "create", "quiet"]);
    for n in 0..30 {
        put(&cluster, "default", n).await;
        put(&cluster, "tenant", n).await;
        put(&cluster, "zz-guarded", n).await;
        done(&cluster, &["log", "append", "orders", &format!("order {n}")]);
    }
    let compact = CompactionRequest { revision: 15, physical: true };
    KvClient::new(cluster.channel(1).await).compact(of("tenant", compact)).await.expect("compacts");
    guard(&cluster, "zz-guarded").await;

    // Whoever does it dies, again and again; what is there is no backup, and is not thrown away.
    let dir = cluster.beside("saved");
    let shown = dir.to_str().expect("a printable path");
    for point in points(Play::Backup).into_iter().filter(|p| p.step == DriverStep::SaveGroup) {
        let (code, _, error) = run(&cluster, &["backup", shown, "--failure-test", &point.to_string()]);
        assert!(code.is_none() && error.contains("dies here"), "{point}: {code:?} {error}");
        let (code, _, error) = run(&cluster, &["restore", shown]);
        assert!(code == Some(2) && error.contains("not complete"), "{point}: {error}");
    }
    // One keyspace asks for a user.
    let (code, _, error) = run(&cluster, &["backup", shown]);
    assert!(code == Some(1) && error.contains("zz-guarded") && error.contains("run it again"), "{error}");
    let dies = DriverStep::WriteManifest.before().to_string();
    let (code, ..) = run(&cluster, &["backup", shown, "--user", USER, "--failure-test", &dies]);
    assert_eq!(code, None);
    // A group that was deleted since is no part of it.
    let quiet = done(&cluster, &["log", "describe", "quiet"]);
    done(&cluster, &["log", "delete", "quiet", "--id", quiet["id"].as_str().expect("an id")]);
    let dies = DriverStep::WriteManifest.after().to_string();
    let (code, _, error) = run(&cluster, &["backup", shown, "--user", USER, "--failure-test", &dies]);
    assert!(code.is_none(), "{error}");
    let saved = manifest(&dir);
    assert_eq!(saved["groups"].as_array().map(Vec::len), Some(5), "{saved}");
    assert!(!dir.join("log-quiet").exists());
    let (code, _, error) = run(&cluster, &["backup", shown, "--user", USER]);
    assert!(code == Some(2) && error.contains("never replaces another"), "{error}");

    // The cluster that was saved has all of it already.
    let kept = done(&cluster, &["restore", shown, "--user", USER]);
    assert_eq!(kept["kept"], 5, "{kept}");
    let expected = (entries(&cluster, "orders"), revision(&cluster, "tenant"));
    for i in 0..3 {
        cluster.kill(i);
    }

    // Damage is found before anything is made.
    let other = Cluster::start(1, &[]);
    other.leader(&[0]).await;
    let file = dir.join("keyspace-tenant");
    let whole = std::fs::read(&file).expect("reads");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&file, damaged).expect("writes");
    let (code, _, error) = run(&other, &["restore", shown]);
    assert!(code == Some(2) && error.contains("keyspace-tenant is damaged"), "{error}");
    assert_eq!(done(&other, &["keyspace", "list"])["keyspaces"].as_array().map(Vec::len), Some(1));
    std::fs::write(&file, whole).expect("writes");

    for point in points(Play::Backup).into_iter().filter(|p| p.step == DriverStep::RestoreGroup) {
        let (code, _, error) = run(&other, &["restore", shown, "--failure-test", &point.to_string()]);
        assert!(code.is_none() && error.contains("dies here"), "{point}: {code:?} {error}");
    }
    let restored = done(&other, &["restore", shown]);
    assert_eq!((&restored["keyspaces"], &restored["logs"]), (&4.into(), &1.into()), "{restored}");
    assert_eq!((entries(&other, "orders"), revision(&other, "tenant")), expected);
    assert_eq!(entries(&other, "orders").len(), 30);
    // The same again changes nothing, also when the keyspaces have gone on since: by their hashes at the saved revisions.
    put(&other, "tenant", 1).await;
    let again = done(&other, &["restore", shown, "--user", USER]);
    assert_eq!(again["kept"], 5, "{again}");
    // Users came along: nobody gets in without.
    let mut kv = KvClient::new(other.channel(0).await);
    let status = kv.put(of("zz-guarded", PutRequest { key: "k".into(), ..Default::default() })).await;
    assert!(status.expect_err("no user").message().contains("user name is empty"));

    // What is in the way is named, and stays as it is.
    done(&other, &["log", "append", "orders", "one more"]);
    let (code, _, error) = run(&other, &["restore", shown, "--user", USER]);
    assert!(code == Some(1) && error.contains("log orders") && error.contains("more entries"), "{error}");
    let tenant = done(&other, &["keyspace", "describe", "tenant"]);
    done(&other, &["keyspace", "delete", "tenant", "--id", tenant["id"].as_str().expect("an id")]);
    done(&other, &["keyspace", "create", "tenant"]);
    put(&other, "tenant", 1).await;
    let (code, _, error) = run(&other, &["restore", shown, "--user", USER]);
    assert!(
        code == Some(1) && error.contains("keyspace tenant") && error.contains("exists already"),
        "{error}"
    );
    assert_eq!(revision(&other, "tenant"), 2);
}
