//! `pontoon backup` and `pontoon restore`: every keyspace and every log of a cluster in a directory, and into another cluster.
//!
//! ```text
//!   DIR/keyspace-NAME   as `keyspace save` writes it: the whole keyspace as of one revision
//!   DIR/log-NAME        the log's entries, up to the last one that it had when its turn came ([`log_file`])
//!   DIR/PROGRESS        what is done so far, a line for each file; while there is no manifest
//!   DIR/MANIFEST        comes last, with the length and the SHA-256 of each file, and of itself ([`manifest`])
//! ```
//! Each group is consistent in itself; two groups are of moments that lie as far apart as the backup took. A backup that was
//! broken off has no manifest: it cannot be restored, and is finished by running it again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use pontoon_node::DriverStep;
use pontoon_proto::etcdserverpb::HashKvRequest;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::v1::{Keyspace, ListKeyspacesRequest, ListLogsRequest, ListStoresRequest, Log};
use serde::Serialize;
use tonic::Code;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::{Hex, note};
use super::saved::{self, Store, addressed};
use crate::error::UsageError;
use manifest::{GroupEntry, Kind, Manifest, Progress};

mod log_file;
mod manifest;
mod restore;

pub(super) use restore::{RestoreArgs, restore};

/// Arguments of `backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// The directory to write; new, empty, or of a backup of this cluster that was broken off
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Log in as this user, where a keyspace has users: NAME:PASSWORD
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
}

#[derive(Serialize)]
struct Done {
    cluster: Hex,
    directory: String,
    keyspaces: usize,
    logs: usize,
    bytes: u64,
    /// Files that an earlier run had written.
    kept: usize,
}

/// A group of the cluster.
struct Group {
    kind: Kind,
    name: String,
    id: u64,
    replicas: u32,
}

impl From<Keyspace> for Group {
    fn from(k: Keyspace) -> Self {
        Self { kind: Kind::Keyspace, name: k.name, id: k.id, replicas: k.replicas_wanted }
    }
}

impl From<Log> for Group {
    fn from(l: Log) -> Self {
        Self { kind: Kind::Log, name: l.name, id: l.id, replicas: l.replicas_wanted }
    }
}

async fn groups(global: &Global) -> anyhow::Result<(u64, Vec<Group>)> {
    let cluster =
        ask(global, Repeat::Harmless, async |client| client.list_stores(ListStoresRequest {}).await).await?;
    let keyspaces =
        ask(global, Repeat::Harmless, async |client| client.list_keyspaces(ListKeyspacesRequest {}).await)
            .await?;
    let logs =
        ask(global, Repeat::Harmless, async |client| client.list_logs(ListLogsRequest {}).await).await?;
    let all = keyspaces.keyspaces.into_iter().map(Group::from).chain(logs.logs.into_iter().map(Group::from));
    Ok((cluster.cluster, all.collect()))
}

/// Saves a cluster.
pub(super) async fn backup(args: BackupArgs, global: &Global) -> anyhow::Result<()> {
    let dir = &args.dir;
    if manifest::is_in(dir) {
        return Err(UsageError::new(format!(
            "{} holds a backup that is complete; a backup never replaces another; name a new directory",
            dir.display()
        ))
        .into());
    }
    let (cluster, groups) = groups(global).await?;
    let mut progress = Progress::open(dir, cluster)?;
    let mut entries = Vec::new();
    let mut kept = 0;
    for (n, group) in groups.iter().enumerate() {
        if let Some(entry) = progress.done(group.kind, &group.name, group.id) {
            entries.push(entry.clone());
            kept += 1;
            continue;
        }
        note(&format!("{} of {}: {} {}", n + 1, groups.len(), group.kind.noun(), group.name));
        global.reach(DriverStep::SaveGroup.before());
        let entry = save(dir, group, args.user.as_deref(), global).await.with_context(|| {
            format!("{} {}: the backup is not complete; run it again to go on", group.kind.noun(), group.name)
        })?;
        progress.add(&entry)?;
        global.reach(DriverStep::SaveGroup.after());
        entries.push(entry);
    }
    // What an earlier run saved of groups that were deleted since is no part of it.
    progress.remove_others(&entries)?;
    let manifest = Manifest::new(cluster, entries);
    global.reach(DriverStep::WriteManifest.before());
    manifest.save(dir)?;
    global.reach(DriverStep::WriteManifest.after());
    progress.remove()?;
    let count = |kind| manifest.groups.iter().filter(|g| g.kind == kind).count();
    let done = Done {
        cluster: Hex(cluster),
        directory: dir.display().to_string(),
        keyspaces: count(Kind::Keyspace),
        logs: count(Kind::Log),
        bytes: manifest.groups.iter().map(|g| g.bytes).sum(),
        kept,
    };
    global.output.print(&done, |d| {
        format!(
            "cluster {} is saved in {}: {} keyspaces, {} logs, {} bytes",
            d.cluster, d.directory, d.keyspaces, d.logs, d.bytes
        )
    })
}

async fn save(dir: &Path, group: &Group, user: Option<&str>, global: &Global) -> anyhow::Result<GroupEntry> {
    let file = group.kind.file(&group.name);
    let path = dir.join(&file);
    // Of a run that died before it noted it.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(anyhow::Error::new(error).context(format!("cannot remove {}", path.display())));
        }
        _ => {}
    }
    let (last, kv_hash) = match group.kind {
        Kind::Keyspace => {
            saved::save_to(&group.name, &path, user, global).await?;
            let revision = saved::revision(&path)?;
            (revision.unsigned_abs(), hash_at(&group.name, revision, user, global).await?)
        }
        Kind::Log => (log_file::save(&group.name, &path, global).await?, None),
    };
    let (bytes, sha256) = manifest::digest(&path)?;
    Ok(GroupEntry {
        kind: group.kind,
        name: group.name.clone(),
        id: Hex(group.id).to_string(),
        replicas: group.replicas,
        file,
        last,
        kv_hash,
        bytes,
        sha256,
    })
}

/// etcd's hash of a keyspace as of a revision, by which a restore knows what is there. None if the keyspace is not so far, or
/// compacted beyond it.
async fn hash_at(
    name: &str,
    revision: i64,
    user: Option<&str>,
    global: &Global,
) -> anyhow::Result<Option<u32>> {
    let store = Store::connect(global).await?;
    let token = match user {
        Some(user) => store.log_in(name, user).await?,
        None => None,
    };
    let request = addressed(HashKvRequest { revision }, name, token.as_deref())?;
    let mut client = MaintenanceClient::new(store.channel.clone());
    let answer = client.hash_kv(request);
    match tokio::time::timeout(global.timeout, answer).await {
        Ok(Ok(answer)) => Ok(Some(answer.into_inner().hash)),
        Ok(Err(status)) if status.code() == Code::OutOfRange => Ok(None),
        Ok(Err(status)) => Err(store.refusal(&status)),
        Err(_elapsed) => bail!("no answer within {:?}", global.timeout),
    }
}

/// A directory that is no backup which can be used: exit code 2.
fn unusable(dir: &Path, why: &str) -> anyhow::Error {
    UsageError::new(format!("{}: {why}", dir.display())).into()
}
