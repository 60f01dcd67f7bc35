//! `pontoon leave`, `kick` and `moves`: stores that go, and the replicas that move because of it.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use pontoon_proto::v1::{
    KickStoreRequest, LeaveRequest, ListMovesRequest, ListMovesResponse, ListStoresRequest, MemberPhase, Move,
};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::{Hex, note, table};
use super::screen;
use crate::config::{HostPort, units};

/// How often a move is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// The width of the bar on a terminal.
const BAR: usize = 30;

/// How to wait for a store to be gone.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// Return as soon as the wish is noted; `pontoon moves` and `store list` show the rest
    #[arg(long)]
    detach: bool,

    /// How long to wait until the store is gone
    #[arg(long, value_name = "D", default_value = "10m", value_parser = units::positive_duration)]
    wait: Duration,
}

/// Flags of `leave`.
#[derive(Args, Debug)]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    wait: WaitArgs,
}

/// Flags of `kick`.
#[derive(Args, Debug)]
pub(crate) struct KickArgs {
    /// The store: its name, its peer address or the first digits of its id
    store: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Flags of `moves`.
#[derive(Args, Debug)]
pub(crate) struct MovesArgs {
    /// Show again and again until nothing moves any more
    #[arg(long)]
    watch: bool,
}

#[derive(Serialize)]
struct Gone {
    store: Hex,
    name: String,
    /// `left`, `kicked`, or with --detach `leaving`.
    state: &'static str,
}

/// Lets the store that is asked leave.
pub(crate) async fn leave(args: LeaveArgs, global: &Global) -> anyhow::Result<()> {
    // The store that leaves will not be there to tell of its end.
    let stores =
        ask(global, Repeat::Harmless, async |client| client.list_stores(ListStoresRequest {}).await).await?;
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.leave(LeaveRequest {}).await).await?;
    let others = stores.stores.iter().filter(|s| s.store != answer.store);
    // Those that were named, too: what stores tell clients need not be what reaches them from here.
    let known = others.filter_map(|s| s.client.parse::<HostPort>().ok());
    let endpoints = known.chain(global.endpoints.iter().cloned()).collect();
    let others = Global { endpoints, ..global.clone() };
    let left = Gone { store: Hex(answer.store), name: answer.name, state: "left" };
    gone(left, args.wait, global, &others).await
}

/// Removes a store.
pub(crate) async fn kick(args: KickArgs, global: &Global) -> anyhow::Result<()> {
    let request = KickStoreRequest { store: args.store };
    let answer =
        ask(global, Repeat::MightDoItTwice, async |client| client.kick_store(request.clone()).await).await?;
    let kicked = Gone { store: Hex(answer.store), name: answer.name, state: "kicked" };
    gone(kicked, args.wait, global, global).await
}

/// Waits until a store is gone, and says so.
async fn gone(mut gone: Gone, wait: WaitArgs, global: &Global, asked: &Global) -> anyhow::Result<()> {
    if wait.detach {
        gone.state = "leaving";
    } else {
        let name = if gone.name.is_empty() { gone.store.to_string() } else { gone.name.clone() };
        wait_until_gone(&name, gone.store.0, wait.wait, asked).await?;
    }
    global.output.print(&gone, |g| format!("{} ({}): {}", g.name, g.store, g.state))
}

async fn wait_until_gone(name: &str, store: u64, wait: Duration, global: &Global) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut progress = Progress::default();
    loop {
        let request = ListMovesRequest { store };
        let answer = ask(global, Repeat::Harmless, async |client| client.list_moves(request).await).await;
        let answer = match answer {
            Ok(answer) if !answer.known => {
                progress.end();
                return Ok(());
            }
            Ok(answer) => Some(answer),
            // Elections and restarts on the way are no failure of the move.
            Err(error) if started.elapsed() >= wait => {
                progress.end();
                return Err(error);
            }
            Err(_) => None,
        };
        if let Some(answer) = answer {
            progress.show(name, &answer);
            if started.elapsed() >= wait {
                progress.end();
                bail!(
                    "{name} still has {} replicas after {wait:?}; it goes on without this command; `pontoon moves` shows \
                     what is left",
                    answer.replicas
                );
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// A bar on a terminal, a line for each news elsewhere.
#[derive(Default)]
struct Progress {
    most: u64,
    last: Option<u64>,
}

impl Progress {
    fn show(&mut self, name: &str, answer: &ListMovesResponse) {
        self.most = self.most.max(answer.replicas);
        if self.last.replace(answer.replicas) == Some(answer.replicas) {
            return;
        }
        let (done, most) = (self.most - answer.replicas, self.most);
        if std::io::stderr().is_terminal() {
            let filled = if most == 0 { 0 } else { BAR * done as usize / most as usize };
            let bar = "#".repeat(filled) + &"-".repeat(BAR - filled);
            // What is asked for first is seen on a narrow terminal, too.
            let line = format!("[{bar}] {done}/{most} replicas moved from {name}");
            // A cursor in the last column would be on the next line on some terminals.
            let columns = screen::size(std::io::stderr()).map_or(usize::MAX, |size| size.columns - 1);
            let line = format!("\r{}\x1b[K", screen::clip(&line, columns));
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        } else {
            note(&format!("{name}: {} of {most} replicas left", answer.replicas));
        }
    }

    fn end(&self) {
        if self.last.is_some() && std::io::stderr().is_terminal() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\n");
        }
    }
}

#[derive(PartialEq, Eq, Serialize)]
struct MoveRow {
    group: String,
    group_id: u64,
    store: Hex,
    name: String,
    phase: &'static str,
}

impl From<Move> for MoveRow {
    fn from(m: Move) -> Self {
        let phase = match m.phase() {
            MemberPhase::Remove => "remove",
            _ => "catch-up",
        };
        Self { group: m.group, group_id: m.group_id, store: Hex(m.store), name: m.name, phase }
    }
}

#[derive(Serialize)]
struct Moves {
    moves: Vec<MoveRow>,
}

/// Shows what moves.
pub(crate) async fn moves(args: MovesArgs, global: &Global) -> anyhow::Result<()> {
    let mut shown: Option<Vec<MoveRow>> = None;
    loop {
        let request = ListMovesRequest { store: 0 };
        let answer = ask(global, Repeat::Harmless, async |client| client.list_moves(request).await).await?;
        let rows: Vec<_> = answer.moves.into_iter().map(MoveRow::from).collect();
        let is_rest = rows.is_empty();
        if shown.as_ref() != Some(&rows) {
            let moves = Moves { moves: rows };
            global.output.print(&moves, moves_table)?;
            shown = Some(moves.moves);
        }
        if is_rest || !args.watch {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn moves_table(moves: &Moves) -> String {
    if moves.moves.is_empty() {
        return "nothing moves".to_owned();
    }
    let rows = moves.moves.iter().map(|m| {
        vec![m.group.clone(), m.group_id.to_string(), m.name.clone(), m.store.to_string(), m.phase.to_owned()]
    });
    table(&["group", "id>", "store", "store id", "phase"], rows)
}
