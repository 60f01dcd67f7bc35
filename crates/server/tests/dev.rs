//! `pontoon dev` with real stores: it comes up, reports a death, and never leaves a process or a directory behind.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take on a busy machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `pontoon dev`; killed when dropped.
struct Dev {
    process: Child,
    stderr: BufReader<ChildStderr>,
    summary: Value,
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its children end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A base port whose nine ports are free now. Each caller gets another one, also where each test is its own
/// process.
fn base_port() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Neighbouring process ids begin 30 ports apart.
    let first = std::process::id() * 10 + NEXT.fetch_add(1, Ordering::Relaxed);
    let bases = (0..500).map(|i| 4000 + (first + i) % 500 * 3).filter_map(|base| u16::try_from(base).ok());
    let base = bases
        .into_iter()
        .find(|base| (0..9).all(|i| free(base + i % 3 + [0, 20_000, 30_000][usize::from(i / 3)])));
    base.expect("a free base port").to_string()
}

impl Dev {
    /// Starts it and waits for the one document on its standard output.
    fn start(more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .args(["dev", "--output", "json", "--base-port", &base_port()])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let stdout = process.stdout.take().expect("piped");
        let stderr = BufReader::new(process.stderr.take().expect("piped"));
        let mut dev = Self { process, stderr, summary: Value::Null };
        let document = serde_json::Deserializer::from_reader(stdout).into_iter().next();
        match document {
            Some(Ok(summary)) => dev.summary = summary,
            other => {
                let mut said = String::new();
                let _ = std::io::Read::read_to_string(&mut dev.stderr, &mut said);
                panic!("pontoon dev printed {other:?} and said: {said}");
            }
        }
        dev
    }

    fn pid(&self, store: usize) -> Pid {
        let pid = self.summary["stores"][store]["pid"].as_i64().expect("a pid");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero")
    }

    fn pids(&self) -> Vec<Pid> {
        let stores = self.summary["stores"].as_array().expect("a list").len();
        (0..stores).map(|store| self.pid(store)).collect()
    }

    fn data_dir(&self) -> PathBuf {
        self.summary["data_dir"].as_str().expect("a path").into()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// Reads what it says until a line holds the text, and returns that line.
    fn hear(&mut self, text: &str) -> String {
        let mut heard = String::new();
        loop {
            let mut line = String::new();
            let bytes = self.stderr.read_line(&mut line).expect("readable");
            assert!(bytes > 0, "`{text}` was never said, only: {heard}");
            if line.contains(text) {
                return line;
            }
            heard.push_str(&line);
        }
    }
}

/// Whether the process exists and is not merely waiting to be reaped.
fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[track_caller]
fn all_end(pids: &[Pid]) {
    let began = Instant::now();
    while let Some(pid) = pids.iter().find(|pid| runs(**pid)) {
        assert!(began.elapsed() < PATIENCE, "{pid:?} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_comes_up_and_stops_without_a_trace() {
    let mut dev = Dev::start(&["--keyspaces", "2"]);
    let pids = dev.pids();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| runs(*pid)));
    assert_eq!(dev.summary["keyspaces"], serde_json::json!(["ks-1", "ks-2"]));
    let data_dir = dev.data_dir();
    assert!(data_dir.join("n1.log").is_file());
    dev.signal(Signal::TERM);
    assert_eq!(dev.process.wait().expect("it ends").code(), Some(0));
    all_end(&pids);
    assert!(!data_dir.exists(), "the temporary directory is left behind");
}

#[test]
fn a_death_is_reported_and_the_others_go_on() {
    let mut dev = Dev::start(&[]);
    kill_process(dev.pid(1), Signal::KILL).expect("it runs");
    let line = dev.hear("died");
    assert!(line.contains("n2") && line.contains("SIGKILL") && line.contains("stays down"), "{line}");
    assert!(runs(dev.pid(0)) && runs(dev.pid(2)));
    dev.signal(Signal::INT);
    assert_eq!(dev.process.wait().expect("it ends").code(), Some(0));
}

#[test]
fn with_restart_a_dead_store_comes_back() {
    let mut dev = Dev::start(&["--restart"]);
    kill_process(dev.pid(0), Signal::KILL).expect("it runs");
    dev.hear("n1 (pid");
    let line = dev.hear("started again (pid");
    assert!(line.contains("n1"), "{line}");
    dev.signal(Signal::TERM);
    assert_eq!(dev.process.wait().expect("it ends").code(), Some(0));
}

#[test]
fn no_store_outlives_it_even_if_it_is_killed() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let keep = |dir: &Path| dir.to_str().expect("UTF-8").to_owned();
    let mut dev = Dev::start(&["--data-dir", &keep(data.path())]);
    let pids = dev.pids();
    // A stopped process cannot end by itself.
    kill_process(pids[2], Signal::STOP).expect("it runs");
    dev.signal(Signal::KILL);
    dev.process.wait().expect("it ends");
    all_end(&pids);
    assert!(data.path().join("n1").is_dir(), "data that were to be kept are gone");
}
