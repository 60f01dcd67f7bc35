//! Logs: appended to, read and followed.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use pontoon_kv::log::{Append, AppendRefused, ENTRY_BYTES_MAX, LogEntry, LogState, decode_reply};
use pontoon_node::meta::{GroupKind, GroupRecord};
use pontoon_node::{ProposeError, ReadError};
use pontoon_proto::v1 as api;
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_raft_core::types::{EntryId, LogIndex, StoreId};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{AdminService, FORWARDED};
use crate::compose;
use crate::reach::answers;

/// Bytes of the entries of one answer.
const PAGE_BYTES: usize = 1 << 20;
/// Entries of one answer.
const PAGE_ENTRIES: usize = 10_000;
/// With a bad prerequisite: the id of the log's last entry.
pub(crate) const LAST_ID_METADATA: &str = "pontoon-last-eid";

/// What follows a log.
pub(crate) type Tail = Pin<Box<dyn Stream<Item = Result<api::TailLogResponse, Status>> + Send>>;

fn id_bytes(id: EntryId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

fn parse_id(bytes: &Bytes, what: &str) -> Result<EntryId, Status> {
    let id = bytes.as_ref().try_into().map(u128::from_be_bytes);
    id.map(EntryId).map_err(|_| {
        Status::invalid_argument(format!("{what} has {} bytes; an entry id has 16", bytes.len()))
    })
}

fn entry(entry: LogEntry) -> api::LogEntry {
    api::LogEntry { index: entry.index.0, id: id_bytes(entry.id), data: entry.data }
}

fn refused(refused: AppendRefused) -> Status {
    let message = refused.to_string();
    match refused {
        AppendRefused::BadPrerequisite { last } => {
            let mut status = Status::failed_precondition(message);
            if let Ok(last) = MetadataValue::try_from(last.to_string()) {
                status.metadata_mut().insert(LAST_ID_METADATA, last);
            }
            status
        }
        AppendRefused::IdTaken { .. } => Status::already_exists(message),
        AppendRefused::Unknown => Status::unimplemented(message),
    }
}

fn not_proposed(error: &ProposeError) -> Status {
    match error {
        ProposeError::Overloaded { .. } | ProposeError::NoSpace { .. } => {
            Status::resource_exhausted(error.to_string())
        }
        _ => Status::unavailable(format!("{error}; ask again by the same id")),
    }
}

fn not_read(error: &ReadError) -> Status {
    match error {
        ReadError::Overloaded { .. } => Status::resource_exhausted(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

/// Where a log is served.
enum Place {
    Here(Arc<LogState>),
    Elsewhere(AdminClient<Channel>),
}

impl AdminService {
    pub(super) fn log(&self, record: &GroupRecord) -> api::Log {
        let keyspace = self.keyspace(record);
        api::Log {
            name: keyspace.name,
            id: keyspace.id,
            replicas_wanted: keyspace.replicas_wanted,
            replicas: keyspace.replicas,
            leader: keyspace.leader,
            term: keyspace.term,
        }
    }

    /// The log of a name, here or on a store that has it; the request is marked for that one.
    async fn log_place<T>(&self, name: &str, request: &mut Request<T>) -> Result<Place, Status> {
        let known = |service: &Self| {
            service.registry().group_named(name).filter(|g| g.kind() == GroupKind::Log).cloned()
        };
        let record = match known(self) {
            Some(record) => record,
            // It may be new.
            None => self.group_of(GroupKind::Log, name).await?,
        };
        if let Some(log) = self.directory.log(record.id()) {
            return Ok(Place::Here(log));
        }
        if request.metadata().contains_key(FORWARDED) {
            return Err(Status::unavailable(format!("the log {name:?} is moving; try again")));
        }
        let stores = self.directory.elsewhere(name).unwrap_or_default();
        let links = self.node.transport().links();
        let up = |store: &&StoreId| links.iter().any(|l| l.store == **store && answers(l));
        let registry = self.registry();
        let address = stores
            .iter()
            .find(up)
            .or_else(|| stores.first())
            .and_then(|store| registry.stores.get(&store.0))
            .map(|store| store.client_address.clone())
            .filter(|address| !address.is_empty());
        let address = address.ok_or_else(|| {
            Status::unavailable(format!(
                "no store of the log {name:?} has announced its address yet; try again"
            ))
        })?;
        request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("1"));
        Ok(Place::Elsewhere(AdminClient::new(self.dialer.channel(&address)?)))
    }

    pub(super) async fn log_described(
        &self,
        mut request: Request<api::DescribeLogRequest>,
    ) -> Result<Response<api::DescribeLogResponse>, Status> {
        let name = request.get_ref().name.clone();
        let record = self.group_of(GroupKind::Log, &name).await?;
        let log = match self.log_place(&name, &mut request).await? {
            Place::Here(log) => log,
            Place::Elsewhere(mut client) => return client.describe_log(request).await,
        };
        let figures = blocking(move || log.figures()).await?;
        let last_id = if figures.last_id == EntryId::NONE { Bytes::new() } else { id_bytes(figures.last_id) };
        Ok(Response::new(api::DescribeLogResponse {
            log: Some(self.log(&record)),
            first: figures.first.0,
            last: figures.last.0,
            last_id,
            bytes: figures.bytes,
            applied: figures.applied.0,
        }))
    }

    pub(super) async fn log_appended(
        &self,
        mut request: Request<api::AppendLogRequest>,
    ) -> Result<Response<api::AppendLogResponse>, Status> {
        let asked = request.get_ref().clone();
        if asked.data.len() > ENTRY_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "an entry of {} bytes is too large; at most {ENTRY_BYTES_MAX}; split it",
                asked.data.len()
            )));
        }
        let id = if asked.id.is_empty() {
            let half = || compose::random_id().map_err(|e| Status::internal(e.to_string()));
            EntryId((u128::from(half()?) << 64) | u128::from(half()?))
        } else {
            parse_id(&asked.id, "the id")?
        };
        if id == EntryId::NONE {
            return Err(Status::invalid_argument("an id of zeros means no entry; choose another"));
        }
        let prerequisite =
            asked.prerequisite.as_ref().map(|p| parse_id(p, "the prerequisite")).transpose()?;
        let log = match self.log_place(&asked.name, &mut request).await? {
            Place::Here(log) => log,
            Place::Elsewhere(mut client) => {
                request.get_mut().id = id_bytes(id);
                return client.append_log(request).await;
            }
        };
        let command = Append { id, prerequisite, data: asked.data }.encode();
        let reply = self.node.propose(log.group(), command).await.map_err(|e| not_proposed(&e))?;
        let appended = decode_reply(&reply).map_err(|e| Status::internal(e.to_string()))?.map_err(refused)?;
        Ok(Response::new(api::AppendLogResponse {
            id: id_bytes(id),
            index: appended.index.0,
            repeated: appended.repeated,
        }))
    }

    pub(super) async fn log_page(
        &self,
        mut request: Request<api::ReadLogRequest>,
    ) -> Result<Response<api::ReadLogResponse>, Status> {
        let asked = request.get_ref().clone();
        let log = match self.log_place(&asked.name, &mut request).await? {
            Place::Here(log) => log,
            Place::Elsewhere(mut client) => return client.read_log(request).await,
        };
        self.node.read_barrier(log.group()).await.map_err(|e| not_read(&e))?;
        let most = match usize::try_from(asked.entries_max).unwrap_or(usize::MAX) {
            0 => PAGE_ENTRIES,
            most => most.min(PAGE_ENTRIES),
        };
        let last = *log.last().borrow();
        let entries = blocking(move || log.read(LogIndex(asked.from), most, PAGE_BYTES)).await?;
        let more = entries.last().is_some_and(|entry| entry.index < last);
        let entries = entries.into_iter().map(entry).collect();
        Ok(Response::new(api::ReadLogResponse { entries, more }))
    }

    pub(super) async fn log_tail(
        &self,
        mut request: Request<api::TailLogRequest>,
    ) -> Result<Response<Tail>, Status> {
        let asked = request.get_ref().clone();
        let log = match self.log_place(&asked.name, &mut request).await? {
            Place::Here(log) => log,
            Place::Elsewhere(mut client) => {
                let stream = client.tail_log(request).await?;
                return Ok(stream.map(|stream| stream.boxed() as Tail));
            }
        };
        // So that what was acknowledged before the call is told, or passed over, for certain.
        self.node.read_barrier(log.group()).await.map_err(|e| not_read(&e))?;
        let from = match asked.from {
            Some(from) => LogIndex(from),
            None => log.last().borrow().next(),
        };
        let first = Ok(api::TailLogResponse { entries: Vec::new(), next: from.0 });
        let follower = Follower { last: log.last(), ended: log.ended(), next: from, log };
        let pages = futures_util::stream::try_unfold(follower, Follower::next_page);
        Ok(Response::new(futures_util::stream::iter([first]).chain(pages).boxed()))
    }
}

