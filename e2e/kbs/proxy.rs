//! The hostile network: an HTTPS proxy before a KBS that may change any message, once it is armed.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_server::tls_rustls::RustlsConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use tempfile::TempDir;

/// A request on its way to the KBS, or the answer on its way back.
pub(crate) struct Message {
    /// The last part of the protocol's path: `auth`, `attest`, or the resource's.
    pub(crate) step: &'static str,
    pub(crate) is_answer: bool,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Never deliver it.
    pub(crate) stalled: bool,
}

impl Message {
    pub(crate) fn is_request(&self, step: &str) -> bool {
        !self.is_answer && self.step == step
    }

    pub(crate) fn is_answer(&self, step: &str) -> bool {
        self.is_answer && self.step == step
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the protocol's bodies are JSON")
    }

    /// Changes the member at `pointer`.
    pub(crate) fn change(&mut self, pointer: &str, change: impl FnOnce(&mut Value)) {
        let mut body = self.json();
        change(body.pointer_mut(pointer).expect("the message has this member"));
        self.body = body.to_string().into_bytes();
    }
}

/// What happens to each message; the second argument says whether the proxy is armed.
pub(crate) type Tamper = dyn Fn(&mut Message, bool) + Send + Sync;

/// A certificate for a server, and the CA that signed it.
pub(crate) struct Identity {
    directory: TempDir,
    tls: Arc<ServerConfig>,
}

impl Identity {
    /// For `names`, valid at `dates` or at any time.
    pub(crate) fn new(names: &[&str], dates: Option<(i32, i32)>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().expect("a key");
        let pem = ca.self_signed(&ca_key).expect("a CA").pem();
        std::fs::write(directory.path().join("ca.pem"), pem).expect("the CA is written");

        let mut server =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("names");
        if let Some((first, last)) = dates {
            server.not_before = rcgen::date_time_ymd(first, 1, 1);
            server.not_after = rcgen::date_time_ymd(last, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = server.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a matching key");
        Self { directory, tls: Arc::new(tls) }
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) url: String,
    pub(crate) identity: Identity,
    shared: Arc<Shared>,
}

struct Shared {
    kbs: String,
    http: Client,
    armed: AtomicBool,
    /// Requests for a nonce, so exchanges, since it was armed.
    exchanges: AtomicUsize,
    tamper: Box<Tamper>,
}

impl Proxy {
    /// Before the KBS at `kbs` whose CA is in `ca_file`.
    pub(crate) fn start(kbs: String, ca_file: &Path, identity: Identity, tamper: Box<Tamper>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("non-blocking");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared {
            kbs,
            http: client(ca_file),
            armed: AtomicBool::new(false),
            exchanges: AtomicUsize::new(0),
            tamper,
        });
        let routes = Router::new().fallback(forward).with_state(Arc::clone(&shared));
        let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::clone(&identity.tls)));
        tokio::spawn(server.expect("a listening socket").serve(routes.into_make_service()));
        Self { url, identity, shared }
    }

    /// From now on messages are changed.
    pub(crate) fn arm(&self) {
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn exchanges_since_armed(&self) -> usize {
        self.shared.exchanges.load(Ordering::SeqCst)
    }
}

fn client(ca_file: &Path) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).expect("a CA")).expect("a usable CA");
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder().tls_backend_preconfigured(tls).no_proxy().build().expect("a client")
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let step = match parts.uri.path() {
        "/kbs/v0/auth" => "auth",
        "/kbs/v0/attest" => "attest",
        _ => "resource",
    };
    let armed = shared.armed.load(Ordering::SeqCst);
    if armed && step == "auth" {
        shared.exchanges.fetch_add(1, Ordering::SeqCst);
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a request's body");
    let mut request = Message::of(step, StatusCode::OK, parts.headers, body);
    deliver(&shared, &mut request, armed).await;

    let url = format!("{}{}", shared.kbs, parts.uri.path());
    let sent = shared.http.request(parts.method, url).headers(request.headers).body(request.body).send().await;
    let answer = sent.expect("the KBS behind the proxy answers");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut answer = Message::of(step, status, headers, answer.bytes().await.expect("an answer's body"));
    answer.is_answer = true;
    deliver(&shared, &mut answer, armed).await;
    (answer.status, answer.headers, answer.body).into_response()
}

async fn deliver(shared: &Shared, message: &mut Message, armed: bool) {
    (shared.tamper)(message, armed);
    if message.stalled {
        std::future::pending::<()>().await;
    }
}

impl Message {
    fn of(step: &'static str, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> Self {
        for hop in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING] {
            headers.remove(hop);
        }
        Self { step, is_answer: false, status, headers, body: body.to_vec(), stalled: false }
    }
}
