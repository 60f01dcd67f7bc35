//! Users and roles, by the real `etcdctl`, on every store.

use std::process::{Command, Stdio};

use pontoon_proto::etcdserverpb::auth_client::AuthClient;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest, RangeRequest,
};
use tonic::{Code, Request};

use crate::cluster::{Cluster, retry};
use crate::etcdctl;
use crate::keyspaces::{addressed, pontoon};

fn run(endpoint: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args([&format!("--endpoints={endpoint}"), "--command-timeout=20s"])
        // The login, whose hash takes its time on a busy machine, has to be over by then.
        .arg("--dial-timeout=20s")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("etcdctl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// Has a keyspace ask for users, of whom only root is there.
async fn has_users_of_its_own(cluster: &Cluster, keyspace: &str) {
    let mut auth = AuthClient::new(cluster.channel(0).await);
    let root = || "root".to_owned();
    let password = "other".to_owned();
    let user = AuthUserAddRequest { name: root(), password, ..AuthUserAddRequest::default() };
    auth.user_add(addressed(user, keyspace)).await.expect("adds root");
    let grant = AuthUserGrantRoleRequest { user: root(), role: root() };
    auth.user_grant_role(addressed(grant, keyspace)).await.expect("grants root");
    auth.auth_enable(addressed(AuthEnableRequest {}, keyspace)).await.expect("enables");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_one_keyspace_log_in_anywhere_and_are_nobody_elsewhere() {
    if !etcdctl::available() {
        return;
    }
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "other"]);
    assert_eq!(code, Some(0), "{out}{err}");
    has_users_of_its_own(&cluster, "other").await;
    let at = cluster.endpoint(0);
    let ok = |endpoint: &str, args: &[&str]| {
        let (ok, out) = run(endpoint, args);
        assert!(ok, "{args:?}: {out}");
        out
    };
    ok(&at, &["user", "add", "root:rootpw"]);
    ok(&at, &["user", "add", "alice:alicepw"]);
    ok(&at, &["role", "add", "app"]);
    ok(&at, &["role", "grant-permission", "app", "--prefix=true", "readwrite", "app/"]);
    ok(&at, &["role", "grant-permission", "app", "read", "shared"]);
    ok(&at, &["user", "grant-role", "alice", "app"]);
    // Makes the root role and grants it, if that was not done.
    assert!(ok(&at, &["auth", "enable"]).contains("Authentication Enabled"));
    for i in 0..3 {
        let at = cluster.endpoint(i);
        let alice = "--user=alice:alicepw";
        let (done, out) = run(&at, &["put", "app/x", "1"]);
        assert!(!done && out.contains("user name is empty"), "{out}");
        ok(&at, &[alice, "put", "app/x", "1"]);
        assert_eq!(ok(&at, &[alice, "get", "app/x", "--print-value-only"]), "1\n");
        for args in [
            &["put", "shared", "1"][..],
            &["get", "secret"],
            &["get", "--prefix", "a"],
            &["del", "--from-key", "app/"],
            &["user", "list"],
            &["auth", "disable"],
            &["snapshot", "save", cluster.beside("no").to_str().expect("printable")],
            &["defrag"],
        ] {
            let (done, out) = run(&at, &[&[alice], args].concat());
            assert!(!done && out.contains("permission denied"), "{args:?}: {out}");
        }
        let (done, out) = run(&at, &["--user=alice:wrong", "get", "app/x"]);
        assert!(!done && out.contains("authentication failed, invalid user ID or password"), "{out}");
        assert!(ok(&at, &["--user=root:rootpw", "user", "get", "alice"]).contains("app"));
        assert!(ok(&at, &["--user=root:rootpw", "role", "get", "app"]).contains("app/"));
        assert!(ok(&at, &["--user=root:rootpw", "user", "list"]).contains("alice"));
        ok(&at, &["--user=root:rootpw", "put", "secret", "1"]);
        ok(&at, &["--user=root:rootpw", "defrag"]);
    }
    // A token that one store gave is good on the others, at once and after a restart of all.
    let mut login = AuthClient::new(cluster.channel(0).await);
    let request = AuthenticateRequest { name: "alice".into(), password: "alicepw".into() };
    let token = login.authenticate(request).await.expect("logs in").into_inner().token;
    for round in 0..2 {
        for i in 0..3 {
            let range = RangeRequest { key: "app/x".into(), ..RangeRequest::default() };
            let mut request = Request::new(range.clone());
            request.metadata_mut().insert("token", token.parse().expect("ASCII"));
            let mut kv = KvClient::new(cluster.channel(i).await);
            let found = kv.range(request).await.unwrap_or_else(|e| panic!("round {round}, store {i}: {e}"));
            assert_eq!(found.into_inner().count, 1);
            // In another keyspace it is nothing.
            let refused = retry("an answer of another keyspace", || {
                let (mut kv, mut request) = (kv.clone(), Request::new(range.clone()));
                request.metadata_mut().insert("token", token.parse().expect("ASCII"));
                request.metadata_mut().insert("pontoon-keyspace", "other".parse().expect("ASCII"));
                async move {
                    let refused = kv.range(request).await.expect_err("a token of another keyspace");
                    // A store may be behind with the other keyspace's users.
                    if refused.code() == Code::Unauthenticated {
                        Ok(refused)
                    } else {
                        Err(refused.to_string())
                    }
                }
            })
            .await;
            assert_eq!(refused.message(), "etcdserver: invalid auth token");
        }
        if round == 0 {
            for i in 0..3 {
                cluster.kill(i);
            }
            cluster.restart_all();
            cluster.leader(&[0, 1, 2]).await;
        }
    }
    let at = cluster.endpoint(1);
    ok(&at, &["--user=root:rootpw", "user", "delete", "alice"]);
    let mut request = Request::new(RangeRequest { key: "app/x".into(), ..RangeRequest::default() });
    request.metadata_mut().insert("token", token.parse().expect("ASCII"));
    let refused = KvClient::new(cluster.channel(2).await).range(request).await.expect_err("no such user");
    assert!(matches!(refused.code(), Code::Unauthenticated | Code::PermissionDenied), "{refused:?}");
    ok(&at, &["--user=root:rootpw", "auth", "disable"]);
    ok(&at, &["put", "app/x", "2"]);
    cluster.equal_hashes().await;
}
