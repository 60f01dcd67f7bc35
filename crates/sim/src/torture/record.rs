//! The history as a file: one JSON object per line, so that other tools can read it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use pontoon_sim::linearizability::{Action, Compare, KvInput, KvOutput, Operation, Seen};
use serde_json::{Value, json};

use super::verify::{Findings, check_history};
use super::workload::Recorded;

fn pair(seen: Seen) -> Value {
    seen.map_or(Value::Null, |(value, at)| json!([value, at]))
}

fn line(record: &Recorded) -> Value {
    let operation = &record.operation;
    let action = match operation.input.action {
        Action::Get => json!({"op": "get"}),
        Action::Put(value) => json!({"op": "put", "value": value}),
        Action::Delete => json!({"op": "delete"}),
        Action::Cas(Compare::Value(old), value) => json!({"op": "cas", "if_value": old, "value": value}),
        Action::Cas(Compare::ModRevision(at), value) => json!({"op": "cas", "if_mod": at, "value": value}),
    };
    let answer = operation.completion.as_ref().map(|completion| {
        let at = completion.at;
        match completion.output {
            KvOutput::Got { seen, revision } => {
                json!({"at": at, "is": "got", "seen": pair(seen), "revision": revision})
            }
            KvOutput::Written { revision } => json!({"at": at, "is": "written", "revision": revision}),
            KvOutput::Deleted { previous, revision } => {
                json!({"at": at, "is": "deleted", "seen": pair(previous), "revision": revision})
            }
            KvOutput::NotSwapped { seen, revision } => {
                json!({"at": at, "is": "not_swapped", "seen": pair(seen), "revision": revision})
            }
        }
    });
    json!({
        "client": operation.client, "store": record.store, "keyspace": record.keyspace,
        "key": &*operation.input.key, "call": operation.call, "action": action, "answer": answer,
        "serializable": record.serializable,
    })
}

/// Writes a history.
pub(crate) fn write_file(path: &Path, records: &[Recorded]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut file = BufWriter::new(file);
    for record in records {
        writeln!(file, "{}", line(record))?;
    }
    file.flush().with_context(|| format!("writing {}", path.display()))
}

fn number(value: &Value, name: &str) -> anyhow::Result<u64> {
    value[name].as_u64().with_context(|| format!("no number `{name}`"))
}

fn unpair(value: &Value) -> anyhow::Result<Seen> {
    if value.is_null() {
        return Ok(None);
    }
    let part = |index: usize| value[index].as_u64().context("`seen` is a value and a revision");
    Ok(Some((part(0)?, part(1)?)))
}

fn parse(text: &str) -> anyhow::Result<Recorded> {
    let value: Value = serde_json::from_str(text)?;
    let (asked, answer) = (&value["action"], &value["answer"]);
    let action = match asked["op"].as_str() {
        Some("get") => Action::Get,
        Some("put") => Action::Put(number(asked, "value")?),
        Some("delete") => Action::Delete,
        Some("cas") if asked.get("if_value").is_some() => {
            Action::Cas(Compare::Value(number(asked, "if_value")?), number(asked, "value")?)
        }
        Some("cas") => Action::Cas(Compare::ModRevision(number(asked, "if_mod")?), number(asked, "value")?),
        other => bail!("unknown operation {other:?}"),
    };
    let input = KvInput { key: value["key"].as_str().context("no text `key`")?.into(), action };
    let client = u32::try_from(number(&value, "client")?)?;
    let call = number(&value, "call")?;
    let operation = if answer.is_null() {
        Operation::unknown(client, call, input)
    } else {
        let revision = number(answer, "revision")?;
        let output = match answer["is"].as_str() {
            Some("got") => KvOutput::Got { seen: unpair(&answer["seen"])?, revision },
            Some("written") => KvOutput::Written { revision },
            Some("deleted") => KvOutput::Deleted { previous: unpair(&answer["seen"])?, revision },
            Some("not_swapped") => KvOutput::NotSwapped { seen: unpair(&answer["seen"])?, revision },
            other => bail!("unknown answer {other:?}"),
        };
        Operation::answered(client, call, input, number(answer, "at")?, output)
    };
    let keyspace = u32::try_from(number(&value, "keyspace")?)?;
    let store = usize::try_from(number(&value, "store")?)?;
    let serializable = value["serializable"] == Value::Bool(true);
    Ok(Recorded { operation, keyspace, store, serializable })
}

/// Checks the history in a file; whether it holds.
pub(crate) fn check_file(path: &Path) -> anyhow::Result<bool> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut records = Vec::new();
    for (index, text) in BufReader::new(file).lines().enumerate() {
        let record = parse(&text?);
        records.push(record.with_context(|| format!("{}, line {}", path.display(), index + 1))?);
    }
    let mut findings = Findings::default();
    check_history(&records, &mut findings);
    for note in &findings.notes {
        println!("  {note}");
    }
    for violation in &findings.violations {
        println!("VIOLATION: {violation}");
    }
    if let Some(page) = &findings.page {
        let page_path = path.with_extension("html");
        std::fs::write(&page_path, page)?;
        println!("window: {}", page_path.display());
    }
    Ok(findings.violations.is_empty())
}
