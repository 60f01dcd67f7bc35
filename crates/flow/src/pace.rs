//! How fast elastic work goes: as fast as regular work does not suffer from it.
//!
//! Tokens tell what a destination can take. They do not tell what else the work costs: catching up and background jobs use
//! processors and disks, of the leader's store too, that regular commands wait for. So they share a pace, in bytes a second,
//! that follows what regular commands take from their proposal to their answer: it begins low, grows while they take as long as
//! usual, and shrinks as soon as they take longer. Below a floor it never goes, which is above what the queues grow by: a
//! follower that lags catches up, however busy the store is.

use crate::usual::Usual;

/// Judged over at least this long, in milliseconds.
const JUDGE_MS: u64 = 100;
/// And over so many regular commands, for fewer say little ...
const JUDGE_COMMANDS: u64 = 32;
/// ... or over this long, in milliseconds, when there are few.
const JUDGE_MS_MAX: u64 = 1_000;
/// The least, in bytes a second, beyond five quarters of what the queues grow by.
const RATE_MIN: u64 = 1 << 20;
/// The most: more than any disk takes.
const RATE_MAX: u64 = 1 << 30;
/// What was not used may be used later for so long, in milliseconds: many small pieces disturb less than few large ones.
const BURST_MS: u64 = 20;
/// The least burst, in bytes: one entry in the usual case.
const BURST_BYTES_MIN: u64 = 32 << 10;
/// How far ahead a host should look again while somebody waits, in milliseconds.
const STEP_MS: u64 = 5;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    rate: u64,
    /// Where it was good the last time, in bytes a second: it grows fast up to here, and slowly from here on.
    good: u64,
    /// What may be spent now; negative after more than there was.
    allowance: i64,
    refilled_at: u64,
    judged_at: u64,
    /// Since `judged_at`: regular commands that were answered, and what they took together, in microseconds.
    commands: u64,
    micros: u64,
    /// Since then: what was spent, and what was queued anew, in bytes.
    spent: u64,
    queued: u64,
    /// Since then somebody had to wait for it.
    short: bool,
    /// What regular commands usually take.
    usual: Usual,
}

impl Default for Pace {
    fn default() -> Self {
        let mut pace = Self {
            rate: RATE_MIN,
            good: RATE_MAX,
            allowance: 0,
            refilled_at: 0,
            judged_at: 0,
            commands: 0,
            micros: 0,
            spent: 0,
            queued: 0,
            short: false,
            usual: Usual::default(),
        };
        pace.allowance = pace.burst();
        pace
    }
}

impl Pace {
    fn burst(&self) -> i64 {
        i64::try_from((self.rate / 1000 * BURST_MS).max(BURST_BYTES_MIN)).unwrap_or(i64::MAX)
    }

    /// The pace, in bytes a second.
    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    /// What may be spent now.
    pub(crate) fn allowance(&self) -> u64 {
        u64::try_from(self.allowance).unwrap_or(0)
    }

