//! What probes and scrapers ask over HTTP: is the process alive, does the driver serve, what has it counted.
//!
//! Ready is who answers on the CSI socket. A KBS, an API server or a pool that is away changes nothing about that: a
//! driver that was taken for unready would serve the volumes that need none of them no better.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tonic::transport::Endpoint;

use crate::grpc::proto::csi::ProbeRequest;
use crate::grpc::proto::csi::identity_client::IdentityClient;
use crate::lifecycle::Lifecycle;
use crate::metrics::MEDIA_TYPE;
use crate::metrics::Metrics;
use crate::metrics::NodeSight;
use crate::metrics::PoolBytes;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// How long the CSI socket may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the answers are about.
pub struct Subject {
    /// The CSI socket of this process.
    pub csi: PathBuf,
    /// What was counted.
    pub metrics: Metrics,
    /// The volumes of this machine, if it is a node.
    pub node: Option<Lifecycle>,
}

/// The server, which is bound and answers once it is served.
pub struct Http {
    listener: TcpListener,
    routes: Router,
}

struct Site {
    subject: Subject,
    /// A scrape walks through the pools: one at a time, however many ask.
    turn: Mutex<()>,
}

impl Http {
    /// Binds `address`, as `HOST:PORT`; an empty host is every address of this machine.
    ///
    /// # Errors
    /// `InvalidArgument` if the address cannot be used.
    pub async fn bind(address: &str, subject: Subject) -> Result<Self> {
        let bound = match address.strip_prefix(':') {
            // Takes IPv4 too, where there is IPv6 at all.
            Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
                bound => bound,
            },
            None => TcpListener::bind(address).await,
        };
        let refused = |error| Error::invalid("--http", format!("{address} cannot be used")).caused_by(error);
        let site = Arc::new(Site { subject, turn: Mutex::new(()) });
        let routes = Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(scrape))
            .with_state(site);
        Ok(Self { listener: bound.map_err(refused)?, routes })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// If connections cannot be accepted any more.
    pub async fn serve(self) -> io::Result<()> {
        axum::serve(self.listener, self.routes).await
    }
}

async fn ready(State(site): State<Arc<Site>>) -> (StatusCode, String) {
    match probe(&site.subject).await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", error.chain())),
    }
}

/// Asks the driver what a caller of the CSI asks it.
async fn probe(subject: &Subject) -> Result<()> {
    let silent =
        |why: tonic::transport::Error| Error::new(Reason::Internal, "the CSI socket is not served").caused_by(why);
    let address = format!("unix://{}", subject.csi.display());
    let endpoint = Endpoint::from_shared(address).map_err(silent)?.timeout(PATIENCE).connect_timeout(PATIENCE);
    let mut identity = IdentityClient::new(endpoint.connect().await.map_err(silent)?);
    let answered = identity.probe(ProbeRequest {}).await;
    answered.map(drop).map_err(|why| Error::new(Reason::Internal, "the CSI socket does not answer").caused_by(why))
}

async fn scrape(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let Subject { metrics, node, .. } = &site.subject;
    let text = match node {
        Some(lifecycle) => {
            let _turn = site.turn.lock().await;
            match look(lifecycle).await {
                Ok(sight) => metrics.text(Some(&sight)),
                Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.chain()).into_response(),
            }
        }
        None => metrics.text(None),
    };
    ([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response()
}

async fn look(lifecycle: &Lifecycle) -> Result<NodeSight> {
    let pools = lifecycle.sight_pools().await?;
    let bytes = pools.into_iter().map(|pool| {
        let bytes = pool.capacity.ok().map(|capacity| PoolBytes {
            capacity: capacity.total_bytes(),
            available: capacity.available_bytes,
            promised: capacity.promised_bytes,
        });
        (pool.name, bytes)
    });
    Ok(NodeSight { pools: bytes.collect(), open_volumes: lifecycle.open_volumes().await? })
}
