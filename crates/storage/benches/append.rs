//! Durable appends beside the limit of the disk (a zero-filled file, one write and one sync per batch, of as many bytes
//! as the log writes) and beside sled alone (a key per entry, and a sync of its file), in turn and in the same run;
//! medians over the turns.
//!
//! In most cases one thread commits a round when the one before it is durable. In those "ahead" the next round is submitted
//! while the disk is busy with this one, as hosts of many groups do; what is timed there is from one durable round to the
//! next, the making of the entries included.
//!
//! Each of the three is a process of its own, so that none pays for another's background threads or for the state in
//! which another leaves the allocator.
//!
//! `PONTOON_BENCH_DIR` says where (the temporary directory); a RAM disk proves nothing. An argument chooses cases by a
//! part of their name: `cargo bench -p pontoon-storage -- idle`. `PONTOON_BENCH_TURNS` says how many turns (15).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pontoon_raft_core::types::*;
use pontoon_storage::{Batch, GroupWrite, LogStore, Options, StoreFailed};
use tempfile::TempDir;

/// The allocator that the server has, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOAD: usize = 256;
const GROUPS: u64 = 100;
/// Durable appends in each turn.
const APPENDS: usize = 120;
/// Rounds of each log before the first turn.
const WARM_UP_ROUNDS: usize = 4000;

/// How many groups, how many entries for each, and how many rounds are under way when one is waited for.
const CASES: [(&str, Load); 6] = [
    ("1", Load { groups: 1, entries: 1, under_way: 1 }),
    ("8", Load { groups: 1, entries: 8, under_way: 1 }),
    ("64", Load { groups: 1, entries: 64, under_way: 1 }),
    ("100 groups x 1", Load { groups: GROUPS, entries: 1, under_way: 1 }),
    ("64, ahead", Load { groups: 1, entries: 64, under_way: 2 }),
    ("100 x 1, ahead", Load { groups: GROUPS, entries: 1, under_way: 2 }),
];

#[derive(Clone, Copy)]
struct Load {
    groups: u64,
    entries: u64,
    under_way: usize,
}

