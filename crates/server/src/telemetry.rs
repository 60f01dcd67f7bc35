//! Logs: structured events on standard error. Standard output belongs to a command's answer.

use std::io;

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
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        UsageError::new(format!(
            "the log filter `{directives}` is not one: {error}; \
             it is a level, or target=level pairs with commas between them; correct --log"
        ))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
