//! The command line: what can be said, and who does it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use pontoon_node::{CrashPoint, Failures, Injection};

use crate::config::layers::{self, Sources};
use crate::config::{HostPort, units};
use crate::error::UsageError;
use crate::telemetry::{self, LogFormat};
use output::OutputFormat;

mod backlog;
mod backup;
mod bench;
mod check_cluster;
mod connect;
mod dev;
mod failure;
mod flow;
mod identity;
mod inspect;
mod keyspace;
mod leadership;
mod log;
mod log_level;
mod members;
mod memory;
mod offline;
pub(crate) mod output;
mod prepare;
mod recover;
mod restore;
mod saved;
mod screen;
mod serve;
mod status;
mod store;
mod top;

const AFTER_HELP: &str = "\
Every flag can also come from the environment (PONTOON_ and the flag in upper case, `-` as `_`)
and from the file of --config (TOML, the flag with `_` for `-`).
A flag wins over the environment, the environment over the file.
Exit codes: 0 done; 1 it failed while running; 2 usage, configuration or a data directory in the wrong state.";

/// Pontoon: a distributed, linearizable store that speaks the etcd v3 API
#[derive(Debug, Parser)]
#[command(name = "pontoon", version, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Client addresses of stores; each is tried in turn
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        value_parser = connect::endpoint
    )]
    pub(crate) endpoints: Vec<HostPort>,

    /// How long to wait for one store's answer
    #[arg(long, global = true, value_name = "D", default_value = "5s")]
    #[arg(value_parser = units::positive_duration)]
    pub(crate) timeout: Duration,

    /// `table` for people, or `json`: one document for programs
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub(crate) output: OutputFormat,

    /// Speak TLS, and trust stores with a certificate of these authorities (PEM)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cacert: Option<std::path::PathBuf>,

    /// Show this certificate to stores that ask for one (PEM)
    #[arg(long, global = true, value_name = "FILE", requires_all = ["key", "cacert"])]
    pub(crate) cert: Option<std::path::PathBuf>,

    /// Private key of --cert (PEM)
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<std::path::PathBuf>,

    /// Take flags from this TOML file too
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<std::path::PathBuf>,

    /// What to log: a level, or target=level pairs with commas between them [default: info for serve, else
    /// warn]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// How log lines look: `text` or `json`
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub(crate) log_format: LogFormat,

    /// Fail at this point from the start: a name that `failure-test` takes. For tests, never for production
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub(crate) failure_test: Option<Injection>,
}

impl Global {
    /// A command that takes several steps comes by here, and dies if that is wished.
    pub(crate) fn reach(&self, point: CrashPoint) {
        if let Some(wished) = self.failure_test {
            let failures = Failures::new(true);
            // It was just allowed.
            let _ = failures.arm(Some(wished));
            failures.reach(point);
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, for development and to try things out
    Dev(dev::DevArgs),
    /// Run a store
    Serve(Box<crate::config::ServeArgs>),
    /// Make a data directory that is a new cluster of one store
    CreateCluster(prepare::CreateArgs),
    /// Make a data directory that joins a running cluster when it is started
    JoinCluster(prepare::JoinArgs),
    /// Show what the data directory of a stopped store holds
    Inspect(inspect::InspectArgs),
    /// Verify Raft's guarantees over the records of stopped stores
    CheckCluster(check_cluster::CheckArgs),
    /// Go on without a quorum: plan and apply a recovery on stopped stores, and show those that were done
    #[command(subcommand)]
    Recover(recover::RecoverCommand),
    /// Show the cluster, or one group, as one store sees it
    Status(status::StatusArgs),
    /// Show the stores of the cluster
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Let the store that is asked leave its cluster, for ever
    Leave(members::LeaveArgs),
    /// Remove a store from the cluster, for ever, whether it runs or not
    Kick(members::KickArgs),
    /// Show the replicas that are on their way between stores
    Moves(members::MovesArgs),
    /// Write every keyspace and every log of the cluster to a directory; if it is broken off, run it again
    Backup(backup::BackupArgs),
    /// Make every keyspace and every log that `backup` wrote, in a cluster that has none of them
    Restore(backup::RestoreArgs),
    /// Make, list, describe, save, restore and delete keyspaces
    #[command(subcommand)]
    Keyspace(keyspace::KeyspaceCommand),
    /// Make, list, describe and delete logs, append to them, read and follow them
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Ask a group's leader to hand its leadership over
    TransferLeadership(leadership::TransferArgs),
    /// Make the store that is asked lead a group
    TakeLeadership(leadership::TakeArgs),
    /// Change a group's election timer, at most to its double
    ChangeElectionTimer(leadership::TimerArgs),
    /// Change the bounds of the send queues of the store that is asked, until it is started again
    SetBacklogThreshold(backlog::BacklogArgs),
    /// Change the flow control of the store that is asked, until it is started again
    SetFlowControl(flow::FlowArgs),
    /// Watch the stores, the links of the one that is asked, and the busiest groups
    Top(top::TopArgs),
    /// Change what the store that is asked logs, until it is started again
    LogLevel(log_level::LogLevelArgs),
    /// Make the store that is asked fail at one point of its work, for tests
    FailureTest(failure::FailureArgs),
    /// Print the cluster's id
    Cid,
    /// Print the id of the store that is asked
    Sid,
    /// Show what the store that is asked holds in memory
    Memory,
    /// Load a cluster over the etcd API and measure it; works against etcd too
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help or the version was asked for (or is the best answer to an empty command line).
    Show(clap::Error),
    /// What is wrong, on one line.
    Usage(String),
}

impl Stop {
    /// Says it, and names the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Show(help) => {
                // A closed pipe (`pontoon --help | head -1`) is not worth a message.
                let _ = help.print();
                ExitCode::from(u8::try_from(help.exit_code()).unwrap_or(2))
            }
            Self::Usage(line) => {
                output::report_error(&line);
                ExitCode::from(2)
            }
        }
    }
}

