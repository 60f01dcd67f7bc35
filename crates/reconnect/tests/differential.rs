//! The machine against an independent one: the module `ovs.reconnect` of the PyPI package `ovs`, over random scripts.
//!
//! Needs Python 3 with `pip install ovs`; `PONTOON_PYTHON` names another interpreter. Without them the test passes and
//! says so on standard error; with `PONTOON_DIFFERENTIAL=required` (as in CI) it fails. `PONTOON_SEED` and
//! `PONTOON_SCRIPTS` choose other scripts: a failure prints the command that repeats it.

#[path = "../examples/script/mod.rs"]
mod script;

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::thread;

/// Scripts per run of the test, and the commands of each.
const SCRIPTS: u64 = 24_000;
const COMMANDS: std::ops::Range<u64> = 10..60;

#[test]
fn random_scripts_against_ovs() {
    let seed = variable("PONTOON_SEED").unwrap_or(1);
    let scripts = variable("PONTOON_SCRIPTS").unwrap_or(SCRIPTS);
    let mut random = Random(seed);
    let mut input = String::new();
    for number in 0..scripts {
        write_script(&mut input, &mut random, number);
    }

    let Some(theirs) = run_python(&input) else { return };
    let mut ours = Vec::new();
    assert_eq!(script::execute(&mut input.as_bytes(), &mut ours, &mut io::stderr()), 0);

    let (ours, theirs) = (String::from_utf8(ours).unwrap(), String::from_utf8(theirs).unwrap());
    let (mut commands, mut since_create) = (0u64, Vec::new());
    for (our, their) in ours.lines().zip(theirs.lines()) {
        if our.starts_with("{\"cmd\":\"create ") {
            since_create.clear();
        }
        since_create.push(our);
        commands += 1;
        assert!(
            our == their,
            "\nscript so far:\n{}\nours:   {our}\ntheirs: {their}\n\
             repeat: PONTOON_SEED={seed} PONTOON_SCRIPTS={scripts} cargo test -p pontoon-reconnect --test differential",
            since_create.iter().filter_map(|line| line.split('"').nth(3)).collect::<Vec<_>>().join("\n"),
        );
    }
    assert_eq!(ours.len(), theirs.len(), "one of the two stopped early");
    report(&format!("{scripts} scripts, {commands} commands, no difference (seed {seed})"));
}

/// Runs the adapter on all scripts in one process. `None`: it cannot be run here, which has been said.
fn run_python(input: &str) -> Option<Vec<u8>> {
    let python = env::var("PONTOON_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differential.py");
    let child = Command::new(&python)
        .arg(adapter)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return skip(&format!("{python}: {error}")),
    };
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let Output { status, stdout, stderr } = thread::scope(|scope| {
        // On its own thread: both pipes are too small for everything. When the adapter ended early, its status tells.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output().expect("the adapter can be waited for")
    });
    if status.code() == Some(3) {
        return skip(&String::from_utf8_lossy(&stderr));
    }
    assert!(status.success(), "the adapter failed: {}", String::from_utf8_lossy(&stderr));
    Some(stdout)
}

fn skip(reason: &str) -> Option<Vec<u8>> {
    let message = format!("SKIPPED, nothing was compared: {} (try: pip install ovs)", reason.trim_end());
    report(&message);
    assert!(env::var("PONTOON_DIFFERENTIAL").as_deref() != Ok("required"), "{message}");
    None
}

/// Past the test harness, which swallows what is printed by macros in tests that pass.
fn report(message: &str) {
    let _ = writeln!(io::stderr(), "differential test against ovs.reconnect: {message}");
}

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// Writes one script. Each begins anew, some at time 0; three flavours: a client that does what it is told, one that
/// also decides for itself, and noise.
fn write_script(out: &mut String, random: &mut Random, number: u64) {
    let start = if number.is_multiple_of(5) { 0 } else { random.number(100_000) };
    writeln!(out, "create {start}").expect("a string takes everything");
    if random.one_in(3) {
        settings(out, random);
        settings(out, random);
    }
    let noise = number % 3;
    if noise < 2 || random.one_in(2) {
        out.push_str("enable\n");
    }
    for _ in 0..random.within(COMMANDS) {
        match random.number(10) {
            0..=5 if noise == 0 => obedient(out, random),
            0..=3 if noise == 1 => obedient(out, random),
            8 if random.one_in(2) => settings(out, random),
            _ => any_command(out, random),
        }
    }
}

