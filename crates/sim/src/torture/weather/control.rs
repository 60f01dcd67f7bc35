//! T2 and T3: two transports in this process, so that one clock sees both ends, and a link of a fixed rate between them. The
//! log lane is kept full while heartbeats leave at fixed times.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use pontoon_raft_core::message::{AppendEntries, Body, Entries as Carried, Heartbeat, Message};
use pontoon_raft_core::types::{Entry, EntryId, GroupId, LogIndex, Payload, ReplicaId, StoreId, Term};
use pontoon_transport::{
    Direction, EntrySource, Inbound, Lane, LinkStatus, ProposalReply, ReceivePermit, Refused,
    RelayedProposal, SnapshotSink, Transport, TransportConfig, incoming, server_builder,
};
use tokio::net::TcpListener;

use super::proxy::Proxy;
use super::{ControlArguments, Verdict};

const A: StoreId = StoreId(0xa);
const B: StoreId = StoreId(0xb);
/// Between two heartbeats.
const EVERY: Duration = Duration::from_millis(10);
/// Beyond the round trip.
const DELAY_MAX: Duration = Duration::from_millis(25);
/// A group of small entries on the log lane, beside those that fill it.
const SMALL: GroupId = GroupId(100);
/// What of a giant's time on the wire a small entry of another group may take: it waits for what is on the way to the peer, and
/// for its turn.
const SMALL_PART_MAX: f64 = 0.2;

/// What fills the log lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entries {
    /// 64 KiB each.
    Usual,
    /// 64 MiB each: seconds on the wire.
    Giant,
}

impl Entries {
    fn bytes(self) -> usize {
        match self {
            Self::Usual => 64 << 10,
            Self::Giant => 64 << 20,
        }
    }
}

/// One end. Its log has an entry of one size at every index.
struct Host {
    command: Bytes,
    /// When each heartbeat left, by its round.
    sent: Arc<Mutex<Vec<Instant>>>,
    delays: Arc<Mutex<Vec<Duration>>>,
    /// Of small entries, whose appends have the rounds as indexes.
    small_delays: Mutex<Vec<Duration>>,
    log_bytes: AtomicU64,
}

impl Host {
    fn note(&self, round: u64, delays: &Mutex<Vec<Duration>>) {
        let now = Instant::now();
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = sent.get(round as usize) {
            delays.lock().unwrap_or_else(PoisonError::into_inner).push(now - *at);
        }
    }
}

