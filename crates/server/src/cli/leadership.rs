//! `pontoon transfer-leadership`, `take-leadership` and `change-election-timer`.

use std::time::Duration;

use clap::Args;
use pontoon_proto::v1::{ChangeElectionTimerRequest, TakeLeadershipRequest, TransferLeadershipRequest};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::Hex;

/// Flags of `transfer-leadership`.
#[derive(Args, Debug)]
pub(crate) struct TransferArgs {
    /// The group's name: a keyspace, or `meta`
    group: String,
    /// The store that is to lead: its name, its peer address or the first digits of its id [default: the
    /// leader chooses]
    store: Option<String>,
}

/// Flags of `take-leadership`.
#[derive(Args, Debug)]
pub(crate) struct TakeArgs {
    /// The group's name: a keyspace, or `meta`
    group: String,
}

/// Flags of `change-election-timer`.
#[derive(Args, Debug)]
pub(crate) struct TimerArgs {
    /// The group's name: a keyspace, or `meta`
    group: String,
    /// How long a leader may be silent: 100ms to 10m, at most twice what it is now
    #[arg(value_parser = crate::config::units::election_timeout)]
    timer: Duration,
}

#[derive(Serialize)]
struct Timer {
    group: String,
    before_ms: u64,
    election_timer_ms: u64,
}

#[derive(Serialize)]
struct Leader {
    group: String,
    leader: Hex,
    term: u64,
}

impl Leader {
    fn print(self, global: &Global) -> anyhow::Result<()> {
        global
            .output
            .print(&self, |now| format!("{} is led by {} in term {}", now.group, now.leader, now.term))
    }
}

/// Asks a group's leader to hand over, and prints who leads then.
pub(crate) async fn transfer(args: TransferArgs, global: &Global) -> anyhow::Result<()> {
    let TransferArgs { group, store } = args;
    let request = TransferLeadershipRequest { group: group.clone(), store: store.unwrap_or_default() };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.transfer_leadership(request.clone()).await)
            .await?;
    Leader { group, leader: Hex(answer.leader), term: answer.term }.print(global)
}

/// Makes the store that is asked lead, and prints who leads then.
pub(crate) async fn take(args: TakeArgs, global: &Global) -> anyhow::Result<()> {
    let group = args.group;
    let request = TakeLeadershipRequest { group: group.clone() };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.take_leadership(request.clone()).await)
            .await?;
    Leader { group, leader: Hex(answer.leader), term: answer.term }.print(global)
}

/// Has a group's leader change the election timer, and prints what was and what is.
pub(crate) async fn change_timer(args: TimerArgs, global: &Global) -> anyhow::Result<()> {
    let TimerArgs { group, timer } = args;
    let election_timer_ms = u64::try_from(timer.as_millis()).unwrap_or(u64::MAX);
    let request = ChangeElectionTimerRequest { group: group.clone(), election_timer_ms };
    // A second time finds the timer as wanted.
    let answer =
        ask(global, Repeat::Harmless, async |client| client.change_election_timer(request.clone()).await)
            .await?;
    let timer = Timer { group, before_ms: answer.before_ms, election_timer_ms: answer.election_timer_ms };
    global.output.print(&timer, |now| {
        format!("{}: the election timer is {} ms, was {} ms", now.group, now.election_timer_ms, now.before_ms)
    })
}
