//! Torments a three-store cluster of real processes and checks what its clients saw.
//!
//! Without a subcommand: load and faults, then every check. See `crates/sim/src/torture/mod.rs`.
#![allow(clippy::print_stdout, reason = "a command line program reports on standard output")]

#[path = "../torture/mod.rs"]
mod torture;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = torture::Arguments::parse();
    if let Some(torture::Command::Child(child)) = arguments.command {
        let error = torture::become_child(&child);
        eprintln!("pontoon-torture: cannot start {}: {error}", child.program.display());
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(torture::main(arguments));
        // Probes that nobody waits for any more must not hold up the exit.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pontoon-torture: {error:#}");
            ExitCode::from(2)
        }
    }
}
