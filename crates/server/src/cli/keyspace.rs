//! `pontoon keyspace`: makes, lists, describes and deletes keyspaces.

use std::path::PathBuf;

use clap::Subcommand;
use pontoon_proto::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, DescribeKeyspaceRequest, Keyspace, ListKeyspacesRequest,
    UnfinishedRestore,
};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::{Hex, or_dash, table};
use super::{restore, saved};
use crate::config::keyspace_name;

/// What to do with keyspaces.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyspaceCommand {
    /// Make a keyspace and wait until it takes writes
    Create {
        /// Its name: 1 to 63 lower-case letters, digits or inner hyphens
        #[arg(value_parser = keyspace_name)]
        name: String,
        /// How many stores hold it [default: three, or all if there are fewer]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
        replicas: Option<u32>,
    },
    /// Show all keyspaces
    List,
    /// Show one keyspace
    Describe {
        /// Its name
        name: String,
    },
    /// Write a keyspace's whole state to a file, as `etcdctl snapshot save` does
    Save {
        /// Its name
        #[arg(value_parser = keyspace_name)]
        name: String,
        /// The file; there must be none of that name
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Log in as this user, where the keyspace has users: NAME:PASSWORD
        #[arg(long, value_name = "NAME:PASSWORD")]
        user: Option<String>,
    },
    /// Make a keyspace from a file that `save`, or `etcdctl snapshot save`, wrote; if it is broken off, run it again
    Restore {
        /// The new keyspace's name: 1 to 63 lower-case letters, digits or inner hyphens
        #[arg(value_parser = keyspace_name)]
        name: String,
        /// The file
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// How many stores hold it [default: three, or all if there are fewer]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
        replicas: Option<u32>,
    },
    /// Delete a keyspace with all its data
    Delete {
        /// Its name
        name: String,
        /// Its id, as `describe` shows it, so that no newer keyspace of the same name is deleted by mistake
        #[arg(long, value_name = "HEX", value_parser = hex_id)]
        id: u64,
    },
}

/// An id of a group.
pub(super) fn hex_id(text: &str) -> Result<u64, String> {
    let digits = text.chars().all(|c| c.is_ascii_hexdigit());
    if !digits || text.is_empty() || text.len() > 16 {
        return Err("an id has 1 to 16 hex digits".into());
    }
    u64::from_str_radix(text, 16).map_err(|_| "an id has 1 to 16 hex digits".into())
}

#[derive(Serialize)]
struct KeyspaceRow {
    name: String,
    id: Hex,
    replicas_wanted: u32,
    replicas: Vec<Hex>,
    leader: Option<Hex>,
    term: u64,
}

impl From<Keyspace> for KeyspaceRow {
    fn from(keyspace: Keyspace) -> Self {
        Self {
            name: keyspace.name,
            id: Hex(keyspace.id),
            replicas_wanted: keyspace.replicas_wanted,
            replicas: keyspace.replicas.into_iter().map(Hex).collect(),
            leader: keyspace.leader.map(Hex),
            term: keyspace.term,
        }
    }
}

#[derive(Serialize)]
struct Keyspaces {
    keyspaces: Vec<KeyspaceRow>,
}

#[derive(Serialize)]
struct Description {
    #[serde(flatten)]
    keyspace: KeyspaceRow,
    revision: i64,
    compact_revision: i64,
    keys: Option<u64>,
    db_size_bytes: u64,
    applied: u64,
    /// A restore that is not finished.
    restore: Option<UnfinishedRow>,
}

#[derive(Serialize)]
struct UnfinishedRow {
    pieces: u64,
    revision: i64,
    given_up: bool,
}

impl From<UnfinishedRestore> for UnfinishedRow {
    fn from(unfinished: UnfinishedRestore) -> Self {
        let UnfinishedRestore { pieces, revision, given_up, .. } = unfinished;
        Self { pieces, revision, given_up }
    }
}

impl std::fmt::Display for UnfinishedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.given_up {
            return f.write_str("given up; run `keyspace restore` again, or delete the keyspace");
        }
        write!(
            f,
            "not finished, {} pieces are in; nobody is served before it is; if it does not go on, run `keyspace restore` \
             again",
            self.pieces
        )
    }
}

