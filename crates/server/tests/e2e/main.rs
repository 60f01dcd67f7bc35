//! End-to-end: three real processes, real clients, real signals.

mod auth;
mod autocompact;
mod cluster;
mod crash;
mod deploy;
mod etcdctl;
mod fence;
mod flow;
mod full_disk;
mod keyspaces;
mod kubernetes;
mod leases;
mod locks;
mod members;
mod offline;
mod quota;
mod retries;
mod saved;
mod timers;
mod tls;
mod watchers;
