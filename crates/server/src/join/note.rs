//! `JOIN` in the data directory of a store that is not a member yet: who it wants to be, whom it asks, and what it was told.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::UsageError;

/// The file's name.
const FILE: &str = "JOIN";
/// The version of its contents.
const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinNote {
    version: u32,
    /// The id that it asks for.
    pub(crate) store: u64,
    /// Of its directory, as the log store notes it too; 0 until the store is started.
    pub(crate) lineage: u64,
    pub(crate) name: String,
    pub(crate) peer_address: String,
    /// The cluster that it must be.
    pub(crate) cluster: Option<u64>,
    /// Peer addresses of stores to ask: those that were given first, then those that were learned.
    pub(crate) remotes: Vec<String>,
    /// It was let in.
    pub(crate) granted: Option<Granted>,
}

/// What a store is told when it is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    pub(crate) cluster: u64,
    pub(crate) store: u64,
    /// Of its replica of the meta group.
    pub(crate) replica_number: u64,
    /// Whom to connect with until the registry is here.
    pub(crate) stores: Vec<Peer>,
    pub(crate) founders: Vec<Peer>,
    pub(crate) election_timer_ms: u64,
}

/// Another store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) store: u64,
    pub(crate) name: String,
    pub(crate) peer_address: String,
}

impl JoinNote {
    pub(crate) fn new(
        store: u64,
        name: String,
        peer_address: String,
        cluster: Option<u64>,
        remotes: Vec<String>,
    ) -> Self {
        Self { version: VERSION, store, lineage: 0, name, peer_address, cluster, remotes, granted: None }
    }

    /// Whether a directory has one.
    pub(crate) fn is_in(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Reads the one of a directory.
    ///
    /// # Errors
    /// It cannot be read, or not understood.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("cannot read {}", path.display())));
            }
        };
        let unusable = |why: String| {
            UsageError::new(format!(
                "{}: {why}; it says how this store joins its cluster; remove the directory and join with a new one",
                path.display()
            ))
        };
        let note: Self = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        if note.version != VERSION {
            return Err(unusable(format!(
                "version {} is not known (this build knows {VERSION})",
                note.version
            ))
            .into());
        }
        Ok(Some(note))
    }

    /// Writes it, so that after a crash there is the old one or the new one.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, fresh) = (dir.join(FILE), dir.join("JOIN.new"));
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|e| anyhow::Error::new(e).context(format!("cannot write {}", path.display())))
    }

    /// The store is a member: the registry knows the rest.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_written_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(JoinNote::load(dir.path()).expect("reads"), None);
        let mut note = JoinNote::new(7, "n4".into(), "h:1".into(), Some(9), vec!["h:2".into()]);
        note.save(dir.path()).expect("writes");
        assert_eq!(JoinNote::load(dir.path()).expect("reads").as_ref(), Some(&note));
        note.granted = Some(Granted {
            cluster: u64::MAX,
            store: 7,
            replica_number: 4,
            stores: vec![Peer { store: 1, name: "n1".into(), peer_address: "h:2".into() }],
            founders: Vec::new(),
            election_timer_ms: 1000,
        });
        note.save(dir.path()).expect("writes");
        assert_eq!(JoinNote::load(dir.path()).expect("reads"), Some(note));
        fs::write(dir.path().join(FILE), "{\"version\": 1").expect("writes");
        let error = JoinNote::load(dir.path()).expect_err("cut off").to_string();
        assert!(error.contains("JOIN") && error.contains("join with a new one"), "{error}");
        JoinNote::remove(dir.path()).expect("removes");
        JoinNote::remove(dir.path()).expect("nothing is there");
        assert!(!JoinNote::is_in(dir.path()));
    }
}
