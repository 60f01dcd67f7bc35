//! `pontoon dev`: a whole cluster on this machine, as child processes of this binary.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Global;
use super::output::note;
use crate::config::units;
use children::{Children, Death};
use plan::Plan;
pub(crate) use ready::create_keyspaces;

mod children;
mod plan;
mod ready;
mod summary;

/// How long the stores may take to hand over and stop before they are killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Lines of a failed child's log that are repeated.
const TAIL_LINES: usize = 15;

/// Flags of `dev`.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// How many stores to run; the ports of a seventh would not exist
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=6))]
    nodes: u8,

    /// Keep the stores' data here [default: a temporary directory that is removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Make keyspaces ks-1 to ks-N when the cluster is up
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    keyspaces: u32,

    /// Start a store that died again
    #[arg(long)]
    restart: bool,

    /// The first store's client port; peers are at the next one, metrics at the one after; each further store
    /// 10000 higher
    #[arg(long, value_name = "PORT", default_value_t = plan::DEFAULT_BASE_PORT)]
    #[arg(value_parser = plan::base_port)]
    base_port: u16,

    /// Time without a leader after which one is elected, 100ms to 10m; counts only when the cluster is new
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::election_timeout)]
    election_timeout: Duration,

    /// Further flags of `serve`, for each store
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<String>,
}

/// Where the data lies: given, or temporary and removed when dropped.
enum Home {
    Given(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// The ways a person or a script says "stop".
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn said(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Runs the cluster until it is told to stop.
pub(crate) fn run(args: DevArgs, global: &Global) -> anyhow::Result<ExitCode> {
    // One thread: the kernel ties the children's lives to the thread that starts them, and this one ends
    // last.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dev(args, global))?;
    Ok(ExitCode::SUCCESS)
}

async fn dev(args: DevArgs, global: &Global) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut stop = Stop::listen()?;
    let home = match &args.data_dir {
        Some(dir) => Home::Given(dir.clone()),
        None => Home::Temporary(tempfile::Builder::new().prefix("pontoon-dev-").tempdir()?),
    };
    let plan = Plan::new(&args, home.path(), global)?;
    plan.check_ports()?;
    std::fs::create_dir_all(home.path()).with_context(|| format!("creating {}", home.path().display()))?;
    note(&format!(
        "starting {} stores in {}, logs in {}",
        args.nodes,
        home.path().display(),
        plan.log_pattern()
    ));

    let mut children = Children::start(&plan)?;
    let up = tokio::select! {
        up = ready::bring_up(&plan, args.keyspaces, global.timeout) => up,
        death = children.next_death() => Err(died_at_start(&death)),
        () = stop.said() => {
            note("told to stop before the cluster was up");
            shut_down(&mut children, &mut stop).await;
            return Ok(());
        }
    };
    let keyspaces = match up {
        Ok(keyspaces) => keyspaces,
        Err(error) => {
            shut_down(&mut children, &mut stop).await;
            return Err(error);
        }
    };
    let temporary = matches!(home, Home::Temporary(_));
    summary::print(&plan, &children.pids(), temporary, &keyspaces, began.elapsed(), global.output)?;

    let outcome = supervise(&mut children, &mut stop, args.restart).await;
    shut_down(&mut children, &mut stop).await;
    outcome
}

/// Watches the children until somebody says stop.
async fn supervise(children: &mut Children<'_>, stop: &mut Stop, restart: bool) -> anyhow::Result<()> {
    loop {
        let restart_due = children.next_restart();
        tokio::select! {
            () = stop.said() => return Ok(()),
            death = children.next_death() => {
                report(&death, restart);
                if restart {
                    children.restart_later(&death);
                } else if children.none_runs() {
                    tail(&death.log);
                    bail!("all stores died; nothing is left to run; see the logs above");
                }
            }
            index = at(restart_due) => match children.restart(index) {
                Ok((name, pid)) => note(&format!("{name} is started again (pid {pid})")),
                Err(error) => bail!(error.context("starting a store again")),
            },
        }
    }
}

fn report(death: &Death, restart: bool) {
    let fate = if restart { "it is started again" } else { "it stays down (--restart would start it again)" };
    let Death { name, pid, status, log, .. } = death;
    note(&format!("{name} (pid {pid}) died: {status}; {fate}; its log is {}", log.display()));
}

/// Waits for the moment and returns what is due then; for ever if nothing is.
async fn at(due: Option<(tokio::time::Instant, usize)>) -> usize {
    let Some((moment, index)) = due else { return std::future::pending().await };
    tokio::time::sleep_until(moment).await;
    index
}

/// Stops all children: in order, and after the grace, or when told a second time, by force.
async fn shut_down(children: &mut Children<'_>, stop: &mut Stop) {
    children.terminate();
    tokio::select! {
        () = children.all_gone() => return,
        () = tokio::time::sleep(STOP_GRACE) => {
            note(&format!("some stores still run after {STOP_GRACE:?}; killing them"));
        }
        () = stop.said() => note("told to stop again; killing the stores"),
    }
    children.kill();
    children.all_gone().await;
}

fn died_at_start(death: &Death) -> anyhow::Error {
    tail(&death.log);
    anyhow!("{} died while the cluster was starting: {}; its last lines are above", death.name, death.status)
}

/// Repeats the end of a log on standard error: a temporary directory takes the log with it.
fn tail(log: &Path) {
    let Ok(bytes) = std::fs::read(log) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        note(&format!("{}: {line}", log.display()));
    }
}
