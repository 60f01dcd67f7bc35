//! Drives one connection state machine with the commands of a script on standard input and writes its state after each
//! command to standard output, one JSON object a line. See `script/mod.rs` for the language.
//!
//! Exit status: 0 at the end of the input, 2 at a malformed line, 1 when standard input or output fails.

mod script;

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(script::execute(
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    ))
}
