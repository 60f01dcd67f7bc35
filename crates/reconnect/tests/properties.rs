//! What holds for every sequence of inputs, with numbers up to `u64::MAX` and a clock that may jump either way.

use pontoon_reconnect::{Action, BackoffLimits, Reconnect, State};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Input {
    Time(u64),
    Advance(u64),
    ToDeadline,
    Run,
    Enable,
    Disable,
    Connecting,
    Connected,
    ConnectFailed,
    Disconnected,
    Activity,
    ReceiveAttempted,
    ReceiveAlways,
    Listening,
    ListenError,
    Force,
    Graceful(u64),
    Reset(u64),
    FreeTries(u64),
    MaxTries(Option<u64>),
    Backoff(u64, u64),
    Probe(u64),
    RaftProbe(u64),
    Joining,
    Passive(bool),
}

/// Small, near the configured times, and near the ends of the range.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..12_000u64,
        1 => 0..4u64,
        1 => (0..3u64).prop_map(|below| u64::MAX - below),
        1 => (0..3u64).prop_map(|off| u64::MAX / 2 - 1 + off),
        1 => any::<u64>(),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        1 => number().prop_map(Input::Time),
        4 => (0..9000u64).prop_map(Input::Advance),
        1 => number().prop_map(Input::Advance),
        5 => Just(Input::ToDeadline),
        6 => Just(Input::Run),
        4 => Just(Input::Enable),
        1 => Just(Input::Disable),
        3 => Just(Input::Connecting),
        4 => Just(Input::Connected),
        3 => Just(Input::ConnectFailed),
        4 => Just(Input::Disconnected),
        3 => Just(Input::Activity),
        4 => Just(Input::ReceiveAttempted),
        1 => Just(Input::ReceiveAlways),
        1 => Just(Input::Listening),
        1 => Just(Input::ListenError),
        2 => Just(Input::Force),
        1 => number().prop_map(Input::Graceful),
        1 => number().prop_map(Input::Reset),
        1 => number().prop_map(Input::FreeTries),
        1 => prop::option::weighted(0.7, number()).prop_map(Input::MaxTries),
        1 => (number(), number()).prop_map(|(min, max)| Input::Backoff(min, max)),
        1 => number().prop_map(Input::Probe),
        1 => number().prop_map(Input::RaftProbe),
        1 => Just(Input::Joining),
        1 => any::<bool>().prop_map(Input::Passive),
    ]
}

/// Applies one input; the answer is what `run` said if it was `Run`.
fn apply(machine: &mut Reconnect, now: &mut u64, input: &Input) -> Option<Action> {
    match *input {
        Input::Time(at) => *now = at,
        Input::Advance(ms) => *now = now.saturating_add(ms),
        Input::ToDeadline => *now = machine.next_deadline(*now).unwrap_or(*now).max(*now),
        Input::Run => return machine.run(*now),
        Input::Enable => machine.enable(*now),
        Input::Disable => machine.disable(*now),
        Input::Connecting => machine.connecting(*now),
        Input::Connected => machine.connected(*now),
        Input::ConnectFailed => machine.connect_failed(*now),
        Input::Disconnected => machine.disconnected(*now),
        Input::Activity => machine.activity(*now),
        Input::ReceiveAttempted => machine.receive_attempted(*now),
        Input::ReceiveAlways => machine.receive_always(),
        Input::Listening => machine.listening(*now),
        Input::ListenError => machine.listen_error(*now),
        Input::Force => machine.force_reconnect(*now),
        Input::Graceful(remotes) => machine.graceful_reconnect(*now, remotes),
        Input::Reset(remotes) => machine.reset_backoff(remotes),
        Input::FreeTries(tries) => machine.set_free_tries(tries),
        Input::MaxTries(tries) => machine.set_max_tries(tries),
        Input::Backoff(min, max) => machine.set_backoff(min, max),
        Input::Probe(ms) => machine.set_probe_interval(ms),
        Input::RaftProbe(ms) => machine.set_probe_for_election_timer(ms),
        Input::Joining => machine.set_probe_for_joining(),
        Input::Passive(passive) => machine.set_passive(*now, passive),
    }
    None
}

