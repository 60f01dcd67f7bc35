//! The state machine: inputs, deadlines and decisions.

use crate::backoff::{BackoffLimits, FLOOR_MS, attempt_patience_ms};
use crate::state::{Action, State};
use crate::stats::Stats;

/// The default probe interval: a silent peer is probed after 5 s and dropped after 10 s.
pub const DEFAULT_PROBE_INTERVAL_MS: u64 = 5000;

/// Added to the election timer to get the probe interval of a link between Raft replicas, because an election starts
/// up to this much after the timer: a probe never runs out before the election that would make it needless.
pub const ELECTION_RANGE_MS: u64 = 1000;

/// The probe interval of a replica that joins a group: its election timer is not known yet and the first snapshot may
/// take long, so the longest timer there can be (10 minutes) is assumed.
pub const JOINING_PROBE_INTERVAL_MS: u64 = 600_000 + ELECTION_RANGE_MS;

/// When somebody last tried to receive on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastReceive {
    At(u64),
    /// The caller cannot tell, so no probe timer waits for it.
    Always,
}

/// When to connect, probe and drop one connection.
///
/// Every call that depends on time is told `now`, in milliseconds since an origin of the caller's choice. A `now` that
/// is earlier than one already seen counts as the latest one seen: time may stand still, but not go back.
///
/// After each batch of inputs, call [`run`](Self::run) and obey; then sleep until
/// [`next_deadline`](Self::next_deadline) or the next event. The [crate documentation](crate) shows the loop.
#[derive(Clone, Debug)]
pub struct Reconnect {
    /// The latest time ever told. Only grows.
    clock: u64,
    state: State,
    /// When `state` was entered; `enter` sets both.
    entered: u64,
    /// The present back-off. Never above `limits.max_ms()` in `Backoff`; may be below the minimum when it is 0 or
    /// when the minimum was raised after it was set.
    backoff_ms: u64,
    limits: BackoffLimits,
    /// 0: probes are off.
    probe_interval_ms: u64,
    passive: bool,
    /// Tries left; `None` is unlimited. Taken by `enable`, by each drop, and by going active while listening.
    max_tries: Option<u64>,
    /// Each drop takes one while it is above 1, and then costs no back-off.
    free_tries: u64,
    last_receive: LastReceive,
    last_activity: u64,
    last_connected: Option<u64>,
    last_disconnected: Option<u64>,
    created: u64,
    seqno: u64,
    attempts: u64,
    successes: u64,
    /// Of the connections that have ended.
    connected_total_ms: u64,
}

