//! The host's end of the agent: run a script in the guest, see its output while it runs, know how it ended.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::wire;
use crate::wire::Kind;
use crate::wire::Request;

/// How long a script may print nothing. No test takes as long; a guest that hangs would never end.
const SILENCE: Duration = Duration::from_secs(3600);

/// How a script ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// The exit status; 128 and more if a signal ended it.
    pub(crate) status: i32,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
}

/// A running guest. Every script gets a connection of its own, so several may run at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    address: SocketAddr,
}

impl Guest {
    /// The guest whose agent is forwarded to this address.
    pub(crate) fn at(host: Ipv4Addr, port: u16) -> Self {
        Self { address: SocketAddr::from((host, port)) }
    }

    /// Whether the agent is there.
    pub(crate) fn answers(&self) -> bool {
        self.connect().is_ok()
    }

    /// Runs `script` in bash and returns how it ended.
    pub(crate) fn run(&self, script: &str) -> Result<Output> {
        self.run_with(script, &[])
    }

    /// Runs `script` with `stdin` as its standard input.
    pub(crate) fn run_with(&self, script: &str, stdin: &[u8]) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.stream(script, stdin, |kind, data| {
            match kind {
                Kind::Stderr => stderr.extend_from_slice(data),
                _ => stdout.extend_from_slice(data),
            }
            Ok(())
        })?;
        Ok(Output { status, stdout, stderr })
    }

    /// Runs `script`, which must end with 0, and returns its standard output as text.
    pub(crate) fn check(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        if output.status != 0 {
            bail!("in the guest, {script:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8(output.stdout).context("the output is not text")
    }

    /// Runs `condition` again and again until it ends with 0.
    pub(crate) fn wait_until(&self, what: &str, condition: &str, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let output = self.run(condition)?;
            if output.status == 0 {
                return Ok(());
            }
            if start.elapsed() > deadline {
                let last = String::from_utf8_lossy(&output.stderr).into_owned();
                bail!("waited {deadline:?} in the guest for {what}; at the end: {last}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs `script` and hands each piece of output to `each` as it comes. Returns the exit status.
    pub(crate) fn stream(
        &self,
        script: &str,
        stdin: &[u8],
        mut each: impl FnMut(Kind, &[u8]) -> Result<()>,
    ) -> Result<i32> {
        let mut stream = self.connect()?;
        wire::write_request(&mut stream, &Request { script: script.to_owned(), stdin_bytes: stdin.len() as u64 })?;
        stream.write_all(stdin)?;
        loop {
            let (kind, data) =
                wire::read_frame(&mut stream).context("the guest went away, or hangs, while a script ran")?;
            if kind != Kind::Exit {
                each(kind, &data)?;
                continue;
            }
            let status: [u8; 4] = data.as_slice().try_into().context("the exit status has four bytes")?;
            return Ok(i32::from_be_bytes(status));
        }
    }

    fn connect(&self) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut greeting = [0; wire::GREETING.len()];
        stream.read_exact(&mut greeting).context("no agent answers")?;
        if &greeting != wire::GREETING {
            bail!("something else than the agent answers");
        }
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
