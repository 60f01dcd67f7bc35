//! Logs: structured events on standard error. Standard output belongs to a command's answer.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::error::UsageError;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// What is logged in this process.
struct Filtering {
    /// What it was started with.
    first: String,
    now: Mutex<String>,
    /// Puts another filter in place.
    change: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

static FILTERING: OnceLock<Filtering> = OnceLock::new();

fn parse(directives: &str) -> Result<EnvFilter, UsageError> {
    EnvFilter::try_new(directives).map_err(|error| {
        UsageError::new(format!(
            "the log filter `{directives}` is not one: {error}; it is a level, or target=level pairs with commas between \
             them, such as info,pontoon_node=debug"
        ))
    })
}

/// Changes what is logged, from now on; an empty filter stands for the one that the process was started with. Returns the one
/// before, and the one in force.
///
/// # Errors
/// It is no filter, or logging was never begun here.
pub(crate) fn set_filter(directives: &str) -> Result<(String, String), UsageError> {
    let impossible = |why: &str| UsageError::new(format!("what is logged here cannot be changed now: {why}"));
    let filtering = FILTERING.get().ok_or_else(|| impossible("nothing is"))?;
    let directives = if directives.trim().is_empty() { &filtering.first } else { directives };
    let filter = parse(directives)?;
    let mut now = filtering.now.lock().unwrap_or_else(PoisonError::into_inner);
    (filtering.change)(filter).map_err(|why| impossible(&why))?;
    Ok((std::mem::replace(&mut *now, directives.to_owned()), directives.to_owned()))
}

/// Sends all events at or above the filter's levels to standard error.
///
/// `filter` is what `--log` or `PONTOON_LOG` said, such as `info` or `warn,pontoon_node=debug`; without it `RUST_LOG`
/// counts, and without that `default`.
///
/// # Errors
/// The filter cannot be parsed.
pub(crate) fn init(filter: Option<&str>, format: LogFormat, default: &str) -> Result<(), UsageError> {
    let from_env = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let directives = filter.map(str::to_owned).or(from_env).unwrap_or_else(|| default.to_owned());
    let filter = parse(&directives)?;
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_env_filter(filter);
    let change: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        }
    };
    // Once in a process: a second subscriber would have panicked above.
    let _ = FILTERING.set(Filtering { first: directives.clone(), now: Mutex::new(directives), change });
    Ok(())
}
