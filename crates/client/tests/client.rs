//! The client against fake stores: real gRPC over loopback, no replication.

mod fake;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use fake::{Cluster, NOBODY, Proxy};
use pontoon_client::proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op};
use pontoon_client::{CallError, Client, Config, Keyspace, Outcome};
use pontoon_reconnect::BackoffLimits;
use tokio::time::{Instant, sleep};
use tonic::Code;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The remotes in order, so that tests know who is tried next.
fn config(cluster: &Cluster) -> Config {
    let mut config = Config::new(cluster.remotes());
    config.shuffle = false;
    config.leader_check_interval = ms(30);
    config
}

fn leader_only(cluster: &Cluster) -> Config {
    let mut config = config(cluster);
    config.leader_only = true;
    config
}

/// Waits until a session has what is wanted of it.
async fn until(keyspace: &Keyspace, wanted: impl Fn(&pontoon_client::SessionStatus) -> bool) {
    let start = Instant::now();
    while !wanted(&keyspace.session()) {
        assert!(start.elapsed() < ms(8000), "{:?}", keyspace.session());
        sleep(ms(1)).await;
    }
}

#[tokio::test]
async fn calls_reach_the_keyspace_they_name() {
    let cluster = Cluster::start(1);
    let client = Client::new(config(&cluster)).unwrap();
    let tenant = client.keyspace("tenant-a").unwrap();
    assert_eq!(tenant.get("k").await.unwrap(), None);
    assert_eq!(tenant.put("k", "v").await.unwrap().header.unwrap().revision, 1);
    assert_eq!(tenant.get("k").await.unwrap().unwrap().value, "v");
    tenant.put("l", "w").await.unwrap();
    let range = RangeRequest { key: "a".into(), range_end: "z".into(), ..RangeRequest::default() };
    assert_eq!(tenant.range(range.clone()).await.unwrap().count, 2);
    assert!(tenant.delete("k").await.unwrap());
    assert!(!tenant.delete("k").await.unwrap());
    assert!(
        cluster.shared.keyspaces.lock().unwrap().drain(..).all(|name| name.as_deref() == Some("tenant-a"))
    );

    // A transaction that only reads carries no entry id.
    let read = RequestOp { request: Some(request_op::Request::RequestRange(range)) };
    let txn = TxnRequest { success: vec![read], ..TxnRequest::default() };
    assert!(!client.default_keyspace().txn(txn).await.unwrap().succeeded);
    assert_eq!(cluster.shared.keyspaces.lock().unwrap().drain(..).collect::<Vec<_>>(), [None]);

    // A refusal is final.
    let error = tenant.get("").await.unwrap_err();
    assert_eq!((error.outcome(), error.status().unwrap().code()), (Outcome::Refused, Code::InvalidArgument));
    assert_eq!(cluster.shared.keyspaces.lock().unwrap().len(), 1);
    assert!(client.keyspace("Tenant").is_err());
}

#[tokio::test]
async fn admin_calls() {
    let cluster = Cluster::start(1);
    let admin = Client::new(config(&cluster)).unwrap().admin();
    assert_eq!(admin.identity().await.unwrap().name, "store-0");
    assert_eq!(admin.create_keyspace("fresh", 3).await.unwrap().unwrap().id, 7);
    let error = admin.create_keyspace("taken", 3).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), Code::AlreadyExists);
    let error = admin.memory().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Refused);
}

#[tokio::test]
async fn a_session_has_as_many_connections_as_asked_for() {
    let cluster = Cluster::start(1);
    let mut config = config(&cluster);
    config.channels_per_store = 4;
    let client = Client::new(config).unwrap();
    let keyspaces: Vec<_> = (0..10).map(|n| client.keyspace(&format!("t{n}")).unwrap()).collect();
    for keyspace in &keyspaces {
        keyspace.put("k", "v").await.unwrap();
    }
    assert_eq!(cluster.accepted(), [4], "keyspaces share one session");
}

