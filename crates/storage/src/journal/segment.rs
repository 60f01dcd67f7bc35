//! Segment files: made zero-filled, given a new id at each use.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::codec::{self, Decoder};
use crate::disk::{Disk, DiskFile};
use crate::journal::record::HEAD_BYTES;

/// Records begin here; the page before holds the segment's header.
pub(crate) const RECORDS_AT: u64 = 4096;
/// The format of segments and records.
pub(crate) const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"PTNJRNL\0";
/// crc, magic, format, journal, id, bytes.
const HEADER_BYTES: usize = 4 + 8 + 4 + 8 + 8 + 8;
/// Zeroes are written in pieces of this size, each synced, so that the log's own syncs never wait for 64 MiB of them.
const FILL_BYTES: usize = 1 << 20;

/// A segment in use. When a file is recycled, a new `Segment` with a new id replaces the old one.
pub(crate) struct Segment {
    /// Grows by one from segment to segment.
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    /// The file's size.
    pub(crate) bytes: u64,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (segment {})", self.name, self.id)
    }
}

/// What a segment file's header page says.
#[derive(Debug)]
pub(crate) enum Header {
    Good { journal: u64, id: u64, bytes: u64 },
    Newer(u32),
    Bad,
}

/// A segment's id as it stands in a file, if it may be one: later ones are counted from it. At 16 MiB each it would take
/// 32 PiB to use them up.
pub(crate) fn id(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|id| (1..=u32::MAX / 2).contains(id))
}

pub(crate) fn file_name(number: u64) -> String {
    format!("journal-{number:08x}.seg")
}

/// The number in a segment file's name, if it is written exactly as this software writes it.
pub(crate) fn file_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_prefix("journal-")?.strip_suffix(".seg")?, 16).ok()?;
    (number < u64::MAX && file_name(number) == name).then_some(number)
}

fn encode_header(journal: u64, id: u32, bytes: u64) -> Vec<u8> {
    let mut inside = Vec::with_capacity(HEADER_BYTES);
    inside.extend_from_slice(MAGIC);
    codec::put_u32(&mut inside, FORMAT);
    codec::put_u64(&mut inside, journal);
    codec::put_u64(&mut inside, u64::from(id));
    codec::put_u64(&mut inside, bytes);
    codec::sealed(&inside)
}

pub(crate) fn read_header(file: &dyn DiskFile) -> io::Result<Header> {
    if file.len()? < RECORDS_AT + HEAD_BYTES as u64 {
        return Ok(Header::Bad);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_at(0, &mut bytes)?;
    Ok(parse_header(&bytes).unwrap_or(Header::Bad))
}

fn parse_header(bytes: &[u8]) -> Result<Header, codec::DecodeError> {
    let mut d = Decoder::new(codec::unsealed(bytes)?);
    if d.take(8)? != MAGIC {
        return Ok(Header::Bad);
    }
    let format = d.u32()?;
    if format > FORMAT {
        return Ok(Header::Newer(format));
    }
    Ok(Header::Good { journal: d.u64()?, id: d.u64()?, bytes: d.u64()? })
}

/// Makes a file of zeroes and begins to use it as segment `id`. The name appears only when the file is whole.
///
/// # Errors
/// The file system's, "no space left" above all; no file of that name is there then.
pub(crate) fn make(
    disk: &dyn Disk,
    name: &str,
    journal: u64,
    id: u32,
    bytes: u64,
    rest: &dyn Fn(),
) -> io::Result<Segment> {
    tracing::debug!(name, id, bytes, "segment is being made");
    let tmp = format!("{name}.tmp");
    let filled = (|| {
        let file = disk.create(&tmp)?;
        let zeroes = vec![0; FILL_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let n = (bytes - at).min(zeroes.len() as u64);
            file.write_at(at, &zeroes[..n as usize])?;
            file.sync()?;
            at += n;
            rest();
        }
        file.write_at(0, &encode_header(journal, id, bytes))?;
        file.sync()?;
        Ok(file)
    })();
    let file = match filled {
        Ok(file) => file,
        Err(e) => {
            let _ = disk.remove(&tmp); // gives the room back; a left-over is removed at the next opening
            return Err(e);
        }
    };
    disk.rename(&tmp, name)?;
    disk.sync_names()?;
    // By its own name now, see `RealFile::direct`.
    drop(file);
    Ok(Segment { id, name: name.to_owned(), file: disk.open(name)?, bytes })
}

/// Uses the file of a segment that holds nothing any more as segment `id`.
///
/// # Errors
/// The file system's.
pub(crate) fn reuse(old: &Segment, journal: u64, id: u32) -> io::Result<Segment> {
    // The zero bytes say "no record yet". They come first: with a new header over them, the first record of the
    // earlier use would look like a torn one.
    old.file.write_at(RECORDS_AT, &[0; HEAD_BYTES])?;
    old.file.sync()?;
    tracing::debug!(name = old.name, id, "segment is being used again");
    old.file.write_at(0, &encode_header(journal, id, old.bytes))?;
    old.file.sync()?;
    Ok(Segment { id, name: old.name.clone(), file: Arc::clone(&old.file), bytes: old.bytes })
}
