//! The reconnect script language: the examples of its definition, and the form of lines, numbers and output.

#[path = "../examples/script/mod.rs"]
mod script;

use std::io::{self, Read};

/// Runs a script in memory; returns the exit status, what it printed and what it complained of.
fn run(input: &[u8]) -> (u8, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let status = script::execute(&mut &*input, &mut out, &mut errors);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
}

/// The lines after the first, which reports `create 1000`.
fn run_well(input: &str) -> Vec<serde_json::Value> {
    let (status, out, errors) = run(input.as_bytes());
    assert_eq!((status, errors.as_str()), (0, ""), "{input:?}");
    out.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn examples_of_the_definition() {
    for (script, expected) in [
        (include_str!("data/free-tries.script"), include_str!("data/free-tries.jsonl")),
        (include_str!("data/probe-waits.script"), include_str!("data/probe-waits.jsonl")),
        (include_str!("data/forced-and-graceful.script"), include_str!("data/forced-and-graceful.jsonl")),
    ] {
        let (status, out, errors) = run(script.as_bytes());
        assert_eq!((status, errors.as_str()), (0, ""));
        for (number, (line, expected)) in out.lines().zip(expected.lines()).enumerate() {
            assert_eq!(line, expected, "line {}", number + 1);
        }
        assert_eq!(out, expected);
    }
}

#[test]
fn blanks_comments_and_carriage_returns_mean_nothing() {
    let (_, plain, _) = run(b"enable\nset-backoff 2000 9000\nrun\n");
    for spelled in [
        "enable\nset-backoff 2000 9000\nrun",
        "enable\r\nset-backoff 2000 9000\r\nrun\r\n",
        "\n  \t\r\n# enable\n \t#enable \u{e9}\r\n\tenable \t\r\n set-backoff\t 2000  9000\nrun\n\n",
    ] {
        assert_eq!(run(spelled.as_bytes()), (0, plain.clone(), String::new()), "{spelled:?}");
    }
    assert_eq!(run(b""), run(b"# nothing"));
    assert_eq!(run(b"").1.lines().count(), 1);
}

#[test]
fn malformed_lines_end_the_run_with_status_2() {
    let (_, good, _) = run(b"enable\n");
    for bad in [
        "unknown",
        "ENABLE",
        "enable now",
        "enable #",
        "advance",
        "advance -1",
        "advance +1",
        "advance 1.0",
        "advance 0x10",
        "advance 1_000",
        "advance 2147483648",
        "advance 99999999999999999999999999",
        "advance 1 2",
        "run now",
        "create",
        "timeout 1",
        "receive-attempted",
        "receive-attempted 5",
        "receive-attempted NOW",
        "listen-error",
        "listen-error EAGAIN",
        "connect-failed eof",
        "disconnected EOF EOF",
        "disconnected 2147483648",
        "set-backoff 1000",
        "set-backoff 1000 2000 3000",
        "set-max-tries -1",
        "set-max-tries Unlimited",
        "set-raft-probe 99",
        "set-raft-probe 600001",
        "set-raft-probe join",
        "graceful-reconnect",
        "enable\r x",
        "enable\r\r",
        "enable\u{b}",
        "enable\u{a0}",
        "enable\0",
        "advance \u{661}",
    ] {
        let (status, out, errors) = run(format!("enable\n{bad}\nenable\n").as_bytes());
        assert_eq!((status, out), (2, good.clone()), "{bad:?}");
        assert!(errors.starts_with("reconnect-script: line 2: "), "{errors:?}");
        assert!(
            errors.ends_with('\n') && errors.trim_end().is_ascii() && !errors.contains('\0'),
            "{errors:?}"
        );
    }
    assert_eq!(run(b"enable\n\xff\n").0, 2);
    // A carriage return means nothing before a line feed only.
    assert_eq!(run(b"enable\r").0, 2);
}

#[test]
fn numbers_and_words_are_shown_as_written() {
    let lines =
        run_well("advance\t007\nrun  0002147483647\ndisconnected 0\nset-raft-probe 600000\ncreate 5\n");
    let shown: Vec<_> = lines.iter().map(|line| line["cmd"].as_str().unwrap()).collect();
    assert_eq!(
        shown,
        ["advance 007", "run 0002147483647", "disconnected 0", "set-raft-probe 600000", "create 5"]
    );
    assert_eq!(lines[0]["now"], 1007);
    assert_eq!(lines[1]["now"], 2_147_484_654u64);
    assert_eq!(lines[3]["probe_interval_ms"], 601_000);
    // The clock goes back and everything else is new.
    assert_eq!(
        (&lines[4]["now"], &lines[4]["advanced_ms"], &lines[4]["created"]),
        (&5.into(), &0.into(), &5.into())
    );
    assert_eq!(lines[4]["probe_interval_ms"], 5000);
}

#[test]
fn times_outgrow_32_bits() {
    let script = format!("enable\nconnected\nset-probe-interval 0\n{}", "advance 2147483647\n".repeat(5));
    let last = run_well(&script).pop().unwrap();
    assert_eq!(last["now"], 10_737_419_235u64);
    assert_eq!(last["connected_ms"], 10_737_418_235u64);
    assert_eq!(last["timeout_ms"], serde_json::Value::Null);
}

/// Not in the examples of the definition: the corners where implementations go apart.
#[test]
fn corners() {
    // Reset counts the loss of the present connection; the largest number plus one is kept.
    let lines = run_well("connected\nreset-backoff 2147483647\n");
    assert_eq!(lines[1]["free_tries"], 2_147_483_648u64);
    // A running back-off is cut to the new maximum, one below the new minimum stays.
    let lines = run_well("enable\nconnect-failed\nconnect-failed\nset-backoff 0 1500\nset-backoff 3000 0\n");
    assert_eq!(lines[2]["backoff_ms"], 2000);
    assert_eq!(lines[3]["backoff_ms"], 1500);
    assert_eq!((&lines[4]["backoff_ms"], &lines[4]["max_backoff_ms"]), (&1500.into(), &8000.into()));
    // Activity in other states than IDLE changes no state; last_activity may be before last_connected.
    let lines = run_well("activity\nenable\nconnect-failed\nadvance 500\nconnected\ndisconnected\n");
    assert_eq!(lines[0]["state"], "VOID");
    assert_eq!(lines[5]["backoff_ms"], 2000);
    // The last try: the drop is noted, the back-off and the free tries stay.
    let lines =
        run_well("set-max-tries 1\nenable\nset-backoff-free-tries 5\nconnected\ndisconnected\nenable\n");
    assert_eq!(lines[4]["state"], "VOID");
    assert_eq!((&lines[4]["last_disconnected"], &lines[4]["free_tries"]), (&1000.into(), &5.into()));
    assert_eq!(lines[5]["state"], "VOID");
    // A connection left by `connecting` is no loss, but its time counts.
    let lines = run_well("connected\nadvance 10\nconnecting\n");
    assert_eq!((&lines[2]["connected_ms"], &lines[2]["seqno"]), (&10.into(), &2.into()));
    assert_eq!(lines[2]["last_disconnected"], serde_json::Value::Null);
    // Passive drops an attempt without being asked; an accepted connection that is lost leaves no wait.
    let lines =
        run_well("connecting\npassive\nlistening\nconnected\ndisconnected\nlistening\nlisten-error ENOMEM\n");
    assert_eq!((&lines[1]["state"], &lines[1]["n_attempted"]), (&"BACKOFF".into(), &1.into()));
    assert_eq!((&lines[4]["backoff_ms"], &lines[6]["backoff_ms"]), (&0.into(), &1000.into()));
}

/// Answers must not wait in a buffer for the end of the input.
#[test]
fn answers_before_it_asks_for_more() {
    struct Dialogue<'a>(std::slice::Iter<'a, &'a str>, &'a std::cell::RefCell<Vec<u8>>, usize);
    impl Read for Dialogue<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.2 += 1;
            assert_eq!(self.1.borrow().iter().filter(|&&byte| byte == b'\n').count(), self.2);
            let Some(line) = self.0.next() else { return Ok(0) };
            buffer[..line.len()].copy_from_slice(line.as_bytes());
            Ok(line.len())
        }
    }
    struct Shared<'a>(&'a std::cell::RefCell<Vec<u8>>);
    impl io::Write for Shared<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let out = std::cell::RefCell::new(Vec::new());
    let lines = ["enable\n", "run\n", "connecting\n"];
    let status = script::execute(&mut Dialogue(lines.iter(), &out, 0), &mut Shared(&out), &mut io::sink());
    assert_eq!(status, 0);
}

#[test]
fn failing_output_is_status_1() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut errors = Vec::new();
    assert_eq!(script::execute(&mut &b"enable\n"[..], &mut Full, &mut errors), 1);
    assert!(!errors.is_empty());
}
