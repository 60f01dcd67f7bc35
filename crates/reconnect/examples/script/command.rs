//! Lines to commands: everything that can be malformed is found here.

use std::fmt;

/// The largest number that can be written in a script.
const NUMBER_MAX: u64 = 2_147_483_647;

/// The election timers a Raft group can have: 100 ms to 10 minutes.
const ELECTION_TIMER_MS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// The names an error can have; a number will do as well.
const ERRORS: [&str; 6] = ["EOF", "ECONNREFUSED", "ETIMEDOUT", "ECONNRESET", "EPIPE", "ENOMEM"];

/// One checked command. Errors are checked for form and dropped: they have no influence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Create(u64),
    Advance(u64),
    Run(u64),
    Timeout,
    Enable,
    Disable,
    Connecting,
    Connected,
    ConnectFailed,
    Disconnected,
    Activity,
    ReceiveAttempted,
    ReceiveAlways,
    Listening,
    ListenError,
    ForceReconnect,
    ResetBackoff(u64),
    GracefulReconnect(u64),
    SetFreeTries(u64),
    /// `None`: unlimited.
    SetMaxTries(Option<u64>),
    SetBackoff(u64, u64),
    SetProbeInterval(u64),
    /// `None`: joining.
    SetRaftProbe(Option<u64>),
    Passive(bool),
}

/// Why a line is no command. Words are shown with everything escaped that is not printable ASCII.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    NotAscii(u8),
    UnknownCommand(String),
    WrongArguments { name: String, given: usize },
    NotANumber(String),
    NumberTooLarge(String),
    NotAnError(String),
    Unexpected { word: String, expected: &'static str },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAscii(byte) => write!(f, "byte 0x{byte:02x} is not ASCII"),
            Self::UnknownCommand(name) => write!(f, "unknown command \"{}\"", name.escape_debug()),
            Self::WrongArguments { name, given } => {
                write!(f, "{given} is a wrong number of arguments for {name}")
            }
            Self::NotANumber(word) => write!(f, "\"{}\" is not a number", word.escape_debug()),
            Self::NumberTooLarge(word) => {
                write!(f, "{word} is too large: the largest number is {NUMBER_MAX}")
            }
            Self::NotAnError(word) => {
                write!(
                    f,
                    "\"{}\" is not an error: expected {} or a number",
                    word.escape_debug(),
                    ERRORS.join(", ")
                )
            }
            Self::Unexpected { word, expected } => {
                write!(f, "\"{}\" is not allowed here: expected {expected}", word.escape_debug())
            }
        }
    }
}

/// Splits a line into words; none if it is empty or a comment.
///
/// One CR before the LF means nothing; any other is part of a word, as is every control character but the tab.
pub(crate) fn words(line: &[u8]) -> Result<Vec<&str>, Malformed> {
    let line = match line {
        [line @ .., b'\r', b'\n'] | [line @ .., b'\n'] => line,
        line => line,
    };
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = line.iter().position(|byte| !is_blank(byte)) else { return Ok(Vec::new()) };
    if line[start] == b'#' {
        return Ok(Vec::new());
    }
    match std::str::from_utf8(line) {
        Ok(text) if text.is_ascii() => Ok(text.split([' ', '\t']).filter(|word| !word.is_empty()).collect()),
        _ => {
            let byte = line.iter().find(|byte| !byte.is_ascii());
            Err(Malformed::NotAscii(byte.copied().expect("a text with ASCII bytes only is ASCII")))
        }
    }
}

