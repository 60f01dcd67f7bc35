//! `pontoon recover`: goes on without a quorum. The rules are in `pontoon_node::recovery`; here are the directories, the plan
//! that people confirm, and the record of it.
//!
//! The field names of the JSON documents are a contract with scripts; a field is never renamed or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use pontoon_node::DriverStep;
use pontoon_node::lineage::give_up_stores;
use pontoon_node::meta::{
    META_GROUP, MetaCommand, RecoveredGroup, RecoveryRecord, Registry, StoreRecord, StoreState, meta_command,
};
use pontoon_node::recovery::{Fate, Forced, Left, batches, decide};
use pontoon_proto::v1::ListRecoveriesRequest;
use pontoon_raft_core::types::{EntryId, GroupId, StoreId};
use pontoon_storage::{Batch, LogStore, Options};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::offline::Stopped;
use super::output::{Hex, note, or_dash, table};
use crate::compose;
use crate::error::{UsageError, one_line};

/// Beside a survivor's data: the plans that were applied to it, one JSON document a line.
const RECORD_FILE: &str = "RECOVERIES";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum RecoverCommand {
    /// Show what a recovery would do and may lose; changes nothing
    Plan(Survivors),
    /// Do what `plan` has shown
    Apply(ApplyArgs),
    /// Show the recoveries that a running cluster went through
    History,
}

/// Who is left.
#[derive(Args, Debug)]
pub(crate) struct Survivors {
    /// The data directories of the stopped stores that survive
    #[arg(required = true)]
    dirs: Vec<PathBuf>,

    /// A store that is gone for good, by its name; repeatable [default: all whose directories are not given]
    #[arg(long, value_name = "NAME")]
    lost: Vec<String>,

    /// Recover this group alone
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

/// Flags of `recover apply`.
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    survivors: Survivors,

