//! Who the stores are: names, ports, directories and command lines.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::{DevArgs, Global};
use crate::config::HostPort;
use crate::error::UsageError;

/// etcd's client port, so that its tools find the first store without being told.
pub(super) const DEFAULT_BASE_PORT: u16 = 2379;

/// From one store's ports to the next one's.
const PORT_STEP: u16 = 10_000;

/// The metrics port of a sixth store is the highest there is.
const BASE_PORT_MAX: u16 = u16::MAX - 6 * PORT_STEP - 2;

/// Parses the first store's client port: a second or third store must find its ports too, and none may be 0.
pub(super) fn base_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if (1..=BASE_PORT_MAX).contains(&port) => Ok(port),
        _ => Err(format!("a base port is 1 to {BASE_PORT_MAX}, so that six stores fit")),
    }
}

/// One store to be.
#[derive(Clone, Debug)]
pub(super) struct StorePlan {
    pub(super) name: String,
    pub(super) client: HostPort,
    pub(super) peer: HostPort,
    pub(super) metrics: HostPort,
    pub(super) data_dir: PathBuf,
    /// Its standard error.
    pub(super) log: PathBuf,
    /// The arguments of its process.
    pub(super) args: Vec<String>,
}

/// The cluster to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// This binary.
    pub(super) program: PathBuf,
    /// Holds everything.
    pub(super) home: PathBuf,
    pub(super) stores: Vec<StorePlan>,
}

impl Plan {
    /// Plans, and checks that the directory was not made by another number of stores.
    pub(super) fn new(args: &DevArgs, home: &Path, global: &Global) -> anyhow::Result<Self> {
        let name = |i: u8| format!("n{}", i + 1);
        let there: Vec<_> = (0..u8::MAX).map(name).filter(|name| home.join(name).is_dir()).collect();
        let is_other_cluster = !there.is_empty() && there.len() != usize::from(args.nodes);
        if is_other_cluster {
            bail!(UsageError::new(format!(
                "--data-dir {} holds a cluster of {} stores, and --nodes is {}; a cluster keeps its stores; \
                 give --nodes {} or another directory",
                home.display(),
                there.len(),
                args.nodes,
                there.len()
            )));
        }
        // 2379, 22379, 32379, ...: the habit of etcd's own local clusters leaves 12379 out.
        let step = |i: u8| if i == 0 { 0 } else { u16::from(i) + 1 };
        let port = |i: u8, offset: u16| HostPort::loopback(args.base_port + offset + step(i) * PORT_STEP);
        let members: Vec<_> = (0..args.nodes).map(|i| format!("{}={}", name(i), port(i, 1))).collect();
        let initial_cluster = members.join(",");
        let stores = (0..args.nodes).map(|i| {
            let (client, peer, metrics) = (port(i, 0), port(i, 1), port(i, 2));
            let data_dir = home.join(name(i));
            let mut arguments: Vec<String> = vec!["serve".into(), "--exit-with-parent".into()];
            let mut flag = |flag: &str, value: String| arguments.extend([format!("--{flag}"), value]);
            flag("name", name(i));
            flag("data-dir", data_dir.to_str().context("the data directory's path is not UTF-8")?.to_owned());
            flag("listen-client", client.to_string());
            flag("listen-peer", peer.to_string());
            flag("metrics-listen", metrics.to_string());
            flag("initial-cluster", initial_cluster.clone());
            flag(
                "election-timeout",
                humantime::format_duration(args.election_timeout).to_string().replace(' ', ""),
            );
            if let Some(format) = global.log_format.to_possible_value() {
                flag("log-format", format.get_name().to_owned());
            }
            if let Some(filter) = &global.log {
                flag("log", filter.clone());
            }
            arguments.extend_from_slice(&args.flags);
            let log = home.join(format!("{}.log", name(i)));
            Ok(StorePlan { name: name(i), client, peer, metrics, data_dir, log, args: arguments })
        });
        Ok(Self {
            program: std::env::current_exe().context("finding this binary")?,
            home: home.to_owned(),
            stores: stores.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Checks that every port is free, before anything is started.
    pub(super) fn check_ports(&self) -> anyhow::Result<()> {
        for store in &self.stores {
            for (what, address) in
                [("client", &store.client), ("peer", &store.peer), ("metrics", &store.metrics)]
            {
                match TcpListener::bind(address.to_string()) {
                    Ok(_free) => {}
                    Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
                        "port {} is in use (the {what} port of {}); every store needs its ports; \
                         stop what listens there or give another --base-port",
                        address.port(),
                        store.name
                    ),
                    Err(error) => {
                        bail!("cannot listen at {address} (the {what} port of {}): {error}", store.name)
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the logs are, in short.
    pub(super) fn log_pattern(&self) -> String {
        self.home.join("n*.log").display().to_string()
    }

    /// All client addresses, with commas between them.
    pub(super) fn endpoints(&self) -> String {
        self.stores.iter().map(|store| store.client.to_string()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_ports_leave_room_for_six_stores() {
        assert_eq!(base_port("2379"), Ok(2379));
        assert_eq!(base_port("5533"), Ok(5533));
        assert!(base_port("5534").is_err());
        assert!(base_port("0").is_err());
    }
}
