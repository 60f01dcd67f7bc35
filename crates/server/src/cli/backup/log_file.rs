//! A log in a file.
//!
//! ```text
//!   "PNLG" version=1
//!   { length entry }*     length as a varint; the entry as `pontoon.v1.LogEntry`
//! ```
//! The manifest has the file's length and checksum, so there is no end mark.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use pontoon_proto::v1::{DescribeLogRequest, LogEntry, ReadLogRequest};
use prost::Message as _;

use super::super::Global;
use super::super::connect::{Repeat, ask};

const MAGIC: &[u8; 5] = b"PNLG\x01";
/// No entry that a log takes is larger; a length beyond this is damage.
const ENTRY_BYTES_MAX: u64 = 4 << 20;

/// Writes a log's entries, up to the one that is the last now; returns that one's index.
pub(super) async fn save(name: &str, path: &Path, global: &Global) -> anyhow::Result<u64> {
    let writing = || format!("cannot write {}", path.display());
    let request = DescribeLogRequest { name: name.to_owned() };
    let described =
        ask(global, Repeat::Harmless, async |client| client.describe_log(request.clone()).await).await?;
    let mut file = BufWriter::new(File::create(path).with_context(writing)?);
    file.write_all(MAGIC).with_context(writing)?;
    let (mut from, mut last) = (1, 0);
    while last < described.last {
        let request = ReadLogRequest { name: name.to_owned(), from, entries_max: 0 };
        let page =
            ask(global, Repeat::Harmless, async |client| client.read_log(request.clone()).await).await?;
        for entry in page.entries.iter().filter(|e| e.index <= described.last) {
            file.write_all(&entry.encode_length_delimited_to_vec()).with_context(writing)?;
            last = entry.index;
        }
        from = last + 1;
        if !page.more {
            break;
        }
    }
    if last != described.last {
        bail!("the log ends at {last}, and at {} a moment ago: it was deleted meanwhile", described.last);
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(writing)?;
    file.sync_all().with_context(writing)?;
    Ok(last)
}

/// The entries of a file, one after the other.
pub(super) struct Entries {
    file: BufReader<File>,
    shown: String,
}

impl Entries {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let mut file = BufReader::new(File::open(path).with_context(|| format!("cannot open {shown}"))?);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).with_context(|| format!("cannot read {shown}"))?;
        if &magic != MAGIC {
            bail!("{shown} is no saved log, or of a newer version");
        }
        Ok(Self { file, shown })
    }

    /// The next one; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        let Some(length) = self.length()? else { return Ok(None) };
        if length > ENTRY_BYTES_MAX {
            bail!("{}: an entry of {length} bytes cannot be; the file is damaged", self.shown);
        }
        let mut bytes = Vec::new();
        self.file.by_ref().take(length).read_to_end(&mut bytes).with_context(|| self.shown.clone())?;
        if bytes.len() as u64 != length {
            bail!("{} is cut off", self.shown);
        }
        let entry = LogEntry::decode(bytes.as_slice());
        Ok(Some(entry.with_context(|| format!("{}: an entry cannot be read", self.shown))?))
    }

    fn length(&mut self) -> anyhow::Result<Option<u64>> {
        let mut length = 0;
        for n in 0..5 {
            let mut byte = [0];
            if self.file.read(&mut byte).with_context(|| self.shown.clone())? == 0 {
                if n == 0 {
                    return Ok(None);
                }
                bail!("{} is cut off", self.shown);
            }
            length |= u64::from(byte[0] & 0x7f) << (7 * n);
            if byte[0] & 0x80 == 0 {
                return Ok(Some(length));
            }
        }
        bail!("{}: a length cannot be read; the file is damaged", self.shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_damage_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log-x");
        let entries: Vec<_> = [1_usize, 300, 70_000]
            .iter()
            .map(|n| LogEntry { index: *n as u64, id: vec![7; 16].into(), data: vec![b'x'; *n].into() })
            .collect();
        let mut bytes = MAGIC.to_vec();
        for entry in &entries {
            bytes.extend(entry.encode_length_delimited_to_vec());
        }
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writes");
            let mut file = Entries::open(&path)?;
            let mut found = Vec::new();
            while let Some(entry) = file.next()? {
                found.push(entry);
            }
            anyhow::Ok(found)
        };
        assert_eq!(read(&bytes).expect("whole"), entries);
        assert_eq!(read(MAGIC).expect("empty"), vec![]);
        for cut in [3, 6, bytes.len() - 1] {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read(b"PNLG\x02").is_err());
        let huge = [MAGIC.as_slice(), &[0xff, 0xff, 0xff, 0xff, 0x7f]].concat();
        assert!(read(&huge).expect_err("refused").to_string().contains("cannot be"));
    }
}