    /// The words that `plan` prints last: they are of this plan, and of no other
    #[arg(long, value_name = "PLAN")]
    confirm: String,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

#[derive(Serialize)]
struct GroupDocument {
    group: String,
    group_id: u64,
    /// intact, forced, gone, missing
    fate: &'static str,
    /// The store whose log is best.
    from: Option<Hex>,
    last_index: Option<u64>,
    last_term: Option<u64>,
    /// Entries of that log that nobody was told of so far, as far as the store knows: they become committed.
    uncertain: Option<u64>,
    /// Writes after the last entry may have been acknowledged, and are lost then.
    may_lose: bool,
    voters: Vec<Hex>,
    epoch: Option<u64>,
    /// Stores whose directories must be given, too.
    missing: Vec<String>,
}

#[derive(Serialize)]
struct PlanDocument {
    cluster: Hex,
    survivors: Vec<String>,
    lost: Vec<String>,
    groups: Vec<GroupDocument>,
    /// What `apply --confirm` takes; absent if there is nothing to do, or it cannot be done.
    confirm: Option<String>,
}

/// A plan with all that it takes to carry it out.
struct Plan {
    document: PlanDocument,
    directories: BTreeMap<StoreId, PathBuf>,
    lost: BTreeSet<StoreId>,
    forced: BTreeMap<GroupId, Forced>,
}

/// Runs it.
pub(crate) fn run(command: RecoverCommand, global: &Global) -> anyhow::Result<ExitCode> {
    match command {
        RecoverCommand::Plan(survivors) => {
            let plan = plan(&survivors)?;
            global.output.print(&plan.document, text)?;
            Ok(ExitCode::SUCCESS)
        }
        RecoverCommand::Apply(args) => apply(&args, global),
        RecoverCommand::History => super::online(history(global)),
    }
}

fn refuse(why: impl Into<String>) -> anyhow::Error {
    UsageError::new(why.into()).into()
}

/// Reads the directories; all must be of one cluster.
fn read(dirs: &[PathBuf]) -> anyhow::Result<(u64, BTreeMap<StoreId, Stopped>)> {
    let mut survivors = BTreeMap::new();
    let mut cluster = None;
    for dir in dirs {
        let mut stopped = Stopped::read(dir)?;
        if let Some(refused) = stopped.records.refused.take() {
            return Err(refuse(one_line(&refused.into())));
        }
        let place = dir.display();
        let header = stopped.records.header.clone();
        let header = header.ok_or_else(|| refuse(format!("{place} holds no store yet; leave it out")))?;
        if compose::is_gone(dir) {
            return Err(refuse(format!(
                "{place} is of {}, which has left its cluster or was removed; a store that is gone does not survive; leave \
                 it out",
                header.name
            )));
        }
        if *cluster.get_or_insert(header.cluster) != header.cluster {
            return Err(refuse(format!(
                "{place} is of the cluster {:016x}, the others are not; give the directories of one cluster",
                header.cluster
            )));
        }
        if survivors.insert(header.store, stopped).is_some() {
            return Err(refuse(format!(
                "{place} is of {}, which was given already; leave one out",
                header.name
            )));
        }
    }
    Ok((cluster.unwrap_or_default(), survivors))
}

fn left(survivors: &BTreeMap<StoreId, Stopped>, group: GroupId) -> Vec<Left> {
    let records = survivors.values().filter_map(|stopped| stopped.records.groups.get(&group));
    records.filter_map(Left::of).collect()
}

/// The registry as the best log of the meta group has it.
fn best_registry(survivors: &BTreeMap<StoreId, Stopped>) -> anyhow::Result<Registry> {
    let log = |stopped: &&Stopped| {
        let left = stopped.records.groups.get(&META_GROUP).and_then(Left::of);
        left.map(|left| (left.last_term, left.last_index))
    };
    let best = survivors.values().filter(|s| log(s).is_some()).max_by_key(log);
    let best = best.ok_or_else(|| {
        refuse(
            "none of these directories has the registry (group meta), so nobody knows which groups there are",
        )
    })?;
    let registry = best.registry_to_come()?;
    if !registry.is_founded() {
        return Err(refuse(format!("{}: its registry is empty: it had not joined yet", best.dir.display())));
    }
    Ok(registry)
}

/// The stores that are given up.
fn lost_stores<'a>(
    registry: &'a Registry,
    given: &BTreeMap<StoreId, Stopped>,
    named: &[String],
) -> anyhow::Result<Vec<&'a StoreRecord>> {
    let is_given = |store: &StoreRecord| given.contains_key(&store.id());
    let lost: Vec<_> = if named.is_empty() {
        registry.stores.values().filter(|s| !is_given(s)).collect()
    } else {
        let by_name = |name: &String| {
            let found =
                registry.stores.values().find(|s| s.name == *name || Hex(s.store).to_string() == *name);
            let found = found.ok_or_else(|| {
                let names: Vec<_> = registry.stores.values().map(|s| s.name.as_str()).collect();
                refuse(format!("--lost {name}: there is no such store; the stores are {}", names.join(", ")))
            })?;
            if is_given(found) {
                return Err(refuse(format!("--lost {name}: its directory is given as one that survives")));
            }
            Ok(found)
        };
        named.iter().map(by_name).collect::<anyhow::Result<_>>()?
    };
    let mut lost = lost;
    lost.sort_by(|a, b| a.name.cmp(&b.name));
    let stays = |s: &&StoreRecord| is_given(s) && s.state() == StoreState::Member && !s.learner;
    let others = || registry.stores.values().any(|s| !is_given(s) && lost.iter().all(|l| l.store != s.store));
    if !registry.stores.values().any(|s| stays(&s)) && !others() {
        return Err(refuse(
            "none of these stores is a member that stays: a cluster cannot be recovered from stores that were on their way \
             in or out",
        ));
    }
    Ok(lost)
}

