//! The stores' processes: started, watched, started again, stopped.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::select_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use super::plan::{Plan, StorePlan};
use crate::config::layers::ENV_PREFIX;

/// Delay before the first restart; doubled each time until the store has run for [`STEADY`].
const RESTART_DELAY_MIN: Duration = Duration::from_millis(200);
/// Longest delay before a restart.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A store that ran this long died of something new.
const STEADY: Duration = Duration::from_secs(10);

/// A store's process that ended.
#[derive(Debug)]
pub(super) struct Death {
    index: usize,
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) status: ExitStatus,
    pub(super) log: PathBuf,
}

struct Running {
    process: Child,
    pid: u32,
    /// Held open: the child stops when it ends, so no child outlives this process.
    _stdin: Option<ChildStdin>,
    since: Instant,
}

struct Slot<'a> {
    plan: &'a StorePlan,
    running: Option<Running>,
    restart_at: Option<Instant>,
    restart_delay: Duration,
}

/// Waits for one child's end.
type Wait<'a> = Pin<Box<dyn Future<Output = (usize, std::io::Result<ExitStatus>)> + 'a>>;

/// All stores of the cluster, running or not.
pub(super) struct Children<'a> {
    plan: &'a Plan,
    slots: Vec<Slot<'a>>,
}

impl<'a> Children<'a> {
    /// Starts all.
    pub(super) fn start(plan: &'a Plan) -> anyhow::Result<Self> {
        let mut slots = Vec::new();
        for store in &plan.stores {
            let running = Some(spawn(plan, store)?);
            slots.push(Slot { plan: store, running, restart_at: None, restart_delay: RESTART_DELAY_MIN });
        }
        Ok(Self { plan, slots })
    }

    /// The process ids, in the stores' order; `None` for a store that does not run.
    pub(super) fn pids(&self) -> Vec<Option<u32>> {
        self.slots.iter().map(|slot| slot.running.as_ref().map(|running| running.pid)).collect()
    }

    /// Whether no process is left.
    pub(super) fn none_runs(&self) -> bool {
        self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// Waits for the next process to end; for ever if none runs.
    ///
    /// # Cancel safety
    /// A process that ended while nobody waited is reported by the next call.
    pub(super) async fn next_death(&mut self) -> Death {
        let waits: Vec<Wait<'_>> = self
            .slots
            .iter_mut()
            .enumerate()
            .filter_map(|(index, slot)| slot.running.as_mut().map(|running| (index, running)))
            .map(|(index, running)| {
                Box::pin(async move { (index, running.process.wait().await) }) as Wait<'_>
            })
            .collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        let ((index, status), ..) = select_all(waits).await;
        let slot = &mut self.slots[index];
        let running = slot.running.take().expect("only running slots are waited for");
        if running.since.elapsed() >= STEADY {
            slot.restart_delay = RESTART_DELAY_MIN;
        }
        // `wait` fails only if somebody else reaped the child; then how it ended is not known.
        let status = status.unwrap_or_default();
        Death { index, name: slot.plan.name.clone(), pid: running.pid, status, log: slot.plan.log.clone() }
    }

    /// Has the dead store started again after a delay.
    pub(super) fn restart_later(&mut self, death: &Death) {
        let slot = &mut self.slots[death.index];
        slot.restart_at = Some(Instant::now() + slot.restart_delay);
        slot.restart_delay = (slot.restart_delay * 2).min(RESTART_DELAY_MAX);
    }

    /// Which store is to be started again next, and when.
    pub(super) fn next_restart(&self) -> Option<(Instant, usize)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((slot.restart_at?, index))).min()
    }

    /// Starts a store again.
    pub(super) fn restart(&mut self, index: usize) -> anyhow::Result<(&str, u32)> {
        let slot = &mut self.slots[index];
        slot.restart_at = None;
        let running = spawn(self.plan, slot.plan)?;
        let pid = running.pid;
        slot.running = Some(running);
        Ok((&slot.plan.name, pid))
    }

    /// Asks all to stop.
    pub(super) fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Stops all by force.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn signal(&mut self, signal: Signal) {
        for slot in &mut self.slots {
            slot.restart_at = None;
            // `id` is `None` once the child was reaped, so no other process of that number can be hit.
            let pid = slot.running.as_ref().and_then(|running| running.process.id());
            if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
                // A child that is gone already is what was wanted.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Waits until no process is left.
    pub(super) async fn all_gone(&mut self) {
        while !self.none_runs() {
            self.next_death().await;
        }
    }
}

fn spawn(plan: &Plan, store: &StorePlan) -> anyhow::Result<Running> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&store.log)
        .with_context(|| format!("opening the log {}", store.log.display()))?;
    let mut command = Command::new(&plan.program);
    for (variable, _) in std::env::vars_os() {
        // The flags say everything; what configures `dev` itself must not leak into its stores.
        if variable.to_str().is_some_and(|variable| variable.starts_with(ENV_PREFIX)) {
            command.env_remove(variable);
        }
    }
    command
        .args(&store.args)
        .stdin(Stdio::piped())
        // The `ready` line goes to the log too.
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        // Ctrl-C reaches the whole foreground group; the children are stopped by this process, once.
        .process_group(0);
    let mut process = command.spawn().with_context(|| format!("starting {}", plan.program.display()))?;
    let pid = process.id().context("the child has no process id")?;
    std::fs::write(plan.home.join(format!("{}.pid", store.name)), format!("{pid}\n"))?;
    let stdin = process.stdin.take();
    Ok(Running { process, pid, _stdin: stdin, since: Instant::now() })
}
