//! The handle by which services read a keyspace, beside the apply worker that changes it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use fjall::{Readable as _, Snapshot};
use pontoon_proto::etcdserverpb::{
    AlarmType, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use pontoon_raft_core::types::{GroupId, LogIndex, Term};
use tokio::sync::watch;

use crate::answers::{Answers, KEY_OVERHEAD_BYTES, Meter};
use crate::engine::{Engine, Tables};
use crate::error::{EtcdError, Fault, StoreError};
use crate::leases::Leases;
use crate::mvcc::compaction::{self, Physical};
use crate::mvcc::control::Control;
use crate::mvcc::hub::Hub;
use crate::mvcc::image::ImageReader;
use crate::mvcc::range::{self, Ranged};
use crate::mvcc::slot::{self, SlotMeta, SlotState};
use crate::mvcc::view::{Committed, Now, Past};
use crate::mvcc::{hash, once, txn, writer};
use crate::write_id::WriteId;

/// One keyspace's state on this store. Reads see what is applied here, never wait for writes and never make them wait.
pub struct Keyspace {
    engine: Engine,
    group: GroupId,
    pub(crate) physical: Arc<Physical>,
    applied: AtomicU64,
    term: AtomicU64,
    /// Names of writes from before this entry are refused.
    floor: AtomicU64,
    /// Bytes of all versions ever written to the live slot.
    written_bytes: AtomicU64,
    revision: watch::Sender<i64>,
    leases: Mutex<Leases>,
    control: RwLock<Arc<Control>>,
    /// Those who watch it and have heard of everything.
    pub(crate) hub: Hub,
    ended: watch::Sender<bool>,
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A consistent picture of the live slot.
pub(crate) struct Picture<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) snapshot: Snapshot,
    pub(crate) slot: u64,
    pub(crate) meta: SlotMeta,
}

impl Picture<'_> {
    pub(crate) fn committed(&self) -> Committed<'_> {
        Committed { tables: self.tables, snapshot: &self.snapshot, slot: self.slot }
    }
}

impl Keyspace {
    pub(crate) fn new(engine: Engine, slot: u64, meta: &SlotMeta, floor: LogIndex, freed_bytes: u64) -> Self {
        Self {
            engine,
            group: meta.group,
            physical: Arc::new(Physical::new(slot, meta.compact_revision, freed_bytes)),
            applied: AtomicU64::new(meta.applied.0),
            term: AtomicU64::new(meta.term.0),
            floor: AtomicU64::new(floor.0),
            written_bytes: AtomicU64::new(meta.written_bytes),
            revision: watch::Sender::new(meta.revision),
            leases: Mutex::default(),
            control: RwLock::default(),
            hub: Hub::default(),
            ended: watch::Sender::new(false),
        }
    }

    /// Called by the apply worker after a commit.
    pub(crate) fn publish(&self, meta: &SlotMeta, floor: LogIndex, control: Option<Arc<Control>>) {
        if let Some(control) = control {
            *self.control.write().unwrap_or_else(PoisonError::into_inner) = control;
        }
        self.written_bytes.store(meta.written_bytes, Ordering::Release);
        self.floor.store(floor.0, Ordering::Release);
        self.applied.store(meta.applied.0, Ordering::Release);
        self.term.store(meta.term.0, Ordering::Release);
        self.revision.send_if_modified(|revision| {
            let changed = *revision != meta.revision;
            *revision = meta.revision;
            changed
        });
    }

