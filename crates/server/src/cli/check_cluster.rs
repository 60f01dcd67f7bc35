//! `pontoon check-cluster`: whether the records of several stopped stores keep Raft's guarantees.
//!
//! The field names of the JSON document are a contract with scripts; a field is never renamed or removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pontoon_raft_core::types::GroupId;
use pontoon_storage::OpenError;
use pontoon_storage::check::{Findings, Violation, check};
use pontoon_storage::records::StoreRecords;
use serde::Serialize;

use super::Global;
use super::offline::Stopped;
use super::output::{Hex, or_dash, report_error, table};
use crate::error::{UsageError, one_line};

/// Arguments of `check-cluster`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The data directories of stopped stores of one cluster; the more of its stores, the more can be seen
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
}

#[derive(Clone, Serialize)]
struct StoreDocument {
    store: Option<Hex>,
    name: String,
    directory: String,
}

#[derive(Serialize)]
struct ViolationDocument {
    rule: String,
    store: Option<Hex>,
    name: String,
    other_store: Option<Hex>,
    other_name: Option<String>,
    group: Option<String>,
    group_id: u64,
    index: Option<u64>,
    term: Option<u64>,
    what: String,
}

#[derive(Serialize)]
struct Document {
    stores: Vec<StoreDocument>,
    groups: usize,
    events: u64,
    entries: u64,
    violations: Vec<ViolationDocument>,
}

/// Reads the directories and judges them.
pub(crate) fn run(args: &CheckArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let stopped = args.dirs.iter().map(|dir| Stopped::read(dir)).collect::<anyhow::Result<Vec<_>>>()?;
    of_one_cluster(&stopped)?;
    let mut names = BTreeMap::new();
    let mut stores = Vec::new();
    let mut records = Vec::new();
    for store in stopped {
        names.extend(store.group_names());
        stores.push(StoreDocument {
            store: store.records.header.as_ref().map(|header| Hex(header.store.0)),
            name: store.name(),
            directory: store.dir.display().to_string(),
        });
        records.push(store.records);
    }
    let Findings { groups, events, entries, violations } = check(&records);
    let name = |id: GroupId| names.get(&id).map(|(name, _)| name.clone());
    let mut told: Vec<_> = violations.iter().map(|v| violation(v, &stores, name(v.group))).collect();
    for (n, refused) in records.into_iter().enumerate().filter_map(|(n, store)| Some((n, refused(store)?))) {
        let group = match &refused {
            OpenError::Group { group, .. } => Some(GroupId(*group)),
            _ => None,
        };
        // Named by its rule already, in most cases.
        if violations.iter().any(|v| group.is_none_or(|group| v.group == group) && v.store == n) {
            continue;
        }
        let Some(group) = group else { return Err(UsageError::new(one_line(&refused.into())).into()) };
        told.push(ViolationDocument {
            rule: "recovery".to_owned(),
            store: stores[n].store,
            name: stores[n].name.clone(),
            other_store: None,
            other_name: None,
            group: name(group),
            group_id: group.0,
            index: None,
            term: None,
            what: one_line(&refused.into()),
        });
    }
    let found = told.len();
    let document = Document { stores, groups, events, entries, violations: told };
    global.output.print(&document, text)?;
    if found == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    report_error(&format!(
        "{found} violations of Raft's guarantees; the cluster's history is not one that Raft allows; keep the \
         directories as they are for a report"
    ));
    Ok(ExitCode::from(1))
}

fn refused(store: StoreRecords) -> Option<OpenError> {
    store.refused
}

/// Directories of two clusters, or one store twice, cannot be compared.
fn of_one_cluster(stopped: &[Stopped]) -> anyhow::Result<()> {
    for (n, store) in stopped.iter().enumerate() {
        let Some(header) = &store.records.header else { continue };
        for earlier in &stopped[..n] {
            let Some(other) = &earlier.records.header else { continue };
            let (a, b) = (earlier.dir.display(), store.dir.display());
            if other.cluster != header.cluster {
                return Err(UsageError::new(format!(
                    "{a} belongs to the cluster {:016x} and {b} to {:016x}; only stores of one cluster can be compared; \
                     give those",
                    other.cluster, header.cluster
                ))
                .into());
            }
            if other.store == header.store {
                return Err(UsageError::new(format!(
                    "{a} and {b} are both of the store {:016x}; each store is compared once; give one of them",
                    header.store.0
                ))
                .into());
            }
        }
    }
    Ok(())
}

fn violation(violation: &Violation, stores: &[StoreDocument], group: Option<String>) -> ViolationDocument {
    let store = stores[violation.store].clone();
    let other = violation.other.map(|n| stores[n].clone());
    ViolationDocument {
        rule: violation.rule.to_string(),
        store: store.store,
        name: store.name,
        other_store: other.as_ref().and_then(|other| other.store),
        other_name: other.map(|other| other.name),
        group,
        group_id: violation.group.0,
        index: violation.index.map(|index| index.0),
        term: violation.term.map(|term| term.0),
        what: violation.what.clone(),
    }
}

fn text(document: &Document) -> String {
    let looked_at = format!(
        "{} stores, {} groups, {} events and {} entries of their records",
        document.stores.len(),
        document.groups,
        document.events,
        document.entries
    );
    if document.violations.is_empty() {
        return format!("no violation in {looked_at}");
    }
    let rows = document.violations.iter().map(|v| {
        vec![
            v.rule.clone(),
            v.other_name.as_ref().map_or_else(|| v.name.clone(), |other| format!("{}, {other}", v.name)),
            v.group.clone().unwrap_or_else(|| v.group_id.to_string()),
            or_dash(v.index),
            or_dash(v.term),
            v.what.clone(),
        ]
    });
    let rows = table(&["rule", "store", "group", "index>", "term>", "what"], rows);
    format!("{rows}\n{} violations in {looked_at}", document.violations.len())
}
