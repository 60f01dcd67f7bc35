//! `pontoon restore`: what `pontoon backup` wrote, into a cluster that has none of it.
//!
//! It may be killed at any moment and is then run again. A keyspace that is there already and has exactly what was saved, by
//! etcd's hash, counts as restored; a log that begins as the saved one is filled up. Whatever else is in the way is left
//! alone and named.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use pontoon_node::DriverStep;
use pontoon_proto::v1::restore_client::RestoreClient;
use pontoon_proto::v1::{
    AppendLogRequest, CreateKeyspaceRequest, CreateLogRequest, DescribeLogRequest, ListLogsRequest,
    ListStoresRequest, LookRequest, ReadLogRequest,
};
use pontoon_raft_core::types::EntryId;
use serde::Serialize;
use tonic::Code;

use super::super::connect::{Repeat, ask};
use super::super::output::note;
use super::super::saved::{Store, addressed};
use super::super::{Global, restore as keyspace_restore};
use super::log_file::Entries;
use super::manifest::{GroupEntry, Kind, Manifest};

/// Arguments of `restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// A directory that `backup` wrote
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Log in as this user where a keyspace that an earlier run restored has users: NAME:PASSWORD
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
}

#[derive(Serialize)]
struct Done {
    cluster_saved: String,
    keyspaces: usize,
    logs: usize,
    /// Groups that an earlier run had restored.
    kept: usize,
}

/// Fills a cluster.
pub(crate) async fn restore(args: RestoreArgs, global: &Global) -> anyhow::Result<()> {
    // All of it is checked before there is anything that would have to be taken back.
    let manifest = Manifest::load(&args.dir)?;
    let stores =
        ask(global, Repeat::Harmless, async |client| client.list_stores(ListStoresRequest {}).await).await?;
    let members = stores.stores.iter().filter(|s| s.state() == pontoon_proto::v1::StoreState::Member).count();
    let mut kept = 0;
    for (n, group) in manifest.groups.iter().enumerate() {
        note(&format!("{} of {}: {} {}", n + 1, manifest.groups.len(), group.kind.noun(), group.name));
        // As many as it had, or as there are stores.
        let replicas = group.replicas.clamp(1, u32::try_from(members).unwrap_or(u32::MAX).max(1));
        let path = args.dir.join(&group.file);
        global.reach(DriverStep::RestoreGroup.before());
        let was_there = match group.kind {
            Kind::Keyspace => keyspace(group, &path, replicas, args.user.as_deref(), global).await,
            Kind::Log => log(group, &path, replicas, global).await,
        };
        kept += usize::from(was_there.with_context(|| {
            format!("{} {}: not everything is restored; run it again to go on", group.kind.noun(), group.name)
        })?);
        global.reach(DriverStep::RestoreGroup.after());
    }
    let count = |kind| manifest.groups.iter().filter(|g| g.kind == kind).count();
    let done = Done {
        cluster_saved: manifest.cluster.clone(),
        keyspaces: count(Kind::Keyspace),
        logs: count(Kind::Log),
        kept,
    };
    global.output.print(&done, |d| {
        format!(
            "what cluster {} had is restored: {} keyspaces, {} logs",
            d.cluster_saved, d.keyspaces, d.logs
        )
    })
}