fn directory() -> TempDir {
    let base = std::env::var_os("PONTOON_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(base).expect("a directory")
}

/// What is measured: something that makes a round of entries durable.
trait Engine {
    fn prepare(&mut self, groups: u64, entries: u64);
    /// Begins a round. Returns when fewer than `under_way` are.
    fn commit(&mut self, under_way: usize);
    /// Bytes written so far.
    fn written(&self) -> u64 {
        0
    }
}

/// A store with groups whose logs are compacted as they grow.
struct Log {
    store: LogStore,
    next: Vec<u64>,
    /// A group's log is compacted after so many entries.
    live: u64,
    payload: bytes::Bytes,
    batch: Batch,
    under_way: VecDeque<mpsc::Receiver<Result<(), StoreFailed>>>,
    dir: TempDir,
}

impl Log {
    fn open(groups: u64) -> Self {
        let dir = directory();
        let (store, _) = LogStore::open(dir.path(), Options::default()).expect("an empty directory");
        let payload = (0..PAYLOAD).map(|i| (i * 197 % 251) as u8).collect::<Vec<_>>().into();
        let mut log = Self {
            store,
            next: vec![1; groups as usize],
            live: (4096 / groups).max(64),
            payload,
            batch: Batch::default(),
            under_way: VecDeque::new(),
            dir,
        };
        let create = |g| GroupWrite {
            group: GroupId(g),
            create: Some(ReplicaId { store: StoreId(1), number: 1 }),
            hard_state: Some(HardState { term: Term(1), voted_for: None }),
            ..GroupWrite::default()
        };
        log.batch.groups = (0..groups).map(create).collect();
        log.commit(1);
        log
    }

    /// Goes once around the journal, so that from here on its segments are used again and not made.
    fn warm_up(&mut self) {
        let options = Options::default();
        let bytes = options.segment_bytes * (options.live_segments_max as u64 + 3);
        let entries = 1024;
        for _ in 0..bytes / (entries * PAYLOAD as u64) {
            let mut write = self.write(0, entries);
            let last =
                SnapshotMeta { index: LogIndex(self.next[0] - 1), term: Term(1), ..SnapshotMeta::default() };
            write.compact = Some(last);
            self.batch.groups = vec![write];
            self.commit(1);
        }
    }

    fn write(&mut self, group: u64, entries: u64) -> GroupWrite {
        let first = self.next[group as usize];
        self.next[group as usize] += entries;
        let entry = |index| Entry {
            index: LogIndex(index),
            term: Term(1),
            id: EntryId(u128::from(index)),
            payload: Payload::Command(self.payload.clone()),
        };
        let snapshot = SnapshotMeta { index: LogIndex(first - 1), term: Term(1), ..SnapshotMeta::default() };
        GroupWrite {
            group: GroupId(group),
            entries: (first..first + entries).map(entry).collect(),
            commit: Some(LogIndex(first - 1)),
            compact: (first % self.live < entries && first > self.live).then_some(snapshot),
            ..GroupWrite::default()
        }
    }
}

impl Engine for Log {
    fn prepare(&mut self, groups: u64, entries: u64) {
        self.batch.groups = (0..groups).map(|g| self.write(g, entries)).collect();
    }

    fn commit(&mut self, under_way: usize) {
        let batch = std::mem::take(&mut self.batch);
        if under_way == 1 {
            self.store.commit(batch).expect("durable");
            return;
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.store.submit(batch, Box::new(move |outcome| drop(sender.send(outcome))));
        self.under_way.push_back(receiver);
        while self.under_way.len() >= under_way
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.recv().expect("answered").expect("durable");
        }
    }

    fn written(&self) -> u64 {
        let stats = self.store.stats();
        stats.bytes_written + stats.checkpoint_bytes
    }
}

/// The limit: a zero-filled file that is written over and synced.
struct Limit {
    file: File,
    at: u64,
    bytes: Vec<u8>,
    written: u64,
    _dir: TempDir,
}

const LIMIT_BYTES: u64 = 64 << 20;

impl Limit {
    /// `bytes` a round.
    fn new(bytes: usize) -> Self {
        let dir = directory();
        let path = dir.path().join("f");
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("a file");
        let zeroes = vec![0; 1 << 20];
        for at in 0..LIMIT_BYTES >> 20 {
            file.write_all_at(&zeroes, at << 20).expect("room");
        }
        file.sync_all().expect("synced");
        Self { file, at: 0, bytes: vec![7; bytes], written: 0, _dir: dir }
    }
}

impl Engine for Limit {
    fn prepare(&mut self, _: u64, _: u64) {}

    fn commit(&mut self, _: usize) {
        if self.at + self.bytes.len() as u64 > LIMIT_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.bytes, self.at).expect("written");
        self.file.sync_data().expect("synced");
        self.at += self.bytes.len() as u64;
        self.written += self.bytes.len() as u64;
    }

    fn written(&self) -> u64 {
        self.written
    }
}

/// sled as a log: a key per entry; its flush, and then a sync of its file, since the flush is none.
struct Sled {
    db: sled::Db,
    file: File,
    next: u64,
    batch: sled::Batch,
    _dir: TempDir,
}

impl Sled {
    fn new() -> Self {
        let dir = directory();
        let path = dir.path().join("sled");
        let db = sled::Config::new().path(&path).cache_capacity(64 << 20).open().expect("an empty directory");
        let file = File::options().write(true).open(path.join("db")).expect("made by sled");
        Self { db, file, next: 0, batch: sled::Batch::default(), _dir: dir }
    }
}

impl Engine for Sled {
    fn prepare(&mut self, groups: u64, entries: u64) {
        self.batch = sled::Batch::default();
        for _ in 0..entries {
            self.next += 1;
            for group in 0..groups {
                let key = [group.to_be_bytes(), self.next.to_be_bytes()].concat();
                self.batch.insert(key, vec![7; PAYLOAD]);
            }
        }
    }

    fn commit(&mut self, _: usize) {
        self.db.apply_batch(std::mem::take(&mut self.batch)).expect("applied");
        self.db.flush().expect("flushed");
        self.file.sync_data().expect("synced");
    }
}

/// The time that the threads of this process have had on a processor.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanos = tasks.filter_map(|task| {
        // A thread may end meanwhile.
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

