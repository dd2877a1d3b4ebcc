//! Programs that the rig starts on the host.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

/// Runs `command` to its end; its output goes where ours goes.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("the output is not text")
}

/// What happens to a program of the rig when the rig itself ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is killed, however the rig ends.
    WithRig,
    /// It goes on, until `coffer-rig down`.
    Kept,
}

/// A program in the background, killed when this value is dropped unless it is to be kept.
pub(crate) struct Daemon {
    name: String,
    child: Child,
    fate: Fate,
}

impl Daemon {
    /// Starts `program` with `arguments`; both of its outputs are appended to `log`, and its process id is written
    /// to `<log>.pid`, where `down` finds it.
    ///
    /// Call this on the main thread: a program that shares the rig's fate ends with the thread that started it.
    pub(crate) fn start(program: &str, arguments: &[String], log: &Path, fate: Fate) -> Result<Self> {
        let mut command = match fate {
            // setpriv replaces itself by the program, so the process id is the program's.
            Fate::WithRig => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--", program]);
                command
            }
            Fate::Kept => {
                let mut command = Command::new("setsid");
                command.arg(program);
                command
            }
        };
        let output = File::options().create(true).append(true).open(log)?;
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        fs::write(log.with_extension("pid"), child.id().to_string())?;
        Ok(Self { name: program.to_owned(), child, fate })
    }

    /// Whether its program is called `name`.
    pub(crate) fn is(&self, name: &str) -> bool {
        Path::new(&self.name).file_name().is_some_and(|file| file == name)
    }

    /// An error that names the program if it is no longer running.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}", self.name),
        }
    }

    /// Kills the program and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.fate == Fate::WithRig {
            // An error means that it is gone already.
            let _ = self.kill();
        }
    }
}

/// Kills the programs whose process ids stand in `<directory>/**/*.pid`, if they are still those of this rig.
pub(crate) fn kill_recorded(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            kill_recorded(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "pid") {
            kill_if_ours(&path)?;
        }
    }
    Ok(())
}

/// A process id may have been given to someone else since; ours has the rig's directory on its command line.
fn kill_if_ours(pid_file: &Path) -> Result<()> {
    let pid = fs::read_to_string(pid_file)?;
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    let parent = pid_file.parent().context("a file has a parent")?;
    if String::from_utf8_lossy(&command_line).contains(&*parent.to_string_lossy()) {
        succeed(Command::new("kill").args(["-KILL", pid.trim()]))?;
    }
    fs::remove_file(pid_file)?;
    Ok(())
}
