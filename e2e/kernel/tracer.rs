//! The rig's tracer on a running driver: counts the calls that change something, and kills the driver before one.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use crate::scene::MOUNT;

/// It ends with the driver.
pub(crate) struct Tracer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Tracer {
    /// Returns when every thread of the process is traced. Its call number `kill_before`, from 1, is never made.
    pub(crate) fn attach(pid: u32, kill_before: usize) -> Self {
        let mut child = Command::new("coffer-rig")
            .args(["trace", "--tree", MOUNT, "--kill-before", &kill_before.to_string(), &pid.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tracer starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the tracer speaks");
        assert_eq!(line, "attached\n");
        Self { child, output }
    }

    /// How many calls a driver made that has ended.
    pub(crate) fn calls(mut self) -> usize {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the tracer speaks");
        assert!(self.child.wait().expect("our child").success(), "the tracer failed");
        line.trim().parse().expect("a number")
    }
}
