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