fn plan(args: &Survivors) -> anyhow::Result<Plan> {
    let (cluster, survivors) = read(&args.dirs)?;
    let registry = best_registry(&survivors)?;
    let lost_records = lost_stores(&registry, &survivors, &args.lost)?;
    let lost: BTreeSet<_> = lost_records.iter().map(|s| s.id()).collect();
    let name_of = |store: StoreId| {
        registry.stores.get(&store.0).map_or_else(|| store.to_string(), |record| record.name.clone())
    };
    let wanted = match &args.group {
        None => None,
        Some(name) if name == "meta" => Some(META_GROUP),
        Some(name) => Some(registry.group_named(name).map(|g| g.id()).ok_or_else(|| {
            refuse(format!(
                "--group {name}: there is no such group; `pontoon inspect` shows those of a directory"
            ))
        })?),
    };
    let mut forced = BTreeMap::new();
    let mut groups = Vec::new();
    let mut possible = true;
    for group in registry.all_groups().filter(|g| wanted.is_none_or(|wanted| wanted == g.id())) {
        let hosts = group.replicas.iter().map(|r| StoreId(r.store)).collect();
        let fate = decide(&left(&survivors, group.id()), &hosts, &lost);
        let mut document = GroupDocument {
            group: group.name.clone(),
            group_id: group.group,
            fate: "intact",
            from: None,
            last_index: None,
            last_term: None,
            uncertain: None,
            may_lose: false,
            voters: Vec::new(),
            epoch: None,
            missing: Vec::new(),
        };
        match fate {
            Fate::Intact => {}
            Fate::Gone => (document.fate, document.may_lose) = ("gone", true),
            Fate::Missing(stores) => {
                document.fate = "missing";
                document.missing = stores.into_iter().map(name_of).collect();
                possible = false;
            }
            Fate::Forced(one) => {
                document.fate = "forced";
                document.from = Some(Hex(one.best.replica.store.0));
                document.last_index = Some(one.best.last_index.0);
                document.last_term = Some(one.best.last_term.0);
                document.uncertain = Some(one.best.last_index.0.saturating_sub(one.best.commit.0));
                document.may_lose = one.may_have_lost;
                document.voters = one.voters.iter().map(|v| Hex(v.store.0)).collect();
                document.epoch = Some(one.epoch.0);
                forced.insert(group.id(), *one);
            }
        }
        groups.push(document);
    }
    let mut document = PlanDocument {
        cluster: Hex(cluster),
        survivors: survivors.values().map(Stopped::name).collect(),
        lost: lost_records.iter().map(|s| s.name.clone()).collect(),
        groups,
        confirm: None,
    };
    if possible && !forced.is_empty() {
        document.confirm = Some(words(&document)?);
    }
    document.survivors.sort();
    let directories = survivors.iter().map(|(store, stopped)| (*store, stopped.dir.clone())).collect();
    Ok(Plan { document, directories, lost, forced })
}

/// Whoever types these has seen this plan, and the stores have not changed since.
fn words(document: &PlanDocument) -> anyhow::Result<String> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &serde_json::to_vec(document)?);
    let digits: String = digest.as_ref().iter().take(4).map(|b| format!("{b:02x}")).collect();
    Ok(format!("give-up-{}-{digits}", document.lost.len()))
}

fn text(document: &PlanDocument) -> String {
    let names = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut lines = vec![
        format!("cluster    {}", document.cluster),
        format!("survive    {}", names(&document.survivors)),
        format!("given up   {}", names(&document.lost)),
        String::new(),
    ];
    let rows = document.groups.iter().map(|group| {
        let told = match group.fate {
            "intact" => "nothing: its quorum survives".to_owned(),
            "gone" => "everything: no replica survives; delete it afterwards".to_owned(),
            "missing" => format!("unknown: give the directories of {} too", group.missing.join(", ")),
            _ if group.may_lose => "acknowledged writes after the last entry, if there were any".to_owned(),
            _ => "nothing: each acknowledged write is on a store that survives".to_owned(),
        };
        vec![
            group.group.clone(),
            group.fate.to_owned(),
            or_dash(group.from),
            or_dash(group.last_term),
            or_dash(group.last_index),
            or_dash(group.uncertain),
            told,
        ]
    });
    lines.push(table(&["group", "fate", "from", "term>", "last>", "uncertain>", "may be lost"], rows));
    lines.push(String::new());
    match &document.confirm {
        Some(words) => lines.push(format!(
            "The stores that are given up can never come back, whatever is on their disks: make sure that none of them runs.\n\
             To do it, give the same directories to `pontoon recover apply` with --confirm {words}"
        )),
        None if document.groups.iter().any(|g| g.fate == "missing") => {
            lines.push("This cannot be done without the directories that are missing.".to_owned());
        }
        None => lines.push("There is nothing to do: start the stores.".to_owned()),
    }
    lines.join("\n")
}

