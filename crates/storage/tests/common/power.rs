//! A layer over a real directory that knows what was synced. Asked at any moment, it makes the directory that a power
//! cut would leave: what was synced is there; of everything else, sled's own writes included, any sectors may be there,
//! and files' names may be those of before.
//!
//! sled writes its files itself, so the layer does not see these writes. It does not have to: it compares the file as it
//! was at its last sync with the file as it is now. What sled syncs on its own account does not count.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use pontoon_storage::disk::{Disk, DiskFile, RealDisk};

use super::Random;

const SECTOR: usize = 512;

type FileId = u64;
/// Relative to the data directory.
type Name = String;

#[derive(Debug)]
struct NameChange {
    name: Name,
    to: Option<FileId>,
}

#[derive(Debug, Default)]
struct Layer {
    next: FileId,
    handles: HashMap<FileId, File>,
    names: BTreeMap<Name, FileId>,
    durable_names: BTreeMap<Name, FileId>,
    /// In the order they were made.
    unsynced_names: Vec<NameChange>,
    durable: HashMap<FileId, Vec<u8>>,
    /// Syncs of these are answered and not carried out.
    ignored: Vec<String>,
    syncs: u64,
}

/// The data directory, or one inside it.
#[derive(Clone, Debug)]
pub(crate) struct PowerDisk {
    root: PathBuf,
    /// `""` or `"cold/"`.
    prefix: String,
    real: Arc<RealDisk>,
    layer: Arc<Mutex<Layer>>,
}

#[derive(Debug)]
struct PowerFile {
    id: FileId,
    name: Name,
    real: Arc<dyn DiskFile>,
    layer: Arc<Mutex<Layer>>,
}

impl Layer {
    fn change(&mut self, name: Name, to: Option<FileId>) {
        match to {
            Some(id) => self.names.insert(name.clone(), id),
            None => self.names.remove(&name),
        };
        self.unsynced_names.push(NameChange { name, to });
    }

    fn contents(&self, id: FileId) -> Vec<u8> {
        let file = &self.handles[&id];
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        // sled may cut the file meanwhile.
        let mut at = 0;
        while let Ok(n) = file.read_at(&mut bytes[at..], at as u64) {
            at += n;
            if n == 0 {
                break;
            }
        }
        bytes.truncate(at);
        bytes
    }
}

impl PowerDisk {
    pub(crate) fn new(dir: &Path) -> Self {
        let real = Arc::new(RealDisk::new(dir).unwrap());
        Self { root: dir.to_owned(), prefix: String::new(), real, layer: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Layer> {
        self.layer.lock().unwrap()
    }

    /// From now on, syncs of files whose names begin like this are left out.
    pub(crate) fn ignore_syncs_of(&self, prefix: &str) {
        self.lock().ignored.push(prefix.to_owned());
    }

    /// How many syncs there were.
    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Makes in `to` what is left after a power cut now. `acknowledged` is asked while nothing can become durable.
    pub(crate) fn cut(&self, to: &Path, seed: u64, acknowledged: impl FnOnce() -> u64) -> u64 {
        let layer = self.lock();
        let acknowledged = acknowledged();
        let mut random = Random(seed);
        let mut names = layer.durable_names.clone();
        let kept = random.between(0, layer.unsynced_names.len() as u64) as usize;
        for change in &layer.unsynced_names[..kept] {
            match change.to {
                Some(id) => names.insert(change.name.clone(), id),
                None => names.remove(&change.name),
            };
        }
        // From nothing that was not synced to nearly all of it.
        let chance = random.between(0, 4);
        for (name, id) in names {
            let (mut bytes, now) = (layer.durable.get(&id).cloned().unwrap_or_default(), layer.contents(id));
            if now.len() > bytes.len() && random.between(0, 1) == 0 {
                bytes.resize(now.len(), 0);
            }
            let sectors = bytes.chunks_mut(SECTOR).zip(now.chunks(SECTOR));
            for (old, new) in sectors.filter(|(old, new)| old != new) {
                if random.between(1, 4) <= chance {
                    let n = old.len().min(new.len());
                    old[..n].copy_from_slice(&new[..n]);
                }
            }
            let path = to.join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        acknowledged
    }

    fn full(&self, name: &str) -> Name {
        format!("{}{name}", self.prefix)
    }

    fn wrap(&self, name: &str, id: FileId, real: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(PowerFile { id, name: self.full(name), real, layer: Arc::clone(&self.layer) })
    }
}

impl Disk for PowerDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let real = self.real.open(name)?;
        let full = self.full(name);
        let mut layer = self.lock();
        let id = match layer.names.get(&full) {
            Some(id) => *id,
            // Made by sled.
            None => {
                layer.next += 1;
                let id = layer.next;
                layer.handles.insert(id, File::open(self.root.join(&full))?);
                layer.change(full, Some(id));
                id
            }
        };
        drop(layer);
        Ok(self.wrap(name, id, real))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        // Another file, not the old one made empty: that one may still be what a power cut brings back.
        let full = self.full(name);
        let _ = std::fs::remove_file(self.root.join(&full));
        let real = self.real.create(name)?;
        let mut layer = self.lock();
        layer.next += 1;
        let id = layer.next;
        layer.handles.insert(id, File::open(self.root.join(&full))?);
        layer.change(full, Some(id));
        drop(layer);
        Ok(self.wrap(name, id, real))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut layer = self.lock();
        self.real.rename(from, to)?;
        let id = layer.names.get(&self.full(from)).copied();
        layer.change(self.full(to), id);
        layer.change(self.full(from), None);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut layer = self.lock();
        self.real.remove(name)?;
        layer.change(self.full(name), None);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.real.list()
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut layer = self.lock();
        let layer = &mut *layer;
        layer.syncs += 1;
        let here = |name: &str| match name.strip_prefix(self.prefix.as_str()) {
            Some(rest) => !rest.contains('/'),
            None => false,
        };
        let (now, later) = std::mem::take(&mut layer.unsynced_names).into_iter().partition(|c| here(&c.name));
        layer.unsynced_names = later;
        for NameChange { name, to } in now {
            match to {
                Some(id) => layer.durable_names.insert(name, id),
                None => layer.durable_names.remove(&name),
            };
        }
        // A directory that was removed with all that was in it.
        layer.durable_names.retain(|name, _| !name.contains('/') || self.root.join(name).exists());
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.real.free_bytes()
    }

    fn place(&self) -> String {
        self.real.place()
    }

    fn directory(&self) -> Option<&Path> {
        self.real.directory()
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        let prefix = format!("{}{name}/", self.prefix);
        let real = Arc::new(RealDisk::new(&self.root.join(&prefix))?);
        Ok(Arc::new(Self { root: self.root.clone(), prefix, real, layer: Arc::clone(&self.layer) }))
    }
}

impl DiskFile for PowerFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.real.read_at(offset, out)
    }

    fn write_some_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.real.write_some_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut layer = self.layer.lock().unwrap();
        layer.syncs += 1;
        if !layer.ignored.iter().any(|prefix| self.name.starts_with(prefix)) {
            let bytes = layer.contents(self.id);
            layer.durable.insert(self.id, bytes);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }
}
