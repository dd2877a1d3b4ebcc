//! Who makes and deletes volumes, and the one that does it in a directory of this machine: the local pool.
//!
//! ```text
//! <pool>/pool.json             the mark made by `coffer pool init`
//! <pool>/<id>/                 locked (`flock`) by whoever works on the volume
//! <pool>/<id>/volume.json      the record
//! <pool>/<id>/backing          the image
//! <pool>/<id>/refusal.json     why the last stage was refused, for display
//! <pool>/<id>/release.json     who had the key released, and when, for display
//! <pool>/<id>/opening.json     from when on what the kernel tells of the volume's device is the volume's
//! <pool>/<id>/integrity.json   sectors that do not hold what was written there, for display
//! <pool>/creating-<id>/        a creation that was interrupted: nothing of value, swept
//! <pool>/deleting-<id>/        a deletion that was interrupted: finished by the next call
//! ```

mod notes;
mod pools;
mod space;

pub use notes::BadSectors;
pub use notes::Refusal;
pub use notes::Release;
pub use pools::Pools;
pub use space::Capacity;

use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use async_trait::async_trait;
use rustix::fs::FlockOperation;
use rustix::fs::OFlags;
use rustix::fs::flock;
use rustix::io::Errno;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::device::Shape;
use crate::device::backing;
use crate::device::backing::Allocation;
use crate::record::POOL_FILE;
use crate::record::PoolFile;
use crate::record::Record;
use crate::volume::ERASURE;
use crate::volume::Error;
use crate::volume::HealthEntry;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;
use crate::volume::Whereabouts;
use crate::volume::erasure_receipt;

const BACKING_FILE: &str = "backing";
const CREATING: &str = "creating-";
const DELETING: &str = "deleting-";

/// Who makes and deletes volumes, and knows which there are: this machine alone, or a cluster's nodes.
#[async_trait]
pub trait Provisioner: Send + Sync + 'static {
    /// Whether it can be told now which volumes exist.
    async fn ready(&self) -> Result<()>;

    /// Creates the volume at one of the places that will do, or finds it as asked for. May take until `deadline`.
    async fn create(&self, spec: VolumeSpec, whereabouts: Whereabouts, deadline: Instant) -> Result<Volume>;

    /// Deletes a volume and its key material. One that is still staged is waited for until `deadline`; one that is not
    /// there is deleted.
    async fn delete(&self, id: VolumeId, deadline: Instant) -> Result<()>;

    /// The volume, or `VolumeNotFound`.
    async fn get(&self, id: VolumeId) -> Result<Volume>;

    /// All volumes in the order of ids.
    async fn list(&self) -> Result<Vec<Volume>>;

    /// What pools called `pool` can still promise at `place`, or anywhere.
    async fn capacity(&self, pool: &PoolName, place: Option<&Place>) -> Result<Capacity>;

    /// What is wrong with the volume; empty if nothing is.
    async fn health(&self, id: VolumeId) -> Result<Vec<HealthEntry>>;
}

/// A directory in which volumes live. Whether it is usable is asked anew each time: its disk may come and go.
#[derive(Clone, Debug)]
pub struct LocalPool {
    name: PoolName,
    path: PathBuf,
}

impl LocalPool {
    /// The pool called `name` at `path`, ready or not.
    #[must_use]
    pub fn open(name: PoolName, path: PathBuf) -> Self {
        Self { name, path }
    }

    /// Makes `path` a pool. A pool that is already there is kept and returned.
    ///
    /// # Errors
    /// `PoolMissing` if `path` cannot be made or used, `NoSpace` if there is no room for the mark.
    pub fn init(path: &Path) -> Result<PoolFile> {
        std::fs::create_dir_all(path).map_err(|error| {
            Error::new(Reason::PoolMissing, format!("cannot create {}", path.display())).caused_by(error)
        })?;
        if path.join(POOL_FILE).exists() {
            return Self::open(PoolName::default(), path.to_owned()).ready();
        }
        let pool = PoolFile::new(space::filesystem_uuid(path)?, now());
        pool.write(path)?;
        Ok(pool)
    }

    /// The pool's mark, or why the pool cannot be used now.
    ///
    /// # Errors
    /// `PoolMissing`, which says what to do.
    pub fn ready(&self) -> Result<PoolFile> {
        let pool = PoolFile::read(&self.path)?;
        let here = space::filesystem_uuid(&self.path)?;
        if let (Some(expected), Some(here)) = (pool.filesystem_uuid, here)
            && expected != here
        {
            let message = format!(
                "{} was made on filesystem {expected} and is now on {here}: mount the pool's disk",
                self.path.display()
            );
            return Err(Error::new(Reason::PoolMissing, message));
        }
        space::refuse_read_only(&self.path)?;
        Ok(pool)
    }