/// Restores a keyspace; whether that had been done before.
async fn keyspace(
    group: &GroupEntry,
    path: &Path,
    replicas: u32,
    user: Option<&str>,
    global: &Global,
) -> anyhow::Result<bool> {
    let before = find(group, user, global).await?;
    if before == Found::Restored {
        return Ok(true);
    }
    if group.last > 1 {
        keyspace_restore::restore_from(&group.name, path, Some(replicas), global).await?;
    } else if before == Found::Nothing {
        // Nobody has ever written to it: that is not what a restore can tell from one that was broken off.
        let create = CreateKeyspaceRequest { name: group.name.clone(), replicas };
        ask(global, Repeat::MightDoItTwice, async |client| client.create_keyspace(create.clone()).await)
            .await?;
    }
    match (group.kv_hash, hash(group, user, global).await?) {
        (Some(saved), Some(restored)) if saved != restored => bail!(
            "it is not what was saved: its hash as of revision {} is {restored}, and was {saved}; delete it, and tell those \
             who make Pontoon",
            group.last
        ),
        _ => Ok(false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// There is no such keyspace.
    Nothing,
    /// There is one, which an earlier run has filled.
    Restored,
    /// There is one, and it is not known to be what was saved.
    Something,
}

async fn find(group: &GroupEntry, user: Option<&str>, global: &Global) -> anyhow::Result<Found> {
    let store = Store::connect(global).await?;
    let look =
        RestoreClient::new(store.channel.clone()).look(addressed(LookRequest {}, &group.name, None)?).await;
    let found = match look {
        Ok(found) => found.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(Found::Nothing),
        Err(status) => return Err(store.refusal(&status)),
    };
    if found.restore.is_some() || (found.empty && group.last > 1) {
        return Ok(Found::Something);
    }
    let same = group.kv_hash.is_some() && hash(group, user, global).await? == group.kv_hash;
    Ok(if same { Found::Restored } else { Found::Something })
}

/// The keyspace's hash as of the revision that was saved; `None` if there is none, or it has users and nobody logs in.
async fn hash(group: &GroupEntry, user: Option<&str>, global: &Global) -> anyhow::Result<Option<u32>> {
    let revision = i64::try_from(group.last).unwrap_or(i64::MAX);
    match super::hash_at(&group.name, revision, user, global).await {
        Err(_) if user.is_none() => Ok(None),
        hash => hash,
    }
}

/// Restores a log; whether that had been done before.
async fn log(group: &GroupEntry, path: &Path, replicas: u32, global: &Global) -> anyhow::Result<bool> {
    let name = &group.name;
    let listed =
        ask(global, Repeat::Harmless, async |client| client.list_logs(ListLogsRequest {}).await).await?;
    if listed.logs.iter().all(|log| log.name != *name) {
        let create = CreateLogRequest { name: name.clone(), replicas };
        ask(global, Repeat::MightDoItTwice, async |client| client.create_log(create.clone()).await).await?;
    }
    let mut there = There::new(name, global).await?;
    let mut saved = Entries::open(path)?;
    let (mut last, mut appended) = (EntryId::NONE.0.to_be_bytes().to_vec(), false);
    while let Some(entry) = saved.next()? {
        match there.next().await? {
            Some((id, data)) if id == entry.id && data == entry.data => {}
            Some(_) => {
                bail!("it is there already, and has other entries than the saved one; delete it, or leave it")
            }
            None => {
                let append = AppendLogRequest {
                    name: name.clone(),
                    id: entry.id.clone(),
                    // In order, and nobody else's in between.
                    prerequisite: Some(last.clone().into()),
                    data: entry.data.clone(),
                };
                ask(global, Repeat::Harmless, async |client| client.append_log(append.clone()).await).await?;
                appended = true;
            }
        }
        last = entry.id.to_vec();
    }
    if there.next().await?.is_some() {
        bail!("it is there already, and has more entries than the saved one; delete it, or leave it");
    }
    Ok(!appended && group.last > 0)
}

/// The entries that a log had when it was looked at first.
struct There<'a> {
    name: &'a str,
    global: &'a Global,
    page: std::vec::IntoIter<pontoon_proto::v1::LogEntry>,
    from: u64,
    last: u64,
}

impl<'a> There<'a> {
    async fn new(name: &'a str, global: &'a Global) -> anyhow::Result<Self> {
        let request = DescribeLogRequest { name: name.to_owned() };
        let described =
            ask(global, Repeat::Harmless, async |client| client.describe_log(request.clone()).await).await?;
        Ok(Self { name, global, page: Vec::new().into_iter(), from: 1, last: described.last })
    }

    async fn next(&mut self) -> anyhow::Result<Option<(bytes::Bytes, bytes::Bytes)>> {
        loop {
            if let Some(entry) = self.page.next() {
                self.from = entry.index + 1;
                return Ok((entry.index <= self.last).then_some((entry.id, entry.data)));
            }
            if self.from > self.last {
                return Ok(None);
            }
            let request = ReadLogRequest { name: self.name.to_owned(), from: self.from, entries_max: 0 };
            let page =
                ask(self.global, Repeat::Harmless, async |client| client.read_log(request.clone()).await)
                    .await?;
            if page.entries.is_empty() {
                return Ok(None);
            }
            self.page = page.entries.into_iter();
        }
    }
}
