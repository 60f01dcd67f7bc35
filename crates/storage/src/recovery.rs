//! Opening a store: what is checked, what is repaired, what is refused.
//!
//! The one thing that is repaired is the last record, if it was torn: at most one round is on its way to the disk at a
//! time, so only the last record may be incomplete. Everything else that does not add up is told, and nothing is
//! changed.

use std::sync::Arc;
use std::time::Instant;

use crate::cold::contents::Contents;
use crate::cold::tier::{self, ColdTier, Place};
use crate::cold::{self, Changes, Cold};
use crate::config::Options;
use crate::disk::Disk;
use crate::error::OpenError;
use crate::header::Header;
use crate::journal::record::HEAD_BYTES;
use crate::journal::segment::{self, RECORDS_AT, Segment};
use crate::marker::{self, Marker, MarkerFile, Unreadable};
use crate::recent::Recent;
use crate::state::{LiveSegment, Shared, State};

pub(crate) mod replay;
pub(crate) mod scan;

use replay::Replay;
use scan::{Files, Scanned};

/// The first segment of a new store is at most this large, so that many stores can be made quickly.
const FIRST_SEGMENT_BYTES_MAX: u64 = 4 << 20;

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The directory was empty and is a store now.
    pub created: bool,
    /// Groups that exist.
    pub groups: usize,
    /// Entries in their logs.
    pub entries: u64,
    /// The number of the last batch.
    pub last_batch: u64,
    /// Segments that were read.
    pub segments: usize,
    /// The last record was not whole; it was cut off.
    pub torn_tail: Option<TornTail>,
    /// A last record that is not whole was usually never acknowledged: the process or the machine stopped while it was
    /// written. But damage of the last acknowledged record looks the same. While this is set, no replica of this store
    /// should vote, or count for a commit, until it has caught up with a leader that was elected without it. It stays
    /// set over restarts until `LogStore::settle_doubt`.
    pub doubt: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Where a torn record was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file.
    pub file: String,
    /// Where the record begins.
    pub offset: u64,
    /// The first batch it would have held.
    pub batch: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// An open store, before its threads run.
pub(crate) struct Recovered {
    pub(crate) shared: Shared,
    /// Where the writer goes on.
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    /// The number of the next segment file.
    pub(crate) next_file: u64,
    pub(crate) report: RecoveryReport,
}

pub(crate) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Recovered, OpenError> {
    let opened = Instant::now();
    let header = Header::read(&*disk)?;
    let found = read_marker(&*disk)?;
    let place = Place::new(Arc::clone(&disk), options.cold_cache_bytes);
    let (marker, created) = match found {
        Some(marker) => (marker, false),
        None => (create(&*disk, &place, &options, header.is_some())?, true),
    };
    let files = Files::read(&*disk, &marker)?;
    let cold = open_cold(&place, marker.cold_generation, true)?;
    let mut replay = Replay::default();
    let name = place.name(marker.cold_generation);
    let contents = replay.load_cold(&*cold, &marker, &name, files.entries_max())?;
    let scanned = scan::run(&files, &marker, |change| replay.apply(change))?;
    let tier = ColdTier::new(place, marker.cold_generation, cold, contents);
    finish(disk, tier, options, marker, header, replay, files, scanned, created, opened)
}

/// `MARKER`, if there is one.
pub(crate) fn read_marker(disk: &dyn Disk) -> Result<Option<Marker>, OpenError> {
    let file = marker::FILE.to_owned();
    Marker::read(disk).map_err(|unreadable| match unreadable {
        Unreadable::Io(source) => OpenError::Io { action: "read", path: file, source },
        Unreadable::Newer(found) => OpenError::NewerFormat { file, found, known: marker::FORMAT },
        Unreadable::Bad(what) => {
            let evidence = "it is only ever replaced as a whole".to_owned();
            OpenError::Damaged { file, offset: 0, what, evidence }
        }
    })
}

