//! The loop that drives a machine on a tokio runtime (feature `tokio`).
//!
//! The [`Driver`] owns *when* to connect, probe and drop; a [`Connector`] and its [`Connection`]s know *how*. The
//! driver keeps at most one connection or attempt; it drops the old one before it starts the next. Time is tokio's, so
//! a test with paused time decides how fast it passes.
//!
//! ```text
//!             +-- Driver::run -----------------------------+
//!  Handle --> | report what happened -> machine.run -> obey| --> Connector::connect, Connection::probe, drop
//!             | sleep until its deadline, or an event      | <-- the attempt's end, Connection::event
//!             +--------------------------------------------+
//! ```
//!
//! ```
//! use std::convert::Infallible;
//! use pontoon_reconnect::driver::{Connection, Driver, Event};
//!
//! /// Says something once, then breaks.
//! struct Wire(bool);
//! impl Connection for Wire {
//!     async fn event(&mut self) -> Event {
//!         if std::mem::replace(&mut self.0, true) { Event::Closed("end of file".into()) } else { Event::Activity }
//!     }
//!     fn probe(&mut self) {}
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! let (driver, handle) = Driver::new(|| async { Ok::<_, Infallible>(Wire(false)) });
//! handle.set_max_tries(Some(3));
//! driver.run_until_disabled().await;
//! assert_eq!(handle.stats().successes, 3);
//! assert_eq!(handle.last_error().as_deref(), Some("end of file"));
//! # });
//! ```

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::machine::Reconnect;
use crate::state::{Action, State};
use crate::stats::Stats;

/// An attempt in progress; dropping it abandons the attempt.
pub type Attempt<C, E> = Pin<Box<dyn Future<Output = Result<C, E>> + Send>>;

/// Makes connections. A closure that returns a future is one.
pub trait Connector: Send {
    /// What an attempt leads to.
    type Connection: Connection;
    /// Why an attempt failed; shown in [`Handle::last_error`].
    type Error: fmt::Display + Send;

    /// Starts an attempt. Called once for each, so this is where the next of several remotes is chosen. The driver
    /// limits the time it takes.
    fn connect(&mut self) -> Attempt<Self::Connection, Self::Error>;
}

impl<F, A, C, E> Connector for F
where
    F: FnMut() -> A + Send,
    A: Future<Output = Result<C, E>> + Send + 'static,
    C: Connection,
    E: fmt::Display + Send,
{
    type Connection = C;
    type Error = E;

    fn connect(&mut self) -> Attempt<C, E> {
        Box::pin(self())
    }
}

/// One connection, as far as its life is concerned. It is closed by being dropped.
pub trait Connection: Send {
    /// Waits for the next sign of life or of its end. It must read what the peer sends, or learn at once from whoever
    /// does: a probe is only held against a peer after `event` had its chance to report.
    ///
    /// # Cancel safety
    /// Must be cancel safe: the driver drops the future and calls again whenever something else happens.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// Sends something that the peer must answer, without waiting; the answer is an [`Event::Activity`].
    fn probe(&mut self);
}

/// What a connection reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something arrived from the peer.
    Activity,
    /// The connection is no more, and why.
    Closed(String),
    /// It works, and its peer is healthy but no longer the right one: drop it, and let this many remotes be tried
    /// without waiting. Only for a connection that had suited.
    Unsuitable {
        /// How many remotes there are.
        remotes: u64,
    },
    /// The peer talks nonsense or refuses: drop it and wait as after a failure; and why.
    Sick(String),
}

/// Spreads clients that lost their connections at the same moment: each wait becomes longer by a random part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter {
    /// The largest part, in percent of the back-off. 0 is none; above 100 clients wait longer than they say.
    pub percent: u32,
    /// Different for each client.
    pub seed: u64,
}

/// The loop; see the [module documentation](self).
pub struct Driver<C: Connector> {
    connector: C,
    shared: Arc<Shared>,
    jitter: Option<Jitter>,
    /// The jitter's answer: no attempt before this moment, in milliseconds since the origin.
    not_before: u64,
}

impl<C: Connector> fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("stats", &self.shared.stats()).field("jitter", &self.jitter).finish()
    }
}

/// Steers a driver and looks at it, from any thread. It does not keep the driver alive, nor end it when dropped.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("stats", &self.stats())
            .field("last_error", &self.last_error())
            .finish()
    }
}

/// What the driver and its handles share. The lock is never held across an await.
struct Shared {
    origin: Instant,
    inner: Mutex<Inner>,
    /// Tells the loop that a handle changed something.
    changed: Notify,
    state: watch::Sender<State>,
}

struct Inner {
    machine: Reconnect,
    last_error: Option<Arc<str>>,
}

enum Phase<C: Connector> {
    Closed,
    Attempting(Attempt<C::Connection, C::Error>),
    Open(C::Connection),
}

enum Happened<C: Connector> {
    Attempted(Result<C::Connection, C::Error>),
    Event(Event),
}

