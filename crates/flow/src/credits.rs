//! The receiver's side: how much each sender may send, within one budget for all of them.
//!
//! Send tokens bound what one store has under way to another one; many senders together could still bring more than a store
//! can hold. So the receiver says, for each stream, up to which byte of the stream its sender may go. These offsets only grow,
//! so it does not matter if one is lost, repeated or late; what a sender may send, or has sent and is not processed, is its
//! *window*, and the windows of all senders together stay within the budget (C1).
//!
//! A sender whose next message is larger than its window, or that has no window because there was no room for one, *starves*,
//! and says what it wants. Who starves is served first, in turn, and meanwhile the windows of the others shrink to what is fair:
//! room comes from what is processed. Where there is none, because windows are open that nobody uses, one message at a time goes
//! beyond: the bound is the budget and one message.

use std::collections::{BTreeMap, VecDeque};

/// The windows of all streams into one store.
///
/// A stream starts with the floor, and a window grows by being used: at most doubled each time, and at most to what is fair
/// among those who want more. A quarter of the budget is kept for the floors of streams that are yet to come.
#[derive(Clone, Debug)]
pub struct Credits {
    budget_bytes: u64,
    floor_bytes: u64,
    message_bytes: u64,
    /// Streams that want more than they have, first come, first served.
    starving: VecDeque<u64>,
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
    /// Its sender has used most of it, or ran out before it heard of more.
    pressed: bool,
    /// The offset that its sender cannot do without; not above `granted`: it has what it needs.
    wanted: u64,
}

impl Window {
    fn open(self) -> u64 {
        self.granted - self.processed
    }
}

/// The widest window of one stream, as a part of the budget.
const WINDOW_PART: u64 = 8;

impl Credits {
    /// Credits for `budget_bytes`, of which each stream has at least `floor_bytes` while there is room for that. No message is
    /// larger than `message_bytes`.
    #[must_use]
    pub fn new(budget_bytes: u64, floor_bytes: u64, message_bytes: u64) -> Self {
        let floor_bytes = floor_bytes.min(budget_bytes / 4).max(1);
        let (starving, windows) = (VecDeque::new(), BTreeMap::new());
        Self { budget_bytes, floor_bytes, message_bytes, starving, windows, draining: 0, next: 0 }
    }

    /// A stream opens. Returns its name and the offset that its sender may go to.
    pub fn open(&mut self) -> (u64, u64) {
        let stream = self.next;
        self.next += 1;
        let granted = self.floor_bytes.min(self.left());
        self.windows.insert(stream, Window { granted, size: granted, ..Window::default() });
        (stream, granted)
    }

    /// The sender's next message ends at this offset of its stream, and it may not go so far. See [`Credits::next_grant`].
    pub fn wants(&mut self, stream: u64, offset: u64) {
        let Some(window) = self.windows.get_mut(&stream) else { return };
        // Nobody asks who was told of more in time. Where all is processed at once the window is never seen to be used, though
        // its sender waits for news after each part of it.
        window.pressed = true;
        // Whoever says more than one message than it has sent does not tell the truth.
        let most = window.received.saturating_add(self.message_bytes.max(self.floor_bytes));
        window.wanted = window.wanted.max(offset.min(most));
        if window.wanted > window.granted && !self.starving.contains(&stream) {
            self.starving.push_back(stream);
        }
    }

