//! A cold tier for tests and simulation: batches in one growing file of a [`Disk`], everything in memory besides. It
//! loses a torn tail without a word, as sled does; it is for the marker to notice.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{self, Decoder};
use crate::cold::{Changes, Cold, Visit};
use crate::disk::{Disk, DiskFile};

/// The file's name, of its first generation.
pub(crate) const FILE: &str = "COLD";

#[derive(Debug)]
pub(crate) struct PlainCold {
    file: Arc<dyn DiskFile>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    end: u64,
    /// Bytes that lie behind the end: what an earlier life wrote after a batch that was lost. A new batch as long as that one
    /// would bring them back, so they are wiped out first.
    left_over: usize,
}

impl PlainCold {
    pub(crate) fn open(disk: &dyn Disk, name: &str) -> io::Result<Self> {
        let file = match disk.open(name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => disk.create(name)?,
            Err(e) => return Err(e),
        };
        let mut bytes = vec![0; file.len()? as usize];
        file.read_at(0, &mut bytes)?;
        let mut state = State { map: BTreeMap::new(), end: 0, left_over: 0 };
        while let Some(used) = replay(&bytes[state.end as usize..], &mut state.map) {
            state.end += used as u64;
        }
        state.left_over = bytes.len() - state.end as usize;
        Ok(Self { file, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one batch: length, checksum, then kind, key and value of each change.
fn replay(bytes: &[u8], map: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Option<usize> {
    let mut d = Decoder::new(bytes);
    let sealed = d.bytes().ok().filter(|b| !b.is_empty())?;
    let mut inside = Decoder::new(codec::unsealed(sealed).ok()?);
    while !inside.is_empty() {
        let put = inside.flag().ok()?;
        let key = inside.bytes().ok()?.to_vec();
        if put {
            map.insert(key, inside.bytes().ok()?.to_vec());
        } else {
            map.remove(&key);
        }
    }
    Some(4 + sealed.len())
}

impl Cold for PlainCold {
    fn apply(&self, changes: Changes) -> io::Result<()> {
        let mut inside = Vec::new();
        for (key, value) in changes.iter() {
            inside.push(u8::from(value.is_some()));
            codec::put_bytes(&mut inside, key);
            if let Some(value) = value {
                codec::put_bytes(&mut inside, value);
            }
        }
        let mut bytes = Vec::new();
        codec::put_bytes(&mut bytes, &codec::sealed(&inside));
        let mut state = self.lock();
        if state.left_over > 0 {
            self.file.write_at(state.end, &vec![0; state.left_over])?;
            self.file.sync()?;
            state.left_over = 0;
        }
        self.file.write_at(state.end, &bytes)?;
        state.end += bytes.len() as u64;
        for (key, value) in changes.into_map() {
            match value {
                Some(value) => state.map.insert(key, value),
                None => state.map.remove(&key),
            };
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().map.get(key).cloned())
    }

    fn keys(&self, from: &[u8], to: &[u8], max: usize) -> io::Result<Vec<Vec<u8>>> {
        let state = self.lock();
        Ok(state.map.range(from.to_vec()..to.to_vec()).take(max).map(|(key, _)| key.clone()).collect())
    }

    fn page(&self, after: &[u8], bytes_max: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let state = self.lock();
        let behind = (Bound::Excluded(after.to_vec()), Bound::Unbounded);
        let mut bytes = 0;
        let fits = |(key, value): &(&Vec<u8>, &Vec<u8>)| {
            let before = bytes;
            bytes += key.len() + value.len();
            before == 0 || bytes <= bytes_max
        };
        let page = state.map.range::<Vec<u8>, _>(behind).take_while(fits);
        Ok(page.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn scan(&self, visit: Visit<'_>) -> io::Result<()> {
        for (key, value) in &self.lock().map {
            visit(key, value).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        }
        Ok(())
    }
    fn disk_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().end)
    }
}
