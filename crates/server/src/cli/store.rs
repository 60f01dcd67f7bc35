//! `pontoon store list`: the stores of the cluster.

use clap::Subcommand;
use pontoon_proto::v1::ListStoresRequest;
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::Hex;
use super::status::{StoreRow, store_table};

/// What to do with stores.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Show all stores, as one of them sees them
    List,
}

#[derive(Serialize)]
struct Stores {
    cluster: Hex,
    stores: Vec<StoreRow>,
}

/// Runs it.
pub(crate) async fn run(command: StoreCommand, global: &Global) -> anyhow::Result<()> {
    let StoreCommand::List = command;
    let answer =
        ask(global, Repeat::Harmless, async |client| client.list_stores(ListStoresRequest {}).await).await?;
    let answer = Stores {
        cluster: Hex(answer.cluster),
        stores: answer.stores.into_iter().map(StoreRow::from).collect(),
    };
    global.output.print(&answer, |answer| store_table(&answer.stores))
}
