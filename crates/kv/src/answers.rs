//! Memory for large answers.
//!
//! An answer to one short request can be as large as its keyspace: it is gathered, encoded, and then lies in its connection
//! until the client takes it. What it takes is charged to one pool of the store, from the first key that is gathered until
//! the last byte is given to the client's connection. Who finds the pool empty forgets what it has gathered, waits in line
//! for what it will need, and gathers again. So memory does not grow with the number of those who ask for much, and who
//! asks for little does not wait: the first [`FREE_BYTES`] of each answer are not charged.
//!
//! Answers of commands are gathered by the apply worker, which waits for nobody. They have a pool of their own, and one that
//! finds it empty is left out: the command is done, and its client is told so ([`EtcdError::AnswerTooLarge`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Response, Status};

use crate::error::EtcdError;

/// Not charged: 50,000 requests, which is the most that a store serves at a time, take 3 GiB if each has so much, and an
/// ordinary answer has some hundred bytes.
pub(crate) const FREE_BYTES: usize = 64 << 10;

/// What is taken from the pool at a time, so that it is not asked for each key.
const STEP_BYTES: usize = 1 << 20;

/// The pool counts in these.
const UNIT_BYTES: usize = 1 << 10;

/// What a key takes beside the bytes of its name and its value while an answer is gathered.
pub(crate) const KEY_OVERHEAD_BYTES: usize = 128;

/// How long an answer waits for memory: somewhat less than clients wait for an answer.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The store's memory for large answers. Clones share it.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Pools>);

struct Pools {
    /// Of answers to reads, and of all that are being sent.
    reads: Arc<Semaphore>,
    /// Of answers to commands, until they are being sent.
    applied: Arc<Semaphore>,
    bytes_max: usize,
    wait_max: Duration,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("bytes_max", &self.0.bytes_max).finish_non_exhaustive()
    }
}

/// Why an answer is not gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerFault {
    /// It would have more than so many bytes, the most that a store holds of all answers together.
    TooLarge { bytes_max: usize },
    /// The pool is empty; it needs at least so many bytes.
    Full { wanted: usize },
}

impl AnswerFault {
    pub(crate) fn status(self) -> Status {
        match self {
            Self::TooLarge { bytes_max } => Status::resource_exhausted(format!(
                "pontoon: the answer would take more than {} MiB, which this store holds of large answers \
                 (--answers-bytes-max); ask for less at a time: a limit and then from the last key on, keys_only, \
                 count_only, or RangeStream",
                bytes_max >> 20
            )),
            // In etcd's words: clients know them.
            Self::Full { .. } => Status::resource_exhausted("etcdserver: too many requests"),
        }
    }
}

/// Memory that is taken from a pool; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Charge {
    permit: OwnedSemaphorePermit,
}

impl Charge {
    fn bytes(&self) -> usize {
        self.permit.num_permits() * UNIT_BYTES
    }
}

