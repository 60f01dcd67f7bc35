//! One lane to one store: a task that runs the reconnect machine, owns the connection and reports losses.

use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::types::StoreId;
use pontoon_reconnect::{Action, Reconnect, State};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::acceptor::Acceptor;
use crate::api::{ProposalOutcome, ProposalReply};
use crate::batch::{FrameLimits, FrameStream};
use crate::dial::{self, DialError, Session};
use crate::log_limit::LogLimit;
use crate::send_queue::{Held, SendQueue};
use crate::status::{Direction, Lane, LinkErrorKind, LinkStatus};
use crate::transport::Shared;

/// Attempts that follow each other without back-off when a session that worked has ended, or when the peer is heard
/// from again: at [`ATTEMPT_PAUSE`] they cover the time in which a restarted process is back.
const FREE_TRIES: u64 = 10;

/// Between the starts of two attempts, back-off or not: free tries at a port that refuses would otherwise all be
/// spent within a millisecond.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(150);

/// A session that lasted this long has worked; a shorter one does not earn new free tries.
const SESSION_WORKED: Duration = Duration::from_secs(1);

/// Waking up this much too late means that the process stood still; what arrived meanwhile must be read before a
/// probe counts as unanswered.
const OVERSLEPT: Duration = Duration::from_millis(200);

/// What the rest of the crate wants of the lane's task.
#[derive(Debug, Default)]
struct Requests {
    address: Option<String>,
    /// The store has said hello; this is its incarnation.
    heard: Option<u64>,
    /// A second process says that it is the store.
    challenge: Option<Challenge>,
}

/// Two processes with one store id: is the first one alive?
#[derive(Clone, Copy, Debug)]
pub(crate) struct Challenge {
    /// The incarnation that is connected.
    pub(crate) first: u64,
    /// The incarnation that came later.
    pub(crate) second: u64,
}

/// What the task last said about itself.
#[derive(Debug)]
struct Told {
    address: String,
    name: String,
    connected: bool,
    since: Instant,
    attempts: u64,
    successes: u64,
    disconnections: u64,
    backoff: Duration,
    probe_interval: Duration,
    /// All streams before the present one.
    connected_before: Duration,
    last_error: Option<(LinkErrorKind, String)>,
}

/// The shared part of one outbound lane.
#[derive(Debug)]
pub(crate) struct OutboundLane {
    pub(crate) store: StoreId,
    pub(crate) lane: Lane,
    pub(crate) queue: Arc<SendQueue>,
    notify: Arc<Notify>,
    requests: Mutex<Requests>,
    told: Mutex<Told>,
    log_failed: LogLimit,
    log_down: LogLimit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OutboundLane {
    pub(crate) fn new(shared: &Shared, store: StoreId, lane: Lane, address: String) -> Self {
        let notify = Arc::new(Notify::new());
        Self {
            store,
            lane,
            queue: Arc::new(SendQueue::new(Arc::clone(&shared.queue_limits), Arc::clone(&notify))),
            notify,
            requests: Mutex::default(),
            told: Mutex::new(Told {
                address,
                name: String::new(),
                connected: false,
                since: Instant::now(),
                attempts: 0,
                successes: 0,
                disconnections: 0,
                backoff: Duration::ZERO,
                probe_interval: Duration::ZERO,
                connected_before: Duration::ZERO,
                last_error: None,
            }),
            log_failed: LogLimit::default(),
            log_down: LogLimit::default(),
        }
    }

    /// The peer is to be found elsewhere.
    pub(crate) fn set_address(&self, address: String) {
        lock(&self.requests).address = Some(address);
        self.notify.notify_one();
    }

    /// The peer has greeted us, so it is alive.
    pub(crate) fn heard(&self, incarnation: u64) {
        lock(&self.requests).heard = Some(incarnation);
        self.notify.notify_one();
    }

    /// Finds out whether the process that this lane leads to is alive after a second one has come.
    pub(crate) fn challenge(&self, challenge: Challenge) {
        lock(&self.requests).challenge = Some(challenge);
        self.notify.notify_one();
    }

    pub(crate) fn status(&self) -> LinkStatus {
        let Held {
            messages: queued_messages,
            bytes: queued_bytes,
            in_flight_bytes,
            large_bytes,
            credit_bytes,
            waits_for,
            counters,
        } = self.queue.status();
        let told = lock(&self.told);
        LinkStatus {
            store: self.store,
            name: told.name.clone(),
            address: told.address.clone(),
            direction: Direction::Outbound,
            lane: self.lane,
            connected: told.connected,
            since: told.since.elapsed(),
            connected_total: told.connected_before
                + if told.connected { told.since.elapsed() } else { Duration::ZERO },
            attempts: told.attempts,
            successes: told.successes,
            disconnections: told.disconnections,
            backoff: told.backoff,
            probe_interval: told.probe_interval,
            last_error: told.last_error.as_ref().map(|(_, why)| why.clone()),
            last_error_kind: told.last_error.as_ref().map(|(kind, _)| *kind),
            queued_messages,
            queued_bytes,
            in_flight_bytes,
            large_bytes,
            waits_for,
            unprocessed_bytes: 0,
            credit_bytes,
            messages: counters.messages,
            frames: counters.frames,
            bytes: counters.bytes,
            cancelled: counters.cancelled,
            dropped: counters.dropped,
            refused_frames: 0,
        }
    }
}

type Attempt = Pin<Box<dyn Future<Output = Result<Session, DialError>> + Send>>;

/// Runs the lane until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, lane: Arc<OutboundLane>, stop: CancellationToken) {
    let timer = shared.election_timer.subscribe();
    let mut driver = Driver {
        machine: Reconnect::new(0),
        origin: Instant::now(),
        timer,
        attempt: None,
        session: None,
        attempt_started: None,
        session_started: Instant::now(),
        pings: 0,
        challenged: None,
        refusal_matters: false,
        shared,
        lane,
    };
    driver.run(&stop).await;
    let was_up = driver.session.take().is_some();
    driver.lane.queue.retire();
    driver.report();
    lock(&driver.lane.told).connected = false;
    if was_up && driver.lane.lane == Lane::Control {
        driver.shared.inbound.link_down(driver.lane.store, false);
    }
}

