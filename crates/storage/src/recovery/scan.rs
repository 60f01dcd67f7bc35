//! Reading the journal: which segments there are, and every record from the journal's begin to its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use pontoon_raft_core::types::{GroupId, Term};

use crate::codec::{Change, Decoder, ENTRY_HEAD, Item};
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;
use crate::journal::record::{self, Found, HEAD_BYTES, Head};
use crate::journal::segment::{self, FORMAT, Header, RECORDS_AT, Segment};
use crate::marker::Marker;
use crate::recovery::TornTail;
use crate::state::LiveSegment;

/// How much of a file is looked at together where nothing is known of it; a multiple of eight.
const NAMELESS_WINDOW_BYTES: usize = 1 << 20;

/// The segment files of a store.
#[derive(Debug)]
pub(crate) struct Files {
    by_id: BTreeMap<u32, Arc<Segment>>,
    /// Files whose header is unreadable: spares that were being made, or damage.
    nameless: Vec<Arc<Segment>>,
    unfinished: Vec<String>,
    highest_number: u64,
}

impl Files {
    pub(crate) fn read(disk: &dyn Disk, marker: &Marker) -> Result<Self, OpenError> {
        let mut files =
            Self { by_id: BTreeMap::new(), nameless: Vec::new(), unfinished: Vec::new(), highest_number: 0 };
        for name in disk.list().map_err(OpenError::io("list", disk.place()))? {
            // Small files are replaced under a fixed name; only a segment's unfinished file would stay for ever.
            if name.strip_suffix(".tmp").is_some_and(|of| segment::file_number(of).is_some()) {
                files.unfinished.push(name);
                continue;
            }
            let Some(number) = segment::file_number(&name) else { continue };
            files.highest_number = files.highest_number.max(number);
            let file = disk.open(&name).map_err(OpenError::io("open", &name))?;
            let header = segment::read_header(&*file).map_err(OpenError::io("read", &name))?;
            let len = file.len().map_err(OpenError::io("read", &name))?;
            files.add(name, file, header, len, marker)?;
        }
        Ok(files)
    }

    fn add(
        &mut self,
        name: String,
        file: Arc<dyn DiskFile>,
        header: Header,
        len: u64,
        marker: &Marker,
    ) -> Result<(), OpenError> {
        match header {
            Header::Newer(found) => return Err(OpenError::NewerFormat { file: name, found, known: FORMAT }),
            Header::Good { journal, .. } if journal != marker.journal => {
                return Err(OpenError::Foreign { file: name, found: journal, expected: marker.journal });
            }
            Header::Good { bytes, .. } if bytes != len => {
                let what = format!("the file has {len} bytes, its header says {bytes}");
                let evidence = "segments are made whole before they get their name".to_owned();
                return Err(OpenError::Damaged { file: name, offset: 0, what, evidence });
            }
            Header::Good { id, .. } => {
                let Some(id) = segment::id(id) else {
                    return Err(OpenError::Damaged {
                        file: name,
                        offset: 0,
                        what: format!("it says that it is segment {id}, which no segment can be"),
                        evidence: "the header's checksum is good: it was written like this".to_owned(),
                    });
                };
                let segment = Arc::new(Segment { id, name, file, bytes: len });
                if let Some(other) = self.by_id.insert(id, Arc::clone(&segment)) {
                    return Err(OpenError::Damaged {
                        file: segment.name.clone(),
                        offset: 0,
                        what: format!("it says that it is segment {id}, as {} does", other.name),
                        evidence: "an id is given once".to_owned(),
                    });
                }
            }
            Header::Bad => self.nameless.push(Arc::new(Segment { id: 0, name, file, bytes: len })),
        }
        Ok(())
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.highest_number + 1
    }

    /// There are no more entries than this in all segments together.
    pub(crate) fn entries_max(&self) -> u64 {
        self.by_id.values().map(|segment| segment.bytes / ENTRY_HEAD as u64).sum()
    }

    pub(crate) fn unfinished(&self) -> &[String] {
        &self.unfinished
    }
}

/// What the journal held.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) live: BTreeMap<u32, LiveSegment>,
    /// The segment to go on in, and where.
    pub(crate) active: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) next_batch: u64,
    pub(crate) torn: Option<TornTail>,
    pub(crate) spares: Vec<Arc<Segment>>,
    pub(crate) retired: Vec<Arc<Segment>>,
}

/// One change of a group or a note, and where it was found.
#[derive(Debug)]
pub(crate) struct Replayed<'a> {
    pub(crate) batch: u64,
    /// Where the batch begins in the record's body.
    pub(crate) batch_at: u32,
    /// Where the record's body begins in the segment.
    pub(crate) body_at: u32,
    pub(crate) file: &'a str,
    /// The record's body: places of entries count from its begin.
    pub(crate) body: &'a [u8],
    pub(crate) item: ReplayedItem,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "lives for one call, and the large one is the usual one")]
