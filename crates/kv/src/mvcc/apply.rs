//! The state machine: commands in, records and replies out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use pontoon_node::state_machine::{
    Committed as Entry, MachineError, SnapshotReader, SnapshotSink, StateMachine,
};
use pontoon_proto::etcdserverpb::{
    AlarmResponse, AlarmType, AuthDisableResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse, PutRequest, PutResponse,
    ResponseHeader,
};
use pontoon_raft_core::types::{GroupId, LogIndex};

use crate::auth::{self, Caller};
use crate::background::Job;
use crate::check::check_key_len;
use crate::command::{Command, encode_reply, split_caller};
use crate::engine::{Engine, machine_error};
use crate::error::{EtcdError, Fault, StoreError};
use crate::mvcc::compaction;
use crate::mvcc::image::ImageSink;
use crate::mvcc::once::Verdict;
use crate::mvcc::records::KeyRange;
use crate::mvcc::state::Keyspace;
use crate::mvcc::writer::Writer;
use crate::mvcc::{range, restore, txn};
use crate::slots;
use crate::write_id::WriteId;

/// An etcd keyspace as a state machine. The apply worker owns it; everybody else reads through [`Keyspace`].
pub struct KeyspaceMachine {
    engine: Engine,
    shared: Arc<Keyspace>,
    writer: Writer,
    replies: BytesMut,
    /// A compaction was applied in this batch.
    compacted: bool,
    /// What became of leases in this batch.
    lease_changes: Vec<LeaseChange>,
    /// A restore has ended in this batch: there are leases that nobody has granted here.
    restored: bool,
    /// An engine failure left a batch half done in memory: nothing may be applied any more.
    broken: bool,
    /// The image that is being received, if any.
    staging: Option<crate::mvcc::image::StagingFlag>,
}

/// Stands for an answer that is too large to be remembered.
static NOT_KEPT: Bytes = Bytes::new();

/// The most leases of a keyspace: each takes some hundred bytes of memory. Part of the replicated state's rules.
pub(crate) const LEASES_MAX: u64 = 256 * 1024;

/// What the lessor has to hear of, once it is committed.
enum LeaseChange {
    Granted { id: i64, ttl_seconds: i64 },
    Ended { id: i64 },
}

impl fmt::Debug for KeyspaceMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyspaceMachine")
            .field("meta", &self.writer.meta)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

