//! Stores in containers on a network of their own, cut off, paused, killed, replaced, added and removed under a checked load.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::args::ContainerArguments;
use super::client::Connection;
use super::engine::Engine;
use super::failover::leader_of;
use super::run::longest_gap;
use super::verify::{Address, check_history, verify};
use super::workload::{Load, Plan};

/// What a cluster may take to come to a state that is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

struct Scene {
    engine: Engine,
    pontoon: PathBuf,
    origin: Instant,
    /// How long a store stays away.
    away: Duration,
    /// What began when.
    events: Vec<(Instant, String)>,
}

/// Runs the whole play; whether everything held.
pub(crate) async fn run(arguments: &ContainerArguments) -> anyhow::Result<bool> {
    let pontoon = match &arguments.pontoon {
        Some(pontoon) => pontoon.clone(),
        None => std::env::current_exe()?.with_file_name("pontoon"),
    };
    let origin = Instant::now();
    let away = Duration::from_secs(arguments.away_seconds);
    let engine = Engine::new(&arguments.image).await?;
    let mut scene = Scene { engine, pontoon, origin, away, events: Vec::new() };
    let outcome = scene.play(arguments).await;
    if !matches!(outcome, Ok(true)) {
        for number in 1..=5 {
            println!("-- the end of n{number}'s log:\n{}", scene.engine.log(number).await.trim_end());
        }
    }
    println!("\n{}", if matches!(outcome, Ok(true)) { "PASSED" } else { "FAILED" });
    outcome
}

impl Scene {
    async fn play(&mut self, arguments: &ContainerArguments) -> anyhow::Result<bool> {
        for number in 1..=3 {
            self.start_first(number).await?;
        }
        self.all_serve(&[1, 2, 3]).await?;
        println!("three stores of {} serve on {}", arguments.image, self.client(1));
        let plan = Arc::new(Plan {
            addresses: (1..=3).map(|number| self.client(number)).collect(),
            keyspaces: vec![None],
            clients: arguments.clients,
            keys: 40,
            value_size: 64,
            timeout: Duration::from_secs(3),
            origin: self.origin,
            seed: arguments.seed,
        });
        let load = Load::start(&plan, 0);
        self.begin("all is well");
        tokio::time::sleep(self.away).await;
        self.faults().await?;
        self.replace().await?;
        self.grow_and_shrink().await?;
        self.begin("all is well again");
        tokio::time::sleep(self.away).await;
        let end = Instant::now();

        let results = load.finish().await?;
        self.all_serve(&[1, 2, 3]).await?;
        let health = self.healthy(1).await?;
        println!(
            "{} operations acknowledged in {:.0} s, {} with unknown outcome; the image's health check says {health}",
            results.acknowledged,
            self.origin.elapsed().as_secs_f64(),
            results.unknown
        );
        let mut times: Vec<u64> = results
            .records
            .iter()
            .filter(|record| record.operation.output().is_some_and(|output| output.wrote()))
            .filter_map(|record| Some(record.operation.completion.as_ref()?.at))
            .collect();
        times.sort_unstable();
        self.report(&times, end);
        let mut records = results.records;
        let stores: Vec<Address> =
            (1..=3).map(|n| Address { name: format!("n{n}"), client: self.client(n) }).collect();
        let mut findings = verify(&stores, &plan, &mut records).await?;
        check_history(&records, &mut findings);
        findings.violations.extend(results.nonsense);
        for note in &findings.notes {
            println!("  {note}");
        }
        for violation in &findings.violations {
            println!("  VIOLATION: {violation}");
        }
        Ok(findings.violations.is_empty())
    }

    /// The leader, then a follower: off the network, paused, killed, restarted.
    async fn faults(&mut self) -> anyhow::Result<()> {
        for verbs in [("network", ""), ("pause", "unpause"), ("kill", "start"), ("restart", "")] {
            for leads in [true, false] {
                let number = self.pick(leads).await?;
                let role = if leads { "the leader" } else { "a follower" };
                match verbs {
                    ("network", _) => {
                        self.begin(&format!("{role} (n{number}) is cut off the network"));
                        self.engine.cut_off(number).await?;
                        tokio::time::sleep(self.away).await;
                        self.engine.connect(number).await?;
                    }
                    ("restart", _) => {
                        self.begin(&format!("{role} (n{number}) is restarted in order"));
                        self.engine.tell("restart", number).await?;
                    }
                    (verb, back) => {
                        self.begin(&format!("{role} (n{number}): {verb}, later {back}"));
                        self.engine.tell(verb, number).await?;
                        tokio::time::sleep(self.away).await;
                        self.engine.tell(back, number).await?;
                    }
                }
                self.all_serve(&[1, 2, 3]).await?;
            }
        }
        Ok(())
    }

    /// A follower's volume is gone, and another one takes its place.
    async fn replace(&mut self) -> anyhow::Result<()> {
        let number = self.pick(false).await?;
        self.begin(&format!("n{number} loses its volume; it is kicked and joins anew"));
        self.engine.remove(number).await?;
        // Its old flags on an empty volume: another identity, which nobody may take for the old one.
        self.start_first(number).await?;
        self.until("the store with the empty volume is refused", async |scene: &Self| {
            Ok(scene.engine.exit_code(number).await? == Some(2))
        })
        .await?;
        self.engine.remove(number).await?;
        let others: Vec<usize> = (1..=3).filter(|other| *other != number).collect();
        self.join(number, &others).await?;
        self.admin(&others, &["kick", &format!("n{number}"), "--detach"]).await?;
        self.members(&others, &[1, 2, 3]).await?;
        self.voters(others[0], 3).await?;
        self.all_serve(&[1, 2, 3]).await
    }

