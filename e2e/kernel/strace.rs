//! strace on the driver, to see or to change what one system call does.

use std::fs;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::scene::shell;

/// Where strace writes.
pub(crate) const TRACE: &str = "/tmp/trace";

/// strace on a running driver.
pub(crate) struct Strace(Child);

impl Strace {
    /// Leaves the programs that the driver starts alone. Returns when every thread is traced.
    pub(crate) fn attach(pid: u32, arguments: &[&str]) -> Self {
        Self::attach_with_programs(pid, &[&["-b", "execve"], arguments].concat())
    }

    /// Traces the programs that the driver starts, too. Returns when every thread is traced.
    pub(crate) fn attach_with_programs(pid: u32, arguments: &[&str]) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-e", "signal=none", "-o", TRACE, "-p", &pid.to_string()])
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        let start = Instant::now();
        while !all_threads_are_traced(pid) {
            assert!(start.elapsed() < Duration::from_secs(30), "strace does not attach");
        }
        Self(child)
    }

    /// Returns when no thread is traced any more.
    pub(crate) fn detach(mut self) {
        shell(&format!("kill -INT {} || true", self.0.id()));
        self.0.wait().expect("strace ends");
    }
}

fn all_threads_are_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}
