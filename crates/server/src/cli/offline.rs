//! What the commands share that read the directory of a stopped store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pontoon_node::meta::{GroupKind, META_GROUP, Registry, RegistryMachine};
use pontoon_node::state_machine::StateMachine as _;
use pontoon_raft_core::types::{GroupId, Payload};
use pontoon_storage::records::StoreRecords;

use crate::compose::wrong_state;
use crate::error::UsageError;

/// A stopped store.
pub(super) struct Stopped {
    pub(super) dir: PathBuf,
    pub(super) records: StoreRecords,
    /// As far as the store knew; empty in a directory that is a log store alone.
    pub(super) registry: Registry,
}

impl Stopped {
    /// Reads a data directory without changing it.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let log = log_directory(dir)?;
        let records = StoreRecords::read(&log, &[META_GROUP]).map_err(wrong_state)?;
        let meta = dir.join("meta");
        let registry = if meta.is_dir() { registry(&meta, &records, false)? } else { Registry::default() };
        Ok(Self { dir: dir.to_owned(), records, registry })
    }

    /// The registry with all that is in the log, committed or not.
    pub(super) fn registry_to_come(&self) -> anyhow::Result<Registry> {
        registry(&self.dir.join("meta"), &self.records, true)
    }

    /// A store's name, or its directory where it has none.
    pub(super) fn name(&self) -> String {
        match &self.records.header {
            Some(header) if !header.name.is_empty() => header.name.clone(),
            _ => self.dir.display().to_string(),
        }
    }

    /// Names and kinds of groups.
    pub(super) fn group_names(&self) -> BTreeMap<GroupId, (String, &'static str)> {
        let kind = |kind: i32| match GroupKind::try_from(kind) {
            Ok(GroupKind::Meta) => "meta",
            Ok(GroupKind::Kv) => "kv",
            Ok(GroupKind::Log) => "log",
            Err(_) => "unknown",
        };
        let mut names: BTreeMap<_, _> = self
            .registry
            .groups
            .values()
            .map(|group| (group.id(), (group.name.clone(), kind(group.kind))))
            .collect();
        names.insert(META_GROUP, ("meta".to_owned(), "meta"));
        names
    }
}

/// Where the log store is: below a data directory, or the directory itself.
fn log_directory(dir: &Path) -> anyhow::Result<PathBuf> {
    let below = dir.join("log");
    if below.is_dir() {
        return Ok(below);
    }
    if dir.join("MARKER").is_file() {
        return Ok(dir.to_owned());
    }
    let found = if dir.is_dir() { "holds no store" } else { "is no directory" };
    Err(UsageError::new(format!(
        "{} {found}; a data directory has a directory `log` in it; give the --data-dir of a store that has been started",
        dir.display()
    ))
    .into())
}

/// The registry as of the last entry that the store knew to be committed; with `all`, as of the last entry of its log.
fn registry(meta: &Path, records: &StoreRecords, all: bool) -> anyhow::Result<Registry> {
    let (machine, registry) = RegistryMachine::open(meta, Registry::default()).map_err(wrong_state)?;
    let mut registry = Registry::clone(&registry.borrow());
    let Some(group) = records.groups.get(&META_GROUP) else { return Ok(registry) };
    let commit = group.state.as_ref().map_or_else(|| machine.applied(), |state| state.commit);
    for entry in &group.entries {
        if let Payload::Command(command) = &entry.payload
            && entry.index > machine.applied()
            && (all || entry.index <= commit)
        {
            // Its answer was for whoever asked then.
            let _ = registry.apply(command);
        }
    }
    Ok(registry)
}
