//! The state directory. Files are replaced whole, under a lock, so that the server and the operator's commands see the
//! old or the new one. Secrets are in a file that only its owner can read; the release log only grows.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::policy::{Node, PcrSet, Policy};
use crate::key::evidence::AttesterDescription;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// The directory that holds everything this KBS knows.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
}

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// Everybody.
    Readable,
    /// Its owner.
    Private,
}

/// One line of the release log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Release<'a> {
    /// When, RFC 3339 in UTC.
    pub(super) time: &'a str,
    /// Always `released`: nothing else is in this log.
    pub(super) event: &'a str,
    /// The node's name in the policy.
    pub(super) node: &'a str,
    pub(super) tee: &'a str,
    /// SHA-256 of the DER of the key that signed the evidence.
    pub(super) attestation_key_sha256: Option<&'a str>,
    /// Numbers of the PCRs that were compared.
    pub(super) pcrs: &'a str,
    /// SHA-256 over the values of these PCRs in ascending order.
    pub(super) pcrs_sha256: Option<&'a str>,
    pub(super) resource_path: &'a str,
}

/// Base64 by resource path.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Secrets(BTreeMap<String, String>);

impl Drop for Secrets {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl State {
    /// The state in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// `InvalidArgument` if it cannot be made.
    pub fn open(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|cause| {
            Error::invalid("--state", format!("{} cannot be made", directory.display())).caused_by(cause)
        })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The CA that clients must be given.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    pub(super) fn ca_key_file(&self) -> PathBuf {
        self.file("ca.key")
    }

    /// One line for each key that was released.
    #[must_use]
    pub fn release_log(&self) -> PathBuf {
        self.file("release.log")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The policy as it is now.
    ///
    /// # Errors
    /// `Internal` if the file is there and cannot be understood.
    pub fn policy(&self) -> Result<Policy> {
        parse(&self.file("policy.json"))
    }

    /// Adds or replaces the node called `name`.
    ///
    /// # Errors
    /// `InvalidArgument` if the description is not enough to know the node by.
    pub fn register(&self, name: &str, description: &AttesterDescription, pcrs: PcrSet) -> Result<()> {
        let node = Node::new(description, pcrs)?;
        self.change_policy(|policy| {
            policy.nodes.insert(name.to_owned(), node);
            Ok(())
        })
    }

    /// Lets the node called `name` have the secret under `uri`, whether there is one yet or not.
    ///
    /// # Errors
    /// `InvalidArgument` if no such node is registered.
    pub fn allow(&self, uri: &KeyUri, name: &str) -> Result<()> {
        self.change_policy(|policy| {
            policy.check_node(name)?;
            policy.resources.entry(uri.resource_path().to_owned()).or_default().insert(name.to_owned());
            Ok(())
        })
    }

    /// Lets the node called `name` no longer have the secret under `uri`.
    ///
    /// # Errors
    /// `InvalidArgument` if no such node is registered.
    pub fn deny(&self, uri: &KeyUri, name: &str) -> Result<()> {
        self.change_policy(|policy| {
            policy.check_node(name)?;
            policy.resources.entry(uri.resource_path().to_owned()).or_default().remove(name);
            Ok(())
        })
    }

    /// Stores `secret`, and returns the nodes that may have it: those of the policy and those of `allow`; with neither,
    /// all that are registered.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a secret and `replace` is false, `InvalidArgument` for a node that is unknown.
    pub fn put(&self, uri: &KeyUri, secret: &SecretBytes, replace: bool, allow: &[String]) -> Result<Vec<String>> {
        let path = uri.resource_path().to_owned();
        let nodes = self.change_policy(|policy| {
            allow.iter().try_for_each(|name| policy.check_node(name))?;
            if allow.is_empty() && !policy.resources.contains_key(&path) {
                policy.resources.insert(path.clone(), policy.nodes.keys().cloned().collect());
            }
            let names = policy.resources.entry(path.clone()).or_default();
            names.extend(allow.iter().cloned());
            let nodes = names.iter().cloned().collect();
            // Inside the lock, and before the policy is written: a refused secret changes nothing.
            self.store(path.clone(), secret, replace)?;
            Ok(nodes)
        })?;
        Ok(nodes)
    }

    fn store(&self, path: String, secret: &SecretBytes, replace_old: bool) -> Result<()> {
        let file = self.file("secrets.json");
        let mut secrets: Secrets = parse(&file)?;
        if secrets.0.contains_key(&path) && !replace_old {
            let message =
                format!("there is a secret at {path}; volumes made with it would be lost (--replace does it)");
            return Err(Error::new(Reason::AlreadyExists, message));
        }
        secrets.0.insert(path, STANDARD.encode(secret.expose()));
        let text = serde_json::to_vec(&secrets).map(Zeroizing::new).map_err(|cause| unwritable(&file, cause))?;
        replace(&file, &text, Mode::Private)
    }

    /// The secret under `uri`, if there is one.
    pub(super) fn secret(&self, uri: &KeyUri) -> Result<Option<SecretBytes>> {
        let secrets: Secrets = parse(&self.file("secrets.json"))?;
        let Some(text) = secrets.0.get(uri.resource_path()) else { return Ok(None) };
        // The decoder's error could repeat a character of the secret.
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| Error::new(Reason::Internal, "a secret in secrets.json is not base64"))?;
        Ok(Some(SecretBytes::new(Zeroizing::new(bytes))))
    }

