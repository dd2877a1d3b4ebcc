//! Shows a staged volume at a pod's path, and takes it away again.

use std::path::Path;
use std::path::PathBuf;

use super::Host;
use super::stage::check_content;
use super::stage::mounted_at;
use crate::device::Kernel;
use crate::device::Mapper;
use crate::device::Mount;
use crate::device::MountKind;
use crate::device::Usage;
use crate::device::mount;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Whether several paths may show a volume at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One path at a time.
    SingleWriter,
    /// Any number of paths on this node.
    MultiWriter,
}

/// What `NodePublishVolume` asks for.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The volume.
    pub id: VolumeId,
    /// Where it was staged.
    pub staging_path: PathBuf,
    /// Where the pod wants it; created by the driver.
    pub target_path: PathBuf,
    /// What the caller believes the volume to be.
    pub content: Content,
    /// No writes through this path.
    pub read_only: bool,
    /// Whether other paths may show it too.
    pub sharing: Sharing,
}

impl PublishRequest {
    /// The request with its paths as the mount table spells them.
    pub(super) fn resolved(self) -> Result<Self> {
        let staging_path = mount::resolve(&self.staging_path)?;
        Ok(Self { staging_path, target_path: mount::resolve(&self.target_path)?, ..self })
    }
}

impl Host {
    pub(super) fn publish(&self, request: &PublishRequest) -> Result<()> {
        let record = self.pools.get(&request.id)?;
        check_content(&record, request.content)?;
        let kernel = self.look(&request.id, Some(&self.shape(&record)))?;
        let staged = staged_source(&kernel, request)?;
        if let Some(mount) = kernel.mounts.iter().find(|mount| mount.path == request.target_path) {
            return already_published(mount, request);
        }
        if request.sharing == Sharing::SingleWriter
            && let Some(other) = kernel.mounts.iter().find(|mount| mount.path != request.staging_path)
        {
            let message =
                format!("volume {} is single-writer and already published at {}", request.id, other.path.display());
            return Err(Error::new(Reason::PublishConflict, message));
        }
        self.machine.publish(&request.id, staged, &request.target_path, request.read_only)
    }

    pub(super) fn unpublish(&self, id: &VolumeId, target_path: &Path) -> Result<()> {
        let kernel = self.machine.look(id, None)?;
        if kernel.mounts.iter().any(|mount| mount.path == target_path) {
            self.machine.unmount(target_path)?;
        }
        remove_entry(target_path)
    }

    pub(super) fn usage(&self, id: &VolumeId, path: &Path) -> Result<Usage> {
        self.pools.get(id)?;
        let shown = mount::resolve(path)?;
        if self.machine.look(id, None)?.mounts.iter().any(|mount| mount.path == shown) {
            return self.machine.usage(path);
        }
        Err(Error::new(Reason::VolumeNotFound, format!("volume {id} is not at {}", path.display())))
    }
}

/// What is bound to the target: the staged filesystem, or for raw block `None`, the device itself.
fn staged_source<'a>(kernel: &Kernel, request: &'a PublishRequest) -> Result<Option<&'a Path>> {
    let staged = match request.content {
        Content::Filesystem(_) => mounted_at(kernel, &request.staging_path).map(|_| Some(&*request.staging_path)),
        Content::Block => (kernel.mapper == Mapper::Live).then_some(None),
    };
    staged.ok_or_else(|| {
        let message = format!("volume {} is not staged at {}", request.id, request.staging_path.display());
        Error::new(Reason::StagingMissing, message)
    })
}

fn already_published(mount: &Mount, request: &PublishRequest) -> Result<()> {
    let kind = match request.content {
        Content::Filesystem(_) => MountKind::Filesystem,
        Content::Block => MountKind::DeviceNode,
    };
    if mount.kind == kind && mount.read_only == request.read_only {
        return Ok(());
    }
    let message = format!("volume {} is at {} with other access", request.id, request.target_path.display());
    Err(Error::new(Reason::AlreadyExists, message))
}

/// Removes an empty directory or a bare file. Never recursive: if an unmount had silently failed, that would delete
/// the pod's data.
fn remove_entry(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(error) => Err(error),
    };
    removed.map_err(|error| Error::new(Reason::Internal, format!("cannot remove {}", path.display())).caused_by(error))
}
