//! What makes a replica's state: its `Debug` text, which is derived and so forgets no field, with clocks, tickets and
//! random numbers reduced to what they decide.

use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};

/// Fields that hold the time of something past, in the replica's milliseconds.
const PAST: [&str; 10] = [
    "heard_at",
    "since",
    "busy_at",
    "moved_at",
    "sent_at",
    "started_at",
    "rewound_at",
    "bound_since",
    "lease_from",
    "round_started",
];
/// Fields that hold the time of something to come.
const COMING: [&str; 5] = ["election_deadline", "heartbeat_due", "deadline", "ask_again_at", "give_up_at"];
/// Fields that decide nothing by themselves.
const IDLE: [&str; 3] = ["now", "next_id", "seed"];

/// What is needed to judge the numbers in a replica's state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// The replica's clock.
    pub(super) now: u64,
    /// Its election timer.
    pub(super) timer_ms: u64,
    /// The newest ticket that is durable.
    pub(super) durable: u64,
    /// Nothing in the model asks who was heard when.
    pub(super) timeless: bool,
}

/// Texts are built here, again and again.
#[derive(Debug, Default)]
pub(super) struct Digester {
    text: String,
    canonical: Vec<u8>,
}

impl Digester {
    /// The digest of `state`.
    pub(super) fn digest(&mut self, state: &impl Debug, scale: Scale) -> u64 {
        self.text.clear();
        write!(self.text, "{state:?}").expect("a string takes everything");
        canonicalize(&self.text, scale, &mut self.canonical);
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.canonical);
        hasher.finish()
    }
}

fn canonicalize(text: &str, scale: Scale, out: &mut Vec<u8>) {
    out.clear();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if !bytes[at].is_ascii_alphabetic() {
            // Quoted text is data of ours and holds no field names; everything else is punctuation and numbers.
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
            at += 1;
        }
        let word = &text[start..at];
        out.extend_from_slice(word.as_bytes());
        if word == "Ticket" && bytes.get(at) == Some(&b'(') {
            let (number, end) = number(bytes, at + 1);
            // How many syncs it is away; whatever is durable is equally so.
            push(out, number.saturating_sub(scale.durable));
            at = end;
        } else if word == "heard_at" && scale.timeless {
            at += bytes[at..].iter().position(|byte| b",}".contains(byte)).expect("a field ends");
        } else if word == "Pcg" {
            at += bytes[at..].iter().position(|byte| *byte == b'}').expect("a struct ends");
        } else if bytes.get(at) == Some(&b':') {
            let rule = if PAST.contains(&word) {
                past
            } else if COMING.contains(&word) {
                coming
            } else if IDLE.contains(&word) {
                |_, _| 0
            } else {
                continue;
            };
            let mut value = at + 2;
            if text[value..].starts_with("Some(") {
                value += 5;
            } else if !bytes[value].is_ascii_digit() {
                continue;
            }
            let (number, end) = number(bytes, value);
            out.push(b':');
            push(out, rule(number, scale));
            at = end;
        }
    }
}

fn past(then: u64, scale: Scale) -> u64 {
    let ago = scale.now.saturating_sub(then);
    match ago {
        0 => 0,
        _ if ago < scale.timer_ms / 10 => 1,
        _ if ago < scale.timer_ms => 2,
        _ => 3,
    }
}

fn coming(then: u64, scale: Scale) -> u64 {
    u64::from(then > scale.now)
}

fn number(bytes: &[u8], mut at: usize) -> (u64, usize) {
    let mut number: u64 = 0;
    while let Some(digit) = bytes.get(at).filter(|byte| byte.is_ascii_digit()) {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    (number, at)
}

fn push(out: &mut Vec<u8>, number: u64) {
    out.push(b'~');
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str, scale: Scale) -> Vec<u8> {
        let mut out = Vec::new();
        canonicalize(text, scale, &mut out);
        out
    }

    #[test]
    fn clocks_count_by_what_they_decide() {
        let scale = |now| Scale { now, timer_ms: 1000, durable: 4, timeless: false };
        let text = |heard: u64, deadline: u64| {
            format!("Follower {{ heard_at: Some({heard}), election_deadline: {deadline}, term: Term(3) }}")
        };
        let this = canonical(&text(100, 1200), scale(150));
        assert_eq!(this, canonical(&text(5100, 6999), scale(5150)));
        assert_ne!(this, canonical(&text(100, 1200), scale(900)), "a heartbeat and more ago");
        assert_ne!(this, canonical(&text(100, 120), scale(150)), "due");
        assert_ne!(this, canonical(&text(100, 1200).replace("(3)", "(4)"), scale(150)), "another term");
    }

    #[test]
    fn chance_and_the_count_of_writes_do_not_matter() {
        let scale = |durable| Scale { now: 9, timer_ms: 1000, durable, timeless: false };
        let text = |ticket: u64, rng: u64| {
            format!("Raft {{ rng: Pcg {{ state: {rng}, increment: 7 }}, needs: Ticket({ticket}), last: 12 }}")
        };
        assert_eq!(canonical(&text(5, 1), scale(4)), canonical(&text(8, 2), scale(7)));
        assert_eq!(canonical(&text(2, 1), scale(4)), canonical(&text(4, 2), scale(4)), "both durable");
        assert_ne!(canonical(&text(5, 1), scale(4)), canonical(&text(6, 1), scale(4)));
        assert_ne!(
            canonical(&text(5, 1), scale(4)),
            canonical(&text(5, 1).replace("12", "13"), scale(4)),
            "everything else counts"
        );
    }

    #[test]
    fn who_was_heard_when_may_not_matter() {
        let scale = |timeless| Scale { now: 9, timer_ms: 1000, durable: 0, timeless };
        let (never, once) =
            ("Progress { heard_at: None, asks: false }", "Progress { heard_at: Some(3), asks: false }");
        assert_eq!(canonical(never, scale(true)), canonical(once, scale(true)));
        assert_ne!(canonical(never, scale(false)), canonical(once, scale(false)));
        assert_ne!(canonical(never, scale(true)), canonical(&never.replace("false", "true"), scale(true)));
    }
}
