//! A TPM of its own for each test: swtpm with a state directory that is gone afterwards.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffer::key::evidence::{Attester, Tpm};
use tempfile::TempDir;

/// A running swtpm. It is killed when this is dropped.
pub(crate) struct Swtpm {
    process: Child,
    port: u16,
    state: TempDir,
}

impl Swtpm {
    /// A TPM that was never used before.
    pub(crate) fn start() -> Self {
        Self::start_with(tempfile::tempdir().expect("a state directory"))
    }

    /// The same TPM after a cold start of its machine.
    pub(crate) fn restart(mut self) -> Self {
        self.end();
        let state = std::mem::replace(&mut self.state, tempfile::tempdir().expect("a placeholder"));
        drop(self);
        Self::start_with(state)
    }

    fn start_with(state: TempDir) -> Self {
        // Two ports in a row: the TSS looks for the control channel one above the data. Another test may take one
        // between the choice and swtpm's own bind; swtpm then ends, and another pair is tried.
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let port = free_pair();
            let mut process = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
                .args(["--tpmstate", &format!("dir={}", state.path().display())])
                .args(["--server", &format!("type=tcp,port={port}"), "--ctrl", &format!("type=tcp,port={}", port + 1)])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("swtpm is installed");
            while process.try_wait().expect("the process can be asked").is_none() {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { process, port, state };
                }
                std::thread::yield_now();
            }
        }
        panic!("swtpm did not start");
    }

    /// How the TSS names this TPM.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    pub(crate) fn attester(&self) -> Attester {
        Attester::Tpm(Tpm::new(&self.tcti(), None).expect("a TCTI"))
    }

    /// Runs one of the tpm2-tools on this TPM.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program)
            .args(["-T", &self.tcti()])
            .args(arguments)
            .output()
            .expect("tpm2-tools are installed");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Extends PCR `number` as booting something else would.
    pub(crate) fn extend(&self, number: u8) {
        self.tool("tpm2_pcrextend", &[&format!("{number}:sha256={}", "ab".repeat(32))]);
    }

    fn end(&mut self) {
        // Both fail only if the process has ended, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.end();
    }
}

fn free_pair() -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = first.local_addr().expect("an address").port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}
