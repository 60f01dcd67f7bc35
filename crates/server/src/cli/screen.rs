//! The terminal that a command draws on: how large it is, and what fits on it.

use std::os::fd::AsFd;

/// How much a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// How large a terminal is now; `None` if it does not say.
pub(crate) fn size(terminal: impl AsFd) -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    let size = Size { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) };
    (size.columns > 0 && size.rows > 0).then_some(size)
}

/// As much of a line as fits: a line that wraps moves all others. What another store said of an error is not to move the
/// cursor either.
pub(crate) fn clip(line: &str, columns: usize) -> String {
    let is_whole = line.chars().count() <= columns;
    let kept = if is_whole { columns } else { columns.saturating_sub(1) };
    let mut clipped: String = line.chars().take(kept).map(|c| if c.is_control() { '?' } else { c }).collect();
    if !is_whole && columns > 0 {
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_terminal_ends_and_that_is_seen() {
        assert_eq!(clip("abcde", 5), "abcde");
        assert_eq!(clip("abcdef", 5), "abcd…");
        assert_eq!(clip("ä\x1b[2J\n", 9), "ä?[2J?");
        assert_eq!((clip("ab", 1), clip("ab", 0)), ("…".to_owned(), String::new()));
    }
}