#[derive(Serialize)]
struct Deleted {
    name: String,
    deleted: bool,
}

/// Runs it.
pub(crate) async fn run(command: KeyspaceCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        KeyspaceCommand::Create { name, replicas } => create(name, replicas, global).await,
        KeyspaceCommand::List => list(global).await,
        KeyspaceCommand::Describe { name } => describe(name, global).await,
        KeyspaceCommand::Save { name, to, user } => saved::save(&name, &to, user.as_deref(), global).await,
        KeyspaceCommand::Restore { name, from, replicas } => {
            restore::restore(&name, &from, replicas, global).await
        }
        KeyspaceCommand::Delete { name, id } => delete(name, id, global).await,
    }
}

async fn create(name: String, replicas: Option<u32>, global: &Global) -> anyhow::Result<()> {
    let request = CreateKeyspaceRequest { name, replicas: replicas.unwrap_or(0) };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.create_keyspace(request.clone()).await)
            .await?;
    let row = KeyspaceRow::from(answer.keyspace.unwrap_or_default());
    global.output.print(&row, |row| {
        format!("keyspace {} with id {} on {} stores is ready", row.name, row.id, row.replicas.len())
    })
}

async fn list(global: &Global) -> anyhow::Result<()> {
    let answer =
        ask(global, Repeat::Harmless, async |client| client.list_keyspaces(ListKeyspacesRequest {}).await)
            .await?;
    let answer = Keyspaces { keyspaces: answer.keyspaces.into_iter().map(KeyspaceRow::from).collect() };
    global.output.print(&answer, |answer| {
        table(
            &["name", "id", "replicas>", "leader", "term>"],
            answer.keyspaces.iter().map(|row| {
                [
                    row.name.clone(),
                    row.id.to_string(),
                    format!("{}/{}", row.replicas.len(), row.replicas_wanted),
                    or_dash(row.leader),
                    row.term.to_string(),
                ]
            }),
        )
    })
}

async fn describe(name: String, global: &Global) -> anyhow::Result<()> {
    let request = DescribeKeyspaceRequest { name };
    let answer =
        ask(global, Repeat::Harmless, async |client| client.describe_keyspace(request.clone()).await).await?;
    let description = Description {
        keyspace: answer.keyspace.unwrap_or_default().into(),
        revision: answer.revision,
        compact_revision: answer.compact_revision,
        keys: answer.keys,
        db_size_bytes: answer.db_size_bytes,
        applied: answer.applied,
        restore: answer.restore.map(UnfinishedRow::from),
    };
    global.output.print(&description, |d| {
        let replicas: Vec<_> = d.keyspace.replicas.iter().map(Hex::to_string).collect();
        let rows = [
            ("name", d.keyspace.name.clone()),
            ("id", d.keyspace.id.to_string()),
            ("replicas", format!("{} (wanted {})", replicas.join(" "), d.keyspace.replicas_wanted)),
            ("leader", or_dash(d.keyspace.leader)),
            ("term", d.keyspace.term.to_string()),
            ("revision", d.revision.to_string()),
            ("compacted up to", d.compact_revision.to_string()),
            ("keys", or_dash(d.keys)),
            ("bytes on disk", d.db_size_bytes.to_string()),
            ("applied", d.applied.to_string()),
        ];
        let restore = d.restore.as_ref().map(|restore| ("restore", restore.to_string()));
        let rows = rows.into_iter().chain(restore);
        table(&["field", "value"], rows.map(|(field, value)| [field.to_owned(), value]))
    })
}

async fn delete(name: String, id: u64, global: &Global) -> anyhow::Result<()> {
    let request = DeleteKeyspaceRequest { name: name.clone(), id };
    ask(global, Repeat::MightDoItTwice, async |client| client.delete_keyspace(request.clone()).await).await?;
    let answer = Deleted { name, deleted: true };
    global.output.print(&answer, |answer| format!("keyspace {} is deleted", answer.name))
}
