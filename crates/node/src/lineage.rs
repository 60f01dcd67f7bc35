//! Whether a process may act as the store that it says it is.
//!
//! Raft is safe as long as no store forgets a vote or an acknowledgement. A store id says nothing about that: an empty
//! directory under an old name, an older copy of a directory, or a clone that runs beside the original have the id and
//! not the memory. So stores remember each other's directories, and take nothing from a process that does not fit.
//!
//! # What is said and remembered
//! A data directory has a *lineage*, drawn when it is made, and counts its *starts*; both are durable before the process
//! says its first hello. A hello has them, a number that is random for each process (its *incarnation*), the last batch
//! of the log that it *opened* with, and the last one that is durable now, its *reach*, which every later frame has
//! too. For each other store a store remembers the lineage, the latest start with its incarnation, and the farthest
//! reach: the first three durably before it takes the first Raft message of that process (the lineage of a store that it
//! meets for the first time: before it answers its hello), the reach in memory, and durably when a connection begins to
//! carry Raft messages and when it is lost.
//!
//! # The rule
//! A process of a store that is known is taken if its lineage is the known one, and
//! - its start is later than the known one, and it opened at or after the known reach: a restart; or
//! - its start is later than the known one, and it says that it is in doubt; or
//! - its start and incarnation are the known ones: the same process again.
//!
//! Everything else is refused for good, in both directions, and the refused one stops and notes in its directory that
//! it may never start again. A hello is judged and leaves no trace: otherwise a copy that one peer takes and another one
//! refuses would lock the right directory out at the first. A store that is not known is taken as it comes, and known from then on. (While a process
//! is connected and alive, a second one is not even judged: `pontoon-transport` turns it away.)
//!
//! **Introduction.** A new directory opens no group, so it neither votes nor acknowledges, before every other store of
//! its first configuration has taken it once ([`Node::introduce`](crate::Node::introduce)). Until then its own refusals
//! are not final. A directory that is not new opens its groups when every other store has taken it or cannot be reached.
//!
//! # Why that is enough
//! - *Wiped.* Say two lineages of one store have both passed their introduction. Each other store has taken both, but a
//!   store takes only one lineage ever, as long as its own directory lasts. So all other stores were wiped too, or there
//!   are none. As long as one directory of the others is left that knew the store, an empty one never votes.
//! - *Older copy.* Every vote or acknowledgement that counted was received by somebody, with a reach that covers it,
//!   after its receiver had made that start durable. The receiver refuses the copy: if it was made before that start,
//!   by the start; if it was made during that start, by the reach. One receiver that can be reached is enough, because
//!   the copy hears its refusal before it opens a group.
//! - *Clone.* A receiver takes one process at a time. The later one has a later start and all that the receiver was
//!   told of, or is refused.
//! - *Restarts are never refused.* Start and lineage are durable before anybody hears them, and a reach is told only when
//!   it is durable: what comes back after any crash has a later start and at least the reach. A start that nobody
//!   heard of only leaves a gap in the numbers.
//!
//! # What it cannot see
//! A store judges by what it knows itself and by the registry. If A took part with B only, and then an older copy of A
//! comes up while B is down, C cannot tell that from a restart, unless it has heard of the later start: A announces each
//! start in the registry. The same holds while B is cut off from both. The reach that a process told last is in memory only
//! until the connection to it is lost: if everybody who heard it is killed in the same moment as it, a copy made during
//! that last start is taken for a restart.
//!
//! # Doubt
//! A disk that damages the last record that it had confirmed makes a shorter log, too, and the log store cannot tell that
//! from a record that was torn while it was written (`RecoveryReport::doubt`). Such a store is taken, and its reach is
//! counted anew from what it has: its replicas say that they are in doubt, and neither elect nor count before a leader has
//! brought back all that they may have forgotten, however much that is (`pontoon_raft_core`'s `doubt.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use pontoon_raft_core::types::StoreId;
use pontoon_storage::{LogStore, NoteError};
use pontoon_transport::{Claim, Identity, Unwelcome};
use tokio::sync::watch;

