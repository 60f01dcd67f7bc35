//! `pontoon create-cluster` and `join-cluster`: data directories made ready without a network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Global;
use super::output::Hex;
use crate::compose;
use crate::config::{Bootstrap, HostPort, InitialStore, store_name, units};
use crate::error::UsageError;
use crate::join::JoinNote;

/// Flags of `create-cluster`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The data directory to make; it must not hold a store
    dir: PathBuf,

    /// The store's name
    #[arg(long, value_name = "NAME", value_parser = store_name)]
    name: String,

    /// Address that peers are told
    #[arg(long, value_name = "HOST:PORT")]
    advertise_peer: HostPort,

    /// Time without a leader after which one is elected, 100ms to 10m
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::election_timeout)]
    election_timeout: Duration,
}

/// Flags of `join-cluster`.
#[derive(Args, Debug)]
pub(crate) struct JoinArgs {
    /// The data directory to make; it must not hold a store
    dir: PathBuf,

    /// The store's name, unique in its cluster
    #[arg(long, value_name = "NAME", value_parser = store_name)]
    name: String,

    /// Address that peers are told
    #[arg(long, value_name = "HOST:PORT")]
    advertise_peer: HostPort,

    /// Peer address of a store of the cluster; repeatable, one is enough
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    remote: Vec<HostPort>,

    // `--remote A B`, as ovsdb-tool takes them, with the directory before or behind the flags.
    #[arg(value_name = "HOST:PORT", hide = true)]
    more_remotes: Vec<HostPort>,

    /// The cluster's id, 16 hex digits: join this cluster and no other
    #[arg(long, value_name = "HEX", value_parser = cluster_id)]
    cid: Option<u64>,
}

fn cluster_id(text: &str) -> Result<u64, String> {
    match u64::from_str_radix(text, 16) {
        Ok(id) if id != 0 && text.len() <= 16 => Ok(id),
        _ => Err("a cluster's id has 1 to 16 hex digits and is not 0; `pontoon cid` prints it".to_owned()),
    }
}

#[derive(Serialize)]
struct Prepared {
    directory: String,
    cluster: Option<Hex>,
    store: Hex,
    name: String,
    address: String,
}

/// Makes the directory of a new cluster of one store.
pub(crate) fn create(args: CreateArgs, global: &Global) -> anyhow::Result<ExitCode> {
    dialled(&args.advertise_peer)?;
    let dir = &args.dir;
    unused(dir)?;
    let log = compose::open_directory(dir)?;
    let own = InitialStore { store: compose::random_id()?, name: args.name, address: args.advertise_peer };
    let bootstrap = Bootstrap { cluster: compose::random_id()?, own: own.clone(), stores: vec![own] };
    compose::found(dir, &log, &bootstrap, "", args.election_timeout)?;
    let Bootstrap { cluster, own, .. } = bootstrap;
    say(
        global,
        dir,
        Some(cluster),
        own.store,
        own.name,
        own.address.to_string(),
        "a new cluster; `pontoon serve` starts it",
    )
}

/// Makes the directory of a store that joins when it is started.
pub(crate) fn join(mut args: JoinArgs, global: &Global) -> anyhow::Result<ExitCode> {
    args.remote.append(&mut args.more_remotes);
    dialled(&args.advertise_peer)?;
    if args.remote.contains(&args.advertise_peer) {
        return Err(UsageError::new(format!(
            "--remote {} is --advertise-peer; a store joins by another one; name one of those",
            args.advertise_peer
        ))
        .into());
    }
    let dir = &args.dir;
    unused(dir)?;
    // Makes and checks what a start would; the log stays empty.
    drop(compose::open_directory(dir)?);
    let remotes = args.remote.iter().map(ToString::to_string).collect();
    let address = args.advertise_peer.to_string();
    let note = JoinNote::new(compose::random_id()?, args.name.clone(), address.clone(), args.cid, remotes);
    note.save(dir)?;
    say(global, dir, args.cid, note.store, args.name, address, "it joins when `pontoon serve` starts it")
}

fn say(
    global: &Global,
    dir: &Path,
    cluster: Option<u64>,
    store: u64,
    name: String,
    address: String,
    next: &str,
) -> anyhow::Result<ExitCode> {
    let directory = dir.display().to_string();
    let prepared = Prepared { directory, cluster: cluster.map(Hex), store: Hex(store), name, address };
    global.output.print(&prepared, |p| {
        let of = p.cluster.map_or_else(|| "of a cluster".to_owned(), |c| format!("of cluster {c}"));
        format!("{}: store {} ({}) {of}: {next}", p.directory, p.name, p.store)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a directory with anything in it.
fn unused(dir: &Path) -> Result<(), UsageError> {
    let refuse = |why: String| {
        Err(UsageError::new(format!(
            "{} {why}; a store needs a directory of its own; give a new one",
            dir.display()
        )))
    };
    match std::fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            Some(_) => refuse("is not empty".to_owned()),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => refuse(format!("cannot be read: {error}")),
    }
}

fn dialled(address: &HostPort) -> Result<(), UsageError> {
    if address.is_unspecified() {
        return Err(UsageError::new(format!(
            "--advertise-peer is {address}; peers cannot dial an unspecified address; give the one that they reach this \
             store at"
        )));
    }
    Ok(())
}
