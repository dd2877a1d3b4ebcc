//! Mounts: reading the kernel's table, staging a filesystem, showing it to a pod, taking it away again.
//!
//! Refuses: a filesystem type that the kernel would have to guess, mount options outside the allow-list, symbolic
//! links as targets, unmounting what is not ours, and lazy unmounts (they hide leaks).

mod flags;
mod table;

pub use flags::check_flags;
pub use table::Line;
pub use table::parse;

use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;

use super::Mount;
use super::MountKind;
use super::MountOptions;
use super::Usage;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Reason;
use crate::volume::Result;

/// `EUCLEAN`, which ext4 and XFS return for "structure needs cleaning" (`EFSCORRUPTED` in the kernel).
const CORRUPTED: Errno = Errno::UCLEAN;
/// `EBADMSG`, which XFS returns for a wrong checksum (`EFSBADCRC` in the kernel).
const BAD_CHECKSUM: Errno = Errno::BADMSG;

/// The mount table of this process.
///
/// # Errors
/// `Internal` if it cannot be read, and those of [`parse`].
pub fn table() -> Result<Vec<Line>> {
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|cause| Error::new(Reason::Internal, "the mount table cannot be read").caused_by(cause))?;
    parse(&text)
}

/// Every mount in `table` of the block device `device` (major, minor), and of its node `node` (`dm-3`).
#[must_use]
pub fn of_device(table: &[Line], device: (u32, u32), node: &str) -> Vec<Mount> {
    table
        .iter()
        .filter_map(|line| {
            let kind = if line.device == device {
                MountKind::Filesystem
            } else if line.bound_node() == Some(node) {
                MountKind::DeviceNode
            } else {
                return None;
            };
            Some(Mount {
                path: line.mount_point.clone(),
                kind,
                read_only: line.is_read_only(),
                options: line.options.iter().chain(&line.super_options).cloned().collect(),
            })
        })
        .collect()
}

/// `path` as the mount table spells it: symbolic links in its parents resolved, its last component kept.
///
/// A kubelet directory is often a link to a larger disk; comparing the request's path with mountinfo needs this.
/// A path whose parent does not exist is returned unchanged: nothing can be mounted there.
///
/// # Errors
/// `InvalidArgument` if it has no last component, `Internal` if its parents cannot be looked at.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid("path", format_args!("{} has no last component", path.display())));
    };
    match std::fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(cause) => {
            Err(Error::new(Reason::Internal, format!("{} cannot be resolved", parent.display())).caused_by(cause))
        }
    }
}

/// Mounts the filesystem on `device` at the existing directory `target`.
///
/// # Errors
/// `InvalidArgument` for an option that is not on the list, `StagingMissing` if there is no such directory,
/// `AlreadyExists` if something is mounted there, `FilesystemDamaged` if the kernel refuses the filesystem; otherwise
/// `Internal`.
pub fn stage(device: &Path, fs: FsType, target: &Path, options: &MountOptions) -> Result<()> {
    check_flags(&options.flags)?;
    let directory = open_target(target, FileType::Directory, Reason::StagingMissing)?;
    let (mount_flags, data) = flags::translate(fs, options);
    let data = std::ffi::CString::new(data).expect("the allow-list lets no NUL pass");
    // The link in /proc names the directory that was checked, whatever has been put at its path since.
    rustix::mount::mount(device, fd_path(&directory), fs.as_str(), mount_flags, data.as_c_str())
        .map_err(|errno| stage_error(errno, fs, target))
}

fn stage_error(errno: Errno, fs: FsType, target: &Path) -> Error {
    let fs = fs.as_str();
    let (reason, message) = match errno {
        CORRUPTED | BAD_CHECKSUM | Errno::IO => (
            Reason::FilesystemDamaged,
            format!(
                "the kernel refused the {fs} filesystem; its log on this node says what is wrong, nothing was changed"
            ),
        ),
        Errno::INVAL => (
            Reason::FilesystemDamaged,
            format!(
                "the kernel finds no {fs} filesystem it can use, or knows one of the mount options not; see its log on this node"
            ),
        ),
        Errno::NODEV => (Reason::Internal, format!("this kernel cannot mount {fs}; load the module on this node")),
        _ => (Reason::Internal, format!("{fs} could not be mounted at {}", target.display())),
    };
    Error::new(reason, message).caused_by(errno)
}

/// Shows the staged filesystem at `staged` at `target`, which is created as a directory.
///
/// # Errors
/// `StagingMissing` if nothing is at `staged`, `InvalidArgument` if `target` cannot be a directory, `AlreadyExists` if
/// something is mounted there; otherwise `Internal`.
pub fn publish_filesystem(staged: &Path, target: &Path, read_only: bool) -> Result<()> {
    let missing = |errno: Errno| {
        Error::new(Reason::StagingMissing, format!("the staging path {} cannot be opened", staged.display()))
            .caused_by(errno)
    };
    let tree = clone_mount(staged).map_err(missing)?;
    match DirBuilder::new().mode(0o750).create(target) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(target_error(target, Reason::InvalidArgument, cause));
        }
        _ => {}
    }
    let hardened = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    attach(&tree, hardened, &open_target(target, FileType::Directory, Reason::InvalidArgument)?, target, read_only)
}

