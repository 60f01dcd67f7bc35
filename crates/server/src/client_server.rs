//! One client listener: the etcd services, the admin API, health and reflection, and the pages for plain HTTP, behind the
//! tower layers.

use std::time::Duration;

use pontoon_kv::EtcdServices;
use pontoon_kv::keyspace::{AuthorityLayer, BoundKeyspace, BoundKeyspaceLayer};
use pontoon_node::Node;
use pontoon_node::meta::DEFAULT_GROUP;
use pontoon_proto::v1::admin_server::AdminServer;
use pontoon_tls::ServerTls;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::option_layer;
use tower_http::classify::{GrpcCode, GrpcErrorsAsFailures, SharedClassifier};
use tower_http::trace::TraceLayer;

use crate::admin::AdminService;
use crate::consensus::NodeConsensus;
use crate::forward::ForwardLayer;
use crate::layers::{AdmissionLayer, DeadlineLayer};
use crate::pings::Guarded;
use crate::sending::SendingLayer;
use crate::tls::CertificateLayer;
use crate::work_class::WorkClassLayer;

/// Which answers are this store's failures, to be logged as errors: not those that tell a client of its own mistakes, or
/// what was not there, nor those that shed load or keep a quota: whoever sends too much would fill the log as well.
fn server_failures() -> GrpcErrorsAsFailures {
    GrpcErrorsAsFailures::new()
        .with_success(GrpcCode::Cancelled)
        .with_success(GrpcCode::InvalidArgument)
        .with_success(GrpcCode::NotFound)
        .with_success(GrpcCode::AlreadyExists)
        .with_success(GrpcCode::PermissionDenied)
        .with_success(GrpcCode::FailedPrecondition)
        .with_success(GrpcCode::OutOfRange)
        .with_success(GrpcCode::Unimplemented)
        .with_success(GrpcCode::Unauthenticated)
        .with_success(GrpcCode::ResourceExhausted)
}

/// Requests and streams that one store serves at a time, over all listeners; above it, RESOURCE_EXHAUSTED.
const REQUESTS_MAX: usize = 50_000;
/// Streams of one HTTP/2 connection. Without a value there would be no limit at all.
const STREAMS_MAX: u32 = 10_000;
/// Resets of streams that wait to be accepted: more of them close the connection.
const PENDING_RESETS_MAX: usize = 1024;
/// As etcd's own default: a client that has been silent this long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The first receive windows of a connection and of a stream: a value of 1.5 MiB fits without a pause.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// How often the health service looks.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// What all client listeners of a store share.
#[derive(Clone)]
pub(crate) struct ClientServer {
    pub(crate) node: Node,
    pub(crate) etcd: EtcdServices<NodeConsensus>,
    pub(crate) admin: AdminService,
    /// What plain HTTP gets.
    pub(crate) pages: axum::Router,
    pub(crate) certificates: CertificateLayer,
    pub(crate) forward: ForwardLayer,
    pub(crate) admission: AdmissionLayer,
    pub(crate) tls: Option<ServerTls>,
}

impl ClientServer {
    /// The shared admission of one store.
    pub(crate) fn admission() -> AdmissionLayer {
        AdmissionLayer::new(REQUESTS_MAX)
    }

    /// Serves until `stop`; with `bound`, every request of the listener means that keyspace.
    pub(crate) async fn run(self, listener: TcpListener, bound: Option<String>, stop: CancellationToken) {
        let etcd = self.etcd;
        let (health, health_service) = tonic_health::server::health_reporter();
        let watching = tokio::spawn(report_health(health, self.node, stop.clone()));
        let bound = bound.map(|name| BoundKeyspaceLayer(BoundKeyspace(name.into())));
        let reflection = |descriptors: &'static [u8]| {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (v1, v1alpha) = match (
            reflection(pontoon_proto::DESCRIPTORS).build_v1(),
            reflection(pontoon_proto::DESCRIPTORS).build_v1alpha(),
        ) {
            (Ok(v1), Ok(v1alpha)) => (v1, v1alpha),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "the descriptors in this build cannot be read; it does not serve clients");
                return;
            }
        };
        let services = Routes::new(etcd.kv())
            .add_service(etcd.watch())
            .add_service(etcd.lease())
            .add_service(etcd.lock())
            .add_service(etcd.election())
            .add_service(etcd.cluster())
            .add_service(etcd.maintenance())
            .add_service(etcd.auth())
            .add_service(etcd.restore())
            .add_service(AdminServer::new(self.admin))
            .add_service(health_service)
            .add_service(v1)
            .add_service(v1alpha);
        let routes = Routes::from(services.into_axum_router().merge(self.pages));
        let connections = pontoon_tls::accept(listener, self.tls).map(|accepted| accepted.map(Guarded::new));
        let served = Server::builder()
            // For the pages: gRPC is always HTTP/2.
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
            .layer(TraceLayer::new(SharedClassifier::new(server_failures())))
            .layer(self.admission)
            .layer(DeadlineLayer)
            .layer(WorkClassLayer)
            .layer(AuthorityLayer)
            .layer(option_layer(bound))
            .layer(self.certificates)
            .layer(SendingLayer)
            .layer(self.forward)
            .add_routes(routes)
            .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "a client listener failed");
        }
        watching.abort();
    }
}

/// Serving while the default keyspace has a leader and the disk works; not serving, first of all, when the store stops.
/// It asks nobody: a question a second to every store would keep an idle group awake.
async fn report_health(health: HealthReporter, node: Node, stop: CancellationToken) {
    let mut now = ServingStatus::Unknown;
    loop {
        let led = node.leadership(DEFAULT_GROUP).is_some_and(|(_, leader)| leader.is_some());
        let status = if led && node.log().failed().is_none() && !stop.is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        if status != now {
            now = status;
            for service in ["", "etcdserverpb.KV", "etcdserverpb.Maintenance", "etcdserverpb.Cluster"] {
                health.set_service_status(service, status).await;
            }
        }
        if stop.is_cancelled() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
        }
    }
}
