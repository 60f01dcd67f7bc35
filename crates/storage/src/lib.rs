//! A durable log store for many Raft groups: a journal in front of sled, one disk sync for all.
//!
//! **The promise: durable means survives a power cut.** When a batch's `done` is called with `Ok`, the batch is on the
//! disk as far as the disk can be made to say so (`fdatasync` of the journal, which sends a cache flush), whole, and in
//! submit order. A batch that was not acknowledged is there afterwards as a whole or not at all. What came back shorter
//! or different from what was acknowledged is noticed when the store is opened, and refused: a store never votes with
//! less than it promised.
//!
//! ```
//! use pontoon_raft_core::types::{Entry, EntryId, GroupId, HardState, LogIndex, Payload, ReplicaId, StoreId, Term};
//! use pontoon_storage::{Batch, GroupWrite, LogStore, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! # let mut options = Options::default();
//! # options.segment_bytes = 1 << 20;
//! let (store, report) = LogStore::open(dir, options)?;
//! assert!(report.created && !report.doubt);
//!
//! let entry = Entry {
//!     index: LogIndex(1),
//!     term: Term(1),
//!     id: EntryId(42),
//!     payload: Payload::Command("put a b".into()),
//! };
//! let write = GroupWrite {
//!     group: GroupId(7),
//!     create: Some(ReplicaId { store: StoreId(1), number: 1 }),
//!     hard_state: Some(HardState { term: Term(1), voted_for: None }),
//!     entries: vec![entry.clone()],
//!     ..GroupWrite::default()
//! };
//! let (sender, receiver) = std::sync::mpsc::channel();
//! store.submit(Batch { groups: vec![write] }, Box::new(move |outcome| sender.send(outcome).unwrap()));
//! // Readable at once: followers get it while our own disk is still busy with it.
//! assert_eq!(store.entries(GroupId(7), LogIndex(1)..LogIndex(2), u64::MAX)?, [entry]);
//! receiver.recv()??; // durable
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! ```text
//!   submit ──> encoded once ──> index + recent batches (in memory, one short lock) ──> queue
//!                                 ▲        ▲                                             │ all that waits
//!                     readers ────┘        │ where the batches lie            log-writer ▼
//!                                          └────────────  one record: one write, one fdatasync ──> done, in order
//!                                                                                        │
//!   journal segments  [oldest ...................... newest][spare]   <── log-spares
//!                        │ leftovers, paced
//!        log-checkpoint  ▼
//!                      sled (synced by us), then MARKER, then the segment is used again
//! ```
//!
//! - **Journal.** Zero-filled, preallocated, recycled files. One checksummed record per round holds the changes of all
//!   groups, and is written in whole blocks, past the page cache where the file system lets it; see
//!   `docs/src/journal-format.md` for every byte.
//! - **Two ways to write.** [`LogStore::submit`] never waits, and shares rounds with all others. [`LogStore::commit`] is for
//!   a thread that has nothing else to do: it writes by itself while nobody else does.
//! - **Cold tier.** What outlives its segment: metadata, notes, the few entries of idle groups, the backlog of slow
//!   followers. sled's traps are listed, and handled, in `cold/sled.rs`.
//! - **Failure.** The first failed write or sync is final: everything later gets [`StoreFailed`], until the process is
//!   restarted and reads the disk again. A full disk is met by a reserve and a spare: [`LogStore::space`]
//!   says so while there is still a segment to write to, and what the caller does not submit then is not lost.
//! - **Recovery.** A torn last record is cut and reported ([`RecoveryReport::torn_tail`]); since damage of the last
//!   acknowledged record can look the same, [`RecoveryReport::doubt`] stays set until it is settled. Everything else
//!   that does not add up is an [`OpenError`] that names the file, the rule and the way back.
//!
//! # Where to look
//!
//! `log_store` the handle · `committer` rounds, one at a time · `index` (group, index) → place · `recent` the last batches · `state` what threads share ·
//! `journal` segments and records · `spares`, `checkpoint` the background threads · `cold` the cold tier · `marker`,
//! `header` the small files · `recovery` opening · [`records`] what a stopped store tells, [`check`] whether several stores'
//! records keep Raft's guarantees · `codec` bytes · [`disk`] the seam to files, with a disk that fails.
//!
//! # What it does not do
//!
//! It does not bound what is submitted (the caller does, see [`Stats::pending_bytes`]), keep state machines or their
//! snapshots, or repair damage: a replica that lost what it promised is rebuilt from its peers.

mod batch;
pub mod check;
mod checkpoint;
mod codec;
mod cold;
mod committer;
mod config;
pub mod disk;
mod error;
mod header;
mod index;
mod journal;
mod lock;
mod log_store;
mod marker;
mod reader;
mod recent;
pub mod records;
mod recovery;
mod space;
mod spares;
mod state;
mod stats;

pub use batch::{Batch, BatchSeq, GroupState, GroupWrite};
pub use config::Options;
pub use error::{InitializeError, NoteError, OpenError, StoreFailed};
pub use header::Header;
pub use log_store::{GroupLog, LogStore};
pub use recovery::{RecoveryReport, TornTail};
pub use space::{NoSpace, Space};
pub use stats::Stats;
