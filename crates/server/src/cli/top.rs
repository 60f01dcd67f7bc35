//! `pontoon top`: the stores, the links of the one that is asked, and the groups where most happens, again and again.
//!
//! On a terminal it draws over what it drew before, by a handful of control sequences that every terminal knows; elsewhere it
//! looks twice, prints once and ends, so that a pipe or a script gets a page of text, or one JSON document.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use pontoon_proto::v1::status_response::View;
use pontoon_proto::v1::{
    ClusterStatus, Connection, ConnectionDirection, ConnectionLane, IdentityRequest, StatusRequest,
};
use serde::Serialize;

use super::Global;
use super::connect::{Repeat, ask};
use super::output::{Hex, OutputFormat, or_dash, table};
use super::screen::{self, Size};
use super::status::{kind_name, state_name};
use crate::config::units;

/// Draws on the terminal's other screen, with nothing blinking in it; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first place of the screen; clears the rest of a line; clears the rest of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";
/// Below each page on a terminal.
const FOOTER: &str = "\n\nCtrl-C ends it";

/// Arguments of `top`.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// How often to look
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::positive_duration)]
    interval: Duration,

    /// How many groups to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
}

/// The cluster at one moment.
struct Sample {
    at: Instant,
    status: ClusterStatus,
}

#[derive(Debug, Serialize)]
struct StoreRow {
    store: Hex,
    name: String,
    state: &'static str,
    alive: bool,
    leaders: u64,
    replicas: u64,
    client: String,
}

