//! Making the engine's directory so that a process that dies meanwhile leaves nothing in the way.
//!
//! The engine makes its files one after the other, and opens what it finds half made neither as old nor as new. So a
//! mark is set before and taken away after, and where it is found everything else is removed: nobody has been told that
//! there is a database yet.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The mark.
const MARK: &str = "CREATING";

/// What a file system of its own has at its top.
const NOT_OURS: &str = "lost+found";

/// A directory that is being made; set the mark back with [`Creation::done`].
#[derive(Debug)]
#[must_use = "the mark stays, and what is made is removed at the next start"]
pub(crate) struct Creation(PathBuf);

impl Creation {
    /// Looks at the directory, which is made if there is none: `None` if there is something whole in it.
    pub(crate) fn begin(dir: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let mark = dir.join(MARK);
        let is_half_made = mark.try_exists()?;
        let mut is_empty = true;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == NOT_OURS || name == MARK {
                continue;
            }
            is_empty = false;
            if !is_half_made {
                break;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        if !is_half_made && !is_empty {
            return Ok(None);
        }
        File::create(mark)?;
        sync(dir)?;
        Ok(Some(Self(dir.to_owned())))
    }

    /// Everything is there.
    pub(crate) fn done(self) -> io::Result<()> {
        sync(&self.0)?;
        fs::remove_file(self.0.join(MARK))?;
        sync(&self.0)
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_made_is_made_anew_and_what_is_whole_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("kv");
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let creation = Creation::begin(&dir).unwrap().expect("there was nothing");
        fs::create_dir(dir.join("keyspaces")).unwrap();
        fs::write(dir.join("keyspaces/1"), "half").unwrap();
        fs::write(dir.join("0.jnl"), "half").unwrap();
        fs::create_dir(dir.join("lost+found")).unwrap();
        // Killed here.
        drop(creation);
        let creation = Creation::begin(&dir).unwrap().expect("it is half made");
        assert_eq!(names(), [MARK, "lost+found"]);
        fs::write(dir.join("0.jnl"), "whole").unwrap();
        creation.done().unwrap();
        assert!(Creation::begin(&dir).unwrap().is_none());
        assert_eq!(names(), ["0.jnl", "lost+found"]);
    }
}