struct Driver {
    shared: Arc<Shared>,
    lane: Arc<OutboundLane>,
    machine: Reconnect,
    /// The origin of the machine's clock.
    origin: Instant,
    /// The election timer in milliseconds.
    timer: watch::Receiver<u64>,
    attempt: Option<Attempt>,
    session: Option<Session>,
    attempt_started: Option<Instant>,
    session_started: Instant,
    pings: u64,
    /// A ping whose answer proves that the session's process ran after another one had come, and that other one's
    /// incarnation.
    challenged: Option<(u64, u64)>,
    /// The link was up and went down, and nobody has yet been told that its process is gone.
    refusal_matters: bool,
}

enum Event {
    Stop,
    Attempt(Box<Result<Session, DialError>>),
    Reply(Result<Option<pb::LaneReply>, Status>),
    Request,
    ElectionTimer,
    Time,
}

impl Driver {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn run(&mut self, stop: &CancellationToken) {
        self.machine.set_free_tries(FREE_TRIES);
        self.machine.set_probe_for_election_timer(*self.timer.borrow_and_update());
        self.machine.enable(0);
        self.tell(|_| {});
        loop {
            let now = self.now();
            let mut pause = None;
            match self.machine.run(now) {
                Some(Action::Connect) => {
                    pause = self.attempt_started.map(|t| t + ATTEMPT_PAUSE).filter(|t| *t > Instant::now());
                    if pause.is_none() {
                        self.start_attempt(now);
                        continue;
                    }
                }
                Some(Action::Disconnect) => {
                    self.drop_it(now);
                    continue;
                }
                Some(Action::Probe) => {
                    self.pings += 1;
                    self.lane.queue.ping(self.pings);
                    continue;
                }
                None => {}
            }
            let wake = pause.or_else(|| {
                self.machine.next_deadline(now).map(|at| self.origin + Duration::from_millis(at))
            });
            match self.next_event(stop, wake).await {
                Event::Stop => return,
                Event::Attempt(result) => self.attempt_ended(*result),
                Event::Reply(Ok(Some(reply))) => self.replied(&reply),
                Event::Reply(Ok(None)) => self.broken("the peer ended the stream".to_owned()),
                Event::Reply(Err(status)) => self.broken(status.message().to_owned()),
                Event::Request => self.requested(),
                Event::ElectionTimer => {
                    let millis = *self.timer.borrow_and_update();
                    self.machine.set_probe_for_election_timer(millis);
                    self.tell(|_| {});
                }
                Event::Time => {
                    if wake.is_some_and(|at| at.elapsed() > OVERSLEPT) && self.session.is_some() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    } else {
                        // Replies were polled before the clock, and there were none.
                        self.machine.receive_attempted(self.now());
                    }
                }
            }
        }
    }

    async fn next_event(&mut self, stop: &CancellationToken, wake: Option<Instant>) -> Event {
        let (attempt, session) = (&mut self.attempt, &mut self.session);
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            result = async {
                match attempt {
                    Some(attempt) => attempt.await,
                    None => pending().await,
                }
            } => Event::Attempt(Box::new(result)),
            reply = async {
                match session {
                    Some(session) => session.replies.message().await,
                    None => pending().await,
                }
            } => Event::Reply(reply),
            () = self.lane.notify.notified() => Event::Request,
            Ok(()) = self.timer.changed() => Event::ElectionTimer,
            () = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => pending().await,
                }
            } => Event::Time,
        }
    }

    fn start_attempt(&mut self, now: u64) {
        self.machine.connecting(now);
        self.attempt_started = Some(Instant::now());
        let limits = &self.shared.config.limits;
        let epoch = self.lane.queue.begin(self.shared.hello(self.lane.store, self.lane.lane));
        let frames = FrameStream::new(
            Arc::clone(&self.lane.queue),
            epoch,
            Arc::clone(&self.shared.entries),
            FrameLimits {
                target: match self.lane.lane {
                    Lane::Control => limits.batch_bytes / 4,
                    Lane::Log | Lane::Snapshot => limits.batch_bytes,
                },
                several: limits.frame_bytes_max,
                single: limits.message_bytes_max.saturating_sub(crate::transport::FRAME_SLACK_BYTES),
            },
        );
        let address = lock(&self.lane.told).address.clone();
        let (shared, store) = (Arc::clone(&self.shared), self.lane.store);
        self.attempt = Some(Box::pin(async move {
            let session = dial::open_lane(address, &shared.config, store, frames).await?;
            let not_admitted = |reason| DialError::NotAdmitted { store, reason };
            Acceptor::alone(&shared, store, session.claim).map_err(|(_, reason)| not_admitted(reason))?;
            let met = shared.meet(store, session.claim).await;
            met.map_err(|unwelcome| not_admitted(unwelcome.reason))?;
            Ok(session)
        }));
    }

    fn attempt_ended(&mut self, result: Result<Session, DialError>) {
        self.attempt = None;
        let now = self.now();
        match result {
            Ok(session) => {
                self.machine.connected(now);
                // Before `link_up`, so that what is sent from there finds the lane open.
                self.lane.queue.opened(session.features, session.credit);
                self.session_started = Instant::now();
                self.refusal_matters = false;
                let (name, features) = (session.name.clone(), session.features);
                self.session = Some(session);
                self.tell(|told| told.name = name);
                tracing::debug!(store = %self.lane.store, lane = %self.lane.lane, "link up");
                if self.lane.lane == Lane::Control {
                    self.shared.inbound.features(self.lane.store, features);
                    self.shared.inbound.link_up(self.lane.store);
                }
            }
            Err(error) => {
                self.machine.connect_failed(now);
                // Before the status tells of the attempt: whoever waits for its end must find the links shut down.
                match &error {
                    DialError::Fenced { reason } => self.shared.fence(self.lane.store, reason.clone(), false),
                    DialError::Removed { reason } => self.shared.fence(self.lane.store, reason.clone(), true),
                    _ => {}
                }
                self.attempt_failed(&error);
            }
        }
    }

    fn attempt_failed(&mut self, error: &DialError) {
        self.lane.queue.close();
        self.report();
        if matches!(error, DialError::ConnectionRefused { .. }) && std::mem::take(&mut self.refusal_matters) {
            self.shared.inbound.link_down(self.lane.store, true);
        }
        if let Some(left_out) = self.lane.log_failed.allow() {
            tracing::warn!(store = %self.lane.store, lane = %self.lane.lane, %error, left_out, "cannot reach a store");
        }
        self.tell(|told| told.last_error = Some((error.kind(), error.to_string())));
    }

    fn replied(&mut self, reply: &pb::LaneReply) {
        self.machine.activity(self.now());
        self.lane.queue.acknowledged(reply.received_frames);
        if let Some(credit) = reply.credit {
            self.lane.queue.credited(credit);
        }
        if let Some((ping, second)) = self.challenged
            && reply.pong.is_some_and(|pong| pong >= ping)
        {
            self.challenged = None;
            self.shared.acceptor.prove_second(self.lane.store, second);
        }
    }

    /// The stream ended by itself.
    fn broken(&mut self, why: String) {
        let now = self.now();
        self.session_over(LinkErrorKind::Broken, why);
        self.machine.disconnected(now);
        self.tell(|_| {});
    }

    /// The machine asked: an attempt took too long, a probe went unanswered, or a reconnection was requested.
    fn drop_it(&mut self, now: u64) {
        let state = self.machine.state();
        if self.attempt.take().is_some() {
            let patience = self.attempt_started.map(|t| t.elapsed()).unwrap_or_default();
            self.machine.disconnected(now);
            self.attempt_failed(&match state {
                State::Reconnect => DialError::Moved,
                _ => DialError::TimedOut(patience),
            });
            return;
        }
        let (kind, why) = match state {
            State::Idle => {
                (LinkErrorKind::Silent, "no answer to a probe: the peer is gone, stalled, or does not read")
            }
            _ => (LinkErrorKind::Replaced, "dropped to reconnect: the peer has restarted or moved"),
        };
        self.session_over(kind, why.to_owned());
        self.machine.disconnected(now);
        self.tell(|_| {});
    }

    fn session_over(&mut self, kind: LinkErrorKind, why: String) {
        let was_up = self.session.take().is_some();
        self.challenged = None;
        self.lane.queue.close();
        self.report();
        if !was_up {
            return;
        }
        if self.session_started.elapsed() >= SESSION_WORKED {
            self.machine.set_free_tries(FREE_TRIES);
        }
        if let Some(left_out) = self.lane.log_down.allow() {
            tracing::info!(store = %self.lane.store, lane = %self.lane.lane, why, left_out, "link down");
        }
        if self.lane.lane == Lane::Control {
            self.refusal_matters = true;
            self.shared.inbound.link_down(self.lane.store, false);
        }
        self.tell(|told| {
            told.disconnections += 1;
            told.last_error = Some((kind, why));
        });
    }

    fn requested(&mut self) {
        self.report();
        let Requests { address, heard, challenge } = std::mem::take(&mut *lock(&self.lane.requests));
        if let (Some(session), Some(Challenge { first, second })) = (&self.session, challenge)
            && session.incarnation == first
            && self.challenged.is_none()
        {
            self.pings += 1;
            self.lane.queue.ping(self.pings);
            self.challenged = Some((self.pings, second));
        }
        let now = self.now();
        let moved = address.is_some();
        if let Some(address) = address {
            lock(&self.lane.told).address = address;
        }
        let restarted = match (&self.session, heard) {
            (Some(session), Some(incarnation)) => session.incarnation != incarnation,
            _ => false,
        };
        match self.machine.state() {
            State::Active | State::Idle if moved || restarted => {
                self.machine.graceful_reconnect(now, FREE_TRIES);
            }
            State::Connecting if moved => self.machine.graceful_reconnect(now, FREE_TRIES),
            State::Backoff if moved || heard.is_some() => {
                // Off and on again: the back-off begins anew with an attempt at once.
                self.machine.disable(now);
                self.machine.set_free_tries(FREE_TRIES);
                self.machine.enable(now);
            }
            _ => {}
        }
    }

    /// Tells the host what was lost.
    fn report(&self) {
        let events = self.lane.queue.events();
        if !events.not_sent.is_empty() {
            let replies = events.not_sent.into_iter().map(|(group, id, term, number)| ProposalReply {
                group,
                id,
                term,
                number,
                outcome: ProposalOutcome::NotSent,
            });
            self.shared.inbound.proposal_replies(self.lane.store, replies.collect());
        }
        if !events.unreachable.is_empty() {
            self.shared.inbound.unreachable(self.lane.store, events.unreachable);
        }
    }

    /// Makes the status current.
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        let stats = self.machine.stats(self.now());
        let mut told = lock(&self.lane.told);
        if told.connected != stats.is_connected() {
            if told.connected {
                let connected = told.since.elapsed();
                told.connected_before += connected;
            }
            told.connected = stats.is_connected();
            told.since = Instant::now();
        }
        told.attempts = stats.attempts;
        told.successes = stats.successes;
        told.backoff = Duration::from_millis(stats.backoff_ms);
        told.probe_interval = Duration::from_millis(stats.probe_interval_ms);
        change(&mut told);
    }
}