impl Reconnect {
    /// Makes a disabled machine with back-off 1 s to 8 s, probes after 5 s, and unlimited tries.
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self {
            clock: now,
            state: State::Void,
            entered: now,
            backoff_ms: 0,
            limits: BackoffLimits::default(),
            probe_interval_ms: DEFAULT_PROBE_INTERVAL_MS,
            passive: false,
            max_tries: None,
            free_tries: 0,
            last_receive: LastReceive::At(now),
            last_activity: now,
            last_connected: None,
            last_disconnected: None,
            created: now,
            seqno: 0,
            attempts: 0,
            successes: 0,
            connected_total_ms: 0,
        }
    }

    // ---- What the caller decides.

    /// Starts a disabled machine: the first attempt is due at once. Takes a try; without one left, nothing happens.
    pub fn enable(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state == State::Void && self.take_try() {
            self.enter(now, State::Backoff);
            self.backoff_ms = 0;
        }
    }

    /// Stops the machine. The caller closes what is open without being asked to.
    pub fn disable(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state != State::Void {
            self.enter(now, State::Void);
        }
    }

    /// Asks for the connection or attempt to be dropped because the *peer is sick*: the back-off grows, however long
    /// and busy the connection was. Without a connection or attempt nothing happens.
    pub fn force_reconnect(&mut self, now: u64) {
        let now = self.observe(now);
        if matches!(self.state, State::Connecting | State::Active | State::Idle) {
            self.enter(now, State::Reconnect);
        }
    }

    /// Asks for the connection to be dropped although the peer is healthy (it merely no longer leads, say): each of
    /// `remotes` remotes can then be tried once without waiting, and only then the back-off begins at its minimum.
    ///
    /// Use it only for a connection that *had* suited. Where no remote ever suits, free tries at each of them would
    /// make a flood; there [`force_reconnect`](Self::force_reconnect) is right.
    pub fn graceful_reconnect(&mut self, now: u64, remotes: u64) {
        self.reset_backoff(remotes);
        self.force_reconnect(now);
    }

    /// Allows `remotes` attempts in a row without waiting; while connected one more, which pays for the loss of the
    /// present connection.
    pub fn reset_backoff(&mut self, remotes: u64) {
        self.free_tries = remotes.saturating_add(u64::from(self.state.is_connected()));
    }

    // ---- What the caller reports.

    /// An attempt is in progress.
    pub fn connecting(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state != State::Connecting {
            self.enter(now, State::Connecting);
        }
    }

    /// There is a connection: an attempt succeeded, or a peer was accepted.
    pub fn connected(&mut self, now: u64) {
        let now = self.observe(now);
        if !self.state.is_connected() {
            // Through Connecting, so that it counts as an attempt whatever came before.
            self.connecting(now);
            self.enter(now, State::Active);
            self.last_connected = Some(now);
        }
    }

    /// An attempt failed; it counts as one even if `connecting` was never reported.
    pub fn connect_failed(&mut self, now: u64) {
        self.connecting(now);
        self.disconnected(now);
    }

    /// The connection, the attempt or the listening ended, by itself or because [`run`](Self::run) asked.
    pub fn disconnected(&mut self, now: u64) {
        let now = self.observe(now);
        if matches!(self.state, State::Backoff | State::Void) {
            return;
        }
        if self.state.is_connected() {
            self.last_disconnected = Some(now);
        }
        if !self.take_try() {
            self.enter(now, State::Void);
            return;
        }
        if self.free_tries > 1 {
            self.free_tries -= 1;
            self.backoff_ms = 0;
        } else if self.state.is_connected() && (self.passive || self.was_busy()) {
            self.backoff_ms = if self.passive { 0 } else { self.limits.min_ms() };
        } else {
            self.backoff_ms = self.limits.grow(self.backoff_ms);
        }
        self.enter(now, State::Backoff);
    }

    /// Something arrived from the peer, be it one byte.
    pub fn activity(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state == State::Idle {
            self.enter(now, State::Active);
        }
        self.last_activity = now;
    }

    /// Somebody tried to receive, with or without result. A probe timer does not run out before such an attempt was
    /// made at or after its end: a caller that was busy for long does not drop a healthy peer.
    pub fn receive_attempted(&mut self, now: u64) {
        self.last_receive = LastReceive::At(self.observe(now));
    }

    /// Somebody tries to receive all the time: probe timers wait for nothing until the next
    /// [`receive_attempted`](Self::receive_attempted).
    pub fn receive_always(&mut self) {
        self.last_receive = LastReceive::Always;
    }

    /// The caller waits for a peer to connect.
    pub fn listening(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state != State::Listening {
            self.enter(now, State::Listening);
        }
    }

    /// Accepting failed. Ignored while not listening.
    pub fn listen_error(&mut self, now: u64) {
        let now = self.observe(now);
        if self.state == State::Listening {
            self.disconnected(now);
        }
    }

    // ---- Settings.

    /// Limits the back-off; see [`BackoffLimits::new`] for what becomes of odd values. A running back-off above the
    /// new maximum is shortened; one below the new minimum stays until the next drop.
    pub fn set_backoff(&mut self, min_ms: u64, max_ms: u64) {
        self.limits = BackoffLimits::new(min_ms, max_ms);
        if self.state == State::Backoff {
            self.backoff_ms = self.backoff_ms.min(self.limits.max_ms());
        }
    }

    /// Sets the number of attempts that follow each other without back-off; 0 and 1 are the same. It is used up and
    /// never refills by itself.
    pub fn set_free_tries(&mut self, free_tries: u64) {
        self.free_tries = free_tries;
    }

    /// Limits the tries that are left; `None` is unlimited. When none is left, the next drop disables the machine.
    pub fn set_max_tries(&mut self, max_tries: Option<u64>) {
        self.max_tries = max_tries;
    }

    /// Sets after how long a silence a probe is sent, and after how long another one the connection is dropped. 0
    /// turns probes off, other values are raised to a second: too short drops healthy but slow peers, too long leaves
    /// dead connections open. Acts at once.
    pub fn set_probe_interval(&mut self, interval_ms: u64) {
        self.probe_interval_ms = if interval_ms == 0 { 0 } else { interval_ms.max(FLOOR_MS) };
    }

    /// Derives the probe interval from a Raft group's election timer. To be called when a connection is made and
    /// whenever the timer changes.
    pub fn set_probe_for_election_timer(&mut self, election_timer_ms: u64) {
        self.probe_interval_ms = election_timer_ms.saturating_add(ELECTION_RANGE_MS);
    }

    /// Sets the probe interval of a replica that is joining and does not know the election timer.
    pub fn set_probe_for_joining(&mut self) {
        self.probe_interval_ms = JOINING_PROBE_INTERVAL_MS;
    }

    /// Chooses between connecting to the peer and waiting for it to connect.
    ///
    /// Going passive during an attempt returns to `Backoff` without asking for a drop: the caller closes what it has.
    pub fn set_passive(&mut self, now: u64, passive: bool) {
        let now = self.observe(now);
        if self.passive == passive {
            return;
        }
        self.passive = passive;
        let restart = if passive {
            matches!(self.state, State::Connecting | State::Reconnect)
        } else {
            self.state == State::Listening && self.take_try()
        };
        if restart {
            self.enter(now, State::Backoff);
            self.backoff_ms = 0;
        }
    }

    // ---- What the machine decides.

    /// Says what is due now, at most one thing. `None`: nothing before [`next_deadline`](Self::next_deadline).
    ///
    /// Only a probe changes the state; `Connect` and `Disconnect` are said again until the caller reports.
    #[must_use = "the machine relies on being obeyed"]
    pub fn run(&mut self, now: u64) -> Option<Action> {
        let now = self.observe(now);
        if self.next_deadline(now)? > now {
            return None;
        }
        match self.state {
            State::Backoff => Some(Action::Connect),
            State::Connecting | State::Idle | State::Reconnect => Some(Action::Disconnect),
            State::Active => {
                self.enter(now, State::Idle);
                Some(Action::Probe)
            }
            State::Void | State::Listening => None,
        }
    }

    /// When [`run`](Self::run) has something to say, seen from `now`; `None`: never, unless something else happens.
    ///
    /// The answer is at or before `now` exactly when `run(now)` would ask for something.
    #[must_use]
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let now = now.max(self.clock);
        match self.state {
            State::Void | State::Listening => None,
            State::Backoff => Some(self.entered.saturating_add(self.backoff_ms)),
            State::Connecting => Some(self.entered.saturating_add(attempt_patience_ms(self.backoff_ms))),
            State::Reconnect => Some(self.entered),
            State::Active => self.probe_deadline(now, self.last_activity.max(self.entered)),
            State::Idle => self.probe_deadline(now, self.entered),
        }
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whether there is a connection.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.state.is_connected()
    }

    /// Whether the machine is enabled.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.state != State::Void
    }

    /// The present back-off.
    #[must_use]
    pub const fn backoff_ms(&self) -> u64 {
        self.backoff_ms
    }

    /// Odd while connected; see [`Stats::seqno`]. Tells one connection from the next.
    #[must_use]
    pub const fn seqno(&self) -> u64 {
        self.seqno
    }

    /// Everything the machine knows about itself.
    #[must_use]
    pub fn stats(&self, now: u64) -> Stats {
        let now = now.max(self.clock);
        let since_connect_ms = self.last_connected.map(|at| now.saturating_sub(at));
        let running_ms = if self.is_connected() { since_connect_ms.unwrap_or(0) } else { 0 };
        Stats {
            state: self.state,
            state_ms: now.saturating_sub(self.entered),
            backoff_ms: self.backoff_ms,
            seqno: self.seqno,
            attempts: self.attempts,
            successes: self.successes,
            connected_ms: self.connected_total_ms.saturating_add(running_ms),
            since_connect_ms,
            since_disconnect_ms: self.last_disconnected.map(|at| now.saturating_sub(at)),
            created: self.created,
            last_activity: self.last_activity,
            last_connected: self.last_connected,
            last_disconnected: self.last_disconnected,
            max_tries: self.max_tries,
            free_tries: self.free_tries,
            passive: self.passive,
            min_backoff_ms: self.limits.min_ms(),
            max_backoff_ms: self.limits.max_ms(),
            probe_interval_ms: self.probe_interval_ms,
        }
    }

    // ---- The rules they share.

    fn observe(&mut self, now: u64) -> u64 {
        self.clock = self.clock.max(now);
        self.clock
    }

    /// The only way to change the state; counts what the change means.
    fn enter(&mut self, now: u64, to: State) {
        if self.state == State::Connecting {
            self.attempts = self.attempts.saturating_add(1);
            if to == State::Active {
                self.successes = self.successes.saturating_add(1);
            }
        }
        if self.state.is_connected() != to.is_connected() {
            if self.state.is_connected() {
                let since = self.last_connected.unwrap_or(now);
                self.connected_total_ms = self.connected_total_ms.saturating_add(now.saturating_sub(since));
            }
            self.seqno = self.seqno.wrapping_add(1);
        }
        self.state = to;
        self.entered = now;
    }

    fn take_try(&mut self) -> bool {
        match &mut self.max_tries {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// Whether the present connection was used for at least as long as the back-off that preceded it. It is about
    /// activity, not life: an hour without a byte is no sign of health. Only asked while connected, so both times are
    /// of this connection, or the activity is older and the answer is no.
    fn was_busy(&self) -> bool {
        self.last_connected
            .and_then(|at| at.checked_add(self.backoff_ms))
            .is_some_and(|busy_at| self.last_activity >= busy_at)
    }

    /// When the probe timer that started at `since` runs out: once it has, only an attempt to receive made since
    /// then lets it count; before that, the caller is asked to come back soon and to have tried.
    fn probe_deadline(&self, now: u64, since: u64) -> Option<u64> {
        if self.probe_interval_ms == 0 {
            return None;
        }
        let end = since.saturating_add(self.probe_interval_ms);
        let tried = match self.last_receive {
            LastReceive::Always => true,
            LastReceive::At(at) => at >= end,
        };
        // At the very end of time there is no "soon".
        if now < end || tried { Some(end) } else { now.checked_add(1) }
    }
}