/// Shows the block device `node` at `target`, which is created as an empty file and covered by the device node.
///
/// A read-only bind mount does not stop writes to a block device: the mount table shows the intent, the container
/// runtime's device rules enforce it.
///
/// # Errors
/// `InvalidArgument` if `target` cannot be a file, `AlreadyExists` if something is mounted there; otherwise `Internal`.
pub fn publish_block(node: &Path, target: &Path, read_only: bool) -> Result<()> {
    let tree = clone_mount(node).map_err(|errno| {
        Error::new(Reason::Internal, format!("the device node {} cannot be opened", node.display())).caused_by(errno)
    })?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(target) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return Err(target_error(target, Reason::InvalidArgument, cause));
        }
        _ => {}
    }
    // Never nodev here: it would make the one thing that stands at this mount unusable.
    attach(
        &tree,
        libc::MOUNT_ATTR_NOSUID,
        &open_target(target, FileType::RegularFile, Reason::InvalidArgument)?,
        target,
        read_only,
    )
}

/// A copy of the mount at `path` that is attached nowhere yet.
fn clone_mount(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(CWD, path, flags)
}

/// Attaches the detached mount `tree` to `target`, complete from its first moment: a bind mount that is made
/// read-only in a second step would be writable in between, and for good if we were killed there.
fn attach(tree: &OwnedFd, attributes: u64, target: &OwnedFd, path: &Path, read_only: bool) -> Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let failed = |errno: Errno| {
        Error::new(Reason::Internal, format!("the volume could not be mounted at {}", path.display())).caused_by(errno)
    };
    set_attributes(tree, attributes | read_only).map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags).map_err(failed)
}

fn set_attributes(tree: &OwnedFd, attr_set: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated literal, and the kernel only reads `attributes`, whose size it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// Opens `target` without following a link at its end. `wrong` is the reason when it is missing or of another type;
/// one that is covered by a mount is refused too.
fn open_target(target: &Path, expected: FileType, wrong: Reason) -> Result<OwnedFd> {
    let failed = |errno: Errno| target_error(target, wrong, errno.into());
    let opened = rustix::fs::open(target, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(failed)?;
    let found = rustix::fs::fstat(&opened).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != expected {
        let expected = if expected == FileType::Directory { "a directory" } else { "a plain file" };
        return Err(Error::new(wrong, format!("{} is not {expected}", target.display())));
    }
    let place = resolve(target)?;
    if table()?.iter().any(|line| line.mount_point == place) {
        return Err(Error::new(Reason::AlreadyExists, format!("something is mounted at {} already", target.display())));
    }
    Ok(opened)
}

fn target_error(target: &Path, wrong: Reason, cause: io::Error) -> Error {
    let reason = match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => wrong,
        _ => Reason::Internal,
    };
    Error::new(reason, format!("{} cannot be used as a mount point", target.display())).caused_by(cause)
}

fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Unmounts every layer at `target`, topmost first, as long as each shows one of our volumes.
///
/// `may_unmount` says whether a line is ours: a confused caller must not take away the kubelet's directory.
///
/// # Errors
/// `InvalidArgument` for a mount that is not ours, `Internal` if it is in use or the kernel refuses.
pub fn unmount(target: &Path, may_unmount: impl Fn(&Line) -> bool) -> Result<()> {
    let place = resolve(target)?;
    let layers: Vec<Line> = table()?.into_iter().filter(|line| line.mount_point == place).collect();
    for layer in layers.iter().rev() {
        if !may_unmount(layer) {
            let found = format!("{} on {}", layer.fs_type, layer.source);
            return Err(Error::invalid(
                "path",
                format_args!("{} holds a mount that is not ours ({found})", place.display()),
            ));
        }
        match rustix::mount::unmount(&place, UnmountFlags::NOFOLLOW) {
            // Propagation may have taken several layers away at once.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => {
                let message = format!("{} is in use: stop the process that works in it", place.display());
                return Err(Error::new(Reason::Internal, message).caused_by(Errno::BUSY));
            }
            Err(errno) => {
                let message = format!("{} could not be unmounted", place.display());
                return Err(Error::new(Reason::Internal, message).caused_by(errno));
            }
        }
    }
    Ok(())
}

/// Space at `path`: of the filesystem mounted there, or the size of the block device shown there.
///
/// # Errors
/// `VolumeNotFound` if there is no such path, `DeviceUnreadable` if it cannot be asked.
pub fn usage(path: &Path) -> Result<Usage> {
    let unreadable = |cause: io::Error| {
        let reason =
            if cause.kind() == io::ErrorKind::NotFound { Reason::VolumeNotFound } else { Reason::DeviceUnreadable };
        Error::new(reason, format!("{} cannot be read", path.display())).caused_by(cause)
    };
    if std::fs::metadata(path).map_err(unreadable)?.file_type().is_block_device() {
        let total_bytes = File::open(path).and_then(|mut node| node.seek(SeekFrom::End(0))).map_err(unreadable)?;
        return Ok(Usage::Block { total_bytes });
    }
    let space = rustix::fs::statvfs(path).map_err(|errno| unreadable(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    Ok(Usage::Filesystem {
        bytes: [bytes(space.f_blocks), bytes(space.f_bavail), bytes(space.f_blocks.saturating_sub(space.f_bfree))],
        inodes: [space.f_files, space.f_favail, space.f_files.saturating_sub(space.f_ffree)],
    })
}
