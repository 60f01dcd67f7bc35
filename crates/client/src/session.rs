//! A session: a few connections to one store at a time, kept by a reconnect machine.
//!
//! The machine owns *when* to connect, probe and drop; each attempt makes fresh channels, and a channel that lost its
//! connection never makes another. So there is one owner of reconnecting.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pontoon_proto::etcdserverpb::StatusRequest;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_reconnect::Stats;
use pontoon_reconnect::driver::{Attempt, Connection, Connector, Driver, Event, Handle};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::call::KEYSPACE;
use crate::config::Config;
use crate::remotes::Remotes;
use crate::tap::{Life, Tap};

/// How long an attempt waits for a store that knows of no leader to hear of one: less than an attempt may take.
const ELECTION_PATIENCE: Duration = Duration::from_millis(250);
/// Between two such questions.
const ELECTION_PAUSE: Duration = Duration::from_millis(20);

/// How a session is doing; for `status` pages and metrics.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// The store it is connected to, as the remote was given; `None` while there is none.
    pub remote: Option<String>,
    /// Attempts, successes, back-off and times.
    pub stats: Stats,
    /// Why the latest attempt or connection ended.
    pub last_error: Option<String>,
}

/// Keeps connections to one suitable store. Ends when it is dropped.
pub(crate) struct Session {
    current: watch::Receiver<Option<Arc<Link>>>,
    handle: Handle,
    remotes: usize,
    task: AbortHandle,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("status", &self.status()).finish()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// Starts to connect in the background. With a `keyspace`, calls of the session's own (the question who leads) are
    /// about that one.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn start(config: &Config, endpoints: Vec<Endpoint>, keyspace: Option<&str>) -> Self {
        let remotes = Remotes::new(endpoints, config.shuffle);
        let (count, (publish, current)) = (remotes.len(), watch::channel(None));
        let (mut driver, handle) = Driver::new(Dialer {
            remotes: Arc::new(Mutex::new(remotes)),
            terms: Arc::new(Terms {
                leader_only: config.leader_only,
                channels: config.channels_per_store,
                check_interval: config.leader_check_interval.max(Duration::from_millis(1)),
                keyspace: keyspace.map(|name| name.parse().expect("a checked name is ASCII")),
                remotes: count as u64,
            }),
            publish,
        });
        if let Some(jitter) = config.jitter {
            driver = driver.with_jitter(jitter);
        }
        handle.set_backoff(millis(config.backoff_min), millis(config.backoff_max).max(1));
        handle.set_probe_interval(millis(config.probe_interval));
        handle.set_free_tries(count as u64);
        let task = tokio::spawn(driver.run()).abort_handle();
        Self { current, handle, remotes: count, task }
    }

    /// The present link, if there is one, and its changes.
    pub(crate) fn current(&self) -> watch::Receiver<Option<Arc<Link>>> {
        self.current.clone()
    }

    pub(crate) fn remotes(&self) -> usize {
        self.remotes
    }

    pub(crate) fn status(&self) -> SessionStatus {
        SessionStatus {
            remote: self.current.borrow().as_ref().map(|link| link.name.clone()),
            stats: self.handle.stats(),
            last_error: self.handle.last_error().map(|error| error.to_string()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The connections to one store. Calls hold it while they are made, so a graceful change of stores ends none of them.
#[derive(Debug)]
pub(crate) struct Link {
    name: String,
    channels: Vec<Channel>,
    turn: AtomicUsize,
    /// A call was answered.
    worked: AtomicBool,
    life: Arc<Life>,
}

impl Link {
    /// The channels take turns.
    pub(crate) fn channel(&self) -> Channel {
        self.channels[self.turn.fetch_add(1, Ordering::Relaxed) % self.channels.len()].clone()
    }

    /// Waits until an answer cannot come any more.
    pub(crate) async fn dead(&self) {
        self.life.dead().await;
    }

    /// The store answered a call.
    pub(crate) fn mark_worked(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// The store answered a call that it does not lead.
    pub(crate) fn doubt(&self) {
        self.life.doubt();
    }
}

/// What a session wants of its stores.
struct Terms {
    leader_only: bool,
    channels: usize,
    check_interval: Duration,
    keyspace: Option<tonic::metadata::AsciiMetadataValue>,
    remotes: u64,
}

struct Dialer {
    remotes: Arc<Mutex<Remotes>>,
    terms: Arc<Terms>,
    publish: watch::Sender<Option<Arc<Link>>>,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("{remote}: no connection: {reason}")]
    Connect { remote: String, reason: String },
    #[error("{remote}: {}", .status.message())]
    Unwell { remote: String, status: Box<Status> },
    #[error("{remote} does not lead")]
    NotLeader { remote: String },
}

impl Connector for Dialer {
    type Connection = Held;
    type Error = AttemptError;

    fn connect(&mut self) -> Attempt<Held, AttemptError> {
        let (remote, endpoint) = lock(&self.remotes).choose();
        let (remotes, terms) = (Arc::clone(&self.remotes), Arc::clone(&self.terms));
        let publish = self.publish.clone();
        Box::pin(async move {
            let name = endpoint.uri().authority().map_or_else(String::new, ToString::to_string);
            let life = Arc::new(Life::new(terms.channels));
            let mut channels = Vec::with_capacity(terms.channels);
            for connection in 0..terms.channels {
                let channel = open(&endpoint, &life, connection).await.map_err(|error| {
                    AttemptError::Connect { remote: name.clone(), reason: reasons(&error) }
                })?;
                if connection == 0 {
                    // One look before the others are opened: most stores do not lead.
                    examine(&channel, remote, &name, &remotes, &terms).await?;
                }
                channels.push(channel);
            }
            lock(&remotes).settle();
            tracing::debug!(remote = %name, "connected");
            let (turn, worked) = (AtomicUsize::new(0), AtomicBool::new(false));
            let link = Arc::new(Link { name, channels, turn, worked, life });
            publish.send_replace(Some(Arc::clone(&link)));
            let mut check = interval(terms.check_interval);
            check.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is immediate, and the store has just been looked at.
            check.reset();
            Ok(Held {
                link,
                remote,
                remotes,
                terms,
                publish,
                check,
                checks: JoinSet::new(),
                probes: JoinSet::new(),
                graceful: false,
            })
        })
    }
}

/// Asks a new connection's store how it is. Where the leader is wanted and the store knows of none, an election is
/// under way: the others know no more, and would use up the tries without back-off in a moment. So it is asked again
/// for a while, over the same connection.
async fn examine(
    channel: &Channel,
    remote: usize,
    name: &str,
    remotes: &Mutex<Remotes>,
    terms: &Terms,
) -> Result<(), AttemptError> {
    let give_up = Instant::now() + ELECTION_PATIENCE;
    loop {
        match (ask(channel, terms).await, terms.leader_only) {
            (Ok(standing), leader_only) => {
                lock(remotes).learn(remote, standing.member);
                if !leader_only || standing.leads() {
                    return Ok(());
                }
                if standing.leader == 0 && Instant::now() < give_up {
                    sleep(ELECTION_PAUSE).await;
                    continue;
                }
                lock(remotes).suggest(remote, standing.leader);
                return Err(AttemptError::NotLeader { remote: name.to_owned() });
            }
            // It answers, and does not know this call or this keyspace; that is the caller's affair.
            (Err(status), false) if !is_unwell(&status) => return Ok(()),
            (Err(status), _) => {
                return Err(AttemptError::Unwell { remote: name.to_owned(), status: Box::new(status) });
            }
        }
    }
}

/// Whether a store that answers so cannot serve anybody.
fn is_unwell(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.code() == Code::Unavailable
}

/// What a store says about itself and the leader.
struct Standing {
    member: u64,
    leader: u64,
}

impl Standing {
    fn leads(&self) -> bool {
        self.leader != 0 && self.leader == self.member
    }
}

async fn ask(channel: &Channel, terms: &Terms) -> Result<Standing, Status> {
    let mut request = Request::new(StatusRequest {});
    if let Some(keyspace) = &terms.keyspace {
        request.metadata_mut().insert(KEYSPACE, keyspace.clone());
    }
    let answer = MaintenanceClient::new(channel.clone()).status(request).await?.into_inner();
    Ok(Standing { member: answer.header.map_or(0, |header| header.member_id), leader: answer.leader })
}

/// A channel of one TCP connection.
async fn open(
    endpoint: &Endpoint,
    life: &Arc<Life>,
    connection: usize,
) -> Result<Channel, tonic::transport::Error> {
    let (life, used) = (Arc::clone(life), AtomicBool::new(false));
    let connector = tower::service_fn(move |uri: Uri| {
        let (life, used) = (Arc::clone(&life), used.swap(true, Ordering::AcqRel));
        async move {
            if used {
                return Err(Spent.into());
            }
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().ok_or(Spent)?;
            let stream = TcpStream::connect((host, port)).await?;
            // A request must not wait for the acknowledgement of the one before.
            stream.set_nodelay(true)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(TokioIo::new(Tap::new(
                stream, life, connection,
            )))
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// A channel's one connection is gone. A call that meets this was not sent.
#[derive(Debug, thiserror::Error)]
#[error("the connection is gone")]
pub(crate) struct Spent;

/// An error with its causes: the outer ones of a transport say little.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn lock(remotes: &Mutex<Remotes>) -> MutexGuard<'_, Remotes> {
    remotes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A link in the driver's hand: lives as long as the driver wants the session to be with this store.
struct Held {
    link: Arc<Link>,
    remote: usize,
    remotes: Arc<Mutex<Remotes>>,
    terms: Arc<Terms>,
    publish: watch::Sender<Option<Arc<Link>>>,
    check: Interval,
    /// The check that is under way, at most one; ends with the link.
    checks: JoinSet<()>,
    /// The probe that is under way, one call for each channel; ends with the link.
    probes: JoinSet<()>,
    /// The store is well: calls that wait for its answers go on.
    graceful: bool,
}

impl Connection for Held {
    async fn event(&mut self) -> Event {
        loop {
            let life = &self.link.life;
            if let Some(reason) = life.closed() {
                return Event::Closed(format!("{}: {reason}", self.link.name));
            }
            if let Some(reason) = life.sick() {
                return Event::Sick(format!("{}: {reason}", self.link.name));
            }
            if life.is_unsuitable() {
                self.graceful = true;
                return Event::Unsuitable { remotes: self.terms.remotes };
            }
            if life.take_doubt() {
                if self.terms.leader_only {
                    // Perhaps it led again before the answer was here, and otherwise it knows who does.
                    self.check_leader();
                } else if self.link.worked.load(Ordering::Relaxed) {
                    life.mark_unsuitable();
                } else {
                    // It never suited: tries without waiting at such stores would not end.
                    life.mark_sick("does not lead".to_owned());
                }
                continue;
            }
            if life.take_heard() {
                return Event::Activity;
            }
            tokio::select! {
                () = life.changed() => {}
                _ = self.check.tick(), if self.terms.leader_only => self.check_leader(),
            }
        }
    }

    fn probe(&mut self) {
        // The bytes of the answers are what counts. A probe that is still open when the next is due is given up.
        self.probes.abort_all();
        while self.probes.try_join_next().is_some() {}
        for channel in self.link.channels.clone() {
            let terms = Arc::clone(&self.terms);
            self.probes.spawn(async move { drop(ask(&channel, &terms).await) });
        }
    }
}

impl Held {
    /// Asks in the background whether the store still leads.
    fn check_leader(&mut self) {
        while self.checks.try_join_next().is_some() {}
        if !self.checks.is_empty() {
            return;
        }
        let (channel, terms, life) =
            (self.link.channels[0].clone(), Arc::clone(&self.terms), Arc::clone(&self.link.life));
        let (remote, remotes) = (self.remote, Arc::clone(&self.remotes));
        self.checks.spawn(async move {
            // A store that does not answer is the probes' affair; this only makes room for the next check.
            let patience = terms.check_interval.max(Duration::from_secs(1));
            match timeout(patience, ask(&channel, &terms)).await {
                Ok(Ok(standing)) if !standing.leads() => {
                    lock(&remotes).suggest(remote, standing.leader);
                    life.mark_unsuitable();
                }
                Ok(Err(status)) if is_unwell(&status) => life.mark_sick(status.message().to_owned()),
                _ => {}
            }
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.publish.send_if_modified(|current| {
            let ours = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &self.link));
            if ours {
                *current = None;
            }
            ours
        });
        if !self.graceful {
            self.link.life.condemn();
        }
        tracing::debug!(remote = %self.link.name, graceful = self.graceful, "dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::is_unsent;

    /// A channel never connects a second time, and a call that finds it so is known not to have been sent.
    #[tokio::test]
    async fn a_broken_channel_stays_broken() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let life = Arc::new(Life::new(1));
        let (channel, accepted) = tokio::join!(open(&endpoint, &life, 0), listener.accept());
        let channel = channel.unwrap();
        drop(accepted);
        while life.closed().is_none() {
            life.changed().await;
        }
        let terms = Terms {
            leader_only: false,
            channels: 1,
            check_interval: Duration::from_secs(1),
            keyspace: None,
            remotes: 1,
        };
        // The first call may still meet the broken connection itself.
        let _ = ask(&channel, &terms).await;
        let status = ask(&channel, &terms).await.err().expect("the connection is gone");
        assert!(is_unsent(std::error::Error::source(&status).unwrap()), "{status:?}");
        assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "it connected again");
    }
}