impl Inbound for Host {
    fn receive(&self, _: StoreId, messages: Vec<(GroupId, Message)>, _: ReceivePermit) {
        for (group, message) in messages {
            match message.body {
                Body::Heartbeat(heartbeat) => self.note(heartbeat.round, &self.delays),
                Body::AppendEntries(append) if group == SMALL => {
                    self.note(append.prev_log_index.0, &self.small_delays);
                }
                Body::AppendEntries(AppendEntries { entries: Carried::Inline(entries), .. }) => {
                    let bytes: u64 = entries.iter().map(Entry::size_bytes).sum();
                    self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
    fn proposals(&self, _: StoreId, _: Vec<RelayedProposal>) {}
    fn proposal_replies(&self, _: StoreId, _: Vec<ProposalReply>) {}
    fn unreachable(&self, _: StoreId, _: Vec<GroupId>) {}
    fn link_down(&self, _: StoreId, _: bool) {}
    fn link_up(&self, _: StoreId) {}
    fn snapshot_begin(&self, _: StoreId, _: GroupId, _: Message) -> Result<Box<dyn SnapshotSink>, Refused> {
        Err(Refused::UnknownReplica)
    }
    fn snapshot_sent(&self, _: StoreId, _: GroupId, _: ReplicaId, _: bool) {}
}

impl EntrySource for Host {
    fn entries(
        &self,
        group: GroupId,
        prev: LogIndex,
        last: LogIndex,
        term: Term,
        _: u64,
    ) -> Option<Vec<Entry>> {
        // One at a time, as a log with entries of this size would give.
        let index = prev.next();
        let command = if group == SMALL { self.command.slice(..100) } else { self.command.clone() };
        let payload = Payload::Command(command);
        (index <= last).then(|| vec![Entry { index, term, id: EntryId(u128::from(index.0)), payload }])
    }
}

struct End {
    transport: Transport,
    host: Arc<Host>,
    proxy: Proxy,
}

async fn end(store: StoreId, entries: Entries) -> anyhow::Result<End> {
    let host = Arc::new(Host {
        command: vec![7; entries.bytes()].into(),
        sent: Arc::default(),
        delays: Arc::default(),
        small_delays: Mutex::default(),
        log_bytes: AtomicU64::new(0),
    });
    let mut config = TransportConfig::new(1, store, "weather");
    if entries == Entries::Giant {
        config.limits.message_bytes_max = entries.bytes() + (1 << 20);
        config.limits.receive_bytes_max = 4 * entries.bytes() as u64;
    }
    let runtime = tokio::runtime::Handle::current();
    let transport = Transport::start(config, Arc::<Host>::clone(&host), Arc::<Host>::clone(&host), runtime);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::to(listener.local_addr()?).await?;
    tokio::spawn(
        server_builder().add_service(transport.peer_service()).serve_with_incoming(incoming(listener)),
    );
    Ok(End { transport, host, proxy })
}

/// Stands for one entry of a group's log.
fn append(prev: u64) -> Message {
    message(Body::AppendEntries(AppendEntries {
        prev_log_index: LogIndex(prev),
        prev_log_term: Term(1),
        leader_commit: LogIndex(prev),
        entries: Carried::Interval { last: LogIndex(prev + 1), last_term: Term(1) },
    }))
}

fn message(body: Body) -> Message {
    let replica = |store| ReplicaId { store, number: 1 };
    Message { from: replica(A), to: replica(B), term: Term(1), doubt: None, body }
}

/// Sends heartbeats for a while, with the log lane full or idle. Returns their delays, in order.
async fn beat(a: &End, b: &End, length: Duration, full: bool) -> anyhow::Result<Vec<Duration>> {
    let log = |link: &LinkStatus| link.lane == Lane::Log && link.direction == Direction::Outbound;
    let mut next = 0;
    let start = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    let first = b.host.sent.lock().unwrap_or_else(PoisonError::into_inner).len();
    b.host.delays.lock().unwrap_or_else(PoisonError::into_inner).clear();
    b.host.small_delays.lock().unwrap_or_else(PoisonError::into_inner).clear();
    while start.elapsed() < length {
        ticks.tick().await;
        let waiting = a.transport.links().into_iter().find(log).map_or(0, |link| link.queued_messages);
        if full && waiting < 64 {
            let appends = (0..64).map(|_| {
                next += 1;
                (GroupId(1 + next % 20), append(next))
            });
            a.transport.send_all(B, appends);
        }
        let round = {
            let mut sent = b.host.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.push(Instant::now());
            sent.len() as u64 - 1
        };
        let heartbeat = Heartbeat { leader_commit: LogIndex(1), round, quiesce: false };
        a.transport.send(B, GroupId(9), message(Body::Heartbeat(heartbeat)));
        if round % 10 == 0 {
            a.transport.send(B, SMALL, append(round));
        }
    }
    let sent = b.host.sent.lock().unwrap_or_else(PoisonError::into_inner).len() - first;
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let delays = b.host.delays.lock().unwrap_or_else(PoisonError::into_inner).len();
        if delays >= sent {
            break;
        }
        if Instant::now() > patience {
            bail!("{} of {sent} heartbeats did not arrive", sent - delays);
        }
        tokio::time::sleep(EVERY).await;
    }
    let mut delays = b.host.delays.lock().unwrap_or_else(PoisonError::into_inner).clone();
    delays.sort_unstable();
    Ok(delays)
}

/// Two ends that know each other, with their links up.
async fn linked(entries: Entries) -> anyhow::Result<(End, End)> {
    let (a, b) = (end(A, entries).await?, end(B, entries).await?);
    a.transport.set_peer(B, b.proxy.address.to_string());
    b.transport.set_peer(A, a.proxy.address.to_string());
    let patience = Instant::now() + Duration::from_secs(10);
    while [&a, &b].iter().any(|end| end.transport.links().iter().any(|link| !link.connected)) {
        if Instant::now() > patience {
            bail!("the two ends do not find each other");
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok((a, b))
}

pub(crate) async fn run(arguments: &ControlArguments, entries: Entries) -> anyhow::Result<bool> {
    let (a, b) = linked(entries).await?;
    a.proxy.set_rate(arguments.rate);
    b.proxy.set_rate(arguments.rate);
    let length = Duration::from_secs(arguments.seconds);
    let at = |delays: &[Duration], share: f64| delays[((delays.len() - 1) as f64 * share).ceil() as usize];
    let idle = beat(&a, &b, length.min(Duration::from_secs(5)), false).await?;
    let ms = |delay: Duration| delay.as_secs_f64() * 1e3;
    println!("one way, idle: p50 {:.2} ms, p99 {:.2} ms", ms(at(&idle, 0.5)), ms(at(&idle, 0.99)));
    let carried = b.proxy.carried();
    let full = beat(&a, &b, length, true).await?;
    let used = (b.proxy.carried() - carried) as f64 / length.as_secs_f64() / arguments.rate as f64;
    println!(
        "one way, log lane full: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, worst {:.2} ms; {} heartbeats",
        ms(at(&full, 0.5)),
        ms(at(&full, 0.99)),
        ms(at(&full, 0.999)),
        ms(at(&full, 1.0)),
        full.len()
    );
    let mut small = b.host.small_delays.lock().unwrap_or_else(PoisonError::into_inner).clone();
    small.sort_unstable();
    if !small.is_empty() {
        println!(
            "small entries beside them: p50 {:.2} ms, p99 {:.2} ms; {} arrived",
            ms(at(&small, 0.5)),
            ms(at(&small, 0.99)),
            small.len()
        );
    }
    let mut verdict = Verdict::default();
    let round_trip = at(&idle, 0.5) * 2;
    verdict.at_least("part of the link in use", used, 0.5);
    verdict.at_most("p99 of a heartbeat's delay, ms", ms(at(&full, 0.99)), ms(round_trip + DELAY_MAX));
    if entries == Entries::Giant {
        let p99 = if small.is_empty() { length } else { at(&small, 0.99) };
        let giant = entries.bytes() as f64 / arguments.rate as f64;
        let part = p99.as_secs_f64() / giant;
        verdict.at_most("p99 of a small entry's delay, as a part of a giant's time", part, SMALL_PART_MAX);
    }
    let links = a.transport.links().into_iter().chain(b.transport.links());
    let lost: u64 = links.map(|link| link.disconnections).sum();
    verdict.at_most("connections lost, of both lanes", lost as f64, 0.0);
    let arrived = b.host.log_bytes.load(Ordering::Relaxed) as f64 / entries.bytes() as f64;
    verdict.at_least("entries that arrived", arrived, 1.0);
    a.transport.shutdown();
    b.transport.shutdown();
    Ok(verdict.holds())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test itself, in small: the link fills, and every heartbeat arrives. How soon, a busy machine cannot say.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn heartbeats_cross_a_full_link() {
        let (a, b) = linked(Entries::Usual).await.unwrap();
        b.proxy.set_rate(20_000_000);
        let idle = beat(&a, &b, Duration::from_millis(200), false).await.unwrap();
        let carried = b.proxy.carried();
        let full = beat(&a, &b, Duration::from_millis(500), true).await.unwrap();
        assert!(!idle.is_empty() && !full.is_empty());
        assert!(b.proxy.carried() - carried > 1 << 20, "the log lane was used");
        a.transport.shutdown();
        b.transport.shutdown();
    }
}
