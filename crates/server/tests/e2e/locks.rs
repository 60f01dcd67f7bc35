//! Leases and locks while stores are killed, stopped and cut off, checked against what their holders can know.
//!
//! All clients are in this process and so have one clock. What each of them may rely on:
//! - a lease lives at least its TTL from the moment before the last keep-alive that was answered was *sent*;
//! - it ends within TTL and two election timeouts after the last answer, where a fault counts anew from its end;
//! - who was told that he has a lock is the only one until he gives it back, or his lease may be over by what he knows;
//! - in the history, who was told so stood first in the line at some revision up to the one in the answer, and what he
//!   writes under the condition that his place is there is written while he is first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::watch_client::WatchClient;
use pontoon_proto::etcdserverpb::watch_request::RequestUnion;
use pontoon_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};
use pontoon_proto::mvccpb::event::EventType;
use pontoon_proto::v3lockpb::lock_client::LockClient;
use pontoon_proto::v3lockpb::{LockRequest, UnlockRequest};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, PATIENCE};
use crate::failures::{ALLOWED, arm};

const TTL: Duration = Duration::from_secs(3);
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// What a busy machine may add to what is measured from outside: elections that need a second try, and calls that fail
/// before one gets through.
const SLACK: Duration = Duration::from_secs(10);
const FAULTS: usize = 6;
const LOCKS: usize = 2;

/// An event of a line or of what lock holders write.
#[derive(Clone, Debug)]
struct Event {
    key: String,
    value: String,
    revision: i64,
    create_revision: i64,
    deleted: bool,
}

/// Somebody was told that he has a lock.
#[derive(Clone, Debug)]
struct Held {
    lock: String,
    /// His place in the line.
    key: String,
    /// In the answer.
    revision: i64,
    /// When he was told.
    from: Instant,
    /// When he began to give it back, or could rely on his lease no longer.
    until: Instant,
}

/// A lease that nobody renews any more.
struct Abandoned {
    key: String,
    /// Just before the last renewal that was answered was sent.
    sent: Instant,
    /// When its answer was there.
    answered: Instant,
    /// When its key was first seen to be gone.
    gone: Option<Instant>,
}

#[derive(Default)]
struct Seen {
    violations: Vec<String>,
    held: Vec<Held>,
    abandoned: Vec<Abandoned>,
    renewals: usize,
    /// Began, ended.
    faults: Vec<(Instant, Instant)>,
}

struct World {
    endpoints: Vec<String>,
    over: AtomicBool,
    seen: Mutex<Seen>,
}

impl World {
    fn channel(&self, store: usize) -> Channel {
        let address = format!("http://{}", self.endpoints[store % self.endpoints.len()]);
        let endpoint = Endpoint::from_shared(address).expect("an address");
        endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(2)).connect_lazy()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic")
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn violation(&self, what: String) {
        self.seen().violations.push(what);
    }
}

async fn grant(world: &World, store: usize, id: i64) -> Result<(), Status> {
    let ttl = i64::try_from(TTL.as_secs()).expect("small");
    let granted = LeaseClient::new(world.channel(store)).lease_grant(LeaseGrantRequest { ttl, id }).await?;
    assert_eq!(granted.into_inner().ttl, ttl);
    Ok(())
}

/// The TTL that is left; 0 if there is no such lease.
async fn renew(world: &World, store: usize, id: i64) -> Result<i64, Status> {
    let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
    let answers = LeaseClient::new(world.channel(store)).lease_keep_alive(once).await?;
    let answer = answers.into_inner().message().await?;
    world.seen().renewals += 1;
    answer.map(|answer| answer.ttl).ok_or_else(|| Status::unavailable("the stream ended"))
}

/// Holds leases and renews them in time, if the stores let it.
async fn keep_alive(world: Arc<World>, number: i64) {
    let mut store = usize::try_from(number).expect("small");
    for round in 0.. {
        let id = 1_000_000 * (number + 1) + round;
        let mut sent = Instant::now();
        if grant(&world, store, id).await.is_err() {
            store += 1;
        } else {
            loop {
                if !world.goes_on() {
                    return;
                }
                tokio::time::sleep(TTL / 8).await;
                let now = Instant::now();
                match renew(&world, store, id).await {
                    Ok(0) => {
                        let age = sent.elapsed();
                        if age < TTL {
                            world.violation(format!("lease {id} was gone {age:?} after a renewal was sent"));
                        }
                        break;
                    }
                    Ok(_) => sent = now,
                    Err(_) => store += 1,
                }
            }
        }
        if !world.goes_on() {
            return;
        }
    }
}

