//! `coffer dev-kbs` outside of the node: it serves, and the operator's commands change its policy and its secrets.

use std::fs;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer::volume::SecretBytes;

use crate::machine::HOST_IN_GUEST;
use crate::process::Daemon;
use crate::process::Fate;
use crate::process::read;
use crate::wait;

/// Where it listens.
const PORT: u16 = 8443;

/// A KBS, running or not.
pub(crate) struct Kbs {
    coffer: PathBuf,
    state: PathBuf,
    fate: Fate,
    daemon: Option<Daemon>,
}

impl Kbs {
    /// Starts a KBS with a certificate authority of its own and nothing stored; its files are in `state`.
    pub(crate) fn start(coffer: &Path, state: &Path, fate: Fate) -> Result<Self> {
        fs::create_dir_all(state)?;
        let mut kbs = Self { coffer: coffer.to_owned(), state: state.to_owned(), fate, daemon: None };
        kbs.serve()?;
        Ok(kbs)
    }

    /// Serves what is stored, and returns when it answers.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let listen = format!("127.0.0.1:{PORT}");
        let dir = self.state.to_string_lossy();
        let arguments = ["dev-kbs", "serve", "--state", &dir, "--listen", &listen, "--name", HOST_IN_GUEST];
        let log = self.state.join("serve.log");
        let daemon = Daemon::start(&self.coffer.to_string_lossy(), &arguments.map(str::to_owned), &log, self.fate)?;
        let daemon = self.daemon.insert(daemon);
        wait::until(wait::seconds(20), "the KBS", || {
            daemon.must_run().with_context(|| format!("see {}", log.display()))?;
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok().then_some(()))
        })
    }

    /// Ends it; what it stores stays.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("the KBS does not run")?.kill()
    }

    /// Where a node finds it.
    pub(crate) fn url() -> String {
        format!("https://{HOST_IN_GUEST}:{PORT}")
    }

    /// The certificate authority that a node pins.
    pub(crate) fn ca(&self) -> PathBuf {
        self.state.join("ca.pem")
    }

    /// Runs an operator's command, such as `put`; returns what it printed.
    pub(crate) fn operate(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.coffer);
        command.arg("dev-kbs").arg("--state").arg(&self.state).args(arguments);
        Ok(read(&mut command)?.trim().to_owned())
    }

    /// The secret at `uri`, as it is stored.
    pub(crate) fn secret(&self, uri: &str) -> Result<SecretBytes> {
        let secrets: serde_json::Value = serde_json::from_slice(&fs::read(self.state.join("secrets.json"))?)?;
        let path = uri.trim_start_matches("kbs:///");
        let text = secrets[path].as_str().with_context(|| format!("no secret is stored at {uri}"))?;
        Ok(SecretBytes::new(STANDARD.decode(text)?.into()))
    }

    /// Every release of a secret so far, one line each.
    pub(crate) fn releases(&self) -> Result<Vec<String>> {
        match fs::read_to_string(self.state.join("release.log")) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
