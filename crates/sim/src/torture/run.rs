//! Load, faults and checks in order, and the summary.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};

use super::args::{Fault, RunArguments};
use super::cluster::{Cluster, STORES};
use super::faults::{FaultLog, inject};
use super::random::SplitMix64;
use super::record::write_file;
use super::verify::{Findings, check_history, verify};
use super::workload::{Load, Plan, Recorded, Results};

/// The file in the cluster's directory that holds the history.
const HISTORY: &str = "history.jsonl";

/// Runs the torture; whether everything held.
pub(crate) async fn run(arguments: &RunArguments) -> anyhow::Result<bool> {
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
    };
    if arguments.keyspaces != 1 && arguments.cluster.etcd.is_some() {
        bail!("etcd has one keyspace; leave out --keyspaces");
    }
    let mut cluster = Cluster::start(&arguments.cluster).await?;
    println!("{} stores of {} serve in {}; seed {seed}", STORES, cluster.software(), cluster.dir().display());
    let keyspaces = create_keyspaces(&cluster, arguments.keyspaces).await?;
    let plan = Arc::new(Plan {
        addresses: cluster.clients(),
        keyspaces,
        clients: arguments.clients,
        keys: arguments.keys.max(1),
        value_size: arguments.value_size,
        timeout: Duration::from_millis(arguments.timeout_ms),
        origin: Instant::now(),
        seed,
    });
    let mut records = Vec::new();
    let outcome = torment(&mut cluster, &plan, arguments, &mut records).await;
    if !matches!(outcome, Ok(true)) || arguments.cluster.keep {
        cluster.keep();
        let path = cluster.dir().join(HISTORY);
        write_file(&path, &records)?;
        println!("\nhistory: {}; check it again with `pontoon-torture check`", path.display());
        println!("data directories and logs: {}", cluster.dir().display());
    }
    let verdict = match &outcome {
        Ok(true) => "PASSED",
        Ok(false) => "FAILED",
        Err(_) => "BROKEN OFF",
    };
    println!("\n{verdict}; the same schedule again: --seed {seed}");
    outcome
}

/// Both phases; whether everything held.
async fn torment(
    cluster: &mut Cluster,
    plan: &Arc<Plan>,
    arguments: &RunArguments,
    records: &mut Vec<Recorded>,
) -> anyhow::Result<bool> {
    let mut random = SplitMix64::new(plan.seed, u64::MAX);
    let load = Load::start(plan, 0);
    let every = Duration::from_millis(arguments.fault_every_ms.max(100));
    let length = Duration::from_secs(arguments.seconds);
    let faults = inject(cluster, &arguments.faults, every, length, &mut random, plan.origin).await?;
    if !phase(cluster, plan, load, faults, records, "one store at a time").await? {
        return Ok(false);
    }
    let length = Duration::from_secs(arguments.all_killed_seconds);
    if length.is_zero() || arguments.faults.contains(&Fault::None) {
        return Ok(true);
    }
    let load = Load::start(plan, 1);
    let mut faults = FaultLog::default();
    tokio::time::sleep(length / 2).await;
    faults.note(plan.origin, "kill -9 of all stores");
    faults.kills = 3;
    cluster.kill_all(&[0, 1, 2]).await?;
    tokio::time::sleep(random.millis(100, 1_000)).await;
    let start = Instant::now();
    cluster.all_up().await?;
    println!("\nall three stores killed at once; they serve again {:.2?} after their start", start.elapsed());
    tokio::time::sleep(length / 2).await;
    phase(cluster, plan, load, faults, records, "all stores at once").await
}