    /// What a StorageClass calls the pool.
    #[must_use]
    pub fn name(&self) -> &PoolName {
        &self.name
    }

    /// Where the pool is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of one volume.
    #[must_use]
    pub fn directory(&self, id: &VolumeId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// What the kernel must show when the volume of `record` is open.
    #[must_use]
    pub fn shape(&self, record: &Record) -> Shape {
        Shape {
            id: record.id.clone(),
            profile: record.profile,
            payload_bytes: record.payload_bytes,
            luks_uuid: record.luks_uuid,
            backing: self.directory(&record.id).join(BACKING_FILE),
        }
    }

    /// Creates the volume on `node`, or finds it as asked for.
    ///
    /// # Errors
    /// `AlreadyExists` if it was made otherwise, `NoSpace`, `SizeOutOfRange`, `PoolMissing`; those of [`Record::read`].
    pub fn create(&self, spec: &VolumeSpec, node: Option<&Place>) -> Result<Record> {
        self.ready()?;
        let id = spec.id();
        let _lock = self.lock()?;
        self.sweep(Some(&id))?;
        if let Some(record) = Record::read(&self.directory(&id), &id)? {
            let made = record.spec(self.name.clone());
            return if made.is_same_as(spec) { Ok(record) } else { Err(made.conflict(spec)) };
        }
        space::admit(&self.path, spec)?;
        let record = Record::declare(spec, node.cloned(), now());
        let directory = self.path.join(format!("{CREATING}{id}"));
        self.lay_out(&directory, &record)
            .and_then(|()| rename(&directory, &self.directory(&id)))
            .and_then(|()| sync(&self.path))
            .map(|()| record)
            .inspect_err(|_| {
                if let Err(error) = std::fs::remove_dir_all(&directory) {
                    tracing::debug!(%error, "an interrupted creation is left for the next sweep");
                }
            })
    }

    fn lay_out(&self, directory: &Path, record: &Record) -> Result<()> {
        std::fs::create_dir(directory).map_err(|error| failed("cannot create the volume's directory", error))?;
        let allocation = if record.profile.has_tags() { Allocation::Reserved } else { Allocation::Sparse };
        let backing_bytes = record.profile.backing_bytes(record.payload_bytes);
        backing::create(&directory.join(BACKING_FILE), backing_bytes, allocation)?;
        record.write(directory)
    }

    /// Deletes the volume and its key material on this node. A volume that is not there is deleted.
    ///
    /// # Errors
    /// `PoolMissing` if the pool cannot be used now; those of [`backing::erase`], after which the next call goes on.
    pub fn delete(&self, id: &VolumeId) -> Result<()> {
        self.ready()?;
        let _lock = self.lock()?;
        self.sweep(Some(id))?;
        if !self.directory(id).exists() {
            return Ok(());
        }
        rename(&self.directory(id), &self.path.join(format!("{DELETING}{id}")))?;
        sync(&self.path)?;
        self.sweep(Some(id))
    }

    /// Finishes the creations and deletions that an earlier process has left half done.
    ///
    /// # Errors
    /// `PoolMissing` if the pool cannot be used now. What cannot be finished is only named in the log.
    pub fn finish_interrupted(&self) -> Result<()> {
        self.ready()?;
        let _lock = self.lock()?;
        self.sweep(None)
    }

    /// What every call that changes the set of volumes does first, under the lock. What cannot be finished of another volume
    /// than `asked` does not keep the call from its own.
    fn sweep(&self, asked: Option<&VolumeId>) -> Result<()> {
        for name in self.names()? {
            let directory = self.path.join(&name);
            let (id, finished) = if let Some(id) = name.strip_prefix(CREATING).and_then(VolumeId::parse) {
                let removed = std::fs::remove_dir_all(&directory);
                (id, removed.map_err(|error| failed("cannot remove a half-made volume", error)))
            } else if let Some(id) = name.strip_prefix(DELETING).and_then(VolumeId::parse) {
                let finished = self.finish_deletion(&id, &directory);
                (id, finished)
            } else {
                continue;
            };
            match finished {
                Err(error) if asked != Some(&id) => {
                    tracing::warn!(volume = %id, error = error.chain(), "left half done");
                }
                finished => finished?,
            }
        }
        Ok(())
    }

    fn finish_deletion(&self, id: &VolumeId, directory: &Path) -> Result<()> {
        let record = Record::read(directory, id).ok().flatten();
        erase(directory)?;
        sync(&self.path)?;
        let receipt = erasure_receipt(record.as_ref().map(|record| &record.key_uri));
        tracing::info!(volume = %id, erasure = ERASURE, "volume deleted: {receipt}");
        Ok(())
    }

    /// The record of one volume.
    ///
    /// # Errors
    /// `VolumeNotFound`, `PoolMissing`; those of [`Record::read`].
    pub fn get(&self, id: &VolumeId) -> Result<Record> {
        self.ready()?;
        Record::read(&self.directory(id), id)?.ok_or_else(|| {
            Error::new(Reason::VolumeNotFound, format!("there is no volume {id} in {}", self.path.display()))
        })
    }

    /// Every volume of the pool in the order of ids, with its record or why that cannot be read.
    ///
    /// # Errors
    /// `PoolMissing` if the pool cannot be used now.
    pub fn list(&self) -> Result<Vec<(VolumeId, Result<Record>)>> {
        self.ready()?;
        Ok(self.ids()?.into_iter().map(|id| (id.clone(), self.get(&id))).collect())
    }

    /// Every volume of the pool in the order of ids, whatever its record says.
    ///
    /// # Errors
    /// `Internal` if the directory cannot be listed.
    pub fn ids(&self) -> Result<Vec<VolumeId>> {
        let mut ids: Vec<VolumeId> = self.names()?.iter().filter_map(|name| VolumeId::parse(name)).collect();
        ids.sort();
        Ok(ids)
    }

    /// What can still be promised. A pool that is not ready can promise nothing.
    ///
    /// # Errors
    /// `PoolMissing` if the pool cannot be used now.
    pub fn capacity(&self) -> Result<Capacity> {
        self.ready()?;
        space::capacity(&self.path)
    }

    /// The right to work on the volume for as long as what this returns is open, also between processes. `None` where
    /// there is no such directory.
    ///
    /// # Errors
    /// `OperationPending` while another process has it, `RecordDamaged` if what stands there is no directory.
    pub fn claim(&self, id: &VolumeId) -> Result<Option<File>> {
        let pending = || {
            let message = format!("another process is at work on volume {id}; this call may be repeated");
            Error::new(Reason::OperationPending, message)
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(self.directory(id));
        let directory = match opened {
            Ok(directory) => directory,
            Err(cause) if matches!(Errno::from_io_error(&cause), Some(Errno::LOOP | Errno::NOTDIR)) => {
                let text = format!("{} is no directory; restore it from a copy", self.directory(id).display());
                return Err(Error::new(Reason::RecordDamaged, text).caused_by(cause));
            }
            // What cannot be opened cannot be worked on, and is refused where that is tried.
            Err(_) => return Ok(None),
        };
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(pending()),
            locked => locked.map_err(|error| failed("cannot lock the volume's directory", error.into()))?,
        }
        // Deleted and made again meanwhile: what is locked is no longer the volume's.
        let identity = |found: Metadata| (found.dev(), found.ino());
        let there = std::fs::metadata(self.directory(id)).map(identity).ok();
        if there.is_some() && there != directory.metadata().map(identity).ok() {
            Err(pending())
        } else {
            Ok(Some(directory))
        }
    }

    /// Names of the directories in the pool. A link to one is none.
    fn names(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| failed("cannot list the pool", error))?;
        let directories = entries.iter().filter(|entry| entry.file_type().is_ok_and(|found| found.is_dir()));
        Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Serialises what changes the set of volumes, also between processes.
    fn lock(&self) -> Result<File> {
        let file =
            File::open(self.path.join(POOL_FILE)).map_err(|error| failed("cannot open the pool's mark", error))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed("cannot lock the pool", error.into()))?;
        Ok(file)
    }
}

fn erase(directory: &Path) -> Result<()> {
    backing::erase(&directory.join(BACKING_FILE))?;
    std::fs::remove_dir_all(directory).map_err(|error| failed("cannot remove a deleted volume's directory", error))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| failed("cannot rename a volume's directory", error))
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(|error| failed("cannot sync the pool", error))
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::new(Reason::of_write(&error), what).caused_by(error)
}

/// The time now, RFC 3339 in UTC with whole seconds.
fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("zero is a nanosecond");
    now.format(&Rfc3339).expect("the year has four digits")
}