#[tokio::test]
async fn the_leader_is_found_without_waiting_and_hints_are_followed() {
    let cluster = Cluster::start(3);
    cluster.shared.strict.store(true, SeqCst);
    cluster.lead(2);
    let client = Client::new(leader_only(&cluster)).unwrap();
    let keyspace = client.default_keyspace();
    keyspace.put("k", "1").await.unwrap();
    assert_eq!(
        (keyspace.session().stats.attempts, keyspace.session().stats.backoff_ms),
        (3, 0),
        "no wait was made"
    );
    assert_eq!(cluster.accepted(), [1, 1, 2], "one look at each, and two channels where it suits");

    // All members are known now, so the one that is named is tried first: store 1 and not store 0.
    cluster.lead(1);
    keyspace.put("k", "2").await.unwrap();
    until(&keyspace, |session| session.remote.as_deref() == Some(&cluster.remotes()[1])).await;
    assert_eq!(cluster.accepted(), [1, 3, 2]);
    assert_eq!(
        (keyspace.session().stats.attempts, keyspace.session().stats.backoff_ms),
        (4, 0),
        "no wait was made"
    );
    // Two leader-only handles of one keyspace share a session; another keyspace has its own.
    client.default_keyspace().put("k", "3").await.unwrap();
    assert_eq!(cluster.accepted(), [1, 3, 2]);
    client.keyspace("other").unwrap().put("k", "4").await.unwrap();
    assert!(cluster.accepted().iter().sum::<usize>() > 6);
}

/// Between two leaders there is none for a moment: that must not use up the tries without back-off.
#[tokio::test]
async fn an_election_is_waited_for_without_back_off() {
    let cluster = Cluster::start(3);
    cluster.shared.strict.store(true, SeqCst);
    let keyspace = Client::new(leader_only(&cluster)).unwrap().default_keyspace();
    keyspace.put("k", "1").await.unwrap();
    let before = keyspace.session().stats.attempts;
    cluster.lead(NOBODY);
    until(&keyspace, |session| session.remote.is_none()).await;
    sleep(ms(150)).await;
    cluster.lead(2);
    until(&keyspace, |session| session.remote.as_deref() == Some(&cluster.remotes()[2])).await;
    let stats = keyspace.session().stats;
    assert_eq!(stats.backoff_ms, 0, "no wait was made");
    assert!(stats.attempts - before <= 4, "{} attempts", stats.attempts - before);
}

/// Issue 4: time without a connection per move. `PONTOON_LEADER_MOVES_S=60` makes it the long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_that_moves_every_300_ms() {
    let seconds = std::env::var("PONTOON_LEADER_MOVES_S").ok().map_or(4, |s| s.parse().unwrap());
    let cluster = Cluster::start(3);
    cluster.shared.strict.store(true, SeqCst);
    let keyspace = Client::new(leader_only(&cluster)).unwrap().default_keyspace();
    keyspace.put("k", "first").await.unwrap();

    // A steady writer beside, to which no move may cost more than a moment.
    let writer = tokio::spawn({
        let keyspace = keyspace.clone();
        async move {
            let (mut writes, mut slowest) = (0u64, Duration::ZERO);
            let end = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < end {
                let start = Instant::now();
                keyspace.put("k", "v").await.unwrap();
                (writes, slowest) = (writes + 1, slowest.max(start.elapsed()));
                sleep(ms(2)).await;
            }
            (writes, slowest)
        }
    });
    let (mut gaps, remotes) = (Vec::new(), cluster.remotes());
    for step in 0..seconds * 1000 / 300 {
        let next = usize::try_from(1 + step * 7 % 5).unwrap() % 3;
        if next == cluster.shared.leader.load(SeqCst) {
            continue;
        }
        let start = Instant::now();
        cluster.lead(next);
        until(&keyspace, |session| session.remote.as_deref() == Some(&remotes[next])).await;
        gaps.push(start.elapsed());
        sleep(ms(300).saturating_sub(start.elapsed())).await;
    }
    let (writes, slowest) = writer.await.unwrap();
    gaps.sort_unstable();
    let (median, most) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    eprintln!(
        "{} moves: without the right leader for {median:?} (median), {most:?} (most); {writes} writes, slowest {slowest:?}",
        gaps.len()
    );
    assert!(gaps.len() as u64 >= seconds && median < ms(300) && most < ms(2000));
    assert_eq!(keyspace.session().stats.backoff_ms, 0, "healthy stores cost no back-off");
}

/// Issue 4: all remotes down for a minute (of paused time): attempts made, against what the rule allows.
#[tokio::test(start_paused = true)]
async fn all_remotes_down_for_a_minute() {
    // Ports that were just free. Refusals come within the call that connects, so paused time does not run ahead.
    let listeners: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let remotes: Vec<_> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(listeners);
    let keyspace = Client::new(Config::new(remotes)).unwrap().default_keyspace().with_timeout(ms(60_000));
    let error = keyspace.put("k", "v").await.unwrap_err();
    assert!(matches!(error, CallError::NotConnected { remotes: 3, .. }), "{error:?}");
    assert!(error.is_retriable());
    let (made, allowed) =
        (keyspace.session().stats.attempts, BackoffLimits::default().attempts_within(60_000, 3));
    eprintln!("three remotes down for 60 s: {made} attempts, {allowed} allowed");
    assert!(made <= allowed && made >= allowed - 1, "{made} of {allowed}");
}

