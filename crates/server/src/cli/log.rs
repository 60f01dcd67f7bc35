//! `pontoon log`: makes logs, appends to them, reads and follows them.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Subcommand;
use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::{
    AppendLogRequest, CreateLogRequest, DeleteLogRequest, DescribeLogRequest, ListLogsRequest, Log, LogEntry,
    ReadLogRequest, TailLogRequest,
};
use pontoon_raft_core::types::EntryId;
use serde::Serialize;
use tonic::Code;

use super::Global;
use super::connect::{Dialer, Repeat, ask, refusal};
use super::keyspace::hex_id;
use super::output::{Hex, OutputFormat, note, or_dash, print_text, table};
use crate::compose;
use crate::config::keyspace_name;

/// Between two rounds of attempts to follow a log.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

/// What to do with logs.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Make a log and wait until it takes appends
    Create {
        /// Its name: 1 to 63 lower-case letters, digits or inner hyphens; keyspaces and logs share their names
        #[arg(value_parser = keyspace_name)]
        name: String,
        /// How many stores hold it [default: three, or all if there are fewer]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
        replicas: Option<u32>,
    },
    /// Show all logs
    List,
    /// Show one log
    Describe {
        /// Its name
        name: String,
    },
    /// Append an entry, and print its id and its index
    Append {
        /// The log's name
        name: String,
        /// What the entry says; `-`: what standard input has
        data: String,
        /// Append only if this is the log's last entry (32 hex digits; all zero: only if the log is empty)
        #[arg(long, value_name = "EID", value_parser = entry_id)]
        prereq: Option<EntryId>,
        /// The entry's id (32 hex digits): an append that was not answered is asked again by its id, and done once
        /// [default: drawn at random]
        #[arg(long, value_name = "EID", value_parser = own_entry_id)]
        id: Option<EntryId>,
    },
    /// Print the entries
    Read {
        /// The log's name
        name: String,
        /// Begin at this index
        #[arg(long, value_name = "I", default_value_t = 0)]
        from: u64,
    },
    /// Print the entries that are appended from now on, until it is stopped
    Tail {
        /// The log's name
        name: String,
        /// Begin at this index, with what is there
        #[arg(long, value_name = "I")]
        from: Option<u64>,
    },
    /// Delete a log with all its entries
    Delete {
        /// Its name
        name: String,
        /// Its id, as `describe` shows it, so that no newer log of the same name is deleted by mistake
        #[arg(long, value_name = "HEX", value_parser = hex_id)]
        id: u64,
    },
}

fn entry_id(text: &str) -> Result<EntryId, String> {
    let wrong = || format!("{text:?} is no entry id: it has 32 hex digits");
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u128::from_str_radix(text, 16).map(EntryId).map_err(|_| wrong())
}

fn own_entry_id(text: &str) -> Result<EntryId, String> {
    match entry_id(text)? {
        EntryId::NONE => Err("an id of zeros means no entry; choose another".to_owned()),
        id => Ok(id),
    }
}

fn id_bytes(id: EntryId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

fn id_text(bytes: &[u8]) -> String {
    let id = bytes.try_into().map(u128::from_be_bytes);
    id.map_or_else(|_| "?".to_owned(), |id| EntryId(id).to_string())
}

#[derive(Serialize)]
struct LogRow {
    name: String,
    id: Hex,
    replicas_wanted: u32,
    replicas: Vec<Hex>,
    leader: Option<Hex>,
    term: u64,
}

impl From<Log> for LogRow {
    fn from(log: Log) -> Self {
        Self {
            name: log.name,
            id: Hex(log.id),
            replicas_wanted: log.replicas_wanted,
            replicas: log.replicas.into_iter().map(Hex).collect(),
            leader: log.leader.map(Hex),
            term: log.term,
        }
    }
}

#[derive(Serialize)]
struct Logs {
    logs: Vec<LogRow>,
}

#[derive(Serialize)]
struct Description {
    #[serde(flatten)]
    log: LogRow,
    first: u64,
    last: u64,
    last_id: Option<String>,
    bytes: u64,
    applied: u64,
}

#[derive(Serialize)]
struct Appended {
    id: String,
    index: u64,
    repeated: bool,
}

#[derive(Serialize)]
struct Deleted {
    name: String,
    deleted: bool,
}

/// One entry, as programs get it: text as it is, other bytes in hex.
#[derive(Serialize)]
struct EntryRow {
    index: u64,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_hex: Option<String>,
}

impl From<LogEntry> for EntryRow {
    fn from(entry: LogEntry) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        let (data, data_hex) = match std::str::from_utf8(&entry.data) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(hex(&entry.data))),
        };
        Self { index: entry.index, id: id_text(&entry.id), data, data_hex }
    }
}

