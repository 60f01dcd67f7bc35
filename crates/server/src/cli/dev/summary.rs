//! What runs, and what to try next.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::plan::{DEFAULT_BASE_PORT, Plan};
use crate::cli::output::{OutputFormat, or_dash, table};
use crate::config::HostPort;

#[derive(Serialize)]
struct Summary<'a> {
    data_dir: &'a Path,
    temporary: bool,
    stores: Vec<StoreSummary<'a>>,
    keyspaces: &'a [String],
}

#[derive(Serialize)]
struct StoreSummary<'a> {
    name: &'a str,
    client: &'a HostPort,
    peer: &'a HostPort,
    metrics: &'a HostPort,
    pid: Option<u32>,
    data_dir: &'a Path,
    log: &'a Path,
}

/// Prints it to standard output.
pub(super) fn print(
    plan: &Plan,
    pids: &[Option<u32>],
    temporary: bool,
    keyspaces: &[String],
    took: Duration,
    output: OutputFormat,
) -> anyhow::Result<()> {
    let stores = plan.stores.iter().zip(pids).map(|(store, pid)| StoreSummary {
        name: &store.name,
        client: &store.client,
        peer: &store.peer,
        metrics: &store.metrics,
        pid: *pid,
        data_dir: &store.data_dir,
        log: &store.log,
    });
    let summary = Summary { data_dir: &plan.home, temporary, stores: stores.collect(), keyspaces };
    output.print(&summary, |summary| text(plan, summary, took))
}

fn text(plan: &Plan, summary: &Summary<'_>, took: Duration) -> String {
    let stores = table(
        &["store", "clients", "peers", "metrics", "pid>", "log"],
        summary.stores.iter().map(|store| {
            [
                store.name.to_owned(),
                store.client.to_string(),
                store.peer.to_string(),
                store.metrics.to_string(),
                or_dash(store.pid),
                store.log.display().to_string(),
            ]
        }),
    );
    let pontoon = program(&plan.program);
    let first = &summary.stores[0];
    let last = &summary.stores[summary.stores.len() - 1];
    let all = plan.endpoints();
    // The first store of an ordinary cluster is where the commands look by themselves.
    let endpoints = if first.client.port() == DEFAULT_BASE_PORT {
        String::new()
    } else {
        format!(" --endpoints {}", first.client)
    };
    let keep = if summary.temporary { " (removed at the end)" } else { "" };
    let keyspace = summary.keyspaces.first().map_or("tenant-a", String::as_str);
    let port = first.client.port();

    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!(
        "{} stores serve after {:.1} s; data in {}{keep}\n\n{stores}\n\nTry next, in another terminal:",
        summary.stores.len(),
        took.as_secs_f64(),
        summary.data_dir.display()
    ));
    line(format_args!("  export ETCDCTL_API=3"));
    line(format_args!("  etcdctl --endpoints={all} put greeting hello"));
    line(format_args!("  etcdctl --endpoints={} get greeting", last.client));
    line(format_args!("  etcdctl --endpoints={all} endpoint status -w table"));
    line(format_args!("  {pontoon} status{endpoints}"));
    line(format_args!("  {pontoon} bench put --endpoints {all}"));
    if let (Some(pid), true) = (first.pid, summary.stores.len() > 2) {
        line(format_args!("  kill -9 {pid}    # {} dies, the others go on", first.name));
    }
    line(format_args!(
        "\nA keyspace has its own keys and revisions; its name is the first label of the host name:"
    ));
    if summary.keyspaces.is_empty() {
        line(format_args!("  {pontoon} keyspace create {keyspace}{endpoints}"));
    }
    line(format_args!("  etcdctl --endpoints={keyspace}.localhost:{port} put greeting 'only here'"));
    line(format_args!(
        "  (if {keyspace}.localhost does not resolve: echo 127.0.0.1 {keyspace}.localhost >> /etc/hosts)"
    ));
    line(format_args!("\nCtrl-C stops all."));
    text.truncate(text.trim_end().len());
    text
}

/// How to call this binary again: relative if it lies below the working directory.
fn program(path: &Path) -> String {
    let below = std::env::current_dir().ok().and_then(|dir| path.strip_prefix(dir).ok());
    match below {
        Some(relative) => format!("./{}", relative.display()),
        None => path.display().to_string(),
    }
}