impl Command {
    /// Reads a command from a line's words, of which there is at least one.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, Malformed> {
        Ok(match *words {
            ["create", at] => Self::Create(number(at)?),
            ["advance", ms] => Self::Advance(number(ms)?),
            ["run"] => Self::Run(0),
            ["run", ms] => Self::Run(number(ms)?),
            ["timeout"] => Self::Timeout,
            ["enable"] => Self::Enable,
            ["disable"] => Self::Disable,
            ["connecting"] => Self::Connecting,
            ["connected"] => Self::Connected,
            ["connect-failed"] => Self::ConnectFailed,
            ["connect-failed", error] => check_error(error).map(|()| Self::ConnectFailed)?,
            ["disconnected"] => Self::Disconnected,
            ["disconnected", error] => check_error(error).map(|()| Self::Disconnected)?,
            ["activity"] => Self::Activity,
            ["receive-attempted", "now"] => Self::ReceiveAttempted,
            ["receive-attempted", "LLONG_MAX"] => Self::ReceiveAlways,
            ["receive-attempted", word] => {
                return Err(Malformed::Unexpected { word: word.into(), expected: "now or LLONG_MAX" });
            }
            ["listening"] => Self::Listening,
            ["listen-error", error] => check_error(error).map(|()| Self::ListenError)?,
            ["force-reconnect"] => Self::ForceReconnect,
            ["reset-backoff", remotes] => Self::ResetBackoff(number(remotes)?),
            ["graceful-reconnect", remotes] => Self::GracefulReconnect(number(remotes)?),
            ["set-backoff-free-tries", tries] => Self::SetFreeTries(number(tries)?),
            ["set-max-tries", "unlimited"] => Self::SetMaxTries(None),
            ["set-max-tries", tries] => Self::SetMaxTries(Some(number(tries)?)),
            ["set-backoff", min, max] => Self::SetBackoff(number(min)?, number(max)?),
            ["set-probe-interval", ms] => Self::SetProbeInterval(number(ms)?),
            ["set-raft-probe", "joining"] => Self::SetRaftProbe(None),
            ["set-raft-probe", word] => {
                let timer_ms = number(word)?;
                if !ELECTION_TIMER_MS.contains(&timer_ms) {
                    let expected = "an election timer of 100 to 600000 ms, or joining";
                    return Err(Malformed::Unexpected { word: word.into(), expected });
                }
                Self::SetRaftProbe(Some(timer_ms))
            }
            ["passive"] => Self::Passive(true),
            ["active"] => Self::Passive(false),
            [name, ref arguments @ ..] if NAMES.contains(&name) => {
                return Err(Malformed::WrongArguments { name: name.into(), given: arguments.len() });
            }
            [name, ..] => return Err(Malformed::UnknownCommand(name.into())),
            [] => return Err(Malformed::UnknownCommand(String::new())),
        })
    }
}

/// All names, to tell a wrong name from wrong arguments.
const NAMES: [&str; 24] = [
    "active",
    "activity",
    "advance",
    "connect-failed",
    "connected",
    "connecting",
    "create",
    "disable",
    "disconnected",
    "enable",
    "force-reconnect",
    "graceful-reconnect",
    "listen-error",
    "listening",
    "passive",
    "receive-attempted",
    "reset-backoff",
    "run",
    "set-backoff",
    "set-backoff-free-tries",
    "set-max-tries",
    "set-probe-interval",
    "set-raft-probe",
    "timeout",
];

/// Digits only, so no sign; any number of leading zeros.
fn number(word: &str) -> Result<u64, Malformed> {
    if !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed::NotANumber(word.into()));
    }
    word.bytes()
        // Stops at the first digit too many, so that a thousand digits do not overflow.
        .try_fold(0, |value: u64, digit| {
            let value = value * 10 + u64::from(digit - b'0');
            (value <= NUMBER_MAX).then_some(value)
        })
        .ok_or_else(|| Malformed::NumberTooLarge(word.into()))
}

fn check_error(word: &str) -> Result<(), Malformed> {
    if ERRORS.contains(&word) {
        return Ok(());
    }
    match number(word) {
        Err(Malformed::NotANumber(word)) => Err(Malformed::NotAnError(word)),
        checked => checked.map(|_| ()),
    }
}
