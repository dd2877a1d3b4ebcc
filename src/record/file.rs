//! Reading a small file that may be anything by now, and replacing it so that after a crash either the old or the new one
//! is there, whole.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::volume::Error;
use crate::volume::Reason;

/// The largest file that is read; what this driver writes has a few KiB.
const LIMIT_BYTES: u64 = 1 << 20;

/// Why a file could not be replaced.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed")]
pub struct FileError {
    step: &'static str,
    source: io::Error,
}

impl FileError {
    /// As an error of the house that says what was being done.
    #[must_use]
    pub fn into_error(self, doing: &str) -> Error {
        Error::new(Reason::of_write(&self.source), doing).caused_by(self)
    }
}

/// The contents of the file at `path`, unless it is larger than any of ours. A pipe is empty, a link an error.
///
/// # Errors
/// What the filesystem says; `FileTooLarge`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let mut text = Vec::new();
    file.take(LIMIT_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LIMIT_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// Writes `text` to `directory/name`: temporary file, fsync, rename, fsync of the directory. What has the temporary file's
/// name already is removed and not written to: it may be a link to anywhere.
///
/// # Errors
/// The step that failed, and why. The old file is there then, or the new one.
pub fn replace(directory: &Path, name: &str, text: &[u8]) -> Result<(), FileError> {
    let step = |step| move |source| FileError { step, source };
    let temporary = directory.join(format!(".{name}.new"));
    match std::fs::remove_file(&temporary) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(step("removing a temporary file")(cause)),
        _ => {}
    }
    let mut file = File::create_new(&temporary).map_err(step("creating a temporary file"))?;
    file.write_all(text).map_err(step("writing"))?;
    file.sync_all().map_err(step("fsync"))?;
    std::fs::rename(&temporary, directory.join(name)).map_err(step("renaming"))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(step("fsync of the directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_the_temporary_file_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("precious"), "text").expect("written");
        std::os::unix::fs::symlink(path("precious"), path(".note.json.new")).expect("linked");
        replace(directory.path(), "note.json", b"{}").expect("replaced");
        assert_eq!(std::fs::read(path("precious")).expect("there"), b"text");
        assert!(read(&path("note.json")).expect("a plain file") == b"{}");
    }
}