/// All connections with one other store.
#[derive(Debug, Serialize)]
struct LinkRow {
    store: Hex,
    name: String,
    /// Each lane: up or down as seen from here, and from there.
    lanes: BTreeMap<&'static str, Lane>,
    queued_bytes: u64,
    /// How often one of them was lost since the asked store was started.
    disconnections: u64,
    last_error: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Lane {
    out: Option<bool>,
    #[serde(rename = "in")]
    inward: Option<bool>,
}

#[derive(Debug, Serialize)]
struct GroupRow {
    group: String,
    group_id: u64,
    kind: &'static str,
    leader: Option<String>,
    term: u64,
    replicas: usize,
    applied: Option<u64>,
    /// Entries applied a second; absent where the asked store has no replica.
    entries_per_second: Option<f64>,
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Page {
    cluster: Hex,
    asked: String,
    seconds: f64,
    stores: Vec<StoreRow>,
    links: Vec<LinkRow>,
    /// Those where most happens first; no more than were asked for.
    groups: Vec<GroupRow>,
    groups_total: usize,
    /// Groups without a leader, as far as the asked store knows.
    without_leader: usize,
    entries_per_second: f64,
}

fn lane_name(lane: ConnectionLane) -> &'static str {
    match lane {
        ConnectionLane::Control => "control",
        ConnectionLane::Log => "log",
        ConnectionLane::Snapshot => "snapshot",
        ConnectionLane::Unspecified => "unknown",
    }
}

fn links(connections: &[Connection], names: &BTreeMap<u64, String>) -> Vec<LinkRow> {
    let mut links: BTreeMap<u64, LinkRow> = BTreeMap::new();
    for connection in connections {
        let link = links.entry(connection.store).or_insert_with(|| LinkRow {
            store: Hex(connection.store),
            name: names.get(&connection.store).cloned().unwrap_or_else(|| Hex(connection.store).to_string()),
            lanes: BTreeMap::new(),
            queued_bytes: 0,
            disconnections: 0,
            last_error: None,
        });
        let lane = link.lanes.entry(lane_name(connection.lane())).or_default();
        match connection.direction() {
            ConnectionDirection::Out => lane.out = Some(connection.connected),
            ConnectionDirection::In => lane.inward = Some(connection.connected),
            ConnectionDirection::Unspecified => {}
        }
        link.queued_bytes += connection.queued_bytes;
        link.disconnections += connection.disconnections;
        if !connection.connected && connection.last_error.is_some() {
            link.last_error.clone_from(&connection.last_error);
        }
    }
    let mut links: Vec<_> = links.into_values().collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn page(before: &Sample, now: &Sample, asked: &str, rows: usize) -> Page {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
    let applied: BTreeMap<_, _> =
        before.status.groups.iter().filter_map(|g| Some((g.group_id, g.applied?))).collect();
    let names: BTreeMap<_, _> = now.status.stores.iter().map(|s| (s.store, s.name.clone())).collect();
    let mut groups: Vec<_> = now
        .status
        .groups
        .iter()
        .map(|g| GroupRow {
            group: g.group.clone(),
            group_id: g.group_id,
            kind: kind_name(g.kind()),
            leader: g.leader.map(|l| names.get(&l).cloned().unwrap_or_else(|| Hex(l).to_string())),
            term: g.term,
            replicas: g.replicas.len(),
            applied: g.applied,
            entries_per_second: g
                .applied
                .zip(applied.get(&g.group_id))
                // A replica that began anew has less than before.
                .map(|(now, before)| now.saturating_sub(*before) as f64 / seconds),
        })
        .collect();
    let rate = |g: &GroupRow| g.entries_per_second.unwrap_or(0.0);
    groups.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then_with(|| a.group_id.cmp(&b.group_id)));
    let stores = now.status.stores.iter().map(|s| StoreRow {
        store: Hex(s.store),
        name: s.name.clone(),
        state: state_name(s.state()),
        alive: s.alive,
        leaders: s.leaders,
        replicas: s.replicas,
        client: s.client.clone(),
    });
    Page {
        cluster: Hex(now.status.cluster),
        asked: asked.to_owned(),
        seconds,
        stores: stores.collect(),
        links: links(&now.status.connections, &names),
        groups_total: groups.len(),
        without_leader: groups.iter().filter(|g| g.leader.is_none()).count(),
        entries_per_second: groups.iter().map(rate).sum(),
        groups: {
            groups.truncate(rows);
            groups
        },
    }
}

fn up(state: Option<bool>) -> &'static str {
    match state {
        Some(true) => "up",
        Some(false) => "down",
        None => "-",
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn text(page: &Page) -> String {
    let mut out = String::new();
    let led = match page.without_leader {
        0 => String::new(),
        n => format!(", {n} WITHOUT A LEADER"),
    };
    // A String takes all that is written to it.
    let _ = writeln!(
        out,
        "cluster {}  seen from {}\n{} groups{led}  {:.0} entries/s over {:.1} s\n",
        page.cluster, page.asked, page.groups_total, page.entries_per_second, page.seconds
    );
    let stores = page.stores.iter().map(|s| {
        [
            s.name.clone(),
            s.state.to_owned(),
            if s.alive { "yes" } else { "NO" }.to_owned(),
            s.leaders.to_string(),
            s.replicas.to_string(),
            s.client.clone(),
        ]
    });
    let _ = writeln!(
        out,
        "{}\n",
        table(&["store", "state", "in touch", "leads>", "replicas>", "client"], stores)
    );
    if !page.links.is_empty() {
        let links = page.links.iter().map(|l| {
            let lane = |name: &str| {
                l.lanes
                    .get(name)
                    .map_or_else(|| "-".to_owned(), |l| format!("{}/{}", up(l.out), up(l.inward)))
            };
            [
                l.name.clone(),
                lane("control"),
                lane("log"),
                lane("snapshot"),
                size(l.queued_bytes),
                l.disconnections.to_string(),
                or_dash(l.last_error.as_ref()),
            ]
        });
        let header = ["link to", "control out/in", "log", "snapshot", "queued>", "lost>", "last error"];
        let _ = writeln!(out, "{}\n", table(&header, links));
    }
    let groups = page.groups.iter().map(|g| {
        [
            g.group.clone(),
            g.kind.to_owned(),
            or_dash(g.leader.as_ref()),
            g.entries_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")),
            or_dash(g.applied),
            g.term.to_string(),
            g.replicas.to_string(),
        ]
    });
    let header = ["group", "kind", "leader", "entries/s>", "applied>", "term>", "replicas>"];
    out.push_str(&table(&header, groups));
    if page.groups_total > page.groups.len() {
        let _ = write!(out, "\n... and {} more", page.groups_total - page.groups.len());
    }
    out
}

async fn look(global: &Global) -> anyhow::Result<Sample> {
    let request = StatusRequest::default();
    let answer = ask(global, Repeat::Harmless, async |client| client.status(request.clone()).await).await?;
    match answer.view {
        Some(View::Cluster(status)) => Ok(Sample { at: Instant::now(), status }),
        _ => bail!("the store answered with something that was not asked for; its version is not this one's"),
    }
}

async fn asked(global: &Global) -> anyhow::Result<String> {
    let answer =
        ask(global, Repeat::Harmless, async |client| client.identity(IdentityRequest {}).await).await?;
    Ok(answer.name)
}

/// Runs it.
pub(crate) async fn run(args: TopArgs, global: &Global) -> anyhow::Result<()> {
    let name = asked(global).await?;
    let mut before = look(global).await?;
    tokio::time::sleep(args.interval).await;
    if !std::io::stdout().is_terminal() || global.output == OutputFormat::Json {
        let now = look(global).await?;
        return global.output.print(&page(&before, &now, &name, args.rows), text);
    }
    let _screen = Screen::enter()?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        // A cluster in trouble is when it is looked at: the last page stays until there is another.
        let shown = match look(global).await {
            Ok(now) => {
                let page = page(&before, &now, &name, args.rows);
                before = now;
                fitted(page, screen::size(std::io::stdout()))
            }
            Err(error) => format!("no store answers: {error:#}{FOOTER}"),
        };
        // Asked for again each time: a window changes its size.
        put(&frame(&shown, screen::size(std::io::stdout())))?;
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = term.recv() => return Ok(()),
        }
    }
}

