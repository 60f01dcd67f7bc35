//! What etcdctl makes of us. Skipped, loudly, where there is no etcdctl.

mod support;

use std::process::Stdio;

use support::Running;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

async fn etcdctl(server: &Running, args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", server.address))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let out = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_works() {
    if Command::new("etcdctl").arg("version").output().await.is_err() {
        eprintln!("SKIPPED: no etcdctl on the PATH (Debian: etcd-client)");
        return;
    }
    let server = Running::start().await;
    let cases: &[(&[&str], &str, &str)] = &[
        (&["put", "a", "b"], "", "OK\n"),
        (&["put", "ab", "c"], "", "OK\n"),
        (&["get", "a"], "", "a\nb\n"),
        (&["get", "--prefix", "a", "--keys-only"], "", "a\n\nab\n\n"),
        (&["get", "--from-key", "a", "--limit=1", "--order=DESCEND"], "", "ab\nc\n"),
        (&["get", "a", "--rev=2", "--print-value-only"], "", "b\n"),
        (&["get", "--prefix", "a", "-w=fields"], "", "\"Count\" : 2\n"),
        (&["del", "ab"], "", "1\n"),
        (&["del", "ab"], "", "0\n"),
        (&["txn"], "ver(\"a\") = \"1\"\n\nput a x\nget a\n\nput a y\n\n", "SUCCESS\n\nOK\n\na\nx\n"),
        (&["compact", "3", "--physical"], "", "compacted revision 3\n"),
        (&["member", "list"], "", "started, alone"),
        (&["endpoint", "health"], "", "is healthy"),
        (&["endpoint", "status", "-w=table"], "", "3.5.17"),
        (&["endpoint", "hashkv"], "", ", "),
        (&["alarm", "list"], "", ""),
        (&["defrag"], "", "Finished defragmenting etcd member"),
    ];
    for (args, input, expected) in cases {
        let (success, text) = etcdctl(&server, args, input).await;
        assert!(success && text.contains(expected), "etcdctl {args:?} said {text:?}");
    }
    let (success, text) = etcdctl(&server, &["get", "a", "--rev=1"], "").await;
    assert!(!success && text.contains("required revision has been compacted"), "{text}");

    let (success, text) =
        etcdctl(&server, &["watch", "a", "--rev=5", "--", "sh", "-c", "echo event; kill $PPID"], "").await;
    assert!(text.contains("event"), "{success} {text}");
}
