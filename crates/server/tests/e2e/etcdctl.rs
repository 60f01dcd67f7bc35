//! The real `etcdctl` against each store.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::cluster::Cluster;

/// Whether `etcdctl` is there. Without it these tests say so and pass, unless the environment forbids that (as CI does).
pub(crate) fn available() -> bool {
    let found = Command::new("etcdctl").arg("version").env("ETCDCTL_API", "3").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("PONTOON_REQUIRE_ETCDCTL").is_none(),
            "etcdctl is required (Debian package etcd-client) and not there"
        );
        eprintln!(
            "SKIPPED: there is no etcdctl (Debian package etcd-client), so the real client was not tried"
        );
    }
    found
}

/// Runs etcdctl and returns its standard output; panics with both outputs if it fails.
fn run(endpoint: &str, args: &[&str], input: Option<&str>) -> String {
    let (ok, stdout, stderr) = attempt(endpoint, args, input);
    assert!(ok, "etcdctl {args:?} against {endpoint} failed\n{stdout}\n{stderr}");
    stdout
}

/// Runs etcdctl: whether it worked, and both outputs.
pub(crate) fn attempt(endpoint: &str, args: &[&str], input: Option<&str>) -> (bool, String, String) {
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoint}"))
        .arg("--command-timeout=20s")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl runs");
    child.stdin.take().expect("piped").write_all(input.unwrap_or_default().as_bytes()).expect("writes");
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_a_first_day_works_against_each_store() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    for i in 0..3 {
        let at = cluster.endpoint(i);
        let at = at.as_str();
        let key = format!("k{i}");
        assert_eq!(run(at, &["put", &key, "b"], None), "OK\n");
        assert_eq!(run(at, &["get", &key], None), format!("{key}\nb\n"));
        assert_eq!(run(at, &["get", &key, "--print-value-only"], None), "b\n");
        assert_eq!(run(at, &["put", &key, "c", "--prev-kv"], None), format!("OK\n{key}\nb\n"));
        for n in 0..3 {
            run(at, &["put", &format!("p{i}/{n}"), &n.to_string()], None);
        }
        let listed = run(at, &["get", "--prefix", &format!("p{i}/"), "--keys-only"], None);
        assert_eq!(listed.split_whitespace().count(), 3, "{listed}");
        let sorted = run(
            at,
            &[
                "get",
                "--prefix",
                &format!("p{i}/"),
                "--order=DESCEND",
                "--sort-by=KEY",
                "--limit=1",
                "--print-value-only",
            ],
            None,
        );
        assert_eq!(sorted, "2\n");
        assert_eq!(run(at, &["del", "--prefix", &format!("p{i}/")], None), "3\n");

        let txn = format!("value(\"{key}\") = \"c\"\n\nput {key} d\nget {key}\n\nput {key} wrong\n\n");
        let answer = run(at, &["txn"], Some(&txn));
        assert!(answer.contains("SUCCESS") && answer.contains(&format!("{key}\nd")), "{answer}");
        assert_eq!(run(at, &["get", &key, "--print-value-only"], None), "d\n");

        let json: serde_json::Value =
            serde_json::from_str(&run(at, &["get", &key, "-w", "json"], None)).expect("JSON");
        let revision = json["header"]["revision"].as_i64().expect("a revision");
        let answer = run(at, &["compact", &revision.to_string()], None);
        assert_eq!(answer, format!("compacted revision {revision}\n"));
        let (ok, _, why) = attempt(at, &["get", &key, "--rev", &(revision - 1).to_string()], None);
        assert!(!ok && why.contains("required revision has been compacted"), "{why}");
        let (ok, _, why) = attempt(at, &["get", &key, "--rev", "1000000"], None);
        assert!(!ok && why.contains("required revision is a future revision"), "{why}");

        let granted = run(at, &["lease", "grant", "600"], None);
        let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
        assert_eq!(granted, format!("lease {lease} granted with TTL(600s)\n"));
        let leased = format!("leased{i}");
        run(at, &["put", "--lease", &lease, &leased, "x"], None);
        let kept = run(at, &["lease", "keep-alive", "--once", &lease], None);
        assert_eq!(kept, format!("lease {lease} keepalived with TTL(600)\n"));
        let left = run(at, &["lease", "timetolive", "--keys", &lease], None);
        assert!(left.contains("granted with TTL(600s)") && left.contains(&leased), "{left}");
        assert!(run(at, &["lease", "list"], None).contains(&lease));
        assert_eq!(run(at, &["lease", "revoke", &lease], None), format!("lease {lease} revoked\n"));
        assert_eq!(run(at, &["get", &leased], None), "");
        assert_eq!(run(at, &["lock", &format!("lock{i}"), "echo", "held"], None), "held\n");

        let table = run(at, &["endpoint", "status", "-w", "table"], None);
        assert!(table.contains("ENDPOINT") && table.contains("3.5"), "{table}");
        let health = attempt(at, &["endpoint", "health"], None);
        assert!(health.0 && format!("{}{}", health.1, health.2).contains("is healthy"), "{health:?}");
        let members = run(at, &["member", "list"], None);
        assert_eq!(members.lines().filter(|l| l.contains("started")).count(), 3, "{members}");
        for store in &cluster.stores {
            assert!(members.contains(&format!("127.0.0.1:{}", store.client)), "{members}");
        }
    }
    cluster.equal_hashes().await;
}