    async fn grow_and_shrink(&mut self) -> anyhow::Result<()> {
        self.begin("n4 and n5 join");
        for number in [4, 5] {
            self.join(number, &[1, 2, 3]).await?;
        }
        self.members(&[1, 2, 3], &[1, 2, 3, 4, 5]).await?;
        self.all_serve(&[1, 2, 3, 4, 5]).await?;
        self.begin("n4 is kicked");
        self.admin(&[1, 2, 3], &["kick", "n4", "--wait", "60s"]).await?;
        self.begin("n5 leaves");
        // Detached: what stores tell clients are names on their own network.
        self.admin(&[5], &["leave", "--detach"]).await?;
        self.members(&[1, 2, 3], &[1, 2, 3]).await?;
        self.voters(1, 3).await
    }

    fn begin(&mut self, what: &str) {
        println!("{:7.1} s  {what}", self.origin.elapsed().as_secs_f64());
        self.events.push((Instant::now(), what.to_owned()));
    }

    /// The longest time without an acknowledged write while each thing went on.
    fn report(&self, times: &[u64], end: Instant) {
        println!("longest time without an acknowledged write:");
        let since = |at: Instant| u64::try_from((at - self.origin).as_nanos()).unwrap_or(u64::MAX);
        let ends = self.events.iter().skip(1).map(|(at, _)| *at).chain([end]);
        for ((from, what), to) in self.events.iter().zip(ends) {
            let (from, to) = (since(*from), since(to));
            let within = times.iter().copied().filter(|at| (from..to).contains(at));
            let (gap, _) = longest_gap([from].into_iter().chain(within).chain([to]).collect());
            println!("  {:6.0} ms  {what}", gap / 1e6);
        }
    }

    fn client(&self, number: usize) -> String {
        format!("{}:2379", self.engine.ip(number))
    }

    /// A store of the first three, with the flags of a new cluster.
    async fn start_first(&mut self, number: usize) -> anyhow::Result<()> {
        let first = "--initial-cluster=n1=n1:2380,n2=n2:2380,n3=n3:2380".to_owned();
        self.serve(number, vec![first, "--cluster-token=containers".to_owned()]).await
    }

    async fn join(&mut self, number: usize, others: &[usize]) -> anyhow::Result<()> {
        let peers: Vec<_> = others.iter().map(|other| format!("n{other}:2380")).collect();
        self.serve(number, vec![format!("--join={}", peers.join(","))]).await
    }

    async fn serve(&mut self, number: usize, more: Vec<String>) -> anyhow::Result<()> {
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--name=n{number}"),
            format!("--advertise-client=n{number}:2379"),
            format!("--advertise-peer=n{number}:2380"),
        ];
        arguments.extend(more);
        self.engine.run(number, &arguments).await
    }

    /// The store that leads the default keyspace, or one that does not.
    async fn pick(&self, leads: bool) -> anyhow::Result<usize> {
        let addresses: Vec<_> = (1..=3).map(|number| self.client(number)).collect();
        let leader = leader_of(&addresses).await?;
        Ok(if leads { leader + 1 } else { (leader + 1) % 3 + 1 })
    }

    async fn admin(&self, asked: &[usize], arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let endpoints: Vec<_> = asked.iter().map(|number| self.client(*number)).collect();
        let output = Command::new(&self.pontoon)
            .args(["--endpoints", &endpoints.join(","), "--output", "json"])
            .args(arguments)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("calling {}", self.pontoon.display()))?;
        if !output.status.success() {
            bail!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| arguments.join(" "))
    }

    async fn until(
        &self,
        what: &str,
        holds: impl AsyncFn(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let held = holds(self).await;
            if matches!(held, Ok(true)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let last =
                    held.err().map_or_else(String::new, |error| format!("; the last answer: {error:#}"));
                bail!("waited {PATIENCE:?} until {what}{last}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until each of these stores answers a linearizable read.
    async fn all_serve(&self, numbers: &[usize]) -> anyhow::Result<()> {
        for number in numbers {
            self.until(&format!("n{number} serves"), async |scene: &Self| {
                let opened = Connection::open(&scene.client(*number), Duration::from_secs(2)).await;
                let Ok(mut connection) = opened else { return Ok(false) };
                Ok(connection.get(None, b"ready?".to_vec(), false).await.is_ok())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until exactly these stores are members.
    async fn members(&self, asked: &[usize], wanted: &[usize]) -> anyhow::Result<()> {
        let wanted: BTreeMap<String, ()> = wanted.iter().map(|number| (format!("n{number}"), ())).collect();
        self.until(&format!("the members are {:?}", wanted.keys()), async |scene: &Self| {
            let list = scene.admin(asked, &["store", "list"]).await?;
            let stores = list["stores"].as_array().context("a list of stores")?;
            let members = stores.iter().filter(|store| store["state"] == "member");
            let names = members.filter_map(|store| Some((store["name"].as_str()?.to_owned(), ())));
            Ok(names.collect::<BTreeMap<_, _>>() == wanted)
        })
        .await
    }

    /// Waits until the default keyspace has so many voters, and nobody else.
    async fn voters(&self, asked: usize, count: usize) -> anyhow::Result<()> {
        self.until(&format!("the default keyspace has {count} voters"), async |scene: &Self| {
            let status = scene.admin(&[asked], &["status", "--group", "default"]).await?;
            let servers = status["servers"].as_array().context("a list of servers")?;
            Ok(servers.len() == count && servers.iter().all(|server| server["role"] == "voter"))
        })
        .await
    }

    /// Waits for the first verdict of the image's health check.
    async fn healthy(&self, number: usize) -> anyhow::Result<String> {
        self.until("the image's health check is made", async |scene: &Self| {
            Ok(scene.engine.health(number).await? != "starting")
        })
        .await?;
        self.engine.health(number).await
    }
}
