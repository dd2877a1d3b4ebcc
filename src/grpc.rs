//! The door: Unix sockets, the services of the CSI, registration with the kubelet, and the one table from errors to
//! gRPC codes. Only this floor knows proto and `Status`.
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

use crate::key::KeySource;
use crate::lifecycle::HealthEntry;
use crate::lifecycle::Lifecycle;
use crate::provision::LocalPool;
use crate::record::Record;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use proto::csi;
use proto::csi::StorageHealthErrorType::StorageDegraded as Degraded;
use proto::csi::StorageHealthErrorType::StorageUnreachable as Unreachable;
use proto::csi::node_get_storage_health_response::StorageBackendHealth;
use registration::Registration;
use topology::Place;

/// The name of the driver in CSI and Kubernetes.
pub const DRIVER_NAME: &str = "csi.coffer.dev";

/// How long a graceful end waits for operations. Shorter than the 30 s after which Kubernetes kills a pod.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// All services of one node.
#[derive(Clone)]
pub struct Door {
    lifecycle: Lifecycle,
    pool: Arc<LocalPool>,
    keys: Arc<dyn KeySource>,
    node_name: String,
    place: Place,
    max_volumes: u32,
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
    /// The services over `lifecycle`, whose volumes are in `pool`, on the node that Kubernetes calls `node_name`.
    /// `keys` is only asked how it fares. 0 `max_volumes` is no limit.
    #[must_use]
    pub fn new(
        lifecycle: Lifecycle,
        pool: Arc<LocalPool>,
        keys: Arc<dyn KeySource>,
        node_name: String,
        max_volumes: u32,
    ) -> Self {
        let place = Place::of(&node_name);
        Self { lifecycle, pool, keys, node_name, place, max_volumes }
    }

    /// Serves until `end` comes, then finishes what is in flight, for at most 25 seconds.
    ///
    /// The registration socket is bound after the CSI socket, because the kubelet calls the one as soon as it sees
    /// the other, and stays when the process ends: without it the kubelet would take the driver off the node.
    pub async fn serve(self, sockets: Sockets, end: impl Future<Output = ()>) -> io::Result<()> {
        let csi = bind(&sockets.csi)?;
        let registration = match &sockets.registry {
            Some(directory) => Some(bind(&directory.join(format!("{DRIVER_NAME}-reg.sock")))?),
            None => None,
        };
        info!(socket = %sockets.csi.display(), node = self.node_name, "serving");
        let (ending, ended) = watch::channel(());
        let lifecycle = self.lifecycle.clone();
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
            lifecycle.drain().await;
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
            .add_service(csi::identity_server::IdentityServer::new(self.clone()))
            .add_service(csi::controller_server::ControllerServer::new(self.clone()))
            .add_service(csi::node_server::NodeServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(socket), end)
            .await
    }

    /// `text` as the id of a volume that may exist. Any string may be asked for; what this driver never made is not
    /// found, as far as that can be told while the pool is away.
    async fn find(&self, text: &str) -> Result<VolumeId> {
        if let Some(id) = VolumeId::parse(text) {
            return Ok(id);
        }
        self.pool_is_ready().await?;
        let shown: String = text.chars().take(64).collect();
        Err(Error::new(
            Reason::VolumeNotFound,
            format!("there is no volume {shown:?}: this driver never made such an id"),
        ))
    }

    async fn record(&self, volume_id: &str) -> Result<Record> {
        self.lifecycle.get(self.find(volume_id).await?).await
    }

    async fn pool_is_ready(&self) -> Result<()> {
        let pool = Arc::clone(&self.pool);
        let asked = tokio::task::spawn_blocking(move || pool.ready().map(drop)).await;
        asked.unwrap_or_else(|error| Err(Error::new(Reason::Internal, "the pool could not be asked").caused_by(error)))
    }

    async fn volume_health(&self, volume_id: &str) -> Result<csi::VolumeHealth> {
        field::required("volume_id", volume_id)?;
        let id = self.find(volume_id).await?;
        let entries = self.lifecycle.health(id).await?;
        Ok(health::of_volume(volume_id, &entries))
    }

    /// What is wrong with the storage behind every volume of this node; empty if nothing is.
    async fn storage_health(&self) -> Result<Vec<StorageBackendHealth>> {
        let mut health = Vec::new();
        match self.pool_is_ready().await {
            Err(error) => health.push(health::of_storage(Unreachable, error.reason(), error.message())),
            Ok(()) if self.lifecycle.capacity().await?.available_bytes < Content::Block.minimum_bytes() => {
                health.push(health::of_storage(Degraded, Reason::NoSpace, "the pool has no room for another volume"));
            }
            Ok(()) => {}
        }
        let is_about_kbs = |reason: &Reason| status::code(*reason) == tonic::Code::Unavailable;
        if let Some(reason) = self.keys.last_error().filter(is_about_kbs) {
            let message = "the last exchange with the KBS failed; open volumes go on, others cannot be staged";
            health.push(health::of_storage(Degraded, reason, message));
        }
        Ok(health)
    }

    /// The volumes that have trouble, in the order of ids.
    async fn troubled(&self) -> Result<Vec<(VolumeId, Vec<HealthEntry>)>> {
        let mut troubled = Vec::new();
        for record in self.lifecycle.list().await? {
            match self.lifecycle.health(record.id.clone()).await {
                Ok(entries) if entries.is_empty() => {}
                Ok(entries) => troubled.push((record.id, entries)),
                Err(error) if error.reason() == Reason::VolumeNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(troubled)
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
    const TEXT: &str = "Unimplemented: this driver does not offer this call; its capabilities say what it does";
    let headers = answer.headers_mut();
    if headers.get("grpc-status").is_some_and(|status| status == "12") {
        headers.insert("grpc-message", http::HeaderValue::from_static(TEXT));
    }
    answer
}
