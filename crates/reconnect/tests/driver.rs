//! The driver against scripted connections, in paused time: not a millisecond of it is waited for.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pontoon_reconnect::driver::{Connection, Driver, Event, Handle, Jitter};
use pontoon_reconnect::{BackoffLimits, State};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// What happened and when, in milliseconds since the start.
#[derive(Clone)]
struct Log(Instant, Arc<Mutex<Vec<(u64, &'static str)>>>);

impl Log {
    fn new() -> Self {
        Self(Instant::now(), Arc::default())
    }

    fn note(&self, what: &'static str) {
        let at = u64::try_from(self.0.elapsed().as_millis()).unwrap();
        self.1.lock().unwrap().push((at, what));
    }

    fn take(&self) -> Vec<(u64, &'static str)> {
        std::mem::take(&mut self.1.lock().unwrap())
    }
}

/// A connection whose peer is the test.
struct Wire {
    events: mpsc::UnboundedReceiver<Event>,
    /// Answers probes after so long; `None`: never.
    answers: Option<mpsc::UnboundedSender<Event>>,
    log: Log,
}

impl Connection for Wire {
    async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => pending().await,
        }
    }

    fn probe(&mut self) {
        self.log.note("probe");
        if let Some(answers) = self.answers.clone() {
            tokio::spawn(async move {
                sleep(Duration::from_millis(40)).await;
                let _ = answers.send(Event::Activity);
            });
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.log.note("closed");
    }
}

/// How the peer treats one attempt.
#[derive(Clone, Copy)]
enum Peer {
    Refuses,
    Hangs,
    Answers,
    Silent,
}

struct Set {
    handle: Handle,
    log: Log,
    /// The other ends of the connections made so far.
    peers: Arc<Mutex<Vec<mpsc::UnboundedSender<Event>>>>,
}

impl Set {
    fn say(&self, event: Event) {
        self.peers.lock().unwrap().last().unwrap().send(event).unwrap();
    }
}

/// Starts a driver whose attempts meet `script`, and the last entry for ever.
fn start(script: &[Peer], jitter: Option<Jitter>, set_up: impl FnOnce(&Handle)) -> Set {
    let (log, peers) = (Log::new(), Arc::new(Mutex::new(Vec::new())));
    let mut script: VecDeque<_> = script.iter().copied().collect();
    let connector = {
        let (log, peers) = (log.clone(), Arc::clone(&peers));
        move || {
            let peer = script[0];
            if script.len() > 1 {
                script.pop_front();
            }
            log.note("attempt");
            let (sender, events) = mpsc::unbounded_channel();
            let answers = matches!(peer, Peer::Answers).then(|| sender.clone());
            peers.lock().unwrap().push(sender);
            let log = log.clone();
            async move {
                match peer {
                    Peer::Refuses => Err("refused"),
                    Peer::Hangs => pending().await,
                    Peer::Answers | Peer::Silent => Ok(Wire { events, answers, log }),
                }
            }
        }
    };
    let (mut driver, handle) = Driver::new(connector);
    if let Some(jitter) = jitter {
        driver = driver.with_jitter(jitter);
    }
    set_up(&handle);
    tokio::spawn(driver.run());
    Set { handle, log, peers }
}

async fn pass(ms: u64) {
    sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn attempts_follow_the_back_off_rule() {
    let set = start(&[Peer::Refuses], None, |handle| handle.set_free_tries(3));
    pass(60_500).await;
    let times: Vec<_> = set.log.take().into_iter().map(|(at, _)| at).collect();
    assert_eq!(times[..7], [0, 0, 0, 1000, 3000, 7000, 15_000]);
    assert_eq!(times.len() as u64, BackoffLimits::default().attempts_within(60_500, 3));
    assert_eq!(set.handle.last_error().as_deref(), Some("refused"));
    assert_eq!(set.handle.stats().backoff_ms, 8000);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_abandoned() {
    let set = start(&[Peer::Hangs], None, |_| {});
    pass(10_500).await;
    // Patience 1 s, wait 1 s; patience 1 s, wait 2 s; patience 2 s, wait 4 s.
    let times: Vec<_> = set.log.take().into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [0, 2000, 5000]);
    assert_eq!(set.handle.last_error().as_deref(), Some("no connection within 2000 ms"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_probed_then_dropped() {
    let set = start(&[Peer::Silent, Peer::Answers], None, |handle| handle.set_probe_for_election_timer(1000));
    pass(4001).await;
    assert_eq!(set.log.take(), [(0, "attempt"), (2000, "probe"), (4000, "closed")]);
    assert_eq!(set.handle.last_error().as_deref(), Some("no answer to a probe within 2000 ms"));
    // The next one answers its probes and stays; each answer starts the timer anew.
    pass(7000).await;
    assert_eq!(set.log.take(), [(5000, "attempt"), (7000, "probe"), (9040, "probe")]);
    assert_eq!(set.handle.stats().seqno, 3);
    // A longer election timer is followed at once: the last answer came at 9080.
    set.handle.set_probe_for_election_timer(4000);
    pass(3100).await;
    assert_eq!(set.log.take(), [(14_080, "probe")]);
}

#[tokio::test(start_paused = true)]
async fn graceful_costs_no_wait_and_forced_does() {
    let set = start(&[Peer::Answers, Peer::Refuses, Peer::Answers, Peer::Answers], None, |_| {});
    pass(500).await;
    set.log.take();
    // Two remotes: the drop and one failure are free.
    set.say(Event::Unsuitable { remotes: 2 });
    pass(100).await;
    assert_eq!(set.log.take(), [(500, "closed"), (500, "attempt"), (500, "attempt")]);
    assert!(set.handle.stats().is_connected());
    // A sick peer costs a wait, however well it worked.
    pass(400).await;
    set.say(Event::Sick("nonsense".into()));
    pass(1500).await;
    assert_eq!(set.log.take(), [(1000, "closed"), (2000, "attempt")]);
    assert_eq!(set.handle.last_error().as_deref(), Some("nonsense"));
    // And by the handle.
    set.handle.graceful_reconnect(2);
    pass(1).await;
    assert_eq!(set.log.take(), [(2500, "closed"), (2500, "attempt")]);
    set.handle.force_reconnect("told so");
    pass(1).await;
    assert_eq!(set.handle.stats().backoff_ms, 0, "one free try was left");
    set.handle.force_reconnect("told so");
    pass(1).await;
    assert_eq!(set.handle.stats().backoff_ms, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_is_made_again() {
    let set = start(&[Peer::Answers], None, |_| {});
    pass(10).await;
    set.say(Event::Activity);
    set.say(Event::Closed("end of file".into()));
    pass(1100).await;
    assert_eq!(set.log.take(), [(0, "attempt"), (10, "closed"), (1010, "attempt")]);
    assert_eq!(set.handle.last_error().as_deref(), Some("end of file"));
}

#[tokio::test(start_paused = true)]
async fn disabling_closes_and_enabling_begins_anew() {
    let set = start(&[Peer::Answers], None, |_| {});
    let mut states = set.handle.states();
    pass(10).await;
    assert_eq!(*states.borrow_and_update(), State::Active);
    set.handle.disable();
    pass(10_000).await;
    assert_eq!(*states.borrow_and_update(), State::Void);
    assert_eq!(set.log.take(), [(0, "attempt"), (10, "closed")]);
    set.handle.enable();
    pass(10).await;
    assert_eq!(set.log.take(), [(10_010, "attempt")]);
    // At once after another, before the driver could see the first.
    set.handle.disable();
    set.handle.enable();
    pass(10).await;
    assert_eq!(set.log.take(), [(10_020, "closed"), (10_020, "attempt")]);
    assert_eq!(set.handle.stats().successes, 3);
}

#[tokio::test(start_paused = true)]
async fn jitter_only_lengthens_the_waits() {
    let jitter = Jitter { percent: 25, seed: 7 };
    let mut seen = Vec::new();
    for seed in [7, 7, 8] {
        let set = start(&[Peer::Refuses], Some(Jitter { seed, ..jitter }), |_| {});
        pass(40_000).await;
        let times: Vec<_> = set.log.take().into_iter().map(|(at, _)| at).collect();
        for (gap, rule) in times.windows(2).map(|pair| pair[1] - pair[0]).zip([1000, 2000, 4000, 8000, 8000])
        {
            assert!((rule..=rule + rule / 4).contains(&gap), "{gap} for {rule}");
        }
        seen.push(times);
    }
    assert_eq!(seen[0], seen[1], "the seed decides");
    assert_ne!(seen[0], seen[2]);
}

/// A driver that is held up (here: its thread sleeps) past both probe timers does not drop a peer whose answer waits to
/// be read.
#[tokio::test]
async fn a_busy_process_drops_no_healthy_peer() {
    let set = start(&[Peer::Answers], None, |handle| handle.set_probe_interval(1000));
    pass(1010).await;
    // The probe is out and its answer comes in 40 ms; nobody looks for it for longer than the probe interval.
    std::thread::sleep(Duration::from_millis(1200));
    pass(100).await;
    assert!(set.handle.stats().is_connected());
    assert_eq!(set.handle.stats().attempts, 1);
}