/// One engine in a process of its own: makes a turn for each line that it reads, and says how long each append took,
/// how long its threads had a processor, and how much it has written so far.
fn serve(which: &str, Load { groups, entries, under_way }: Load, round_bytes: usize) {
    let mut engine: Box<dyn Engine> = match which {
        "log" => {
            let mut log = Log::open(groups);
            log.warm_up();
            // The recent batches stay in memory: until as many of this size were there as fit, each takes fresh memory.
            for _ in 0..WARM_UP_ROUNDS {
                log.prepare(groups, entries);
                log.commit(1);
            }
            Box::new(log)
        }
        "limit" => Box::new(Limit::new(round_bytes)),
        _ => Box::new(Sled::new()),
    };
    let mut times = Vec::with_capacity(APPENDS);
    for line in std::io::stdin().lines() {
        line.expect("the parent writes lines");
        times.clear();
        let (cpu_before, written) = (cpu(), engine.written());
        if under_way > 1 {
            // The first of a turn only fills the line.
            engine.prepare(groups, entries);
            engine.commit(under_way);
        }
        let mut last = Instant::now();
        for _ in 0..APPENDS {
            engine.prepare(groups, entries);
            let began = if under_way > 1 { last } else { Instant::now() };
            engine.commit(under_way);
            last = Instant::now();
            times.push(last - began);
        }
        let cpu = cpu() - cpu_before;
        let times: Vec<String> = times.iter().map(|time| time.as_nanos().to_string()).collect();
        let written = engine.written() - written;
        writeln!(std::io::stdout(), "{} {written} {}", cpu.as_nanos(), times.join(" "))
            .expect("the parent reads");
    }
}

/// An engine's process, and what it told.
struct Measured {
    name: &'static str,
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    turns: Vec<Vec<Duration>>,
    cpu: Duration,
    written: u64,
}

impl Measured {
    fn start(name: &'static str, load: Load, round_bytes: u64) -> Self {
        let Load { groups, entries, under_way } = load;
        let numbers = [groups, entries, under_way as u64, round_bytes].map(|n| n.to_string());
        let mut child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--serve", name])
            .args(numbers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it is this very program");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { name, child, answers, turns: Vec::new(), cpu: Duration::ZERO, written: 0 }
    }

    fn turn(&mut self) {
        self.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it waits for a line");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("a line");
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().expect("numbers"));
        let mut number = || numbers.next().expect("an engine's process ended early");
        self.cpu += Duration::from_nanos(number());
        self.written += number();
        self.turns.push(numbers.map(Duration::from_nanos).collect());
    }

    /// Forgets what it told.
    fn reset(&mut self) {
        (self.turns, self.cpu, self.written) = (Vec::new(), Duration::ZERO, 0);
    }

