//! The life of slots: a new group's first one, images that are staged, the one that becomes live. For every kind of
//! state machine that the engine holds.

use pontoon_raft_core::types::{GroupId, LogIndex};

use crate::background::Job;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::mvcc::slot::{self, SlotMeta, SlotState};

/// The live slot of a group; a new and empty one if it has none here.
pub(crate) fn live_or_new(engine: &Engine, group: GroupId) -> Result<(u64, SlotMeta), StoreError> {
    let tables = engine.tables();
    if let Some(found) = tables.live_slot(group)? {
        return Ok(found);
    }
    let slot = engine.take_slot();
    let meta = SlotMeta::new(group, SlotState::Live);
    let mut batch = tables.db.batch();
    batch.insert(&tables.meta, slot::meta_key(slot), meta.encode());
    batch.insert(&tables.meta, slot::group_key(group), slot.to_be_bytes());
    batch.commit()?;
    Ok((slot, meta))
}

/// Gives up the finished images of a group that its live state, at `applied`, has overtaken.
pub(crate) fn discard_overtaken(
    engine: &Engine,
    group: GroupId,
    applied: LogIndex,
) -> Result<(), StoreError> {
    let tables = engine.tables();
    for (slot, mut meta) in tables.slots()? {
        // A finished image that is newer than the state may be what the log begins after already: it stays until one is
        // activated.
        if meta.group == group && meta.state == SlotState::Staged && meta.applied <= applied {
            meta.state = SlotState::Dead;
            tables.meta.insert(slot::meta_key(slot), meta.encode())?;
            engine.submit(Job::Clear { slot });
        }
    }
    Ok(())
}

/// A slot that has become live, and those that nobody needs any more.
pub(crate) struct Activated {
    pub(crate) slot: u64,
    pub(crate) meta: SlotMeta,
    outdated: Vec<u64>,
}

impl Activated {
    /// Empties the slots of before. Call it when nobody reads them any more.
    pub(crate) fn clear_outdated(self, engine: &Engine) {
        for slot in self.outdated {
            engine.submit(Job::Clear { slot });
        }
    }
}

/// Makes the finished image as of `index` the state of the group whose live slot is `old`, durably; `None` if it is what
/// `old` has already.
pub(crate) fn activate(
    engine: &Engine,
    old: u64,
    old_meta: &SlotMeta,
    index: LogIndex,
) -> Result<Option<Activated>, StoreError> {
    let (group, tables) = (old_meta.group, engine.tables());
    let staged =
        |(_, m): &(u64, SlotMeta)| m.group == group && m.state == SlotState::Staged && m.applied == index;
    let Some((slot, mut meta)) = tables.slots()?.into_iter().find(staged) else {
        if old_meta.applied >= index {
            // Activated before a crash that came before the caller could note it.
            return Ok(None);
        }
        return Err(StoreError::damaged(format!("no finished image as of entry {index} is staged")));
    };
    meta.state = SlotState::Live;
    let dead = SlotMeta { state: SlotState::Dead, ..old_meta.clone() };
    let mut batch = tables.db.batch();
    batch.insert(&tables.meta, slot::meta_key(slot), meta.encode());
    batch.insert(&tables.meta, slot::meta_key(old), dead.encode());
    batch.insert(&tables.meta, slot::group_key(group), slot.to_be_bytes());
    let mut outdated = vec![old];
    for (other, mut meta) in tables.slots()? {
        if meta.group == group && meta.state == SlotState::Staged && meta.applied <= index && other != slot {
            meta.state = SlotState::Dead;
            batch.insert(&tables.meta, slot::meta_key(other), meta.encode());
            outdated.push(other);
        }
    }
    batch.commit()?;
    tables.persist()?;
    Ok(Some(Activated { slot, meta, outdated }))
}
