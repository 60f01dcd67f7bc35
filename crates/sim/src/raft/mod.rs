//! Many groups on a few stores in one thread, under bad weather that comes from one seed.
//!
//! Each run draws a [`Profile`] from its seed: one group on three to nine stores, or hundreds of them on three to seven.
//! Groups share their stores' disks, clocks and links. Clients write and read while stores lose power and what was not
//! synced (a torn record is cut), disks are slow, hang or fail for good, messages are lost, doubled, delayed and reordered,
//! links are cut in one or both directions or flap, stores pause, clocks run at different speeds, members come and go,
//! leadership is handed around, election timers change and logs are compacted; [`invariants`] are checked after every step.
//! Then everything heals: every group must commit on every member, and what its clients saw must be linearizable.
//!
//! The code is the real core's; shards, transport and storage are not in it.
//!
//! ```
//! let report = pontoon_sim::raft::run(7, false).unwrap();
//! assert_eq!(report.fingerprint, pontoon_sim::raft::run(7, false).unwrap().fingerprint);
//! ```

mod clients;
pub mod cluster;
pub mod disk;
mod drive;
mod faults;
pub mod invariants;
pub mod machine;
pub mod network;
pub mod profile;
pub mod rng;
mod run;
pub mod store;
pub mod trace;

pub use profile::Profile;
pub use run::{Failure, Report, Totals, run};
