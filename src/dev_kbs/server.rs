//! The three requests of the protocol. A session lives in memory for five minutes and is bound to one nonce.
//!
//! Answers are those of the protocol: 401 with an error type for nearly everything that is refused, and a word about
//! the cause only in this program's own log.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

use super::policy::Node;
use super::state::{Release, State};
use super::verify::{self, Claims};
use super::{envelope, fill_random, tls};
use crate::key::evidence::report_data;
use crate::key::jwe::RecipientKey;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// The version that is spoken here.
const PROTOCOL_VERSION: &str = "0.4.0";
/// How long a session lives after `auth`; `attest` does not prolong it.
const SESSION_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Sessions kept at once: beyond it `auth` refuses, so that nobody can fill the memory.
const SESSIONS_MAX: usize = 4096;
const SESSION_COOKIE: &str = "kbs-session-id";
const ERROR_TYPES: &str = "https://github.com/confidential-containers/kbs/errors";

/// Where to listen, under which names, and what to accept.
pub struct ServeConfig {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names in the certificate beside `127.0.0.1` and `localhost`.
    pub names: Vec<String>,
    /// Accept evidence that proves nothing.
    pub allow_sample: bool,
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    handle: Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Listens, and answers from a task of its own. Connections are accepted as soon as this returns.
    ///
    /// # Errors
    /// `InvalidArgument` if the address cannot be used.
    pub fn start(state: State, config: ServeConfig) -> Result<Self> {
        let ServeConfig { listen, names, allow_sample } = config;
        let tls = tls::server_config(&state.ca_file(), &state.ca_key_file(), &names)?;
        let failed =
            |cause: std::io::Error| Error::invalid("--listen", format!("{listen} cannot be used")).caused_by(cause);
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let handle = Handle::new();
        let kbs = Arc::new(Kbs { state, allow_sample, sessions: Mutex::default() });
        let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls)).map_err(failed)?;
        let task = tokio::spawn(server.handle(handle.clone()).serve(routes(kbs).into_make_service()));
        Ok(Self { address, handle, task })
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends after the requests that are being answered.
    ///
    /// # Errors
    /// `Internal` if the server had ended in another way.
    pub async fn stop(self) -> Result<()> {
        self.handle.graceful_shutdown(Some(Duration::from_secs(1)));
        match self.task.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(Error::new(Reason::Internal, "the server failed").caused_by(cause)),
            Err(cause) => Err(Error::new(Reason::Internal, "the server ended early").caused_by(cause)),
        }
    }
}

struct Kbs {
    state: State,
    allow_sample: bool,
    sessions: Mutex<HashMap<String, Session>>,
}

struct Session {
    tee: String,
    nonce: String,
    expires: Instant,
    attested: Option<Attested>,
}

/// Whom a session belongs to, once that is proved.
#[derive(Clone)]
struct Attested {
    claims: Claims,
    recipient: p256::PublicKey,
}

/// An error of the protocol, and for the log what is behind it.
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    why: String,
}

impl Refusal {
    fn new(kind: &'static str, why: impl ToString) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, kind, why: why.to_string() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new("PluginInternalError", error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        tracing::warn!(kind = self.kind, why = self.why, "refused");
        let body = json!({ "type": format!("{ERROR_TYPES}/{}", self.kind), "detail": "see the log of this KBS" });
        (self.status, Json(body)).into_response()
    }
}

#[derive(Deserialize)]
struct AuthRequest {
    version: String,
    tee: String,
}

#[derive(Deserialize)]
struct AttestRequest {
    #[serde(rename = "runtime-data")]
    runtime_data: RuntimeData,
    #[serde(rename = "tee-evidence")]
    tee_evidence: TeeEvidence,
}

#[derive(Deserialize)]
struct RuntimeData {
    nonce: String,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: RecipientKey,
}

#[derive(Deserialize)]
struct TeeEvidence {
    primary_evidence: Value,
    additional_evidence: String,
}

fn routes(kbs: Arc<Kbs>) -> Router {
    Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{*path}", get(resource))
        .fallback(async || Refusal {
            status: StatusCode::NOT_FOUND,
            kind: "InvalidRequestPath",
            why: "no such path".into(),
        })
        .with_state(kbs)
}

async fn auth(Shared(kbs): Shared<Arc<Kbs>>, body: Bytes) -> Result<Response, Refusal> {
    let AuthRequest { version, tee } =
        serde_json::from_slice(&body).map_err(|_| Refusal::new("AttestationError", "the request has another form"))?;
    if version != PROTOCOL_VERSION {
        return Err(Refusal::new("AttestationError", format!("only protocol {PROTOCOL_VERSION} is spoken here")));
    }
    if tee != "tpm" && !(tee == "sample" && kbs.allow_sample) {
        return Err(Refusal::new("AttestationError", "this kind of evidence is not accepted here"));
    }
    let (mut nonce, mut id) = ([0; 32], [0; 16]);
    fill_random(&mut nonce)?;
    fill_random(&mut id)?;
    let (nonce, id) = (STANDARD.encode(nonce), hex::encode(id));
    kbs.remember(
        &id,
        Session { tee, nonce: nonce.clone(), expires: Instant::now() + SESSION_LIFETIME, attested: None },
    )?;
    Ok((set_cookie(&id), Json(json!({ "nonce": nonce, "extra-params": "" }))).into_response())
}

