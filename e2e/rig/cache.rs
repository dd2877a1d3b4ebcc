//! What takes long to make is made once: artefacts outside the tree, each under a name that says what it was made from.

use std::env;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use rustix::fs::FlockOperation;
use rustix::fs::flock;
use sha2::Digest;
use sha2::Sha256;

/// Other checkouts use the cache at the same time, each with its own newest artefact.
const KEPT_BESIDE_NEWEST: usize = 4;
const HEX_OF_SHA256: usize = 64;

/// The file or directory `<name>-<SHA-256 of inputs>` in the cache.
///
/// `make` is called if it is not there, with a path that does not exist yet; what it makes appears under its real
/// name only when it is complete. Two rigs that want the same artefact wait for each other.
pub(crate) fn artefact(name: &str, inputs: &[&str], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory()?;
    let key = key(inputs);
    let path = cache.join(format!("{name}-{key}"));
    if path.exists() {
        return Ok(path);
    }
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if path.exists() {
        return Ok(path);
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    remove(&unfinished)?;
    make(&unfinished).with_context(|| format!("cannot make {}", path.display()))?;
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// Like [`artefact`], for what is made anew with every change of the source: only the newest of its name are kept.
pub(crate) fn newest_artefact(name: &str, inputs: &[&str], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = artefact(name, inputs, make)?;
    let mut others = Vec::new();
    for entry in fs::read_dir(directory()?)? {
        let entry = entry?;
        let key = entry
            .file_name()
            .to_string_lossy()
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
            .map(str::len);
        if key == Some(HEX_OF_SHA256) && entry.path() != path {
            others.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    others.sort();
    others.iter().rev().skip(KEPT_BESIDE_NEWEST).try_for_each(|(_, old)| remove(old))?;
    Ok(path)
}

/// `$COFFER_CACHE`, or `~/.cache/coffer`.
pub(crate) fn directory() -> Result<PathBuf> {
    let path = match env::var_os("COFFER_CACHE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache/coffer"),
    };
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// SHA-256 over the inputs and the borders between them.
fn key(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_be_bytes());
        hash.update(input);
    }
    hex::encode(hash.finalize())
}

fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}
