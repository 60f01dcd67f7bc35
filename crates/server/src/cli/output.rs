//! How a command answers: tables for people, one JSON document for programs, one line for errors.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, TableStyle};
use serde::{Serialize, Serializer};

/// What standard output is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

impl OutputFormat {
    /// Prints an answer in this format; only the one that is asked for is made.
    pub(crate) fn print<T: Serialize>(
        self,
        json: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Self::Table => table(json),
            Self::Json => serde_json::to_string_pretty(json)?,
        };
        print_text(&text)
    }
}

/// Writes text and a line's end to standard output. A reader that went away (`| head`) is not an error.
pub(crate) fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Writes the one line of an error to standard error.
pub(crate) fn report_error(line: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "pontoon: error: {line}");
}

/// Writes a line of progress or advice to standard error.
pub(crate) fn note(line: &str) {
    // As above: advice that nobody can read is no failure.
    let _ = writeln!(io::stderr(), "pontoon: {line}");
}

/// An id as people and programs see it: 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A table with a header and no lines, which reads well and cuts well. A header that ends in `>` belongs to a
/// column of numbers: it is aligned to the right.
pub(crate) fn table<R, C>(header: &[&str], rows: R) -> String
where
    R: IntoIterator<Item = C>,
    C: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(header.iter().map(|name| name.trim_end_matches('>').to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(header) {
        column.set_padding((0, 2));
        if name.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// What a table shows for a value that is not known.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let text =
            table(&["name", "keys>"], [vec!["a".to_owned(), "1".into()], vec!["long".into(), "100".into()]]);
        assert_eq!(text, "NAME  KEYS\na        1\nlong   100");
    }

    #[test]
    fn ids_have_sixteen_digits() {
        assert_eq!(serde_json::to_string(&Hex(0xab)).expect("plain"), "\"00000000000000ab\"");
    }
}