    /// Elastic work begins, or is granted, that takes so much.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.spent = self.spent.saturating_add(bytes);
        self.allowance = self.allowance.saturating_sub_unsigned(bytes);
    }

    /// It was not used.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.spent = self.spent.saturating_sub(bytes);
        self.allowance = self.allowance.saturating_add_unsigned(bytes).min(self.burst());
    }

    /// Entries joined send queues.
    pub(crate) fn queued(&mut self, bytes: u64) {
        self.queued = self.queued.saturating_add(bytes);
    }

    /// Somebody waits for nothing else.
    pub(crate) fn is_short(&mut self) {
        self.short = true;
    }

    /// When to look again while somebody waits for it.
    pub(crate) fn next_pass(&self) -> u64 {
        self.refilled_at + STEP_MS
    }

    /// It is `now`, and since the last time so many regular commands were answered, which took so long together.
    pub(crate) fn pass(&mut self, now: u64, commands: u64, micros: u64) {
        self.commands = self.commands.saturating_add(commands);
        self.micros = self.micros.saturating_add(micros);
        let passed = now.saturating_sub(self.refilled_at);
        if passed > 0 {
            self.refilled_at = now;
            let more = u128::from(self.rate) * u128::from(passed) / 1000;
            self.allowance =
                self.allowance.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(self.burst());
        }
        let judged = now.saturating_sub(self.judged_at);
        if judged >= JUDGE_MS_MAX || (judged >= JUDGE_MS && self.commands >= JUDGE_COMMANDS) {
            self.judge(judged);
            self.judged_at = now;
        }
    }

    fn judge(&mut self, judged_ms: u64) {
        let disturbed = self.usual.judge(self.commands, self.micros, self.spent > 0);
        let rate = if disturbed {
            self.good = self.rate / 4 * 3;
            self.good
        } else if self.short {
            self.rate + self.rate / if self.rate < self.good { 8 } else { 64 }
        } else if self.spent == 0 && self.rate > RATE_MIN {
            // What was good then need not be so when there is something to do again.
            self.good = RATE_MAX;
            self.rate - (self.rate - RATE_MIN) / 8
        } else {
            self.rate
        };
        let growth = self.queued.saturating_mul(1000) / judged_ms.max(1);
        self.rate = rate.clamp((RATE_MIN + growth.saturating_add(growth / 4)).min(RATE_MAX), RATE_MAX);
        (self.commands, self.micros, self.spent, self.queued, self.short) = (0, 0, 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store on which a regular command takes a millisecond, and longer with elastic work beyond what there is room for.
    /// Returns the mean pace and the mean time of the last ten seconds.
    fn play(pace: &mut Pace, from: u64, seconds: u64, room: u64, elastic: bool, growth: u64) -> (u64, u64) {
        let (mut spent, mut micros, mut recent) = (0, 0, 0u64);
        let steps = seconds * 200;
        for step in 0..steps {
            let now = from + step * 5;
            // What is done now and in the last tenth of a second.
            let load = recent * 10;
            let took = 1_000 + load.saturating_sub(room) / 1_000;
            pace.pass(now, 10, 10 * took);
            recent -= recent / 20;
            if elastic {
                let bytes = pace.allowance();
                pace.spend(bytes);
                pace.is_short();
                pace.queued(growth / 200);
                recent += bytes;
                if step + 2_000 >= steps {
                    spent += bytes;
                    micros += took;
                }
            }
        }
        (spent / 10, micros / 2_000)
    }

    #[test]
    fn it_uses_the_room_that_there_is_and_regular_commands_hardly_notice() {
        for room in [8 << 20, 50 << 20, 200 << 20] {
            let mut pace = Pace::default();
            play(&mut pace, 0, 5, room, false, 0);
            let (rate, took) = play(&mut pace, 5_000, 40, room, true, 0);
            assert!(rate > room / 2 && rate < room + room / 4, "{rate} of {room}");
            assert!(took < 1_600, "{took} us with room for {room}");
        }
    }

    #[test]
    fn without_regular_commands_it_grows_without_a_bound() {
        let mut pace = Pace::default();
        for now in (0..60_000).step_by(5) {
            pace.pass(now, 0, 0);
            pace.spend(pace.allowance());
            pace.is_short();
        }
        assert_eq!(pace.rate(), RATE_MAX);
        for now in (60_000..180_000).step_by(5) {
            pace.pass(now, 0, 0);
        }
        assert!(pace.rate() < 2 * RATE_MIN, "what was once fast need not be so later: {}", pace.rate());
    }

    #[test]
    fn a_queue_is_fed_faster_than_it_grows_even_if_that_disturbs() {
        let mut pace = Pace::default();
        play(&mut pace, 0, 5, 0, false, 0);
        let growth = 10 << 20;
        let (rate, took) = play(&mut pace, 5_000, 30, 1 << 20, true, growth);
        assert!(rate >= growth + growth / 5, "{rate}");
        assert!(took > 2_000, "the test is about a store that suffers: {took} us");
    }

    #[test]
    fn commands_that_are_stuck_do_not_count_as_none() {
        let mut pace = Pace::default();
        play(&mut pace, 0, 20, 200 << 20, true, 0);
        pace.pass(21_000, 0, 0);
        let before = pace.rate();
        pace.is_short();
        pace.pass(22_000, 0, 0);
        assert!(pace.rate() < before, "{} and {before}", pace.rate());
    }

    #[test]
    fn what_is_spent_follows_the_rate_and_debts_are_paid() {
        let mut pace = Pace::default();
        pace.pass(1_000, 0, 0);
        assert_eq!(pace.allowance(), BURST_BYTES_MIN);
        pace.spend(1 << 20);
        assert_eq!(pace.allowance(), 0);
        pace.pass(1_100, 0, 0);
        assert_eq!(pace.allowance(), 0, "a mebibyte takes a second");
        pace.give_back(1 << 20);
        assert!(pace.allowance() > 0);
    }
}
