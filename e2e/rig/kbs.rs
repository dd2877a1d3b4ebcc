//! `coffer dev-kbs` outside of the node: it serves, and the operator's commands change its policy and its secrets.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context as _;
use anyhow::Result;

use crate::process::Daemon;
use crate::process::Fate;
use crate::wait;

/// Where it listens; `services/coffer.sh` names the same port.
const PORT: u16 = 8443;

/// A running KBS.
pub(crate) struct Kbs {
    coffer: PathBuf,
    state: PathBuf,
    daemon: Daemon,
}

impl Kbs {
    /// Starts a KBS with a certificate authority of its own and nothing stored; its files are in `state`.
    pub(crate) fn start(coffer: &Path, state: &Path, fate: Fate) -> Result<Self> {
        fs::create_dir_all(state)?;
        let listen = format!("127.0.0.1:{PORT}");
        let arguments = ["dev-kbs", "serve", "--state", &state.to_string_lossy(), "--listen", &listen];
        let log = state.join("serve.log");
        let daemon = Daemon::start(&coffer.to_string_lossy(), &arguments.map(str::to_owned), &log, fate)?;
        let mut kbs = Self { coffer: coffer.to_owned(), state: state.to_owned(), daemon };
        wait::until(wait::seconds(20), "the KBS", || {
            kbs.daemon.must_run().with_context(|| format!("see {}", log.display()))?;
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok().then_some(()))
        })?;
        Ok(kbs)
    }

    /// The certificate authority that a node pins.
    pub(crate) fn ca(&self) -> PathBuf {
        self.state.join("ca.pem")
    }

    /// Runs an operator's command, such as `put`, with `stdin`; returns what it printed.
    pub(crate) fn operate(&self, arguments: &[&str], stdin: &[u8]) -> Result<String> {
        let [command, rest @ ..] = arguments else { anyhow::bail!("no command") };
        let mut child = Command::new(&self.coffer)
            .args(["dev-kbs", command, "--state"])
            .arg(&self.state)
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("standard input is a pipe")?.write_all(stdin)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "coffer dev-kbs {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Every release of a secret so far, one line each.
    pub(crate) fn releases(&self) -> Result<Vec<String>> {
        match fs::read_to_string(self.state.join("releases.log")) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
