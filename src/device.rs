//! What the lifecycle may ask of the computer it runs on.
//!
//! [`Machine`] is the seam: [`linux`] is a real kernel, the fake of the tests keeps the same promises in memory.
//! Every verb is blocking and safe to repeat. Nothing is remembered between calls: the kernel is asked each time.

mod aligned;
pub mod backing;
pub mod crypt;
mod feature;
#[cfg(any(test, feature = "dev"))]
pub mod fake;
pub mod filesystem;
pub mod header;
pub mod init;
pub mod integrity;
pub mod linux;
pub mod memory;
pub mod mount;

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::volume::{FsType, Init, Profile, Result, SecretBytes, VolumeId};
use backing::Attached;
use header::Frozen;
use integrity::Opening;

/// What a volume's device must look like when it is open, taken from the record and from nothing on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The volume.
    pub id: VolumeId,
    /// Cryptographic parameters.
    pub profile: Profile,
    /// Size of the mapped device.
    pub payload_bytes: u64,
    /// The LUKS UUID that was chosen before anything was written.
    pub luks_uuid: Uuid,
    /// The image file that the loop device must sit on.
    pub backing: PathBuf,
}

/// Everything that the kernel holds for one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Loop devices on the volume's image, found by the image's inode.
    pub loops: Vec<PathBuf>,
    /// The device-mapper device under the volume's name.
    pub mapper: Mapper,
    /// Every mount of the mapper, of its filesystem or of its device node, in the order of mountinfo.
    pub mounts: Vec<Mount>,
}

/// The state of the device-mapper device under a volume's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mapper {
    /// There is none.
    #[default]
    Absent,
    /// What a killed call leaves: no live table. Safe to remove.
    HalfMade,
    /// Open: the live table was read back and is the one that the shape demands.
    Live,
    /// A live device that is not ours; the text says what was found.
    Foreign(String),
}

/// One line of mountinfo that shows a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Filesystem of the volume, or its device node bound over a file.
    pub kind: MountKind,
    /// Whether this mount point was made read-only. (A filesystem that turned itself read-only after an error shows
    /// `ro` among the options alone.)
    pub read_only: bool,
    /// Mount options and super options as mountinfo shows them.
    pub options: Vec<String>,
}

/// What stands at a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// The filesystem inside the volume.
    Filesystem,
    /// The mapper's device node, for raw block access.
    DeviceNode,
}

/// How a filesystem is mounted at its staging path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Options that the allow-list of [`mount`] let pass, in their order.
    pub flags: Vec<String>,
}

impl MountOptions {
    /// Whether nothing may be written through the mount.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags.iter().any(|flag| flag == "ro")
    }
}

/// Space in a filesystem, or the size of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A mounted filesystem.
    Filesystem {
        /// Total, available to the pod, and used.
        bytes: [u64; 3],
        /// Total, available and used inodes.
        inodes: [u64; 3],
    },
    /// A raw block device.
    Block {
        /// Its size.
        total_bytes: u64,
    },
}

/// Who is told how many bytes at the beginning of a payload have their tags on the disk.
pub type Progress<'a> = dyn FnMut(u64) -> Result<()> + 'a;

/// The computer, as far as a volume is concerned.
pub trait Machine: Send + Sync + 'static {
    /// What the kernel holds under `id`. Without a shape (the pool is away), a live mapper whose device-mapper UUID
    /// has our form counts as ours, and loops are not looked for.
    ///
    /// # Errors
    /// `Internal` if the kernel cannot be asked.
    fn look(&self, id: &VolumeId, shape: Option<&Shape>) -> Result<Kernel>;

    /// Attaches the image to a loop device that goes away with the last user. Refuses a missing or short image.
    ///
    /// # Errors
    /// Those of [`backing::attach`].
    fn attach(&self, shape: &Shape) -> Result<Attached>;

    /// Detaches loop devices that [`Machine::look`] found and nothing uses.
    ///
    /// # Errors
    /// Those of [`backing::detach`].
    fn detach(&self, loops: &[PathBuf]) -> Result<()>;

    /// Unlocks `header` with `passphrase`, loads the table over `attached`, reads it back, and removes it again if
    /// it is not what the shape demands.
    ///
    /// # Errors
    /// Those of [`crypt::open`].
    fn open(&self, shape: &Shape, attached: &Attached, header: &Frozen, passphrase: &SecretBytes) -> Result<()>;

    /// The open volume's device from now on, in the terms in which the kernel tells of bad sectors.
    ///
    /// # Errors
    /// `Internal` if the volume is not open, or the kernel cannot be asked.
    fn opening(&self, id: &VolumeId) -> Result<Opening>;

    /// Removes whatever stands under the volume's name, complete or not. Absent is fine.
    ///
    /// # Errors
    /// Those of [`crypt::close`].
    fn close(&self, id: &VolumeId) -> Result<()>;

    /// Gives sectors of the open volume their tags, as `init` demands. With [`Init::Full`] the first `from_bytes` have
    /// theirs; `progress` is told from time to time how many have, on the disk, and ends the work with an error.
    ///
    /// # Errors
    /// Those of [`init::seed`] and [`init::fill`].
    fn initialise(&self, shape: &Shape, init: Init, from_bytes: u64, progress: &mut Progress<'_>) -> Result<()>;

    /// Makes a filesystem in the open volume, over whatever is there.
    ///
    /// # Errors
    /// Those of [`filesystem::make`]; `NoSpace` if it failed because the pool is full.
    fn make_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()>;

    /// Checks the filesystem of the open, unmounted volume and repairs what is safe to repair unattended.
    ///
    /// # Errors
    /// Those of [`filesystem::check`].
    fn check_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()>;

    /// Mounts the open volume at `target`, an existing directory.
    ///
    /// # Errors
    /// Those of [`mount::stage`].
    fn mount(&self, id: &VolumeId, fs: FsType, target: &Path, options: &MountOptions) -> Result<()>;

    /// Shows the volume at `target`, which is created: its staged filesystem at `staged`, or its device node.
    ///
    /// # Errors
    /// Those of [`mount::publish_filesystem`] and [`mount::publish_block`].
    fn publish(&self, id: &VolumeId, staged: Option<&Path>, target: &Path, read_only: bool) -> Result<()>;

    /// Unmounts every layer at `target`. Nothing mounted there is fine; the directory entry stays.
    ///
    /// # Errors
    /// Those of [`mount::unmount`].
    fn unmount(&self, target: &Path) -> Result<()>;

    /// Space at a published path.
    ///
    /// # Errors
    /// Those of [`mount::usage`].
    fn usage(&self, path: &Path) -> Result<Usage>;

    /// Refuses a machine on which what is in memory, such as keys, may get to a disk unencrypted.
    ///
    /// # Errors
    /// `MemoryUnprotected` that names the device and the flag.
    fn check_memory(&self) -> Result<()>;

    /// What the kernel can do for volumes, in words for display.
    ///
    /// # Errors
    /// `Internal` if the kernel cannot be asked.
    fn features(&self) -> Result<Vec<String>>;
}