/// One who follows a log. It reads when it is asked for more, so a slow one holds a page and no more.
struct Follower {
    log: Arc<LogState>,
    last: tokio::sync::watch::Receiver<LogIndex>,
    ended: tokio::sync::watch::Receiver<bool>,
    next: LogIndex,
}

impl Follower {
    async fn next_page(mut self) -> Result<Option<(api::TailLogResponse, Self)>, Status> {
        let next = self.next;
        tokio::select! {
            biased;
            _ = self.ended.wait_for(|ended| *ended) => {
                return Err(Status::unavailable("this store does not serve the log any more; go on elsewhere"));
            }
            there = self.last.wait_for(|last| *last >= next) => if there.is_err() {
                return Err(Status::unavailable("this store does not serve the log any more; go on elsewhere"));
            },
        }
        let log = Arc::clone(&self.log);
        let entries = blocking(move || log.read(next, PAGE_ENTRIES, PAGE_BYTES)).await?;
        let last =
            entries.last().ok_or_else(|| Status::internal("the last entry of a log cannot be read"))?;
        self.next = last.index.next();
        let entries = entries.into_iter().map(entry).collect();
        Ok(Some((api::TailLogResponse { entries, next: self.next.0 }, self)))
    }
}

/// Reads of the engine may wait for the disk.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, pontoon_kv::StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(read).await;
    done.map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::internal(error.to_string()))
}
