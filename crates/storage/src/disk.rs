//! The seam under the journal and the small files: one flat directory of files. [`RealDisk`] is a directory of the
//! operating system; [`memory::MemoryDisk`] forgets what was not synced and fails on demand.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::journal::blocks::BLOCK;

pub mod memory;

/// A directory of files. Names are plain, without separators.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// It does not, or cannot be opened.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates an empty file, or empties one that exists.
    ///
    /// # Errors
    /// The file system's.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing another one of that name. Durable after the next [`sync_names`](Self::sync_names).
    ///
    /// # Errors
    /// The file system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The file system's.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The names of the files, in no order.
    ///
    /// # Errors
    /// The file system's.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes creations, renamings and removals durable.
    ///
    /// # Errors
    /// The sync failed; nothing may be concluded about what is durable.
    fn sync_names(&self) -> io::Result<()>;
    /// The room that is left, in bytes.
    ///
    /// # Errors
    /// The file system's.
    fn free_bytes(&self) -> io::Result<u64>;
    /// The directory, or a word for it, for messages.
    fn place(&self) -> String;
    /// The operating system's directory with these files in it, if there is one: the cold tier is a sled database in
    /// it then, and a simple file of this disk otherwise.
    fn directory(&self) -> Option<&Path> {
        None
    }
    /// The directory `name` inside this one, made if it is not there. Asked for only where
    /// [`directory`](Self::directory) is.
    ///
    /// # Errors
    /// The file system's; `Unsupported` on a disk without directories.
    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// One file. Positions are given with each call, so readers and the writer share a handle.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads exactly as many bytes as `out` has.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes the begin of `bytes`, as much as the system takes at a time, and says how much that was.
    ///
    /// # Errors
    /// Nothing of it was written, as far as is known.
    fn write_some_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Writes all of `bytes`, in as many pieces as it takes.
    ///
    /// # Errors
    /// Any part of it failed; the parts before may have been written.
    fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_some_at(offset, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    bytes = &bytes[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
    /// Makes what was written durable: it survives a power cut.
    ///
    /// # Errors
    /// The sync failed; nothing may be concluded about what is durable.
    fn sync(&self) -> io::Result<()>;
    /// The file's length.
    ///
    /// # Errors
    /// The file system's.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    ///
    /// # Errors
    /// The file system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads a whole file, at most `bytes_max` of it; `None` if there is no such file.
///
/// # Errors
/// The file system's; `InvalidData` if the file is longer.
pub(crate) fn read_small(disk: &dyn Disk, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is longer than any of its kind"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// Replaces a small file as a whole: after a crash there is the old one or the new one.
///
/// # Errors
/// The file system's; the old file may or may not have been replaced.
pub(crate) fn replace_small(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let tmp = format!("{name}.tmp");
    let file = disk.create(&tmp)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.rename(&tmp, name)?;
    disk.sync_names()
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    /// Held open to sync names with.
    handle: File,
    read_only: bool,
}

impl RealDisk {
    /// The directory `dir`, created if it is not there, together with the parents that are missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(dir: &Path) -> io::Result<Self> {
        if !dir.is_dir() {
            fs::create_dir_all(dir)?;
            if let Some(parent) = dir.canonicalize()?.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { dir: dir.to_owned(), handle: File::open(dir)?, read_only: false })
    }

    /// The directory `dir`, in which nothing can be changed.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn read_only(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: dir.to_owned(), handle: File::open(dir)?, read_only: true })
    }

    /// Where a file that is about to be changed is.
    fn to_change(&self, name: &str) -> io::Result<PathBuf> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(self.dir.join(name)) }
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(!self.read_only).open(&path)?;
        Ok(Arc::new(RealFile { file, path, direct: OnceLock::new() }))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.to_change(name)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Arc::new(RealFile { file, path, direct: OnceLock::new() }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.to_change(from)?, self.to_change(to)?)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.to_change(name)?)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    fn place(&self) -> String {
        self.dir.display().to_string()
    }
    fn directory(&self) -> Option<&Path> {
        Some(&self.dir)
    }
    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(Self::new(&self.to_change(name)?)?))
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// Where it was opened; it may have been renamed since.
    path: PathBuf,
    /// The same file once more, for writes past the page cache; `None` where the file system has no such thing.
    direct: OnceLock<Option<File>>,
}

impl RealFile {
    /// Whole blocks can be written past the page cache: one copy less, and the sync finds nothing left to write and only
    /// has the disk's own cache flushed. Readers go through the page cache, which the system keeps true to such writes.
    fn direct(&self) -> Option<&File> {
        let open = || {
            let flags = rustix::fs::OFlags::DIRECT.bits();
            let file =
                OpenOptions::new().write(true).custom_flags(i32::try_from(flags).ok()?).open(&self.path);
            let file = file.ok()?;
            // The name may belong to another file by now.
            let same = rustix::fs::fstat(&file).ok()?;
            let own = rustix::fs::fstat(&self.file).ok()?;
            ((same.st_dev, same.st_ino) == (own.st_dev, own.st_ino)).then_some(file)
        };
        self.direct.get_or_init(open).as_ref()
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn write_some_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let is_in_blocks = offset.is_multiple_of(BLOCK as u64)
            && bytes.len().is_multiple_of(BLOCK)
            && bytes.as_ptr().align_offset(BLOCK) == 0;
        if is_in_blocks && let Some(direct) = self.direct() {
            match direct.write_at(bytes, offset) {
                // Some file systems know the flag and not the deed, and some disks have larger blocks.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        self.file.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::blocks::Blocks;

    /// Blocks go past the page cache, odd bytes through it, and readers see the last of both.
    #[test]
    fn blocks_and_odd_bytes_meet_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(0, &[1; 3 * BLOCK]).unwrap();
        let read = |at: usize, len: usize| {
            let mut out = vec![0; len];
            file.read_at(at as u64, &mut out).unwrap();
            out
        };
        assert_eq!(read(0, 3 * BLOCK), [1; 3 * BLOCK], "in the page cache now");
        let mut blocks = Blocks::default();
        for n in 2..20 {
            blocks.begin(BLOCK);
            blocks.push(&[n; BLOCK]);
            file.write_at(BLOCK as u64, blocks.whole().0).unwrap();
            assert_eq!(read(BLOCK - 1, 2), [if n == 2 { 1 } else { n - 1 }, n]);
            file.write_at(BLOCK as u64 - 1, &[n, n]).unwrap();
            assert_eq!(read(BLOCK - 1, BLOCK + 1), [n; BLOCK + 1]);
        }
        file.sync().unwrap();
        assert_eq!(read(2 * BLOCK, BLOCK), [1; BLOCK]);
    }

    /// A file is opened once more by its name for writes past the page cache; never another one that has the name now.
    #[test]
    fn blocks_go_to_the_own_file_whoever_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = disk.create("a").unwrap();
        disk.rename("a", "b").unwrap();
        let other = disk.create("a").unwrap();
        let mut blocks = Blocks::default();
        blocks.begin(BLOCK);
        blocks.push(&[7; BLOCK]);
        file.write_at(0, blocks.whole().0).unwrap();
        assert_eq!((file.len().unwrap(), other.len().unwrap()), (BLOCK as u64, 0));
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), [7; BLOCK]);
    }
}