/// Makes leases with a key, renews them once, and leaves them.
async fn abandon(world: Arc<World>) {
    for round in 0..i64::MAX {
        if !world.goes_on() {
            return;
        }
        let (id, store) = (900_000_000 + round, usize::try_from(round).expect("small"));
        let key = format!("left/{id}");
        let made = async {
            grant(&world, store, id).await?;
            let put = PutRequest { key: key.clone().into(), lease: id, ..PutRequest::default() };
            KvClient::new(world.channel(store)).put(put).await?;
            let sent = Instant::now();
            match renew(&world, store + 1, id).await? {
                0 => Err(Status::not_found("it is over")),
                _ => Ok(sent),
            }
        };
        let made: Result<Instant, Status> = made.await;
        if let Ok(sent) = made {
            let answered = Instant::now();
            world.seen().abandoned.push(Abandoned { key, sent, answered, gone: None });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Looks which of the abandoned leases' keys are still there, until all are gone and no more come.
async fn look(world: Arc<World>) {
    let start = Instant::now();
    for store in 0.. {
        let waiting = world.seen().abandoned.iter().filter(|a| a.gone.is_none()).count();
        if waiting == 0 && !world.goes_on() {
            return;
        }
        assert!(start.elapsed() < 2 * PATIENCE, "{waiting} leases never end");
        // Those that are in the list now have been there before the read.
        let listed = world.seen().abandoned.len();
        let all = RangeRequest { key: "left/".into(), range_end: "left0".into(), ..RangeRequest::default() };
        if let Ok(found) = KvClient::new(world.channel(store)).range(all).await {
            let now = Instant::now();
            let there: Vec<_> = found.into_inner().kvs.into_iter().map(|kv| kv.key).collect();
            let mut seen = world.seen();
            let mut early = Vec::new();
            for lease in seen.abandoned[..listed].iter_mut().filter(|lease| lease.gone.is_none()) {
                if !there.iter().any(|key| *key == lease.key.as_bytes()) {
                    lease.gone = Some(now);
                    if now < lease.sent + TTL {
                        early.push(format!("{} was gone {:?} after a renewal", lease.key, now - lease.sent));
                    }
                }
            }
            seen.violations.extend(early);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Takes locks, does something under them, and gives them back.
async fn compete(world: Arc<World>, number: i64) {
    let mut store = usize::try_from(number).expect("small");
    for round in 0..i64::MAX {
        if !world.goes_on() {
            return;
        }
        let id = 1_000_000_000 * (number + 1) + round;
        let lock = format!("lock{}", (number + round).unsigned_abs() as usize % LOCKS);
        if hold(&world, store, &lock, id).await.is_err() {
            // Where this one stands in a line, the next ones wait for the end of its lease.
            store += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn hold(world: &World, store: usize, lock: &str, id: i64) -> Result<(), Status> {
    let channel = world.channel(store);
    grant(world, store, id).await?;
    let request = LockRequest { name: lock.to_owned().into(), lease: id };
    let mut locks = LockClient::new(channel.clone());
    let mut asked = std::pin::pin!(locks.lock(request));
    // Who waits in line keeps the lease alive.
    let mut sent;
    let answer = loop {
        sent = Instant::now();
        if renew(world, store, id).await? == 0 {
            return Err(Status::not_found("it is over"));
        }
        if let Ok(answer) = tokio::time::timeout(TTL / 4, asked.as_mut()).await {
            break answer?.into_inner();
        }
    };
    let from = Instant::now();
    let key = String::from_utf8(answer.key.to_vec()).expect("made of ASCII");
    let revision = answer.header.expect("a header").revision;
    let mut held = Held { lock: lock.to_owned(), key: key.clone(), revision, from, until: sent + TTL };
    let done = async {
        for _ in 0..3 {
            let written = write_under(&channel, lock, &key).await?;
            if !written && sent.elapsed() < TTL {
                world.violation(format!("{key} lost its lock {:?} after a renewal was sent", sent.elapsed()));
            }
            if !written {
                break;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        held.until = held.until.min(Instant::now());
        locks_unlock(&channel, &key).await
    };
    let done = done.await;
    world.seen().held.push(held);
    done
}

async fn locks_unlock(channel: &Channel, key: &str) -> Result<(), Status> {
    LockClient::new(channel.clone()).unlock(UnlockRequest { key: key.to_owned().into() }).await.map(drop)
}

/// Writes its name, if its place is there.
async fn write_under(channel: &Channel, lock: &str, key: &str) -> Result<bool, Status> {
    let put = PutRequest {
        key: format!("under/{lock}").into(),
        value: key.to_owned().into(),
        ..PutRequest::default()
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Create.into(),
            key: key.to_owned().into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(Op::RequestPut(put)) }],
        failure: Vec::new(),
    };
    Ok(KvClient::new(channel.clone()).txn(txn).await?.into_inner().succeeded)
}

/// One fault after the other, each on one store.
async fn torment(cluster: &mut Cluster, world: &World) {
    for n in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        // The leader every other time: there it hurts.
        let up = [0, 1, 2];
        let leader = cluster.leader(&up).await;
        let store = if n % 2 == 0 { leader } else { (leader + 1 + n / 2 % 2) % 3 };
        let began = Instant::now();
        match n % 3 {
            0 => {
                cluster.kill(store);
                tokio::time::sleep(Duration::from_millis(700)).await;
                cluster.restart(store);
            }
            1 => {
                cluster.signal(store, "STOP");
                tokio::time::sleep(Duration::from_millis(1800)).await;
                cluster.signal(store, "CONT");
            }
            // It goes on, and its clients reach it, but no other store does: the leader does not know at once that it is
            // none any more.
            _ => {
                arm(cluster, store, "stop-raft-rpc");
                tokio::time::sleep(Duration::from_millis(2500)).await;
                arm(cluster, store, "clear");
            }
        }
        world.seen().faults.push((began, Instant::now()));
    }
}

/// Everything that was ever written, in order.
async fn history(cluster: &Cluster) -> Vec<Event> {
    cluster.put(0, "zz/end", "").await;
    let end = cluster.range(0, "zz/end", false).await.kvs[0].mod_revision;
    let create = WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut client = WatchClient::new(cluster.channel(0).await);
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([create]), tokio_stream::pending());
    let mut answers = client.watch(requests).await.expect("a watch").into_inner();
    let mut events = Vec::new();
    loop {
        let answer = answers.message().await.expect("no error").expect("no end");
        for event in answer.events {
            let deleted = event.r#type == i32::from(EventType::Delete);
            let kv = event.kv.expect("a key");
            if kv.mod_revision >= end {
                return events;
            }
            events.push(Event {
                key: String::from_utf8_lossy(&kv.key).into_owned(),
                value: String::from_utf8_lossy(&kv.value).into_owned(),
                revision: kv.mod_revision,
                create_revision: kv.create_revision,
                deleted,
            });
        }
    }
}

/// Who stands first in a line, from which revision on.
fn holders(history: &[Event], lock: &str) -> Vec<(i64, Option<String>)> {
    let prefix = format!("{lock}/");
    let mut line: BTreeMap<i64, String> = BTreeMap::new();
    let mut firsts: Vec<(i64, Option<String>)> = Vec::new();
    for event in history.iter().filter(|event| event.key.starts_with(&prefix)) {
        if event.deleted {
            line.retain(|_, key| *key != event.key);
        } else {
            line.insert(event.create_revision, event.key.clone());
        }
        let first = line.values().next().cloned();
        match firsts.last_mut() {
            // Of several events of one revision, the state after the last one counts.
            Some((revision, last)) if *revision == event.revision => *last = first,
            _ => firsts.push((event.revision, first)),
        }
    }
    firsts
}

/// What in a history shows that a lock was held twice.
fn held_twice(history: &[Event], held: &[Held]) -> Vec<String> {
    let mut violations = Vec::new();
    for one in held {
        let was_first = holders(history, &one.lock)
            .iter()
            .any(|(revision, first)| *revision <= one.revision && first.as_ref() == Some(&one.key));
        if !was_first {
            violations.push(format!("{one:?} never stood first"));
        }
        for other in held.iter().filter(|other| other.lock == one.lock && other.key > one.key) {
            if one.from < other.until && other.from < one.until {
                violations.push(format!("{one:?} and {other:?} at the same time"));
            }
        }
    }
    for event in history {
        let Some(lock) = event.key.strip_prefix("under/") else { continue };
        let firsts = holders(history, lock);
        let now = firsts.iter().rev().find(|(revision, _)| *revision <= event.revision);
        if now.and_then(|(_, first)| first.as_ref()) != Some(&event.value) {
            violations.push(format!("{event:?} while {now:?} was first"));
        }
    }
    violations
}

/// When a lease must have ended: a fault before that counts anew from its end.
fn due(answered: Instant, faults: &[(Instant, Instant)]) -> Instant {
    let allowed = TTL + 2 * ELECTION_TIMEOUT + SLACK;
    let mut due = answered + allowed;
    for (began, ended) in faults.iter().filter(|(_, ended)| *ended > answered) {
        if *began <= due {
            due = due.max(*ended + allowed);
        }
    }
    due
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_locks_keep_their_word_while_stores_are_killed_stopped_and_cut_off() {
    let mut cluster = Cluster::start(3, ALLOWED);
    cluster.leader(&[0, 1, 2]).await;
    let endpoints = (0..3).map(|i| cluster.endpoint(i)).collect();
    let world = Arc::new(World { endpoints, over: AtomicBool::new(false), seen: Mutex::default() });
    let mut clients: Vec<_> = (0..4).map(|n| tokio::spawn(keep_alive(Arc::clone(&world), n))).collect();
    clients.extend((0..6).map(|n| tokio::spawn(compete(Arc::clone(&world), n))));
    clients.push(tokio::spawn(abandon(Arc::clone(&world))));
    clients.push(tokio::spawn(look(Arc::clone(&world))));

    torment(&mut cluster, &world).await;
    // With everybody up again locks go round.
    let before = world.seen().held.len();
    let start = Instant::now();
    while world.seen().held.len() < before + 6 {
        assert!(start.elapsed() < PATIENCE, "nobody gets a lock any more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no panic");
    }

    let history = history(&cluster).await;
    let seen = std::mem::take(&mut *world.seen());
    let mut violations = seen.violations;
    violations.extend(held_twice(&history, &seen.held));
    for lease in &seen.abandoned {
        let (gone, due) = (lease.gone.expect("looked for"), due(lease.answered, &seen.faults));
        if gone > due {
            violations.push(format!("{} ended {:?} too late", lease.key, gone - due));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    // It was worth the trouble.
    assert!(seen.held.len() > 20 && seen.abandoned.len() > 5 && seen.renewals > 50, "{}", seen.held.len());
    cluster.equal_hashes().await;
}

#[test]
fn a_lock_that_is_held_twice_is_found() {
    let event = |revision, key: &str, value: &str, create_revision, deleted| Event {
        key: key.into(),
        value: value.into(),
        revision,
        create_revision,
        deleted,
    };
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let held = |key: &str, revision, from, until| Held {
        lock: "l".into(),
        key: key.into(),
        revision,
        from: at(from),
        until: at(until),
    };
    let mut history = vec![
        event(2, "l/a", "", 2, false),
        event(3, "l/b", "", 3, false),
        event(4, "under/l", "l/a", 4, false),
        event(5, "l/a", "", 0, true),
        event(6, "under/l", "l/b", 4, false),
    ];
    let well = [held("l/a", 3, 1, 3), held("l/b", 5, 3, 4)];
    assert_eq!(held_twice(&history, &well), Vec::<String>::new());
    // Told before it was first; at the same time as another; wrote while another was first.
    assert_eq!(held_twice(&history, &[held("l/b", 4, 3, 4)]).len(), 1);
    assert_eq!(held_twice(&history, &[held("l/a", 3, 1, 3), held("l/b", 5, 2, 4)]).len(), 1);
    history.push(event(7, "under/l", "l/a", 4, false));
    assert_eq!(held_twice(&history, &well).len(), 1);
    // A lease counts anew from the end of a fault, and no further.
    let allowed = TTL + 2 * ELECTION_TIMEOUT + SLACK;
    assert_eq!(due(at(0), &[]), at(0) + allowed);
    assert_eq!(due(at(10), &[(at(2), at(4)), (at(11), at(13)), (at(500), at(501))]), at(13) + allowed);
}