#[tokio::test]
async fn without_a_leader_the_back_off_limits_the_flood() {
    let cluster = Cluster::start(3);
    cluster.lead(NOBODY);
    let keyspace = Client::new(leader_only(&cluster)).unwrap().default_keyspace().with_timeout(ms(2500));
    let error = keyspace.put("k", "v").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotExecuted);
    assert!(error.to_string().contains("does not lead"), "{error}");
    let (made, allowed) = (cluster.accepted().iter().sum::<usize>() as u64, 3 + 1);
    assert_eq!(BackoffLimits::default().attempts_within(2500, 3), allowed);
    assert_eq!(made, allowed, "three free tries, and one after a second");
}

/// Stores that are connected to and then refuse every call as not leading must not get tries without waiting for ever.
#[tokio::test]
async fn stores_that_never_suit_are_not_flooded() {
    let cluster = Cluster::start(2);
    cluster.lead(NOBODY);
    cluster.shared.strict.store(true, SeqCst);
    let mut config = config(&cluster);
    config.channels_per_store = 1;
    let keyspace = Client::new(config).unwrap().default_keyspace().with_timeout(ms(1500));
    let error = keyspace.put("k", "v").await.unwrap_err();
    assert!(matches!(error, CallError::NotExecuted { .. }), "{error:?}");
    let made = cluster.accepted().iter().sum::<usize>();
    assert!((2..=4).contains(&made), "{made} connections in 1.5 s");
}

