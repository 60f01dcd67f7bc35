//! The load itself: threads with connections with clients.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use hdrhistogram::Histogram;
use http::HeaderName;
use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::task::LocalSet;

use super::material::{Material, Random};
use super::preload::KEYSPACE_METADATA;
use super::wire::{Call, Caller, Connection};
use super::{Global, LATENCY_US_MAX, Load};
use crate::cli::connect::Dialer;
use crate::config::HostPort;

/// Pause of a client after an error: a store that is down must not be answered by a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What happened to one kind of request.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// Requests that were answered inside the measured time.
    pub(super) completed: u64,
    /// Latency of all requests that were started inside the measured time, in microseconds, whenever they
    /// ended: so that the slowest, which end last, are not left out.
    pub(super) latency_us: Histogram<u64>,
}

impl Side {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { completed: 0, latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)? })
    }
}

/// What happened to all requests.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) gets: Side,
    pub(super) puts: Side,
    /// Errors inside the measured time by their text.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Outcome {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { gets: Side::new()?, puts: Side::new()?, errors: BTreeMap::new() })
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        for (mine, theirs) in [(&mut self.gets, &other.gets), (&mut self.puts, &other.puts)] {
            mine.completed += theirs.completed;
            mine.latency_us.add(&theirs.latency_us)?;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        Ok(())
    }
}

/// What all threads share.
struct Shared {
    load: Load,
    global: Global,
    material: Material,
    keyspace_header: HeaderName,
    /// Passed by all threads when they are connected; its leader's clock does not matter, each reads its own
    /// just after.
    connected: Barrier,
}

/// Runs the load to its end.
pub(super) fn run(load: &Load, global: &Global) -> anyhow::Result<Outcome> {
    // A thread without a connection would have nothing to do.
    let threads = load.args.threads.min(load.connections);
    let shared = Arc::new(Shared {
        load: load.clone(),
        global: global.clone(),
        material: Material::new(load)?,
        keyspace_header: HeaderName::from_static(KEYSPACE_METADATA),
        connected: Barrier::new(threads as usize),
    });
    let handles = (0..threads).map(|thread| {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, run_thread(shared, thread, threads))
        })
    });
    let handles = handles.collect::<Result<Vec<_>, _>>()?;
    let mut outcome = Outcome::new()?;
    for handle in handles {
        let of_thread = handle.join().map_err(|_| anyhow!("a load thread panicked"))??;
        outcome.add(&of_thread)?;
    }
    Ok(outcome)
}

async fn run_thread(shared: Arc<Shared>, thread: u32, threads: u32) -> anyhow::Result<Outcome> {
    let connected = connect(&shared, thread, threads).await;
    // Also when this thread failed: the others must not wait for it for ever.
    shared.connected.wait();
    let connections = connected?;
    let outcome = Rc::new(RefCell::new(Outcome::new()?));
    let window = Window::new(&shared.load);
    let mut clients = Vec::new();
    for number in 0..shared.load.args.clients {
        if let Some(connection) = connections.get(&(number % shared.load.connections)) {
            let client = Client {
                random: Random::new(shared.load.args.seed, u64::from(number)),
                number,
                window,
                shared: Arc::clone(&shared),
                outcome: Rc::clone(&outcome),
            };
            clients.push(tokio::task::spawn_local(client.run(Rc::clone(connection))));
        }
    }
    for client in clients {
        client.await?;
    }
    Ok(outcome.replace(Outcome::new()?))
}

/// A connection with what never changes in the requests on it.
struct Lane {
    connection: Connection,
    range: Call,
    put: Call,
}

impl Lane {
    async fn open(dialer: &Dialer, address: &HostPort) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Connection::open(dialer, address).await.map_err(|why| anyhow!(why))?,
            range: Call::new(address, "/etcdserverpb.KV/Range")?,
            put: Call::new(address, "/etcdserverpb.KV/Put")?,
        })
    }
}

