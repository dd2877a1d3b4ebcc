//! The guest's end: runs what the host sends. It listens inside a virtual machine that only the rig can reach, so it
//! asks nobody who they are.

use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process_group;

use crate::machine::AGENT_PORT;
use crate::wire;
use crate::wire::Kind;
use crate::wire::Request;

/// Serves until the guest ends.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("agent: {error:#}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(wire::GREETING)?;
    let request = match wire::read_request(&mut stream) {
        Ok(request) => request,
        // The host only wanted to know whether we are there.
        Err(error) if is_end(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let status = run(&request, &stream)?;
    wire::write_frame(&mut stream, Kind::Exit, &code(status).to_be_bytes())
}

fn is_end(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset))
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

fn run(request: &Request, stream: &TcpStream) -> Result<ExitStatus> {
    let mut child = Command::new("bash")
        .args(["-c", &request.script])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = Pid::from_child(&child);
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    let stdout = child.stdout.take().context("standard output is a pipe")?;
    let stderr = child.stderr.take().context("standard error is a pipe")?;
    let answer = Mutex::new(stream.try_clone()?);
    let mut input = stream.try_clone()?.take(request.stdin_bytes);
    let connection = stream.try_clone()?;
    let (ended, has_ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        // A script may end without having read its input.
        let _ = std::io::copy(&mut input, &mut stdin);
        drop(stdin);
        kill_when_closed(connection, group, &has_ended);
    });
    thread::scope(|scope| {
        scope.spawn(|| forward(stdout, Kind::Stdout, &answer));
        scope.spawn(|| forward(stderr, Kind::Stderr, &answer));
    });
    let status = child.wait()?;
    drop(ended);
    Ok(status)
}

/// The host sends nothing after the input: an end of the stream means that it no longer waits for the script.
fn kill_when_closed(mut connection: TcpStream, group: Pid, has_ended: &mpsc::Receiver<()>) {
    let closed = matches!(connection.read(&mut [0]), Ok(0) | Err(_));
    if closed && has_ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Output that nobody reads any more is read and dropped, so that the script does not block on it.
fn forward(mut from: impl Read, kind: Kind, to: &Mutex<TcpStream>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut to = to.lock().expect("no holder of this lock panics");
        let _ = wire::write_frame(&mut *to, kind, &buffer[..length]);
    }
}
