//! The torture of a real cluster: three processes on this machine, load over the etcd API, kill -9 and SIGSTOP.
//!
//! | module | what it does |
//! |---|---|
//! | `args` | the command line |
//! | `cluster` | starts, kills, stops and continues the three stores: Pontoon's, or etcd's for comparison |
//! | `containers`, `engine` | stores in containers, cut off, paused, killed, replaced, added and removed |
//! | `client` | one connection to one store; which errors mean that nothing happened |
//! | `upgrade` | two builds in one cluster |
//! | `workload` | clients that write unique values, read, swap and delete, and write down what they saw |
//! | `faults` | the seeded schedule of kills and stops |
//! | `verify` | what must hold at the end: nothing lost, all stores equal, the history linearizable |
//! | `run` | load, faults and checks in order, and the summary |
//! | `failover` | how long no write is served after the leader is killed |
//! | `grow` | many groups follow stores: a store joins, another is kicked, under load |
//! | `memory` | how the stores' memory behaves while one follower is stopped |
//! | `weather` | what slow links, slow stores and floods cost the others: ratios and bounds |
//! | `record` | the history as a file |
//! | `random` | the seeded generator |

mod args;
mod client;
mod cluster;
mod containers;
mod engine;
mod failover;
mod faults;
mod grow;
mod memory;
mod metrics;
mod random;
mod record;
mod run;
mod upgrade;
mod verify;
mod weather;
mod workload;

pub(crate) use args::{Arguments, Command};
pub(crate) use cluster::become_child;

/// Does what the command line asks for; whether everything held.
///
/// # Errors
/// If the cluster could not be started or driven, so that nothing can be said.
pub(crate) async fn main(arguments: Arguments) -> anyhow::Result<bool> {
    let work = async {
        match arguments.command {
            None => run::run(&arguments.run).await,
            Some(Command::Failover(failover)) => failover::run(&failover).await,
            Some(Command::Memory(memory)) => memory::run(&memory).await,
            Some(Command::Containers(containers)) => containers::run(&containers).await,
            Some(Command::Upgrade(upgrade)) => upgrade::run(&upgrade).await,
            Some(Command::Grow(grow)) => grow::run(&grow).await,
            Some(Command::Check(check)) => record::check_file(&check.file),
            Some(Command::Weather(weather)) => weather::run(&weather).await,
            Some(Command::Child(_)) => anyhow::bail!("a child is not run from here"),
        }
    };
    tokio::select! {
        outcome = work => outcome,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            anyhow::bail!("interrupted");
        }
    }
}
