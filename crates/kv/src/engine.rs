//! One embedded database per store, shared by all its keyspaces.
//!
//! Keyspaces do not get tables of their own: all records carry the number of a *slot*, so that thousands of keyspaces
//! cost no files and no write buffers. A group has one live slot. An image from another store is written to a fresh
//! slot and becomes live by one small record; the old slot is emptied in the background.
//!
//! Nothing is synced when it is applied: the log is durable, and what a crash takes from here is applied again. This
//! needs the engine to come back at *some* batch boundary, all tables at the same one. fjall gives that: a batch is one
//! record of its journal, and before a table's buffer is flushed to a file the journal is synced up to there. The
//! second holds only with a single worker thread (with two, one may seal a buffer between the other's sync and flush),
//! which is why the number of workers is no option.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, KeyspaceCreateOptions, PersistMode, Readable};
use pontoon_node::state_machine::MachineError;
use pontoon_raft_core::types::GroupId;

use crate::answers::Answers;
use crate::background::{Background, Job};
use crate::creation::Creation;
use crate::error::StoreError;
use crate::heads::Heads;
use crate::log::LogMachine;
use crate::mvcc::apply::KeyspaceMachine;
use crate::mvcc::slot::{self, SlotMeta, SlotState};
use crate::mvcc::state::Keyspace;
use crate::writeback::Writeback;

/// Bounds of the embedded database. They hold for the store, not for each keyspace.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of decompressed blocks kept for reads. Default 32 MiB. Too small: reads of cold keys decompress again.
    pub cache_bytes: u64,
    /// Bytes that the write buffers of all tables aim at in total, before they are flushed. Default 48 MiB. Too small:
    /// many small files to merge; too large: memory, and a longer replay at start.
    pub write_buffer_bytes: u64,
    /// Bytes of the database's own journal on disk before tables are flushed to shorten it. Default 128 MiB, at least
    /// 64 MiB. Bounds the replay at start.
    pub journal_bytes: u64,
    /// How many records a background step (removal of compacted versions, clearing of old slots) takes at once.
    /// Default 512. Larger steps finish earlier and make writes wait longer.
    pub background_step_records: usize,
    /// The rest between two background steps, in milliseconds. Default 2. Skipped while a client waits for a
    /// physical compaction.
    pub background_pause_ms: u64,
    /// Bytes of large answers (more than 64 KiB) that are gathered and sent at a time, and so the most that one answer may
    /// take; as many again for those of transactions. Default 512 MiB, at least 1 MiB. While an answer is encoded it takes
    /// up to three times its size. Too small: long lists are refused, or wait for each other.
    pub answers_bytes_max: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            write_buffer_bytes: 48 << 20,
            journal_bytes: 128 << 20,
            background_step_records: 512,
            background_pause_ms: 2,
            answers_bytes_max: 512 << 20,
        }
    }
}

/// The tables; see `mvcc/records.rs` and `mvcc/slot.rs` for what they hold.
#[derive(Clone)]
pub(crate) struct Tables {
    pub(crate) db: Database,
    pub(crate) meta: fjall::Keyspace,
    pub(crate) current: fjall::Keyspace,
    pub(crate) history: fjall::Keyspace,
    pub(crate) index: fjall::Keyspace,
    pub(crate) lease: fjall::Keyspace,
    pub(crate) once: fjall::Keyspace,
    pub(crate) control: fjall::Keyspace,
    pub(crate) heads: Arc<Heads>,
    pub(crate) writeback: Arc<Writeback>,
    pub(crate) answers: Answers,
}