/// In a response's extensions: what its answer takes. Whoever sends it holds this until the last byte is gone.
#[derive(Clone)]
pub struct AnswerCharge(#[allow(dead_code, reason = "it is there to be dropped")] Arc<dyn Send + Sync>);

impl AnswerCharge {
    /// Of something that gives back what is charged when it is dropped.
    #[must_use]
    pub fn new(charge: impl Send + Sync + 'static) -> Self {
        Self(Arc::new(charge))
    }
}

impl fmt::Debug for AnswerCharge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnswerCharge").finish_non_exhaustive()
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Answers {
    /// So many bytes for large answers, and as many for those of commands.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self::waiting(bytes_max, WAIT_MAX)
    }

    fn waiting(bytes_max: u64, wait_max: Duration) -> Self {
        let bytes_max =
            usize::try_from(bytes_max).unwrap_or(usize::MAX).clamp(STEP_BYTES, Semaphore::MAX_PERMITS);
        let pool = || Arc::new(Semaphore::new(bytes_max / UNIT_BYTES));
        Self(Arc::new(Pools { reads: pool(), applied: pool(), bytes_max, wait_max }))
    }

    /// A meter for an answer that can wait and be gathered again.
    pub(crate) fn meter(&self) -> Meter {
        Meter::of(&self.0.reads, self.0.bytes_max)
    }

    /// A meter for the answer of a command.
    pub(crate) fn meter_applied(&self) -> Meter {
        Meter::of(&self.0.applied, self.0.bytes_max)
    }

    /// A meter that has so many bytes already; waits for them.
    ///
    /// # Errors
    /// They do not get free in time, or are more than there are.
    pub(crate) async fn meter_with(&self, bytes: usize) -> Result<Meter, AnswerFault> {
        let mut meter = self.meter();
        if bytes > self.0.bytes_max {
            return Err(AnswerFault::TooLarge { bytes_max: self.0.bytes_max });
        }
        let taken = Arc::clone(&self.0.reads).acquire_many_owned(units(bytes));
        match tokio::time::timeout(self.0.wait_max, taken).await {
            // Nobody closes the pool.
            Ok(Ok(permit)) => meter.charge = Some(Charge { permit }),
            Ok(Err(_)) | Err(_) => return Err(AnswerFault::Full { wanted: bytes }),
        }
        Ok(meter)
    }

    /// A response that is charged for what its encoding takes until it is sent.
    ///
    /// # Errors
    /// There is no memory for it in time.
    pub(crate) async fn charged<M: prost::Message>(&self, message: M) -> Result<Response<M>, Status> {
        let bytes = message.encoded_len();
        let mut meter = self.meter();
        match meter.add(bytes) {
            Ok(()) => {}
            Err(AnswerFault::Full { .. }) => {
                meter = self.meter_with(bytes).await.map_err(AnswerFault::status)?;
            }
            Err(fault) => return Err(fault.status()),
        }
        Ok(meter.respond(message))
    }
}

/// Counts what one answer takes while it is gathered.
#[derive(Debug)]
pub(crate) struct Meter {
    pool: Arc<Semaphore>,
    bytes_max: usize,
    used: usize,
    charge: Option<Charge>,
}

impl Meter {
    fn of(pool: &Arc<Semaphore>, bytes_max: usize) -> Self {
        Self { pool: Arc::clone(pool), bytes_max, used: 0, charge: None }
    }

    fn granted(&self) -> usize {
        FREE_BYTES + self.charge.as_ref().map_or(0, Charge::bytes)
    }

    /// The answer takes so much more.
    ///
    /// # Errors
    /// It is too large, or there is no memory now: then what was gathered is to be forgotten.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), AnswerFault> {
        self.used = self.used.saturating_add(bytes);
        let granted = self.granted();
        if self.used <= granted {
            return Ok(());
        }
        if self.used > self.bytes_max {
            return Err(AnswerFault::TooLarge { bytes_max: self.bytes_max });
        }
        let more = (self.used - granted).max(STEP_BYTES).min(self.bytes_max);
        // Twice as much as it got this time, so that few attempts are in vain.
        let full = AnswerFault::Full { wanted: self.used.saturating_mul(2).min(self.bytes_max) };
        let permit = Arc::clone(&self.pool).try_acquire_many_owned(units(more)).map_err(|_| full)?;
        match &mut self.charge {
            Some(charge) => charge.permit.merge(permit),
            none => *none = Some(Charge { permit }),
        }
        Ok(())
    }

    /// The answer leaves out so much again.
    pub(crate) fn remove(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// The response, with what it takes.
    pub(crate) fn respond<M>(self, message: M) -> Response<M> {
        let mut response = Response::new(message);
        if let Some(charge) = self.charge {
            response.extensions_mut().insert(AnswerCharge::new(charge));
        }
        response
    }

    /// The bytes of an answer; they hold what they take for as long as they are there.
    pub(crate) fn hold(&mut self, bytes: Bytes) -> Bytes {
        match self.charge.take() {
            Some(charge) => Bytes::from_owner(Held { bytes, _charge: charge }),
            None => bytes,
        }
    }
}

