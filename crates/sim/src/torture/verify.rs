//! What must hold when the load has ended and every store is up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use pontoon_proto::mvccpb::KeyValue;
use pontoon_sim::linearizability::{
    Action, KvInput, KvModel, KvOperation, KvOutput, Limits, Operation, Verdict, check, check_revisions, html,
};

use super::client::{CallError, Connection};
use super::workload::{FOREIGN, Plan, Recorded};

/// How long the stores may take to agree after the last fault.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// At most so many lines for each kind of violation.
const LINES_MAX: usize = 10;

/// A store that is asked.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) name: String,
    /// Where clients call, `host:port`.
    pub(crate) client: String,
}

/// What the checks found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Broken promises; empty: all is well.
    pub(crate) violations: Vec<String>,
    /// What was checked.
    pub(crate) notes: Vec<String>,
    /// A page with the window of a history that is not linearizable.
    pub(crate) page: Option<String>,
}

impl Findings {
    fn violate(&mut self, what: &str, lines: impl IntoIterator<Item = String>) {
        let lines: Vec<String> = lines.into_iter().collect();
        if lines.is_empty() {
            return;
        }
        let count = lines.len();
        let mut text = format!("{what} ({count})");
        for line in lines.iter().take(LINES_MAX) {
            text.push_str("\n    ");
            text.push_str(&line.replace('\n', "\n    "));
        }
        if count > LINES_MAX {
            text.push_str("\n    …");
        }
        self.violations.push(text);
    }
}

type Content = BTreeMap<Vec<u8>, KeyValue>;

/// Checks what is on the stores against what was acknowledged, and adds what they show now to the history.
pub(crate) async fn verify(
    stores: &[Address],
    plan: &Plan,
    records: &mut Vec<Recorded>,
) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let mut connections = Vec::new();
    for store in stores {
        let connection = Connection::open(&store.client, Duration::from_secs(20)).await.map_err(failed)?;
        connections.push(connection);
    }
    let mut keys_total = 0;
    for number in 0..u32::try_from(plan.keyspaces.len())? {
        let name = plan.keyspaces[number as usize].as_deref();
        let label = name.unwrap_or("default");
        let Some(at) = settled(&mut connections, name).await? else {
            findings
                .violations
                .push(format!("keyspace {label}: the stores have not come to the same revision"));
            continue;
        };
        let mut contents = Vec::new();
        for (store, connection) in connections.iter_mut().enumerate() {
            let call = plan.now();
            let (_, content) = connection.everything(name, at, true).await.map_err(failed)?;
            note(plan, records, (number, store, true), (call, at), &content);
            contents.push(content);
        }
        compare_stores(stores, label, &contents, &mut findings);
        lost_writes(stores, plan, number, records, &contents, &mut findings);
        hashes(stores, &mut connections, name, at, &mut findings).await?;
        keys_total += contents[0].len();
        // One read through the log as well, into the history.
        let call = plan.now();
        let (at, content) = connections[0].everything(name, 0, false).await.map_err(failed)?;
        note(plan, records, (number, 0, false), (call, at), &content);
    }
    findings.notes.push(format!("{keys_total} keys in {} keyspaces on each store", plan.keyspaces.len()));
    Ok(findings)
}

fn failed(error: CallError) -> anyhow::Error {
    anyhow::anyhow!("reading the stores at the end: {}", error.text())
}