pub(crate) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl Drop for KeyspaceMachine {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl KeyspaceMachine {
    pub(crate) fn open(engine: &Engine, group: GroupId) -> Result<Self, StoreError> {
        let tables = engine.tables();
        let (slot, meta) = slots::live_or_new(engine, group)?;
        let writer = Writer::open(tables.clone(), slot, meta)?;
        let freed = compaction::cursor(&tables.db.snapshot(), tables, slot)?.freed_bytes;
        let shared = Keyspace::new(engine.clone(), slot, &writer.meta, writer.once.floor(), freed);
        let mut machine = Self {
            engine: engine.clone(),
            shared: Arc::new(shared),
            writer,
            replies: BytesMut::new(),
            compacted: false,
            lease_changes: Vec::new(),
            restored: false,
            broken: false,
            staging: None,
        };
        machine.load_leases()?;
        machine.publish();
        machine.engine.note_open(&machine.shared);
        machine.compact_in_background();
        Ok(machine)
    }

    /// The handle for reads.
    #[must_use]
    pub fn keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(&self.shared)
    }

    fn compact_in_background(&self) {
        let revision = self.writer.meta.compact_revision;
        if revision > 0 {
            self.shared.physical.wanted.store(revision, Ordering::Release);
            self.engine.submit(Job::Compact(Arc::clone(&self.shared.physical)));
        }
    }

    fn apply_batch(&mut self, batch: &[Entry]) -> Result<Vec<Bytes>, StoreError> {
        let mut replies = Vec::with_capacity(batch.len());
        for entry in batch {
            let applied = self.writer.meta.applied;
            if entry.index <= applied {
                // Applied before the restart.
                replies.push(Bytes::new());
                continue;
            }
            if entry.index != applied.next() {
                return Err(StoreError::damaged(format!(
                    "the log has a gap: expected entry {}, got {}",
                    applied.next(),
                    entry.index
                )));
            }
            let reply = match &entry.command {
                Some(command) => self.execute_once(command, entry)?,
                None => Bytes::new(),
            };
            replies.push(reply);
            self.writer.meta.applied = entry.index;
            self.writer.meta.term = entry.term;
            if std::mem::take(&mut self.writer.commit_soon) {
                self.writer.commit()?;
            }
        }
        self.commit()?;
        Ok(replies)
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.writer.commit()?;
        if !self.lease_changes.is_empty() {
            let now = Instant::now();
            let mut leases = self.shared.leases();
            for change in self.lease_changes.drain(..) {
                match change {
                    LeaseChange::Granted { id, ttl_seconds } => leases.granted(id, ttl_seconds, now),
                    LeaseChange::Ended { id } => leases.ended(id),
                }
            }
            drop(leases);
            self.engine.note_leased(&self.shared);
        }
        if std::mem::take(&mut self.restored) {
            self.load_leases()?;
        }
        self.publish();
        if let Some(forgotten) = self.writer.once.take_forgotten() {
            self.engine.submit(Job::Forget(forgotten));
        }
        if std::mem::take(&mut self.compacted) {
            self.compact_in_background();
        }
        Ok(())
    }

    /// Readers see what is committed.
    fn publish(&mut self) {
        let control = self.writer.take_changed_control();
        self.shared.publish(&self.writer.meta, self.writer.once.floor(), control);
    }

    /// The leases of a state that was opened or received.
    fn load_leases(&self) -> Result<(), StoreError> {
        let leases = self.writer.leases()?;
        self.shared.leases().load(leases.into_iter(), Instant::now());
        self.engine.note_leased(&self.shared);
        Ok(())
    }

    fn end_lease(&mut self, id: i64) -> Result<Result<LeaseRevokeResponse, EtcdError>, StoreError> {
        let result = settle(lease_revoke(&mut self.writer, id))?;
        if result.is_ok() {
            self.lease_changes.push(LeaseChange::Ended { id });
        }
        Ok(result)
    }

    /// Executes a command, unless it has a name and was executed before.
    fn execute_once(&mut self, command: &Bytes, entry: &Entry) -> Result<Bytes, StoreError> {
        let (id, command) = WriteId::split(command);
        let Some(id) = id else { return self.execute(&command, entry, entry.wants_reply) };
        match self.writer.judge(id, entry.index)? {
            Verdict::New => {
                // The answer is part of the state: every store makes it, whoever waits for it.
                let answer = self.execute(&command, entry, true)?;
                // Whether there was memory for a large one differs from store to store; that it is not kept does not.
                let left_out = self.writer.reply.left_out;
                self.writer.remember(id, entry.index, if left_out { &NOT_KEPT } else { &answer });
                self.writer.commit_soon |= self.writer.once.is_large();
                Ok(answer)
            }
            Verdict::Done(answer) => Ok(answer),
            Verdict::Refused(e) => Ok(self.reply(entry.wants_reply, &Err::<PutResponse, _>(e))),
        }
    }

    fn execute(&mut self, command: &Bytes, entry: &Entry, wants_reply: bool) -> Result<Bytes, StoreError> {
        let whose = split_caller(command).and_then(|(caller, c)| Ok((caller, Command::decode(&c)?)));
        let (caller, command) = match whose {
            Ok(both) => both,
            Err(e) => return Ok(self.reply(wants_reply, &Err::<PutResponse, _>(e))),
        };
        self.writer.wants_reply = wants_reply;
        self.writer.reply.begin();
        if let Err(e) = settle(self.judge(&caller, &command))? {
            return Ok(self.reply(wants_reply, &Err::<PutResponse, _>(e)));
        }
        let reply = match command {
            Command::Put(r) => {
                let result = settle(put(&mut self.writer, &r))?;
                self.reply(wants_reply, &result)
            }
            Command::DeleteRange(r) => {
                let result = settle(delete_range(&mut self.writer, &r))?;
                self.reply(wants_reply, &result)
            }
            Command::Txn(r) => {
                let result = settle(txn::execute(&mut self.writer, &r))?;
                self.reply(wants_reply, &result)
            }
            Command::Compact(r) => {
                let result = self.compact(&r);
                self.reply(wants_reply, &result)
            }
            Command::LeaseGrant(r) => {
                let result = settle(lease_grant(&mut self.writer, &r))?;
                if result.is_ok() {
                    self.lease_changes.push(LeaseChange::Granted { id: r.id, ttl_seconds: r.ttl });
                }
                self.reply(wants_reply, &result)
            }
            Command::LeaseRevoke(r) => {
                let result = self.end_lease(r.id)?;
                self.reply(wants_reply, &result)
            }
            Command::LeaseExpire { id, term } => {
                // Decided under another leader, who may have renewed it since.
                let result =
                    if term == entry.term.0 { self.end_lease(id)? } else { Err(EtcdError::NotLeader) };
                self.reply(wants_reply, &result)
            }
            Command::Alarm(r) => {
                let result = self.writer.control_mut().change_alarm(&r).map(|(member, writes)| {
                    self.writer.write_control(writes);
                    let alarms = member.into_iter().collect();
                    AlarmResponse { header: header(self.writer.revision()), alarms }
                });
                self.reply(wants_reply, &result)
            }
            Command::Quota { over, member } => {
                let writes = self.writer.control_mut().change_quota(over, member);
                self.writer.write_control(writes);
                self.reply_done(wants_reply)
            }
            Command::AutoCompact { revision } => {
                // Somebody may have compacted further meanwhile.
                let _ = self.compact(&CompactionRequest { revision, physical: false });
                self.reply_done(wants_reply)
            }
            Command::Auth(change) => {
                let result = self.writer.control_mut().change_auth(&change).map(|writes| {
                    self.writer.write_control(writes);
                    AuthDisableResponse { header: header(self.writer.revision()) }
                });
                self.reply(wants_reply, &result)
            }
            Command::Restore(step) => match settle(restore::execute(&mut self.writer, &step))? {
                Ok(complete) => {
                    self.restored |= complete;
                    self.compacted |= complete;
                    self.reply_done(wants_reply)
                }
                Err(e) => self.reply(wants_reply, &Err::<PutResponse, _>(e)),
            },
        };
        self.writer.end_of_command();
        Ok(reply)
    }

    /// Whether the state of the keyspace lets a caller do this at all.
    fn judge(&mut self, caller: &Caller, command: &Command) -> Result<(), Fault> {
        let control = Arc::clone(&self.writer.control);
        if control.restore().is_some() && !matches!(command, Command::Restore(_)) {
            return Err(EtcdError::Restoring.into());
        }
        let writer = &mut self.writer;
        auth::judge_command(&control.auth, caller, command, &mut |lease| writer.attached_now(lease))?;
        let needs_space = match command {
            Command::Put(_) | Command::LeaseGrant(_) => true,
            Command::Txn(r) => txn::puts(r),
            _ => false,
        };
        if needs_space && control.has_alarm(AlarmType::Nospace) {
            return Err(EtcdError::NoSpace.into());
        }
        let touches_data = needs_space
            || matches!(
                command,
                Command::DeleteRange(_) | Command::Txn(_) | Command::Compact(_) | Command::LeaseRevoke(_)
            );
        if touches_data && control.has_alarm(AlarmType::Corrupt) {
            return Err(EtcdError::Corrupt.into());
        }
        Ok(())
    }

    /// The answer to a command that has nothing to say.
    fn reply_done(&mut self, wanted: bool) -> Bytes {
        let done = AuthDisableResponse { header: header(self.writer.revision()) };
        self.reply(wanted, &Ok::<_, EtcdError>(done))
    }

    fn reply(&mut self, wanted: bool, result: &Result<impl prost::Message, EtcdError>) -> Bytes {
        if !wanted {
            return Bytes::new();
        }
        if let (Ok(_), Some(left_out)) = (result, self.writer.reply.refusal()) {
            return encode_reply(&mut self.replies, &Err::<PutResponse, _>(left_out));
        }
        let bytes = encode_reply(&mut self.replies, result);
        self.writer.reply.meter.hold(bytes)
    }

    fn compact(&mut self, r: &CompactionRequest) -> Result<CompactionResponse, EtcdError> {
        let meta = &mut self.writer.meta;
        if r.revision <= meta.compact_revision {
            return Err(EtcdError::Compacted);
        }
        if r.revision > meta.revision {
            return Err(EtcdError::FutureRevision);
        }
        meta.compact_revision = r.revision;
        self.compacted = true;
        Ok(CompactionResponse { header: header(self.writer.meta.revision) })
    }

    fn fail(&mut self, e: StoreError) -> MachineError {
        self.broken = true;
        machine_error(self.writer.meta.group, e)
    }

    fn usable(&self) -> Result<(), MachineError> {
        if self.broken {
            return Err(MachineError::new(format!(
                "keyspace of group {}: an earlier failure left it unusable until a restart",
                self.writer.meta.group
            )));
        }
        Ok(())
    }

    fn stage_image(&mut self, index: LogIndex) -> Result<ImageSink, StoreError> {
        if let Some(earlier) = self.staging.take() {
            earlier.cancel();
        }
        let group = self.writer.meta.group;
        slots::discard_overtaken(&self.engine, group, self.writer.meta.applied)?;
        let sink = ImageSink::new(&self.engine, group, index)?;
        self.staging = Some(sink.flag());
        Ok(sink)
    }

    fn activate_image(&mut self, index: LogIndex) -> Result<(), StoreError> {
        let activated = slots::activate(&self.engine, self.writer.slot, &self.writer.meta, index)?;
        let Some(activated) = activated else { return Ok(()) };
        let (tables, slot) = (self.engine.tables(), activated.slot);
        self.staging = None;
        self.writer = Writer::open(tables.clone(), slot, activated.meta.clone())?;
        let freed = compaction::cursor(&tables.db.snapshot(), tables, slot)?.freed_bytes;
        self.shared.physical.moved(slot, self.writer.meta.compact_revision, freed);
        self.load_leases()?;
        self.publish();
        self.compact_in_background();
        activated.clear_outdated(&self.engine);
        Ok(())
    }
}