/// What a good client does: wait, try to receive, ask, and report something plausible.
fn obedient(out: &mut String, random: &mut Random) {
    out.push_str(random.choose(&[
        "timeout\n",
        "timeout\n",
        "timeout\nreceive-attempted now\n",
        "",
        "advance 700\n",
    ]));
    out.push_str("run\n");
    out.push_str(random.choose(&[
        "connecting\n",
        "connected\n",
        "connected\n",
        "connect-failed ECONNREFUSED\n",
        "disconnected EOF\n",
        "disconnected\n",
        "activity\n",
        "activity\n",
        "timeout\nactivity\n",
        "receive-attempted now\n",
        "listening\n",
        "",
    ]));
}

fn settings(out: &mut String, random: &mut Random) {
    let number = random.interesting();
    let line = match random.number(9) {
        0 => format!("set-backoff-free-tries {}", random.number(5)),
        1 => format!("set-max-tries {}", random.number(5)),
        2 => "set-max-tries unlimited".to_owned(),
        // Odd and even maxima, some just above twice a power of the minimum.
        3 => format!("set-backoff {} {}", random.number(3000), random.number(12_000)),
        4 => format!("set-backoff {number} {}", random.interesting()),
        5 => format!("set-backoff 1000 {}", 2000 * (1 << random.number(3)) + random.number(2)),
        6 => format!("set-probe-interval {number}"),
        7 => format!("set-raft-probe {}", 100 + random.number(20_000)),
        _ => "set-raft-probe joining".to_owned(),
    };
    writeln!(out, "{line}").expect("a string takes everything");
}

fn any_command(out: &mut String, random: &mut Random) {
    let number = random.interesting();
    let small = random.number(5);
    let line = match random.number(24) {
        0 | 1 => format!("advance {number}"),
        2 => format!("run {number}"),
        3..=5 => "run".to_owned(),
        6 | 7 => "timeout".to_owned(),
        8 => "enable".to_owned(),
        9 => "disable".to_owned(),
        10 => "connecting".to_owned(),
        11 | 12 => "connected".to_owned(),
        13 => format!("connect-failed {}", random.choose(&["", "EOF", "EPIPE", "0", "111"])),
        14 => format!("disconnected {}", random.choose(&["", "ETIMEDOUT", "ECONNRESET", "5"])),
        15 | 16 => "activity".to_owned(),
        17 => "receive-attempted now".to_owned(),
        18 if small == 0 => "receive-attempted LLONG_MAX".to_owned(),
        18 => "receive-attempted now".to_owned(),
        19 => random.choose(&["listening", "listen-error ENOMEM"]).to_owned(),
        20 => "force-reconnect".to_owned(),
        21 => format!("graceful-reconnect {small}"),
        22 => format!("reset-backoff {small}"),
        _ => random.choose(&["passive", "passive", "active"]).to_owned(),
    };
    writeln!(out, "{line}").expect("a string takes everything");
}

/// SplitMix64: small, and the same stream everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn number(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.number(range.end - range.start)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.number(n) == 0
    }

    fn choose<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.number(from.len() as u64)).expect("an index")]
    }

    /// Durations at and around the limits, mostly; seldom the ends of the range.
    fn interesting(&mut self) -> u64 {
        match self.number(12) {
            0 => 0,
            1 => 1,
            2 => {
                [999, 1000, 1001, 2000, 4000, 5000, 8000][usize::try_from(self.number(7)).expect("an index")]
            }
            3 if self.one_in(4) => 2_147_483_647 - self.number(2),
            4..=6 => self.number(1500),
            _ => self.number(12_000),
        }
    }
}
