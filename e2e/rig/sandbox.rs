//! The rig's own network: inside it every port is free, and nothing of it can be reached from outside.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::process::succeed;
use crate::report::stage;

/// Set in the environment of the program that runs inside.
const INSIDE: &str = "COFFER_RIG_INSIDE";

/// Whether this program still runs where the package registries can be reached.
fn is_outside() -> bool {
    env::var_os(INSIDE).is_none()
}

/// Gets what a run needs and enters the sandbox: first outside, where the package registries are, and then inside, where what
/// was built is found. `what` is said to the person who waits.
pub(crate) fn enter_with<T>(what: &str, get: impl Fn() -> Result<T>) -> Result<T> {
    if is_outside() {
        stage(&format!("Build what the cache does not have: {what}"), || get().map(drop))?;
    }
    enter()?;
    get()
}

/// An empty directory at `path`, by its absolute path: programs are told where their files are, and some change their
/// directory.
pub(crate) fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    fs::create_dir_all(path)?;
    Ok(fs::canonicalize(path)?)
}

/// Starts this program again in a network and a mount namespace of its own, and does not return; inside, returns.
pub(crate) fn enter() -> Result<()> {
    if !is_outside() {
        return succeed(Command::new("ip").args(["link", "set", "lo", "up"]));
    }
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(own_path()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot start unshare; the rig needs root")
}

/// Starts this program again in the network of the process whose id is in `pid_file`; inside, returns.
pub(crate) fn join(pid_file: &Path) -> Result<()> {
    if !is_outside() {
        return Ok(());
    }
    let pid = fs::read_to_string(pid_file).context("no rig was left up (make demo KEEP=1)")?;
    let error = Command::new("nsenter")
        .args(["--net", "--mount", "--target", pid.trim(), "--"])
        .arg(own_path()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot start nsenter")
}

/// This program's file. Cargo may have replaced it since we started; the kernel then names the old one `… (deleted)`.
fn own_path() -> Result<PathBuf> {
    let path = env::current_exe()?;
    let name = path.to_str().context("the rig's path is not text")?;
    Ok(PathBuf::from(name.strip_suffix(" (deleted)").unwrap_or(name)))
}
