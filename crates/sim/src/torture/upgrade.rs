//! Two builds in one cluster: three stores of the one before are replaced by the new one, store by store, while a checked
//! workload runs; the first of them goes back and forth once. At the end nothing that was acknowledged is lost, the stores
//! are equal, and the history is linearizable.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::args::{ClusterArguments, UpgradeArguments};
use super::cluster::{Cluster, STORES};
use super::faults::FaultLog;
use super::run::phase;
use super::workload::{Load, Plan};

pub(crate) async fn run(arguments: &UpgradeArguments) -> anyhow::Result<bool> {
    let new = match &arguments.cluster.pontoon {
        Some(new) => new.clone(),
        None => std::env::current_exe()?.with_file_name("pontoon"),
    };
    for program in [&arguments.from, &new] {
        println!("{}: {}", program.display(), version(program).await?);
    }
    let old = ClusterArguments { pontoon: Some(arguments.from.clone()), ..arguments.cluster.clone() };
    let mut cluster = Cluster::start(&old).await?;
    let origin = Instant::now();
    let plan = Arc::new(Plan {
        addresses: cluster.clients(),
        keyspaces: vec![None],
        clients: arguments.clients,
        keys: 40,
        value_size: 64,
        timeout: Duration::from_secs(3),
        origin,
        seed: arguments.seed,
    });
    let load = Load::start(&plan, 0);
    let mut log = FaultLog::default();
    let steps: &[(usize, bool)] = if arguments.no_way_back {
        &[(0, true), (1, true), (2, true)]
    } else {
        &[(0, true), (0, false), (0, true), (1, true), (2, true)]
    };
    let pause = Duration::from_secs(arguments.seconds);
    for (index, is_new) in steps {
        tokio::time::sleep(pause).await;
        let (program, which) = if *is_new { (&new, "new") } else { (&arguments.from, "old") };
        log.note(origin, &format!("{} becomes the {which} build", cluster.stores[*index].name));
        println!("{:6.1} s  n{} becomes the {which} build", origin.elapsed().as_secs_f64(), index + 1);
        cluster.set_program(program);
        cluster.terminate(*index).await?;
        cluster.spawn(*index)?;
        cluster.wait_store(*index).await?;
    }
    tokio::time::sleep(pause).await;
    let mut records = Vec::new();
    let held = phase(&mut cluster, &plan, load, log, &mut records, "a rolling upgrade").await?;
    println!("\n{} stores upgraded: {}", STORES, if held { "PASSED" } else { "FAILED" });
    if !held {
        cluster.keep();
    }
    Ok(held)
}

async fn version(program: &Path) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} does not say its version", program.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
