//! A shell on a node that was left up.

use std::fs::File;
use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;

use anyhow::Result;

use crate::machine::agent;
use crate::machine::shell_port;
use crate::process::read;
use crate::sandbox;
use crate::suites::show;

/// Opens a shell on the node `number` of the run, or runs `script` there.
pub(crate) fn open(run: &Path, number: u8, script: &str) -> Result<()> {
    sandbox::join(&run.join(format!("node{number}/qemu.pid")))?;
    if !script.is_empty() {
        std::process::exit(show(&agent(number), script, |_| ())?);
    }
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, shell_port(number)))?;
    let raw = RawTerminal::enter()?;
    let input = stream.try_clone()?;
    thread::spawn(move || {
        // The end of our input is the end of the session.
        let _ = std::io::copy(&mut std::io::stdin(), &mut &input);
        let _ = input.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut &stream, &mut std::io::stdout())?;
    drop(raw);
    Ok(())
}

/// The terminal hands every key to the guest while this lives.
struct RawTerminal {
    before: Option<String>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self { before: None });
        }
        let terminal = || Ok::<_, std::io::Error>(Stdio::from(File::open("/dev/tty")?));
        let before = read(Command::new("stty").arg("-g").stdin(terminal()?))?;
        read(Command::new("stty").args(["raw", "-echo"]).stdin(terminal()?))?;
        Ok(Self { before: Some(before.trim().to_owned()) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nothing left to do about a terminal that is gone.
            let _ = Command::new("stty").arg(before).status();
        }
    }
}
