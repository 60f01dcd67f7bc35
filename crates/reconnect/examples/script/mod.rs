//! The reconnect script language: commands in, states out.
//!
//! ```text
//! bytes --lines--> words --parse--> Command --Session::execute--> Reconnect --output::write_line--> JSON
//! ```
//! One command a line, words separated by spaces and tabs, `#` begins a comment line; time passes only by `advance`,
//! `run MS` and `timeout`. Before the first line, `create 1000` is executed.

mod command;
mod output;

use std::io::{self, BufRead, BufReader, Read, Write};

use pontoon_reconnect::{Action, Reconnect};

use command::{Command, Malformed};

/// The input that is read at once, and the output that is gathered before it is written: large enough that system
/// calls do not count, small enough that a reader at the other end of a pipe sees progress.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a script runs against: the machine and the clock.
struct Session {
    now: u64,
    machine: Reconnect,
}

/// What one command did that the machine's state does not show.
#[derive(Default)]
struct Outcome {
    advanced_ms: u64,
    action: Option<Action>,
}

/// Runs the whole script; returns the exit status: 0, 2 after a malformed line, 1 when reading or writing fails.
pub(crate) fn execute(input: &mut dyn Read, output: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    let mut lines = 0;
    let (status, message) = match run(input, output, &mut lines) {
        Ok(None) => return 0,
        Ok(Some(malformed)) => (2, format!("line {lines}: {malformed}")),
        // Whoever reads us has seen enough; there is nobody to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return 1,
        Err(error) => (1, format!("after line {lines}: {error}")),
    };
    // When standard error fails too, the status is all that is left.
    let _ = writeln!(errors, "reconnect-script: {message}");
    status
}

fn run(input: &mut dyn Read, output: &mut dyn Write, lines: &mut u64) -> io::Result<Option<Malformed>> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut out = Vec::with_capacity(BUFFER_BYTES + 4096);
    let mut line = Vec::new();
    let mut session = Session::new(1000);
    output::write_line(&mut out, "create 1000", session.now, &Outcome::default(), &session.machine);
    loop {
        // Whoever types the commands waits for the answers: write them before a read that may block.
        if out.len() >= BUFFER_BYTES || !input.buffer().contains(&b'\n') {
            output.write_all(&out)?;
            output.flush()?;
            out.clear();
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        *lines += 1;
        let words = match command::words(&line) {
            Ok(words) if words.is_empty() => continue,
            Ok(words) => words,
            Err(malformed) => return flush_last(output, &out).map(|()| Some(malformed)),
        };
        match Command::parse(&words) {
            Ok(command) => {
                let outcome = session.execute(command);
                output::write_line(&mut out, &words.join(" "), session.now, &outcome, &session.machine);
            }
            Err(malformed) => return flush_last(output, &out).map(|()| Some(malformed)),
        }
    }
}

fn flush_last(output: &mut dyn Write, out: &[u8]) -> io::Result<()> {
    output.write_all(out)?;
    output.flush()
}

impl Session {
    fn new(now: u64) -> Self {
        Self { now, machine: Reconnect::new(now) }
    }

    fn execute(&mut self, command: Command) -> Outcome {
        let before = self.now;
        let mut action = None;
        let (machine, now) = (&mut self.machine, self.now);
        match command {
            Command::Create(at) => {
                *self = Self::new(at);
                return Outcome::default();
            }
            Command::Advance(ms) => self.now = now.saturating_add(ms),
            Command::Run(ms) => {
                self.now = now.saturating_add(ms);
                action = machine.run(self.now);
            }
            Command::Timeout => {
                self.now = machine.next_deadline(now).map_or(now, |deadline| now.max(deadline));
            }
            Command::Enable => machine.enable(now),
            Command::Disable => machine.disable(now),
            Command::Connecting => machine.connecting(now),
            Command::Connected => machine.connected(now),
            Command::ConnectFailed => machine.connect_failed(now),
            Command::Disconnected => machine.disconnected(now),
            Command::Activity => machine.activity(now),
            Command::ReceiveAttempted => machine.receive_attempted(now),
            Command::ReceiveAlways => machine.receive_always(),
            Command::Listening => machine.listening(now),
            Command::ListenError => machine.listen_error(now),
            Command::ForceReconnect => machine.force_reconnect(now),
            Command::ResetBackoff(remotes) => machine.reset_backoff(remotes),
            Command::GracefulReconnect(remotes) => machine.graceful_reconnect(now, remotes),
            Command::SetFreeTries(tries) => machine.set_free_tries(tries),
            Command::SetMaxTries(tries) => machine.set_max_tries(tries),
            Command::SetBackoff(min_ms, max_ms) => machine.set_backoff(min_ms, max_ms),
            Command::SetProbeInterval(ms) => machine.set_probe_interval(ms),
            Command::SetRaftProbe(Some(timer_ms)) => machine.set_probe_for_election_timer(timer_ms),
            Command::SetRaftProbe(None) => machine.set_probe_for_joining(),
            Command::Passive(passive) => machine.set_passive(now, passive),
        }
        Outcome { advanced_ms: self.now - before, action }
    }
}
