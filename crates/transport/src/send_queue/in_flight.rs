//! What was given to a stream and is not known to have been read by the peer's process: it sits in HTTP/2's buffers, in
//! the kernel's of both sides, or on the way.

use std::collections::VecDeque;

/// Frames are noted together up to this many bytes, so that many small ones cost no more memory than few large ones.
const RUN_BYTES: usize = 16 << 10;

/// A run of frames.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The number of its last frame.
    last: u64,
    bytes: usize,
}

/// The frames of one stream that the peer has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    runs: VecDeque<Run>,
    bytes: usize,
}

impl InFlight {
    /// Notes a frame; `number` counts from 1 in each stream and only grows.
    pub(super) fn sent(&mut self, number: u64, bytes: usize) {
        self.bytes += bytes;
        match self.runs.back_mut() {
            Some(run) if run.bytes + bytes <= RUN_BYTES => {
                run.last = number;
                run.bytes += bytes;
            }
            _ => self.runs.push_back(Run { last: number, bytes }),
        }
    }

    /// The peer has taken this many frames off the stream. (A number that it made up frees what it never read: it is
    /// told so, and hurts its own link.)
    pub(super) fn acknowledged(&mut self, frames: u64) {
        while let Some(run) = self.runs.front()
            && run.last <= frames
        {
            self.bytes -= run.bytes;
            self.runs.pop_front();
        }
        if self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
    }

    /// At most this many bytes are not acknowledged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_count_until_their_run_is_acknowledged() {
        let mut flight = InFlight::default();
        flight.sent(1, 100);
        flight.sent(2, RUN_BYTES);
        flight.sent(3, RUN_BYTES - 1);
        flight.sent(4, 1);
        assert_eq!(flight.bytes(), 100 + 2 * RUN_BYTES);
        flight.acknowledged(2);
        assert_eq!(flight.bytes(), RUN_BYTES);
        flight.acknowledged(3);
        assert_eq!(flight.bytes(), RUN_BYTES, "4 is in the run of 3");
        flight.acknowledged(u64::MAX);
        assert_eq!(flight.bytes(), 0);
        flight.acknowledged(0);
        flight.sent(5, 7);
        assert_eq!(flight.bytes(), 7);
    }

    #[test]
    fn a_million_small_frames_take_little() {
        let mut flight = InFlight::default();
        for number in 1..=1_000_000 {
            flight.sent(number, 10);
        }
        assert!(flight.runs.len() <= 1_000_000 * 10 / (RUN_BYTES - 10) + 1, "{}", flight.runs.len());
    }
}
