//! `pontoon bench watch`: many watchers beside a steady flow of puts, and whether each of them heard everything once.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use hdrhistogram::Histogram;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Figures, Global, LATENCY_US_MAX, millis, rate, value_size};
use crate::cli::connect::Dialer;
use crate::cli::output::{note, table};
use crate::config::units;

/// Puts in flight at most; when the store is slower than the rate, they wait for each other, and that counts.
const PUTS_MAX: usize = 2_000;
/// How long the last events are waited for.
const LAST_EVENTS_MAX: Duration = Duration::from_secs(10);

/// Watchers, and what they are told of.
#[derive(Args, Clone, Debug)]
pub(crate) struct WatchArgs {
    /// Watchers, each of one key
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    watchers: u32,

    /// Streams that they share, spread over the endpoints in turn, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,

    /// Keys that are watched and written [default: one per watcher]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: Option<u32>,

    /// Puts per second
    #[arg(long, value_name = "R", default_value = "1000", value_parser = rate)]
    rate: f64,

    /// Bytes in each value
    #[arg(long, value_name = "SIZE", default_value = "256", value_parser = value_size)]
    value_size: usize,

    /// How long to put without watchers, and then with them
    #[arg(long, value_name = "D", default_value = "10s", value_parser = units::positive_duration)]
    duration: Duration,

    /// Pause before the puts with watchers, for who wants to look at the stores' memory
    #[arg(long, value_name = "D", default_value = "0s", value_parser = units::duration)]
    pause: Duration,
}

#[derive(Serialize)]
struct Report {
    op: &'static str,
    endpoints: Vec<String>,
    watchers: u32,
    streams: u32,
    keys: u32,
    rate: f64,
    value_size: usize,
    duration_s: f64,
    put_alone: Figures,
    put_watched: Figures,
    /// From the put's start until the event is here.
    delivery: Figures,
    /// Events that should have come and did not.
    missing: u64,
    /// Events that came twice or out of order.
    disordered: u64,
}

impl Report {
    fn table(&self) -> String {
        let row = |what: &str, f: &Figures| {
            let latencies = [f.p50_us, f.p99_us, f.p999_us, f.max_us].map(millis);
            [what.to_owned(), f.requests.to_string(), format!("{:.1}", f.ops_per_s)]
                .into_iter()
                .chain(latencies)
        };
        let rows = [
            row("put, no watchers", &self.put_alone),
            row("put, watched", &self.put_watched),
            row("delivery", &self.delivery),
        ];
        table(&["load", "number>", "per s>", "p50>", "p99>", "p99.9>", "max>"], rows)
    }
}

/// What the watchers have heard, all together.
#[derive(Debug)]
struct Heard {
    events: AtomicU64,
    disordered: AtomicU64,
    delays_us: Mutex<Histogram<u64>>,
}

/// Loads, measures and reports.
pub(crate) fn run(args: &WatchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load(args, global))
}

