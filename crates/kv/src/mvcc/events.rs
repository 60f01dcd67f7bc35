//! Changes as watchers see them, read from `history`.

use fjall::Readable;
use pontoon_proto::mvccpb::event::EventType;
use pontoon_proto::mvccpb::{Event, KeyValue};

use crate::error::StoreError;
use crate::mvcc::records::{self, Revision, Version};
use crate::mvcc::state::{Keyspace, Picture};
use crate::mvcc::{compaction, keys};

/// Whole revisions of events, in order.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) events: Vec<Event>,
    /// The first revision that is not in the page.
    pub(crate) next: i64,
    /// The keyspace's revision when the page was read. If `next` is beyond it, there was nothing more.
    pub(crate) revision: i64,
    /// Revisions before this one may lack events.
    pub(crate) compact_revision: i64,
}

impl Page {
    pub(crate) fn bytes(event: &Event) -> usize {
        let kv = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len() + 48);
        kv(&event.kv) + kv(&event.prev_kv)
    }
}

impl Keyspace {
    /// The events from a revision on: as many whole revisions as fit into `bytes_max`, at least one.
    pub(crate) fn events(&self, from: i64, bytes_max: usize, prev_kv: bool) -> Result<Page, StoreError> {
        let picture = self.picture()?;
        let meta = &picture.meta;
        let mut page = Page {
            events: Vec::new(),
            next: meta.revision + 1,
            revision: meta.revision,
            compact_revision: meta.compact_revision,
        };
        let after = Revision { main: from.max(1) - 1, sub: u32::MAX };
        let mut bytes = 0;
        let mut last = 0;
        let range = compaction::between(picture.slot, after, meta.revision);
        for guard in picture.snapshot.range(&picture.tables.history, range) {
            let (key, record) = guard.into_inner()?;
            let revision = keys::revision_of(&key)?;
            if bytes >= bytes_max && revision.main != last {
                page.next = revision.main;
                break;
            }
            last = revision.main;
            let event = event(&picture, revision, &record, prev_kv)?;
            bytes += Page::bytes(&event);
            page.events.push(event);
        }
        Ok(page)
    }
}

fn event(
    picture: &Picture<'_>,
    revision: Revision,
    record: &[u8],
    prev_kv: bool,
) -> Result<Event, StoreError> {
    let version = Version::decode(record)?;
    let kv = records::key_value(revision, record, true)?;
    let kind = if version.deletion { EventType::Delete } else { EventType::Put };
    let mut event = Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
    if prev_kv
        && let Some(old) = version.superseded
        // What a compaction has given up is not shown, whether it is still on disk or not.
        && revision.main > picture.meta.compact_revision
        && let Some(record) = picture.snapshot.get(&picture.tables.history, keys::history_key(picture.slot, old))?
    {
        event.prev_kv = Some(records::key_value(old, &record, true)?);
    }
    Ok(event)
}