fn new_entry_id() -> anyhow::Result<EntryId> {
    Ok(EntryId((u128::from(compose::random_id()?) << 64) | u128::from(compose::random_id()?)))
}

/// The commands that follow the meta group's new configuration.
fn commands(plan: &Plan, note: &str) -> anyhow::Result<Vec<(EntryId, MetaCommand)>> {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let document = &plan.document;
    let names: BTreeMap<_, _> = document.groups.iter().map(|g| (g.group_id, g.group.clone())).collect();
    let group = |(id, forced): (&GroupId, &Forced)| RecoveredGroup {
        group: id.0,
        name: names.get(&id.0).cloned().unwrap_or_default(),
        last_index: forced.best.last_index.0,
        last_term: forced.best.last_term.0,
        may_have_lost: forced.may_have_lost,
        epoch: forced.epoch.0,
    };
    let record = RecoveryRecord {
        at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
        note: note.to_owned(),
        lost: document.lost.clone(),
        survivors: document.survivors.clone(),
        groups: plan.forced.iter().map(group).collect(),
    };
    let kick = |store: &StoreId| {
        meta_command::Change::RemoveStore(meta_command::RemoveStore { store: store.0, kick: true })
    };
    let changes = plan.lost.iter().map(kick).chain([meta_command::Change::RecordRecovery(record)]);
    changes.map(|change| Ok((new_entry_id()?, MetaCommand { change: Some(change) }))).collect()
}

fn apply(args: &ApplyArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let plan = plan(&args.survivors)?;
    let Some(words) = &plan.document.confirm else {
        return Err(refuse(
            "there is nothing to apply, or it cannot be done; `pontoon recover plan` shows why",
        ));
    };
    if *words != args.confirm {
        return Err(refuse(format!(
            "--confirm {} is not of this plan; `pontoon recover plan` with the same directories shows what would be done now, \
             and its words",
            args.confirm
        )));
    }
    let commands = commands(&plan, &args.note)?;
    let mut logs = BTreeMap::new();
    for (store, dir) in &plan.directories {
        let (log, _) = LogStore::open(&dir.join("log"), Options::default()).map_err(compose::wrong_state)?;
        logs.insert(*store, log);
    }
    for (group, forced) in &plan.forced {
        let now = logs.get(&forced.best.replica.store).and_then(|log| log.group(*group));
        if now.is_none_or(|now| now.last_index != forced.best.last_index) {
            return Err(refuse(format!(
                "group {group} has changed since the plan was made: a store was started meanwhile; stop it, and plan again"
            )));
        }
    }
    // First of all, everywhere: what follows must not be undone by one of those. If this ends half done, the same plan does
    // the rest.
    for log in logs.values() {
        global.reach(DriverStep::GiveUpStores.before());
        give_up_stores(log, &plan.lost)?;
        global.reach(DriverStep::GiveUpStores.after());
    }
    let mut batches = batches(&plan.forced, &commands);
    // The registry last: what it records is done then.
    let meta = plan.forced.get(&META_GROUP).map(|forced| forced.best.replica.store);
    let last = meta.and_then(|store| Some((store, batches.remove(&store)?)));
    let last = last.map(|(store, batch)| (DriverStep::RecoverRegistry, store, batch));
    let others = batches.into_iter().map(|(store, batch)| (DriverStep::RecoverGroups, store, batch));
    for (step, store, batch) in others.chain(last) {
        let log = logs.get(&store).context("a batch for a directory that was not given")?;
        global.reach(step.before());
        write(log, batch).with_context(|| format!("{}", plan.directories[&store].display()))?;
        global.reach(step.after());
    }
    drop(logs);
    let line = serde_json::to_string(&plan.document)?;
    for dir in plan.directories.values() {
        global.reach(DriverStep::NoteRecovery.before());
        record(dir, &line).with_context(|| format!("cannot record it in {}", dir.display()))?;
        global.reach(DriverStep::NoteRecovery.after());
    }
    global.output.print(&plan.document, |document| {
        let forced = document.groups.iter().filter(|g| g.fate == "forced").count();
        format!("{forced} groups go on without {}", document.lost.join(", "))
    })?;
    if meta.is_none() && !plan.lost.is_empty() {
        note(&format!(
            "the registry is in order and was not changed: start the stores, and kick {}",
            plan.document.lost.join(", ")
        ));
    }
    for gone in plan.document.groups.iter().filter(|g| g.fate == "gone") {
        note(&format!("{} is gone with all its replicas: delete it when the cluster runs", gone.group));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a batch and waits for the disk.
fn write(log: &LogStore, batch: Batch) -> anyhow::Result<()> {
    let (done, written) = std::sync::mpsc::channel();
    log.submit(
        batch,
        Box::new(move |result| {
            // The receiver waits below.
            let _ = done.send(result);
        }),
    );
    match written.recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow::Error::new(error)),
        Err(_) => bail!("the log store has stopped"),
    }
}

