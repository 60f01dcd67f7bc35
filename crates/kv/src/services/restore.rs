//! `pontoon.v1.Restore`: fills a new keyspace from what `Maintenance.Snapshot` gave.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pontoon_proto::etcdserverpb::AuthDisableResponse;
use pontoon_proto::v1::restore_server::Restore;
use pontoon_proto::v1::{
    FillRequest, FillResponse, GiveUpRequest, GiveUpResponse, LookRequest, LookResponse, UnfinishedRestore,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::EtcdServices;
use super::auth::random;
use super::snapshot::BLOCK_BYTES;
use crate::command::Command;
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::mvcc::control::is_restored;
use crate::mvcc::frames::{Parser, TAG_CONTROL, TAG_LEASE, TAG_VERSION};
use crate::mvcc::restore::RestoreStep;
use crate::mvcc::state::Keyspace;

/// Records are gathered up to so many bytes for one log entry.
const PIECE_BYTES: usize = 512 * 1024;

/// No record of a keyspace is larger: a request's bound and what surrounds it.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// A step whose fate is unknown is sent again: it is done once, however often it comes.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

fn damaged(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("pontoon: {error}; nothing can be restored from it, use another copy"))
}

impl Keyspace {
    /// A restore into this keyspace that is not finished, by what is applied here.
    #[must_use]
    pub fn unfinished_restore(&self) -> Option<UnfinishedRestore> {
        self.control().restore().map(|restore| UnfinishedRestore {
            attempt: restore.attempt,
            pieces: restore.pieces,
            revision: restore.revision,
            given_up: restore.given_up,
        })
    }
}

/// A restore on its way.
struct Filling<'a, C> {
    services: &'a EtcdServices<C>,
    keyspace: &'a Arc<Keyspace>,
    parser: Parser,
    /// 0 before the first message.
    attempt: u64,
    revision: Option<i64>,
    piece: BytesMut,
    pieces: u64,
    bytes: u64,
}

impl<C: Consensus> Filling<'_, C> {
    async fn step(&self, step: RestoreStep) -> Result<(), Status> {
        let command = Command::Restore(step).encode();
        let mut attempt = 1;
        loop {
            let done = self.services.execute::<AuthDisableResponse>(self.keyspace, command.clone()).await;
            match done {
                Ok(done) => return done.map(drop).map_err(EtcdError::status),
                Err(status) if status.code() == Code::Unavailable && attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Takes bytes of the file.
    async fn feed(&mut self, data: &[u8]) -> Result<(), Status> {
        self.bytes += data.len() as u64;
        self.parser.feed(data);
        if self.revision.is_none() {
            let Some(header) = self.parser.header().map_err(damaged)? else { return Ok(()) };
            let (revision, compact_revision) = (header.revision, header.compact_revision);
            let attempt = self.attempt;
            self.step(RestoreStep::Begin { revision, compact_revision, attempt }).await?;
            self.revision = Some(revision);
        }
        while let Some(frame) = self.parser.next().map_err(damaged)? {
            let wanted = match frame.tag {
                TAG_VERSION | TAG_LEASE => true,
                TAG_CONTROL => is_restored(frame.key()),
                _ => false,
            };
            if !wanted {
                continue;
            }
            if !self.piece.is_empty() && self.piece.len() + frame.bytes.len() > PIECE_BYTES {
                self.flush().await?;
            }
            self.piece.extend_from_slice(&frame.bytes);
        }
        let waits = self.parser.rest().len();
        let padding = self.parser.ended();
        if padding && (waits as u64 >= BLOCK_BYTES || self.parser.rest().iter().any(|byte| *byte != 0)) {
            return Err(damaged("the saved state goes on after its end"));
        }
        if waits > RECORD_BYTES_MAX {
            return Err(damaged("a record of the saved state is too large"));
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Status> {
        let frames = self.piece.split().freeze();
        self.step(RestoreStep::Piece { number: self.pieces, frames }).await?;
        self.pieces += 1;
        Ok(())
    }

    async fn finish(mut self) -> Result<FillResponse, Status> {
        if !self.parser.ended() {
            return Err(damaged("the end of the saved state is missing"));
        }
        if !self.piece.is_empty() {
            self.flush().await?;
        }
        self.step(RestoreStep::End { pieces: self.pieces }).await?;
        Ok(FillResponse {
            revision: self.revision.unwrap_or_default(),
            bytes: self.bytes,
            pieces: self.pieces,
        })
    }
}

#[tonic::async_trait]
impl<C: Consensus> Restore for EtcdServices<C> {
    async fn fill(&self, request: Request<Streaming<FillRequest>>) -> Result<Response<FillResponse>, Status> {
        let keyspace = self.find(request.metadata(), request.extensions())?;
        let _place = self.take_snapshot_place()?;
        let mut filling = Filling {
            services: self,
            keyspace: &keyspace,
            parser: Parser::default(),
            attempt: 0,
            revision: None,
            piece: BytesMut::new(),
            pieces: 0,
            bytes: 0,
        };
        let mut requests = request.into_inner();
        while let Some(part) = requests.message().await? {
            if filling.attempt == 0 {
                filling.attempt = match part.attempt {
                    0 => u64::from_le_bytes(random()?),
                    drawn => drawn,
                };
            }
            filling.feed(&part.data).await?;
        }
        Ok(Response::new(filling.finish().await?))
    }

    async fn look(&self, request: Request<LookRequest>) -> Result<Response<LookResponse>, Status> {
        let keyspace = self.find(request.metadata(), request.extensions())?;
        self.read_barrier(&keyspace).await?;
        Ok(Response::new(LookResponse {
            id: keyspace.group().0,
            restore: keyspace.unfinished_restore(),
            empty: keyspace.revision() == 1,
        }))
    }

    async fn give_up(&self, request: Request<GiveUpRequest>) -> Result<Response<GiveUpResponse>, Status> {
        let keyspace = self.find(request.metadata(), request.extensions())?;
        let GiveUpRequest { attempt, pieces } = request.into_inner();
        let command = Command::Restore(RestoreStep::GiveUp { attempt, pieces }).encode();
        let done = self.execute::<AuthDisableResponse>(&keyspace, command).await?;
        done.map_err(EtcdError::status)?;
        Ok(Response::new(GiveUpResponse {}))
    }
}