#[expect(clippy::too_many_arguments, reason = "the end of one long function, cut for reading")]
fn finish(
    disk: Arc<dyn Disk>,
    tier: ColdTier,
    options: Options,
    mut marker: Marker,
    header: Option<Header>,
    replay: Replay,
    files: Files,
    scanned: Scanned,
    created: bool,
    opened: Instant,
) -> Result<Recovered, OpenError> {
    let replayed = replay.finish()?;
    let next_file = files.next_number();
    let name = scanned.active.name.clone();
    let last_batch = scanned.next_batch - 1;

    // What is accepted here may be in the operating system's memory only, left there by a process that was killed.
    scanned.active.file.sync().map_err(OpenError::io("sync", &name))?;
    if !marker.cold_is_summed {
        // Before the marker of the new format says that the sum is there.
        let path = || tier.place.name(marker.cold_generation);
        let reason = |e: std::io::Error| OpenError::Cold { path: path(), reason: e.to_string() };
        tier.apply(Changes::default()).map_err(reason)?;
        tier.sync().map_err(reason)?;
        marker.cold_is_summed = true;
    }
    if replayed.checkpoint > marker.checkpoint {
        // Of a checkpoint that did not come to its end. Its number is used up: if the next one had it too, nobody could
        // tell whether that one's changes are there.
        let reason = |e: std::io::Error| OpenError::Cold {
            path: tier.place.name(marker.cold_generation),
            reason: e.to_string(),
        };
        tier.sync().map_err(reason)?;
        marker.checkpoint = replayed.checkpoint;
    }
    // The doubt is written down before its cause is removed.
    marker.clean = false;
    marker.doubt |= scanned.torn.is_some();
    marker.reached = marker.reached.max(last_batch);
    let journal = marker.journal;
    let doubt = marker.doubt;
    marker.write(&*disk).map_err(OpenError::io("write", marker::FILE))?;
    if let Some(torn) = &scanned.torn {
        tracing::warn!(
            file = torn.file,
            offset = torn.offset,
            reason = torn.reason,
            "cut off a torn last record"
        );
        erase(&scanned.active, scanned.offset).map_err(OpenError::io("cut the torn record off", &name))?;
    }
    for name in files.unfinished() {
        disk.remove(name).map_err(OpenError::io("remove", name))?;
    }
    let place = &tier.place;
    for generation in place.generations().map_err(OpenError::io("list", disk.place()))? {
        if generation != marker.cold_generation {
            let removed = place.remove(generation);
            removed.map_err(OpenError::io("remove the unused", place.name(generation)))?;
        }
    }

    let mut segments = scanned.live;
    segments
        .entry(scanned.active.id)
        .or_insert_with(|| LiveSegment::new(Arc::clone(&scanned.active), scanned.next_batch));
    let entries = replayed.entries;
    let report = RecoveryReport {
        created,
        groups: replayed.groups.len(),
        entries,
        last_batch,
        segments: segments.len(),
        torn_tail: scanned.torn,
        doubt,
        seconds: opened.elapsed().as_secs_f64(),
    };
    let state = State {
        groups: replayed.groups,
        tombs: replayed.tombs,
        notes: replayed.notes,
        header,
        queue: Default::default(),
        committing: false,
        pending_bytes: 0,
        next_batch: scanned.next_batch,
        durable: last_batch,
        segments,
        spares: scanned.spares.into(),
        spare_wanted: None,
        spare_error: None,
        retired: scanned.retired,
        recent: Recent::new(scanned.next_batch),
        garbage: replayed.garbage,
        failed: None,
        stopping: false,
        writer_gone: false,
    };
    let marker = MarkerFile::new(marker);
    let shared = Shared::new(options, disk, tier, marker, journal, opened, report.seconds, state);
    Ok(Recovered { shared, segment: scanned.active, offset: scanned.offset, next_file, report })
}

