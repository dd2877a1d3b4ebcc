//! One request to configfs-tsm at a time: a directory is made, written, read and removed again.
//!
//! Nothing is left behind, also not what a killed process left. Refused: a report in whose making somebody else had a
//! hand, and one that is larger than any TEE makes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Bound;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// The directory of our request. Who holds the lock on the directory above it is alone, so that one name does.
const NAME: &str = "coffer";
/// For a TEE that is busy, and for other processes. Shorter than an exchange with a KBS may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries: nothing tells when a TEE is ready.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a report is asked for again because somebody else wrote to our request.
const ATTEMPTS: usize = 5;
/// More than any report, and less than a KBS takes.
const BLOB_LIMIT_BYTES: usize = 1 << 20;

/// What the TEE answered.
pub(super) struct Blobs {
    /// The report.
    pub(super) outblob: Vec<u8>,
    /// What the host adds to it; empty if there is nothing.
    pub(super) auxblob: Vec<u8>,
}

/// The name of the driver that makes reports on this machine.
pub(super) fn provider(directory: &Path) -> Result<String> {
    alone(directory, Request::provider)
}

/// A report of `provider` about `data`.
pub(super) fn report(directory: &Path, provider: &str, data: &Bound) -> Result<Blobs> {
    alone(directory, |request| {
        let found = request.provider()?;
        if found != provider {
            let message = format!("the TEE of this machine is {found:?}, not {provider:?} as --attester says");
            return Err(Error::new(Reason::AttesterUnavailable, message));
        }
        for _ in 0..ATTEMPTS {
            if let Some(blobs) = request.take(data)? {
                return Ok(blobs);
            }
        }
        let message = format!("{} was written by somebody else during {ATTEMPTS} reports", request.path.display());
        Err(Error::new(Reason::AttesterUnavailable, message))
    })
}

/// A directory in configfs-tsm, which is removed when this is dropped.
struct Request {
    path: PathBuf,
    deadline: Instant,
}

/// Does `work` with a new request, while no other process of Coffer has one.
fn alone<T>(directory: &Path, work: impl FnOnce(&Request) -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    let lock = File::open(directory).map_err(|cause| {
        failed(directory, "cannot be opened; this needs Linux 6.7, a mounted configfs, and root", cause)
    })?;
    patiently(deadline, || Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive)?))
        .map_err(|cause| failed(directory, "is in use by another process", cause))?;
    let path = directory.join(NAME);
    match fs::remove_dir(&path) {
        Ok(()) => tracing::info!("{}, left by a process that was killed, is removed", path.display()),
        Err(cause) if cause.kind() == ErrorKind::NotFound => {}
        Err(cause) => return Err(failed(&path, "is in the way and cannot be removed", cause)),
    }
    fs::create_dir(&path).map_err(|cause| failed(&path, "cannot be made", cause))?;
    let request = Request { path, deadline };
    work(&request)
}

impl Request {
    fn provider(&self) -> Result<String> {
        self.text("provider")
    }

    /// The answer about `data`, unless somebody else wrote to this request meanwhile.
    fn take(&self, data: &Bound) -> Result<Option<Blobs>> {
        let before = self.generation()?;
        self.write("inblob", data)?;
        let blobs = Blobs { outblob: self.read("outblob")?, auxblob: self.read("auxblob")? };
        // A write is counted when its file is closed, which tells of no error: one that was not taken is seen here, too.
        Ok((self.generation()? == before.wrapping_add(1)).then_some(blobs))
    }

    fn generation(&self) -> Result<u64> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| {
            let message = format!("{} says {text:?}, which is no number", self.path.join("generation").display());
            Error::new(Reason::AttesterUnavailable, message)
        })
    }

    fn text(&self, attribute: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(attribute)?).trim_end().to_owned())
    }

    /// The whole of `attribute`. Drivers without a use for an attribute do not have it.
    fn read(&self, attribute: &str) -> Result<Vec<u8>> {
        let path = self.path.join(attribute);
        match patiently(self.deadline, || read_bounded(&path)) {
            Err(cause) if cause.kind() == ErrorKind::NotFound && attribute == "auxblob" => Ok(Vec::new()),
            outcome => outcome.map_err(|cause| failed(&path, "cannot be read", cause)),
        }
    }

    /// Writes `bytes` in one piece: each write is a new request.
    fn write(&self, attribute: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(attribute);
        patiently(self.deadline, || match File::options().write(true).open(&path)?.write(bytes)? {
            written if written == bytes.len() => Ok(()),
            written => Err(io::Error::other(format!("{written} of {} bytes were taken", bytes.len()))),
        })
        .map_err(|cause| failed(&path, "cannot be written", cause))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!("{} cannot be removed ({error}); the next report tries again", self.path.display());
        }
    }
}

/// Not `fs::read`, which tries again for ever when it is interrupted.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&piece[..length]),
        }
        if bytes.len() > BLOB_LIMIT_BYTES {
            return Err(Errno::FBIG.into());
        }
    }
}

/// Takes `step` again while a TEE or another process is busy, at most until `deadline`.
fn patiently<T>(deadline: Instant, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match step() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::WOULDBLOCK | Errno::BUSY))
}

fn failed(path: &Path, what: &str, cause: io::Error) -> Error {
    let hint = match Errno::from_io_error(&cause) {
        Some(Errno::NXIO) => "; the kernel knows no TEE: is this a confidential machine, and is its driver loaded?",
        Some(Errno::FBIG) => "; the report is too large: kernel, driver and platform do not fit together",
        _ => "",
    };
    let message = format!("{} {what}{hint}", path.display());
    Error::new(Reason::AttesterUnavailable, message).caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[test]
    fn what_is_busy_is_asked_again() {
        let mut answers = [Err(Errno::INTR), Err(Errno::WOULDBLOCK), Err(Errno::BUSY), Ok(7)].into_iter();
        let outcome = patiently(soon(), || Ok(answers.next().expect("not asked again")?));
        assert_eq!(outcome.expect("in the end"), 7);
        assert_eq!(answers.len(), 0);
    }

    #[test]
    fn what_fails_is_asked_once() {
        for errno in [Errno::FBIG, Errno::NXIO, Errno::INVAL, Errno::IO] {
            let mut asked = 0;
            let outcome = patiently(soon(), || {
                asked += 1;
                Err::<(), _>(errno.into())
            });
            assert_eq!((Errno::from_io_error(&outcome.expect_err("failed")), asked), (Some(errno), 1));
        }
    }

    #[test]
    fn patience_ends() {
        let mut asked = 0;
        let outcome = patiently(Instant::now() + PAUSE * 3, || {
            asked += 1;
            Err::<(), _>(Errno::BUSY.into())
        });
        assert_eq!(Errno::from_io_error(&outcome.expect_err("never")), Some(Errno::BUSY));
        assert!((1..=4).contains(&asked), "{asked}");
    }

    #[test]
    fn a_machine_without_configfs_tsm_says_what_it_lacks() {
        let error = provider(Path::new("/nonexistent/report")).expect_err("nothing there");
        assert_eq!(error.reason(), Reason::AttesterUnavailable);
        assert!(
            error.explanation().contains("/nonexistent/report") && error.explanation().contains("configfs"),
            "{error}"
        );
    }

    #[test]
    fn the_causes_that_an_operator_can_act_on_are_explained() {
        let explained = |errno: Errno| failed(Path::new("/a"), "cannot be read", errno.into()).explanation();
        assert!(explained(Errno::FBIG).contains("too large"));
        assert!(explained(Errno::NXIO).contains("no TEE"));
        assert!(!explained(Errno::IO).contains(';'));
    }
}
