//! End-to-end: three real processes, real clients, real signals.

mod cluster;
mod crash;
mod etcdctl;
mod fence;
mod full_disk;
mod keyspaces;
mod leases;
mod offline;
mod retries;
mod timers;