impl From<UsageError> for Stop {
    fn from(error: UsageError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Reads the command line (`args[0]` is the program's name), with the environment and the configuration file
/// below it.
pub(crate) fn parse(args: &[OsString], env: &dyn Fn(&str) -> Option<String>) -> Result<Cli, Stop> {
    let given = args.get(1..).unwrap_or_default();
    let (command, origins) = layers::apply(Cli::command(), &Sources { args: given, env })?;
    let parsed = command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Stop::Show(error),
        _ => {
            let mut line = one_line(&error);
            // The flag is named by clap; if it was not typed, the reader must learn where it came from.
            if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) {
                let flag = argument.split([' ', '=']).next().unwrap_or_default();
                let typed = given.iter().filter_map(|arg| arg.to_str()).any(|arg| arg.starts_with(flag));
                let origin = flag.strip_prefix("--").and_then(|flag| origins.get(flag));
                if let (false, Some(origin)) = (typed, origin) {
                    line = format!("{line} (it came from {origin})");
                }
            }
            Stop::Usage(line)
        }
    })
}

/// clap's message without its usage block: what is wrong, the rule, a tip, and where to read on.
fn one_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let mut help = "--help".to_owned();
    let mut line = String::new();
    for part in rendered.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if let Some(usage) = part.strip_prefix("Usage: ") {
            // `pontoon keyspace create [OPTIONS] <NAME>`: the words before the first flag or value are the command.
            let is_word = |word: &&str| {
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
            };
            let words: Vec<_> = usage.split(' ').take_while(is_word).collect();
            help = format!("{} --help", words.join(" "));
            continue;
        }
        if part.starts_with("For more information") {
            continue;
        }
        let part = part.strip_prefix("error: ").unwrap_or(part);
        let part = part.strip_prefix("tip: ").map_or_else(|| part.to_owned(), |tip| format!("; {tip}"));
        if !line.is_empty() && !part.starts_with(';') {
            line.push(' ');
        }
        line.push_str(&part);
    }
    format!("{line}; see `{help}`")
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    let default_level = if matches!(command, Command::Serve(_)) { "info" } else { "warn" };
    telemetry::init(global.log.as_deref(), global.log_format, default_level)?;
    match command {
        Command::Serve(args) => serve::run(*args, &global),
        Command::Dev(args) => dev::run(args, &global),
        Command::Bench(command) => bench::run(command, &global),
        Command::CreateCluster(args) => prepare::create(args, &global),
        Command::JoinCluster(args) => prepare::join(args, &global),
        Command::Inspect(args) => inspect::run(&args, &global),
        Command::CheckCluster(args) => check_cluster::run(&args, &global),
        Command::Recover(command) => recover::run(command, &global),
        Command::Status(args) => online(status::run(args, &global)),
        Command::Store(command) => online(store::run(command, &global)),
        Command::Leave(args) => online(members::leave(args, &global)),
        Command::Kick(args) => online(members::kick(args, &global)),
        Command::Moves(args) => online(members::moves(args, &global)),
        Command::Backup(args) => online(backup::backup(args, &global)),
        Command::Restore(args) => online(backup::restore(args, &global)),
        Command::Keyspace(command) => online(keyspace::run(command, &global)),
        Command::Log(command) => online(log::run(command, &global)),
        Command::TransferLeadership(args) => online(leadership::transfer(args, &global)),
        Command::TakeLeadership(args) => online(leadership::take(args, &global)),
        Command::ChangeElectionTimer(args) => online(leadership::change_timer(args, &global)),
        Command::SetBacklogThreshold(args) => online(backlog::run(args, &global)),
        Command::SetFlowControl(args) => online(flow::run(args, &global)),
        Command::Top(args) => online(top::run(args, &global)),
        Command::LogLevel(args) => online(log_level::run(args, &global)),
        Command::FailureTest(args) => online(failure::run(args, &global)),
        Command::Cid => online(identity::cid(&global)),
        Command::Sid => online(identity::sid(&global)),
        Command::Memory => online(memory::run(&global)),
    }
}

/// Runs a command that asks a store one thing: one thread is enough.
fn online(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(args: &str, env: &[(&str, &str)]) -> String {
        let args: Vec<_> =
            std::iter::once("pontoon").chain(args.split_whitespace()).map(OsString::from).collect();
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        match parse(&args, &env) {
            Err(Stop::Usage(line)) => line,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault_with_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line_with_a_way_on() {
        assert_eq!(
            usage("serve", &[]),
            "the following required arguments were not provided: --data-dir <DIR>; see `pontoon serve --help`"
        );
        let line = usage("keyspace create Bad", &[]);
        assert!(line.contains("lower-case letters"), "{line}");
        assert!(line.ends_with("see `--help`") || line.ends_with("create --help`"), "{line}");
        let line = usage("serve --data-dirr x", &[]);
        assert!(line.contains("unexpected argument '--data-dirr'") && line.contains("--data-dir"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn a_bad_value_names_where_it_came_from() {
        let env = [("PONTOON_ELECTION_TIMEOUT", "1ms")];
        let line = usage("serve --data-dir x", &env);
        assert!(line.contains("100ms to 10m") && line.contains("from PONTOON_ELECTION_TIMEOUT"), "{line}");
        let line = usage("serve --data-dir x --election-timeout 1ms", &env);
        assert!(!line.contains("PONTOON_"), "{line}");
    }
}
