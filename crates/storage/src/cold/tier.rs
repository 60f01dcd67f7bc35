//! The cold tier of an open store: which generation of it is in use, what it must hold, and when it is written anew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::cold::contents::Contents;
use crate::cold::plain::{self, PlainCold};
use crate::cold::sled::SledCold;
use crate::cold::{self, Changes, Cold};
use crate::disk::{Disk, RealDisk};

/// The directory of generation 0; later ones have their number behind it.
const SLED_DIR: &str = "cold";

/// Where the generations of a cold tier are. There is one that `MARKER` names; another one is either being written, or a
/// leftover.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    disk: Arc<dyn Disk>,
    cache_bytes: u64,
}

impl Place {
    pub(crate) fn new(disk: Arc<dyn Disk>, cache_bytes: u64) -> Self {
        Self { disk, cache_bytes }
    }

    fn base(&self) -> &'static str {
        if self.disk.directory().is_some() { SLED_DIR } else { plain::FILE }
    }

    fn file_name(&self, generation: u64) -> String {
        match generation {
            0 => self.base().to_owned(),
            n => format!("{}-{n:08x}", self.base()),
        }
    }

    fn path(&self, generation: u64) -> Option<PathBuf> {
        Some(self.disk.directory()?.join(self.file_name(generation)))
    }

    /// What a generation is called in messages.
    pub(crate) fn name(&self, generation: u64) -> String {
        self.path(generation).map_or_else(|| self.file_name(generation), |path| path.display().to_string())
    }

    /// Whether a generation is there.
    pub(crate) fn has(&self, generation: u64) -> io::Result<bool> {
        match self.path(generation) {
            Some(dir) => Ok(dir.join("db").exists()),
            None => Ok(self.disk.list()?.contains(&self.file_name(generation))),
        }
    }

    /// The generations that are there, whole or not.
    pub(crate) fn generations(&self) -> io::Result<Vec<u64>> {
        let names = match self.disk.directory() {
            Some(dir) => std::fs::read_dir(dir)?
                .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
                .collect::<io::Result<Vec<_>>>()?,
            None => self.disk.list()?,
        };
        let number = |name: &String| {
            let rest = name.strip_prefix(self.base())?;
            let n =
                if rest.is_empty() { 0 } else { u64::from_str_radix(rest.strip_prefix('-')?, 16).ok()? };
            // Exactly as it is written here: `cold-bad` is somebody's copy, and none of our business.
            (self.file_name(n) == *name).then_some(n)
        };
        Ok(names.iter().filter_map(number).collect())
    }

    /// Opens a generation, or makes an empty one.
    pub(crate) fn open(&self, generation: u64) -> io::Result<Arc<dyn Cold>> {
        match self.path(generation) {
            Some(dir) => {
                let cold = SledCold::open(&*self.disk, &self.file_name(generation), &dir, self.cache_bytes)?;
                Ok(Arc::new(cold))
            }
            None => Ok(Arc::new(PlainCold::open(&*self.disk, &self.file_name(generation))?)),
        }
    }

    /// Opens a copy of a generation, which is made in the directory `to`: sled changes what it opens. What is no
    /// directory of the operating system is opened where it is, and only read.
    pub(crate) fn open_copy(&self, generation: u64, to: &Path) -> io::Result<Arc<dyn Cold>> {
        let Some(from) = self.path(generation) else { return self.open(generation) };
        copy_files(&from, &to.join(SLED_DIR))?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(to)?);
        Self::new(disk, self.cache_bytes).open(0)
    }

    /// Removes a generation that nobody has open.
    pub(crate) fn remove(&self, generation: u64) -> io::Result<()> {
        match self.path(generation) {
            Some(dir) => std::fs::remove_dir_all(dir)?,
            None => self.disk.remove(&self.file_name(generation))?,
        }
        self.disk.sync_names()
    }
}

/// Copies the files of a directory, and those of the directories in it.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_files(&entry.path(), &to.join(entry.file_name()))?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The cold tier in use. Readers come from everywhere; only recovery and then the checkpoint thread write.
#[derive(Debug)]
pub(crate) struct ColdTier {
    pub(crate) place: Place,
    current: RwLock<(u64, Arc<dyn Cold>)>,
    contents: Mutex<Contents>,
}

impl ColdTier {
    pub(crate) fn new(place: Place, generation: u64, cold: Arc<dyn Cold>, contents: Contents) -> Self {
        Self { place, current: RwLock::new((generation, cold)), contents: Mutex::new(contents) }
    }

    /// The generation in use. Hold it for one operation only: a replaced one is removed when the last reader lets go.
    pub(crate) fn current(&self) -> Arc<dyn Cold> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// What it holds.
    pub(crate) fn contents(&self) -> Contents {
        *self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out all of `changes` or, after a crash, none; the sum of the contents changes with them.
    pub(crate) fn apply(&self, changes: Changes) -> io::Result<()> {
        let cold = self.current();
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let next = apply_to(&*cold, *contents, changes)?;
        *contents = next;
        Ok(())
    }

    /// Makes everything applied durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.current().sync()
    }

    /// Uses another generation, which holds `contents`, from now on. Returns the one before.
    pub(crate) fn replace(
        &self,
        generation: u64,
        cold: Arc<dyn Cold>,
        contents: Contents,
    ) -> (u64, Arc<dyn Cold>) {
        *self.contents.lock().unwrap_or_else(PoisonError::into_inner) = contents;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, (generation, cold))
    }
}

/// Applies `changes` to a tier that holds `contents`, and says what it holds then.
pub(crate) fn apply_to(cold: &dyn Cold, contents: Contents, mut changes: Changes) -> io::Result<Contents> {
    let mut next = contents;
    for (key, value) in changes.iter() {
        if let Some(old) = cold.get(key)? {
            next.remove(key, &old);
        }
        if let Some(value) = value {
            next.add(key, value);
        }
    }
    changes.put(cold::contents_key(), next.encode());
    cold.apply(changes)?;
    Ok(next)
}
