//! The state machine of a log: it appends what is committed, once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use pontoon_node::state_machine::{Committed, MachineError, SnapshotReader, SnapshotSink, StateMachine};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex};

use super::command::{Append, AppendRefused, Appended, encode_reply};
use super::image::LogImageSink;
use super::state::{LogState, encode_entry, entry_key, id_key, last_id, last_of, split_record};
use crate::engine::{Engine, machine_error};
use crate::error::StoreError;
use crate::mvcc::image::StagingFlag;
use crate::mvcc::slot::{self, SlotMeta};
use crate::slots;

/// A plain log as a state machine. The apply worker owns it; everybody else reads through [`LogState`].
pub struct LogMachine {
    engine: Engine,
    shared: Arc<LogState>,
    slot: u64,
    meta: SlotMeta,
    /// The id of the last entry; what prerequisites are compared with.
    last: EntryId,
    /// The entries of the batch at hand, which the engine does not show yet.
    fresh: HashMap<EntryId, (LogIndex, Bytes)>,
    /// An engine failure left a batch half done in memory: nothing may be applied any more.
    broken: bool,
    /// The image that is being received, if any.
    staging: Option<StagingFlag>,
}

impl fmt::Debug for LogMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogMachine")
            .field("meta", &self.meta)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Drop for LogMachine {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl LogMachine {
    pub(crate) fn open(engine: &Engine, group: GroupId) -> Result<Self, StoreError> {
        let (slot, meta) = slots::live_or_new(engine, group)?;
        let tables = engine.tables();
        let last = last_id(&tables.db.snapshot(), tables, slot, last_of(&meta))?;
        let shared = LogState::new(engine.clone(), group, last_of(&meta));
        Ok(Self {
            engine: engine.clone(),
            shared,
            slot,
            meta,
            last,
            fresh: HashMap::new(),
            broken: false,
            staging: None,
        })
    }

    /// The handle for reads.
    #[must_use]
    pub fn state(&self) -> Arc<LogState> {
        Arc::clone(&self.shared)
    }

    fn apply_batch(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, StoreError> {
        let mut replies = Vec::with_capacity(batch.len());
        let mut writes = self.engine.tables().db.batch();
        for entry in batch {
            if entry.index <= self.meta.applied {
                // Applied before the restart.
                replies.push(Bytes::new());
                continue;
            }
            let next = self.meta.applied.next();
            if entry.index != next {
                let found = entry.index;
                return Err(StoreError::damaged(format!(
                    "the log has a gap: expected entry {next}, got {found}"
                )));
            }
            let reply = match &entry.command {
                None => Bytes::new(),
                Some(command) => {
                    let result = self.append(command, entry.index, &mut writes)?;
                    if entry.wants_reply { encode_reply(&result) } else { Bytes::new() }
                }
            };
            replies.push(reply);
            self.meta.applied = entry.index;
            self.meta.term = entry.term;
        }
        let tables = self.engine.tables();
        writes.insert(&tables.meta, slot::meta_key(self.slot), self.meta.encode());
        writes.commit()?;
        tables.writeback.committed();
        self.fresh.clear();
        self.shared.publish(last_of(&self.meta));
        Ok(replies)
    }

    fn append(
        &mut self,
        command: &Bytes,
        index: LogIndex,
        writes: &mut fjall::OwnedWriteBatch,
    ) -> Result<Result<Appended, AppendRefused>, StoreError> {
        let Some(append) = Append::decode(command) else { return Ok(Err(AppendRefused::Unknown)) };
        if let Some((index, same)) = self.find(&append)? {
            // Before the prerequisite: when it was appended, that was right.
            return Ok(if same {
                Ok(Appended { index, repeated: true })
            } else {
                Err(AppendRefused::IdTaken { index })
            });
        }
        if append.prerequisite.is_some_and(|wanted| wanted != self.last) {
            return Ok(Err(AppendRefused::BadPrerequisite { last: self.last }));
        }
        let tables = self.engine.tables();
        let record = encode_entry(append.id, &append.data);
        self.meta.written_bytes += record.len() as u64;
        self.meta.revision = index.0.cast_signed();
        writes.insert(&tables.history, &entry_key(self.slot, index)[..], record);
        writes.insert(&tables.index, id_key(self.slot, append.id), index.0.to_be_bytes());
        self.last = append.id;
        self.fresh.insert(append.id, (index, append.data));
        Ok(Ok(Appended { index, repeated: false }))
    }

    /// Where the entry of this id is, if there is one, and whether it says the same.
    fn find(&self, append: &Append) -> Result<Option<(LogIndex, bool)>, StoreError> {
        if let Some((index, data)) = self.fresh.get(&append.id) {
            return Ok(Some((*index, *data == append.data)));
        }
        let tables = self.engine.tables();
        let Some(index) = tables.index.get(id_key(self.slot, append.id))? else { return Ok(None) };
        let index = index.as_ref().try_into().map(u64::from_be_bytes);
        let index =
            LogIndex(index.map_err(|_| StoreError::damaged("index: a log's index has a wrong length"))?);
        let record = tables.history.get(entry_key(self.slot, index))?;
        let record = record
            .ok_or_else(|| StoreError::damaged(format!("history: entry {index} of a log is missing")))?;
        Ok(Some((index, split_record(&record)?.1 == append.data)))
    }

    fn activate_image(&mut self, index: LogIndex) -> Result<(), StoreError> {
        let Some(activated) = slots::activate(&self.engine, self.slot, &self.meta, index)? else {
            return Ok(());
        };
        self.staging = None;
        self.slot = activated.slot;
        self.meta = activated.meta.clone();
        let tables = self.engine.tables();
        self.last = last_id(&tables.db.snapshot(), tables, self.slot, last_of(&self.meta))?;
        self.fresh.clear();
        self.shared.publish(last_of(&self.meta));
        activated.clear_outdated(&self.engine);
        Ok(())
    }

    fn stage_image(&mut self, index: LogIndex) -> Result<LogImageSink, StoreError> {
        if let Some(earlier) = self.staging.take() {
            earlier.cancel();
        }
        slots::discard_overtaken(&self.engine, self.meta.group, self.meta.applied)?;
        let sink = LogImageSink::new(&self.engine, self.meta.group, index)?;
        self.staging = Some(sink.flag());
        Ok(sink)
    }

    fn fail(&mut self, e: StoreError) -> MachineError {
        self.broken = true;
        machine_error(self.meta.group, e)
    }

    fn usable(&self) -> Result<(), MachineError> {
        if self.broken {
            return Err(MachineError::new(format!(
                "log of group {}: an earlier failure left it unusable until a restart",
                self.meta.group
            )));
        }
        Ok(())
    }
}

impl StateMachine for LogMachine {
    fn applied(&self) -> LogIndex {
        self.meta.applied
    }

    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
        self.usable()?;
        self.apply_batch(batch).map_err(|e| self.fail(e))
    }

    fn sync(&mut self) -> Result<LogIndex, MachineError> {
        self.usable()?;
        self.engine.tables().persist().map_err(|e| self.fail(e))?;
        Ok(self.meta.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError> {
        self.usable()?;
        Ok(Box::new(self.shared.image().map_err(|e| machine_error(self.meta.group, e))?))
    }

    fn stage(&mut self, index: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(self.stage_image(index).map_err(|e| machine_error(self.meta.group, e))?))
    }

    fn activate(&mut self, index: LogIndex) -> Result<(), MachineError> {
        self.activate_image(index).map_err(|e| self.fail(e))?;
        self.broken = false;
        Ok(())
    }
}
