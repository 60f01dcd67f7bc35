//! Whose fault an error is, and with that the exit code.

use std::fmt;

/// The command line, the environment, the configuration file or the state of the data directory has to change
/// before the command can do anything; nothing was changed. The process exits with code 2.
///
/// The message is one line: what was found; which rule it breaks; what to do.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl UsageError {
    /// An error with this one-line message.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The process's exit code for an error: 2 if a [`UsageError`] is anywhere in its chain, else 1.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<UsageError>()) { 2 } else { 1 }
}

/// The whole chain of causes on one line, for standard error.
///
/// A cause whose text its parent repeats already (some libraries do) is left out.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_usage_error_anywhere_in_the_chain_decides_the_exit_code() {
        let usage = anyhow::Error::new(UsageError::new("bad")).context("while starting");
        assert_eq!(exit_code(&usage), 2);
        assert_eq!(exit_code(&anyhow!("broken")), 1);
    }

    #[test]
    fn the_chain_becomes_one_line_without_repetition() {
        let error = anyhow!("no\n  such file").context("opening x").context("starting: opening x");
        assert_eq!(one_line(&error), "starting: opening x: no such file");
    }
}