#[tokio::test]
async fn a_store_that_dies() {
    let mut cluster = Cluster::start(2);
    let client = Client::new(config(&cluster)).unwrap();
    let keyspace = client.default_keyspace();
    keyspace.put("k", "v").await.unwrap();
    cluster.shared.hang.store(true, SeqCst);
    let read = tokio::spawn({
        let keyspace = keyspace.clone();
        async move { keyspace.get("k").await }
    });
    let write = tokio::spawn({
        let keyspace = keyspace.clone();
        async move { keyspace.put("k", "w").await }
    });
    while cluster.shared.keyspaces.lock().unwrap().len() < 3 {
        sleep(ms(1)).await;
    }
    cluster.shared.hang.store(false, SeqCst);
    let start = Instant::now();
    cluster.stores[0].kill();
    // Both go elsewhere: the write under its name, so that it does not matter what became of it here.
    assert!(["v", "w"].contains(&str::from_utf8(&read.await.unwrap().unwrap().unwrap().value).unwrap()));
    write.await.unwrap().unwrap();
    assert_eq!(cluster.shared.keys.lock().unwrap()[&b"k"[..]].value, "w");
    assert_eq!(keyspace.session().remote.as_deref(), Some(&*cluster.remotes()[1]));
    assert!(start.elapsed() < ms(3000), "{:?}", start.elapsed());
    // With nobody left, nothing is sent.
    cluster.stores[1].kill();
    until(&keyspace, |session| session.remote.is_none()).await;
    let error = keyspace.clone().with_timeout(ms(100)).put("k", "x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotExecuted);
}

#[tokio::test]
async fn a_store_that_is_cut_off_is_found_by_probes() {
    let cluster = Cluster::start(2);
    let proxy = Proxy::start(cluster.stores[0].address).await;
    let mut config = config(&cluster);
    config.remotes[0] = proxy.address.to_string();
    config.probe_interval = ms(1000);
    let keyspace = Client::new(config).unwrap().default_keyspace();
    keyspace.put("k", "v").await.unwrap();
    proxy.freeze();
    let start = Instant::now();
    // The connections stay open and take bytes; only silence tells. The read is repeated at the other store.
    assert_eq!(keyspace.get("k").await.unwrap().unwrap().value, "v");
    eprintln!("cut off: found after {:?}, two probe intervals are 2 s", start.elapsed());
    assert!(start.elapsed() < ms(3500));
    let error = keyspace.session().last_error.unwrap();
    assert!(error.contains("no answer to a probe within 10"), "{error}");
}

/// Of several connections each must show its own sign of life.
#[tokio::test]
async fn an_idle_session_stays() {
    let cluster = Cluster::start(1);
    let mut config = config(&cluster);
    config.probe_interval = ms(1000);
    let keyspace = Client::new(config).unwrap().default_keyspace();
    keyspace.put("k", "v").await.unwrap();
    sleep(ms(3300)).await;
    assert_eq!(keyspace.session().stats.attempts, 1);
    assert!(keyspace.session().stats.since_connect_ms.unwrap() >= 3300);
    assert_eq!(cluster.accepted(), [2]);
}

#[tokio::test]
async fn a_store_that_accepts_and_never_answers_is_left() {
    let cluster = Cluster::start(1);
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&cluster);
    config.remotes.insert(0, mute.local_addr().unwrap().to_string());
    let start = Instant::now();
    Client::new(config).unwrap().default_keyspace().put("k", "v").await.unwrap();
    assert!(
        (ms(900)..ms(2000)).contains(&start.elapsed()),
        "an attempt may take a second: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn writes_of_unknown_outcome_are_sent_again_under_their_name() {
    let cluster = Cluster::start(1);
    let keyspace = Client::new(config(&cluster)).unwrap().default_keyspace();
    cluster.shared.lose_answers.store(3, SeqCst);
    keyspace.put("k", "v").await.unwrap();
    assert_eq!(cluster.shared.writes.load(SeqCst), 1, "applied once");
    assert_eq!(cluster.shared.entry_ids.lock().unwrap().values().max(), Some(&4), "sent four times");
    assert_eq!(cluster.shared.keys.lock().unwrap()[&b"k"[..]].version, 1);
    // Each write has a name of its own.
    keyspace.put("k", "w").await.unwrap();
    assert_eq!(cluster.shared.entry_ids.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn the_first_unknown_outcome_ends_a_write_where_names_are_not_known_or_not_wanted() {
    for nameless in [true, false] {
        let cluster = Cluster::start(1);
        cluster.shared.nameless.store(nameless, SeqCst);
        let mut config = config(&cluster);
        config.retry_unknown_writes = nameless;
        let keyspace = Client::new(config).unwrap().default_keyspace();
        keyspace.put("k", "v").await.unwrap();
        cluster.shared.lose_answers.store(1, SeqCst);
        let error = keyspace.put("k", "v").await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_eq!(cluster.shared.writes.load(SeqCst), 2);
    }
}

#[tokio::test]
async fn a_name_that_may_be_forgotten() {
    let cluster = Cluster::start(1);
    let keyspace = Client::new(config(&cluster)).unwrap().default_keyspace();
    keyspace.put("k", "1").await.unwrap();
    // Others have written much since: the refused attempt is followed by one with another name.
    cluster.shared.writes.store(50, SeqCst);
    cluster.shared.floor.store(40, SeqCst);
    keyspace.put("k", "2").await.unwrap();
    assert_eq!(cluster.shared.writes.load(SeqCst), 51);
    // But not when an earlier attempt may have been executed.
    cluster.shared.lose_answers.store(1, SeqCst);
    let shared = std::sync::Arc::clone(&cluster.shared);
    let others = tokio::spawn(async move {
        while shared.writes.load(SeqCst) < 52 {
            sleep(ms(1)).await;
        }
        shared.floor.store(1000, SeqCst);
    });
    let error = keyspace.put("k", "3").await.unwrap_err();
    others.await.unwrap();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    assert_eq!(cluster.shared.writes.load(SeqCst), 52);
}

#[tokio::test]
async fn deadlines_and_cancellation() {
    let cluster = Cluster::start(1);
    let keyspace = Client::new(config(&cluster)).unwrap().default_keyspace();
    keyspace.put("k", "v").await.unwrap();
    cluster.shared.hang.store(true, SeqCst);
    let start = Instant::now();
    let error = keyspace.clone().with_timeout(ms(200)).put("k", "w").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!((ms(190)..ms(600)).contains(&start.elapsed()), "{:?}", start.elapsed());
    // Many dropped calls do not disturb the others: they take turns on the same two connections.
    for _ in 0..200 {
        assert!(tokio::time::timeout(ms(1), keyspace.get("k")).await.is_err());
    }
    cluster.shared.hang.store(false, SeqCst);
    assert_eq!(keyspace.get("k").await.unwrap().unwrap().value, "v");
    assert_eq!(keyspace.session().stats.attempts, 1);
}
