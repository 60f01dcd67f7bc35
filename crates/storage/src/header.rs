//! `HEADER`: whose data this is.

use pontoon_raft_core::types::StoreId;

use crate::codec::{self, Decoder};
use crate::disk::{self, Disk};
use crate::error::{InitializeError, OpenError};

pub(crate) const FILE: &str = "HEADER";
const MAGIC: &[u8; 8] = b"PTNHEAD\0";
/// The version of the whole data directory; a newer one is refused at opening.
pub(crate) const FORMAT: u32 = 1;
/// Names and addresses are at most this long.
const TEXT_BYTES_MAX: usize = 1024;
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Who a data directory belongs to. `cluster` and `store` are fixed for ever by the first `initialize`; the name and
/// the addresses may be replaced by a later one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster's id.
    pub cluster: u64,
    /// The store's id.
    pub store: StoreId,
    /// The store's name, for people.
    pub name: String,
    /// Where other stores reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        codec::put_u32(&mut out, FORMAT);
        codec::put_u64(&mut out, self.cluster);
        codec::put_u64(&mut out, self.store.0);
        for text in [&self.name, &self.peer_address, &self.client_address] {
            codec::put_bytes(&mut out, text.as_bytes());
        }
        codec::sealed(&out)
    }

    fn decode(bytes: &[u8]) -> Result<Result<Self, u32>, codec::DecodeError> {
        let mut d = Decoder::new(codec::unsealed(bytes)?);
        if d.take(8)? != MAGIC {
            return Err(codec::DecodeError("it is no header of this software"));
        }
        let format = d.u32()?;
        if format > FORMAT {
            return Ok(Err(format));
        }
        Ok(Ok(Self {
            cluster: d.u64()?,
            store: StoreId(d.u64()?),
            name: d.text()?,
            peer_address: d.text()?,
            client_address: d.text()?,
        }))
    }

    pub(crate) fn read(disk: &dyn Disk) -> Result<Option<Self>, OpenError> {
        let bytes = disk::read_small(disk, FILE, FILE_BYTES_MAX).map_err(OpenError::io("read", FILE))?;
        let Some(bytes) = bytes else { return Ok(None) };
        match Self::decode(&bytes) {
            Ok(Ok(header)) => Ok(Some(header)),
            Ok(Err(found)) => Err(OpenError::NewerFormat { file: FILE.to_owned(), found, known: FORMAT }),
            Err(e) => Err(OpenError::Damaged {
                file: FILE.to_owned(),
                offset: 0,
                what: e.to_string(),
                evidence: "it is only ever replaced as a whole".to_owned(),
            }),
        }
    }

    pub(crate) fn check(&self, present: Option<&Self>) -> Result<(), InitializeError> {
        let texts = [
            ("name", &self.name),
            ("peer_address", &self.peer_address),
            ("client_address", &self.client_address),
        ];
        for (field, text) in texts {
            if text.len() > TEXT_BYTES_MAX {
                return Err(InitializeError::TooLong { field, len: text.len(), max: TEXT_BYTES_MAX });
            }
        }
        match present {
            Some(there) if (there.cluster, there.store) != (self.cluster, self.store) => {
                Err(InitializeError::Foreign {
                    cluster: self.cluster,
                    store: self.store.0,
                    found_cluster: there.cluster,
                    found_store: there.store.0,
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn write(&self, disk: &dyn Disk) -> std::io::Result<()> {
        disk::replace_small(disk, FILE, &self.encode())
    }
}