fn record(dir: &std::path::Path, line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::options().create(true).append(true).open(dir.join(RECORD_FILE))?;
    writeln!(file, "{line}")?;
    file.sync_all()
}

#[derive(Serialize)]
struct HistoryGroup {
    group: String,
    group_id: u64,
    last_index: u64,
    last_term: u64,
    may_have_lost: bool,
    epoch: u64,
}

#[derive(Serialize)]
struct HistoryRow {
    at_ms: u64,
    note: String,
    lost: Vec<String>,
    survivors: Vec<String>,
    groups: Vec<HistoryGroup>,
}

#[derive(Serialize)]
struct History {
    recoveries: Vec<HistoryRow>,
}

async fn history(global: &Global) -> anyhow::Result<()> {
    let answer =
        ask(global, Repeat::Harmless, async |client| client.list_recoveries(ListRecoveriesRequest {}).await)
            .await?;
    let row = |recovery: pontoon_proto::v1::Recovery| HistoryRow {
        at_ms: recovery.at_ms,
        note: recovery.note,
        lost: recovery.lost,
        survivors: recovery.survivors,
        groups: recovery
            .groups
            .into_iter()
            .map(|g| HistoryGroup {
                group: g.group,
                group_id: g.group_id,
                last_index: g.last_index,
                last_term: g.last_term,
                may_have_lost: g.may_have_lost,
                epoch: g.epoch,
            })
            .collect(),
    };
    let history = History { recoveries: answer.recoveries.into_iter().map(row).collect() };
    global.output.print(&history, |history| {
        let rows = history.recoveries.iter().flat_map(|recovery| {
            let at = UNIX_EPOCH + std::time::Duration::from_millis(recovery.at_ms);
            let at = humantime::format_rfc3339_seconds(at).to_string();
            recovery.groups.iter().map(move |group| {
                vec![
                    at.clone(),
                    recovery.lost.join(" "),
                    group.group.clone(),
                    group.last_term.to_string(),
                    group.last_index.to_string(),
                    if group.may_have_lost { "perhaps" } else { "no" }.to_owned(),
                    recovery.note.clone(),
                ]
            })
        });
        table(&["at", "given up", "group", "term>", "last>", "lost writes", "note"], rows)
    })
}