    /// Serves the next stream that starves, if there is room for it: its name, and the offset that its sender may go to now.
    /// To be called until there is none, after each call of [`Credits::wants`], [`Credits::processed`] and [`Credits::close`].
    pub fn next_grant(&mut self) -> Option<(u64, u64)> {
        while let Some(stream) = self.starving.front().copied() {
            let (left, overdrawn) = (self.left(), self.committed_bytes() > self.budget_bytes);
            if let Some(window) = self.windows.get_mut(&stream)
                && window.wanted > window.granted
            {
                if window.wanted - window.granted > left && overdrawn {
                    return None;
                }
                window.granted = window.wanted;
                window.size = window.size.max(self.floor_bytes);
                self.starving.pop_front();
                return Some((stream, self.windows[&stream].granted));
            }
            self.starving.pop_front();
        }
        None
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
        // While somebody starves, nobody has more than what is fair, nor than the least.
        let widest = if self.starving.is_empty() {
            fair.min(budget / WINDOW_PART).max(floor)
        } else {
            fair.min(floor)
        };
        // Twice what it had, if it needed that, and no more than half of what is left beyond the reserve.
        let wanted = if window.pressed { window.size.saturating_mul(2) } else { window.size };
        let room = left.saturating_sub(reserve) / 2;
        let most = (window.open() + room).max(floor.min(window.open() + left));
        let target = wanted.clamp(floor.min(widest), widest).min(most);
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

    /// The bound of [`Credits::committed_bytes`], but for one message.
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

    /// A sender with a message that does not fit into its window gets room for it, and so does one that found none when it
    /// came; though the others would like to have everything.
    #[test]
    fn nobody_starves() {
        for (budget, message) in [(1 << 20, 600 << 10), (1 << 20, 3 << 20)] {
            let mut credits = Credits::new(budget, 64 << 10, message);
            let greedy: Vec<_> = (0..16).map(|_| credits.open()).collect();
            let (late, none) = credits.open();
            assert!(none < 64 << 10, "there is no room left");
            let mut state: BTreeMap<u64, (u64, u64)> = greedy.iter().map(|(s, a)| (*s, (*a, 0))).collect();
            let mut allowed = none;
            credits.wants(late, message);
            credits.wants(late, u64::MAX);
            for _ in 0..200 {
                for (stream, (granted, sent)) in &mut state {
                    let bytes = *granted - *sent;
                    if bytes > 0 {
                        assert!(credits.received(*stream, bytes));
                        *sent = *granted;
                        *granted = credits.processed(*stream, bytes).unwrap_or(*granted);
                    } else {
                        credits.wants(*stream, *sent + (1 << 10));
                    }
                    assert!(credits.committed_bytes() <= budget + message);
                }
                while let Some((stream, offset)) = credits.next_grant() {
                    assert!(credits.committed_bytes() <= budget + message);
                    if stream == late {
                        allowed = offset;
                    } else {
                        state.get_mut(&stream).unwrap().0 = offset;
                    }
                }
            }
            assert_eq!(allowed, message, "it may send its message, and no more than that");
            assert!(credits.received(late, message));
            assert!(credits.processed(late, message).is_some());
        }
    }

    /// T9 in small: whoever sends and however fast, what is received and not processed stays within the budget, together with
    /// what may still come.
    #[test]
    fn the_sum_over_all_senders_stays_within_the_budget() {
        for seed in 0..200 {
            let mut state = seed;
            let budget = 1 << 20;
            let mut credits = Credits::new(budget, 4 << 10, 64 << 10);
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

    /// A receiver that processes at once never sees a window in use; but a sender that has to wait for news says so.
    #[test]
    fn a_window_grows_to_what_is_on_the_way() {
        const MESSAGE: u64 = 16 << 10;
        let mut credits = Credits::new(64 << 20, 256 << 10, 16 << 20);
        let (busy, mut allowed) = credits.open();
        let mut sent = 0;
        for _ in 0..20 {
            // The news of one round trip come at its end.
            let mut news = allowed;
            while allowed - sent >= MESSAGE {
                assert!(credits.received(busy, MESSAGE));
                sent += MESSAGE;
                news = credits.processed(busy, MESSAGE).unwrap_or(news);
            }
            credits.wants(busy, sent + MESSAGE);
            while let Some((_, offset)) = credits.next_grant() {
                news = offset;
            }
            allowed = news;
            assert!(credits.committed_bytes() <= credits.budget_bytes());
        }
        assert!(allowed - sent >= 4 << 20, "it has grown: {}", allowed - sent);
    }

    #[test]
    fn a_window_grows_by_use_and_newcomers_find_their_floor() {
        let floor = 256 << 10;
        let mut credits = Credits::new(64 << 20, floor, 16 << 20);
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
