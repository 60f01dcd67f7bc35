//! A real process that writes is killed with kill -9, at random moments and in the midst of checkpoints, changes of the
//! segment and rewrites of sled; what it acknowledged is there afterwards, and nothing by half.
//!
//! `PONTOON_CRASH_ROUNDS` sets the number of kills.

mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use pontoon_storage::{LogStore, Options};
use tracing::field::{Field, Visit};
use tracing::span;

const GROUPS: u64 = 6;
const SEED: u64 = 77;
const CHILD: &str = "PONTOON_CRASH_CHILD";
const MOMENT: &str = "PONTOON_CRASH_MOMENT";
/// Batches that are submitted and not acknowledged yet, so that rounds hold several.
const IN_FLIGHT: u64 = 8;
/// What the store says of itself when it comes to the places where a kill is worth most.
const MOMENTS: [&str; 9] = [
    "checkpoint begins",
    "checkpoint copied",
    "checkpoint synced",
    "checkpoint marked",
    "segment begins",
    "segment is being made",
    "segment is being used again",
    "rewrite synced",
    "rewrite marked",
];

/// Batch `n` follows from the model and the number alone, so parent and child agree on it.
fn batch(model: &mut Model, n: u64) -> Vec<pontoon_storage::GroupWrite> {
    model.random_batch(&mut Random(SEED.wrapping_add(n)), GROUPS)
}

/// Every other round sled is written anew after each checkpoint.
fn options(round: u64) -> Options {
    if round.is_multiple_of(2) { small() } else { small_sled() }
}

/// Kills its own process when the store has said `moment` so many times.
struct KillAt {
    moment: String,
    left: AtomicU64,
    micros: u64,
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

fn kill_self() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
}

impl tracing::Subscriber for KillAt {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("pontoon_storage")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0 != self.moment || self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        let _ = std::io::stdout().write_all(b"\nmoment\n");
        if self.micros == 0 {
            kill_self();
        }
        // The thread goes on with what comes next, and the kill finds it there.
        let wait = Duration::from_micros(self.micros);
        thread::spawn(move || {
            thread::sleep(wait);
            kill_self();
        });
    }
}

/// The writer: not a test by itself, but run by the test below in a process of its own.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let round = std::env::var("PONTOON_CRASH_ROUND").unwrap().parse().unwrap();
    if let Ok(moment) = std::env::var(MOMENT) {
        let mut parts = moment.split(':');
        let mut part = || parts.next().unwrap();
        let kill = KillAt {
            moment: part().to_owned(),
            left: AtomicU64::new(part().parse().unwrap()),
            micros: part().parse().unwrap(),
        };
        tracing::subscriber::set_global_default(kill).unwrap();
    }
    let (store, report) = LogStore::open(dir.as_ref(), options(round)).unwrap();
    let mut model = Model::of_store(&store, GROUPS);
    let (sender, receiver) = std::sync::mpsc::channel();
    let acknowledge = |n: u64| std::io::stdout().write_all(format!("\nack {n}\n").as_bytes());
    for n in report.last_batch + 1.. {
        let sender = sender.clone();
        let batch = of(batch(&mut model, n));
        // Now and then this thread writes itself, if the writer has nothing to do just then.
        if n % 5 == 0 {
            store.commit(batch).unwrap();
            let _ = acknowledge(n);
            sender.send(()).unwrap();
        } else {
            let done = Box::new(move |outcome: Result<(), _>| {
                outcome.unwrap();
                let _ = acknowledge(n);
                let _ = sender.send(());
            });
            store.submit(batch, done);
        }
        if n > report.last_batch + IN_FLIGHT {
            receiver.recv().unwrap();
        }
    }
}

/// Waits until the child has killed itself, or kills it.
fn end(child: &mut Child, within: Duration) {
    let began = Instant::now();
    while began.elapsed() < within {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_at_random_moments_and_on_purpose() {
    let rounds = std::env::var("PONTOON_CRASH_ROUNDS").map_or(24, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(std::process::id().into());
    let mut model = Model::default();
    let mut last = 0;
    let (mut reached, mut torn) = (BTreeMap::new(), 0);
    for round in 0..rounds {
        // Two of three kills are at a named place.
        let moment = (round % 3 > 0).then(|| MOMENTS[(round - round / 3 - 1) as usize % MOMENTS.len()]);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture"]).env(CHILD, dir.path());
        command.env("PONTOON_CRASH_ROUND", (round / 6).to_string()).stdout(Stdio::piped());
        if let Some(moment) = moment {
            let micros = if random.between(0, 1) == 0 { 0 } else { random.between(1, 3000) };
            command.env(MOMENT, format!("{moment}:{}:{micros}", random.between(1, 3)));
        }
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = thread::spawn(move || {
            let (mut last, mut moment) = (0, false);
            for line in output.lines().map_while(Result::ok) {
                moment |= line == "moment";
                let acknowledged = line.strip_prefix("ack ").map_or(0, |n| n.parse::<u64>().unwrap());
                last = last.max(acknowledged);
            }
            (last, moment)
        });
        let within = if moment.is_some() {
            Duration::from_secs(4)
        } else {
            Duration::from_millis(random.between(20, 400))
        };
        end(&mut child, within);
        let (acknowledged, at_moment) = reader.join().unwrap();
        if at_moment {
            *reached.entry(moment.unwrap()).or_insert(0) += 1;
        }

        let opened = LogStore::open(dir.path(), options(round / 6));
        let (store, report) = opened.unwrap_or_else(|e| {
            let kept = tempfile::tempdir().unwrap().keep();
            copy_dir(dir.path(), &kept);
            panic!("round {round}, {moment:?}, kept in {}: {e}", kept.display());
        });
        assert!(
            report.last_batch >= acknowledged.max(last),
            "round {round}: {report:?}, acknowledged {acknowledged}"
        );
        for n in last + 1..=report.last_batch {
            batch(&mut model, n);
        }
        last = report.last_batch;
        model.check(&store);
        torn += u64::from(report.torn_tail.is_some());
        if report.doubt {
            store.settle_doubt().unwrap();
        }
    }
    eprintln!("{rounds} kills, {last} batches, {torn} torn tails; on purpose: {reached:?}");
    assert!(last > 100, "only {last} batches in {rounds} rounds");
    if rounds >= 24 {
        // The rewrites come only with a sled that is large enough, in half of the rounds.
        assert!(reached.len() >= MOMENTS.len() - 2, "{reached:?}");
    }
}
