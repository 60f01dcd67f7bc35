//! What was given to a stream and is not known to have been read by the peer's process: it sits in HTTP/2's buffers, in
//! the kernel's of both sides, or on the way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Frames are noted together up to this many bytes, so that many small ones cost no more memory than few large ones.
const RUN_BYTES: usize = 16 << 10;

/// The least that may be in flight, where nothing else bounds it: a frame.
const LIMIT_MIN: usize = 256 << 10;

/// An acknowledgement that comes so much later than the round trip takes is late: what is in flight waits for others of its kind.
const LATE: Duration = Duration::from_millis(50);

/// A run of frames.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The number of its last frame.
    last: u64,
    bytes: usize,
    /// When its last frame was given to the stream.
    given: Instant,
}

/// The frames of one stream that the peer has not acknowledged, and how many bytes of them there may be.
///
/// On a slow link a large window only waits in buffers on the way, and whatever is sent next waits behind it. So the limit shrinks
/// while acknowledgements are late, and grows again while they are not: it comes to hold what the link carries in [`LATE`] and a
/// few round trips.
#[derive(Debug)]
pub(super) struct InFlight {
    runs: VecDeque<Run>,
    bytes: usize,
    limit: usize,
    /// The least time from a frame to its acknowledgement.
    least: Duration,
    /// When the limit was made smaller last. What was given before that says nothing of the new one.
    cut: Option<Instant>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { runs: VecDeque::new(), bytes: 0, limit: usize::MAX, least: Duration::MAX, cut: None }
    }
}

impl InFlight {
    /// Notes a frame; `number` counts from 1 in each stream and only grows.
    pub(super) fn sent(&mut self, number: u64, bytes: usize, now: Instant) {
        self.bytes += bytes;
        match self.runs.back_mut() {
            Some(run) if run.bytes + bytes <= RUN_BYTES => {
                run.last = number;
                run.bytes += bytes;
                run.given = now;
            }
            _ => self.runs.push_back(Run { last: number, bytes, given: now }),
        }
    }

    /// The peer has taken this many frames off the stream. (A number that it made up frees what it never read: it is
    /// told so, and hurts its own link.)
    pub(super) fn acknowledged(&mut self, frames: u64, now: Instant) {
        let (before, mut newest) = (self.bytes, None);
        while let Some(run) = self.runs.front()
            && run.last <= frames
        {
            self.bytes -= run.bytes;
            newest = Some(run.given);
            self.runs.pop_front();
        }
        if self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
        if let Some(given) = newest {
            self.adapt(before, now.saturating_duration_since(given), given, now);
        }
    }

    /// `before` bytes were in flight when those given at `given` were acknowledged, `after` this time.
    fn adapt(&mut self, before: usize, after: Duration, given: Instant, now: Instant) {
        self.least = self.least.min(after);
        if after <= self.least.saturating_mul(2) + LATE / 2 {
            // Twice as much after each round trip.
            self.limit = self.limit.saturating_add(before - self.bytes);
        } else if after > self.least.saturating_mul(2) + LATE && self.cut.is_none_or(|cut| given > cut) {
            self.limit = (before.min(self.limit) / 2).max(LIMIT_MIN);
            self.cut = Some(now);
        }
    }

    /// At most this many bytes are not acknowledged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many may be.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_count_until_their_run_is_acknowledged() {
        let now = Instant::now();
        let mut flight = InFlight::default();
        flight.sent(1, 100, now);
        flight.sent(2, RUN_BYTES, now);
        flight.sent(3, RUN_BYTES - 1, now);
        flight.sent(4, 1, now);
        assert_eq!(flight.bytes(), 100 + 2 * RUN_BYTES);
        flight.acknowledged(2, now);
        assert_eq!(flight.bytes(), RUN_BYTES);
        flight.acknowledged(3, now);
        assert_eq!(flight.bytes(), RUN_BYTES, "4 is in the run of 3");
        flight.acknowledged(u64::MAX, now);
        assert_eq!(flight.bytes(), 0);
        flight.acknowledged(0, now);
        flight.sent(5, 7, now);
        assert_eq!(flight.bytes(), 7);
    }

    #[test]
    fn a_million_small_frames_take_little() {
        let now = Instant::now();
        let mut flight = InFlight::default();
        for number in 1..=1_000_000 {
            flight.sent(number, 10, now);
        }
        assert!(flight.runs.len() <= 1_000_000 * 10 / (RUN_BYTES - 10) + 1, "{}", flight.runs.len());
    }

    /// A sender that always has something, on a link that takes so many bytes a second and answers after a round trip. Returns
    /// what is in flight in the end, and how long a frame takes then.
    fn play(
        flight: &mut InFlight,
        bytes_per_second: f64,
        round_trip: Duration,
        frames: u64,
    ) -> (usize, Duration) {
        const FRAME: usize = 64 << 10;
        const WINDOW: usize = 4 << 20;
        let mut now = Instant::now();
        let (mut free_at, mut number) = (now, flight.runs.back().map_or(0, |run| run.last));
        let mut on_the_way = VecDeque::new();
        let mut last = (0, Duration::ZERO);
        for _ in 0..frames {
            while flight.bytes() < WINDOW.min(flight.limit()) {
                number += 1;
                flight.sent(number, FRAME, now);
                free_at = free_at.max(now) + Duration::from_secs_f64(FRAME as f64 / bytes_per_second);
                on_the_way.push_back((number, now, free_at + round_trip));
            }
            let (number, given, answered) = on_the_way.pop_front().expect("something is in flight");
            now = answered;
            last = (flight.bytes(), now - given);
            flight.acknowledged(number, now);
        }
        flight.acknowledged(u64::MAX, now);
        last
    }

    /// A slow link is not given more than waits for it a while; a fast or a long one has all of the window; and one that becomes
    /// faster has it again.
    #[test]
    fn the_limit_follows_the_link() {
        let ms = Duration::from_millis;
        let mut flight = InFlight::default();
        let (slow, waits) = play(&mut flight, 10e6, ms(1), 1000);
        assert!(slow < 1 << 20 && waits < ms(120), "{slow} bytes, {waits:?}");
        let (fast, _) = play(&mut flight, 400e6, ms(1), 1000);
        assert!(fast >= 4 << 20, "{fast} bytes");
        let (long, _) = play(&mut InFlight::default(), 400e6, ms(80), 1000);
        assert!(long >= 4 << 20, "{long} bytes");
        let (least, _) = play(&mut InFlight::default(), 1e5, ms(1), 300);
        assert!((LIMIT_MIN..LIMIT_MIN + (128 << 10)).contains(&least), "{least} bytes");
    }
}
