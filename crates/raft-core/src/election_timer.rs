//! The election timer T: one for the whole group, changed through the log and kept in snapshots (as in ovsdb), and the deadlines
//! that are drawn from it (thesis 3.4).
//!
//! A change is in force at each replica once that knows it to be committed. It at most doubles the timer, so that a leader which
//! is ahead of its followers does not outlast their patience, and one at a time may be under way.

use crate::config::{ELECTION_TIMER_MS_DEFAULT, ELECTION_TIMER_MS_MAX, ELECTION_TIMER_MS_MIN, PRIORITY_MAX};
use crate::error::TimerError;
use crate::raft::Raft;
use crate::types::{EntryId, LogIndex, Payload};

impl Raft {
    pub(crate) fn propose_election_timer(
        &mut self,
        id: EntryId,
        millis: u64,
    ) -> Result<LogIndex, TimerError> {
        self.may_propose()?;
        let (min, max) = (ELECTION_TIMER_MS_MIN, ELECTION_TIMER_MS_MAX);
        if !(min..=max).contains(&millis) {
            return Err(TimerError::OutOfRange { millis, min, max });
        }
        let current = self.election_timer_ms;
        if millis > current.saturating_mul(2) {
            return Err(TimerError::TooFast { current, millis });
        }
        if self.log.pending_timer().is_some() {
            return Err(TimerError::Pending);
        }
        self.wake();
        Ok(self.append_own(id, Payload::ElectionTimer { millis }))
    }

    /// Draws the time of the next election: within `[T, 1.5 T)`, in a slot of its own for each voter so that two seldom
    /// start together. The slots turn with the term, so that no store leads everything.
    pub(crate) fn reset_election_deadline(&mut self) {
        let timer = self.election_timer_ms;
        let voters = &self.log.configuration().voters;
        let n = (voters.len() as u64).max(1);
        let place = voters.iter().position(|id| *id == self.id()).unwrap_or(0) as u64;
        let slot = (place + self.term().0 % n) % n;
        let width = timer / 2;
        let start = width * slot / n;
        let jitter = self.rng.between(start, (width * (slot + 1) / n).max(start + 1));
        let reluctance = timer * u64::from(PRIORITY_MAX - self.config.priority.min(PRIORITY_MAX)) / 100;
        // Who is in doubt can only win if everybody agrees: the others have their turn first.
        let modesty = if self.doubt.is_some() { timer } else { 0 };
        self.election_deadline = self.now.saturating_add(timer + jitter + reluctance + modesty);
    }

    /// The next try comes soon: nobody leads, and waiting a whole timer would only prolong that.
    pub(crate) fn retry_election_soon(&mut self) {
        if self.doubt.is_some() {
            return self.reset_election_deadline();
        }
        let timer = self.election_timer_ms;
        self.election_deadline = self.now.saturating_add(self.rng.between(timer / 10, timer / 2));
    }

    /// Follows the committed election timer.
    pub(crate) fn refresh_election_timer(&mut self) {
        let committed =
            [self.log.election_timer_ms(), self.config.election_timer_ms, ELECTION_TIMER_MS_DEFAULT];
        let timer = committed.into_iter().find(|millis| *millis > 0).unwrap_or(ELECTION_TIMER_MS_DEFAULT);
        // A snapshot's word is foreign data; a timer out of bounds must not overflow the arithmetic on deadlines.
        let timer = timer.clamp(10, ELECTION_TIMER_MS_MAX);
        if timer != self.election_timer_ms {
            self.election_timer_ms = timer;
            self.reset_election_deadline();
        }
    }
}
