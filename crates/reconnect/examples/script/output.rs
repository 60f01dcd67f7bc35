//! A machine's state as one line of JSON, written by hand: no allocation, no formatting machinery.

use pontoon_reconnect::Reconnect;

use super::Outcome;

/// Appends the line for one command. `command` is its words joined by one space: every word of a well-formed command
/// is a name, a number or a keyword, so there is nothing to escape.
pub(crate) fn write_line(out: &mut Vec<u8>, command: &str, now: u64, outcome: &Outcome, machine: &Reconnect) {
    let stats = machine.stats(now);
    let timeout_ms = machine.next_deadline(now).map(|deadline| deadline.saturating_sub(now));

    text(out, "{\"cmd\":\"", command);
    number(out, "\",\"now\":", now);
    number(out, ",\"advanced_ms\":", outcome.advanced_ms);
    match outcome.action {
        None => text(out, ",\"action\":null", ""),
        Some(action) => {
            text(out, ",\"action\":\"", action.name());
            text(out, "\"", "");
        }
    }
    text(out, ",\"state\":\"", stats.state.name());
    number(out, "\",\"state_ms\":", stats.state_ms);
    number(out, ",\"backoff_ms\":", stats.backoff_ms);
    optional(out, ",\"timeout_ms\":", timeout_ms);
    boolean(out, ",\"is_connected\":", stats.is_connected());
    number(out, ",\"seqno\":", stats.seqno);
    number(out, ",\"n_attempted\":", stats.attempts);
    number(out, ",\"n_successful\":", stats.successes);
    number(out, ",\"connected_ms\":", stats.connected_ms);
    optional(out, ",\"since_connect_ms\":", stats.since_connect_ms);
    optional(out, ",\"since_disconnect_ms\":", stats.since_disconnect_ms);
    number(out, ",\"created\":", stats.created);
    number(out, ",\"last_activity\":", stats.last_activity);
    optional(out, ",\"last_connected\":", stats.last_connected);
    optional(out, ",\"last_disconnected\":", stats.last_disconnected);
    optional(out, ",\"max_tries\":", stats.max_tries);
    number(out, ",\"free_tries\":", stats.free_tries);
    boolean(out, ",\"passive\":", stats.passive);
    number(out, ",\"min_backoff_ms\":", stats.min_backoff_ms);
    number(out, ",\"max_backoff_ms\":", stats.max_backoff_ms);
    number(out, ",\"probe_interval_ms\":", stats.probe_interval_ms);
    text(out, "}\n", "");
}

fn text(out: &mut Vec<u8>, label: &str, value: &str) {
    out.extend_from_slice(label.as_bytes());
    out.extend_from_slice(value.as_bytes());
}

fn boolean(out: &mut Vec<u8>, label: &str, value: bool) {
    text(out, label, if value { "true" } else { "false" });
}

fn optional(out: &mut Vec<u8>, label: &str, value: Option<u64>) {
    match value {
        Some(value) => number(out, label, value),
        None => text(out, label, "null"),
    }
}

fn number(out: &mut Vec<u8>, label: &str, mut value: u64) {
    out.extend_from_slice(label.as_bytes());
    // The largest u64 has 20 digits.
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(value % 10).expect("a remainder of ten is a digit");
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}