/// Ends the load, brings all stores up, checks everything, and prints; whether everything held.
pub(super) async fn phase(
    cluster: &mut Cluster,
    plan: &Plan,
    load: Load,
    mut faults: FaultLog,
    records: &mut Vec<Recorded>,
    title: &str,
) -> anyhow::Result<bool> {
    let results = load.finish().await?;
    for (dead, status) in cluster.deaths() {
        faults.deaths.push(format!("{} ended by itself: {status}", cluster.stores[dead].name));
    }
    cluster.all_up().await?;
    println!("\n== {title}");
    summary(&results, &faults, plan);
    records.extend(results.records);
    let mut findings = verify(&cluster.addresses(), plan, records).await?;
    // On disk first: the checks are the slowest just when something is wrong.
    write_file(&cluster.dir().join(HISTORY), records)?;
    check_history(records, &mut findings);
    findings.violations.extend(faults.deaths.iter().cloned());
    findings.violations.extend(results.nonsense);
    print_findings(cluster, &findings, &faults)?;
    Ok(findings.violations.is_empty())
}

fn summary(results: &Results, faults: &FaultLog, plan: &Plan) {
    let times: Vec<u64> = results
        .records
        .iter()
        .filter(|record| record.operation.output().is_some_and(|output| output.wrote()))
        .filter_map(|record| Some(record.operation.completion.as_ref()?.at))
        .collect();
    let from = results.records.iter().map(|record| record.operation.call).min().unwrap_or(0);
    let seconds = (plan.now() - from) as f64 / 1e9;
    let rate = results.acknowledged as f64 / seconds.max(0.001);
    println!("  {} operations acknowledged in {seconds:.1} s ({rate:.0}/s)", results.acknowledged);
    println!(
        "  {} writes with unknown outcome, {} calls refused, {} reads lost, {} connections refused",
        results.unknown, results.refused, results.lost_reads, results.unreachable
    );
    println!("  {} kills, {} stops", faults.kills, faults.stops);
    let (gap, at) = longest_gap(times);
    println!("  longest time without an acknowledged write: {:.0} ms (at {:.1} s)", gap / 1e6, at / 1e9);
    if plan.keyspaces.len() > 1 {
        let worst = (0..plan.keyspaces.len())
            .map(|keyspace| {
                let times = results.records.iter().filter(|record| record.keyspace as usize == keyspace);
                longest_gap(times.filter_map(|r| Some(r.operation.completion.as_ref()?.at)).collect()).0
            })
            .fold(0.0, f64::max);
        println!("  and without an answer in one keyspace: {:.0} ms", worst / 1e6);
    }
    let mut errors: Vec<_> = results.errors.iter().collect();
    errors.sort_by_key(|&(_, count)| std::cmp::Reverse(*count));
    for (text, count) in errors.into_iter().take(6) {
        println!("    {count:>6} × {text}");
    }
}

/// The longest time between two neighbours, and when it began; nanoseconds.
pub(super) fn longest_gap(mut times: Vec<u64>) -> (f64, f64) {
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
    gaps.max().map_or((0.0, 0.0), |(gap, at)| (gap as f64, at as f64))
}

fn print_findings(cluster: &Cluster, findings: &Findings, faults: &FaultLog) -> anyhow::Result<()> {
    for note in findings.notes.iter().take(3) {
        println!("  {note}");
    }
    if findings.notes.len() > 6 {
        println!("  …");
    }
    for note in findings.notes.iter().skip(3.max(findings.notes.len().saturating_sub(3))) {
        println!("  {note}");
    }
    if findings.violations.is_empty() {
        return Ok(());
    }
    println!("  faults:");
    for line in &faults.lines {
        println!("    {line}");
    }
    for violation in &findings.violations {
        println!("  VIOLATION: {violation}");
    }
    if let Some(page) = &findings.page {
        let path = cluster.dir().join("violation.html");
        std::fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
        println!("  window: {}", path.display());
    }
    Ok(())
}

/// The names of the keyspaces to spread over: the default one, and new ones made with the command line tool.
async fn create_keyspaces(cluster: &Cluster, count: u32) -> anyhow::Result<Vec<Option<String>>> {
    let mut names = vec![None];
    for number in 1..count.max(1) {
        let name = format!("torture-{number}");
        let output = tokio::process::Command::new(cluster.program())
            .args(["--endpoints", &cluster.clients().join(","), "keyspace", "create", &name])
            .kill_on_drop(true)
            .output()
            .await?;
        if !output.status.success() {
            bail!("creating keyspace {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        names.push(Some(name));
    }
    Ok(names)
}
