//! `pontoon serve`: runs a store.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;

use super::Global;
use crate::compose;
use crate::config::{Config, ServeArgs};
use crate::error::UsageError;

/// How long an orphaned store may take to stop in order.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// Runs a store until it is told to stop.
pub(crate) fn run(args: ServeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    if args.exit_with_parent {
        exit_with_parent()?;
    }
    let config = Config::from_args(args)?;
    if let Some(wished) = global.failure_test {
        config
            .failures
            .arm(Some(wished))
            .map_err(|e| UsageError::new(format!("--failure-test {wished}: {e}")))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .thread_name("pontoon")
        .build()?;
    runtime.block_on(compose::serve(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Half of the cores: the threads that sync the log and apply entries, and the kernel's share of the network, need the
/// other half. With more, tasks are passed between workers for nothing (measured: a third more CPU per write on a busy
/// machine of two cores). `TOKIO_WORKER_THREADS` says otherwise.
fn worker_threads() -> usize {
    let told = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    told.unwrap_or_else(|| cores.div_ceil(2))
}

/// Sees to it that this process does not outlive the one that started it, even if that one is killed.
///
/// On Linux the kernel kills this process at once, which works on a stopped process too. Everywhere, and in
/// case the parent died before this line, the end of standard input stops it in order: the parent holds the
/// other end.
fn exit_with_parent() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    std::thread::Builder::new().name("parent-watch".into()).spawn(|| {
        let mut buffer = [0; 64];
        while !matches!(std::io::stdin().read(&mut buffer), Ok(0) | Err(_)) {}
        tracing::warn!("standard input ended, so the parent is gone: stopping");
        // The ordinary way out, as if the parent had said so.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(1);
    })?;
    Ok(())
}
