//! The receiver's side: how much each sender may send, within one budget for all of them.
//!
//! Send tokens bound what one store has under way to another one; many senders together could still bring more than a store
//! can hold. So the receiver says, for each stream, up to which byte of the stream its sender may go. These offsets only grow,
//! so it does not matter if one is lost, repeated or late; what a sender may send, or has sent and is not processed, is its
//! *window*, and the windows of all senders together stay within the budget (C1).

use std::collections::BTreeMap;

/// The windows of all streams into one store.
///
/// A stream starts with the floor, and a window grows by being used: at most doubled each time, and at most to what is fair
/// among those who want more. A quarter of the budget is kept for the floors of streams that are yet to come.
#[derive(Clone, Debug)]
pub struct Credits {
    budget_bytes: u64,
    floor_bytes: u64,
    windows: BTreeMap<u64, Window>,
    /// Received on streams that are closed, and not processed.
    draining: u64,
    next: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    received: u64,
    processed: u64,
    granted: u64,
    /// What it was made last.
    size: u64,
    /// Its sender has used most of it.
    pressed: bool,
}

impl Window {
    fn open(self) -> u64 {
        self.granted - self.processed
    }
}

/// The widest window of one stream, as a part of the budget.
const WINDOW_PART: u64 = 8;

impl Credits {
    /// Credits for `budget_bytes`, of which each stream has at least `floor_bytes` while there is room for that.
    #[must_use]
    pub fn new(budget_bytes: u64, floor_bytes: u64) -> Self {
        let floor_bytes = floor_bytes.min(budget_bytes / 4).max(1);
        Self { budget_bytes, floor_bytes, windows: BTreeMap::new(), draining: 0, next: 0 }
    }

    /// A stream opens. Returns its name and the offset that its sender may go to.
    pub fn open(&mut self) -> (u64, u64) {
        let stream = self.next;
        self.next += 1;
        let granted = self.floor_bytes.min(self.left());
        self.windows.insert(stream, Window { granted, size: granted, ..Window::default() });
        (stream, granted)
    }

    /// Bytes came in. Returns whether the sender was allowed to send them.
    pub fn received(&mut self, stream: u64, bytes: u64) -> bool {
        let Some(window) = self.windows.get_mut(&stream) else { return false };
        let allowed = window.granted - window.received.min(window.granted);
        // What was not allowed is not counted here: its receiver drops it, or has another budget for it.
        if bytes > allowed {
            return false;
        }
        window.received += bytes;
        window.pressed |= allowed - bytes < window.size / 2;
        true
    }

    /// Bytes that were received, and counted, are processed. Returns the offset that the sender may go to now, if that is worth
    /// a message.
    pub fn processed(&mut self, stream: u64, bytes: u64) -> Option<u64> {
        let Some(window) = self.windows.get_mut(&stream) else {
            self.draining = self.draining.saturating_sub(bytes);
            return None;
        };
        window.processed = window.processed.saturating_add(bytes).min(window.received);
        self.grant(stream)
    }

    /// Looks again: a window that found no room may find some now.
    pub fn grant(&mut self, stream: u64) -> Option<u64> {
        let left = self.left();
        let reserve = self.reserve();
        let (streams, floor, budget) = (self.windows.len() as u64, self.floor_bytes, self.budget_bytes);
        let window = self.windows.get_mut(&stream)?;
        let fair = (budget - budget / 4) / streams.max(1);
        let widest = fair.min(budget / WINDOW_PART).max(floor);
        // Twice what it had, if it needed that, and no more than half of what is left beyond the reserve.
        let wanted = if window.pressed { window.size.saturating_mul(2) } else { window.size };
        let room = left.saturating_sub(reserve) / 2;
        let most = (window.open() + room).max(floor.min(window.open() + left));
        let target = wanted.clamp(floor, widest).min(most);
        let granted = window.processed + target;
        let news = granted.saturating_sub(window.granted);
        // A message for every few bytes would be noise.
        if news == 0 || (news < target / 4 && window.received < window.granted) {
            return None;
        }
        (window.granted, window.size, window.pressed) = (granted, target, false);
        Some(granted)
    }

