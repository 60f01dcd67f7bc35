//! Conformance with etcd: the same requests, and the answers that a real etcd gave to them.
//!
//! The answers in `scripts/` were recorded from etcd 3.4.23. `cargo test` plays the requests to a Pontoon store, each
//! script in a keyspace of its own, and compares. With the etcd server on the `PATH`,
//!
//!     PONTOON_CONFORMANCE=etcd   cargo test -p pontoon-server --test conformance   # do the recorded answers hold?
//!     PONTOON_CONFORMANCE=record cargo test -p pontoon-server --test conformance   # write them down
//!
//! A request marked `differs` is one that Pontoon means to answer in another way, for the reason in the comment above
//! it: its answer is Pontoon's, recorded by `PONTOON_CONFORMANCE=differences`. It is not sent to etcd, so it must be one
//! that changes nothing there.

mod call;
#[path = "../e2e/cluster.rs"]
#[allow(dead_code)]
mod cluster;
mod etcd;
mod script;

use std::path::{Path, PathBuf};
use std::process::Command;

use call::Caller;
use cluster::Cluster;
use etcd::Etcd;
use script::Script;

/// Against whom, and what becomes of the answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Pontoon's answers are compared.
    Check,
    /// Pontoon's answers to requests marked `differs` are written down.
    Differences,
    /// etcd's answers are compared.
    CheckEtcd,
    /// etcd's answers are written down.
    Record,
}

impl Mode {
    fn from_environment() -> Self {
        match std::env::var("PONTOON_CONFORMANCE").as_deref() {
            Err(_) => Self::Check,
            Ok("differences") => Self::Differences,
            Ok("etcd") => Self::CheckEtcd,
            Ok("record") => Self::Record,
            Ok(other) => panic!("PONTOON_CONFORMANCE={other}: unset it, or say differences, etcd or record"),
        }
    }
}

fn scripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/scripts");
    let files = std::fs::read_dir(directory).expect("the scripts");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.sort();
    files
}

fn create_keyspace(store: &Cluster, name: &str) {
    let endpoint = format!("127.0.0.1:{}", store.stores[0].client);
    let created = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["--endpoints", &endpoint, "keyspace", "create", name])
        .output()
        .expect("the binary runs");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
}

/// Plays one script to whoever listens there. Returns how many requests were compared, and every answer that is not as
/// recorded.
async fn play(path: &Path, port: u16, keyspace: Option<&str>, mode: Mode) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(path).expect("a script");
    let mut script = Script::parse(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let mut caller = Caller::connect(port, keyspace).await;
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in script.cases() {
        // etcd may do anything then, even crash.
        if case.differs && matches!(mode, Mode::CheckEtcd | Mode::Record) {
            continue;
        }
        let answer =
            caller.play(case).await.unwrap_or_else(|why| panic!("{}:{}: {why}", path.display(), case.line));
        let (ours, write) = match mode {
            Mode::Check => (true, false),
            Mode::Differences => (true, case.differs),
            Mode::CheckEtcd => (true, false),
            Mode::Record => (true, true),
        };
        if write {
            case.answer = answer;
        } else if ours {
            compared += 1;
            if answer != case.answer {
                let place = format!("{}:{}", path.file_name().unwrap_or_default().display(), case.line);
                wrong.push(format!(
                    "{place}: {}\n  recorded:\n    {}\n  now:\n    {}\n",
                    case.call,
                    case.answer.join("\n    "),
                    answer.join("\n    ")
                ));
            }
        }
    }
    if matches!(mode, Mode::Record | Mode::Differences) {
        std::fs::write(path, script.to_string()).expect("the script is written");
    }
    (compared, wrong)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_those_of_etcd() {
    let mode = Mode::from_environment();
    let store = matches!(mode, Mode::Check | Mode::Differences).then(|| Cluster::start(1, &[]));
    let (mut compared, mut wrong) = (0, Vec::new());
    for path in scripts() {
        let name = path.file_stem().expect("a name").to_string_lossy().replace('_', "-");
        let played = if let Some(store) = &store {
            create_keyspace(store, &name);
            play(&path, store.stores[0].client, Some(&name), mode).await
        } else {
            let etcd = Etcd::start().await;
            play(&path, etcd.port, None, mode).await
        };
        eprintln!("{name}: {} compared, {} differ", played.0, played.1.len());
        compared += played.0;
        wrong.extend(played.1);
    }
    assert!(wrong.is_empty(), "{} of {compared} answers differ:\n\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{compared} answers are as recorded");
    assert!(mode != Mode::Check || compared >= 250, "only {compared} requests were compared");
}
