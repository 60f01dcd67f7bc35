//! What is served over plain HTTP: `/metrics`, `/livez`, `/readyz`, `/health`, `/version`. On the client port, where
//! etcd's users and tools look for it, and on a port of its own.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pontoon_flow::{Class, StoreView};
use pontoon_kv::{ETCD_VERSION, Engine, UpkeepStats};
use pontoon_node::meta::DEFAULT_GROUP;
use pontoon_node::{FlowView, Node};
use pontoon_transport::{Direction, LinkStatus};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::resident_bytes;

/// The pages of one store.
pub(crate) fn routes(node: Node, engine: Engine, upkeep: Arc<UpkeepStats>) -> Router {
    let mut metrics = Registry::default();
    metrics.register_collector(Box::new(ProcessMetrics));
    let ours = metrics.sub_registry_with_prefix("pontoon");
    ours.register_collector(Box::new(KeyspaceMetrics { engine, upkeep }));
    ours.register_collector(Box::new(NodeMetrics(node.clone())));
    let shared = Arc::new(Side { node, metrics });
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/health", get(health))
        .route("/version", get(version))
        .with_state(shared)
}

/// Serves them on a port of their own until `stop`.
pub(crate) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let served = axum::serve(listener, routes).with_graceful_shutdown(async move { stop.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "the metrics listener failed");
    }
}

struct Side {
    node: Node,
    metrics: Registry,
}

async fn metrics_page(State(side): State<Arc<Side>>) -> Response {
    let mut page = String::new();
    match text::encode(&mut page, &side.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], page).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Alive: the process answers and its disk has not failed. A store that waits for a quorum is alive.
async fn live(State(side): State<Arc<Side>>) -> Response {
    match side.node.log().stats().failed {
        None => "ok\n".into_response(),
        Some(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the log store has failed: {why}\n")).into_response()
        }
    }
}

/// Ready: a linearizable read of the default keyspace goes through.
async fn ready(State(side): State<Arc<Side>>) -> Response {
    match side.node.read_barrier(DEFAULT_GROUP).await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// As etcd's `/health`.
async fn health(State(side): State<Arc<Side>>) -> Response {
    let (code, body) = match side.node.read_barrier(DEFAULT_GROUP).await {
        Ok(_) => (StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()),
        Err(error) => {
            let mut body = String::from("{\"health\":\"false\",\"reason\":");
            let _ = write!(body, "{}}}", serde_json::Value::from(error.to_string()));
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// As etcd's `/version`: what etcd's tools look at, and this build's own version.
async fn version() -> Response {
    let minor = ETCD_VERSION.rsplit_once('.').map_or(ETCD_VERSION, |(minor, _)| minor);
    let body = serde_json::json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": format!("{minor}.0"),
        "pontoon": env!("CARGO_PKG_VERSION"),
    });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// What every process tells, by its usual name: `etcdctl check datascale` looks for it.
#[derive(Debug)]
struct ProcessMetrics;

impl prometheus_client::collector::Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Resident memory";
        let name = "process_resident_memory_bytes";
        let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(resident_bytes()).unwrap_or(i64::MAX)).encode(encoder)
    }
}

/// Reads the counters where they are kept, at the moment of the scrape.
#[derive(Debug)]
struct NodeMetrics(Node);

/// What one connection to or from a peer counts. Labels: store, lane and direction, which are few whatever peers do.
struct LinkMetric {
    name: &'static str,
    help: &'static str,
    counts: bool,
    value: fn(&LinkStatus) -> f64,
}

const LINK_METRICS: [LinkMetric; 11] = [
    LinkMetric {
        name: "peer_link_up",
        help: "1 while the connection is open and greeted",
        counts: false,
        value: |l| f64::from(l.connected),
    },
    LinkMetric {
        name: "peer_link_attempts",
        help: "Attempts to connect that ended (out), greetings received (in)",
        counts: true,
        value: |l| l.attempts as f64,
    },
    LinkMetric {
        name: "peer_link_successes",
        help: "Attempts that led to a connection",
        counts: true,
        value: |l| l.successes as f64,
    },
    LinkMetric {
        name: "peer_link_disconnections",
        help: "Connections that were open and were lost",
        counts: true,
        value: |l| l.disconnections as f64,
    },
    LinkMetric {
        name: "peer_link_connected_seconds",
        help: "For how long there was a connection, in all",
        counts: true,
        value: |l| l.connected_total.as_secs_f64(),
    },
    LinkMetric {
        name: "peer_link_backoff_seconds",
        help: "The present wait between attempts",
        counts: false,
        value: |l| l.backoff.as_secs_f64(),
    },
    LinkMetric {
        name: "peer_link_queued_bytes",
        help: "Bytes that wait to be sent",
        counts: false,
        value: |l| l.queued_bytes as f64,
    },
    LinkMetric {
        name: "peer_link_in_flight_bytes",
        help: "Bytes given to the connection that the peer has not acknowledged",
        counts: false,
        value: |l| l.in_flight_bytes as f64,
    },
    LinkMetric {
        name: "peer_link_credit_bytes",
        help: "What the peer lets this store send before it has processed more (out, log lane); +Inf: no bound",
        counts: false,
        value: |l| l.credit_bytes.map_or(f64::INFINITY, |bytes| bytes as f64),
    },
    LinkMetric {
        name: "peer_link_large_bytes",
        help: "Of messages in pieces: what is yet to be sent (out), what has come of those that are not whole (in)",
        counts: false,
        value: |l| l.large_bytes as f64,
    },
    LinkMetric {
        name: "peer_link_unprocessed_bytes",
        help: "What the store has sent, on all its connections, and this one has not processed (in)",
        counts: false,
        value: |l| l.unprocessed_bytes as f64,
    },
];

