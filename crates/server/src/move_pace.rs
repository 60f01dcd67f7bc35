//! How fast replicas and leaderships move: as fast as clients hardly notice. Each move costs the stores of its group some disk
//! syncs, and its clients a moment; many at once cost everybody. So a store takes its next step only some time after the last
//! one, and that time follows what the commands of its clients take: it grows as soon as they take longer than usual.

use std::time::Duration;

use pontoon_flow::Usual;

/// Judged over at least this long ...
const JUDGE_MS: u64 = 100;
/// ... and over so many commands, for fewer say little ...
const JUDGE_COMMANDS: u64 = 32;
/// ... or over this long when there are few.
const JUDGE_MS_MAX: u64 = 1_000;
/// From a time of nothing between two steps it grows to this at first.
const PAUSE_MS_MIN: u64 = 20;
/// However busy the clients are, it goes on: a store leads some hundred groups, and whoever adds a store waits for it.
const PAUSE_MS_MAX: u64 = 1_000;

/// Of one store. See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MovePace {
    /// Between two steps.
    pause_ms: u64,
    stepped_at: Option<u64>,
    judged_at: u64,
    /// Since then something moved.
    working: bool,
    /// What the node had counted then: commands that were answered, and the microseconds they took together.
    counted: (u64, u64),
    usual: Usual,
}

impl MovePace {
    /// It is `now`, and the node has counted so much since it started.
    pub(crate) fn pass(&mut self, now: u64, counted: (u64, u64), moving: bool) {
        self.working |= moving;
        let commands = counted.0.saturating_sub(self.counted.0);
        let micros = counted.1.saturating_sub(self.counted.1);
        let judged = now.saturating_sub(self.judged_at);
        if judged < JUDGE_MS || (judged < JUDGE_MS_MAX && commands < JUDGE_COMMANDS) {
            return;
        }
        self.pause_ms = if self.usual.judge(commands, micros, self.working) {
            (self.pause_ms * 2).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX)
        } else {
            self.pause_ms - self.pause_ms.div_ceil(8)
        };
        (self.judged_at, self.counted, self.working) = (now, counted, false);
    }

    /// Whether the next step may be taken now.
    pub(crate) fn may_step(&self, now: u64) -> bool {
        self.wait(now).is_zero()
    }

    /// It was taken.
    pub(crate) fn stepped(&mut self, now: u64) {
        self.stepped_at = Some(now);
    }

    /// When to look again while something waits for its turn.
    pub(crate) fn wait(&self, now: u64) -> Duration {
        let at = self.stepped_at.map_or(now, |at| at + self.pause_ms);
        Duration::from_millis(at.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays some seconds in which a command takes `took` microseconds; returns how many steps were taken.
    fn play(
        pace: &mut MovePace,
        from: u64,
        seconds: u64,
        counted: &mut (u64, u64),
        took: u64,
        moves: bool,
    ) -> u64 {
        let mut steps = 0;
        for now in (from..from + seconds * 1000).step_by(10) {
            counted.0 += 5;
            counted.1 += 5 * took;
            pace.pass(now, *counted, moves);
            if moves && pace.may_step(now) {
                pace.stepped(now);
                steps += 1;
            }
        }
        steps
    }

    #[test]
    fn steps_are_rare_while_clients_notice_and_never_end() {
        let (mut pace, mut counted) = (MovePace::default(), (0, 0));
        play(&mut pace, 0, 5, &mut counted, 2_000, false);
        let quick = play(&mut pace, 5_000, 5, &mut counted, 2_100, true);
        assert!(quick >= 490, "{quick}: what nobody notices waits for nothing");
        let slow = play(&mut pace, 10_000, 20, &mut counted, 6_000, true);
        assert!((20..=60).contains(&slow), "{slow}");
        let again = play(&mut pace, 30_000, 10, &mut counted, 2_000, true);
        assert!(again >= 300, "{again}: soon as fast as before");
    }

    #[test]
    fn without_clients_nothing_waits() {
        let mut pace = MovePace::default();
        for now in 0..1_000 {
            pace.pass(now, (0, 0), true);
            assert!(pace.may_step(now));
            pace.stepped(now);
        }
    }
}
