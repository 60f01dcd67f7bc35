//! Clients that write unique values, read, swap and delete, and write down what they saw.
//!
//! Each client has one call at a time, sticks to a store, and moves on to the next one when a call fails. Two kinds of
//! keys: `r/…` are few and contended, `w/…` are written once and never again, so that each must be there at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::response_op::Response as OpResponse;
use pontoon_proto::etcdserverpb::{
    Compare as CompareMessage, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse,
};
use pontoon_proto::mvccpb::KeyValue;
use pontoon_sim::linearizability::{
    Action, Compare, Completion, KvInput, KvOperation, KvOutput, Operation, Seen,
};
use tokio::task::JoinSet;

use super::client::{CallError, Connection};
use super::random::SplitMix64;

/// A value that no client can have written.
pub(crate) const FOREIGN: u64 = u64::MAX;

/// An operation, and where it went.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) operation: KvOperation,
    /// The number of the keyspace.
    pub(crate) keyspace: u32,
    pub(crate) store: usize,
    /// A read from one store's state alone: it may be old, and has no place in the order of time.
    pub(crate) serializable: bool,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Of the stores.
    pub(crate) addresses: Vec<String>,
    /// Names to be sent; `None` for the default one.
    pub(crate) keyspaces: Vec<Option<String>>,
    pub(crate) clients: u32,
    /// Contended keys in each keyspace.
    pub(crate) keys: u32,
    pub(crate) value_size: usize,
    pub(crate) timeout: Duration,
    /// All times in the history count from here.
    pub(crate) origin: Instant,
    pub(crate) seed: u64,
}

impl Plan {
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The name of a key in the history.
    pub(crate) fn history_key(keyspace: u32, key: &str) -> Arc<str> {
        Arc::from(format!("{keyspace}:{key}"))
    }

    /// The bytes of a value: its number, padded.
    pub(crate) fn value(&self, number: u64) -> Vec<u8> {
        let mut value = format!("{number:016x}").into_bytes();
        value.resize(self.value_size.max(16), b'.');
        value
    }

    /// The number of a value, or [`FOREIGN`].
    pub(crate) fn number(&self, value: &[u8]) -> u64 {
        let number = value
            .get(..16)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.filter(|&number| self.value(number) == value).unwrap_or(FOREIGN)
    }

    pub(crate) fn seen(&self, pair: Option<&KeyValue>) -> Seen {
        pair.map(|pair| (self.number(&pair.value), unsigned(pair.mod_revision)))
    }
}

/// What the clients saw and counted.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) records: Vec<Recorded>,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    /// Reads without an answer; they say nothing.
    pub(crate) lost_reads: u64,
    /// Connections that could not be made.
    pub(crate) unreachable: u64,
    /// Answers that are no answers to what was asked.
    pub(crate) nonsense: Vec<String>,
    /// Different error texts and how often each was seen.
    pub(crate) errors: std::collections::BTreeMap<String, u64>,
}

impl Results {
    pub(crate) fn merge(&mut self, other: Self) {
        self.records.extend(other.records);
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.lost_reads += other.lost_reads;
        self.unreachable += other.unreachable;
        self.nonsense.extend(other.nonsense);
        for (text, count) in other.errors {
            *self.errors.entry(text).or_default() += count;
        }
    }
}

/// The running clients of one phase.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Results>,
}

impl Load {
    /// Starts the clients. `phase` keeps values and keys of several phases apart.
    pub(crate) fn start(plan: &Arc<Plan>, phase: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..plan.clients {
            let client = Client {
                plan: Arc::clone(plan),
                random: SplitMix64::new(plan.seed, u64::from(phase) << 32 | u64::from(number)),
                number,
                phase,
                sequence: 0,
                store: number as usize % plan.addresses.len(),
                connection: None,
                last_seen: None,
                results: Results::default(),
            };
            tasks.spawn(client.run(Arc::clone(&stop)));
        }
        Self { stop, tasks }
    }

    /// Lets every client finish its call, which takes no longer than the timeout.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Results> {
        self.stop.store(true, Ordering::Relaxed);
        let mut results = Results::default();
        while let Some(client) = self.tasks.join_next().await {
            results.merge(client?);
        }
        Ok(results)
    }
}

