//! A real Linux machine: device-mapper, loop devices, mounts, and the programs that make filesystems.
//!
//! Holds nothing: every answer is read from the kernel. Refuses to touch devices and mounts that are not ours. Mounts
//! reach the kubelet only if the caller's environment shares them (mount propagation `Bidirectional`).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use super::Kernel;
use super::Machine;
use super::Mapper;
use super::Mount;
use super::MountOptions;
use super::Progress;
use super::Shape;
use super::Usage;
use super::backing;
use super::backing::Attached;
use super::crypt;
use super::feature;
use super::filesystem;
use super::header::Frozen;
use super::init;
use super::integrity::Opening;
use super::memory;
use super::memory::Exposure;
use super::mount;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Init;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
use crate::volume::VolumeId;

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxMachine {
    /// How memory may get to a disk nevertheless.
    pub allowed: Exposure,
}

impl Machine for LinuxMachine {
    fn look(&self, id: &VolumeId, shape: Option<&Shape>) -> Result<Kernel> {
        let loops = shape.map(|shape| backing::loops_on(&shape.backing)).transpose()?.unwrap_or_default();
        // A loop device that vanishes meanwhile carries nothing.
        let backings: Vec<_> = loops.iter().filter_map(|node| device_number(node).ok()).collect();
        let mapper = crypt::look(id, shape, backings)?;
        let mounts = if mapper == Mapper::Live { mounts_of(id)? } else { Vec::new() };
        Ok(Kernel { loops, mapper, mounts })
    }

    fn attach(&self, shape: &Shape) -> Result<Attached> {
        backing::attach(shape)
    }

    fn detach(&self, loops: &[PathBuf]) -> Result<()> {
        backing::detach(loops)
    }

    fn open(&self, shape: &Shape, attached: &Attached, header: &Frozen, passphrase: &SecretBytes) -> Result<()> {
        crypt::open(shape, attached, header, passphrase)
    }

    fn opening(&self, id: &VolumeId) -> Result<Opening> {
        Opening::of(&crypt::device_node(id)?).map_err(|cause| {
            Error::new(
                Reason::Internal,
                format!("what the kernel tells of {id} cannot be told from what it told before"),
            )
            .caused_by(cause)
        })
    }

    fn close(&self, id: &VolumeId) -> Result<()> {
        crypt::close(id)
    }

    fn initialise(&self, shape: &Shape, init: Init, from_bytes: u64, progress: &mut Progress<'_>) -> Result<()> {
        let node = crypt::device_node(&shape.id)?;
        match init {
            Init::Seeded => init::seed(&node, shape.payload_bytes),
            Init::Full => init::fill(&node, shape.payload_bytes, from_bytes, progress),
        }
    }

    fn make_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()> {
        let node = crypt::device_node(&shape.id)?;
        filesystem::make(&node, fs, shape.profile).map_err(|error| {
            if backing::pool_is_full(&node) {
                let message = "the pool has no room left for the filesystem; make room, the stage is tried again";
                return Error::new(Reason::NoSpace, message).caused_by(error);
            }
            error
        })
    }

    fn check_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()> {
        let node = crypt::device_node(&shape.id)?;
        if !shape.profile.has_tags() {
            return filesystem::check(&node, fs);
        }
        // A check that reads ahead meets sectors without tags, and each of them looks like an attack in the kernel's log.
        init::without_read_ahead(&node, || filesystem::check(&node, fs))
    }

    fn mount(&self, id: &VolumeId, fs: FsType, target: &Path, options: &MountOptions) -> Result<()> {
        mount::stage(&crypt::device_node(id)?, fs, target, options)
    }

    fn publish(&self, id: &VolumeId, staged: Option<&Path>, target: &Path, read_only: bool) -> Result<()> {
        match staged {
            Some(staged) => mount::publish_filesystem(staged, target, read_only),
            None => mount::publish_block(&crypt::device_node(id)?, target, read_only),
        }
    }

    fn unmount(&self, target: &Path) -> Result<()> {
        mount::unmount(target, shows_a_volume)
    }

    fn usage(&self, path: &Path) -> Result<Usage> {
        mount::usage(path)
    }

    fn check_memory(&self) -> Result<()> {
        memory::check(self.allowed)
    }

    fn features(&self) -> Result<Vec<String>> {
        feature::of_this_kernel()
    }
}

fn mounts_of(id: &VolumeId) -> Result<Vec<Mount>> {
    let node = crypt::device_node(id)?;
    let number = device_number(&node)
        .map_err(|cause| Error::new(Reason::Internal, format!("{} is gone", node.display())).caused_by(cause))?;
    let name = node.file_name().unwrap_or_default().to_string_lossy();
    Ok(mount::of_device(&mount::table()?, number, &name))
}

fn device_number(node: &Path) -> std::io::Result<(u32, u32)> {
    let number = std::fs::metadata(node)?.rdev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}

/// Whether `line` shows some volume of this driver: its filesystem, its device node, or a node that is gone already.
fn shows_a_volume(line: &mount::Line) -> bool {
    let (major, minor) = line.device;
    let is_volume =
        |sys: PathBuf| std::fs::read_to_string(sys.join("dm/name")).is_ok_and(|name| name.starts_with("coffer-cv-"));
    match line.bound_node() {
        Some(node) if node.ends_with("//deleted") => node.starts_with("dm-"),
        Some(node) => is_volume(Path::new("/sys/block").join(node)),
        None => is_volume(PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))),
    }
}
