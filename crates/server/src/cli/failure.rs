//! `pontoon failure-test`: failures that are made on purpose.

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use pontoon_node::{CrashPoint, FailureTest};
use pontoon_proto::v1::FailureTestRequest;
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};

/// Arguments of `failure-test`.
#[derive(Args, Debug)]
pub(crate) struct FailureArgs {
    /// Which failure; `clear`: none any more
    #[arg(value_name = "NAME", value_parser = names())]
    test: String,
}

/// The steps of drivers are many, and said in the documentation.
fn names() -> PossibleValuesParser {
    let tests = FailureTest::ALL.iter().map(|test| PossibleValue::new(test.name()));
    let crashes = CrashPoint::all().map(|point| PossibleValue::new(point.to_string()).hide(true));
    tests.chain([PossibleValue::new("clear")]).chain(crashes).collect::<Vec<_>>().into()
}

#[derive(Serialize)]
struct Armed {
    test: String,
}

/// Asks for it.
pub(crate) async fn run(args: FailureArgs, global: &Global) -> anyhow::Result<()> {
    let request = FailureTestRequest { test: args.test };
    ask(global, Repeat::MightDoItTwice, async |client| client.failure_test(request.clone()).await).await?;
    global.output.print(&Armed { test: request.test }, |armed| match armed.test.as_str() {
        "clear" => "no failure is made any more".to_owned(),
        test => format!("{test} is made from now on; `clear` ends it"),
    })
}
