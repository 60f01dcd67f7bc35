//! The writing half of a slot: collects a batch of changes and commits it together with the applied index.

use std::sync::Arc;

use bytes::Bytes;
use fjall::{OwnedWriteBatch, Readable as _, Slice, Snapshot};
use pontoon_proto::mvccpb::KeyValue;
use pontoon_raft_core::types::LogIndex;

use crate::answers::{Meter, Reply};
use crate::engine::Tables;
use crate::error::{Fault, StoreError};
use crate::mvcc::control::{Control, Restore, Write};
use crate::mvcc::keys;
use crate::mvcc::once::{Once, Verdict};
use crate::mvcc::overlay::{Overlay, Working};
use crate::mvcc::records::{self, Current, HISTORY_KEY_BYTES, KeyRange, Revision, Version, is_milestone};
use crate::mvcc::slot::{self, SlotMeta};
use crate::mvcc::view::{Committed, View};
use crate::write_id::WriteId;

pub(crate) struct Writer {
    tables: Tables,
    pub(crate) slot: u64,
    /// As of the last command that ended; committed with the batch.
    pub(crate) meta: SlotMeta,
    overlay: Overlay,
    pub(crate) once: Once,
    /// As of the command at hand.
    pub(crate) control: Arc<Control>,
    /// Since it was published last.
    control_changed: bool,
    /// Leases as of the command at hand.
    lease_count: u64,
    batch: Option<OwnedWriteBatch>,
    /// What is committed; taken when the first command of a batch needs ranges.
    snapshot: Option<Snapshot>,
    /// Changes that the command at hand has made.
    changes: u32,
    /// Somebody waits for the command's reply: what only the reply needs is read.
    pub(crate) wants_reply: bool,
    /// What there is of that reply.
    pub(crate) reply: Reply,
    /// Commit as soon as this command's index is noted: later ones look for its effect where it is committed.
    pub(crate) commit_soon: bool,
    key: Vec<u8>,
    record: Vec<u8>,
}

const LEASE: u8 = 0;
const ATTACHED: u8 = 1;

/// Whether a record of the lease table, its key without the slot, is one that this build makes.
pub(crate) fn is_lease_record(suffix: &[u8], value: &[u8]) -> bool {
    match suffix.split_first() {
        Some((&LEASE, id)) => id.len() == 8 && value.len() == 8,
        Some((&ATTACHED, key)) => (9..=8 + records::KEY_BYTES_MAX).contains(&key.len()) && value.is_empty(),
        _ => false,
    }
}

/// The keys attached to a lease in a slot, in order.
pub(crate) fn attached(
    snapshot: &Snapshot,
    tables: &Tables,
    slot: u64,
    id: i64,
) -> impl Iterator<Item = Result<Bytes, StoreError>> {
    let prefix = keys::lease_key(slot, ATTACHED, id);
    let found = snapshot.prefix(&tables.lease, prefix);
    found.map(move |guard| Ok(Bytes::copy_from_slice(&guard.key()?[prefix.len()..])))
}

impl Writer {
    pub(crate) fn open(tables: Tables, slot: u64, meta: SlotMeta) -> Result<Self, StoreError> {
        let control = Control::open(&tables.db.snapshot(), &tables, slot)?;
        let reply = Reply::new(tables.answers.clone());
        let mut writer = Self {
            once: Once::open(&tables, slot)?,
            control: Arc::new(control),
            control_changed: true,
            lease_count: 0,
            tables,
            slot,
            meta,
            overlay: Overlay::default(),
            batch: None,
            snapshot: None,
            changes: 0,
            wants_reply: false,
            reply,
            commit_soon: false,
            key: Vec::new(),
            record: Vec::new(),
        };
        writer.lease_count = writer.leases()?.len() as u64;
        Ok(writer)
    }

    /// The keyspace's revision as the command at hand has left it.
    pub(crate) fn revision(&self) -> i64 {
        self.meta.revision + i64::from(self.changes > 0)
    }