mod given_up;

pub use given_up::give_up_stores;

/// The note of this directory itself.
const OWN_NOTE: &str = "lineage";
/// The first byte of the notes.
const NOTE_VERSION: u8 = 1;
/// How a mark begins in the note.
const REFUSED: u8 = 1;
const REMOVED: u8 = 2;
/// When a store that waits for its introduction says so first: stores that start together have met by then.
const SOON: Duration = Duration::from_secs(2);
/// How often it says so from then on.
const STILL_WAITING: Duration = Duration::from_secs(10);

/// What this directory says of itself, or of others, cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// The note cannot be written.
    #[error("cannot note the start of this store")]
    Note(#[from] NoteError),
    /// A note is not as this version writes it.
    #[error("the note {key:?} of the log store cannot be read: it is of a newer version; start that one")]
    Unreadable {
        /// Which.
        key: String,
    },
    /// The directory was refused for good in an earlier start.
    #[error("this data directory was refused for good: {reason}")]
    Fenced {
        /// Why, in the words of whoever refused it.
        reason: String,
        /// Its store left the cluster, or was removed from it.
        removed: bool,
    },
}

/// This store was refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// Who refused it; `None`: the registry says it.
    pub by: Option<StoreId>,
    /// Why.
    pub reason: String,
    /// The store left the cluster, or was removed from it; else its directory has forgotten something.
    pub removed: bool,
}

/// What a directory notes of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    lineage: u64,
    start: u64,
    introduced: bool,
    fenced: Option<Mark>,
}

/// Why a directory may never start again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    reason: String,
    removed: bool,
}

/// What is remembered of another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    lineage: u64,
    /// The latest start.
    start: u64,
    /// The process of that start; 0: not seen, only heard of.
    incarnation: u64,
    /// The last batch that it said was durable.
    reached: u64,
}

/// Why a process is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Misfit {
    #[error(
        "it says nothing of its data directory, as an older version does, and has done so before; start this version, \
         or a newer one"
    )]
    Silent,
    #[error(
        "its data directory is not the one that the store ran on (lineage {found:016x}, known is {known:016x}): an empty \
         or foreign one has forgotten the store's votes and acknowledged writes"
    )]
    OtherDirectory { found: u64, known: u64 },
    #[error(
        "its data directory is an older copy: this would be its start {found}, and start {known} is known; it has \
         forgotten votes and acknowledged writes"
    )]
    OlderStart { found: u64, known: u64 },
    #[error(
        "its data directory is a copy: start {start} is known of another process; one of the two would forget the other's \
         votes and acknowledged writes"
    )]
    SameStart { start: u64 },
    #[error(
        "its data directory is an older copy, or has lost writes: its log ended with batch {found}, and it had said that \
         batch {known} is durable"
    )]
    Shorter { found: u64, known: u64 },
}

impl Misfit {
    /// Whether the directory can never fit again.
    fn is_final(self) -> bool {
        self != Self::Silent
    }
}

/// The rule: what is known of a store after one of its processes has said `claim`; `None` if nothing is.
fn judge(known: Option<Known>, claim: Option<Claim>) -> Result<Option<Known>, Misfit> {
    let (known, claim) = match (known, claim) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Misfit::Silent),
        (known, Some(claim)) => (known, claim),
    };
    let Identity { lineage, start, opened_at, in_doubt } = claim.identity;
    let mut next =
        Known { lineage, start, incarnation: claim.incarnation, reached: claim.reached.max(opened_at) };
    let Some(known) = known else { return Ok(Some(next)) };
    if lineage != known.lineage {
        return Err(Misfit::OtherDirectory { found: lineage, known: known.lineage });
    }
    if start < known.start {
        return Err(Misfit::OlderStart { found: start, known: known.start });
    }
    let is_seen = start == known.start && known.incarnation != 0;
    if is_seen && claim.incarnation != known.incarnation {
        return Err(Misfit::SameStart { start });
    }
    if !is_seen && in_doubt {
        // It says itself that it may have forgotten, and its replicas count for nothing until they have everything again.
        return Ok(Some(next));
    }
    if !is_seen && opened_at < known.reached {
        return Err(Misfit::Shorter { found: opened_at, known: known.reached });
    }
    next.reached = next.reached.max(known.reached);
    Ok(Some(next))
}

