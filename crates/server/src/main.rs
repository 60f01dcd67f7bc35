//! The `pontoon` binary: a store, a cluster on this machine, and the tools that talk to stores.
//!
//! | file | job |
//! |---|---|
//! | `cli.rs`, `cli/` | the command line: one file per command |
//! | `config.rs`, `config/` | flags, environment and file become one checked `Config` |
//! | `identity.rs` | the ids of a static start |
//! | `join.rs`, `join/` | a new store asks to be let into a cluster; the side that is asked |
//! | `members.rs`, `spread.rs` | groups follow stores; leaders are spread |
//! | `vouch.rs` | stores tell each other who asks, where a request is passed on |
//! | `compose.rs` | a `Config` becomes a running store |
//! | `error.rs` | whose fault an error is: exit code 2 or 1 |
//! | `telemetry.rs` | logs on standard error |

use std::process::ExitCode;

mod admin;
mod cli;
mod client_server;
mod compose;
mod config;
mod consensus;
mod directory;
mod error;
mod forward;
mod health;
mod identity;
mod join;
mod layers;
mod lookup;
mod members;
mod move_pace;
mod pings;
mod reach;
mod reconcile;
mod sending;
mod shutdown;
mod spread;
mod telemetry;
mod tls;
mod vouch;
mod work_class;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let cli = match cli::parse(&args, &|variable| std::env::var(variable).ok()) {
        Ok(cli) => cli,
        Err(stop) => return stop.report(),
    };
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            cli::output::report_error(&error::one_line(&error));
            ExitCode::from(error::exit_code(&error))
        }
    }
}
