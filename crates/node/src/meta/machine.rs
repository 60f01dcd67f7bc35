//! The registry as a state machine: in memory, with a checkpoint file.
//!
//! The registry is small (some hundred bytes a group), so its whole state is written at each checkpoint. Between
//! checkpoints the log is what keeps it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use pontoon_raft_core::types::LogIndex;
use prost::Message as _;
use tokio::sync::watch;

use super::records::Registry;
use crate::state_machine::{
    Committed, MachineError, SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, SnapshotSink, StateMachine,
};

/// The first bytes of a checkpoint: a name and the format's version.
const MAGIC: &[u8; 8] = b"PNTNREG\x01";
/// Magic, checksum, applied index.
const HEADER_BYTES: usize = 8 + 4 + 8;

/// The registry's state machine.
#[derive(Debug)]
pub struct RegistryMachine {
    directory: PathBuf,
    registry: Registry,
    applied: LogIndex,
    /// Tells everybody who watches what the registry is now.
    publish: watch::Sender<Arc<Registry>>,
}

impl RegistryMachine {
    /// Opens the registry in `directory`, which must exist; `bootstrap` is its state if there is none yet. The receiver
    /// always holds the newest state.
    ///
    /// # Errors
    /// The checkpoint is damaged or cannot be read.
    pub fn open(
        directory: &Path,
        bootstrap: Registry,
    ) -> Result<(Self, watch::Receiver<Arc<Registry>>), MachineError> {
        let (applied, registry) = match load(&directory.join("registry"))? {
            Some(found) => found,
            None => (LogIndex::ZERO, bootstrap),
        };
        let (publish, watch) = watch::channel(Arc::new(registry.clone()));
        Ok((Self { directory: directory.to_owned(), registry, applied, publish }, watch))
    }

    fn file(&self) -> PathBuf {
        self.directory.join("registry")
    }

    fn staged(&self, index: LogIndex) -> PathBuf {
        self.directory.join(format!("registry.staged.{index}"))
    }
}

impl StateMachine for RegistryMachine {
    fn applied(&self) -> LogIndex {
        self.applied
    }

    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        let mut replies = Vec::with_capacity(batch.len());
        let mut changed = false;
        for entry in batch {
            self.applied = entry.index;
            replies.push(match &entry.command {
                Some(command) => {
                    changed = true;
                    self.registry.apply(command).encode_to_vec().into()
                }
                None => Bytes::new(),
            });
        }
        if changed {
            self.publish.send_replace(Arc::new(self.registry.clone()));
        }
        Ok(replies)
    }

    fn sync(&mut self) -> Result<LogIndex, MachineError> {
        write_atomically(&self.file(), &encode(self.applied, &self.registry))
            .map_err(|e| MachineError::with_source(format!("cannot write {}", self.file().display()), e))?;
        Ok(self.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError> {
        Ok(Box::new(Image { bytes: encode(self.applied, &self.registry) }))
    }

    fn stage(&mut self, index: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(Staging { path: self.staged(index), bytes: Vec::new(), index }))
    }

    fn activate(&mut self, index: LogIndex) -> Result<(), MachineError> {
        let staged = self.staged(index);
        let Some((applied, registry)) = load(&staged)? else {
            return Err(MachineError::new(format!(
                "the log begins after entry {index}, but there is no finished image {}; wipe this data directory and \
                 rejoin as a learner",
                staged.display()
            )));
        };
        fs::rename(&staged, self.file())
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|e| MachineError::with_source(format!("cannot rename {}", staged.display()), e))?;
        self.applied = applied;
        self.registry = registry;
        self.publish.send_replace(Arc::new(self.registry.clone()));
        Ok(())
    }
}

fn encode(applied: LogIndex, registry: &Registry) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES + registry.encoded_len());
    out.put_slice(MAGIC);
    out.put_u32_le(0);
    out.put_u64_le(applied.0);
    // A vector grows as needed, so there is always room.
    registry.encode(&mut out).expect("a Vec has room");
    let checksum = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&checksum.to_le_bytes());
    out.into()
}