impl Tables {
    fn open(dir: &Path, options: &EngineOptions) -> Result<Self, StoreError> {
        let creation = Creation::begin(dir).map_err(fjall::Error::Io)?;
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .worker_threads(1)
            .max_journaling_size(options.journal_bytes.max(64 << 20))
            // The journal's buffer is written when it is full and when it is synced. What a killed process loses
            // with it is applied again from the log.
            .manual_journal_persist(true)
            .open()?;
        let share = |percent: u64| (options.write_buffer_bytes / 100 * percent).max(1 << 20);
        let table = |name: &str, percent: u64, hits: bool| {
            db.keyspace(name, || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(share(percent))
                    .expect_point_read_hits(hits)
                    // Fresh files are rewritten soon: not worth the compressor's time.
                    .data_block_compression_policy(CompressionPolicy::new([
                        CompressionType::None,
                        CompressionType::None,
                        CompressionType::Lz4,
                    ]))
            })
        };
        let tables = Self {
            meta: table("meta", 8, false)?,
            current: table("current", 20, false)?,
            // Every revision that is looked up is there.
            history: table("history", 50, true)?,
            index: table("index", 16, false)?,
            lease: table("lease", 6, false)?,
            once: table("once", 6, false)?,
            control: table("control", 2, false)?,
            heads: Arc::default(),
            writeback: Arc::new(Writeback::start(dir.to_owned())),
            answers: Answers::new(options.answers_bytes_max),
            db,
        };
        creation.map_or(Ok(()), Creation::done).map_err(fjall::Error::Io)?;
        Ok(tables)
    }

    pub(crate) fn persist(&self) -> Result<(), StoreError> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    pub(crate) fn slot_meta(&self, slot: u64) -> Result<Option<SlotMeta>, StoreError> {
        self.meta.get(slot::meta_key(slot))?.map(|bytes| SlotMeta::decode(&bytes)).transpose()
    }

    /// The live slot of a group.
    pub(crate) fn live_slot(&self, group: GroupId) -> Result<Option<(u64, SlotMeta)>, StoreError> {
        let Some(record) = self.meta.get(slot::group_key(group))? else { return Ok(None) };
        let slot = slot::decode_group(&record)?;
        let meta = self.slot_meta(slot)?.ok_or_else(|| {
            StoreError::damaged(format!("meta: slot {slot} of group {group} has no record"))
        })?;
        Ok(Some((slot, meta)))
    }

    /// Every slot there is.
    pub(crate) fn slots(&self) -> Result<Vec<(u64, SlotMeta)>, StoreError> {
        let mut slots = Vec::new();
        for guard in self.db.snapshot().prefix(&self.meta, [slot::META_PREFIX]) {
            let (key, value) = guard.into_inner()?;
            slots.push((slot::slot_of_meta_key(&key)?, SlotMeta::decode(&value)?));
        }
        Ok(slots)
    }
}

struct Inner {
    tables: Tables,
    background: Background,
    /// The next free slot; held while one is taken.
    next_slot: Mutex<u64>,
    /// The keyspaces that have leases.
    leased: Mutex<BTreeMap<GroupId, Weak<Keyspace>>>,
    /// All keyspaces that are open.
    open: Mutex<BTreeMap<GroupId, Weak<Keyspace>>>,
}

