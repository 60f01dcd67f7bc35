//! `pontoon keyspace restore`: a new keyspace from a file.
//!
//! It may be killed at any moment, and is then run again:
//!
//! | killed | what is there | what the next run does |
//! |---|---|---|
//! | before the first byte was sent | an empty keyspace | fills it, if nobody has written to it meanwhile |
//! | later | a keyspace that refuses everybody | gives the unfinished restore up, deletes the keyspace, begins anew |
//! | after the restore was given up | the same | deletes the keyspace, begins anew |
//!
//! A restore that goes on is left alone: it is watched for a moment, and given up only if it has not moved since.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use pontoon_node::DriverStep;
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::restore_client::RestoreClient;
use pontoon_proto::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, FillRequest, FillResponse, GiveUpRequest, LookRequest,
    LookResponse, UnfinishedRestore,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::Global;
use super::output::Hex;
use super::saved::{CHUNK_BYTES, Store, addressed, check, read_up_to};
use crate::compose::random_id;

/// How long an unfinished restore must not have moved: a piece of half a megabyte takes far less, even where a leader is
/// being elected.
const WATCHED: Duration = Duration::from_secs(3);

/// How often others may come first.
const ATTEMPTS: usize = 3;

/// What came of it.
#[derive(Serialize)]
pub(super) struct Restored {
    keyspace: String,
    id: Hex,
    revision: i64,
    bytes: u64,
}

/// One restore.
struct Restore<'a> {
    name: &'a str,
    replicas: u32,
    /// Tells what is done here from what others do at the same time.
    attempt: u64,
    store: Store,
    global: &'a Global,
}

/// Makes a keyspace from a saved one, and says so.
pub(super) async fn restore(
    name: &str,
    from: &Path,
    replicas: Option<u32>,
    global: &Global,
) -> anyhow::Result<()> {
    let restored = restore_from(name, from, replicas, global).await?;
    global.output.print(&restored, |r| {
        format!("keyspace {} with id {} is restored, at revision {}", r.keyspace, r.id, r.revision)
    })
}

/// Makes a keyspace from a saved one.
pub(super) async fn restore_from(
    name: &str,
    from: &Path,
    replicas: Option<u32>,
    global: &Global,
) -> anyhow::Result<Restored> {
    // All of it is checked before there is anything that would have to be taken back.
    let length = check(from)?;
    let store = Store::connect(global).await?;
    let (replicas, attempt) = (replicas.unwrap_or(0), random_id()?);
    let restore = Restore { name, replicas, attempt, store, global };
    global.reach(DriverStep::ClaimKeyspace.before());
    let id = restore.claim().await?;
    global.reach(DriverStep::ClaimKeyspace.after());
    global.reach(DriverStep::FillKeyspace.before());
    let filled: FillResponse = match restore.fill(from, length).await? {
        Ok(filled) => filled,
        Err(status) => return Err(restore.take_back(&status).await),
    };
    global.reach(DriverStep::FillKeyspace.after());
    Ok(Restored { keyspace: name.to_owned(), id: Hex(id), revision: filled.revision, bytes: filled.bytes })
}