fn load(path: &Path) -> Result<Option<(LogIndex, Registry)>, MachineError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(MachineError::with_source(format!("cannot read {}", path.display()), error));
        }
    }
    let damaged = |what: &str| {
        MachineError::new(format!(
            "{}: {what}; wipe this data directory and rejoin as a learner",
            path.display()
        ))
    };
    if bytes.len() < HEADER_BYTES || bytes[..7] != MAGIC[..7] {
        return Err(damaged("not a registry checkpoint"));
    }
    if bytes[7] != MAGIC[7] {
        return Err(MachineError::new(format!(
            "{}: format version {} is not known (this build knows {}); start a newer build",
            path.display(),
            bytes[7],
            MAGIC[7]
        )));
    }
    let mut header = &bytes[8..HEADER_BYTES];
    let (checksum, applied) = (header.get_u32_le(), LogIndex(header.get_u64_le()));
    if crc32c::crc32c(&bytes[12..]) != checksum {
        return Err(damaged("the checksum does not match"));
    }
    let mut registry =
        Registry::decode(&bytes[HEADER_BYTES..]).map_err(|_| damaged("the content cannot be decoded"))?;
    registry.upgrade();
    Ok(Some((applied, registry)))
}

/// Writes a file so that after a crash there is the old one or the new one.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The registry on its way to another store.
struct Image {
    bytes: Bytes,
}

impl SnapshotReader for Image {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let n = self.bytes.len().min(SNAPSHOT_CHUNK_BYTES_MAX);
        Ok((n > 0).then(|| self.bytes.split_to(n)))
    }
}

/// The most that a received registry may be: a million groups need about a tenth of it.
const REGISTRY_BYTES_MAX: usize = 1 << 30;

/// A received registry.
struct Staging {
    path: PathBuf,
    bytes: Vec<u8>,
    index: LogIndex,
}

impl SnapshotSink for Staging {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        if self.bytes.len() + chunk.len() > REGISTRY_BYTES_MAX {
            return Err(io::Error::other("a registry image of more than 1 GiB is refused"));
        }
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        write_atomically(&self.path, &self.bytes)?;
        match load(&self.path) {
            Ok(Some((applied, _))) if applied == self.index => Ok(()),
            Ok(_) => Err(io::Error::other("the image is not of the index that was announced")),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft_core::types::{EntryId, Term};

    use super::super::commands::{MetaCommand, meta_command};
    use super::super::records::{GroupKind, StoreRecord};
    use super::*;

    fn create(index: u64, name: &str) -> Committed {
        let change = meta_command::Change::CreateGroup(meta_command::CreateGroup {
            name: name.to_owned(),
            kind: GroupKind::Kv as i32,
            replicas: 0,
            wished: 0,
        });
        Committed {
            index: LogIndex(index),
            term: Term(1),
            id: EntryId(u128::from(index)),
            command: Some(MetaCommand { change: Some(change) }.to_bytes()),
            wants_reply: false,
        }
    }

    fn bootstrap() -> Registry {
        Registry::bootstrap([StoreRecord { store: 1, name: "n1".into(), ..StoreRecord::default() }])
    }

    #[test]
    fn comes_back_at_the_last_sync_and_moves_by_snapshot() {
        let here = tempfile::tempdir().expect("a directory");
        let there = tempfile::tempdir().expect("a directory");
        let (mut machine, watch) = RegistryMachine::open(here.path(), bootstrap()).expect("opens");
        machine.apply(&[create(1, "a"), create(2, "b")]).expect("applies");
        assert_eq!(machine.sync().expect("syncs"), LogIndex(2));
        machine.apply(&[create(3, "c")]).expect("applies");
        assert!(watch.borrow().group_named("c").is_some());
        let (reopened, _) = RegistryMachine::open(here.path(), bootstrap()).expect("opens");
        assert_eq!(reopened.applied(), LogIndex(2));
        assert!(reopened.registry.group_named("c").is_none(), "it comes again from the log");

        let (mut other, _) = RegistryMachine::open(there.path(), bootstrap()).expect("opens");
        let mut image = machine.snapshot().expect("an image");
        let mut sink = other.stage(LogIndex(3)).expect("a place");
        while let Some(chunk) = image.read().expect("reads") {
            sink.write(chunk).expect("writes");
        }
        sink.finish().expect("finishes");
        other.activate(LogIndex(3)).expect("activates");
        assert_eq!(other.registry, machine.registry);
        let (again, _) = RegistryMachine::open(there.path(), bootstrap()).expect("opens");
        assert_eq!((again.applied(), &again.registry), (LogIndex(3), &machine.registry));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut machine, _) = RegistryMachine::open(directory.path(), bootstrap()).expect("opens");
        machine.sync().expect("syncs");
        let path = directory.path().join("registry");
        let good = fs::read(&path).expect("reads");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("writes");
            let error =
                RegistryMachine::open(directory.path(), bootstrap()).expect_err("damaged").to_string();
            assert!(error.contains("registry"), "{error}");
        }
    }
}