/// Overwrites the rest of a segment with zeroes, so that nothing of a torn record is ever looked at again.
fn erase(segment: &Segment, from: u64) -> std::io::Result<()> {
    let zeroes = vec![0; 1 << 20];
    let mut at = from;
    while at < segment.bytes {
        let n = (segment.bytes - at).min(zeroes.len() as u64);
        segment.file.write_at(at, &zeroes[..n as usize])?;
        at += n;
    }
    segment.file.sync()
}

/// Opens the cold tier; `must_be_there`, or it is made.
fn open_cold(place: &Place, generation: u64, must_be_there: bool) -> Result<Arc<dyn Cold>, OpenError> {
    let name = place.name(generation);
    if must_be_there && !place.has(generation).map_err(OpenError::io("look for", &name))? {
        return Err(OpenError::MissingFile {
            file: name,
            rule: "MARKER says that this store has a cold tier",
        });
    }
    place.open(generation).map_err(|e| OpenError::Cold { path: name, reason: e.to_string() })
}

/// Makes a new store. `MARKER` is written last: until it is there, nothing was ever acknowledged.
fn create(disk: &dyn Disk, place: &Place, options: &Options, has_header: bool) -> Result<Marker, OpenError> {
    let missing = |rule| OpenError::MissingFile { file: marker::FILE.to_owned(), rule };
    if has_header {
        return Err(missing("there is a HEADER, so this was a working store"));
    }
    let names = disk.list().map_err(OpenError::io("list", disk.place()))?;
    for name in names.iter().filter(|name| segment::file_number(name).is_some()) {
        let file = disk.open(name).map_err(OpenError::io("open", name))?;
        let mut head = [0; HEAD_BYTES];
        if file.read_at(RECORDS_AT, &mut head).is_ok() && head != [0; HEAD_BYTES] {
            return Err(missing("there are journal segments with records"));
        }
    }
    if place
        .generations()
        .map_err(OpenError::io("list", disk.place()))?
        .iter()
        .any(|generation| *generation > 0)
    {
        return Err(missing("the cold tier has been rewritten"));
    }
    let cold = open_cold(place, 0, false)?;
    let reason = |e: std::io::Error| OpenError::Cold { path: place.name(0), reason: e.to_string() };
    if cold.get(&cold::checkpoint_key()).map_err(reason)?.is_some() {
        return Err(missing("the cold tier has been written by a checkpoint"));
    }
    for name in names.iter().filter(|name| segment::file_number(name).is_some()) {
        disk.remove(name).map_err(OpenError::io("remove", name))?;
    }
    let journal = random();
    let mut changes = Changes::default();
    changes.put(cold::journal_key(), cold::encode_number(journal));
    // An earlier try may have left its own journal id.
    let mut contents = Contents::default();
    if let Some(old) = cold.get(&cold::journal_key()).map_err(reason)? {
        contents.add(&cold::journal_key(), &old);
    }
    tier::apply_to(&*cold, contents, changes).map_err(reason)?;
    cold.sync().map_err(reason)?;
    disk.sync_names().map_err(OpenError::io("sync", disk.place()))?;
    let name = segment::file_name(1);
    let bytes = options.segment_bytes.min(FIRST_SEGMENT_BYTES_MAX);
    segment::make(disk, &name, journal, 1, bytes, &|| ()).map_err(OpenError::io("create", &name))?;
    let marker = Marker {
        journal,
        start_segment: 1,
        start_batch: 1,
        checkpoint: 0,
        reached: 0,
        clean: false,
        doubt: false,
        cold_generation: 0,
        cold_is_summed: true,
        format: marker::FORMAT,
    };
    marker.write(disk).map_err(OpenError::io("write", marker::FILE))?;
    Ok(marker)
}

/// A number that no other store has: the standard library's hash keys are random.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u128(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos()),
    );
    hasher.write_u32(std::process::id());
    hasher.finish()
}
