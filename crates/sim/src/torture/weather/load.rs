//! Clients that write at times that are fixed beforehand: who waits for an answer before the next write measures only what
//! the cluster allows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pontoon_proto::etcdserverpb::PutRequest;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// A write without an answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a closed loop.
const CLIENTS_OF_A_LOOP: usize = 64;

/// What is written, where and how fast.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The stores that the clients call.
    pub(crate) addresses: Vec<String>,
    pub(crate) keyspaces: Arc<[String]>,
    pub(crate) value_bytes: usize,
    pub(crate) elastic: bool,
    /// Writes a second; `None`: as many as are answered.
    pub(crate) rate: Option<f64>,
    /// Keys of each keyspace that are written to, in turn.
    pub(crate) keys: u64,
}

/// What became of the writes that were due in one stretch of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) seconds: f64,
    /// From the time when a write was due to its answer, in order.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) failed: u64,
    /// Why, and how often.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// How many of them each keyspace answered, in the order of the plan.
    pub(crate) answers: Vec<u64>,
}

impl Figures {
    /// Several stretches as one.
    pub(crate) fn of(parts: Vec<Self>) -> Self {
        let mut whole = Self::default();
        for part in parts {
            whole.seconds += part.seconds;
            whole.failed += part.failed;
            for (why, n) in part.reasons {
                *whole.reasons.entry(why).or_default() += n;
            }
            whole.latencies.extend(part.latencies);
            whole.answers.resize(whole.answers.len().max(part.answers.len()), 0);
            for (all, some) in whole.answers.iter_mut().zip(part.answers) {
                *all += some;
            }
        }
        whole.latencies.sort_unstable();
        whole
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds.max(1e-9)
    }

    /// The latency that this share of the writes keep to, as a multiple of what it was before.
    pub(crate) fn ratio(&self, share: f64, before: &Self) -> f64 {
        self.quantile(share).as_secs_f64() / before.quantile(share).as_secs_f64().max(1e-6)
    }

    /// Jain's index of what the keyspaces got: 1 if each got the same, 1 / n if one of n got everything.
    pub(crate) fn fairness(&self) -> f64 {
        let sum: f64 = self.answers.iter().map(|n| *n as f64).sum();
        let squares: f64 = self.answers.iter().map(|n| (*n as f64).powi(2)).sum();
        if squares == 0.0 { 0.0 } else { sum * sum / (self.answers.len() as f64 * squares) }
    }

    /// The latency that this share of the writes keep to.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share).ceil() as usize).copied().unwrap_or(PATIENCE)
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |share| self.quantile(share).as_secs_f64() * 1e3;
        write!(
            f,
            "{:.0} writes/s, p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms, {} failed",
            self.per_second(),
            ms(0.5),
            ms(0.99),
            ms(1.0),
            self.failed
        )?;
        self.reasons.iter().try_for_each(|(why, n)| write!(f, "\n    {n} x {why}"))
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// The keyspace, and how long it took.
    answers: Mutex<Vec<(usize, Duration)>>,
    failed: Mutex<BTreeMap<String, u64>>,
}

/// Clients at work; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Seen>,
    since: Instant,
    keyspaces: usize,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for address in &plan.addresses {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
            // Several connections: one is a bottleneck of its own.
            for _ in 0..2 {
                clients.push(KvClient::new(endpoint.connect().await?));
            }
        }
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        match plan.rate {
            None => {
                for n in 0..CLIENTS_OF_A_LOOP {
                    let (plan, seen, stop) = (plan.clone(), Arc::clone(&seen), Arc::clone(&stop));
                    let client = clients[n % clients.len()].clone();
                    tasks.spawn(async move {
                        let mut number = n as u64;
                        while !stop.load(Ordering::Relaxed) {
                            write(client.clone(), &plan, number, Instant::now(), &seen).await;
                            number += CLIENTS_OF_A_LOOP as u64;
                        }
                    });
                }
            }
            Some(rate) => {
                let (plan, seen, stop) = (plan.clone(), Arc::clone(&seen), Arc::clone(&stop));
                tasks.spawn(async move {
                    let (start, mut number) = (Instant::now(), 0u64);
                    let mut writes = JoinSet::new();
                    while !stop.load(Ordering::Relaxed) {
                        let due = start + Duration::from_secs_f64(number as f64 / rate.max(1e-3));
                        tokio::time::sleep_until(due).await;
                        let client = clients[number as usize % clients.len()].clone();
                        let (plan, seen) = (plan.clone(), Arc::clone(&seen));
                        writes.spawn(async move { write(client, &plan, number, due, &seen).await });
                        while writes.try_join_next().is_some() {}
                        number += 1;
                    }
                });
            }
        }
        Ok(Self { seen, since: Instant::now(), keyspaces: plan.keyspaces.len(), stop, tasks })
    }

    /// What was answered since the last time.
    pub(crate) fn take(&mut self) -> Figures {
        let now = Instant::now();
        let seconds = (now - std::mem::replace(&mut self.since, now)).as_secs_f64();
        let seen = std::mem::take(&mut *self.seen.answers.lock().unwrap_or_else(PoisonError::into_inner));
        let mut answers = vec![0; self.keyspaces];
        for (keyspace, _) in &seen {
            answers[*keyspace] += 1;
        }
        let mut latencies: Vec<_> = seen.into_iter().map(|(_, latency)| latency).collect();
        latencies.sort_unstable();
        let reasons = std::mem::take(&mut *self.seen.failed.lock().unwrap_or_else(PoisonError::into_inner));
        Figures { seconds, latencies, failed: reasons.values().sum(), reasons, answers }
    }

    /// Lets it run for a while and returns what it saw meanwhile.
    pub(crate) async fn watch(&mut self, length: Duration) -> Figures {
        let _ = self.take();
        tokio::time::sleep(length).await;
        self.take()
    }

    /// The same, told for each second.
    pub(crate) async fn watch_seconds(&mut self, length: Duration) -> Vec<Figures> {
        let _ = self.take();
        let (start, mut seconds) = (Instant::now(), Vec::new());
        while start.elapsed() < length {
            tokio::time::sleep_until(start + Duration::from_secs(seconds.len() as u64 + 1)).await;
            seconds.push(self.take());
        }
        seconds
    }

    pub(crate) async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn write(mut client: KvClient<Channel>, plan: &Plan, number: u64, due: Instant, seen: &Seen) {
    let at = (number % plan.keyspaces.len() as u64) as usize;
    let keyspace = &plan.keyspaces[at];
    let put = PutRequest {
        key: format!("key{}", number / plan.keyspaces.len() as u64 % plan.keys).into_bytes().into(),
        value: vec![b'x'; plan.value_bytes].into(),
        ..PutRequest::default()
    };
    let mut request = Request::new(put);
    let class = if plan.elastic { "elastic" } else { "regular" };
    for (name, value) in [("pontoon-keyspace", keyspace.as_str()), ("pontoon-class", class)] {
        if let Ok(value) = value.parse() {
            request.metadata_mut().insert(name, value);
        }
    }
    match tokio::time::timeout(PATIENCE, client.put(request)).await {
        Ok(Ok(_)) => {
            seen.answers.lock().unwrap_or_else(PoisonError::into_inner).push((at, due.elapsed()));
        }
        Ok(Err(status)) => seen.fail(&format!("{:?}: {}", status.code(), status.message())),
        Err(_) => seen.fail(&format!("no answer within {PATIENCE:?}")),
    }
}

impl Seen {
    fn fail(&self, why: &str) {
        // Names and numbers differ from text to text; the words say what it is.
        let why: String = why.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).take(160).collect();
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }
}