async fn attest(Shared(kbs): Shared<Arc<Kbs>>, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    let refused = |why: &str| Refusal::new("AttestationError", why);
    let id = session_id(&headers).ok_or_else(|| refused("no session cookie"))?;
    let (tee, nonce) = kbs
        .with_session(&id, |session| match session.attested {
            None => Ok((session.tee.clone(), session.nonce.clone())),
            Some(_) => Err(refused("this session is attested already")),
        })
        .ok_or_else(|| refused("no such session, or it has expired"))??;
    let AttestRequest { runtime_data, tee_evidence } =
        serde_json::from_slice(&body).map_err(|_| refused("the request has another form"))?;
    if runtime_data.nonce != nonce {
        return Err(refused("the nonce is not the one of this session"));
    }
    let recipient = runtime_data.tee_pubkey.point().ok_or_else(|| refused("the client's key is not on the curve"))?;
    let data = report_data(&nonce, &runtime_data.tee_pubkey, &tee_evidence.additional_evidence);
    let claims = verify::verify(&tee, &tee_evidence.primary_evidence, &data).map_err(refused)?;
    kbs.with_session(&id, |session| session.attested = Some(Attested { claims, recipient }));
    let mut token = [0; 32];
    fill_random(&mut token)?;
    Ok((set_cookie(&id), Json(json!({ "token": hex::encode(token) }))).into_response())
}

async fn resource(
    Shared(kbs): Shared<Arc<Kbs>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let attested = session_id(&headers)
        .and_then(|id| kbs.with_session(&id, |session| session.attested.clone()).flatten())
        .ok_or_else(|| Refusal::new("TokenNotFound", "no session, or none that is attested"))?;
    let uri = KeyUri::parse("path", &format!("kbs:///{path}"))?;
    let secret = kbs.release(&attested.claims, &uri)?;
    Ok(Json(envelope::seal(&attested.recipient, &secret)?).into_response())
}

impl Kbs {
    /// The secret under `uri` if the policy, as it is now, gives it to the node of `claims`. The release is logged.
    fn release(&self, claims: &Claims, uri: &KeyUri) -> Result<SecretBytes, Refusal> {
        let policy = self.state.policy()?;
        let Some((name, node)) = policy.allows(claims, uri) else {
            let key = claims.attestation_key.as_ref().map(|der| hex::encode(Sha256::digest(der)));
            let why = format!("{uri} is not released to the {} with key {}", claims.tee, key.unwrap_or_default());
            return Err(Refusal::new("PolicyDeny", why));
        };
        let secret =
            self.state.secret(uri)?.ok_or_else(|| Refusal::new("PluginInternalError", format!("no secret {uri}")))?;
        self.log_release(claims, uri, name, node)?;
        Ok(secret)
    }

    fn log_release(&self, claims: &Claims, uri: &KeyUri, name: &str, node: &Node) -> Result<()> {
        let time = OffsetDateTime::now_utc().format(&Rfc3339);
        let time = time.map_err(|cause| Error::new(Reason::Internal, "the clock shows no date").caused_by(cause))?;
        let compared = node.compared();
        let values: Vec<[u8; 32]> = compared.numbers().map(|number| claims.pcrs[usize::from(number)]).collect();
        let pcrs_sha256 = hex::encode(Sha256::digest(values.as_flattened()));
        let key_sha256 = claims.attestation_key.as_ref().map(|der| hex::encode(Sha256::digest(der)));
        let release = Release {
            time: &time,
            event: "released",
            node: name,
            tee: &claims.tee,
            attestation_key_sha256: key_sha256.as_deref(),
            pcrs: &compared.to_string(),
            pcrs_sha256: (!values.is_empty()).then_some(&pcrs_sha256),
            resource_path: uri.resource_path(),
        };
        self.state.log_release(&release)?;
        tracing::info!(node = name, path = uri.resource_path(), "released");
        Ok(())
    }

    fn remember(&self, id: &str, session: Session) -> Result<(), Refusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| Instant::now() < session.expires);
        if sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::new("AttestationError", "too many sessions"));
        }
        sessions.insert(id.to_owned(), session);
        Ok(())
    }

    /// What `look` makes of the session called `id`, if it lives.
    fn with_session<T>(&self, id: &str, look: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get_mut(id).filter(|session| Instant::now() < session.expires).map(look)
    }
}

fn set_cookie(id: &str) -> [(axum::http::HeaderName, String); 1] {
    [(SET_COOKIE, format!("{SESSION_COOKIE}={id}; Max-Age={}", SESSION_LIFETIME.as_secs()))]
}

fn session_id(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(expires: Instant) -> Session {
        Session { tee: "tpm".to_owned(), nonce: String::new(), expires, attested: None }
    }

    #[test]
    fn an_expired_session_is_gone_and_makes_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = State::open(directory.path()).expect("a state directory");
        let kbs = Kbs { state, allow_sample: false, sessions: Mutex::default() };
        let now = Instant::now();
        for number in 0..SESSIONS_MAX {
            assert!(kbs.remember(&number.to_string(), session(now)).is_ok());
        }
        assert!(kbs.with_session("0", |_| ()).is_none());
        for number in 0..SESSIONS_MAX {
            assert!(kbs.remember(&number.to_string(), session(now + SESSION_LIFETIME)).is_ok());
        }
        assert!(kbs.with_session("0", |_| ()).is_some());
        assert!(kbs.remember("one more", session(now + SESSION_LIFETIME)).is_err(), "the memory is bounded");
    }

    #[test]
    fn the_session_is_found_among_other_cookies() {
        let header = |text: &'static str| HeaderMap::from_iter([(COOKIE, axum::http::HeaderValue::from_static(text))]);
        assert_eq!(session_id(&header("a=b; kbs-session-id=7; c=d")).as_deref(), Some("7"));
        assert_eq!(session_id(&header("kbs-session-idx=7")), None);
    }
}