/// Opens this thread's share of the connections, by their numbers.
async fn connect(shared: &Shared, thread: u32, threads: u32) -> anyhow::Result<BTreeMap<u32, Rc<Lane>>> {
    let endpoints = &shared.global.endpoints;
    let dialer = Dialer::new(&shared.global)?;
    let mut connections = BTreeMap::new();
    for number in (0..shared.load.connections).filter(|number| number % threads == thread) {
        let address = &endpoints[number as usize % endpoints.len()];
        connections.insert(number, Rc::new(Lane::open(&dialer, address).await?));
    }
    Ok(connections)
}

/// When the load begins, when measuring begins, and when both end.
#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    measure: Instant,
    end: Instant,
}

impl Window {
    fn new(load: &Load) -> Self {
        let begin = Instant::now();
        let measure = begin + load.args.warm_up;
        Self { begin, measure, end: measure + load.args.duration }
    }

    fn measures(&self, at: Instant) -> bool {
        self.measure <= at && at < self.end
    }
}

/// One request at a time.
struct Client {
    random: Random,
    number: u32,
    window: Window,
    shared: Arc<Shared>,
    outcome: Rc<RefCell<Outcome>>,
}

impl Client {
    async fn run(mut self, lane: Rc<Lane>) {
        let mut caller = Caller::new(&lane.connection);
        let interval = self.shared.load.args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut now = Instant::now();
        let mut sent: u32 = 0;
        while now < self.window.end {
            let start = match interval {
                None => now,
                Some(interval) => {
                    // The clients take turns: client i sends the requests i, i + clients, i + 2 * clients,
                    // ...
                    let turn =
                        f64::from(self.number) + f64::from(sent) * f64::from(self.shared.load.args.clients);
                    let due = self.window.begin + interval.mul_f64(turn);
                    if due >= self.window.end {
                        break;
                    }
                    if due > now {
                        tokio::time::sleep_until(due.into()).await;
                        // What the timer wakes too late is not the store's fault.
                        Instant::now()
                    } else {
                        due
                    }
                }
            };
            sent = sent.saturating_add(1);
            let reads = self.random.below(100) < usize::from(self.shared.load.reads_percent);
            let answer = match tokio::time::timeout(
                self.shared.global.timeout,
                self.request(&lane, &mut caller, reads),
            )
            .await
            {
                Ok(answer) => answer,
                Err(_elapsed) => Err(format!("no answer within {:?}", self.shared.global.timeout).into()),
            };
            now = Instant::now();
            if let Err(error) = answer {
                self.failed(error, start);
                tokio::time::sleep(ERROR_PAUSE).await;
                now = Instant::now();
            } else {
                self.answered(reads, start, now);
            }
        }
    }

    async fn request(
        &mut self,
        lane: &Lane,
        caller: &mut Caller<'_>,
        reads: bool,
    ) -> Result<(), Cow<'static, str>> {
        let material = &self.shared.material;
        let key = material.key(&mut self.random);
        let keyspace = material.keyspace(&mut self.random).map(|name| (&self.shared.keyspace_header, name));
        if reads {
            let serializable = self.shared.load.serializable;
            let request = RangeRequest { key, serializable, ..RangeRequest::default() };
            caller.call(&lane.range, keyspace, &request).await
        } else {
            let value = material.value(&mut self.random);
            let request = PutRequest { key, value, ..PutRequest::default() };
            caller.call(&lane.put, keyspace, &request).await
        }
    }

    fn answered(&self, reads: bool, start: Instant, end: Instant) {
        let mut outcome = self.outcome.borrow_mut();
        let side = if reads { &mut outcome.gets } else { &mut outcome.puts };
        if self.window.measures(end) {
            side.completed += 1;
        }
        if self.window.measures(start) {
            let us = u64::try_from((end - start).as_micros()).unwrap_or(LATENCY_US_MAX);
            side.latency_us.saturating_record(us);
        }
    }

    fn failed(&self, error: Cow<'static, str>, start: Instant) {
        if self.window.measures(start) {
            *self.outcome.borrow_mut().errors.entry(error.into_owned()).or_default() += 1;
        }
    }
}
