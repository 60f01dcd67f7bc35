//! `pontoon log-level`: what a running store logs.

use clap::Args;
use pontoon_proto::v1::SetLogFilterRequest;
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};

/// Arguments of `log-level`.
#[derive(Args, Debug)]
pub(crate) struct LogLevelArgs {
    /// A level, or target=level pairs with commas between them, such as info,pontoon_node=debug; none: what the store was
    /// started with
    #[arg(value_name = "FILTER", default_value = "")]
    filter: String,
}

#[derive(Serialize)]
struct Changed {
    filter: String,
    before: String,
}

/// Asks for it.
pub(crate) async fn run(args: LogLevelArgs, global: &Global) -> anyhow::Result<()> {
    let request = SetLogFilterRequest { filter: args.filter };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.set_log_filter(request.clone()).await)
            .await?;
    let changed = Changed { filter: answer.filter, before: answer.before };
    global.output.print(&changed, |c| format!("{} is logged from now on, {} was before", c.filter, c.before))
}