impl<C: Connector> Phase<C> {
    /// Cancel safe: an attempt goes on where it was, an event is not lost.
    async fn next(&mut self) -> Happened<C> {
        match self {
            Self::Closed => pending().await,
            Self::Attempting(attempt) => Happened::Attempted(attempt.await),
            Self::Open(connection) => Happened::Event(connection.event().await),
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave the machine in a state that is none.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> Stats {
        let now = self.now();
        self.lock().machine.stats(now)
    }

    fn update(&self, change: impl FnOnce(&mut Inner, u64)) {
        let now = self.now();
        let mut inner = self.lock();
        change(&mut inner, now);
        self.publish(&inner);
        drop(inner);
        self.changed.notify_one();
    }

    fn publish(&self, inner: &Inner) {
        let state = inner.machine.state();
        self.state.send_if_modified(|shown| std::mem::replace(shown, state) != state);
    }
}

impl Handle {
    /// Starts a disabled machine again.
    pub fn enable(&self) {
        self.shared.update(|inner, now| inner.machine.enable(now));
    }

    /// Drops what is open and stays quiet until [`enable`](Self::enable).
    pub fn disable(&self) {
        self.shared.update(|inner, now| inner.machine.disable(now));
    }

    /// See [`Reconnect::force_reconnect`]; `reason` is kept as the last error.
    pub fn force_reconnect(&self, reason: &str) {
        self.shared.update(|inner, now| {
            inner.machine.force_reconnect(now);
            inner.last_error = Some(reason.into());
        });
    }

    /// See [`Reconnect::graceful_reconnect`].
    pub fn graceful_reconnect(&self, remotes: u64) {
        self.shared.update(|inner, now| inner.machine.graceful_reconnect(now, remotes));
    }

    /// See [`Reconnect::set_backoff`].
    pub fn set_backoff(&self, min_ms: u64, max_ms: u64) {
        self.shared.update(|inner, _| inner.machine.set_backoff(min_ms, max_ms));
    }

    /// See [`Reconnect::set_free_tries`].
    pub fn set_free_tries(&self, free_tries: u64) {
        self.shared.update(|inner, _| inner.machine.set_free_tries(free_tries));
    }

    /// See [`Reconnect::set_max_tries`].
    pub fn set_max_tries(&self, max_tries: Option<u64>) {
        self.shared.update(|inner, _| inner.machine.set_max_tries(max_tries));
    }

    /// See [`Reconnect::set_probe_interval`].
    pub fn set_probe_interval(&self, interval_ms: u64) {
        self.shared.update(|inner, _| inner.machine.set_probe_interval(interval_ms));
    }

    /// See [`Reconnect::set_probe_for_election_timer`].
    pub fn set_probe_for_election_timer(&self, election_timer_ms: u64) {
        self.shared.update(|inner, _| inner.machine.set_probe_for_election_timer(election_timer_ms));
    }

    /// See [`Reconnect::set_probe_for_joining`].
    pub fn set_probe_for_joining(&self) {
        self.shared.update(|inner, _| inner.machine.set_probe_for_joining());
    }

    /// The machine's statistics at this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Why the latest attempt or connection ended; kept while later ones succeed.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<str>> {
        self.shared.lock().last_error.clone()
    }

    /// The present state, and its changes. Short states may be missed.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }
}

impl<C: Connector> Driver<C> {
    /// Makes a driver, and the handle by which it is set up and steered. Nothing happens before it is run.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time.
    pub fn new(connector: C) -> (Self, Handle) {
        let shared = Arc::new(Shared {
            origin: Instant::now(),
            inner: Mutex::new(Inner { machine: Reconnect::new(0), last_error: None }),
            changed: Notify::new(),
            state: watch::Sender::new(State::Void),
        });
        let handle = Handle { shared: Arc::clone(&shared) };
        (Self { connector, shared, jitter: None, not_before: 0 }, handle)
    }

    /// Adds a random part to each wait. Without it there is none.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = Some(jitter);
        self
    }

    /// Enables the machine and drives it for ever.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection or the attempt, and that is the end.
    pub async fn run(mut self) {
        self.shared.update(|inner, now| inner.machine.enable(now));
        let mut phase = Phase::Closed;
        loop {
            self.turn(&mut phase).await;
        }
    }

