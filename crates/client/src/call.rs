//! One call: find a connection, send, judge what comes back, and try again where that is safe.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Response, Status};

use crate::error::CallError;
use crate::names::{Name, Names};
use crate::session::{Link, Session, Spent};

/// The metadata that names a keyspace.
pub(crate) const KEYSPACE: &str = "pontoon-keyspace";

/// The metadata that names a write, the same in all attempts at it; see `names.rs`.
const ENTRY_ID: &str = "pontoon-eid";

/// The metadata by which a store says what a refusal means; see [`judge`].
const OUTCOME: &str = "pontoon-outcome";
/// When the server would like to be asked again, in milliseconds.
const RETRY_AFTER: &str = "grpc-retry-pushback-ms";

/// The pauses between attempts at the same connection: short enough for a leader that is just being elected, doubled
/// so that an overloaded store is left in peace.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A server that asks for more is not believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// What repeating a call can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: it only reads, or its repetition is known to be harmless.
    Repeatable,
    /// A second effect.
    Write,
}

/// One caller's wishes: which session, which keyspace, how long.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) session: Arc<Session>,
    /// Of the keyspace's writes.
    pub(crate) names: Arc<Names>,
    pub(crate) keyspace: Option<AsciiMetadataValue>,
    pub(crate) timeout: Duration,
    pub(crate) retry_unknown_writes: bool,
    pub(crate) response_bytes_max: usize,
}

/// What an answer that is none says about the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Certainly no effect; worth another try.
    NotExecuted,
    /// As `NotExecuted`, and this store is the wrong one.
    NotLeader,
    /// This attempt certainly had no effect, and none with this name will. What became of earlier ones is not known.
    Expired,
    /// An earlier attempt had its effect; its answer is lost.
    Executed,
    /// Perhaps an effect.
    Unknown,
    /// No effect, and none the next time.
    Refused,
    /// As `Refused`, and it is what became of all attempts with this name.
    Settled,
}

fn judge(status: &Status) -> Verdict {
    if let Some(cause) = status.source() {
        return if is_unsent(cause) { Verdict::NotExecuted } else { Verdict::Unknown };
    }
    match status.metadata().get(OUTCOME).map(|outcome| outcome.as_encoded_bytes()) {
        Some(b"not-executed") => return Verdict::NotExecuted,
        Some(b"expired") => return Verdict::Expired,
        Some(b"executed") => return Verdict::Executed,
        Some(b"refused") => return Verdict::Settled,
        _ => {}
    }
    // The messages are part of etcd's protocol: its codes alone do not tell these cases apart.
    match (status.code(), status.message()) {
        (Code::FailedPrecondition | Code::Unavailable, "etcdserver: not leader") => Verdict::NotLeader,
        (Code::Unavailable, "etcdserver: no leader") => Verdict::NotExecuted,
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded") => Verdict::Refused,
        (Code::ResourceExhausted, _) => Verdict::NotExecuted,
        (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted, _)
        | (Code::Unknown | Code::Internal | Code::DataLoss, _) => Verdict::Unknown,
        _ => Verdict::Refused,
    }
}

/// How long the server asks its clients to wait, within reason.
fn retry_after(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis).min(RETRY_AFTER_MAX))
}