/// The terminal's other screen, for as long as this lives.
struct Screen;

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        put(ENTER)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal is gone if this fails, and nobody sees what is left.
        let _ = put(LEAVE);
    }
}

fn put(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The page with as many groups as there is room for.
fn fitted(mut page: Page, size: Option<Size>) -> String {
    let shown = format!("{}{FOOTER}", text(&page));
    let over = size.map_or(0, |size| shown.lines().count().saturating_sub(size.rows));
    if over == 0 {
        return shown;
    }
    // The line that counts the others comes in addition, if it is not there.
    let counted = usize::from(page.groups.len() == page.groups_total);
    page.groups.truncate(page.groups.len().saturating_sub(over + counted));
    format!("{}{FOOTER}", text(&page))
}

/// Over what was there before, line by line, so that nothing flickers. What is too much for the screen would move it: the
/// lines before the last one give way.
fn frame(text: &str, size: Option<Size>) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    if let Some(size) = size
        && lines.len() > size.rows
        && let Some(last) = lines.pop()
    {
        lines.truncate(size.rows - 1);
        lines.push(last);
    }
    let columns = size.map_or(usize::MAX, |size| size.columns);
    let lines: Vec<_> = lines.into_iter().map(|line| screen::clip(line, columns) + CLEAR_LINE).collect();
    format!("{HOME}{}{CLEAR_REST}", lines.join("\r\n"))
}

#[cfg(test)]
mod tests {
    use pontoon_proto::v1::{GroupKind, GroupSummary, StoreSummary};

    use super::*;

    fn sample(at: Instant, applied: &[Option<u64>]) -> Sample {
        let group = |(n, applied): (usize, &Option<u64>)| GroupSummary {
            group: format!("g{n}"),
            group_id: n as u64,
            kind: GroupKind::Kv.into(),
            leader: (n != 1).then_some(7),
            applied: *applied,
            ..GroupSummary::default()
        };
        let store = StoreSummary { store: 7, name: "n1".into(), alive: false, ..StoreSummary::default() };
        let lane = |direction: ConnectionDirection, connected| Connection {
            store: 7,
            direction: direction.into(),
            lane: ConnectionLane::Control.into(),
            connected,
            queued_bytes: 20_000,
            disconnections: 1,
            last_error: Some("refused".into()),
            ..Connection::default()
        };
        let status = ClusterStatus {
            cluster: 0xc,
            stores: vec![store],
            groups: applied.iter().enumerate().map(group).collect(),
            connections: vec![lane(ConnectionDirection::Out, false), lane(ConnectionDirection::In, true)],
            ..ClusterStatus::default()
        };
        Sample { at, status }
    }

    #[test]
    fn the_busiest_groups_come_first_and_the_rest_is_counted() {
        let start = Instant::now();
        let before = sample(start, &[Some(10), Some(100), None, Some(500)]);
        let now = sample(start + Duration::from_secs(2), &[Some(30), Some(300), Some(9), Some(400)]);
        let page = page(&before, &now, "n1", 2);
        let rates: Vec<_> = page.groups.iter().map(|g| (g.group.as_str(), g.entries_per_second)).collect();
        assert_eq!(rates, [("g1", Some(100.0)), ("g0", Some(10.0))]);
        assert_eq!((page.groups_total, page.without_leader), (4, 1));
        let text = text(&page);
        for part in [
            "1 WITHOUT A LEADER",
            "110 entries/s over 2.0 s",
            "down/up",
            "39 KiB",
            "refused",
            "and 2 more",
            "NO",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn a_frame_covers_the_one_before() {
        assert_eq!(frame("a\nb", None), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }

    #[test]
    fn a_small_terminal_shows_fewer_groups_and_neither_wraps_nor_scrolls() {
        let start = Instant::now();
        let many = vec![Some(10); 50];
        let (before, now) = (sample(start, &many), sample(start + Duration::from_secs(2), &many));
        let whole = page(&before, &now, "n1", 50);
        let size = Size { columns: 40, rows: 20 };
        let shown = fitted(page(&before, &now, "n1", 50), Some(size));
        assert_eq!(shown.lines().count(), 20, "{shown}");
        assert!(shown.contains("\n... and 43 more\n") && shown.ends_with("Ctrl-C ends it"), "{shown}");
        assert_eq!(fitted(whole, None).lines().count(), 20 + 42);
        let tiny = Size { columns: 10, rows: 3 };
        let drawn = frame(&shown, Some(tiny));
        let lines: Vec<_> = drawn.trim_start_matches(HOME).split("\r\n").collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines.iter().all(|l| l.split('\x1b').next().is_some_and(|l| l.chars().count() <= 10)),
            "{lines:?}"
        );
    }
}
