//! End-to-end: three real processes, real clients, real signals.

mod cluster;
mod crash;
mod etcdctl;
mod fence;
mod keyspaces;
mod leases;
mod retries;
mod timers;