/// The request's fault becomes a reply, the store's fault ends the machine.
fn settle<T>(result: Result<T, Fault>) -> Result<Result<T, EtcdError>, StoreError> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(Fault::Request(e)) => Ok(Err(e)),
        // What a command reads for its answer alone is left out instead (`Writer::replying`).
        Err(Fault::Answer(fault)) => Err(StoreError::damaged(format!("a command was cut short: {fault:?}"))),
        Err(Fault::Store(e)) => Err(e),
    }
}

impl StateMachine for KeyspaceMachine {
    fn applied(&self) -> LogIndex {
        self.writer.meta.applied
    }

    fn apply(&mut self, batch: &[Entry]) -> Result<Vec<Bytes>, MachineError> {
        self.usable()?;
        self.apply_batch(batch).map_err(|e| self.fail(e))
    }

    fn sync(&mut self) -> Result<LogIndex, MachineError> {
        self.usable()?;
        self.engine.tables().persist().map_err(|e| self.fail(e))?;
        Ok(self.writer.meta.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, MachineError> {
        self.usable()?;
        let reader = self.shared.image();
        Ok(Box::new(reader.map_err(|e| machine_error(self.writer.meta.group, e))?))
    }

    fn stage(&mut self, index: LogIndex) -> Result<Box<dyn SnapshotSink>, MachineError> {
        let sink = self.stage_image(index).map_err(|e| machine_error(self.writer.meta.group, e))?;
        Ok(Box::new(sink))
    }

    fn activate(&mut self, index: LogIndex) -> Result<(), MachineError> {
        self.activate_image(index).map_err(|e| self.fail(e))?;
        self.broken = false;
        Ok(())
    }
}

/// What must hold of a put before anything of its command is done.
pub(crate) fn judge_put(w: &Writer, r: &PutRequest) -> Result<(), Fault> {
    if r.key.is_empty() {
        return Err(EtcdError::EmptyKey.into());
    }
    check_key_len(&r.key)?;
    if (r.ignore_value || r.ignore_lease) && w.find(&r.key)?.is_none() {
        return Err(EtcdError::KeyNotFound.into());
    }
    if r.lease != 0 && !w.lease_exists(r.lease)? {
        return Err(EtcdError::LeaseNotFound.into());
    }
    Ok(())
}

fn put(w: &mut Writer, r: &PutRequest) -> Result<PutResponse, Fault> {
    if r.lease != 0 || r.ignore_value || r.ignore_lease {
        judge_put(w, r)?;
    } else if r.key.is_empty() {
        return Err(EtcdError::EmptyKey.into());
    } else {
        check_key_len(&r.key)?;
    }
    put_judged(w, r)
}

/// Writes a put that has been judged.
pub(crate) fn put_judged(w: &mut Writer, r: &PutRequest) -> Result<PutResponse, Fault> {
    let old = w.find(&r.key)?;
    let mut prev_kv = None;
    let mut value = r.value.clone();
    let mut lease = r.lease;
    if let Some(old) = old {
        if r.ignore_value || (r.prev_kv && w.wants_reply) {
            let kv = w.key_value(old.revision)?;
            if r.ignore_value {
                value = kv.value.clone();
            }
            if r.prev_kv && w.wants_reply {
                prev_kv = w.replying(|_, meter| Ok(range::charged(kv, meter)?))?;
            }
        }
        if r.ignore_lease {
            lease = old.lease;
        }
    }
    w.put(&r.key, &value, lease, old);
    Ok(PutResponse { header: header(w.revision()), prev_kv })
}

pub(crate) fn delete_range(w: &mut Writer, r: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Fault> {
    if r.key.is_empty() {
        return Err(EtcdError::EmptyKey.into());
    }
    let range = KeyRange::new(&r.key, &r.range_end);
    let mut prev_kvs = Vec::new();
    let mut deleted = 0;
    if let KeyRange::One(key) = range {
        if key.len() <= crate::mvcc::records::KEY_BYTES_MAX
            && let Some(old) = w.find(&r.key)?
        {
            if r.prev_kv && w.wants_reply {
                let kv = w.key_value(old.revision)?;
                prev_kvs.extend(w.replying(|_, meter| Ok(range::charged(kv, meter)?))?);
            }
            w.delete(&r.key, old);
            deleted = 1;
        }
    } else {
        if r.prev_kv && w.wants_reply {
            prev_kvs = w.replying(|w, meter| range::all(&w.working(), range, meter))?.unwrap_or_default();
        }
        for (key, old) in w.keys_in(range)? {
            w.delete(&key, old);
            deleted += 1;
        }
    }
    Ok(DeleteRangeResponse { header: header(w.revision()), deleted, prev_kvs })
}

fn lease_grant(w: &mut Writer, r: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Fault> {
    // Later commands of the batch look leases up where they are committed.
    w.commit()?;
    if r.id == 0 || w.lease_exists(r.id)? {
        return Err(EtcdError::LeaseExists.into());
    }
    if w.lease_count() >= LEASES_MAX {
        return Err(EtcdError::TooManyLeases.into());
    }
    w.grant(r.id, r.ttl);
    w.commit_soon = true;
    Ok(LeaseGrantResponse { header: header(w.revision()), id: r.id, ttl: r.ttl, error: String::new() })
}

fn lease_revoke(w: &mut Writer, id: i64) -> Result<LeaseRevokeResponse, Fault> {
    w.commit()?;
    if !w.lease_exists(id)? {
        return Err(EtcdError::LeaseNotFound.into());
    }
    for key in w.attached(id)? {
        if let Some(old) = w.find(&key)?
            && old.lease == id
        {
            w.delete(&key, old);
        }
    }
    w.revoke(id);
    w.commit_soon = true;
    Ok(LeaseRevokeResponse { header: header(w.revision()) })
}