    /// The revision becomes final.
    pub(crate) fn end_of_command(&mut self) {
        self.meta.revision = self.revision();
        self.changes = 0;
    }

    /// Gathers something for the reply. `None`: there is no memory for it, and nothing more of the reply is wanted.
    pub(crate) fn replying<T>(
        &mut self,
        gather: impl FnOnce(&mut Self, &mut Meter) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        let mut meter = self.reply.take_meter();
        let gathered = gather(self, &mut meter);
        match gathered {
            Ok(gathered) => {
                self.reply.meter = meter;
                Ok(Some(gathered))
            }
            Err(Fault::Answer(_)) => {
                self.reply.leave_out();
                self.wants_reply = false;
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn batch(&mut self) -> &mut OwnedWriteBatch {
        self.batch.get_or_insert_with(|| OwnedWriteBatch::with_capacity(self.tables.db.clone(), 32))
    }

    /// What is committed, and consistent; see [`Writer::working`] for what is not.
    pub(crate) fn committed(&mut self) -> Committed<'_> {
        let snapshot = self.snapshot.get_or_insert_with(|| self.tables.db.snapshot());
        Committed { tables: &self.tables, snapshot, slot: self.slot }
    }

    /// The newest state, with all that the batch has done so far.
    pub(crate) fn working(&mut self) -> Working<'_> {
        let snapshot = self.snapshot.get_or_insert_with(|| self.tables.db.snapshot());
        let committed = Committed { tables: &self.tables, snapshot, slot: self.slot };
        Working { committed, overlay: &self.overlay }
    }

    /// What is there of a key. One point lookup; the key must not be longer than the limit.
    pub(crate) fn find(&self, key: &Bytes) -> Result<Option<Current>, StoreError> {
        if let Some(current) = self.overlay.keys.get(key) {
            return Ok(*current);
        }
        if let Some(current) = self.tables.heads.find(self.slot, key) {
            return Ok(Some(current));
        }
        let mut stored = Vec::with_capacity(9 + key.len());
        keys::current_key(&mut stored, self.slot, key);
        let record = self.tables.current.get(stored)?;
        record.map(|r| Current::decode(&r)).transpose()
    }

    fn record_of(&self, revision: Revision) -> Result<Slice, StoreError> {
        if let Some(record) = self.overlay.record(revision) {
            return Ok(record.clone());
        }
        self.tables.history.get(keys::history_key(self.slot, revision))?.ok_or_else(|| {
            StoreError::damaged(format!("history: revision {}.{} is missing", revision.main, revision.sub))
        })
    }

    /// A version that is there now.
    pub(crate) fn key_value(&self, revision: Revision) -> Result<KeyValue, StoreError> {
        records::key_value(revision, &self.record_of(revision)?, true)
    }

    /// The keys of a range that are there now.
    pub(crate) fn keys_in(&mut self, range: KeyRange<'_>) -> Result<Vec<(Bytes, Current)>, StoreError> {
        let mut keys = Vec::new();
        self.working().walk(range, &mut |key, found| {
            if let Some(current) = found.current {
                keys.push((Bytes::copy_from_slice(key), current));
            }
            Ok(true)
        })?;
        Ok(keys)
    }

    fn next_revision(&mut self) -> Revision {
        let revision = Revision { main: self.meta.revision + 1, sub: self.changes };
        self.changes += 1;
        revision
    }

    fn add_history(&mut self, revision: Revision, version: &Version<'_>) {
        self.record.clear();
        version.encode(&mut self.record);
        let record = Slice::from(&self.record[..]);
        self.add_record(revision, version, record);
    }

    fn add_record(&mut self, revision: Revision, version: &Version<'_>, record: Slice) {
        self.meta.written_bytes += (record.len() + HISTORY_KEY_BYTES) as u64;
        self.overlay.add_record(revision, record.clone());
        let key = keys::history_key(self.slot, revision);
        let table = self.tables.history.clone();
        self.batch().insert(&table, &key[..], record);
        if version.deletion || is_milestone(version.version) {
            let mut stored = std::mem::take(&mut self.key);
            keys::index_key(&mut stored, self.slot, version.key, revision);
            let table = self.tables.index.clone();
            self.batch().insert(&table, &stored[..], &b""[..]);
            self.key = stored;
        }
    }

    /// Writes a key; `old` is what [`Writer::find`] says of it.
    pub(crate) fn put(&mut self, key: &Bytes, value: &[u8], lease: i64, old: Option<Current>) {
        let revision = self.next_revision();
        let (create, version) = old.map_or((revision.main, 1), |old| (old.create, old.version + 1));
        let superseded = old.map(|old| old.revision);
        self.add_history(
            revision,
            &Version { deletion: false, create, version, lease, superseded, key, value },
        );
        let old_lease = old.map_or(0, |old| old.lease);
        if old_lease != lease {
            self.attach(old_lease, key, false);
            self.attach(lease, key, true);
        }
        self.overlay.keys.insert(key.clone(), Some(Current { revision, create, version, lease }));
    }

    /// Deletes a key that is there.
    pub(crate) fn delete(&mut self, key: &Bytes, old: Current) {
        let revision = self.next_revision();
        let superseded = Some(old.revision);
        self.add_history(
            revision,
            &Version { deletion: true, create: 0, version: 0, lease: 0, superseded, key, value: &[] },
        );
        self.attach(old.lease, key, false);
        self.overlay.keys.insert(key.clone(), None);
    }

    fn attach(&mut self, lease: i64, key: &Bytes, attached: bool) {
        if lease != 0 {
            self.overlay.attachments.insert((lease, key.clone()), attached);
        }
    }

    /// Whether a lease exists. Grants and revocations are committed before the next command.
    pub(crate) fn lease_exists(&self, id: i64) -> Result<bool, StoreError> {
        Ok(self.tables.lease.contains_key(keys::lease_key(self.slot, LEASE, id))?)
    }

    /// How many leases there are.
    pub(crate) fn lease_count(&self) -> u64 {
        self.lease_count
    }

    pub(crate) fn grant(&mut self, id: i64, ttl_seconds: i64) {
        self.lease_count += 1;
        let table = self.tables.lease.clone();
        let key = keys::lease_key(self.slot, LEASE, id);
        self.batch().insert(&table, &key[..], ttl_seconds.to_be_bytes());
    }

    pub(crate) fn revoke(&mut self, id: i64) {
        self.lease_count = self.lease_count.saturating_sub(1);
        let table = self.tables.lease.clone();
        let key = keys::lease_key(self.slot, LEASE, id);
        self.batch().remove(&table, &key[..]);
    }

    /// All leases with their TTL in seconds, as far as committed.
    pub(crate) fn leases(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        let mut prefix = keys::slot_prefix(self.slot).to_vec();
        prefix.push(LEASE);
        let decode = |key: &[u8], value: &[u8]| {
            let id = i64::from_be_bytes(key.get(prefix.len()..)?.try_into().ok()?);
            Some((id, i64::from_be_bytes(value.try_into().ok()?)))
        };
        let leases = self.tables.lease.prefix(&prefix).map(|guard| {
            let (key, value) = guard.into_inner()?;
            decode(&key, &value).ok_or_else(|| StoreError::damaged("lease: a record has a wrong length"))
        });
        leases.collect()
    }

    /// The keys attached to a lease, as far as committed, in order.
    pub(crate) fn attached(&self, id: i64) -> Result<Vec<Bytes>, StoreError> {
        attached(&self.tables.db.snapshot(), &self.tables, self.slot, id).collect()
    }

    /// The keys attached to a lease, with all that the batch has done so far.
    pub(crate) fn attached_now(&mut self, id: i64) -> Result<Vec<Bytes>, StoreError> {
        if !self.overlay.attachments.is_empty() {
            self.commit()?;
        }
        self.attached(id)
    }

    /// The part of the state that is kept in memory, to be changed; [`write_control`](Self::write_control) what changes.
    pub(crate) fn control_mut(&mut self) -> &mut Control {
        Arc::make_mut(&mut self.control)
    }

    /// Writes records of `control`.
    pub(crate) fn write_control(&mut self, writes: Vec<Write>) {
        let table = self.tables.control.clone();
        for (suffix, value) in writes {
            let mut key = keys::slot_prefix(self.slot).to_vec();
            key.extend_from_slice(&suffix);
            match value {
                Some(value) => self.batch().insert(&table, key, value),
                None => self.batch().remove(&table, key),
            }
            self.control_changed = true;
        }
    }

    /// What readers are to see from now on, if it has changed.
    pub(crate) fn take_changed_control(&mut self) -> Option<Arc<Control>> {
        std::mem::take(&mut self.control_changed).then(|| Arc::clone(&self.control))
    }

    /// Notes how far a restore has come.
    pub(crate) fn note_restore(&mut self, restore: Option<Restore>) {
        let write = self.control_mut().set_restore(restore);
        self.write_control(vec![write]);
    }

    /// Takes a version over from another keyspace; it is newer than all that are there.
    pub(crate) fn restore_version(&mut self, revision: Revision, version: &Version<'_>, record: &[u8]) {
        self.add_record(revision, version, Slice::from(record));
        let Version { create, lease, .. } = *version;
        let current = Current { revision, create, version: version.version, lease };
        let key = Bytes::copy_from_slice(version.key);
        self.overlay.keys.insert(key, (!version.deletion).then_some(current));
    }

    /// Takes a record of the lease table over.
    pub(crate) fn restore_lease(&mut self, suffix: &[u8], value: &[u8]) {
        self.lease_count += u64::from(suffix.first() == Some(&LEASE));
        let mut key = keys::slot_prefix(self.slot).to_vec();
        key.extend_from_slice(suffix);
        let table = self.tables.lease.clone();
        self.batch().insert(&table, key, value);
    }

    /// Takes a record of `control` over.
    pub(crate) fn restore_control(&mut self, suffix: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.control_mut().load(suffix, value)?;
        self.write_control(vec![(suffix.to_vec(), Some(value.to_vec()))]);
        Ok(())
    }

    /// What is to become of a write with a name.
    pub(crate) fn judge(&self, id: WriteId, index: LogIndex) -> Result<Verdict, StoreError> {
        self.once.judge(&self.tables, id, index)
    }

    /// A write with a name was executed.
    pub(crate) fn remember(&mut self, id: WriteId, index: LogIndex, answer: &Bytes) {
        let new = || OwnedWriteBatch::with_capacity(self.tables.db.clone(), 32);
        let batch = self.batch.get_or_insert_with(new);
        self.once.remember(&self.tables, batch, id, index, answer);
    }

    /// Makes all changes so far visible to readers, atomically, with the index of the last entry that was noted.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        let mut batch =
            self.batch.take().unwrap_or_else(|| OwnedWriteBatch::with_capacity(self.tables.db.clone(), 4));
        for (key, current) in &self.overlay.keys {
            keys::current_key(&mut self.key, self.slot, key);
            match current {
                Some(current) => {
                    self.record.clear();
                    current.encode(&mut self.record);
                    batch.insert(&self.tables.current, &self.key[..], &self.record[..]);
                }
                None => batch.remove(&self.tables.current, &self.key[..]),
            }
        }
        for ((lease, key), attached) in &self.overlay.attachments {
            self.key.clear();
            self.key.extend_from_slice(&keys::lease_key(self.slot, ATTACHED, *lease));
            self.key.extend_from_slice(key);
            if *attached {
                batch.insert(&self.tables.lease, &self.key[..], &b""[..]);
            } else {
                batch.remove(&self.tables.lease, &self.key[..]);
            }
        }
        self.once.finish(&self.tables, &mut batch);
        batch.insert(&self.tables.meta, slot::meta_key(self.slot), self.meta.encode());
        batch.commit()?;
        self.once.committed();
        for (key, current) in &self.overlay.keys {
            self.tables.heads.note(self.slot, key, *current);
        }
        self.tables.writeback.committed();
        self.overlay.clear();
        self.snapshot = None;
        Ok(())
    }
}
