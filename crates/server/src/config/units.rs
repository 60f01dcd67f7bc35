//! Durations (`1000ms`, `2s`, `1m30s`) and sizes (`512`, `64KiB`, `8MiB`) as people write them.

use std::time::Duration;

/// Parses a duration; a bare number is refused, because nobody remembers which unit it would have.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "a duration is a number with a unit, such as `1000ms`, `2s` or `1m30s`".to_owned())
}

/// Parses a duration that is not zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than zero".into()),
        duration => Ok(duration),
    }
}

/// Parses an election timeout: shorter than 100 ms, an ordinary pause of a disk or a scheduler deposes
/// leaders; longer than ten minutes, a dead leader stops the group for too long to be meant.
pub(crate) fn election_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(600) {
        return Err("an election timeout is 100ms to 10m".into());
    }
    if timeout.subsec_nanos() % 1_000_000 != 0 {
        return Err("an election timeout is a whole number of milliseconds".into());
    }
    Ok(timeout)
}

/// Parses what flow control governs.
pub(crate) fn flow_mode(text: &str) -> Result<pontoon_flow::Mode, String> {
    pontoon_flow::Mode::named(text).ok_or_else(|| "flow control is off, elastic or all".to_owned())
}

/// Parses the pace of progress messages: more of them than ten a second to each idle watcher is nothing but load.
pub(crate) fn progress_interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval < Duration::from_millis(100) => Err("it is 100ms or longer".into()),
        interval => Ok(interval),
    }
}

/// Parses how long a login is good for. Tokens count in seconds.
pub(crate) fn token_ttl(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        ttl if ttl < Duration::from_secs(1) => Err("it is 1s or longer".into()),
        ttl => Ok(ttl),
    }
}

/// Parses a size in bytes, with an optional binary unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let rule = || "a size is a number of bytes, or with a unit: `64KiB`, `8MiB`, `1GiB`".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(rule()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(rule)
}

/// Parses the memory for large answers: less than one large value and its key could not be read at all.
pub(crate) fn answers_bytes(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < 4 << 20 => Err("it is 4MiB or more, so that the largest value can be read".into()),
        bytes => Ok(bytes),
    }
}

/// Parses a keyspace's quota. As in etcd, 0 stands for the default and a negative number for none.
pub(crate) fn quota(text: &str) -> Result<Quota, String> {
    match text {
        "0" => Ok(Quota(Some(QUOTA_DEFAULT_BYTES))),
        text if text.strip_prefix('-').is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0)) => {
            Ok(Quota(None))
        }
        text => match size(text)? {
            bytes if bytes < QUOTA_MIN_BYTES => Err(format!(
                "a quota is at least {} MiB, which one large request and its past take; -1 means none",
                QUOTA_MIN_BYTES >> 20
            )),
            bytes => Ok(Quota(Some(bytes))),
        },
    }
}

/// etcd's default.
const QUOTA_DEFAULT_BYTES: u64 = 2 << 30;

/// Below this a single request could be more than the keyspace may hold.
const QUOTA_MIN_BYTES: u64 = 2 << 20;

/// How much a keyspace may hold; `None`: as much as there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(pub(crate) Option<u64>);

/// Parses what auto-compaction keeps, for both modes: a number of revisions, or a time, in which a bare number means
/// hours, as in etcd. 0: everything.
pub(crate) fn retention(text: &str) -> Result<Retained, String> {
    if let Ok(number) = text.parse::<u32>() {
        return Ok(Retained::Number(number));
    }
    let period = duration(text).map_err(|_| {
        "a retention is a number (of revisions, or of hours), or a time with a unit, such as `30m`".to_owned()
    })?;
    if period < Duration::from_secs(1) {
        return Err("a retention is 1s or longer, or 0 for no compaction".into());
    }
    Ok(Retained::Period(period))
}

/// What auto-compaction keeps; the mode says what a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retained {
    /// Of revisions or hours.
    Number(u32),
    /// A time.
    Period(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1000ms"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").is_err());
        assert!(duration("").is_err());
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn election_timeouts_have_bounds() {
        assert!(election_timeout("99ms").is_err());
        assert!(election_timeout("100ms").is_ok());
        assert!(election_timeout("10m").is_ok());
        assert!(election_timeout("601s").is_err());
        assert!(election_timeout("1000500us").is_err());
    }

    #[test]
    fn quotas() {
        assert_eq!(quota("0"), Ok(Quota(Some(2 << 30))));
        assert_eq!(quota("-1"), Ok(Quota(None)));
        assert_eq!(quota("8589934592"), Ok(Quota(Some(8 << 30))));
        assert_eq!(quota("16MiB"), Ok(Quota(Some(16 << 20))));
        for bad in ["", "-", "-0", "-x", "1", "1MiB", "much"] {
            assert!(quota(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn retentions() {
        assert_eq!(retention("0"), Ok(Retained::Number(0)));
        assert_eq!(retention("1000"), Ok(Retained::Number(1000)));
        assert_eq!(retention("90m"), Ok(Retained::Period(Duration::from_secs(5400))));
        for bad in ["", "-1", "1ms", "x"] {
            assert!(retention(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        for bad in ["", "MiB", "8MB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
