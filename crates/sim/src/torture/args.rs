//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Torments a three-store cluster on this machine and checks what its clients saw.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Kills the leader again and again and measures how long no write is served.
    Failover(FailoverArguments),
    /// Stops a follower under load and shows the stores' resident memory.
    Memory(MemoryArguments),
    /// Two builds in one cluster: a rolling upgrade under checked load, with one store that goes back on the way.
    Upgrade(UpgradeArguments),
    /// Many groups: a fourth store joins, the first is kicked, and what that costs the clients meanwhile.
    Grow(GrowArguments),
    /// Slow links, slow stores and floods, and what they cost the others.
    Weather(super::weather::WeatherArguments),
    /// Stores in containers on a network of their own: cut off, paused, killed, replaced, added and removed under load.
    Containers(ContainerArguments),
    /// Checks a history file again.
    Check(CheckArguments),
    /// Becomes the given program, and dies with the process that started it.
    #[command(hide = true)]
    Child(ChildArguments),
}

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArguments {
    /// The pontoon binary; default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    pub(crate) pontoon: Option<PathBuf>,
    /// Use three etcd members instead, for comparison.
    #[arg(long, value_name = "PATH", conflicts_with = "pontoon")]
    pub(crate) etcd: Option<PathBuf>,
    /// Election timeout in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(crate) election_timeout_ms: u64,
    /// Where the stores' directories are made; default: a new temporary directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the stores' directories and logs even if all is well.
    #[arg(long)]
    pub(crate) keep: bool,
    /// More flags for each store, after all others.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub(crate) store_flag: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// kill -9, and a restart after about a second.
    Kill,
    /// SIGSTOP, and SIGCONT after one to two seconds.
    Stop,
    /// No faults at all.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// How long load and faults last.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Clients, each with one call at a time.
    #[arg(long, default_value_t = 32)]
    pub(crate) clients: u32,
    /// Decides the faults and what each client does; default: from the clock.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Which faults; one of them hits a random store every `--fault-every-ms`.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kill,stop")]
    pub(crate) faults: Vec<Fault>,
    /// Time from fault to fault.
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub(crate) fault_every_ms: u64,
    /// Keyspaces to spread over; more than one only with Pontoon.
    #[arg(long, default_value_t = 1)]
    pub(crate) keyspaces: u32,
    /// Contended keys in each keyspace, besides those that are written once.
    #[arg(long, default_value_t = 40)]
    pub(crate) keys: u32,
    /// Bytes in each value, at least 16.
    #[arg(long, default_value_t = 64)]
    pub(crate) value_size: usize,
    /// How long a client waits for one answer.
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    pub(crate) timeout_ms: u64,
    /// How long load lasts around the moment when all three stores are killed at once; 0: leave that phase out.
    #[arg(long, default_value_t = 8)]
    pub(crate) all_killed_seconds: u64,
}

/// A play in containers.
#[derive(Debug, Args)]
pub(crate) struct ContainerArguments {
    /// The image; `deploy/local-image` makes it.
    #[arg(long, default_value = "pontoon:local")]
    pub(crate) image: String,
    /// The pontoon binary, for its commands; default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    pub(crate) pontoon: Option<PathBuf>,
    /// How long a store is cut off, paused or dead.
    #[arg(long, default_value_t = 4)]
    pub(crate) away_seconds: u64,
    /// Clients, each with one call at a time.
    #[arg(long, default_value_t = 8)]
    pub(crate) clients: u32,
    /// Decides what each client does.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct FailoverArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20)]
    pub(crate) tries: u32,
    /// Time from probe to probe.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    pub(crate) probe_every_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// How long the follower is stopped.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Clients, each with one call at a time, on the two other stores.
    #[arg(long, default_value_t = 64)]
    pub(crate) clients: u32,
    /// Bytes in each value.
    #[arg(long, default_value_t = 4096)]
    pub(crate) value_size: usize,
    /// Different keys that are overwritten.
    #[arg(long, default_value_t = 1000)]
    pub(crate) keys: u32,
    /// Puts a second of all clients together; default: as many as are answered.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// How long load runs before the follower is stopped, so that caches are warm.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) warm_up: u64,
    /// Time from compaction to compaction, so that history is not what grows; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) compact_every: u64,
    /// How long the follower may take to catch up.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) catch_up_seconds: u64,
}

/// From one build to another.
#[derive(Debug, Args)]
pub(crate) struct UpgradeArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// The pontoon binary of before; `--pontoon` is the one of after.
    #[arg(long, value_name = "PATH")]
    pub(crate) from: PathBuf,
    /// How long the cluster stays as it is between two changes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seconds: u64,
    /// Clients, each with one call at a time.
    #[arg(long, default_value_t = 16)]
    pub(crate) clients: u32,
    /// Decides what each client does.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// No store goes back to the build of before: for builds that write another format.
    #[arg(long)]
    pub(crate) no_way_back: bool,
}

/// Replicas of many groups on their way.
#[derive(Debug, Args)]
pub(crate) struct GrowArguments {
    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
    /// Keyspaces, each a group of three replicas.
    #[arg(long, default_value_t = 300)]
    pub(crate) groups: u64,
    /// Writes a second while all this happens.
    #[arg(long, default_value_t = 500.0)]
    pub(crate) rate: f64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    pub(crate) value_size: usize,
    /// How long it is written before, to compare with; and first of all, so that the groups hold something.
    #[arg(long, default_value_t = 20)]
    pub(crate) seconds: u64,
    /// How long a join or a kick may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) moves_max: u64,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// What a failed run left behind.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ChildArguments {
    /// What to become.
    pub(crate) program: PathBuf,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}
