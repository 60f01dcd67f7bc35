//! `pontoon set-flow-control`: what waits for the room that other stores have.

use clap::Args;
use pontoon_proto::v1::{FlowControl, SetFlowControlRequest};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};

/// Flags of `set-flow-control`.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct FlowArgs {
    /// What waits for tokens: nothing, elastic work, or all
    #[arg(long, value_name = "off|elastic|all", value_parser = crate::config::units::flow_mode)]
    mode: Option<pontoon_flow::Mode>,
    /// Tokens for each other store: 1MiB to 64MiB
    #[arg(long, value_name = "SIZE", value_parser = crate::config::units::size)]
    regular: Option<u64>,
    /// The part of them that elastic work may take: 1MiB to what --regular is
    #[arg(long, value_name = "SIZE", value_parser = crate::config::units::size)]
    elastic: Option<u64>,
    /// What a quorum may need beyond the tokens: 1MiB to 128MiB
    #[arg(long, value_name = "SIZE", value_parser = crate::config::units::size)]
    forced: Option<u64>,
}

#[derive(Serialize)]
struct Settings {
    mode: String,
    regular_limit_bytes: u64,
    elastic_limit_bytes: u64,
    forced_limit_bytes: u64,
}

impl From<Option<FlowControl>> for Settings {
    fn from(flow: Option<FlowControl>) -> Self {
        let flow = flow.unwrap_or_default();
        Self {
            mode: flow.mode,
            regular_limit_bytes: flow.regular_limit_bytes,
            elastic_limit_bytes: flow.elastic_limit_bytes,
            forced_limit_bytes: flow.forced_limit_bytes,
        }
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, regular_limit_bytes, elastic_limit_bytes, forced_limit_bytes } = self;
        write!(
            f,
            "{mode} with {regular_limit_bytes} bytes, {elastic_limit_bytes} for elastic work, {forced_limit_bytes} by force"
        )
    }
}

#[derive(Serialize)]
struct Changed {
    before: Settings,
    now: Settings,
}

/// Sets it on the store that answers, and prints what was and what is.
pub(crate) async fn run(args: FlowArgs, global: &Global) -> anyhow::Result<()> {
    let request = SetFlowControlRequest {
        mode: args.mode.map(|mode| mode.name().to_owned()),
        regular_limit_bytes: args.regular,
        elastic_limit_bytes: args.elastic,
        forced_limit_bytes: args.forced,
    };
    let answer =
        ask(global, Repeat::Harmless, async |client| client.set_flow_control(request.clone()).await).await?;
    let changed = Changed { before: answer.before.into(), now: answer.now.into() };
    global
        .output
        .print(&changed, |changed| format!("flow control is {}, was {}", changed.now, changed.before))
}
