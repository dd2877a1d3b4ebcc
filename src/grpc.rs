//! The door: Unix sockets, the services of the CSI, registration with the kubelet, and the one table from errors to
//! gRPC codes. Only this floor serves proto and makes a `Status`.
//!
//! Every handler reads: check the fields, make one call, answer. RPCs that are not offered are answered UNIMPLEMENTED.

mod access;
mod authority;
mod call;
mod class;
mod controller;
mod field;
mod health;
mod identity;
mod node;
mod page;
pub mod proto;
mod registration;
mod size;
mod socket;
mod status;
mod topology;

pub use socket::parse_endpoint;
pub use topology::TOPOLOGY_KEY;

use std::future::Future;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::http;
use tonic::transport::Server;
use tower::util::MapResponseLayer;
use tracing::info;
use tracing::warn;

use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::provision::Provisioner;
use crate::volume::DRIVER_NAME;
use crate::volume::Result;
use controller::Controller;
use identity::Identity;
use node::Node;
use proto::csi;
use registration::Registration;

/// How long a graceful end waits for operations. Shorter than the 30 s after which Kubernetes kills a pod.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// The services of one process: the controller's, the node's, or both.
pub struct Door {
    controller: Option<Controller>,
    node: Option<Node>,
    metrics: Metrics,
}

/// Where the services listen.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// The CSI socket.
    pub csi: PathBuf,
    /// The directory that the kubelet watches for plugins; `None` leaves registration to somebody else.
    pub registry: Option<PathBuf>,
}

impl Door {
    /// The Controller service over `provisioner`. Calls are counted in `metrics`.
    #[must_use]
    pub fn controller(provisioner: Arc<dyn Provisioner>, metrics: Metrics) -> Self {
        Self { controller: Some(Controller { provisioner, metrics: metrics.clone() }), node: None, metrics }
    }

    /// The Node service over `lifecycle`, on the node that Kubernetes calls `name`. 0 `max_volumes` is no limit. Calls
    /// are counted in `metrics`.
    #[must_use]
    pub fn node(lifecycle: Lifecycle, name: String, max_volumes: u32, metrics: Metrics) -> Self {
        let node = Node { lifecycle, name, max_volumes, metrics: metrics.clone() };
        Self { controller: None, node: Some(node), metrics }
    }

    /// Both on one socket.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { controller: self.controller.or(other.controller), node: self.node.or(other.node), metrics: self.metrics }
    }

    /// Serves until `end` comes, then finishes what is in flight, for at most 25 seconds.
    ///
    /// The registration socket is bound after the CSI socket, because the kubelet calls the one as soon as it sees
    /// the other, and stays when the process ends: without it the kubelet would take the driver off the node.
    ///
    /// # Errors
    /// If a socket cannot be bound, or a server ends before it is told to.
    pub async fn serve(self, sockets: Sockets, end: impl Future<Output = ()>) -> io::Result<()> {
        let csi = bind(&sockets.csi)?;
        let registration = match &sockets.registry {
            Some(directory) => Some(bind(&directory.join(format!("{DRIVER_NAME}-reg.sock")))?),
            None => None,
        };
        info!(socket = %sockets.csi.display(), "serving");
        let (ending, ended) = watch::channel(());
        let lifecycle = self.node.as_ref().map(|node| node.lifecycle.clone());
        let services = async {
            let door = self.serve_csi(csi, closed(ended.clone()));
            let registrar = serve_registration(registration, sockets.csi.clone(), closed(ended.clone()));
            tokio::try_join!(door, registrar).map(drop).map_err(io::Error::other)
        };
        tokio::pin!(services);
        tokio::select! {
            outcome = &mut services => return outcome,
            () = end => drop(ending),
        }
        info!("ending: finishing what is in flight");
        let drained = async {
            let outcome = services.await;
            if let Some(lifecycle) = lifecycle {
                lifecycle.drain().await;
            }
            outcome
        };
        tokio::time::timeout(DRAIN_LIMIT, drained).await.unwrap_or_else(|_| {
            warn!(
                "operations are still running after {} s; the next start finds what they leave",
                DRAIN_LIMIT.as_secs()
            );
            Ok(())
        })
    }

    async fn serve_csi(
        self,
        socket: UnixListener,
        end: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        Server::builder()
            .layer(MapResponseLayer::new(explain_unimplemented::<tonic::body::Body>))
            .add_service(csi::identity_server::IdentityServer::new(Identity { metrics: self.metrics }))
            .add_optional_service(self.controller.map(csi::controller_server::ControllerServer::new))
            .add_optional_service(self.node.map(csi::node_server::NodeServer::new))
            .serve_with_incoming_shutdown(UnixListenerStream::new(socket), end)
            .await
    }
}

async fn serve_registration(
    socket: Option<UnixListener>,
    endpoint: PathBuf,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let Some(socket) = socket else { return Ok(()) };
    Server::builder()
        .add_service(proto::registration::registration_server::RegistrationServer::new(Registration { endpoint }))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(socket).map(|accepted| accepted.map(authority::mend)),
            end,
        )
        .await
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    socket::bind(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot serve {}: {error}", path.display())))
}

/// Comes when the sender is dropped.
async fn closed(mut ended: watch::Receiver<()>) {
    while ended.changed().await.is_ok() {}
}

/// Says in our words what generated stubs and unknown services answer in theirs.
fn explain_unimplemented<B>(mut answer: http::Response<B>) -> http::Response<B> {
    const TEXT: &str = "Unimplemented: this driver does not offer this call, as its capabilities say; volumes do not \
                        grow: copy the data into a larger one";
    let headers = answer.headers_mut();
    if headers.get("grpc-status").is_some_and(|status| status == "12") {
        headers.insert("grpc-message", http::HeaderValue::from_static(TEXT));
    }
    answer
}