/// Waits until all stores are at the same revision and stay there; that revision.
async fn settled(connections: &mut [Connection], keyspace: Option<&str>) -> anyhow::Result<Option<i64>> {
    let until = Instant::now() + SETTLE_MAX;
    let mut before = None;
    while Instant::now() < until {
        let mut revisions = Vec::new();
        for connection in connections.iter_mut() {
            // The linearizable read takes this store to what is committed, the other one shows where it is.
            if connection.get(keyspace, b"settled?".to_vec(), false).await.is_ok() {
                revisions.extend(connection.revision(keyspace).await.ok());
            }
        }
        let same =
            revisions.len() == connections.len() && revisions.windows(2).all(|pair| pair[0] == pair[1]);
        if same && before == revisions.first().copied() {
            return Ok(before);
        }
        before = revisions.first().copied().filter(|_| same);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(None)
}

/// Writes down what a store shows for every key of the history, as reads.
fn note(
    plan: &Plan,
    records: &mut Vec<Recorded>,
    (keyspace, store, serializable): (u32, usize, bool),
    (call, at): (u64, i64),
    content: &Content,
) {
    let now = plan.now();
    let revision = u64::try_from(at).unwrap_or(0);
    let mut keys: Vec<Arc<str>> = records
        .iter()
        .filter(|record| record.keyspace == keyspace)
        .map(|record| Arc::clone(&record.operation.input.key))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let client = 1_000 + u32::try_from(store).expect("three stores");
    for key in keys {
        let bytes = key.split_once(':').map_or(&*key, |(_, key)| key).as_bytes();
        let seen = plan.seen(content.get(bytes));
        let input = KvInput { key, action: Action::Get };
        let operation = Operation::answered(client, call, input, now, KvOutput::Got { seen, revision });
        records.push(Recorded { operation, keyspace, store, serializable });
    }
}

fn compare_stores(stores: &[Address], label: &str, contents: &[Content], findings: &mut Findings) {
    for (index, content) in contents.iter().enumerate().skip(1) {
        let keys = contents[0].keys().chain(content.keys().filter(|key| !contents[0].contains_key(*key)));
        let lines = keys.filter(|key| contents[0].get(*key) != content.get(*key)).map(|key| {
            let show = |content: &Content| {
                content.get(key).map_or_else(
                    || "absent".to_owned(),
                    |pair| {
                        let value =
                            String::from_utf8_lossy(&pair.value[..pair.value.len().min(16)]).into_owned();
                        format!(
                            "{value} create {} mod {} version {}",
                            pair.create_revision, pair.mod_revision, pair.version
                        )
                    },
                )
            };
            format!("{}: {} / {}", String::from_utf8_lossy(key), show(&contents[0]), show(content))
        });
        let names = (&stores[0].name, &stores[index].name);
        findings.violate(&format!("keyspace {label}: {} and {} differ", names.0, names.1), lines);
    }
}

/// Every acknowledged write to a key that is written once must be there, on every store.
fn lost_writes(
    stores: &[Address],
    plan: &Plan,
    keyspace: u32,
    records: &[Recorded],
    contents: &[Content],
    findings: &mut Findings,
) {
    let mut once = 0;
    let mut lost: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.keyspace == keyspace) {
        let operation = &record.operation;
        let Some((_, key)) = operation.input.key.split_once(':').filter(|(_, key)| key.starts_with("w/"))
        else {
            continue;
        };
        let (Action::Put(value), Some(KvOutput::Written { revision })) =
            (operation.input.action, operation.output())
        else {
            continue;
        };
        once += 1;
        for (store, content) in contents.iter().enumerate() {
            let there = plan.seen(content.get(key.as_bytes()));
            if there != Some((value, *revision)) {
                let line = format!(
                    "{key} acknowledged by {} at revision {revision}, there: {there:?}",
                    stores[record.store].name
                );
                lost.entry(store).or_default().push(line);
            }
        }
    }
    for (store, lines) in lost {
        findings.violate(&format!("acknowledged writes are missing on {}", stores[store].name), lines);
    }
    findings.notes.push(format!(
        "keyspace {}: {once} acknowledged writes to keys written once, each looked for on every store",
        plan.keyspaces[keyspace as usize].as_deref().unwrap_or("default")
    ));
    let foreign = contents.iter().flat_map(|content| content.iter()).filter_map(|(key, pair)| {
        let key = String::from_utf8_lossy(key);
        let ours = key.starts_with("w/") || key.starts_with("r/");
        (ours && plan.number(&pair.value) == FOREIGN).then(|| key.into_owned())
    });
    findings.violate("keys with values that no client wrote", foreign);
}

async fn hashes(
    stores: &[Address],
    connections: &mut [Connection],
    keyspace: Option<&str>,
    at: i64,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let label = keyspace.unwrap_or("default");
    let mut hashes = Vec::new();
    for connection in connections {
        let response = connection.hash_kv(keyspace, at).await.map_err(failed)?;
        hashes.push((response.hash, response.compact_revision));
    }
    if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
        let shown = stores
            .iter()
            .zip(&hashes)
            .map(|(store, (hash, compacted))| format!("{}: {hash:08x} (compacted {compacted})", store.name));
        findings.violate(&format!("keyspace {label}: HashKV at revision {at} differs"), shown);
    } else {
        let (hash, _) = hashes.first().context("there are stores")?;
        findings
            .notes
            .push(format!("keyspace {label}: HashKV at revision {at} is {hash:08x} on every store"));
    }
    Ok(())
}

/// Holds the history against the model of a key and the rules of revisions.
pub(crate) fn check_history(records: &[Recorded], findings: &mut Findings) {
    let limits = Limits::default();
    let ordered = records.iter().filter(|record| !record.serializable);
    let history: Vec<KvOperation> = ordered.map(|record| record.operation.clone()).collect();
    let start = Instant::now();
    let report = check(&KvModel::CHECK_REVISIONS, &history, &limits);
    let took = start.elapsed();
    let text = report.to_string();
    match &report.verdict {
        Verdict::Linearizable => findings.notes.push(format!("history: {text}, checked in {took:.1?}")),
        Verdict::Undecided(_) => findings.violations.push(format!("history: {text}")),
        Verdict::NotLinearizable(_) => {
            let values = check(&KvModel::VALUES, &history, &limits);
            let alone = if values.verdict.is_linearizable() {
                "\n\nThe values alone are linearizable: it is the revisions that do not fit."
            } else {
                ""
            };
            findings.violations.push(format!("history: {text}{alone}"));
            findings.page = Some(html(&report));
        }
    }
    let mut by_keyspace: HashMap<u32, (Vec<KvOperation>, Vec<KvOperation>)> = HashMap::new();
    for record in records {
        let (history, old) = by_keyspace.entry(record.keyspace).or_default();
        if record.serializable { old } else { history }.push(record.operation.clone());
    }
    let violations =
        by_keyspace.values().flat_map(|(history, reads)| check_revisions(history, reads)).collect::<Vec<_>>();
    if violations.is_empty() {
        findings.notes.push(format!(
            "revisions: in the order of real time, unique, complete ({} keyspaces)",
            by_keyspace.len()
        ));
    }
    findings.violate("revisions", violations.iter().map(ToString::to_string));
}