impl EntryRow {
    /// For people: one line, whatever is in it.
    fn line(&self) -> String {
        let data = match (&self.data, &self.data_hex) {
            (Some(text), _) => text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"),
            (None, hex) => format!("0x{}", hex.as_deref().unwrap_or_default()),
        };
        format!("{} {} {data}", self.index, self.id)
    }
}

#[derive(Serialize)]
struct Entries {
    entries: Vec<EntryRow>,
}

/// Runs it.
pub(crate) async fn run(command: LogCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        LogCommand::Create { name, replicas } => create(name, replicas, global).await,
        LogCommand::List => list(global).await,
        LogCommand::Describe { name } => describe(name, global).await,
        LogCommand::Append { name, data, prereq, id } => append(name, &data, prereq, id, global).await,
        LogCommand::Read { name, from } => read(name, from, global).await,
        LogCommand::Tail { name, from } => tail(name, from, global).await,
        LogCommand::Delete { name, id } => delete(name, id, global).await,
    }
}

async fn create(name: String, replicas: Option<u32>, global: &Global) -> anyhow::Result<()> {
    let request = CreateLogRequest { name, replicas: replicas.unwrap_or(0) };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.create_log(request.clone()).await).await?;
    let row = LogRow::from(answer.log.unwrap_or_default());
    global.output.print(&row, |row| {
        format!("log {} with id {} on {} stores is ready", row.name, row.id, row.replicas.len())
    })
}