/// At most so many threads wait for one note: two lanes of each of some peers. More would only be there while the disk
/// hangs, and would hold the threads that others need.
const JUDGEMENTS_MAX: usize = 32;

/// A place among them.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(places: &'a AtomicUsize) -> Option<Self> {
        let place = Self(places);
        (places.fetch_add(1, Ordering::AcqRel) < JUDGEMENTS_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Who this store is, and what it remembers of the others.
#[derive(Debug)]
pub(crate) struct Lineages {
    log: LogStore,
    identity: Identity,
    /// As in its note; the lock is held while that is written.
    own: Mutex<Own>,
    introduced: AtomicBool,
    peers: Mutex<Peers>,
    /// One judgement at a time; held while a note is written, which the other locks are not.
    judging: Mutex<()>,
    /// Those that wait for it, each on a thread.
    judgements: AtomicUsize,
    /// The stores that have taken this one since it started.
    welcomed_by: watch::Sender<BTreeSet<StoreId>>,
    /// Set at once; `fenced` follows when it is noted.
    refused_for_good: AtomicBool,
    fenced: watch::Sender<Option<Fenced>>,
    /// The stores that a recovery has given up.
    given_up: BTreeSet<StoreId>,
    /// The stores that are no members any more, and why.
    removed: Mutex<BTreeMap<StoreId, String>>,
    /// Where the others say that they are to be dialled.
    advertised: watch::Sender<BTreeMap<StoreId, String>>,
}

#[derive(Debug, Default)]
struct Peers {
    known: BTreeMap<StoreId, Known>,
    /// Processes that were refused since one of their store was last taken, and why.
    refused: BTreeMap<StoreId, String>,
}

/// Gives a new directory its lineage, drawn at random; one that has a lineage keeps it. Call it before anything else is
/// written: a log without a lineage counts as one of a version that knew none, and needs no introduction.
///
/// # Errors
/// The note cannot be written.
pub fn create_lineage(log: &LogStore, random: u64) -> Result<(), LineageError> {
    if log.note(OWN_NOTE).is_some() {
        return Ok(());
    }
    write_own(log, &Own { lineage: random.max(1), start: 0, introduced: false, fenced: None })?;
    Ok(())
}

/// As [`create_lineage`], for the directory of a store that joins a cluster, and tells the lineage. It needs no introduction:
/// its id is new, and the cluster's registry takes it with this lineage and no other.
///
/// # Errors
/// As there.
pub fn create_joining_lineage(log: &LogStore, random: u64) -> Result<u64, LineageError> {
    if let Some(own) = read_own(log)? {
        return Ok(own.lineage);
    }
    let own = Own { lineage: random.max(1), start: 0, introduced: true, fenced: None };
    write_own(log, &own)?;
    Ok(own.lineage)
}

impl Lineages {
    /// Counts this start, durably. `random` becomes the lineage of a directory that has none.
    pub(crate) fn begin(log: &LogStore, random: u64) -> Result<Self, LineageError> {
        let opened_at = log.durable_batch().0;
        let known = Own { lineage: random.max(1), start: 0, introduced: true, fenced: None };
        let mut own = read_own(log)?.unwrap_or(known);
        if let Some(Mark { reason, removed }) = own.fenced {
            return Err(LineageError::Fenced { reason, removed });
        }
        let given_up = given_up::read(log)?;
        let in_doubt = log.in_doubt();
        // The record that may be missing may be the note of the latest start.
        own.start = own.start.saturating_add(if in_doubt { 2 } else { 1 });
        write_own(log, &own)?;
        let identity = Identity { lineage: own.lineage, start: own.start, opened_at, in_doubt };
        Ok(Self {
            log: log.clone(),
            identity,
            introduced: AtomicBool::new(own.introduced),
            own: Mutex::new(own),
            peers: Mutex::default(),
            judging: Mutex::new(()),
            judgements: AtomicUsize::new(0),
            welcomed_by: watch::Sender::default(),
            refused_for_good: AtomicBool::new(false),
            fenced: watch::Sender::default(),
            given_up,
            removed: Mutex::default(),
            advertised: watch::Sender::default(),
        })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`pontoon_transport::Inbound::meet`]. Blocks on the disk for a store of which nothing is known.
    pub(crate) fn meet(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        let known = self.known(from).map_err(|error| passing(error.to_string()))?;
        if known.is_none() {
            // Durable before the answer: it may be all that this directory lacks to be introduced.
            return self.admit(from, claim);
        }
        self.ruling(from, judge(known, claim)).map(|_| ())
    }

    /// See [`pontoon_transport::Inbound::admit`]. Blocks on the disk.
    pub(crate) fn admit(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        let Some(_place) = Place::take(&self.judgements) else {
            return Err(passing("too many wait for this store's disk".to_owned()));
        };
        let _one_at_a_time = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known(from).map_err(|error| passing(error.to_string()))?;
        if let Some(next) = self.ruling(from, judge(known, claim))? {
            // Also when only the reach has grown: this may follow a restart of this store, which forgot it.
            self.remember(from, next).map_err(|error| passing(format!("cannot remember it: {error}")))?;
            self.keep(from, next);
        }
        Ok(())
    }

    /// Keeps for the status what came of a judgement.
    fn ruling(
        &self,
        from: StoreId,
        judged: Result<Option<Known>, Misfit>,
    ) -> Result<Option<Known>, Unwelcome> {
        match judged {
            Ok(next) => {
                self.peers().refused.remove(&from);
                Ok(next)
            }
            Err(misfit) => {
                self.peers().refused.insert(from, misfit.to_string());
                Err(self.unwelcome(misfit))
            }
        }
    }

    fn unwelcome(&self, misfit: Misfit) -> Unwelcome {
        // Whoever is not introduced may itself be the one that has forgotten.
        let final_ = misfit.is_final() && self.is_introduced();
        Unwelcome { final_, reason: misfit.to_string() }
    }

    fn remember(&self, store: StoreId, known: Known) -> Result<(), NoteError> {
        let (key, note) = (peer_note(store), encode_known(known));
        if self.log.note(&key).as_deref() == Some(note.as_slice()) {
            return Ok(());
        }
        self.log.put_note(&key, &note)
    }

    /// The connection to a store is lost: what it told last is made durable, in case this store restarts before that one
    /// is back.
    pub(crate) fn lost(self: &Arc<Self>, store: StoreId) {
        let this = Arc::clone(self);
        // The caller is a task of the transport, which must not wait for the disk.
        tokio::task::spawn_blocking(move || {
            let Some(_place) = Place::take(&this.judgements) else { return };
            let _one_at_a_time = this.judging.lock().unwrap_or_else(PoisonError::into_inner);
            let known = this.peers().known.get(&store).copied();
            if let Some(Err(error)) = known.map(|known| this.remember(store, known)) {
                tracing::debug!(%store, %error, "cannot note how far a store was");
            }
        });
    }

    /// Never forgets a reach that came while the note was written, unless the store starts again from less, in doubt.
    fn keep(&self, store: StoreId, mut next: Known) {
        let mut peers = self.peers();
        if let Some(present) = peers.known.get(&store)
            && (present.start == next.start || next.reached >= present.reached)
        {
            next.reached = next.reached.max(present.reached);
        }
        peers.known.insert(store, next);
    }

    /// What is known of a store, in memory or in its note.
    fn known(&self, store: StoreId) -> Result<Option<Known>, LineageError> {
        if let Some(known) = self.peers().known.get(&store) {
            return Ok(Some(*known));
        }
        let key = peer_note(store);
        let Some(note) = self.log.note(&key) else { return Ok(None) };
        decode_known(&note).map(Some).ok_or(LineageError::Unreadable { key })
    }

    /// See [`pontoon_transport::Inbound::reached`].
    pub(crate) fn reached(&self, from: StoreId, batch: u64) {
        if let Some(known) = self.peers().known.get_mut(&from) {
            known.reached = known.reached.max(batch);
        }
    }

    /// The registry says that `store` has this lineage and has begun this start.
    /// Waits for a judgement under way, which may be writing a note.
    pub(crate) fn learn(self: &Arc<Self>, own: StoreId, store: StoreId, lineage: u64, start: u64) {
        if lineage == 0 {
            return;
        }
        if store == own {
            let known = Known { lineage, start, incarnation: 0, reached: 0 };
            let claim = Claim { identity: self.identity, incarnation: 1, reached: self.identity.opened_at };
            if let Err(misfit) = judge(Some(known), Some(claim)) {
                self.fence(Fenced { by: None, reason: misfit.to_string(), removed: false });
            }
            return;
        }
        let _one_at_a_time = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Known { lineage, start, incarnation: 0, reached: 0 };
        match self.known(store) {
            Ok(Some(known)) if known.lineage == lineage && known.start >= start => {}
            Ok(Some(known)) if known.lineage == lineage => {
                self.keep(store, Known { reached: known.reached, ..heard });
            }
            // A majority has taken another lineage than this store saw first.
            Ok(Some(_)) => {
                self.peers().known.insert(store, heard);
            }
            Ok(None) => self.keep(store, heard),
            Err(error) => tracing::error!(%store, %error, "cannot compare a store with the registry"),
        }
    }

    /// See [`pontoon_transport::Inbound::link_up`].
    pub(crate) fn welcomed(&self, by: StoreId) {
        self.welcomed_by.send_if_modified(|stores| stores.insert(by));
    }

    /// Whether every other store of the first configuration has taken this directory once.
    pub(crate) fn is_introduced(&self) -> bool {
        self.introduced.load(Ordering::Acquire)
    }

    /// Waits until all of these stores have taken this directory, and notes it.
    pub(crate) async fn introduce(
        self: &Arc<Self>,
        to: &BTreeMap<StoreId, String>,
    ) -> Result<(), LineageError> {
        let mut welcomed = self.welcomed_by.subscribe();
        let mut patience = SOON;
        loop {
            let all = welcomed.wait_for(|by| to.keys().all(|store| by.contains(store)));
            match tokio::time::timeout(patience, all).await {
                // The sender lives as long as `self`.
                Ok(_) => break,
                Err(_) => {
                    patience = STILL_WAITING;
                    let by = self.welcomed_by.borrow().clone();
                    let missing: Vec<_> = to
                        .iter()
                        .filter(|(store, _)| !by.contains(store))
                        .map(|(_, name)| name.as_str())
                        .collect();
                    tracing::info!(
                        missing = missing.join(", "),
                        "a new store votes only after all others of its cluster have met it once: waiting"
                    );
                }
            }
        }
        let this = Arc::clone(self);
        let noted = tokio::task::spawn_blocking(move || {
            let mut own = this.own();
            own.introduced = true;
            write_own(&this.log, &own)?;
            this.introduced.store(true, Ordering::Release);
            Ok(())
        });
        // Fails only while the runtime stops.
        noted.await.unwrap_or(Ok(()))
    }

    /// This store may not go on. Remembered in the directory, so that it never starts again.
    pub(crate) fn fence(self: &Arc<Self>, fenced: Fenced) {
        self.refused_for_good.store(true, Ordering::Release);
        let this = Arc::clone(self);
        let note = move || {
            let noted = {
                let mut own = this.own();
                if own.fenced.is_some() {
                    return;
                }
                own.fenced = Some(Mark { reason: fenced.reason.clone(), removed: fenced.removed });
                write_own(&this.log, &own)
            };
            if let Err(error) = noted {
                tracing::error!(%error, "cannot note that this store was refused for good");
            }
            this.fenced.send_replace(Some(fenced));
        };
        // The caller may be a task of the transport, which must not wait for the disk.
        tokio::task::spawn_blocking(note);
    }

    /// Whether this store was refused for good.
    pub(crate) fn is_fenced(&self) -> bool {
        self.refused_for_good.load(Ordering::Acquire)
    }

    /// Waits until this store is refused for good.
    pub(crate) async fn fenced(&self) -> Fenced {
        let mut fenced = self.fenced.subscribe();
        let found = fenced.wait_for(Option::is_some).await;
        match found.ok().and_then(|f| f.clone()) {
            Some(fenced) => fenced,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// These stores are no members any more; whoever speaks for one is told so.
    pub(crate) fn set_removed(&self, removed: BTreeMap<StoreId, String>) {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = removed;
    }

    /// See [`pontoon_transport::Inbound::removed`].
    pub(crate) fn removed(&self, store: StoreId) -> Option<String> {
        if self.given_up.contains(&store) {
            return Some(given_up::REASON.to_owned());
        }
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).get(&store).cloned()
    }

    /// See [`pontoon_transport::Inbound::advertised`].
    pub(crate) fn advertise(&self, from: StoreId, address: &str) {
        self.advertised.send_if_modified(|known| {
            let changed = known.get(&from).is_none_or(|known| known != address);
            if changed {
                known.insert(from, address.to_owned());
            }
            changed
        });
    }

    pub(crate) fn advertised(&self) -> watch::Receiver<BTreeMap<StoreId, String>> {
        self.advertised.subscribe()
    }

    /// Who has taken this store since it started.
    pub(crate) fn welcomed_by(&self) -> BTreeSet<StoreId> {
        self.welcomed_by.borrow().clone()
    }

    /// The stores of which a process was refused since one was last taken, and why.
    pub(crate) fn refused(&self) -> BTreeMap<StoreId, String> {
        self.peers().refused.clone()
    }
}

/// A refusal that may change.
fn passing(reason: String) -> Unwelcome {
    Unwelcome { final_: false, reason }
}

fn peer_note(store: StoreId) -> String {
    format!("lineage/{:016x}", store.0)
}

fn write_own(log: &LogStore, own: &Own) -> Result<(), NoteError> {
    let mut note = vec![NOTE_VERSION];
    note.put_u64_le(own.lineage);
    note.put_u64_le(own.start);
    note.put_u8(u8::from(own.introduced));
    if let Some(Mark { reason, removed }) = &own.fenced {
        note.put_u8(if *removed { REMOVED } else { REFUSED });
        note.put_slice(reason.as_bytes());
    }
    log.put_note(OWN_NOTE, &note)
}

fn read_own(log: &LogStore) -> Result<Option<Own>, LineageError> {
    let Some(note) = log.note(OWN_NOTE) else { return Ok(None) };
    let mut bytes = &note[..];
    let unreadable = || LineageError::Unreadable { key: OWN_NOTE.to_owned() };
    if bytes.len() < 18 || bytes.get_u8() != NOTE_VERSION {
        return Err(unreadable());
    }
    let (lineage, start, introduced) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u8() != 0);
    let fenced = bytes.split_first().map(|(kind, reason)| Mark {
        reason: String::from_utf8_lossy(reason).into_owned(),
        removed: *kind == REMOVED,
    });
    Ok(Some(Own { lineage, start, introduced, fenced }))
}

fn encode_known(known: Known) -> Vec<u8> {
    let mut note = vec![NOTE_VERSION];
    for number in [known.lineage, known.start, known.incarnation, known.reached] {
        note.put_u64_le(number);
    }
    note
}

fn decode_known(mut note: &[u8]) -> Option<Known> {
    if note.len() != 33 || note.get_u8() != NOTE_VERSION {
        return None;
    }
    Some(Known {
        lineage: note.get_u64_le(),
        start: note.get_u64_le(),
        incarnation: note.get_u64_le(),
        reached: note.get_u64_le(),
    })
}

#[cfg(test)]
mod tests;
