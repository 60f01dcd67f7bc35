//! `pontoon inspect`: what the directory of a stopped store holds.
//!
//! The field names of the JSON document are a contract with scripts; a field is never renamed or removed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pontoon_node::meta::{META_GROUP, StoreRecord, StoreState};
use pontoon_raft_core::types::ReplicaId;
use serde::Serialize;

use super::Global;
use super::offline::Stopped;
use super::output::{Hex, or_dash, table};
use crate::compose;
use crate::error::{UsageError, one_line};
use crate::join::JoinNote;

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The data directory of a stopped store
    dir: PathBuf,
}

#[derive(Serialize)]
struct GroupDocument {
    group: Option<String>,
    group_id: u64,
    kind: Option<&'static str>,
    /// The replica's number on this store.
    replica: u64,
    term: u64,
    vote: Option<Hex>,
    log_first: u64,
    log_last: u64,
    commit: u64,
}

#[derive(Serialize)]
struct TornTail {
    file: String,
    offset: u64,
    reason: String,
}

#[derive(Serialize)]
struct Document {
    directory: String,
    cluster: Option<Hex>,
    store: Option<Hex>,
    name: Option<String>,
    address: Option<String>,
    client: Option<String>,
    /// Whom a store that joins asks, or asked.
    remotes: Vec<String>,
    state: &'static str,
    format: u32,
    last_batch: u64,
    segments: usize,
    torn_tail: Option<TornTail>,
    doubt: bool,
    groups: Vec<GroupDocument>,
    /// Groups that were destroyed here.
    destroyed: Vec<u64>,
}

fn replica_store(replica: ReplicaId) -> Hex {
    Hex(replica.store.0)
}

impl Document {
    fn new(stopped: Stopped, joins: Option<JoinNote>) -> Self {
        let names = stopped.group_names();
        let state = state(&stopped, joins.is_some());
        let Stopped { dir, records, .. } = stopped;
        let mut groups = Vec::new();
        let mut destroyed = Vec::new();
        for (id, group) in &records.groups {
            if group.tombstone.is_some() {
                destroyed.push(id.0);
            }
            let Some(state) = &group.state else { continue };
            let named = names.get(id);
            groups.push(GroupDocument {
                group: named.map(|(name, _)| name.clone()),
                group_id: id.0,
                kind: named.map(|(_, kind)| *kind),
                replica: state.replica.number,
                term: state.hard_state.term.0,
                vote: state.hard_state.voted_for.map(replica_store),
                log_first: state.first_index.0,
                log_last: state.last_index.0,
                commit: state.commit.0,
            });
        }
        let header = records.header.as_ref();
        // Who joins is nobody yet, but knows who it wants to be.
        let (mut cluster, mut store, mut name, mut address) = (None, None, None, None);
        let mut remotes = Vec::new();
        if let Some(note) = joins {
            let granted = note.granted;
            cluster = granted.as_ref().map(|granted| granted.cluster).or(note.cluster);
            store = Some(granted.map_or(note.store, |granted| granted.store));
            (name, address, remotes) = (Some(note.name), Some(note.peer_address), note.remotes);
        }
        Self {
            directory: dir.display().to_string(),
            cluster: header.map(|header| header.cluster).or(cluster).map(Hex),
            store: header.map(|header| header.store.0).or(store).map(Hex),
            name: header.map(|header| header.name.clone()).or(name),
            address: header.map(|header| header.peer_address.clone()).or(address),
            client: header.map(|header| header.client_address.clone()),
            remotes,
            state,
            format: records.format,
            last_batch: records.last_batch,
            segments: records.segments,
            torn_tail: records.torn_tail.map(|torn| TornTail {
                file: torn.file,
                offset: torn.offset,
                reason: torn.reason,
            }),
            doubt: records.doubt,
            groups,
            destroyed,
        }
    }
}

/// Whether the store belongs to its cluster, as far as it knew.
fn state(stopped: &Stopped, joins: bool) -> &'static str {
    let Some(header) = &stopped.records.header else { return if joins { "joining" } else { "new" } };
    if compose::is_gone(&stopped.dir) {
        return "left";
    }
    match stopped.registry.stores.get(&header.store.0).map(StoreRecord::state) {
        Some(StoreState::Member) => return "member",
        Some(StoreState::Joining | StoreState::Reserved) => return "joining",
        Some(StoreState::Leaving) => return "leaving",
        Some(StoreState::Kicked) => return "kicked",
        None if joins => return "joining",
        None => {}
    }
    match stopped.records.groups.get(&META_GROUP) {
        Some(meta) if meta.tombstone.is_some() || meta.state.is_some() => "left",
        _ => "joining",
    }
}

/// Reads the directory and shows what is in it.
pub(crate) fn run(args: &InspectArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let mut stopped = Stopped::read(&args.dir)?;
    if let Some(refused) = stopped.records.refused.take() {
        // A log that does not add up has no range and no commit index that could be shown.
        return Err(UsageError::new(one_line(&refused.into())).into());
    }
    let joins = JoinNote::load(&stopped.dir)?;
    global.output.print(&Document::new(stopped, joins), text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(document: &Document) -> String {
    let mut lines = vec![
        format!("directory   {}", document.directory),
        format!("cluster     {}", or_dash(document.cluster)),
        format!("store       {}", or_dash(document.store)),
        format!("name        {}", or_dash(document.name.as_ref())),
        format!("address     {}", or_dash(document.address.as_ref())),
        format!("client      {}", or_dash(document.client.as_ref().filter(|client| !client.is_empty()))),
        format!("state       {}", document.state),
        format!("format      {}", document.format),
        format!("journal     {} segments, {} batches so far", document.segments, document.last_batch),
    ];
    if !document.remotes.is_empty() {
        lines.push(format!("joins by    {}", document.remotes.join(", ")));
    }
    if let Some(torn) = &document.torn_tail {
        lines.push(format!("torn tail   {}, offset {}: {}", torn.file, torn.offset, torn.reason));
    }
    if document.doubt {
        lines.push("in doubt    the last acknowledged record may be lost".to_owned());
    }
    if !document.destroyed.is_empty() {
        let ids: Vec<_> = document.destroyed.iter().map(u64::to_string).collect();
        lines.push(format!("destroyed   {}", ids.join(", ")));
    }
    lines.push(String::new());
    let rows = document.groups.iter().map(|group| {
        vec![
            or_dash(group.group.as_ref()),
            group.group_id.to_string(),
            or_dash(group.kind),
            group.term.to_string(),
            or_dash(group.vote),
            group.log_first.to_string(),
            group.log_last.to_string(),
            group.commit.to_string(),
        ]
    });
    lines.push(table(&["group", "id>", "kind", "term>", "vote", "first>", "last>", "commit>"], rows));
    lines.join("\n")
}
