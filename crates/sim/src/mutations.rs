//! Known mistakes, to be made on purpose: if the explorer does not find one of them, it has a hole.
//!
//! Each file in `crates/sim/mutations` is one mistake: its story, the properties of which it breaks one, the model that
//! finds it, and the text to replace in the sources of the core. `pontoon-mutants` makes them one by one in a copy of the
//! sources; a test checks that each still fits.
//!
//! ```text
//! Why it is wrong, in a few lines.
//!
//! breaks: one of these, or that
//! model: the model of the explorer that finds it
//! file: crates/raft-core/src/…
//! --- before
//! text that occurs once
//! --- after
//! what takes its place
//! --- file another/file.rs        (optional; for the edits that follow)
//! --- before
//! …
//! --- end
//! ```

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// One replacement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// In which file, from the root of the repository.
    pub file: String,
    /// What must occur there exactly once.
    pub before: String,
    /// What takes its place.
    pub after: String,
}

/// One mistake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    /// The name of its file.
    pub name: String,
    /// Why it is wrong.
    pub story: String,
    /// The properties of which it breaks one.
    pub breaks: Vec<String>,
    /// The model that finds it.
    pub model: String,
    /// The replacements.
    pub edits: Vec<Edit>,
}

/// A mutation cannot be read, or does not fit.
#[derive(Debug)]
pub enum MutationError {
    /// A file cannot be read or written.
    Io(PathBuf, io::Error),
    /// The mutation is not written as it should be.
    Malformed(String, &'static str),
    /// The sources have changed: the mutation must follow them.
    Misfit {
        /// Which mutation.
        name: String,
        /// Which file.
        file: String,
        /// What should occur once.
        before: String,
        /// How often it does.
        found: usize,
    },
}

impl fmt::Display for MutationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Malformed(name, what) => write!(f, "mutation {name}: {what}"),
            Self::Misfit { name, file, before, found } => write!(
                f,
                "mutation {name} must be adapted to the sources: its text occurs {found} times in {file}, not \
                 once; edit crates/sim/mutations/{name}.txt so that it makes the same mistake again:\n{before}"
            ),
        }
    }
}

impl std::error::Error for MutationError {}

/// All mutations of the repository at `root`, by name.
///
/// # Errors
/// One of them cannot be read.
pub fn all(root: &Path) -> Result<Vec<Mutation>, MutationError> {
    let directory = root.join("crates/sim/mutations");
    let io = |error| MutationError::Io(directory.clone(), error);
    let mut mutations = Vec::new();
    for file in fs::read_dir(&directory).map_err(io)? {
        let path = file.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).map_err(|error| MutationError::Io(path, error))?;
            mutations.push(parse(&name, &text)?);
        }
    }
    mutations.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutations)
}

fn parse(name: &str, text: &str) -> Result<Mutation, MutationError> {
    let malformed = |what| MutationError::Malformed(name.to_owned(), what);
    let mut mutation = Mutation { name: name.to_owned(), ..Mutation::default() };
    let mut file = None;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next_if(|line| !line.starts_with("--- ")) {
        if let Some(breaks) = line.strip_prefix("breaks: ") {
            mutation.breaks = breaks.split(", ").map(str::to_owned).collect();
        } else if let Some(model) = line.strip_prefix("model: ") {
            model.clone_into(&mut mutation.model);
        } else if let Some(path) = line.strip_prefix("file: ") {
            file = Some(path.to_owned());
        } else {
            mutation.story.push_str(line);
            mutation.story.push(' ');
        }
    }
    mutation.story = mutation.story.trim().to_owned();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("--- file ") {
            file = Some(path.to_owned());
            continue;
        }
        match line {
            "--- end" => break,
            "--- before" => {}
            _ => return Err(malformed("expected `--- before`, `--- file` or `--- end`")),
        }
        let file = file.clone().ok_or_else(|| malformed("no `file:`"))?;
        let before = take(&mut lines);
        if lines.next() != Some("--- after") {
            return Err(malformed("expected `--- after`"));
        }
        let after = take(&mut lines);
        mutation.edits.push(Edit { file, before, after });
    }
    if mutation.story.is_empty() || mutation.breaks.is_empty() || mutation.model.is_empty() {
        return Err(malformed("a story, `breaks:` and `model:` are needed"));
    }
    if mutation.edits.is_empty()
        || mutation.edits.iter().any(|e| e.before.trim().is_empty() || e.before == e.after)
    {
        return Err(malformed("it changes nothing"));
    }
    Ok(mutation)
}

fn take<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> String {
    let mut text = Vec::new();
    while let Some(line) = lines.next_if(|line| !line.starts_with("--- ")) {
        text.push(line);
    }
    text.join("\n")
}

impl Mutation {
    /// Checks that every text to replace occurs exactly once below `root`.
    ///
    /// # Errors
    /// One does not.
    pub fn fits(&self, root: &Path) -> Result<(), MutationError> {
        self.edits.iter().try_for_each(|edit| self.edited(root, edit).map(drop))
    }

    /// Makes the mistake in the sources below `root`, which should be a copy.
    ///
    /// # Errors
    /// It does not fit.
    pub fn apply(&self, root: &Path) -> Result<(), MutationError> {
        for edit in &self.edits {
            let text = self.edited(root, edit)?;
            let path = root.join(&edit.file);
            fs::write(&path, text).map_err(|error| MutationError::Io(path, error))?;
        }
        Ok(())
    }

    fn edited(&self, root: &Path, edit: &Edit) -> Result<String, MutationError> {
        let path = root.join(&edit.file);
        let text = fs::read_to_string(&path).map_err(|error| MutationError::Io(path, error))?;
        let found = text.matches(&edit.before).count();
        if found != 1 {
            return Err(MutationError::Misfit {
                name: self.name.clone(),
                file: edit.file.clone(),
                before: edit.before.clone(),
                found,
            });
        }
        Ok(text.replace(&edit.before, &edit.after))
    }
}
