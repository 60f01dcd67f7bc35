//! The real `etcdctl` against each store.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE};

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

/// An etcdctl that goes on until it is dropped.
struct Running(Child);

impl Running {
    fn start(endpoint: &str, args: &[&str]) -> Self {
        let child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={endpoint}"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("etcdctl runs"))
    }

    /// The first lines that it prints.
    fn lines(&mut self, count: usize) -> Vec<String> {
        let out = BufReader::new(self.0.stdout.take().expect("piped"));
        let (told, lines) = mpsc::channel();
        thread::spawn(move || out.lines().map_while(Result::ok).take(count).try_for_each(|l| told.send(l)));
        (0..count).map(|_| lines.recv_timeout(PATIENCE).expect("it prints")).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What plain HTTP gets on the client port.
fn page(endpoint: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(endpoint).expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// What the other tests do not run. `check perf`, which takes a minute, and what works on files alone are left out.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_later_days_work_too() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (at, other) = (cluster.endpoint(leader), cluster.endpoint((leader + 1) % 3));
    let (at, other) = (at.as_str(), other.as_str());
    // A watch that asks for a leader ends where none is known yet, as it does in etcd.
    cluster.range((leader + 1) % 3, "old/", false).await;

    let mut watch = Running::start(other, &["watch", "--prefix", "w/"]);
    let mut past = Running::start(other, &["watch", "--prefix", "old/", "--rev=1"]);
    run(at, &["put", "old/k", "v"], None);
    assert_eq!(past.lines(3), ["PUT", "old/k", "v"]);
    // The watch begins when it begins, so it is written to until it has seen something.
    let seen = thread::spawn(move || watch.lines(2));
    let mut n = 0;
    while !seen.is_finished() {
        run(at, &["put", "w/k", &n.to_string()], None);
        n += 1;
    }
    assert_eq!(seen.join().expect("no panic"), ["PUT", "w/k"]);

    let candidate = Running::start(at, &["elect", "office", "first"]);
    let mut observer = Running::start(other, &["elect", "--listen", "office"]);
    let told = observer.lines(2);
    assert!(told[0].starts_with("office/") && told[1] == "first", "{told:?}");
    drop(candidate);

    // Into another cluster, what is there and what comes.
    let copy = Cluster::start(1, &[]);
    copy.leader(&[0]).await;
    run(at, &["put", "m/1", "a"], None);
    let mirror = Running::start(at, &["make-mirror", "--prefix=m/", &copy.endpoint(0)]);
    run(at, &["put", "m/2", "b"], None);
    let start = Instant::now();
    while copy.range(0, "m/", false).await.count < 2 {
        assert!(start.elapsed() < PATIENCE, "nothing is mirrored");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(mirror);

    run(at, &["user", "add", "u:old"], None);
    let changed = run(at, &["user", "passwd", "u", "--interactive=false"], Some("new\n"));
    assert!(changed.contains("Password updated"), "{changed}");
    run(at, &["role", "add", "r"], None);
    run(at, &["role", "grant-permission", "r", "readwrite", "k"], None);
    assert!(run(at, &["role", "get", "r"], None).contains('k'));
    assert_eq!(run(at, &["role", "list"], None), "r\n");
    run(at, &["role", "revoke-permission", "r", "k"], None);
    run(at, &["user", "grant-role", "u", "r"], None);
    assert!(run(at, &["user", "get", "u"], None).contains("Roles: r"));
    run(at, &["user", "revoke-role", "u", "r"], None);
    assert_eq!(run(at, &["user", "list"], None), "u\n");
    run(at, &["user", "delete", "u"], None);
    run(at, &["role", "delete", "r"], None);

    let checked = run(at, &["check", "datascale", "--load=s"], None);
    assert!(checked.contains("PASS"), "{checked}");
    let version = page(at, "/version");
    assert!(version.contains("\"etcdserver\":\"3.5."), "{version}");
    assert!(page(at, "/health").contains("\"health\":\"true\""));
    assert!(page(at, "/metrics").contains("pontoon_"));
    assert!(run(at, &["endpoint", "hashkv"], None).contains(at));
    run(at, &["defrag"], None);
    assert_eq!(run(at, &["alarm", "list"], None), "");
    run(at, &["alarm", "disarm"], None);

    let members = run(at, &["member", "list"], None);
    let member = |address: &str| {
        let line = members.lines().find(|line| line.contains(address)).expect("listed");
        line.split(',').next().expect("an id").to_owned()
    };
    // It asks each of the endpoints for the leader.
    let leader = cluster.endpoint(cluster.leader(&[0, 1, 2]).await);
    let target = if leader == at { other } else { at };
    let moved = run(&format!("{at},{other},{leader}"), &["move-leader", &member(target)], None);
    assert!(moved.contains(&format!("to {}", member(target))), "{moved}");
}
