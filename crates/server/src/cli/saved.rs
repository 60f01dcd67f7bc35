//! `pontoon keyspace save`: a keyspace's state in a file, and what such a file must be.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use pontoon_proto::etcdserverpb::auth_client::AuthClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::{AuthenticateRequest, SnapshotRequest};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::Serialize;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Global;
use super::connect::{Dialer, refusal};
use crate::config::HostPort;

/// What a saved state begins with.
const MAGIC: &[u8] = b"PNKV";

/// What the length of a saved state without its sum is a multiple of.
const BLOCK_BYTES: u64 = 512;

/// What is read from a file, and sent, at a time.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

/// Reads as much as there is, up to the length of the buffer.
pub(super) fn read_up_to(file: &mut impl std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Checks a saved state from its first byte to its last, and returns its length without the sum.
pub(super) fn check(path: &Path) -> anyhow::Result<u64> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let length = file.metadata().with_context(|| format!("cannot look at {shown}"))?.len();
    let sum_bytes = SHA256_OUTPUT_LEN as u64;
    let body = length.saturating_sub(sum_bytes);
    if length < sum_bytes + BLOCK_BYTES || !body.is_multiple_of(BLOCK_BYTES) {
        bail!("{shown} has {length} bytes, which no saved keyspace has; it was cut off, use another copy");
    }
    let mut sum = Context::new(&SHA256);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left = body;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got =
            read_up_to(&mut file, &mut buffer[..wanted]).with_context(|| format!("cannot read {shown}"))?;
        if got == 0 {
            bail!("{shown} became shorter while it was read; try again");
        }
        if left == body && !buffer.starts_with(MAGIC) {
            bail!(
                "{shown} is no saved keyspace of Pontoon: a snapshot of etcd itself cannot be restored; copy the keys with a \
                 client instead"
            );
        }
        sum.update(&buffer[..got]);
        left -= got as u64;
    }
    let mut expected = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut expected).with_context(|| format!("cannot read {shown}"))?;
    if sum.finish().as_ref() != expected {
        bail!("{shown} is damaged: its checksum is wrong; nothing was restored, use another copy");
    }
    Ok(body)
}

/// The first store that listens.
pub(super) struct Store {
    dialer: Dialer,
    address: HostPort,
    pub(super) channel: Channel,
}

impl Store {
    pub(super) async fn connect(global: &Global) -> anyhow::Result<Self> {
        let dialer = Dialer::new(global)?;
        let mut failures = Vec::new();
        for address in &global.endpoints {
            match dialer.channel(address).await {
                Ok(channel) => return Ok(Self { address: address.clone(), channel, dialer }),
                Err(refused) => failures.push(refused.to_string()),
            }
        }
        bail!("no store answers ({}); start one, or name others by --endpoints", failures.join("; "))
    }

    /// A token of this user (`NAME:PASSWORD`); none where the keyspace has no users.
    pub(super) async fn log_in(&self, name: &str, user: &str) -> anyhow::Result<Option<String>> {
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let login = AuthenticateRequest { name: user.to_owned(), password: password.to_owned() };
        let answer = AuthClient::new(self.channel.clone()).authenticate(addressed(login, name, None)?).await;
        match answer {
            Ok(answer) => Ok(Some(answer.into_inner().token)),
            Err(status) if status.message().ends_with("authentication is not enabled") => Ok(None),
            Err(status) => Err(self.refusal(&status)),
        }
    }

    pub(super) fn refusal(&self, status: &Status) -> anyhow::Error {
        refusal(&self.dialer, &self.address, status)
    }
}

pub(super) fn addressed<T>(message: T, name: &str, token: Option<&str>) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pontoon-keyspace", MetadataValue::try_from(name)?);
    if let Some(token) = token {
        request.metadata_mut().insert("token", MetadataValue::try_from(token)?);
    }
    Ok(request)
}

/// The revision of a saved state that was checked.
pub(super) fn revision(path: &Path) -> anyhow::Result<i64> {
    let mut head = [0; 64];
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = read_up_to(&mut file, &mut head).with_context(|| format!("cannot read {}", path.display()))?;
    pontoon_kv::saved_revision(&head[..read])
        .with_context(|| format!("{} does not say which revision it is of", path.display()))
}

#[derive(Serialize)]
struct Saved {
    keyspace: String,
    file: String,
    bytes: u64,
}

/// Saves a keyspace, and says so.
pub(super) async fn save(name: &str, to: &Path, user: Option<&str>, global: &Global) -> anyhow::Result<()> {
    let bytes = save_to(name, to, user, global).await?;
    let saved = Saved { keyspace: name.to_owned(), file: to.display().to_string(), bytes };
    global
        .output
        .print(&saved, |s| format!("keyspace {} is saved in {} ({} bytes)", s.keyspace, s.file, s.bytes))
}

/// Saves a keyspace; returns the file's length.
pub(super) async fn save_to(
    name: &str,
    to: &Path,
    user: Option<&str>,
    global: &Global,
) -> anyhow::Result<u64> {
    let shown = to.display();
    if to.exists() {
        bail!("{shown} exists already; a saved keyspace never replaces a file; remove it or name another");
    }
    let store = Store::connect(global).await?;
    let token = match user {
        Some(user) => store.log_in(name, user).await?,
        None => None,
    };
    let request = addressed(SnapshotRequest {}, name, token.as_deref())?;
    let answer = MaintenanceClient::new(store.channel.clone()).snapshot(request).await;
    let mut pieces = answer.map_err(|status| store.refusal(&status))?.into_inner();
    // Under another name until it is whole and checked.
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = std::path::PathBuf::from(part);
    let writing = || format!("cannot write {}", part.display());
    let mut file = File::create(&part).with_context(writing)?;
    let written = async {
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await.map_err(|status| store.refusal(&status))? {
            file.write_all(&piece.blob).with_context(writing)?;
            bytes += piece.blob.len() as u64;
        }
        file.sync_all().with_context(writing)?;
        check(&part)?;
        std::fs::rename(&part, to).with_context(|| format!("cannot rename {} to {shown}", part.display()))?;
        anyhow::Ok(bytes)
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("written");
        file
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(ring::digest::digest(&SHA256, body).as_ref());
        bytes
    }

    fn refused(bytes: &[u8]) -> String {
        format!("{:#}", check(file(bytes).path()).expect_err("refused"))
    }

    #[test]
    fn a_file_is_checked_whole_before_anything_is_made() {
        let mut body = vec![0; 3 * CHUNK_BYTES + 512];
        body[..4].copy_from_slice(MAGIC);
        let whole = sealed(&body);
        assert_eq!(check(file(&whole).path()).expect("whole"), body.len() as u64);
        assert!(refused(&whole[..whole.len() - 1]).contains("cut off"));
        assert!(refused(b"").contains("cut off"));
        let mut damaged = whole.clone();
        damaged[CHUNK_BYTES + 7] ^= 1;
        assert!(refused(&damaged).contains("checksum is wrong"));
        let mut damaged = whole;
        *damaged.last_mut().expect("a sum") ^= 1;
        assert!(refused(&damaged).contains("checksum is wrong"));
        assert!(refused(&sealed(&[7; 1024])).contains("a snapshot of etcd itself"));
        assert!(check(Path::new("/no/such/file")).is_err());
    }
}