struct Client {
    plan: Arc<Plan>,
    random: SplitMix64,
    number: u32,
    phase: u32,
    sequence: u32,
    store: usize,
    connection: Option<Connection>,
    /// Keyspace, key, and what a read showed there: what the next transaction compares with.
    last_seen: Option<(u32, String, Seen)>,
    results: Results,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Results {
        while !stop.load(Ordering::Relaxed) {
            let connection = match self.connection.take() {
                Some(connection) => connection,
                None => match Connection::open(&self.plan.addresses[self.store], self.plan.timeout).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        self.results.unreachable += 1;
                        self.move_on(&error).await;
                        continue;
                    }
                },
            };
            let (keyspace, key, action, serializable) = self.choose();
            self.call(connection, keyspace, key, action, serializable).await;
        }
        self.results
    }

    async fn move_on(&mut self, error: &CallError) {
        // Numbers differ from text to text; the first words say what it is.
        let text: String =
            error.text().chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).take(110).collect();
        *self.results.errors.entry(text).or_default() += 1;
        self.store = (self.store + 1) % self.plan.addresses.len();
        self.connection = None;
        let pause = self.random.millis(10, 60);
        tokio::time::sleep(pause).await;
    }

    /// Keyspace, key, what to do, and whether a read may be old.
    fn choose(&mut self) -> (u32, String, Action, bool) {
        self.sequence += 1;
        // Phase, client and count can be read off the decimal digits.
        let value = u64::from(self.phase + 1) * 1_000_000_000_000
            + u64::from(self.number + 1) * 10_000_000
            + u64::from(self.sequence);
        let keyspaces = self.plan.keyspaces.len();
        let keyspace = u32::try_from(self.random.below(keyspaces)).expect("counted by a u32");
        let register = format!("r/{:03}", self.random.below(self.plan.keys as usize));
        match self.random.below(100) {
            0..30 => {
                let key = format!("w/{}/{:03}/{:07}", self.phase, self.number, self.sequence);
                (keyspace, key, Action::Put(value), false)
            }
            30..48 => (keyspace, register, Action::Put(value), false),
            48..60 => match self.last_seen.take() {
                Some((keyspace, key, None)) => {
                    (keyspace, key, Action::Cas(Compare::ModRevision(0), value), false)
                }
                Some((keyspace, key, Some((seen, at)))) => {
                    let by_value = self.random.below(2) == 0;
                    let compare = if by_value { Compare::Value(seen) } else { Compare::ModRevision(at) };
                    (keyspace, key, Action::Cas(compare, value), false)
                }
                None => (keyspace, register, Action::Get, false),
            },
            60..65 => (keyspace, register, Action::Delete, false),
            65..70 => (keyspace, register, Action::Get, true),
            _ => (keyspace, register, Action::Get, false),
        }
    }

    async fn call(
        &mut self,
        mut connection: Connection,
        keyspace: u32,
        key: String,
        action: Action,
        serializable: bool,
    ) {
        let plan = Arc::clone(&self.plan);
        let name = plan.keyspaces[keyspace as usize].as_deref();
        let bytes = key.clone().into_bytes();
        let input = KvInput { key: Plan::history_key(keyspace, &key), action };
        let call = plan.now();
        let output = match action {
            Action::Get => {
                connection.get(name, bytes, serializable).await.map(|response| plan.got(&response))
            }
            Action::Put(value) => {
                let response = connection.put(name, bytes, plan.value(value)).await;
                response
                    .map(|response| Some(KvOutput::Written { revision: revision(response.header.as_ref()) }))
            }
            Action::Delete => connection.delete(name, bytes).await.map(|response| {
                let previous = plan.seen(response.prev_kvs.first());
                let revision = revision(response.header.as_ref());
                (response.deleted == i64::from(previous.is_some()))
                    .then_some(KvOutput::Deleted { previous, revision })
            }),
            Action::Cas(compare, value) => {
                let message = transaction(&plan, bytes, compare, value);
                connection.txn(name, message).await.map(|response| plan.swapped(&response))
            }
        };
        let at = plan.now();
        let completion = match output {
            Ok(Some(output)) => {
                self.results.acknowledged += 1;
                self.connection = Some(connection);
                if let KvOutput::Got { seen, .. } | KvOutput::NotSwapped { seen, .. } = output {
                    self.last_seen = Some((keyspace, key, seen));
                }
                Some(Completion { at, output })
            }
            Ok(None) => {
                let text = format!("an answer that is none, to {action:?} of {key} from {}", self.store);
                self.results.nonsense.push(text);
                None
            }
            Err(error) => {
                let refused = matches!(error, CallError::Refused(_));
                let counter = match action {
                    _ if refused => &mut self.results.refused,
                    Action::Get => &mut self.results.lost_reads,
                    _ => &mut self.results.unknown,
                };
                *counter += 1;
                let store = self.store;
                self.move_on(&error).await;
                if !refused && action != Action::Get {
                    let operation = Operation::unknown(self.number, call, input);
                    self.results.records.push(Recorded { operation, keyspace, store, serializable });
                }
                return;
            }
        };
        let operation = Operation { client: self.number, call, input, completion };
        self.results.records.push(Recorded { operation, keyspace, store: self.store, serializable });
    }
}

impl Plan {
    fn got(&self, response: &RangeResponse) -> Option<KvOutput> {
        let output = KvOutput::Got {
            seen: self.seen(response.kvs.first()),
            revision: revision(response.header.as_ref()),
        };
        (response.kvs.len() < 2).then_some(output)
    }

    fn swapped(&self, response: &TxnResponse) -> Option<KvOutput> {
        let revision = revision(response.header.as_ref());
        match response.responses.first()?.response.as_ref()? {
            OpResponse::ResponsePut(_) if response.succeeded => Some(KvOutput::Written { revision }),
            OpResponse::ResponseRange(range) if !response.succeeded => {
                Some(KvOutput::NotSwapped { seen: self.seen(range.kvs.first()), revision })
            }
            _ => None,
        }
    }
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn revision(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| unsigned(header.revision))
}

fn transaction(plan: &Plan, key: Vec<u8>, compare: Compare, value: u64) -> TxnRequest {
    let (target, union) = match compare {
        Compare::Value(value) => (CompareTarget::Value, TargetUnion::Value(plan.value(value).into())),
        Compare::ModRevision(at) => {
            (CompareTarget::Mod, TargetUnion::ModRevision(i64::try_from(at).unwrap_or(i64::MAX)))
        }
    };
    let op = |request| vec![RequestOp { request: Some(request) }];
    let put =
        PutRequest { key: key.clone().into(), value: plan.value(value).into(), ..PutRequest::default() };
    let range = RangeRequest { key: key.clone().into(), ..RangeRequest::default() };
    TxnRequest {
        compare: vec![CompareMessage {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: key.into(),
            target_union: Some(union),
            ..CompareMessage::default()
        }],
        success: op(Op::RequestPut(put)),
        failure: op(Op::RequestRange(range)),
    }
}