    /// A stream is over. What it brought and is not processed counts until it is.
    pub fn close(&mut self, stream: u64) {
        if let Some(window) = self.windows.remove(&stream) {
            self.draining += window.received - window.processed;
        }
    }

    /// What all senders together may send now, or have sent and is not processed.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.draining + self.windows.values().map(|window| window.open()).sum::<u64>()
    }

    /// The bound of [`Credits::committed_bytes`].
    #[must_use]
    pub const fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    fn left(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.committed_bytes())
    }

    /// Kept for streams that are yet to come.
    fn reserve(&self) -> u64 {
        let floors = self.windows.len() as u64 * self.floor_bytes;
        (self.budget_bytes / 4).saturating_sub(floors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender that keeps to what it is told, and the receiver's memory of it.
    #[derive(Default)]
    struct Sender {
        stream: u64,
        allowed: u64,
        sent: u64,
        waiting: u64,
    }

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    /// T9 in small: whoever sends and however fast, what is received and not processed stays within the budget, together with
    /// what may still come.
    #[test]
    fn the_sum_over_all_senders_stays_within_the_budget() {
        for seed in 0..200 {
            let mut state = seed;
            let budget = 1 << 20;
            let mut credits = Credits::new(budget, 4 << 10);
            let mut senders: Vec<Sender> = Vec::new();
            for _ in 0..2_000 {
                let at = random(&mut state) as usize % senders.len().max(1);
                match random(&mut state) % 20 {
                    0 if senders.len() < 64 => {
                        let (stream, allowed) = credits.open();
                        senders.push(Sender { stream, allowed, ..Sender::default() });
                    }
                    1 if !senders.is_empty() => {
                        let gone = senders.swap_remove(at);
                        credits.close(gone.stream);
                        assert_eq!(credits.processed(gone.stream, gone.waiting), None);
                    }
                    2..12 if !senders.is_empty() => {
                        let sender = &mut senders[at];
                        let bytes = (sender.allowed - sender.sent).min(random(&mut state) % (64 << 10));
                        assert!(credits.received(sender.stream, bytes), "it was allowed");
                        sender.sent += bytes;
                        sender.waiting += bytes;
                    }
                    _ if !senders.is_empty() => {
                        let sender = &mut senders[at];
                        let bytes = sender.waiting.min(random(&mut state) % (64 << 10));
                        sender.waiting -= bytes;
                        if let Some(allowed) = credits.processed(sender.stream, bytes) {
                            assert!(allowed > sender.allowed, "offsets grow");
                            sender.allowed = allowed;
                        }
                    }
                    _ => {}
                }
                let open: u64 = senders.iter().map(|s| s.allowed - s.sent + s.waiting).sum();
                assert_eq!(open, credits.committed_bytes());
                assert!(open <= budget, "C1: {open} of {budget}");
            }
        }
    }

    #[test]
    fn a_window_grows_by_use_and_newcomers_find_their_floor() {
        let floor = 256 << 10;
        let mut credits = Credits::new(64 << 20, floor);
        let (busy, mut allowed) = credits.open();
        let mut sent = 0;
        for _ in 0..20 {
            let bytes = allowed - sent;
            assert!(credits.received(busy, bytes));
            assert!(!credits.received(busy, 1), "nothing beyond the window");
            sent += bytes;
            if let Some(more) = credits.processed(busy, bytes) {
                allowed = more;
            }
        }
        assert!(allowed - sent >= 4 << 20, "it has grown: {}", allowed - sent);
        for _ in 0..63 {
            assert_eq!(credits.open().1, floor);
        }
        assert!(credits.committed_bytes() <= credits.budget_bytes());
    }
}
