//! End-to-end: three real processes, real clients, real signals.

mod auth;
mod autocompact;
mod cluster;
mod crash;
mod deploy;
mod etcdctl;
mod failures;
mod fence;
mod flow;
mod full_disk;
mod keyspaces;
mod kubernetes;
mod leases;
mod locks;
mod logs;
mod members;
mod offline;
mod pages;
mod quota;
mod recover;
mod retries;
mod saved;
mod scenarios;
mod timers;
mod tls;
mod watchers;