/// Whether the machine learns from this input what time it is.
fn tells_the_time(input: &Input) -> bool {
    !matches!(
        input,
        Input::Time(_)
            | Input::Advance(_)
            | Input::ToDeadline
            | Input::ReceiveAlways
            | Input::Reset(_)
            | Input::FreeTries(_)
            | Input::MaxTries(_)
            | Input::Backoff(..)
            | Input::Probe(_)
            | Input::RaftProbe(_)
            | Input::Joining
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No panic; the back-off is 0 or was within the limits when it was set; one thing asked at a time; asked exactly
    /// when the deadline has come; statistics agree with each other.
    #[test]
    fn any_sequence_of_inputs(start in number(), inputs in prop::collection::vec(input(), 0..120)) {
        let (mut now, mut machine, mut latest) = (start, Reconnect::new(start), start);
        for input in &inputs {
            let before = machine.stats(latest);
            let due = machine.next_deadline(now).is_some_and(|deadline| deadline <= now.max(latest));
            let action = apply(&mut machine, &mut now, input);
            if tells_the_time(input) {
                latest = latest.max(now);
            }
            let after = machine.stats(latest);
            if matches!(input, Input::Run) {
                prop_assert_eq!(action.is_some(), due);
                let expected = match before.state {
                    State::Backoff => Some(Action::Connect),
                    State::Active => Some(Action::Probe),
                    State::Connecting | State::Idle | State::Reconnect => Some(Action::Disconnect),
                    State::Void | State::Listening => None,
                };
                prop_assert!(action.is_none() || action == expected);
                prop_assert_eq!(after.state, if action == Some(Action::Probe) { State::Idle } else { before.state });
            }
            prop_assert!(after.min_backoff_ms >= 1000 && after.min_backoff_ms <= after.max_backoff_ms);
            if after.backoff_ms != before.backoff_ms {
                let within = (after.min_backoff_ms..=after.max_backoff_ms).contains(&after.backoff_ms);
                let cut = matches!(input, Input::Backoff(..)) && after.backoff_ms == after.max_backoff_ms;
                prop_assert!(after.backoff_ms == 0 || within || cut, "{:?} -> {:?}", before, after);
            }
            if after.state == State::Backoff && before.state != State::Backoff {
                prop_assert!(after.backoff_ms <= after.max_backoff_ms);
            }
            prop_assert_eq!(after.is_connected(), after.seqno % 2 == 1);
            prop_assert!(after.successes <= after.attempts);
            prop_assert!(after.connected_ms >= before.connected_ms);
            prop_assert!(after.seqno >= before.seqno && after.attempts >= before.attempts);
        }
    }

    /// A caller that obeys always gets on: after it did what was asked and the time of the deadline has come, it is
    /// asked again; a deadline is in the past at most once per thing done.
    #[test]
    fn deadlines_lead_on(
        start in 0..1_000_000u64,
        inputs in prop::collection::vec(input(), 0..60),
        outcomes in prop::collection::vec((0..5u8, 0..7000u64), 30..60),
    ) {
        let (mut now, mut machine) = (start, Reconnect::new(start));
        for input in inputs.iter().filter(|input| !matches!(input, Input::Time(_) | Input::Advance(9001..))) {
            apply(&mut machine, &mut now, input);
        }
        // However it came here, from now on the caller behaves; a finite number of free tries are without wait.
        machine.set_free_tries(2);
        let mut waived = 0;
        for (outcome, late_ms) in outcomes {
            let Some(deadline) = machine.next_deadline(now) else { break };
            now = deadline.max(now).saturating_add(if outcome == 4 { late_ms } else { 0 });
            machine.receive_attempted(now);
            let seqno = machine.seqno();
            let asked = machine.run(now);
            match asked {
                Some(Action::Connect) => {
                    machine.connecting(now);
                    match outcome {
                        0 => machine.connect_failed(now),
                        1 => machine.connected(now),
                        2 => machine.listening(now),
                        _ => {}
                    }
                }
                Some(Action::Disconnect) => machine.disconnected(now),
                Some(Action::Probe) => {
                    if outcome == 1 {
                        machine.activity(now);
                    }
                }
                // Only the receive gate may wake the caller for nothing, and it cannot when receiving was tried.
                None => prop_assert!(now == u64::MAX, "woken at {} for nothing: {:?}", now, machine),
            }
            let in_the_past = machine.next_deadline(now).is_some_and(|deadline| deadline <= now);
            if in_the_past && now != u64::MAX {
                // Only a waived back-off is due at once, and a forced drop.
                prop_assert_eq!(machine.state(), State::Backoff);
                prop_assert_eq!(machine.backoff_ms(), 0);
                prop_assert!(seqno % 2 == 1 || machine.seqno() == seqno);
                waived += usize::from(!machine.stats(now).passive);
            }
            prop_assert!(waived <= 1, "free tries that do not end");
        }
    }

    /// What happened on earlier connections has no influence on the back-off after a later one: a machine with a past
    /// and one without it, brought to the same back-off, go on alike.
    #[test]
    fn earlier_connections_do_not_count(
        past in prop::collection::vec((0..20_000u64, 0..20_000u64), 1..6),
        wait in 0..20_000u64,
        active_after in prop::option::of(0..20_000u64),
        lives in 0..20_000u64,
        half_made in any::<bool>(),
    ) {
        let mut now = 0;
        let mut old = Reconnect::new(now);
        old.set_probe_interval(0);
        old.enable(now);
        for (busy_ms, silent_ms) in past {
            old.connected(now);
            now += busy_ms;
            old.activity(now);
            now += silent_ms;
            old.disconnected(now);
        }
        // Both fail until the back-off is at the maximum, the young one without ever having connected.
        let mut young = Reconnect::new(now);
        young.set_probe_interval(0);
        young.enable(now);
        for _ in 0..4 {
            old.connect_failed(now);
            young.connect_failed(now);
        }
        now += wait;
        for machine in [&mut old, &mut young] {
            machine.connecting(now);
            if half_made {
                // A forced end of a half-made connection.
                machine.force_reconnect(now + lives);
            } else {
                machine.connected(now);
                if let Some(after) = active_after {
                    machine.activity(now + after.min(lives));
                }
            }
            machine.disconnected(now + lives);
        }
        prop_assert_eq!(old.backoff_ms(), young.backoff_ms());
        prop_assert_eq!(old.next_deadline(now + lives), young.next_deadline(now + lives));
        if half_made {
            prop_assert_eq!(old.backoff_ms(), 8000);
        }
    }

    /// The attempts of a machine that reaches nobody are exactly what the rule allows, under any limits.
    #[test]
    fn attempts_are_what_the_rule_allows(
        min in 0..5000u64, max in 0..20_000u64, free in 0..6u64, window in 0..200_000u64,
    ) {
        let mut machine = Reconnect::new(0);
        machine.set_backoff(min, max);
        machine.set_free_tries(free);
        machine.enable(0);
        let mut attempts = 0;
        while let Some(at) = machine.next_deadline(0).filter(|&at| at <= window) {
            prop_assert_eq!(machine.run(at), Some(Action::Connect));
            machine.connect_failed(at);
            attempts += 1;
        }
        prop_assert_eq!(attempts, BackoffLimits::new(min, max).attempts_within(window, free));
    }
}

/// A clock that goes back counts as one that stands still.
#[test]
fn time_does_not_go_back() {
    let mut machine = Reconnect::new(10_000);
    machine.enable(9_000);
    machine.connected(0);
    machine.activity(12_000);
    machine.disconnected(11_000);
    let stats = machine.stats(0);
    assert_eq!((stats.last_connected, stats.last_disconnected), (Some(10_000), Some(12_000)));
    assert_eq!(machine.next_deadline(0), Some(13_000));
    assert_eq!(machine.run(12_999), None);
    assert_eq!(machine.run(13_000), Some(Action::Connect));
}