pub(crate) enum ReplayedItem {
    Group(Change<'static>),
    Note(String, bytes::Bytes),
    Leads(GroupId, Term),
}

/// How a segment's records ended.
struct End {
    offset: usize,
    bad: Option<&'static str>,
}

/// Reads the journal and hands each change to `apply`.
pub(crate) fn run(
    files: &Files,
    marker: &Marker,
    mut apply: impl FnMut(Replayed<'_>) -> Result<(), OpenError>,
) -> Result<Scanned, OpenError> {
    check_nameless(files, marker)?;
    let mut segment = files.by_id.get(&marker.start_segment).ok_or_else(|| OpenError::MissingFile {
        file: format!("journal segment {}", marker.start_segment),
        rule: "MARKER says that the journal begins there",
    })?;
    let mut next_batch = marker.start_batch;
    let mut live = BTreeMap::new();
    let mut bytes = Vec::new();
    let end = loop {
        read_whole(segment, &mut bytes)?;
        let mut found = LiveSegment::new(Arc::clone(segment), next_batch);
        let end = scan_segment(&mut found, &bytes, &mut next_batch, &mut apply)?;
        live.insert(segment.id, found);
        if let Some((at, head)) = record::find_after(&bytes, end.offset, u64::from(segment.id)) {
            return Err(OpenError::Damaged {
                file: segment.name.clone(),
                offset: end.offset as u64,
                what: end.bad.unwrap_or("the record is gone").to_owned(),
                evidence: format!("a whole later record (batch {}) begins at offset {at}", head.first_batch),
            });
        }
        let Some(next) = files.by_id.get(&(segment.id + 1)) else { break end };
        match first_record(next)? {
            Found::Record(head) if head.first_batch == next_batch => segment = next,
            Found::Record(head) => return Err(gap(segment, &end, next_batch, &head, next)),
            Found::End => break end,
            Found::Bad(_) if end.bad.is_none() => segment = next,
            Found::Bad(what) => {
                return Err(OpenError::Damaged {
                    file: next.name.clone(),
                    offset: RECORDS_AT,
                    what: what.to_owned(),
                    evidence: format!(
                        "{} ends with a bad record too, and only one can be torn",
                        segment.name
                    ),
                });
            }
        }
    };
    if next_batch <= marker.reached {
        return Err(OpenError::ShorterThanMarker { found: next_batch - 1, reached: marker.reached });
    }
    let torn = end.bad.map(|reason| TornTail {
        file: segment.name.clone(),
        offset: end.offset as u64,
        batch: next_batch,
        reason: reason.to_owned(),
    });
    if let Some(torn) = torn.as_ref().filter(|_| marker.clean) {
        return Err(OpenError::Damaged {
            file: torn.file.clone(),
            offset: torn.offset,
            what: torn.reason.clone(),
            evidence: format!("the store was closed in order after batch {}", marker.reached),
        });
    }
    let Others { spares, retired } = others(files, marker, segment, next_batch)?;
    Ok(Scanned {
        live,
        active: Arc::clone(segment),
        offset: end.offset as u64,
        next_batch,
        torn,
        spares,
        retired,
    })
}

fn gap(segment: &Segment, end: &End, expected: u64, head: &Head, next: &Segment) -> OpenError {
    match end.bad {
        Some(what) => OpenError::Damaged {
            file: segment.name.clone(),
            offset: end.offset as u64,
            what: what.to_owned(),
            evidence: format!("a later record (batch {}) stands in {}", head.first_batch, next.name),
        },
        None => OpenError::SequenceGap {
            file: next.name.clone(),
            offset: RECORDS_AT,
            expected,
            found: head.first_batch,
        },
    }
}

fn read_whole(segment: &Segment, bytes: &mut Vec<u8>) -> Result<(), OpenError> {
    bytes.resize(segment.bytes as usize, 0);
    segment.file.read_at(0, bytes).map_err(OpenError::io("read", &segment.name))
}

/// Looks at the place of a segment's first record, and reads as much as needed to judge it.
fn first_record(segment: &Segment) -> Result<Found, OpenError> {
    let mut head_bytes = [0; HEAD_BYTES];
    segment.file.read_at(RECORDS_AT, &mut head_bytes).map_err(OpenError::io("read", &segment.name))?;
    let room = (segment.bytes - RECORDS_AT) as usize;
    let len = match Head::decode(&head_bytes) {
        Some(head) => head.stride().min(room),
        None => HEAD_BYTES,
    };
    let mut bytes = vec![0; len];
    segment.file.read_at(RECORDS_AT, &mut bytes).map_err(OpenError::io("read", &segment.name))?;
    Ok(record::look(&bytes, 0, u64::from(segment.id)))
}

fn scan_segment(
    live: &mut LiveSegment,
    bytes: &[u8],
    next_batch: &mut u64,
    apply: &mut impl FnMut(Replayed<'_>) -> Result<(), OpenError>,
) -> Result<End, OpenError> {
    let segment = Arc::clone(&live.segment);
    let mut offset = RECORDS_AT as usize;
    loop {
        match record::look(bytes, offset, u64::from(segment.id)) {
            Found::End => return Ok(End { offset, bad: None }),
            Found::Bad(what) => return Ok(End { offset, bad: Some(what) }),
            Found::Record(head) => {
                if head.first_batch != *next_batch {
                    return Err(OpenError::SequenceGap {
                        file: segment.name.clone(),
                        offset: offset as u64,
                        expected: *next_batch,
                        found: head.first_batch,
                    });
                }
                let body_at = offset + HEAD_BYTES;
                let body = &bytes[body_at..body_at + head.body_len as usize];
                replay_record(live, body, body_at as u32, next_batch, apply)?;
                offset += head.stride();
            }
        }
    }
}

fn replay_record(
    live: &mut LiveSegment,
    body: &[u8],
    body_at: u32,
    next_batch: &mut u64,
    apply: &mut impl FnMut(Replayed<'_>) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let first = *next_batch;
    let segment = Arc::clone(&live.segment);
    let damaged = |what: &str| OpenError::Damaged {
        file: segment.name.clone(),
        offset: u64::from(body_at) - HEAD_BYTES as u64,
        what: what.to_owned(),
        evidence: "the record's checksum is good: it was written like this".to_owned(),
    };
    let mut d = Decoder::new(body);
    let mut batch_at = 0;
    while !d.is_empty() {
        let item_at = d.pos() as u32;
        let item = match d.item().map_err(|e| damaged(&e.to_string()))? {
            Item::Batch => {
                *next_batch += 1;
                batch_at = item_at;
                live.push_batch(body_at + item_at);
                continue;
            }
            Item::Group(change) => ReplayedItem::Group(change),
            Item::Note { key, value } => ReplayedItem::Note(key, value),
            Item::Leads { group, term } => ReplayedItem::Leads(group, term),
        };
        if *next_batch == first {
            return Err(damaged("a change stands before the first batch"));
        }
        let batch = *next_batch - 1;
        apply(Replayed { batch, batch_at, body_at, file: &segment.name, body, item })?;
    }
    if *next_batch == first { Err(damaged("the record holds no batch")) } else { Ok(()) }
}

/// Files with an unreadable header are harmless only if they hold no record that is needed.
fn check_nameless(files: &Files, marker: &Marker) -> Result<(), OpenError> {
    // Such a file may have any length, so it is read in parts; a head may lie across two of them.
    let mut window = vec![0; NAMELESS_WINDOW_BYTES];
    for segment in &files.nameless {
        let mut at = 0;
        while at < segment.bytes {
            let len = (segment.bytes - at).min(window.len() as u64) as usize;
            let bytes = &mut window[..len];
            segment.file.read_at(at, bytes).map_err(OpenError::io("read", &segment.name))?;
            for (offset, head) in heads(bytes) {
                if head.segment >= u64::from(marker.start_segment)
                    && !files.by_id.contains_key(&u32::try_from(head.segment).unwrap_or(u32::MAX))
                {
                    let offset = at + offset as u64;
                    return Err(OpenError::Damaged {
                        file: segment.name.clone(),
                        offset: 0,
                        what: "the segment's header is unreadable".to_owned(),
                        evidence: format!("it holds records of segment {}, at offset {offset}", head.segment),
                    });
                }
            }
            at += (window.len() - HEAD_BYTES) as u64;
        }
    }
    Ok(())
}

/// Whatever looks like the head of a record.
fn heads(bytes: &[u8]) -> impl Iterator<Item = (usize, Head)> {
    (0..bytes.len()).step_by(8).filter_map(|at| Some((at, Head::decode(&bytes[at..])?)))
}

/// Segments that hold nothing needed.
struct Others {
    spares: Vec<Arc<Segment>>,
    retired: Vec<Arc<Segment>>,
}

/// Sorts the segments that hold nothing needed: spares follow the active one without a gap and have no record.
fn others(files: &Files, marker: &Marker, active: &Segment, next_batch: u64) -> Result<Others, OpenError> {
    let mut spares: Vec<Arc<Segment>> = Vec::new();
    let mut retired = files.nameless.clone();
    retired.extend(files.by_id.range(..marker.start_segment).map(|(_, s)| Arc::clone(s)));
    for (id, segment) in files.by_id.range(active.id + 1..) {
        match first_record(segment)? {
            Found::End => {}
            Found::Record(head) => {
                return Err(OpenError::SequenceGap {
                    file: segment.name.clone(),
                    offset: RECORDS_AT,
                    expected: next_batch,
                    found: head.first_batch,
                });
            }
            Found::Bad(what) => {
                return Err(OpenError::Damaged {
                    file: segment.name.clone(),
                    offset: RECORDS_AT,
                    what: what.to_owned(),
                    evidence: "the segment before it has no record yet".to_owned(),
                });
            }
        }
        let expected = active.id + 1 + spares.len() as u32;
        if *id != expected {
            return Err(OpenError::MissingFile {
                file: format!("journal segment {expected}"),
                rule: "a later one was made ready, and their ids have no gaps",
            });
        }
        spares.push(Arc::clone(segment));
    }
    Ok(Others { spares, retired })
}
