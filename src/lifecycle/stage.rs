//! The ladder. Stage climbs it, unstage descends it, and a refused stage descends before it answers.
//!
//! ```text
//! Absent --attach--> Attached --prepare--> Prepared --open--> Open --finish--> Mounted
//!          loop          header or format      dm-crypt   mkfs and seal, or fsck; mount
//! ```

mod climb;
mod rung;

use std::path::Path;
use std::path::PathBuf;

use super::Host;
use crate::device::Kernel;
use crate::device::Mapper;
use crate::device::Mount;
use crate::device::MountKind;
use crate::device::MountOptions;
use crate::device::Shape;
use crate::device::mount;
use crate::record::Record;
use crate::record::State;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::wiping_the_stack;
use climb::Climb;

/// What `NodeStageVolume` asks for.
#[derive(Clone, Debug)]
pub struct StageRequest {
    /// The volume.
    pub id: VolumeId,
    /// Where its filesystem is mounted; an existing directory, which stays empty for raw block.
    pub staging_path: PathBuf,
    /// What the caller believes the volume to be.
    pub content: Content,
    /// How to mount it.
    pub options: MountOptions,
}

impl StageRequest {
    /// The request with its path as the mount table spells it.
    pub(super) fn resolved(self) -> Result<Self> {
        Ok(Self { staging_path: mount::resolve(&self.staging_path)?, ..self })
    }
}

/// Mount flags that tell one stage from another; the others do not change what a pod may do.
const TELLING_FLAGS: [&str; 5] = ["noexec", "sync", "dirsync", "lazytime", "nodiratime"];

impl Host {
    pub(super) fn stage(&self, request: &StageRequest) -> Result<()> {
        let record = self.pools.get(&request.id).inspect_err(|error| self.note(&request.id, error))?;
        check_content(&record, request.content)?;
        check_directory(&request.staging_path)?;
        let shape = self.shape(&record);
        let kernel = self.look(&request.id, Some(&shape)).inspect_err(|error| self.note(&request.id, error))?;
        if self.is_staged(&record, &kernel, request)? {
            return Ok(());
        }
        let climbed =
            self.clear_half_done(&record, &shape, kernel, request).and_then(|()| self.climb(record, &shape, request));
        if let Err(error) = climbed {
            self.descend_after_refusal(&shape, request);
            self.note(&request.id, &error);
            return Err(error);
        }
        self.pools.of(&request.id).clear_refusal(&request.id);
        Ok(())
    }

    /// Where a secret exists, in memory that only this thread writes, and at whose end there is none left.
    fn climb(&self, record: Record, shape: &Shape, request: &StageRequest) -> Result<()> {
        wiping_the_stack(|| Climb::new(self, record, shape, request).run())
    }

    fn note(&self, id: &VolumeId, error: &Error) {
        if error.reason() != Reason::VolumeNotFound && error.reason() != Reason::PoolMissing {
            self.pools.of(id).note_refusal(id, error);
        }
    }

    /// Whether the request has nothing left to do; refuses one that differs from what was staged.
    fn is_staged(&self, record: &Record, kernel: &Kernel, request: &StageRequest) -> Result<bool> {
        if record.state != State::Ready || kernel.mapper != Mapper::Live {
            return Ok(false);
        }
        if record.content == Content::Block {
            return Ok(true);
        }
        let Some(mount) = mounted_at(kernel, &request.staging_path) else { return Ok(false) };
        if same_options(mount, &request.options) {
            return Ok(true);
        }
        Err(Error::new(
            Reason::AlreadyExists,
            format!("volume {} is staged with other mount options ({})", request.id, mount.options.join(",")),
        ))
    }

    /// Removes what a killed call has left, so that the climb starts from the ground. An open volume whose record is
    /// Ready is complete and is climbed from where it is.
    fn clear_half_done(&self, record: &Record, shape: &Shape, kernel: Kernel, request: &StageRequest) -> Result<()> {
        let complete = record.state == State::Ready && kernel.mapper == Mapper::Live;
        if complete { Ok(()) } else { self.descend(&request.id, Some(shape), kernel, &request.staging_path) }
    }

    /// The kubelet may never call unstage after a refusal: whatever is up comes down now, unless a pod uses it.
    fn descend_after_refusal(&self, shape: &Shape, request: &StageRequest) {
        let descended = self
            .look(&request.id, Some(shape))
            .and_then(|kernel| self.descend(&request.id, Some(shape), kernel, &request.staging_path));
        if let Err(error) = descended {
            tracing::warn!(error = error.chain(), "a refused stage could not be undone");
        }
    }

    pub(super) fn unstage(&self, id: &VolumeId, staging_path: &Path) -> Result<()> {
        let record = self.pools.get(id).ok();
        let shape = record.as_ref().map(|record| self.shape(record));
        let kernel = self.look_for_ours(id, shape.as_ref())?;
        self.descend(id, shape.as_ref(), kernel, staging_path)?;
        let left = self.look_for_ours(id, shape.as_ref())?;
        if left.mapper == Mapper::Absent && left.mounts.is_empty() {
            return Ok(());
        }
        Err(Error::new(Reason::Internal, format!("volume {id} is still held by the kernel: {left:?}")))
    }

    /// Takes the volume down from its staging path to the ground. A pod that still uses it is left alone.
    fn descend(&self, id: &VolumeId, shape: Option<&Shape>, kernel: Kernel, staging_path: &Path) -> Result<()> {
        if let Some(mount) = kernel.mounts.iter().find(|mount| mount.path != staging_path) {
            let message = format!("volume {id} is still mounted at {}; it stays open", mount.path.display());
            return Err(Error::new(Reason::PublishConflict, message));
        }
        if mounted_at(&kernel, staging_path).is_some() {
            self.machine.unmount(staging_path)?;
        }
        self.release(id, shape, kernel)
    }
}

/// The mount of the volume's filesystem at `path`.
pub(super) fn mounted_at<'a>(kernel: &'a Kernel, path: &Path) -> Option<&'a Mount> {
    kernel.mounts.iter().find(|mount| mount.path == path && mount.kind == MountKind::Filesystem)
}

/// Refuses a caller whose idea of the volume is not the record's.
pub(super) fn check_content(record: &Record, asked: Content) -> Result<()> {
    if record.content == asked {
        return Ok(());
    }
    Err(Error::new(
        Reason::CapabilityExceeded,
        format!("volume {} was made as {}, and was asked for as {asked}", record.id, record.content),
    ))
}

fn check_directory(staging_path: &Path) -> Result<()> {
    let metadata = std::fs::symlink_metadata(staging_path).map_err(|error| {
        Error::new(Reason::StagingMissing, format!("{} must be an existing directory", staging_path.display()))
            .caused_by(error)
    })?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(Error::new(Reason::StagingMissing, format!("{} must be a directory and is not", staging_path.display())))
}

fn same_options(mount: &Mount, options: &MountOptions) -> bool {
    let in_mount = |flag: &&str| mount.options.iter().any(|option| option == flag);
    let asked = |flag: &&str| options.flags.iter().any(|option| option == flag);
    mount.read_only == options.is_read_only() && TELLING_FLAGS.iter().all(|flag| in_mount(flag) == asked(flag))
}
