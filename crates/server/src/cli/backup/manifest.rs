//! What a backup says of itself: the files that are done while it is made, and all of them when it is whole.
//!
//! The field names are a contract: a backup of this version is restored by later ones.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::super::output::Hex;
use super::super::saved::{CHUNK_BYTES, read_up_to};
use super::unusable;

const MANIFEST: &str = "MANIFEST";
const PROGRESS: &str = "PROGRESS";
/// The version of all of it. A newer one is refused.
const FORMAT: u32 = 1;

/// What a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Keyspace,
    Log,
}

impl Kind {
    pub(super) const fn noun(self) -> &'static str {
        match self {
            Self::Keyspace => "keyspace",
            Self::Log => "log",
        }
    }

    /// The name of a group's file: names are DNS labels, so it is one on every system.
    pub(super) fn file(self, name: &str) -> String {
        format!("{}-{name}", self.noun())
    }
}

/// One group's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupEntry {
    pub(super) kind: Kind,
    pub(super) name: String,
    /// In the cluster that was saved.
    pub(super) id: String,
    /// How many replicas it was to have.
    pub(super) replicas: u32,
    pub(super) file: String,
    /// A keyspace's revision, or the index of a log's last entry.
    pub(super) last: u64,
    /// etcd's hash of the keyspace as of that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kv_hash: Option<u32>,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A whole backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The build that made it.
    pub(super) pontoon: String,
    pub(super) cluster: String,
    /// When it was whole.
    pub(super) at: String,
    pub(super) groups: Vec<GroupEntry>,
    /// SHA-256 of this document without this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) sha256: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A file's length and its SHA-256.
pub(super) fn digest(path: &Path) -> anyhow::Result<(u64, String)> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut sum = Context::new(&SHA256);
    let (mut buffer, mut bytes) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let got = read_up_to(&mut file, &mut buffer).with_context(reading)?;
        if got == 0 {
            return Ok((bytes, hex(sum.finish().as_ref())));
        }
        sum.update(&buffer[..got]);
        bytes += got as u64;
    }
}

/// Whether there is a whole backup.
pub(super) fn is_in(dir: &Path) -> bool {
    dir.join(MANIFEST).exists()
}

impl Manifest {
    pub(super) fn new(cluster: u64, groups: Vec<GroupEntry>) -> Self {
        let at = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let (pontoon, cluster) = (env!("CARGO_PKG_VERSION").to_owned(), Hex(cluster).to_string());
        let mut manifest = Self { format: FORMAT, pontoon, cluster, at, groups, sha256: String::new() };
        manifest.sha256 = manifest.sum();
        manifest
    }

    fn sum(&self) -> String {
        let bare = Self { sha256: String::new(), ..self.clone() };
        // Strings and numbers: nothing that JSON could not hold.
        let bytes = serde_json::to_vec(&bare).unwrap_or_default();
        hex(ring::digest::digest(&SHA256, &bytes).as_ref())
    }

    /// Writes it, when everything that it names is durable.
    pub(super) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, part) = (dir.join(MANIFEST), dir.join("MANIFEST.part"));
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            // The files' own names first.
            File::open(dir)?.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(dir)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads it, and checks each file that it names from its first byte to its last.
    ///
    /// # Errors
    /// It is not there, of a newer version, or damaged, or a file is.
    pub(super) fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound && dir.join(PROGRESS).exists() => {
                return Err(unusable(
                    dir,
                    "this backup is not complete (it has no MANIFEST); finish it by running `pontoon backup` with this \
                     directory again",
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(unusable(
                    dir,
                    "there is no backup (no MANIFEST); name a directory that `pontoon backup` wrote",
                ));
            }
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("cannot read {}", path.display())));
            }
        };
        let damaged = |why: &str| unusable(dir, &format!("{why}; nothing was restored, use another copy"));
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&format!("MANIFEST is damaged: {e}")))?;
        if manifest.format > FORMAT {
            return Err(unusable(
                dir,
                &format!(
                    "a backup of format {}, this build knows {FORMAT}; use a newer one",
                    manifest.format
                ),
            ));
        }
        if manifest.sha256 != manifest.sum() {
            return Err(damaged("MANIFEST is damaged: its checksum is wrong"));
        }
        for group in &manifest.groups {
            if group.file != group.kind.file(&group.name) {
                return Err(damaged(&format!("MANIFEST names the file {:?} for {}", group.file, group.name)));
            }
            let (bytes, sha256) = digest(&dir.join(&group.file))?;
            if (bytes, &sha256) != (group.bytes, &group.sha256) {
                return Err(damaged(&format!("{} is damaged: its length or checksum is wrong", group.file)));
            }
        }
        Ok(manifest)
    }
}

/// What the first line of `PROGRESS` says.
#[derive(Serialize, Deserialize)]
struct Begun {
    format: u32,
    cluster: String,
}

/// A backup that is being made.
pub(super) struct Progress {
    dir: PathBuf,
    file: File,
    done: Vec<GroupEntry>,
}