async fn list(global: &Global) -> anyhow::Result<()> {
    let answer =
        ask(global, Repeat::Harmless, async |client| client.list_logs(ListLogsRequest {}).await).await?;
    let answer = Logs { logs: answer.logs.into_iter().map(LogRow::from).collect() };
    global.output.print(&answer, |answer| {
        table(
            &["name", "id", "replicas>", "leader", "term>"],
            answer.logs.iter().map(|row| {
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
    let request = DescribeLogRequest { name };
    let answer =
        ask(global, Repeat::Harmless, async |client| client.describe_log(request.clone()).await).await?;
    let description = Description {
        log: answer.log.unwrap_or_default().into(),
        first: answer.first,
        last: answer.last,
        last_id: (!answer.last_id.is_empty()).then(|| id_text(&answer.last_id)),
        bytes: answer.bytes,
        applied: answer.applied,
    };
    global.output.print(&description, |d| {
        let replicas: Vec<_> = d.log.replicas.iter().map(Hex::to_string).collect();
        let rows = [
            ("name", d.log.name.clone()),
            ("id", d.log.id.to_string()),
            ("replicas", format!("{} (wanted {})", replicas.join(" "), d.log.replicas_wanted)),
            ("leader", or_dash(d.log.leader)),
            ("term", d.log.term.to_string()),
            ("first entry", d.first.to_string()),
            ("last entry", d.last.to_string()),
            ("last id", or_dash(d.last_id.clone())),
            ("bytes", d.bytes.to_string()),
            ("applied", d.applied.to_string()),
        ];
        table(&["field", "value"], rows.map(|(field, value)| [field.to_owned(), value]))
    })
}

async fn append(
    name: String,
    data: &str,
    prereq: Option<EntryId>,
    id: Option<EntryId>,
    global: &Global,
) -> anyhow::Result<()> {
    let data = match data {
        "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            bytes
        }
        text => text.as_bytes().to_vec(),
    };
    // Drawn here and not by the store, so that another store can be asked for the same append.
    let id = match id {
        Some(id) => id,
        None => EntryId(u128::from(compose::random_id()?) << 64 | u128::from(compose::random_id()?)),
    };
    let request =
        AppendLogRequest { name, id: id_bytes(id), prerequisite: prereq.map(id_bytes), data: data.into() };
    let answer = ask(global, Repeat::Harmless, async |client| client.append_log(request.clone()).await)
        .await
        .with_context(|| format!("entry {id} may not have been appended; --id {id} asks for it again"))?;
    let appended = Appended { id: id_text(&answer.id), index: answer.index, repeated: answer.repeated };
    global.output.print(&appended, |a| {
        let repeated = if a.repeated { " (it was there already)" } else { "" };
        format!("entry {} is at index {}{repeated}", a.id, a.index)
    })
}

async fn read(name: String, mut from: u64, global: &Global) -> anyhow::Result<()> {
    // Of a long log the reader sees the beginning while the rest is on its way; one document needs all of it.
    let mut all = Vec::new();
    loop {
        let request = ReadLogRequest { name: name.clone(), from, entries_max: 0 };
        let page =
            ask(global, Repeat::Harmless, async |client| client.read_log(request.clone()).await).await?;
        let rows = page.entries.into_iter().map(EntryRow::from);
        match global.output {
            OutputFormat::Json => all.extend(rows),
            OutputFormat::Table => {
                for row in rows {
                    from = row.index + 1;
                    print_text(&row.line())?;
                }
            }
        }
        if let Some(last) = all.last() {
            from = last.index + 1;
        }
        if !page.more {
            break;
        }
    }
    match global.output {
        OutputFormat::Json => global.output.print(&Entries { entries: all }, |_| String::new()),
        OutputFormat::Table => Ok(()),
    }
}

/// Prints an entry of a log that is followed: for programs one document a line. `false` if nobody reads any more.
fn print_followed(row: &EntryRow, output: OutputFormat) -> anyhow::Result<bool> {
    let line = match output {
        OutputFormat::Table => row.line(),
        OutputFormat::Json => serde_json::to_string(row)?,
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Follows through one store after the other: who was cut off goes on where it was.
async fn tail(name: String, mut from: Option<u64>, global: &Global) -> anyhow::Result<()> {
    let dialer = Dialer::new(global)?;
    let mut heard = false;
    loop {
        let mut failures = Vec::new();
        for address in &global.endpoints {
            let channel = match dialer.channel(address).await {
                Ok(channel) => channel,
                Err(refused) => {
                    failures.push(refused.to_string());
                    continue;
                }
            };
            let mut client = AdminClient::new(channel);
            let request = TailLogRequest { name: name.clone(), from };
            let status = match client.tail_log(request).await {
                Err(status) => status,
                Ok(stream) => {
                    heard = true;
                    let mut stream = stream.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(page)) => {
                                from = Some(page.next);
                                for row in page.entries.into_iter().map(EntryRow::from) {
                                    if !print_followed(&row, global.output)? {
                                        return Ok(());
                                    }
                                }
                            }
                            Ok(None) => break tonic::Status::unavailable("the store ended the stream"),
                            Err(status) => break status,
                        }
                    }
                }
            };
            // Who is in the midst of it waits for a leader, a restart, a network; one mistake is told at once.
            if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) {
                return Err(refusal(&dialer, address, &status));
            }
            failures.push(format!("{address}: {}", status.message()));
        }
        if !heard {
            bail!("no store answers ({}); start one, or name others by --endpoints", failures.join("; "));
        }
        if std::io::stderr().is_terminal() {
            note(&format!("cut off ({}); it tries again", failures.join("; ")));
        }
        tokio::time::sleep(FOLLOW_PAUSE).await;
    }
}

async fn delete(name: String, id: u64, global: &Global) -> anyhow::Result<()> {
    let request = DeleteLogRequest { name: name.clone(), id };
    ask(global, Repeat::MightDoItTwice, async |client| client.delete_log(request.clone()).await).await?;
    let answer = Deleted { name, deleted: true };
    global.output.print(&answer, |answer| format!("log {} is deleted", answer.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_32_digits_and_one_entry_has_one_line() {
        assert_eq!(entry_id(&"0".repeat(32)), Ok(EntryId::NONE));
        assert!(own_entry_id(&"0".repeat(32)).is_err());
        for bad in ["", "+f", &"g".repeat(32), &"a".repeat(31), &"a".repeat(33)] {
            assert!(entry_id(bad).is_err(), "{bad}");
        }
        let row = |data: &'static [u8]| {
            EntryRow::from(LogEntry { index: 7, id: vec![0; 16].into(), data: data.into() }).line()
        };
        let id = "0".repeat(32);
        assert_eq!(row(b"it's \"x\"\nand more"), format!("7 {id} it's \"x\"\\nand more"));
        assert_eq!(row(b"\xff\x00"), format!("7 {id} 0xff00"));
    }
}