struct Held {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What becomes of the answer to a command.
#[derive(Debug)]
pub(crate) struct Reply {
    answers: Answers,
    pub(crate) meter: Meter,
    /// There was no memory for it.
    pub(crate) left_out: bool,
}

impl Reply {
    pub(crate) fn new(answers: Answers) -> Self {
        Self { meter: answers.meter_applied(), answers, left_out: false }
    }

    /// The next command begins.
    pub(crate) fn begin(&mut self) {
        if self.left_out || self.meter.used > 0 {
            self.meter = self.answers.meter_applied();
            self.left_out = false;
        }
    }

    /// The meter, while something is gathered.
    pub(crate) fn take_meter(&mut self) -> Meter {
        std::mem::replace(&mut self.meter, self.answers.meter_applied())
    }

    /// Notes that something of the answer is not there; nothing else of it needs to be.
    pub(crate) fn leave_out(&mut self) {
        self.left_out = true;
        self.meter = self.answers.meter_applied();
    }

    /// What the client hears in place of the answer.
    pub(crate) fn refusal(&self) -> Option<EtcdError> {
        self.left_out.then_some(EtcdError::AnswerTooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn little_is_free_and_much_comes_from_the_pool() {
        let answers = Answers::new(4 << 20);
        let mut small = answers.meter();
        small.add(FREE_BYTES).expect("free");
        let mut large = answers.meter();
        large.add(3 * MIB).expect("there is room");
        let mut third = answers.meter();
        assert_eq!(third.add(2 * MIB), Err(AnswerFault::Full { wanted: 4 * MIB }));
        let response = large.respond(());
        assert_eq!(
            answers.meter().add(2 * MIB),
            Err(AnswerFault::Full { wanted: 4 * MIB }),
            "it is being sent"
        );
        drop(response);
        answers.meter().add(2 * MIB).expect("it is sent");
        assert_eq!(answers.meter().add(4 * MIB + 1), Err(AnswerFault::TooLarge { bytes_max: 4 * MIB }));
        answers.meter_applied().add(4 * MIB).expect("commands have their own");
    }

    #[test]
    fn the_pool_is_whole_again_after_all() {
        let answers = Answers::new(8 << 20);
        let free = || answers.0.reads.available_permits() * UNIT_BYTES;
        for keys in [1, 2, 10, 100] {
            let mut meter = answers.meter();
            for _ in 0..keys {
                meter.add(100_000).expect("there is room for one");
                meter.remove(30_000);
            }
            let held = meter.hold(Bytes::from_static(b"x"));
            assert!(free() + keys * 70_000 <= 8 * MIB + FREE_BYTES, "{} are free with {keys} keys", free());
            drop((meter, held));
            assert_eq!(free(), 8 * MIB);
        }
    }

    #[tokio::test]
    async fn who_finds_the_pool_empty_waits_in_line_and_not_for_ever() {
        let answers = Answers::waiting(4 << 20, Duration::from_secs(60));
        let mut first = answers.meter();
        first.add(4 * MIB).expect("there is room");
        let waiting = tokio::spawn({
            let answers = answers.clone();
            async move { answers.meter_with(3 * MIB).await.map(|meter| meter.granted()) }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.expect("ends"), Ok(FREE_BYTES + 3 * MIB));
        let answers = Answers::waiting(4 << 20, Duration::from_millis(10));
        let mut again = answers.meter();
        again.add(4 * MIB).expect("given back");
        assert_eq!(answers.meter_with(MIB).await.map(drop), Err(AnswerFault::Full { wanted: MIB }));
        assert_eq!(
            answers.meter_with(5 * MIB).await.map(drop),
            Err(AnswerFault::TooLarge { bytes_max: 4 * MIB })
        );
    }
}