/// Whether a call failed because there was no connection to send it on.
pub(crate) fn is_unsent(mut cause: &(dyn std::error::Error + 'static)) -> bool {
    loop {
        if cause.is::<ConnectError>() || cause.is::<Spent>() {
            return true;
        }
        match cause.source() {
            Some(next) => cause = next,
            None => return false,
        }
    }
}

impl Caller {
    /// Makes a call, again and again where that is safe, until the deadline.
    pub(crate) async fn call<M, A, S, F>(&self, kind: Kind, message: M, mut send: S) -> Result<A, CallError>
    where
        M: Clone,
        S: FnMut(Channel, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut name = (kind == Kind::Repeatable).then_some(Name::None);
        let mut renewed = false;
        let mut current = self.session.current();
        let (mut attempts, mut pause) = (0, PAUSE_MIN);
        // What is known of the attempts so far. One of unknown outcome is not forgotten by later ones that certainly
        // had no effect.
        let (mut latest, mut doubtful): (Option<Status>, Option<Status>) = (None, None);
        loop {
            let Some(link) = connected(&mut current, deadline).await else { break };
            let current_name = match &name {
                Some(name) => Ok(name.clone()),
                None => {
                    let made = self.names.make(|| link.channel(), self.keyspace.as_ref());
                    match timeout_at(deadline, unless_dead(&link, made)).await {
                        Ok(made) => made,
                        Err(_elapsed) => Err(lost("no answer before the deadline")),
                    }
                }
            };
            let current_name = match current_name {
                Ok(made) => name.insert(made).clone(),
                // Only a question was sent.
                Err(status) => {
                    latest = Some(status);
                    if !rest(&mut current, &mut pause, deadline).await {
                        break;
                    }
                    continue;
                }
            };
            attempts += 1;
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            if let Some(keyspace) = &self.keyspace {
                request.metadata_mut().insert(KEYSPACE, keyspace.clone());
            }
            let named = matches!(current_name, Name::Given(_));
            if let Name::Given(name) = current_name {
                request.metadata_mut().insert(ENTRY_ID, name);
            }
            let answer = unless_dead(&link, send(link.channel(), request));
            let status = match timeout_at(deadline, answer).await {
                Ok(Ok(answer)) => {
                    link.mark_worked();
                    self.names.learn(answer.metadata());
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_elapsed) => lost("no answer before the deadline"),
            };
            let asked = retry_after(&status);
            match judge(&status) {
                Verdict::Refused if doubtful.is_none() => return Err(CallError::Refused(Box::new(status))),
                // A refusal may itself be the effect of an earlier attempt (a key that now exists).
                Verdict::Refused => break,
                Verdict::NotLeader => {
                    link.doubt();
                    latest = Some(status);
                }
                Verdict::NotExecuted => latest = Some(status),
                Verdict::Settled => return Err(CallError::Refused(Box::new(status))),
                Verdict::Executed => return Err(CallError::Executed(Box::new(status))),
                Verdict::Expired => {
                    self.names.begin_anew(status.metadata());
                    if doubtful.is_some() {
                        break;
                    }
                    // Nothing was executed under the old name, so that another one is safe. The first time at once:
                    // it happens to whoever was idle for long.
                    (name, latest) = (None, Some(status));
                    if !std::mem::replace(&mut renewed, true) {
                        continue;
                    }
                }
                Verdict::Unknown => {
                    let again = kind == Kind::Repeatable || (named && self.retry_unknown_writes);
                    if kind == Kind::Repeatable {
                        latest = Some(status);
                    } else {
                        doubtful = Some(status);
                    }
                    if !again {
                        break;
                    }
                }
            }
            if let Some(asked) = asked {
                pause = pause.max(asked);
            }
            if !rest(&mut current, &mut pause, deadline).await {
                break;
            }
        }
        Err(match (doubtful, latest) {
            (Some(status), _) => CallError::OutcomeUnknown { attempts, status: Box::new(status) },
            (None, Some(status)) => CallError::NotExecuted { attempts, status: Box::new(status) },
            (None, None) => CallError::NotConnected {
                remotes: self.session.remotes(),
                reason: self
                    .session
                    .status()
                    .last_error
                    .unwrap_or_else(|| "no attempt has ended yet".to_owned()),
            },
        })
    }
}

/// Waits for an answer as long as one can come.
async fn unless_dead<T>(link: &Link, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::select! {
        biased;
        answer = answer => answer,
        () = link.dead() => Err(lost("the connection was lost")),
    }
}

/// Waits before the next attempt; false when the deadline has passed.
async fn rest(
    current: &mut watch::Receiver<Option<Arc<Link>>>,
    pause: &mut Duration,
    deadline: Instant,
) -> bool {
    // A new connection is reason enough to try at once.
    tokio::select! {
        _ = current.changed() => {}
        () = sleep(*pause) => *pause = PAUSE_MAX.min(*pause * 2),
    }
    Instant::now() < deadline
}

/// Waits for a link until the deadline.
async fn connected(current: &mut watch::Receiver<Option<Arc<Link>>>, deadline: Instant) -> Option<Arc<Link>> {
    let link = timeout_at(deadline, current.wait_for(Option::is_some)).await.ok()?.ok()?;
    link.clone()
}

/// A status for what happened on this side; judged as an unknown outcome.
fn lost(what: &str) -> Status {
    Status::deadline_exceeded(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_ask_for_a_pause_within_reason() {
        let mut status = Status::resource_exhausted("etcdserver: too many requests");
        assert_eq!(retry_after(&status), None);
        for (told, pause) in [
            ("700", Some(Duration::from_millis(700))),
            ("999999999999", Some(RETRY_AFTER_MAX)),
            ("-1", None),
            ("soon", None),
        ] {
            status.metadata_mut().insert(RETRY_AFTER, told.parse().unwrap());
            assert_eq!(retry_after(&status), pause, "{told}");
        }
    }

    #[test]
    fn answers_are_judged() {
        for (status, verdict) in [
            (Status::failed_precondition("etcdserver: not leader"), Verdict::NotLeader),
            (Status::unavailable("etcdserver: no leader"), Verdict::NotExecuted),
            (Status::resource_exhausted("etcdserver: too many requests"), Verdict::NotExecuted),
            (Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), Verdict::Refused),
            // etcd says this to writes that it had already proposed.
            (Status::unavailable("etcdserver: leader changed"), Verdict::Unknown),
            (Status::unavailable("etcdserver: request timed out"), Verdict::Unknown),
            (Status::deadline_exceeded("context deadline exceeded"), Verdict::Unknown),
            (Status::invalid_argument("etcdserver: key is not provided"), Verdict::Refused),
            (
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                Verdict::Refused,
            ),
            (Status::failed_precondition("etcdserver: lease already exists"), Verdict::Refused),
            (Status::from_error(Box::new(std::io::Error::other("broken pipe"))), Verdict::Unknown),
            (Status::from_error(Box::new(Spent)), Verdict::NotExecuted),
        ] {
            assert_eq!(judge(&status), verdict, "{status:?}");
        }
        for (outcome, verdict) in [
            ("not-executed", Verdict::NotExecuted),
            ("expired", Verdict::Expired),
            ("executed", Verdict::Executed),
            ("refused", Verdict::Settled),
            ("something newer", Verdict::Unknown),
        ] {
            let mut told = Status::unavailable("anything");
            told.metadata_mut().insert(OUTCOME, outcome.parse().unwrap());
            assert_eq!(judge(&told), verdict);
        }
    }
}