    /// Appends to the release log, durably: what is not written down is not released.
    pub(super) fn log_release(&self, release: &Release<'_>) -> Result<()> {
        let path = self.release_log();
        let mut line = serde_json::to_vec(release).map_err(|cause| unwritable(&path, cause))?;
        line.push(b'\n');
        let append = || -> io::Result<()> {
            let mut log = OpenOptions::new().create(true).append(true).open(&path)?;
            log.write_all(&line)?;
            log.sync_data()
        };
        append().map_err(|cause| unwritable(&path, cause))
    }

    fn change_policy<T>(&self, change: impl FnOnce(&mut Policy) -> Result<T>) -> Result<T> {
        let path = self.file("policy.json");
        let lock = self.file("lock");
        let file = File::create(&lock).map_err(|cause| unwritable(&lock, cause))?;
        file.lock().map_err(|cause| unwritable(&lock, cause))?;
        let mut policy = self.policy()?;
        let outcome = change(&mut policy)?;
        let mut text = serde_json::to_vec_pretty(&policy).map_err(|cause| unwritable(&path, cause))?;
        text.push(b'\n');
        replace(&path, &text, Mode::Readable)?;
        Ok(outcome)
    }
}

/// What `path` holds, or the empty value if it does not exist.
fn parse<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let Some(bytes) = read(path)? else { return Ok(T::default()) };
    serde_json::from_slice(&bytes).map_err(|cause| {
        // Only the place: the parser's words could repeat a part of a secret.
        let place = format!("line {}, column {}", cause.line(), cause.column());
        Error::new(Reason::Internal, format!("{} is not understood ({place})", path.display()))
    })
}

/// The content of `path`, or `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => {
            let message = format!("{} cannot be read", path.display());
            Err(Error::new(Reason::Internal, message).caused_by(cause))
        }
    }
}

/// Puts `bytes` at `path` so that it holds the old or the new content, whatever happens.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: Mode) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        // A left-over could have another mode, which opening it would keep.
        if let Err(cause) = std::fs::remove_file(&temporary)
            && cause.kind() != io::ErrorKind::NotFound
        {
            return Err(cause);
        }
        let bits = match mode {
            Mode::Readable => 0o644,
            Mode::Private => 0o600,
        };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(bits).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|cause| unwritable(path, cause))
}

fn unwritable(path: &Path, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Reason::Internal, format!("{} cannot be written", path.display())).caused_by(cause)
}