    /// The replica here is closed: nothing new comes.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Tells when the replica here is closed.
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// The group that replicates it.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The last revision that is applied here.
    #[must_use]
    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// Tells of new revisions.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// The last log entry that is applied here.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        LogIndex(self.applied.load(Ordering::Acquire))
    }

    /// The term of that entry.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    /// The leases as applied here. The lock is held for moments.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Alarms, users and roles as applied here.
    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the keyspace takes no more puts, because it is or was over its quota.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        self.control().has_alarm(AlarmType::Nospace)
    }

    /// The state as of now, as bytes that [`RestoreStep`](crate::mvcc::restore::RestoreStep)s are made of.
    pub(crate) fn image(&self) -> Result<ImageReader, StoreError> {
        ImageReader::new(&self.engine, &self.picture()?)
    }

    /// The keys attached to a lease, in order.
    pub(crate) fn keys_of_lease(&self, id: i64, meter: &mut Meter) -> Result<Vec<Bytes>, Fault> {
        let picture = self.picture()?;
        let mut keys = Vec::new();
        for key in writer::attached(&picture.snapshot, picture.tables, picture.slot, id) {
            let key = key?;
            meter.add(key.len() + KEY_OVERHEAD_BYTES)?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// Refuses a name that is too old before it costs an entry.
    pub(crate) fn judge_write_id(&self, id: WriteId) -> Result<(), EtcdError> {
        once::judge_position(id, LogIndex(self.floor.load(Ordering::Acquire)))
    }

    pub(crate) fn picture(&self) -> Result<Picture<'_>, StoreError> {
        let tables = self.engine.tables();
        let snapshot = tables.db.snapshot();
        let slot = self.physical.slot.load(Ordering::Acquire);
        if let Some(meta) =
            compaction::meta_in(&snapshot, tables, slot)?.filter(|m| m.state == SlotState::Live)
        {
            return Ok(Picture { tables, snapshot, slot, meta });
        }
        // An image from another store became live between the two steps. The same snapshot knows which slot is live.
        let missing = || StoreError::damaged(format!("meta: group {} has no live slot", self.group));
        let record = snapshot.get(&tables.meta, slot::group_key(self.group))?.ok_or_else(missing)?;
        let slot = slot::decode_group(&record)?;
        let meta = compaction::meta_in(&snapshot, tables, slot)?.ok_or_else(missing)?;
        Ok(Picture { tables, snapshot, slot, meta })
    }

    /// Answers a range request from what is applied here. Of the header, only the revision is set.
    ///
    /// # Errors
    /// The revision is compacted or in the future, there is no memory for the answer, or the engine fails.
    pub fn range(&self, r: &RangeRequest) -> Result<RangeResponse, ReadFailure> {
        self.read_range(r, &mut self.answers().meter()).map_err(ReadFailure)
    }

    /// The memory for large answers.
    pub(crate) fn answers(&self) -> &Answers {
        &self.engine.tables().answers
    }

    pub(crate) fn read_range(&self, r: &RangeRequest, meter: &mut Meter) -> Result<RangeResponse, Fault> {
        let picture = self.picture()?;
        let committed = picture.committed();
        let Ranged { kvs, more, count } = match judge_revision(&picture.meta, r.revision)? {
            None => range::evaluate(&Now(committed), r, meter)?,
            Some(revision) => range::evaluate(&Past { committed, revision }, r, meter)?,
        };
        let header = Some(ResponseHeader { revision: picture.meta.revision, ..Default::default() });
        Ok(RangeResponse { header, kvs, more, count })
    }

    /// Executes a transaction that only reads.
    pub(crate) fn read_only_txn(&self, r: &TxnRequest, meter: &mut Meter) -> Result<TxnResponse, Fault> {
        let picture = self.picture()?;
        txn::read_only(&picture, r, meter)
    }

    /// The revision up to which the past is forgotten; -1 if nothing ever was.
    ///
    /// # Errors
    /// The engine fails.
    pub fn compact_revision(&self) -> Result<i64, StoreError> {
        Ok(self.picture()?.meta.compact_revision)
    }

    /// Waits until what a compaction to `revision` gave up is gone from this store.
    pub async fn compacted(&self, revision: i64) {
        self.physical.wait(revision).await;
    }

    /// Bytes that the versions of this keyspace take, old ones included, before compression.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Acquire).saturating_sub(self.physical.freed_bytes())
    }

    /// A hash over the versions up to a revision (0: the newest), equal on all stores at the same revision and
    /// compaction.
    ///
    /// # Errors
    /// The revision is compacted or in the future, or the engine fails.
    pub fn hash_kv(&self, revision: i64) -> Result<KvHash, ReadFailure> {
        let hashed = || {
            let picture = self.picture()?;
            let revision = if revision == 0 { picture.meta.revision } else { revision };
            if revision > picture.meta.revision {
                return Err(EtcdError::FutureRevision.into());
            }
            if revision < picture.meta.compact_revision {
                return Err(EtcdError::Compacted.into());
            }
            let hash = hash::versions(&picture, revision)?;
            Ok(KvHash {
                hash: hash::fold(hash),
                revision,
                compact_revision: picture.meta.compact_revision,
                current_revision: picture.meta.revision,
            })
        };
        hashed().map_err(ReadFailure)
    }

    /// A hash over everything: versions, revisions, leases, and which writes are remembered.
    ///
    /// # Errors
    /// The engine fails.
    pub fn hash(&self) -> Result<u32, StoreError> {
        hash::everything(&self.picture()?).map(hash::fold)
    }
}

/// Why a read has no answer.
#[derive(Debug)]
pub struct ReadFailure(pub(crate) Fault);

impl ReadFailure {
    /// What is wrong with the request, if it is the request's fault.
    #[must_use]
    pub fn refusal(&self) -> Option<EtcdError> {
        match &self.0 {
            Fault::Request(e) => Some(*e),
            Fault::Answer(_) | Fault::Store(_) => None,
        }
    }
}

impl fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Fault::Request(e) => f.write_str(e.message()),
            Fault::Answer(fault) => f.write_str(fault.status().message()),
            Fault::Store(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for ReadFailure {}

/// The answer to "hash the versions up to a revision".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// The hash.
    pub hash: u32,
    /// Up to which revision.
    pub revision: i64,
    /// What was compacted then.
    pub compact_revision: i64,
    /// The keyspace's revision then.
    pub current_revision: i64,
}

/// Whether a read at `revision` can be answered: `None` stands for the newest.
pub(crate) fn judge_revision(meta: &SlotMeta, revision: i64) -> Result<Option<i64>, EtcdError> {
    if revision <= 0 {
        return Ok(None);
    }
    if revision > meta.revision {
        return Err(EtcdError::FutureRevision);
    }
    if revision < meta.compact_revision {
        return Err(EtcdError::Compacted);
    }
    Ok((revision != meta.revision).then_some(revision))
}
