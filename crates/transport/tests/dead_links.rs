//! Links whose far side is dead without saying so, under the load of a leader that goes on sending: each is found by its
//! probes within its bound, and what is held for it meanwhile, in the queue, in HTTP/2 and in the kernel, stays under the queue's bound.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Proxy, Store, Weather, append, eventually, heartbeat, proposal};
use pontoon_raft_core::types::GroupId;
use pontoon_transport::{Direction, Lane, LinkErrorKind, LinkStatus};

/// The bound of a lane's queue in these tests, for what waits and what is in flight together.
const QUEUE_BYTES: usize = 1 << 20;
/// A silence of an election timer (0.1 s) and the election range (1 s) starts a probe; the same again drops.
const INTERVAL: Duration = Duration::from_millis(1100);
/// For a machine that is busy with something else; no part of the rule.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was seen of one lane while the link was dead.
#[derive(Debug)]
struct Found {
    after: Duration,
    /// The most that waited in the queue and was in flight, as the link tells it.
    held: usize,
    /// The most that had been given to both connections and was not taken by the proxy: what HTTP/2's and the
    /// kernel's buffers held, as seen from outside.
    seen: usize,
}

/// Two stores, the second behind a proxy, and a leader's load on the way there.
struct Scene {
    a: Store,
    b: Option<Store>,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        let b = Store::start(0xb);
        let proxy = Proxy::to(b.address);
        let a = Store::start(0xa);
        // Nothing arrives by the other direction: b cannot dial, so that only probes can tell.
        b.transport.set_peer(a.id, "127.0.0.1:1");
        b.host.count_only.store(true, Ordering::Relaxed);
        a.transport.set_backlog_threshold(10_000, QUEUE_BYTES);
        a.transport.set_peer(b.id, proxy.address.to_string());
        a.host.set_entries(GroupId(1), 100, 1000);
        a.wait_up(b.id);
        Self { a, b: Some(b), proxy }
    }

    fn link(&self, lane: Lane) -> LinkStatus {
        self.a.link(pontoon_raft_core::types::StoreId(0xb), lane, Direction::Outbound).unwrap()
    }

    /// Lets `happen` happen, goes on sending as a leader does, and waits until both lanes have been dropped.
    fn find(&mut self, happen: impl FnOnce(&mut Self)) -> [Found; 2] {
        let lanes = [Lane::Control, Lane::Log];
        let before = lanes.map(|lane| self.link(lane));
        let taken = self.proxy.taken.load(Ordering::Relaxed);
        happen(self);
        let since = Instant::now();
        let mut found = lanes.map(|_| Found { after: Duration::ZERO, held: 0, seen: 0 });
        let mut serial = 0;
        while found.iter().any(|found| found.after.is_zero()) {
            assert!(since.elapsed() < PATIENCE, "not found: {:?}", lanes.map(|lane| self.link(lane)));
            let to = pontoon_raft_core::types::StoreId(0xb);
            for _ in 0..10 {
                serial += 1;
                self.a.transport.send(to, GroupId(2), heartbeat(self.a.id, to, serial));
                self.a.transport.send(to, GroupId(1), append(self.a.id, to, 0, 100));
                // Commands are held as bytes, and are what fills the queue; a full one refuses.
                let _ = self.a.transport.send_proposal(to, proposal(1, u128::from(serial), 16 << 10));
            }
            let given: u64 =
                lanes.iter().zip(&before).map(|(lane, before)| self.link(*lane).bytes - before.bytes).sum();
            let taken = self.proxy.taken.load(Ordering::Relaxed) - taken;
            for ((lane, before), found) in lanes.iter().zip(&before).zip(&mut found) {
                let link = self.link(*lane);
                if !found.after.is_zero() {
                    continue;
                }
                if link.disconnections > before.disconnections {
                    found.after = since.elapsed();
                } else {
                    found.held = found.held.max(link.queued_bytes + link.in_flight_bytes);
                    found.seen = found.seen.max((given as usize).saturating_sub(taken));
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        found
    }

    /// Both lanes were found dead by their probes, in time, and held no more than they may.
    fn assert_found(&self, what: &str, found: &[Found; 2]) {
        for (lane, found) in ["control", "log"].iter().zip(found) {
            eprintln!(
                "{what}: {lane} lane dropped after {:.2} s (bound {:.1} s), {} KiB held (bound {} KiB); the proxy \
                 missed {} KiB of both lanes",
                found.after.as_secs_f64(),
                2.0 * INTERVAL.as_secs_f64(),
                found.held >> 10,
                QUEUE_BYTES >> 10,
                found.seen >> 10,
            );
            // Not before the rule allows; the upper bound is that of a busy machine.
            assert!(found.after > INTERVAL, "{what}: {found:?}");
            assert!(found.after < 2 * INTERVAL + Duration::from_secs(5), "{what}: {found:?}");
            assert!(found.held <= QUEUE_BYTES, "{what}: {found:?}");
            assert!(found.seen <= 2 * QUEUE_BYTES, "{what}: {found:?}");
        }
        self.a.host.wait("down", |log| !log.down.is_empty());
    }

    /// When the way is clear again, so is the link.
    fn assert_recovers(&self) {
        self.proxy.set(Weather::Fair);
        self.a.wait_up(pontoon_raft_core::types::StoreId(0xb));
        eventually("the queues are empty", || {
            [Lane::Control, Lane::Log].iter().all(|lane| self.link(*lane).queued_bytes == 0)
        });
    }
}

fn weather(what: &str, weather: Weather) {
    let mut scene = Scene::new();
    let found = scene.find(|scene| scene.proxy.set(weather));
    scene.assert_found(what, &found);
    // (Where the peer is dead, the next attempt fails at once and is the last error then.)
    for lane in [Lane::Control, Lane::Log] {
        let link = scene.link(lane);
        assert_eq!(link.last_error_kind, Some(LinkErrorKind::Silent), "{what}: {link:?}");
    }
    scene.assert_recovers();
}

#[test]
fn accepts_and_never_reads() {
    weather("accepts and never reads", Weather::NeverReads);
}

#[test]
fn cut_on_the_way_back() {
    weather("cut on the way back", Weather::OneWay);
}

#[test]
fn cut_on_the_way_there() {
    weather("cut on the way there", Weather::OtherWay);
}

#[test]
fn trickles_a_byte_a_second() {
    weather("trickles a byte a second", Weather::Trickle);
}

#[test]
fn takes_everything_and_passes_nothing_on() {
    weather("takes everything, passes nothing on", Weather::BlackHole);
}

#[test]
fn a_proxy_keeps_the_connection_open_after_the_peer_died() {
    let mut scene = Scene::new();
    let found = scene.find(|scene| {
        scene.proxy.set(Weather::Orphans);
        scene.b.take().unwrap().kill();
    });
    scene.assert_found("the peer died behind a proxy", &found);
}

/// The bound follows the election timer while the link is up: both intervals, the idle one and the one that drops.
#[test]
fn a_changed_election_timer_changes_the_bound() {
    let mut scene = Scene::new();
    scene.a.transport.set_election_timer(1000);
    let found = scene.find(|scene| scene.proxy.set(Weather::BlackHole));
    for found in &found {
        eprintln!("election timer 1 s: dropped after {:.2} s (bound 4.0 s)", found.after.as_secs_f64());
        // An answer may have been on its way: one interval is sure, and with it that the old one is not used.
        assert!(found.after > Duration::from_millis(3800), "{found:?}");
    }
    scene.assert_recovers();
    scene.a.transport.set_election_timer(100);
    let found = scene.find(|scene| scene.proxy.set(Weather::BlackHole));
    for found in &found {
        assert!(found.after > INTERVAL && found.after < 2 * INTERVAL + Duration::from_secs(5), "{found:?}");
    }
}