    fn rate(&self, turn: usize, per_append: f64) -> f64 {
        let times = &self.turns[turn];
        times.len() as f64 * per_append / times.iter().sum::<Duration>().as_secs_f64()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The three in turn, so that the noise of the machine meets all.
fn appends(name: &str, load: Load) {
    let turns: usize = std::env::var("PONTOON_BENCH_TURNS").map_or(15, |n| n.parse().expect("a number"));
    let mut log = Measured::start("log", load, 0);
    log.turn();
    let rounds = APPENDS + usize::from(load.under_way > 1);
    let round_bytes = log.written / rounds as u64;
    let [limit, sled] = ["limit", "sled"].map(|name| Measured::start(name, load, round_bytes));
    let mut measured = [log, limit, sled];
    // The first turn of each warms it up.
    for m in &mut measured {
        m.turn();
        m.reset();
    }
    for turn in 0..turns {
        for n in 0..3 {
            // Each comes first, second and third as often.
            measured[(turn + n) % 3].turn();
        }
    }
    let per_append = (load.groups * load.entries) as f64;
    let total = per_append * (turns * APPENDS) as f64;
    let ratio = |of: &Measured, what: &dyn Fn(&Measured, usize) -> f64| {
        median((0..turns).map(|turn| what(of, turn) / what(&measured[1], turn)).collect())
    };
    let rate = |m: &Measured, turn: usize| m.rate(turn, per_append);
    let p50 = |m: &Measured, turn: usize| percentile(&m.turns[turn], 50);
    for m in &measured {
        eprintln!(
            "{name:>14} {:>5}: {:8.0} entries/s ({:3.0}% of the limit), p50 {:4.0} us ({:.2} x), p99 {:5.0} us, cpu {:5.2} us/entry",
            m.name,
            median((0..turns).map(|turn| rate(m, turn)).collect()),
            100.0 * ratio(m, &rate),
            median((0..turns).map(|turn| p50(m, turn)).collect()),
            ratio(m, &p50),
            percentile(&m.turns.concat(), 99),
            m.cpu.as_secs_f64() * 1e6 / total,
        );
    }
    let written = measured[0].written as f64 / (total * PAYLOAD as f64);
    eprintln!("{name:>14}   log: {written:.2} bytes written per payload byte, {round_bytes} bytes a round");
}

/// Fills a log with a million entries, opens it again, and drops the first half.
fn reopen_and_compact() {
    const ENTRIES: u64 = 1_000_000;
    let mut log = Log::open(1);
    let empty = log.store.index_bytes();
    let began = Instant::now();
    for _ in 0..ENTRIES / 1000 {
        log.prepare(1, 1000);
        log.batch.groups[0].compact = None;
        log.commit(1);
    }
    let filled = began.elapsed();
    let index = (log.store.index_bytes() - empty) as f64 / ENTRIES as f64;
    let stats = log.store.stats();
    let Log { store, dir, payload, .. } = log;
    store.close();
    let mut reopened = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let (store, report) = LogStore::open(dir.path(), Options::default()).expect("it was closed in order");
        reopened.push(began.elapsed().as_secs_f64());
        assert_eq!(report.entries, ENTRIES);
        store.close();
    }
    let (store, _) = LogStore::open(dir.path(), Options::default()).expect("it was closed in order");
    let mut log = Log {
        store,
        next: vec![],
        live: 0,
        payload,
        batch: Batch::default(),
        under_way: VecDeque::new(),
        dir,
    };
    let snapshot = SnapshotMeta { index: LogIndex(ENTRIES / 2), term: Term(1), ..SnapshotMeta::default() };
    log.batch = Batch { groups: vec![GroupWrite { compact: Some(snapshot), ..GroupWrite::default() }] };
    let began = Instant::now();
    log.commit(1);
    let compacted = began.elapsed();
    eprintln!(
        "1,000,000 entries: filled in {filled:.2?} ({} of them moved to sled), opened again in {:.2} s (five times: {reopened:.2?}), 500,000 compacted in {compacted:.2?}, index {index:.1} bytes per entry",
        stats.checkpoint_entries,
        median(reopened.clone()),
    );
}

/// 10,000 groups with three live entries each beside one busy group; the limit in turn, for the pauses of the disk.
fn idle_groups() {
    const IDLE: u64 = 10_000;
    const BUSY: u64 = 1_000_000;
    let mut log = Log { live: 4096, ..Log::open(IDLE + 1) };
    let mut limit = Limit::new(64 * (PAYLOAD + 33));
    log.prepare(IDLE + 1, 3);
    log.commit(1);
    let options = Options::default();
    let (mut ours, mut bare, mut segments) = (Vec::new(), Vec::new(), 0);
    for turn in 0..BUSY / 64 {
        log.prepare(1, 64);
        let began = Instant::now();
        log.commit(1);
        ours.push(began.elapsed());
        segments = segments.max(log.store.stats().live_segments);
        if turn % 4 == 0 {
            limit.prepare(1, 64);
            let began = Instant::now();
            limit.commit(1);
            bare.push(began.elapsed());
        }
    }
    let stats = log.store.stats();
    let payload = ((IDLE * 3 + BUSY) * PAYLOAD as u64) as f64;
    let over = |times: &[Duration]| times.iter().filter(|t| t.as_millis() >= 50).count();
    eprintln!(
        "10,000 idle groups: {:.2} bytes written per payload byte; {} pauses over 50 ms, the longest {:.1} ms (the limit, a quarter of the appends: {}, {:.1} ms); p50 {:.0} us, p99 {:.0} us; at most {segments} live segments (the bound is {} while a checkpoint is under way); {} checkpoints moved {} entries; index {} bytes per group",
        (stats.bytes_written + stats.checkpoint_bytes) as f64 / payload,
        over(&ours),
        percentile(&ours, 100) / 1e3,
        over(&bare),
        percentile(&bare, 100) / 1e3,
        percentile(&ours, 50),
        percentile(&ours, 99),
        options.live_segments_max + 2,
        stats.checkpoints,
        stats.checkpoint_entries,
        log.store.index_bytes() / (IDLE + 1),
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let all: Vec<String> = std::env::args().collect();
    if let [_, serve_, which, groups, entries, under_way, round_bytes] = all.as_slice()
        && serve_ == "--serve"
    {
        let number = |text: &String| text.parse::<u64>().expect("the parent gives numbers");
        let under_way = number(under_way) as usize;
        let load = Load { groups: number(groups), entries: number(entries), under_way };
        return serve(which, load, number(round_bytes) as usize);
    }
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|arg| name.contains(arg.as_str()));
    for (name, load) in CASES {
        if wanted(&format!("append {name}")) {
            appends(name, load);
        }
    }
    if wanted("reopen and compact") {
        reopen_and_compact();
    }
    if wanted("idle groups") {
        idle_groups();
    }
}