impl Restore<'_> {
    fn admin(&self) -> AdminClient<tonic::transport::Channel> {
        AdminClient::new(self.store.channel.clone())
    }

    fn client(&self) -> RestoreClient<tonic::transport::Channel> {
        RestoreClient::new(self.store.channel.clone())
    }

    /// Waits for an answer as long as the user wants to.
    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.global.timeout, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_elapsed) => Err(Status::unavailable(format!("no answer within {:?}", self.global.timeout))),
        }
    }

    /// Makes the keyspace, or takes over what an earlier restore has left; its id.
    async fn claim(&self) -> anyhow::Result<u64> {
        for _ in 0..ATTEMPTS {
            let create = CreateKeyspaceRequest { name: self.name.to_owned(), replicas: self.replicas };
            let taken = match self.in_time(self.admin().create_keyspace(create)).await {
                Ok(made) => return Ok(made.keyspace.unwrap_or_default().id),
                Err(status) if status.code() == Code::AlreadyExists => self.store.refusal(&status),
                Err(status) => return Err(self.store.refusal(&status)),
            };
            let found = self.look().await?;
            let Some(unfinished) = found.restore else {
                if found.empty {
                    return Ok(found.id);
                }
                return Err(taken);
            };
            if !unfinished.given_up {
                tokio::time::sleep(WATCHED).await;
                if self.look().await?.restore != Some(unfinished) {
                    bail!(
                        "somebody else restores the keyspace {} just now; wait until that is done, or stop it and try \
                         again",
                        self.name
                    );
                }
                self.give_up(&unfinished).await?;
            }
            self.delete(found.id).await?;
        }
        bail!("others restore the keyspace {} at the same time; look at what they do", self.name)
    }

    async fn look(&self) -> anyhow::Result<LookResponse> {
        let found = self.in_time(self.client().look(addressed(LookRequest {}, self.name, None)?)).await;
        found.map_err(|status| self.store.refusal(&status))
    }

    async fn give_up(&self, unfinished: &UnfinishedRestore) -> anyhow::Result<()> {
        let request = GiveUpRequest { attempt: unfinished.attempt, pieces: unfinished.pieces };
        self.global.reach(DriverStep::GiveUpRestore.before());
        let given_up = self.in_time(self.client().give_up(addressed(request, self.name, None)?)).await;
        self.global.reach(DriverStep::GiveUpRestore.after());
        given_up.map(drop).map_err(|status| self.store.refusal(&status))
    }

    /// By its id: what another one has made in its place meanwhile stays.
    async fn delete(&self, id: u64) -> anyhow::Result<()> {
        let request = DeleteKeyspaceRequest { name: self.name.to_owned(), id };
        self.global.reach(DriverStep::DeleteUnfinished.before());
        let deleted = self.in_time(self.admin().delete_keyspace(request)).await;
        self.global.reach(DriverStep::DeleteUnfinished.after());
        deleted.map(drop).map_err(|status| self.store.refusal(&status))
    }

    /// Takes away what nobody can use, if it is of this attempt.
    async fn take_back(&self, why: &Status) -> anyhow::Error {
        let (why, name) = (self.store.refusal(why), self.name);
        let taken_back = async {
            let found = self.look().await?;
            let Some(unfinished) = found.restore.filter(|r| r.attempt == self.attempt) else {
                return anyhow::Ok(false);
            };
            self.give_up(&unfinished).await?;
            self.delete(found.id).await?;
            Ok(true)
        };
        match taken_back.await {
            Ok(true) => anyhow!("{why}; the new keyspace {name} was deleted again"),
            Ok(false) => anyhow!("{why}; nothing of this restore is in the keyspace {name}"),
            Err(error) => anyhow!("{why}; the unfinished keyspace {name} could not be deleted: {error}"),
        }
    }

    /// Sends the file. The outer error is this machine's, the inner one the store's.
    async fn fill(&self, from: &Path, length: u64) -> anyhow::Result<Result<FillResponse, Status>> {
        let mut file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        let (pieces, stream) = mpsc::channel(2);
        let attempt = self.attempt;
        let reading = tokio::task::spawn_blocking(move || {
            let mut left = length;
            while left > 0 {
                let mut data = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
                let got = read_up_to(&mut file, &mut data)?;
                data.truncate(got);
                left -= got as u64;
                // The store does not listen any more, and says why; or the file became shorter, which it will notice.
                if got == 0 || pieces.blocking_send(FillRequest { data: data.into(), attempt }).is_err() {
                    break;
                }
            }
            std::io::Result::Ok(())
        });
        let request: Request<_> = addressed(ReceiverStream::new(stream), self.name, None)?;
        let answer = self.client().fill(request).await;
        reading.await?.with_context(|| format!("cannot read {}", from.display()))?;
        Ok(answer.map(tonic::Response::into_inner))
    }
}