async fn load(args: &WatchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let keys = args.keys.unwrap_or(args.watchers);
    let dialer = Dialer::new(global)?;
    let mut writers = Vec::new();
    for address in &global.endpoints {
        writers.push(KvClient::new(dialer.channel(address).await?));
    }
    let origin = Instant::now();
    let alone = put(args, &writers, keys, origin).await?;

    let heard = Arc::new(Heard {
        events: AtomicU64::new(0),
        disordered: AtomicU64::new(0),
        delays_us: Mutex::new(histogram()?),
    });
    // A stream ends when it is dropped.
    let mut streams = JoinSet::new();
    for stream in 0..args.streams {
        let channel = dialer.channel(&global.endpoints[stream as usize % global.endpoints.len()]).await?;
        let own: Vec<u32> =
            (stream..args.watchers).step_by(args.streams as usize).map(|w| w % keys).collect();
        let watching = open(channel, &own).await.with_context(|| format!("stream {stream}"))?;
        streams.spawn(listen(watching, Arc::clone(&heard), origin));
    }
    if !args.pause.is_zero() {
        note(&format!("{} watchers are open; pausing for {:?}", args.watchers, args.pause));
        tokio::time::sleep(args.pause).await;
    }
    let watched = put(args, &writers, keys, origin).await?;
    let expected = (0..args.watchers).map(|w| watched.by_key[(w % keys) as usize]).sum::<u64>();
    let last = Instant::now();
    while heard.events.load(Ordering::Relaxed) < expected && last.elapsed() < LAST_EVENTS_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if let Some(ended) = streams.try_join_next() {
        match ended? {
            Ok(()) => bail!("a watch stream ended; the store has to say why in its log"),
            Err(error) => return Err(error),
        }
    }
    let events = heard.events.load(Ordering::Relaxed);
    let delays = heard.delays_us.lock().unwrap_or_else(PoisonError::into_inner);
    let report = Report {
        op: "watch",
        endpoints: global.endpoints.iter().map(ToString::to_string).collect(),
        watchers: args.watchers,
        streams: args.streams,
        keys,
        rate: args.rate,
        value_size: args.value_size,
        duration_s: args.duration.as_secs_f64(),
        put_alone: Figures::new(alone.latency_us.len(), &alone.latency_us, args.duration),
        put_watched: Figures::new(watched.latency_us.len(), &watched.latency_us, args.duration),
        delivery: Figures::new(events, &delays, args.duration),
        missing: expected.saturating_sub(events),
        disordered: heard.disordered.load(Ordering::Relaxed),
    };
    global.output.print(&report, Report::table)?;
    if report.missing > 0 || report.disordered > 0 {
        bail!(
            "{} of {expected} events did not come within {LAST_EVENTS_MAX:?} of the last put, {} came twice or out of order",
            report.missing,
            report.disordered
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(LATENCY_US_MAX, 3)?)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(LATENCY_US_MAX).clamp(1, LATENCY_US_MAX)
}

fn key(number: u32) -> String {
    format!("bench-watch-{number:07}")
}

/// What the puts of one phase came to.
struct Puts {
    latency_us: Histogram<u64>,
    /// How many of each key.
    by_key: Vec<u64>,
}

/// Puts at the rate, each key in turn, and counts from when each should have begun. A value begins with that time.
async fn put(
    args: &WatchArgs,
    writers: &[KvClient<Channel>],
    keys: u32,
    origin: Instant,
) -> anyhow::Result<Puts> {
    let places = Arc::new(Semaphore::new(PUTS_MAX));
    let mut puts = Puts { latency_us: histogram()?, by_key: vec![0; keys as usize] };
    let mut calls = JoinSet::new();
    let begin = Instant::now();
    let count = (args.rate * args.duration.as_secs_f64()).ceil() as u64;
    for n in 0..count {
        let due = begin + Duration::from_secs_f64(n as f64 / args.rate);
        tokio::time::sleep_until(due.into()).await;
        let place = Arc::clone(&places).acquire_owned().await?;
        let number = u32::try_from(n % u64::from(keys))?;
        puts.by_key[number as usize] += 1;
        let mut value = vec![b'v'; args.value_size.max(size_of::<u64>())];
        value[..size_of::<u64>()].copy_from_slice(&micros(due - origin).to_le_bytes());
        let request = PutRequest { key: key(number).into(), value: value.into(), ..PutRequest::default() };
        let mut writer = writers[usize::try_from(n)? % writers.len()].clone();
        calls.spawn(async move {
            let _place = place;
            writer.put(request).await.map(|_| due.elapsed())
        });
        while let Some(call) = calls.try_join_next() {
            puts.latency_us.record(micros(call??))?;
        }
    }
    while let Some(call) = calls.join_next().await {
        puts.latency_us.record(micros(call??))?;
    }
    Ok(puts)
}

/// An open stream; dropping the requests would close it.
struct Watching {
    responses: tonic::Streaming<WatchResponse>,
    _requests: mpsc::Sender<WatchRequest>,
}

/// Opens a stream and its watchers.
async fn open(channel: Channel, keys: &[u32]) -> anyhow::Result<Watching> {
    let (requests, sent) = mpsc::channel(16);
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let first = |number: u32| {
        let create = WatchCreateRequest { key: key(number).into(), ..WatchCreateRequest::default() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    };
    // A server may answer the headers only after the first request.
    let mut keys = keys.iter().copied();
    let Some(number) = keys.next() else { bail!("there are more streams than watchers") };
    requests.send(first(number)).await?;
    let mut responses = client.watch(ReceiverStream::new(sent)).await?.into_inner();
    loop {
        let response = responses.message().await?.ok_or_else(|| anyhow!("the store closed the stream"))?;
        if response.canceled {
            bail!("a watcher was refused: {}", response.cancel_reason);
        }
        if response.created {
            match keys.next() {
                Some(number) => requests.send(first(number)).await?,
                None => return Ok(Watching { responses, _requests: requests }),
            }
        }
    }
}

/// Notes every event until the stream ends.
async fn listen(mut watching: Watching, heard: Arc<Heard>, origin: Instant) -> anyhow::Result<()> {
    let mut last: HashMap<i64, i64> = HashMap::new();
    while let Some(response) = watching.responses.message().await? {
        let now = micros(origin.elapsed());
        let mut delays = heard.delays_us.lock().unwrap_or_else(PoisonError::into_inner);
        for kv in response.events.iter().filter_map(|event| event.kv.as_ref()) {
            let last = last.entry(response.watch_id).or_default();
            if kv.mod_revision <= *last {
                heard.disordered.fetch_add(1, Ordering::Relaxed);
            }
            *last = (*last).max(kv.mod_revision);
            let Some(sent) = kv.value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else { continue };
            delays.record(now.saturating_sub(sent).clamp(1, LATENCY_US_MAX))?;
            heard.events.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