    /// As [`run`](Self::run), until the machine is disabled: by [`Handle::disable`], or because no tries are left.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    pub async fn run_until_disabled(mut self) {
        self.shared.update(|inner, now| inner.machine.enable(now));
        let mut phase = Phase::Closed;
        while self.shared.lock().machine.is_enabled() {
            self.turn(&mut phase).await;
        }
    }

    /// One round: ask, obey, wait, report.
    async fn turn(&mut self, phase: &mut Phase<C>) {
        let deadline = self.obey(phase);
        let sleep = async {
            match deadline {
                // What is too far away for a timer is never.
                Some(at) => match self.shared.origin.checked_add(Duration::from_millis(at)) {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                },
                None => pending().await,
            }
        };
        let shared = Arc::clone(&self.shared);
        let mut received_at = None;
        let happened = {
            let mut next = pin!(phase.next());
            let next = poll_fn(|context| {
                // Taken before it is tried: an answer that comes while we are held up must not count as late.
                received_at = Some(shared.now());
                next.as_mut().poll(context)
            });
            tokio::select! {
                biased;
                happened = next => Some(happened),
                () = shared.changed.notified() => None,
                () = sleep => None,
            }
        };
        let now = shared.now();
        if let Some(received_at) = received_at {
            shared.lock().machine.receive_attempted(received_at);
        }
        let state = shared.lock().machine.state();
        match happened {
            None => {}
            // A handle was faster and disabled the machine: what came too late is dropped.
            Some(Happened::Attempted(_)) if state != State::Connecting => *phase = Phase::Closed,
            Some(Happened::Event(_)) if !state.is_connected() => {}
            Some(Happened::Attempted(Ok(connection))) => {
                *phase = Phase::Open(connection);
                self.report(now, None, Reconnect::connected);
            }
            Some(Happened::Attempted(Err(error))) => {
                *phase = Phase::Closed;
                self.report(now, Some(error.to_string()), Reconnect::connect_failed);
            }
            Some(Happened::Event(Event::Activity)) => self.report(now, None, Reconnect::activity),
            Some(Happened::Event(Event::Closed(reason))) => {
                *phase = Phase::Closed;
                self.report(now, Some(reason), Reconnect::disconnected);
            }
            Some(Happened::Event(Event::Unsuitable { remotes })) => {
                self.report(now, Some("the remote no longer suits".to_owned()), |machine, now| {
                    machine.graceful_reconnect(now, remotes);
                });
            }
            Some(Happened::Event(Event::Sick(reason))) => {
                self.report(now, Some(reason), Reconnect::force_reconnect);
            }
        }
    }

    /// Asks the machine until it has nothing more to say, and does it; returns when to ask again.
    fn obey(&mut self, phase: &mut Phase<C>) -> Option<u64> {
        loop {
            let shared = Arc::clone(&self.shared);
            let now = shared.now();
            let mut inner = shared.lock();
            // A handle may have disabled the machine, and enabled it again, behind our back.
            if matches!(inner.machine.state(), State::Void | State::Backoff) {
                *phase = Phase::Closed;
            }
            if inner.machine.state() == State::Void {
                self.not_before = 0;
            }
            if inner.machine.state() == State::Backoff && now < self.not_before {
                return Some(self.not_before.max(inner.machine.next_deadline(now)?));
            }
            match inner.machine.run(now) {
                None => {
                    let deadline = inner.machine.next_deadline(now);
                    // Running may have changed nothing but the machine's idea of the time.
                    shared.publish(&inner);
                    return deadline;
                }
                Some(Action::Connect) => {
                    inner.machine.connecting(now);
                    shared.publish(&inner);
                    drop(inner);
                    *phase = Phase::Attempting(self.connector.connect());
                }
                Some(Action::Disconnect) => {
                    let stats = inner.machine.stats(now);
                    let reason = match stats.state {
                        State::Connecting => Some(format!("no connection within {} ms", stats.state_ms)),
                        State::Idle => Some(format!("no answer to a probe within {} ms", stats.state_ms)),
                        // Whoever asked has said why.
                        _ => None,
                    };
                    drop(inner);
                    self.report(now, reason, Reconnect::disconnected);
                    *phase = Phase::Closed;
                }
                Some(Action::Probe) => {
                    shared.publish(&inner);
                    drop(inner);
                    if let Phase::Open(connection) = phase {
                        connection.probe();
                    }
                }
            }
        }
    }

    /// Tells the machine, keeps the reason, and draws the jitter of the wait that may have begun.
    fn report(&mut self, now: u64, reason: Option<String>, fact: impl FnOnce(&mut Reconnect, u64)) {
        let mut inner = self.shared.lock();
        let waited = inner.machine.state() == State::Backoff;
        fact(&mut inner.machine, now);
        if let Some(reason) = reason {
            inner.last_error = Some(reason.into());
        }
        if let (State::Backoff, false, Some(jitter)) = (inner.machine.state(), waited, &mut self.jitter) {
            let backoff_ms = inner.machine.backoff_ms();
            self.not_before = now.saturating_add(backoff_ms).saturating_add(jitter.draw(backoff_ms));
        }
        self.shared.publish(&inner);
    }
}

impl Jitter {
    /// A random part of `backoff_ms`; SplitMix64, of which the seed is the state.
    fn draw(&mut self, backoff_ms: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let most = u128::from(backoff_ms) * u128::from(self.percent) / 100;
        // Multiplying and taking the upper half spreads evenly over [0, most].
        u64::try_from((u128::from(z) * (most.min(u128::from(u64::MAX)) + 1)) >> 64).unwrap_or(u64::MAX)
    }
}
