//! T18: the disk of a store that leads hangs, first for half a second, then for long. A file system of its own is frozen, so the
//! store's writes and syncs block in the kernel, as they do on a device that does not answer. That takes root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::super::cluster::{Cluster, STORES};
use super::field::{Field, elections};
use super::load::{Figures, Load, Plan};
use super::{LoadArguments, Verdict};

/// The store whose disk hangs.
const HUNG: usize = 0;
const HICCUP: Duration = Duration::from_millis(500);
const DISK_BYTES: u64 = 4 << 30;

/// A file system in a file, mounted; thawed and unmounted when it is dropped.
struct Disk {
    mount: PathBuf,
}

fn command(program: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {arguments:?}: {}; this test needs root, and a kernel with loop devices",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

impl Disk {
    /// Puts the directory of a store that was never started onto a file system of its own.
    fn under(cluster: &Cluster, store: usize) -> anyhow::Result<Self> {
        let (image, mount) = (cluster.dir().join("disk.image"), cluster.dir().join("disk"));
        std::fs::File::create_new(&image)?.set_len(DISK_BYTES)?;
        std::fs::create_dir(&mount)?;
        command("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image])?;
        command("mount", &[Path::new("-o"), Path::new("loop"), &image, &mount])?;
        let disk = Self { mount };
        let data = disk.mount.join("data");
        std::fs::create_dir(&data)?;
        std::os::unix::fs::symlink(data, cluster.dir().join(&cluster.stores[store].name))?;
        Ok(disk)
    }

    fn freeze(&self) -> anyhow::Result<()> {
        command("fsfreeze", &[Path::new("--freeze"), &self.mount])
    }

    fn thaw(&self) -> anyhow::Result<()> {
        command("fsfreeze", &[Path::new("--unfreeze"), &self.mount])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may not be frozen; and what still has files there lets go of them when it ends.
        let _ = self.thaw();
        let _ = command("umount", &[Path::new("--lazy"), &self.mount]);
    }
}

pub(crate) async fn run(arguments: &LoadArguments) -> anyhow::Result<bool> {
    let cluster = Cluster::prepare(&arguments.cluster)?;
    let disk = Disk::under(&cluster, HUNG)?;
    let field = Field::start_prepared(cluster, &["--flow-control", "all"], arguments.groups).await?;
    let leaders = field.settled().await?;
    let keyspaces = field.led_by(&leaders, &(0..STORES).collect::<Vec<_>>())?;
    let led = field.led_by(&leaders, &[HUNG])?.len();
    let watcher = STORES - 1;
    let addresses = (HUNG + 1..STORES).map(|store| field.cluster.stores[store].client.clone()).collect();
    let mut plan = Plan { addresses, keyspaces, ..arguments.plan() };
    plan.rate = Some(arguments.offered(&plan).await?);
    let mut load = Load::start(&plan).await?;
    let length = Duration::from_secs(arguments.seconds);
    let _ = load.watch(Duration::from_secs(arguments.warm_up)).await;
    let before = load.watch(length).await;
    println!("before: {before}; {led} groups are led by the store whose disk will hang");
    let mut verdict = Verdict::default();

    let at_first = field.leaders_at(watcher).await?;
    disk.freeze()?;
    tokio::time::sleep(HICCUP).await;
    disk.thaw()?;
    let hiccup = load.watch(Duration::from_secs(5)).await;
    println!("half a second, and the five after it: {hiccup}");
    let now = field.leaders_at(watcher).await?;
    verdict.at_most("elections after half a second", elections(&at_first, &now, &plan.keyspaces) as f64, 0.0);

    let start = Instant::now();
    disk.freeze()?;
    let (mut parts, mut led_until) = (Vec::new(), None);
    let mut came_back = 0usize;
    while start.elapsed() < Duration::from_secs(10) + length {
        parts.extend(load.watch_seconds(Duration::from_millis(500)).await);
        let leads = field.led_by(&field.leaders_at(watcher).await?, &[HUNG]).map_or(0, |led| led.len());
        match led_until {
            None if leads == 0 => led_until = Some(start.elapsed()),
            Some(_) => came_back = came_back.max(leads),
            None => {}
        }
    }
    let later = Figures::of(parts.split_off(10.min(parts.len())));
    println!("the first ten seconds: {}", Figures::of(parts));
    println!("after them: {later}");
    disk.thaw()?;
    let took = led_until.map_or(f64::INFINITY, |took| took.as_secs_f64());
    verdict.at_most("seconds until it leads nothing", took, 5.0);
    verdict.at_most("groups that it led again while its disk hung", came_back as f64, 0.0);
    verdict.at_least("throughput after ten seconds / before", later.per_second() / before.per_second(), 0.95);
    let until = Instant::now() + length.max(Duration::from_secs(30));
    let mut lag = u64::MAX;
    while Instant::now() < until && lag > 200 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lag = field.lag(HUNG).await.unwrap_or(u64::MAX);
    }
    verdict.at_most("entries that it lacks in the end", lag as f64, 200.0);
    load.end().await;
    drop(field);
    drop(disk);
    Ok(verdict.holds())
}