fn link_labels(link: &LinkStatus) -> [(&'static str, String); 3] {
    let direction = match link.direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    };
    let store = format!("{:016x}", link.store.0);
    [("store", store), ("lane", link.lane.to_string()), ("direction", direction.to_owned())]
}

fn encode_links(encoder: &mut DescriptorEncoder<'_>, links: &[LinkStatus]) -> Result<(), std::fmt::Error> {
    for metric in &LINK_METRICS {
        let kind = if metric.counts { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
        for link in links {
            let (labels, value) = (link_labels(link), (metric.value)(link));
            let one = family.encode_family(&labels)?;
            if metric.counts {
                ConstCounter::new(value).encode(one)?;
            } else {
                ConstGauge::new(value).encode(one)?;
            }
        }
    }
    let help = "1 while something waits to be sent, for what";
    let mut family = encoder.encode_descriptor("peer_link_waiting", help, None, MetricType::Gauge)?;
    for link in links {
        if let Some(what) = link.waits_for {
            let [store, lane, direction] = link_labels(link);
            let labels = [store, lane, direction, ("for", what.name().to_owned())];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
    }
    let help = "1 for the kind of the last failure, which stays when the next attempt succeeds; its text is in `status`";
    let mut family = encoder.encode_descriptor("peer_link_last_error", help, None, MetricType::Gauge)?;
    for link in links {
        if let Some(kind) = link.last_error_kind {
            let [store, lane, direction] = link_labels(link);
            let labels = [store, lane, direction, ("kind", kind.name().to_owned())];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// What is counted for each destination store and class of work.
struct FlowMetric {
    name: &'static str,
    help: &'static str,
    counts: bool,
    value: fn(&StoreView, Class) -> f64,
}

const FLOW_METRICS: [FlowMetric; 6] = [
    FlowMetric {
        name: "flow_eval_tokens_bytes",
        help: "Tokens left for commands to begin; negative: debt",
        counts: false,
        value: |view, class| *view.eval_available.get(class) as f64,
    },
    FlowMetric {
        name: "flow_send_tokens_bytes",
        help: "Tokens left for entries to be sent; negative: debt",
        counts: false,
        value: |view, class| *view.send_available.get(class) as f64,
    },
    FlowMetric {
        name: "flow_waiting_groups",
        help: "Groups whose commands wait for tokens",
        counts: false,
        value: |view, class| *view.waiting_groups.get(class) as f64,
    },
    FlowMetric {
        name: "flow_waits",
        help: "Times that a group had to wait for tokens before its commands began",
        counts: true,
        value: |view, class| *view.counters.waits.get(class) as f64,
    },
    FlowMetric {
        name: "flow_deducted_bytes",
        help: "Send tokens taken",
        counts: true,
        value: |view, class| *view.counters.deducted.get(class) as f64,
    },
    FlowMetric {
        name: "flow_disconnected_bytes",
        help: "Send tokens that came back because a stream closed, rather than by admission",
        counts: true,
        value: |view, class| *view.counters.disconnected.get(class) as f64,
    },
];

fn encode_flow(encoder: &mut DescriptorEncoder<'_>, flow: &FlowView) -> Result<(), std::fmt::Error> {
    let store = |view: &StoreView| ("store", format!("{:016x}", view.store.0));
    for metric in &FLOW_METRICS {
        let kind = if metric.counts { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
        for view in &flow.stores {
            for class in Class::ALL {
                let labels = [store(view), ("class", class.name().to_owned())];
                let (value, one) = ((metric.value)(view, class), family.encode_family(&labels)?);
                if metric.counts {
                    ConstCounter::new(value).encode(one)?;
                } else {
                    ConstGauge::new(value).encode(one)?;
                }
            }
        }
    }
    let help = "Groups with a send queue that waits for tokens";
    let mut family = encoder.encode_descriptor("flow_waiting_queues", help, None, MetricType::Gauge)?;
    for view in &flow.stores {
        ConstGauge::new(view.waiting_queues as f64).encode(family.encode_family(&[store(view)])?)?;
    }
    let help = "Bytes sent beyond the tokens for a quorum, and not admitted";
    let mut family = encoder.encode_descriptor("flow_forced_bytes", help, None, MetricType::Gauge)?;
    for view in &flow.stores {
        ConstGauge::new(view.forced_bytes as f64).encode(family.encode_family(&[store(view)])?)?;
    }
    let help = "What bounds the tokens for commands to begin beside the limits: what the store admits in half a second";
    let mut family = encoder.encode_descriptor("flow_window_bytes", help, None, MetricType::Gauge)?;
    for view in &flow.stores {
        ConstGauge::new(view.window_bytes as f64).encode(family.encode_family(&[store(view)])?)?;
    }
    let help = "The pace that elastic work and catching up share, in bytes a second";
    let pace = ConstGauge::new(flow.elastic_bytes_per_second as f64);
    pace.encode(encoder.encode_descriptor(
        "flow_elastic_bytes_per_second",
        help,
        None,
        MetricType::Gauge,
    )?)?;
    let help = "Tokens that came back and had not been taken: always 0";
    let unaccounted = ConstGauge::new(flow.unaccounted_bytes as f64);
    let kind = MetricType::Gauge;
    unaccounted.encode(encoder.encode_descriptor("flow_unaccounted_bytes", help, None, kind)?)
}

/// What the keyspaces of this store hold, all together: labels for each would be as many as there are tenants.
#[derive(Debug)]
struct KeyspaceMetrics {
    engine: Engine,
    upkeep: Arc<UpkeepStats>,
}

impl prometheus_client::collector::Collector for KeyspaceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut counter = |name: &str, help: &str, value: &AtomicU64| {
            let metric = ConstCounter::new(value.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let upkeep = &*self.upkeep;
        counter("auto_compactions", "Compactions by rule, of keyspaces led here", &upkeep.compactions)?;
        let help = "Compactions by rule that could not be replicated";
        counter("auto_compaction_failures", help, &upkeep.failed_compactions)?;
        let help = "Alarms of the quota that were taken back because there was room again";
        counter("quota_alarms_cleared", help, &upkeep.alarms_cleared)?;
        let (mut bytes, mut full, mut largest) = (0, 0_u64, 0);
        for keyspace in self.engine.keyspaces() {
            let size = keyspace.size_bytes();
            bytes += size;
            largest = largest.max(size);
            full += u64::from(keyspace.is_out_of_space());
        }
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(value as f64);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("keyspace_bytes", "Bytes of the versions in all keyspaces here, before compression", bytes)?;
        gauge("keyspace_bytes_largest", "The same, of the largest keyspace", largest)?;
        gauge("keyspaces_out_of_space", "Keyspaces here that take no more puts, by alarm", full)
    }
}

impl prometheus_client::collector::Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let log = self.0.log().stats();
        let load = self.0.load();
        let mut counter = |name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("log_syncs", "Disk syncs of the journal, one for all groups of a round", log.syncs)?;
        counter("log_batches", "Batches of the shards that became durable", log.batches)?;
        counter("log_entries", "Log entries that became durable", log.entries)?;
        counter("log_written_bytes", "Bytes written to the journal", log.bytes_written)?;
        counter("log_checkpoints", "Journal segments moved to the cold store", log.checkpoints)?;
        counter("log_disk_reads", "Reads of entries that were in no cache", log.disk_reads)?;
        let all_links = self.0.transport().links();
        let mut links = [0_u64; 5];
        for link in &all_links {
            links[0] += u64::from(link.connected);
            links[1] += link.disconnections;
            links[2] += link.messages;
            links[3] += link.bytes;
            links[4] += link.dropped;
        }
        counter("peer_disconnections", "Peer connections lost, all links and lanes", links[1])?;
        counter("peer_messages", "Messages sent to and received from peers", links[2])?;
        counter("peer_bytes", "Bytes sent to and received from peers", links[3])?;
        counter("peer_dropped_messages", "Messages dropped at a full queue or a broken stream", links[4])?;
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("groups", "Groups served by this store", self.0.groups().len() as f64)?;
        gauge("groups_led", "Groups led by this store", self.0.groups_led() as f64)?;
        gauge("peer_connections", "Peer connections that are up, both directions", links[0] as f64)?;
        gauge(
            "log_failed",
            "1 once a write or sync of the journal has failed",
            f64::from(log.failed.is_some()),
        )?;
        gauge("log_space_low", "1 while the disk has less room than the reserve", f64::from(log.space_low))?;
        gauge("log_pending_bytes", "Bytes of batches that wait for their sync", log.pending_bytes as f64)?;
        gauge("log_cached_bytes", "Bytes of recent entries kept in memory", log.cached_bytes as f64)?;
        gauge("log_recovery_seconds", "How long opening the log store took", log.recovery_seconds)?;
        gauge("waiting_proposals", "Commands of this store's clients that wait", load.proposals as f64)?;
        gauge("waiting_proposal_bytes", "Bytes of those commands", load.proposal_bytes as f64)?;
        gauge("waiting_reads", "Reads of this store's clients that wait", load.reads as f64)?;
        encode_links(&mut encoder, &all_links)?;
        encode_flow(&mut encoder, &self.0.flow())
    }
}
