//! `MARKER`: where the journal begins, and what must be there. It is written after that is durable, so whatever falls
//! short of it was lost.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::codec::{self, Decoder};
use crate::disk::{self, Disk};
use crate::journal::segment;

pub(crate) const FILE: &str = "MARKER";
const MAGIC: &[u8; 8] = b"PTNMARK\0";
/// 2: with the cold tier's generation, and the sum of its contents in the cold tier. 3: the journal may say who led.
pub(crate) const FORMAT: u32 = 3;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The random identity of this journal; segments and sled carry it too.
    pub(crate) journal: u64,
    /// The first segment that is still needed.
    pub(crate) start_segment: u32,
    /// The batch that the first record of that segment begins with.
    pub(crate) start_batch: u64,
    /// The checkpoint that sled must contain.
    pub(crate) checkpoint: u64,
    /// A batch that was durable when the marker was written.
    pub(crate) reached: u64,
    /// Whether the store was closed in order, with `reached` as its last batch: a torn tail is damage then.
    pub(crate) clean: bool,
    /// Whether an earlier opening found a last record that was torn or damaged, and nobody has settled it since.
    pub(crate) doubt: bool,
    /// Which generation of the cold tier is in use.
    pub(crate) cold_generation: u64,
    /// Whether the cold tier has the sum of its contents: format 1 had not. Not in the file.
    pub(crate) cold_is_summed: bool,
    /// The format that was read; what is written is always of the newest.
    pub(crate) format: u32,
}

/// Why there is no marker.
#[derive(Debug)]
pub(crate) enum Unreadable {
    Io(io::Error),
    Newer(u32),
    Bad(String),
}

impl Marker {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(MAGIC);
        codec::put_u32(&mut out, FORMAT);
        codec::put_u64(&mut out, self.journal);
        codec::put_u64(&mut out, u64::from(self.start_segment));
        codec::put_u64(&mut out, self.start_batch);
        codec::put_u64(&mut out, self.checkpoint);
        codec::put_u64(&mut out, self.reached);
        out.push(u8::from(self.clean));
        out.push(u8::from(self.doubt));
        codec::put_u64(&mut out, self.cold_generation);
        codec::sealed(&out)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let bad = |e: codec::DecodeError| Unreadable::Bad(e.to_string());
        let mut d = Decoder::new(codec::unsealed(bytes).map_err(bad)?);
        if d.take(8).map_err(bad)? != MAGIC {
            return Err(Unreadable::Bad("it is no marker of this software".to_owned()));
        }
        let format = d.u32().map_err(bad)?;
        if format > FORMAT {
            return Err(Unreadable::Newer(format));
        }
        // Numbers that grow by one have room to grow: a store that writes a million batches a second reaches this in
        // 146,000 years.
        let number = |n: u64| {
            if n <= codec::INDEX_MAX { Ok(n) } else { Err(codec::DecodeError("a number is too large")) }
        };
        let mut fields = || {
            Ok(Self {
                journal: d.u64()?,
                start_segment: segment::id(d.u64()?)
                    .ok_or(codec::DecodeError("no segment can have this id"))?,
                start_batch: number(d.u64()?)?,
                checkpoint: number(d.u64()?)?,
                reached: number(d.u64()?)?,
                clean: d.flag()?,
                doubt: d.flag()?,
                cold_generation: if format >= 2 { number(d.u64()?)? } else { 0 },
                cold_is_summed: format >= 2,
                format,
            })
        };
        let marker = fields().map_err(bad)?;
        if !d.is_empty() {
            return Err(Unreadable::Bad("it has bytes left over".to_owned()));
        }
        if marker.start_batch == 0 {
            return Err(Unreadable::Bad("batches are counted from 1".to_owned()));
        }
        Ok(marker)
    }

    pub(crate) fn read(disk: &dyn Disk) -> Result<Option<Self>, Unreadable> {
        match disk::read_small(disk, FILE, 4096).map_err(Unreadable::Io)? {
            Some(bytes) => Self::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        disk::replace_small(disk, FILE, &self.encode())
    }
}

/// The marker of an open store; several threads move different fields of it.
#[derive(Debug)]
pub(crate) struct MarkerFile(Mutex<Marker>);

impl MarkerFile {
    pub(crate) fn new(marker: Marker) -> Self {
        Self(Mutex::new(marker))
    }

    /// Changes the marker, durably.
    pub(crate) fn update(&self, disk: &dyn Disk, change: impl FnOnce(&mut Marker)) -> io::Result<()> {
        let mut marker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = marker.clone();
        change(&mut next);
        if next != *marker {
            next.write(disk)?;
            *marker = next;
        }
        Ok(())
    }

    pub(crate) fn get(&self) -> Marker {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