/// The store's engine. Cheap to clone; closed (and synced) when the last clone and the last keyspace are gone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the database in `dir`, which is created if needed, and takes up unfinished background work.
    ///
    /// # Errors
    /// The directory cannot be used, is locked by another process, or is damaged.
    pub fn open(dir: &Path, options: &EngineOptions) -> Result<Self, StoreError> {
        let tables = Tables::open(dir, options)?;
        let background = Background::start(tables.clone(), options);
        let slots = tables.slots()?;
        let live: BTreeMap<_, _> = slots
            .iter()
            .filter(|(_, meta)| meta.state == SlotState::Live)
            .map(|(_, meta)| (meta.group, meta.applied))
            .collect();
        let mut next_slot = 1;
        for (slot, mut meta) in slots {
            next_slot = next_slot.max(slot + 1);
            let garbage = match meta.state {
                SlotState::Staging | SlotState::Dead => true,
                // An image that nobody needs any more; a newer one waits to be activated.
                SlotState::Staged => live.get(&meta.group).is_some_and(|applied| *applied >= meta.applied),
                SlotState::Live => false,
            };
            if garbage {
                // Clearing takes several steps: what is half cleared must never be used.
                meta.state = SlotState::Dead;
                tables.meta.insert(slot::meta_key(slot), meta.encode())?;
                background.submit(Job::Clear { slot });
            }
        }
        Ok(Self(Arc::new(Inner {
            tables,
            background,
            next_slot: Mutex::new(next_slot),
            leased: Mutex::default(),
            open: Mutex::default(),
        })))
    }

    /// The state machine of a group; a new and empty one if the group has none here. Only one may be open at a time.
    ///
    /// # Errors
    /// The engine fails.
    pub fn open_keyspace(&self, group: GroupId) -> Result<KeyspaceMachine, MachineError> {
        KeyspaceMachine::open(self, group).map_err(|e| machine_error(group, e))
    }

    /// The state machine of a group of kind log; a new and empty one if the group has none here. Only one may be open at a
    /// time.
    ///
    /// # Errors
    /// The engine fails.
    pub fn open_log(&self, group: GroupId) -> Result<LogMachine, MachineError> {
        LogMachine::open(self, group).map_err(|e| machine_error(group, e))
    }

    /// Forgets a group's state, of whatever kind. Its machine must be closed.
    ///
    /// # Errors
    /// The engine fails.
    pub fn destroy_keyspace(&self, group: GroupId) -> Result<(), MachineError> {
        let destroy = || {
            let tables = self.tables();
            let mut batch = tables.db.batch();
            let mut dead = Vec::new();
            for (slot, mut meta) in tables.slots()? {
                if meta.group == group {
                    meta.state = SlotState::Dead;
                    batch.insert(&tables.meta, slot::meta_key(slot), meta.encode());
                    dead.push(slot);
                }
            }
            batch.remove(&tables.meta, slot::group_key(group));
            batch.commit()?;
            tables.persist()?;
            for slot in dead {
                self.submit(Job::Clear { slot });
            }
            Ok::<_, StoreError>(())
        };
        destroy().map_err(|e| machine_error(group, e))
    }

    /// The groups that have a state here.
    ///
    /// # Errors
    /// The engine fails.
    pub fn groups(&self) -> Result<Vec<GroupId>, StoreError> {
        let live = |(_, m): (u64, SlotMeta)| (m.state == SlotState::Live).then_some(m.group);
        Ok(self.tables().slots()?.into_iter().filter_map(live).collect())
    }

    /// Bytes on disk, for all keyspaces together.
    ///
    /// # Errors
    /// The engine fails.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.tables().db.disk_space()?)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.0.tables
    }

    pub(crate) fn submit(&self, job: Job) {
        self.0.background.submit(job);
    }

    /// Notes whether a keyspace has leases that have to be looked after.
    pub(crate) fn note_leased(&self, keyspace: &Arc<Keyspace>) {
        let mut leased = self.0.leased.lock().unwrap_or_else(PoisonError::into_inner);
        if keyspace.leases().is_empty() {
            leased.remove(&keyspace.group());
        } else {
            leased.insert(keyspace.group(), Arc::downgrade(keyspace));
        }
    }

    /// Notes that a keyspace is open.
    pub(crate) fn note_open(&self, keyspace: &Arc<Keyspace>) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(keyspace.group(), Arc::downgrade(keyspace));
    }

    /// The keyspaces that are open.
    #[must_use]
    pub fn keyspaces(&self) -> Vec<Arc<Keyspace>> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, keyspace| keyspace.strong_count() > 0);
        open.values().filter_map(Weak::upgrade).collect()
    }

    /// The open keyspaces that have leases.
    pub(crate) fn leased(&self) -> Vec<Arc<Keyspace>> {
        let mut leased = self.0.leased.lock().unwrap_or_else(PoisonError::into_inner);
        leased.retain(|_, keyspace| keyspace.strong_count() > 0);
        leased.values().filter_map(Weak::upgrade).collect()
    }

    /// Takes a slot nobody has used. The caller writes its meta record before anything else goes there.
    pub(crate) fn take_slot(&self) -> u64 {
        let mut next: MutexGuard<'_, u64> = self.0.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = *next;
        *next += 1;
        slot
    }
}

pub(crate) fn machine_error(group: GroupId, e: StoreError) -> MachineError {
    MachineError::with_source(format!("state of group {group}"), e)
}
