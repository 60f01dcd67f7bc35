//! `pontoon memory`: what a store holds in memory.

use std::collections::BTreeMap;

use pontoon_proto::v1::MemoryRequest;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::table;

/// Prints every figure of the store that answers.
pub(crate) async fn run(global: &Global) -> anyhow::Result<()> {
    let answer = ask(global, Repeat::Harmless, async |client| client.memory(MemoryRequest {}).await).await?;
    let figures: BTreeMap<_, _> =
        answer.figures.into_iter().map(|figure| (figure.name, figure.value)).collect();
    global.output.print(&figures, |figures| {
        table(&["what", "value>"], figures.iter().map(|(name, value)| [name.clone(), value.to_string()]))
    })
}
