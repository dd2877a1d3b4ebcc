//! A KBS with one registered node and one key, and the node itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coffer::dev_kbs::{ServeConfig, Server, State};
use coffer::key::KeySource;
use coffer::key::evidence::Attester;
use coffer::key::kbs::{KbsClient, KbsConfig, Limits};
use coffer::volume::{Error, KeyUri, Reason, SecretBytes};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::proxy::{Identity, Message, Proxy, Tamper};
use crate::swtpm::Swtpm;

pub(crate) const NODE: &str = "node-1";
pub(crate) const SECRET: [u8; 32] = *b"this secret is a canary, 32 byte";
/// Enough for a TPM in software on a busy machine.
const PATIENT: Limits = Limits { exchange: Duration::from_secs(60), turn: Duration::from_secs(60) };

pub(crate) fn key_uri() -> KeyUri {
    KeyUri::parse("key URI", "kbs:///csi-volumes/default/key").expect("a URI")
}

pub(crate) fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::new(Zeroizing::new(bytes.to_vec()))
}

/// A KBS that serves.
pub(crate) struct Kbs {
    pub(crate) state: State,
    pub(crate) directory: TempDir,
    pub(crate) server: Server,
}

impl Kbs {
    /// With the key, and no node.
    pub(crate) fn start(allow_sample: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let state = State::open(directory.path()).expect("a state directory");
        state.put(&key_uri(), &secret(&SECRET), false, &[]).expect("the key is stored");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let config = ServeConfig { listen, names: Vec::new(), allow_sample };
        let server = Server::start(state.clone(), config).expect("the server starts");
        Self { state, directory, server }
    }

    /// With the key, and `attester` registered by `pcrs` as the node that may have it.
    pub(crate) async fn for_node(attester: &Attester, pcrs: &str) -> Self {
        let kbs = Self::start(!attester.is_genuine());
        let description = attester.describe().await.expect("the node can describe itself");
        kbs.state.register(NODE, &description, pcrs.parse().expect("PCRs")).expect("the node is registered");
        kbs.state.allow(&key_uri(), NODE).expect("the node is allowed");
        kbs
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.server.address())
    }

    pub(crate) fn client(&self, attester: Attester) -> KbsClient {
        client(&self.url(), &self.state.ca_file(), attester, PATIENT)
    }

    /// The lines of the release log.
    pub(crate) fn releases(&self) -> Vec<serde_json::Value> {
        let log = match std::fs::read_to_string(self.state.release_log()) {
            Ok(log) => log,
            Err(_) => return Vec::new(),
        };
        log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    pub(crate) fn behind(&self, tamper: Box<Tamper>) -> Proxy {
        Proxy::start(self.url(), &self.state.ca_file(), Identity::new(&["127.0.0.1"], None), tamper)
    }
}

pub(crate) fn client(url: &str, ca_file: &Path, attester: Attester, limits: Limits) -> KbsClient {
    let ca_file = Some(PathBuf::from(ca_file));
    let config = KbsConfig { url: url.to_owned(), ca_file, allow_insecure_http: false, attester, limits };
    KbsClient::new(config).expect("a valid configuration")
}

/// Fetches the key, which must be the right one.
pub(crate) async fn released(client: &KbsClient) {
    let secret = client.secret(&key_uri()).await.expect("the key is released");
    assert_eq!(secret.expose(), SECRET);
    assert_eq!(client.last_exchange_error(), None);
}

/// Fetches the key, which must be refused for `reason`.
pub(crate) async fn refused(client: &KbsClient, reason: Reason) -> Error {
    let error = client.secret(&key_uri()).await.expect_err("the key is refused");
    assert_eq!(error.reason(), reason, "{error} {error:?}");
    error
}

/// What became of a node behind a tampering proxy.
pub(crate) struct Outcome {
    pub(crate) error: Error,
    pub(crate) exchanges: usize,
    /// Lines that the refused call added to the release log.
    pub(crate) new_releases: usize,
}

/// Shows that the key is released through a proxy that changes nothing, then that it is refused for `reason` when the
/// same proxy lets `tamper` change messages.
pub(crate) async fn tampered(
    attester: Attester,
    reason: Reason,
    tamper: impl Fn(&mut Message, bool) + Send + Sync + 'static,
) -> Outcome {
    let kbs = Kbs::for_node(&attester, "0-7").await;
    let proxy = kbs.behind(Box::new(tamper));
    let client = client(&proxy.url, &proxy.identity.ca_file(), attester, PATIENT);
    released(&client).await;
    let before = kbs.releases().len();
    assert_eq!(before, 1);

    proxy.arm();
    let error = refused(&client, reason).await;
    assert_eq!(client.last_exchange_error(), Some(reason));
    Outcome { error, exchanges: proxy.exchanges_since_armed(), new_releases: kbs.releases().len() - before }
}

/// [`tampered`] with a TPM, where nothing may be released and one exchange must do.
pub(crate) async fn denied_by_tampering(change: impl Fn(&mut Message) + Send + Sync + 'static) {
    let tpm = Swtpm::start();
    let tamper = move |message: &mut Message, armed: bool| {
        if armed {
            change(message);
        }
    };
    let outcome = tampered(tpm.attester(), Reason::AttestationDenied, tamper).await;
    assert_eq!((outcome.exchanges, outcome.new_releases), (1, 0));
}