impl Progress {
    /// Begins one, or goes on with one that was broken off.
    ///
    /// # Errors
    /// The directory holds something else, or is of another cluster.
    pub(super) fn open(dir: &Path, cluster: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(PROGRESS);
        let writing = || format!("cannot write {}", path.display());
        let begun = Begun { format: FORMAT, cluster: Hex(cluster).to_string() };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::read_dir(dir).with_context(writing)?.next().is_some() {
                    return Err(unusable(dir, "it is not empty and holds no backup; name a new directory"));
                }
                String::new()
            }
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("cannot read {}", path.display())));
            }
        };
        // A last line without its end was being written when it was broken off.
        let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let mut done = Vec::new();
        if let Some(first) = lines.next() {
            let found: Begun = serde_json::from_str(first)
                .map_err(|e| unusable(dir, &format!("PROGRESS is damaged ({e}); name a new directory")))?;
            if (found.format, &found.cluster) != (begun.format, &begun.cluster) {
                return Err(unusable(
                    dir,
                    &format!(
                        "it holds an unfinished backup of the cluster {}, not of {}; name a new directory",
                        found.cluster, begun.cluster
                    ),
                ));
            }
            for line in lines {
                let entry: GroupEntry = serde_json::from_str(line).map_err(|e| {
                    unusable(dir, &format!("PROGRESS is damaged ({e}); name a new directory"))
                })?;
                // What was written may have changed since.
                if digest(&dir.join(&entry.file)).ok() == Some((entry.bytes, entry.sha256.clone())) {
                    done.push(entry);
                }
            }
        }
        // Anew, without what does not count.
        let mut file = File::create(dir.join("PROGRESS.part")).with_context(writing)?;
        let mut text = serde_json::to_string(&begun)? + "\n";
        for entry in &done {
            text += &(serde_json::to_string(entry)? + "\n");
        }
        let write = |file: &mut File| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(dir.join("PROGRESS.part"), &path)?;
            File::open(dir)?.sync_all()
        };
        write(&mut file).with_context(writing)?;
        Ok(Self { dir: dir.to_owned(), file, done })
    }

    /// What an earlier run has saved of this very group.
    pub(super) fn done(&self, kind: Kind, name: &str, id: u64) -> Option<&GroupEntry> {
        let id = Hex(id).to_string();
        self.done.iter().rev().find(|e| e.kind == kind && e.name == name && e.id == id)
    }

    /// Notes a file that is whole and durable.
    pub(super) fn add(&mut self, entry: &GroupEntry) -> anyhow::Result<()> {
        let line = serde_json::to_string(entry)? + "\n";
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write {}", self.dir.join(PROGRESS).display()))?;
        self.done.push(entry.clone());
        Ok(())
    }

    /// Takes away the files of groups that are not among these.
    pub(super) fn remove_others(&self, entries: &[GroupEntry]) -> anyhow::Result<()> {
        for gone in self.done.iter().filter(|d| entries.iter().all(|e| e.file != d.file)) {
            let path = self.dir.join(&gone.file);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// There is a manifest now.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        let path = self.dir.join(PROGRESS);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dir: &Path, name: &str, bytes: &[u8]) -> GroupEntry {
        let file = Kind::Log.file(name);
        fs::write(dir.join(&file), bytes).expect("written");
        let (bytes, sha256) = digest(&dir.join(&file)).expect("reads");
        GroupEntry {
            kind: Kind::Log,
            name: name.to_owned(),
            id: Hex(7).to_string(),
            replicas: 3,
            file,
            last: 9,
            kv_hash: None,
            bytes,
            sha256,
        }
    }

    fn refused(dir: &Path) -> String {
        Manifest::load(dir).expect_err("refused").to_string()
    }

    #[test]
    fn a_backup_is_whole_or_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        assert!(refused(dir).contains("there is no backup"));
        let mut progress = Progress::open(dir, 1).expect("begins");
        assert!(refused(dir).contains("not complete"));
        let one = entry(dir, "one", b"one");
        progress.add(&one).expect("notes");
        progress.add(&entry(dir, "two", b"two")).expect("notes");
        drop(progress);

        // Broken off in the midst of a line, and with a file that changed.
        let mut file = File::options().append(true).open(dir.join(PROGRESS)).expect("opens");
        file.write_all(b"{\"kind\": \"lo").expect("writes");
        fs::write(dir.join("log-two"), "other").expect("writes");
        assert!(
            Progress::open(dir, 2).err().expect("another cluster").to_string().contains("of the cluster")
        );
        let progress = Progress::open(dir, 1).expect("goes on");
        assert_eq!(progress.done(Kind::Log, "one", 7), Some(&one));
        assert_eq!(progress.done(Kind::Log, "one", 8), None, "a namesake");
        assert_eq!(progress.done(Kind::Log, "two", 7), None, "it is not what was written");

        let manifest = Manifest::new(1, vec![one]);
        manifest.save(dir).expect("writes");
        progress.remove().expect("removes");
        assert_eq!(Manifest::load(dir).expect("whole"), manifest);
        let text = fs::read_to_string(dir.join(MANIFEST)).expect("reads");
        fs::write(dir.join(MANIFEST), text.replace("\"last\": 9", "\"last\": 8")).expect("writes");
        assert!(refused(dir).contains("checksum is wrong"));
        fs::write(dir.join(MANIFEST), text.replace("\"format\": 1", "\"format\": 2")).expect("writes");
        assert!(refused(dir).contains("this build knows 1"));
        fs::write(dir.join(MANIFEST), &text).expect("writes");
        fs::write(dir.join("log-one"), "oné").expect("writes");
        assert!(refused(dir).contains("log-one is damaged"));
        assert!(Progress::open(&dir.join("sub"), 1).is_ok());
        fs::write(dir.join("sub/PROGRESS"), "").expect("writes");
        let other = tempfile::tempdir().expect("a directory");
        fs::write(other.path().join("x"), "").expect("writes");
        assert!(Progress::open(other.path(), 1).err().expect("not empty").to_string().contains("not empty"));
    }
}
