//! `pontoon set-backlog-threshold`: how much may wait for a peer.

use clap::Args;
use pontoon_proto::v1::SetBacklogThresholdRequest;
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};

/// Flags of `set-backlog-threshold`.
#[derive(Args, Debug)]
pub(crate) struct BacklogArgs {
    /// Messages that may wait for one store on one connection: at least 50
    #[arg(value_name = "MSGS", value_parser = clap::value_parser!(u64).range(50..))]
    messages: u64,
    /// Bytes that may wait or be unacknowledged: 64KiB to 1GiB
    #[arg(value_name = "BYTES", value_parser = crate::config::units::size)]
    bytes: u64,
}

#[derive(Serialize)]
struct Backlog {
    messages: u64,
    bytes: u64,
    messages_before: u64,
    bytes_before: u64,
}

/// Sets them on the store that answers, and prints what was and what is.
pub(crate) async fn run(args: BacklogArgs, global: &Global) -> anyhow::Result<()> {
    let BacklogArgs { messages, bytes } = args;
    let request = SetBacklogThresholdRequest { messages, bytes };
    let answer =
        ask(global, Repeat::Harmless, async |client| client.set_backlog_threshold(request).await).await?;
    let (messages_before, bytes_before) = (answer.messages_before, answer.bytes_before);
    global.output.print(&Backlog { messages, bytes, messages_before, bytes_before }, |now| {
        format!(
            "the backlog threshold is {} messages and {} bytes, was {} and {}",
            now.messages, now.bytes, now.messages_before, now.bytes_before
        )
    })
}
