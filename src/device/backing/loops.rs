//! Loop devices: one ioctl that attaches, one that asks, one that clears (include/uapi/linux/loop.h).
//!
//! Attaching is one `LOOP_CONFIGURE` and never two steps: a loop that a kill leaves half configured would stay.

use std::ffi::c_void;
use std::fs::File;
use std::fs::Metadata;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use linux_raw_sys::loop_device;
use linux_raw_sys::loop_device::loop_config;
use linux_raw_sys::loop_device::loop_info64;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::Getter;
use rustix::ioctl::Ioctl;
use rustix::ioctl::IoctlOutput;
use rustix::ioctl::NoArg;
use rustix::ioctl::Opcode;
use rustix::ioctl::Setter;

use super::Attached;
use super::identity;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;

/// Goes away with its last user; no page cache of its own.
const FLAGS: u32 = loop_device::LO_FLAGS_AUTOCLEAR as u32 | loop_device::LO_FLAGS_DIRECT_IO as u32;
/// How often a free loop device may be lost to somebody else on this machine before it is an error.
const ATTEMPTS: usize = 64;
/// How long others (udev looks at every new device) may keep a loop device that we want gone.
const CLEAR_DEADLINE: Duration = Duration::from_secs(2);

/// `LOOP_CTL_GET_FREE`: its answer is the return value of the call.
struct GetFree;

// SAFETY: the opcode takes no argument, writes nothing, and returns the index of a loop device.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        loop_device::LOOP_CTL_GET_FREE as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(returned: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(returned)
    }
}

/// Attaches `image` to a free loop device and makes sure that it is what was asked for.
pub(super) fn configure(image: &File, found: &Metadata) -> Result<Attached> {
    let failed = |what: &str, cause: io::Error| {
        Error::new(Reason::Internal, format!("{what}; is the loop module there, and /dev the kernel's own?"))
            .caused_by(cause)
    };
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
    let control = control.map_err(|cause| failed("/dev/loop-control cannot be opened", cause))?;
    for _ in 0..ATTEMPTS {
        // SAFETY: `GetFree` describes this opcode, and the descriptor is the loop driver's control device.
        let index = unsafe { rustix::ioctl::ioctl(&control, GetFree) };
        let index = index.map_err(|errno| failed("no loop device is free", errno.into()))?;
        let path = PathBuf::from(format!("/dev/loop{index}"));
        let direct = OFlags::DIRECT.bits().cast_signed();
        let device = OpenOptions::new().read(true).write(true).custom_flags(direct).open(&path);
        let device = device.map_err(|cause| failed(&format!("{} cannot be opened", path.display()), cause))?;
        match set_up(&device, image) {
            Ok(()) => return verified(Attached { device, path }, found),
            // The answer of LOOP_CTL_GET_FREE is no reservation: somebody was faster.
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(failed("the image could not be attached", errno.into())),
        }
    }
    Err(Error::new(Reason::Internal, format!("{ATTEMPTS} free loop devices in a row were taken by others")))
}

fn set_up(device: &File, image: &File) -> Result<(), Errno> {
    let fd = image.as_raw_fd().cast_unsigned();
    let block_size = u32::try_from(SECTOR_BYTES).expect("4096 fits");
    let config = loop_config { fd, block_size, info: info(FLAGS), __reserved: [0; 8] };
    // SAFETY: the opcode reads a `loop_config`, and the descriptor in it is open during the call.
    unsafe {
        rustix::ioctl::ioctl(device, Setter::<{ loop_device::LOOP_CONFIGURE as Opcode }, loop_config>::new(config))
    }
}

fn info(lo_flags: u32) -> loop_info64 {
    loop_info64 {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags,
        lo_file_name: [0; 64],
        lo_crypt_name: [0; 64],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    }
}

/// `attached`, if it sits on the image and kept every flag. Dropping it otherwise is what detaches it.
fn verified(attached: Attached, found: &Metadata) -> Result<Attached> {
    let status = status(&attached.device).map_err(|errno| {
        Error::new(Reason::Internal, format!("{} cannot be asked", attached.path.display())).caused_by(errno)
    })?;
    let read_only = loop_device::LO_FLAGS_READ_ONLY as u32;
    if (status.lo_device, status.lo_inode) != identity(found) || (status.lo_offset, status.lo_sizelimit) != (0, 0) {
        let message = format!("{} does not sit on the image that was attached", attached.path.display());
        return Err(Error::new(Reason::ForeignDevice, message));
    }
    if status.lo_flags & (FLAGS | read_only) != FLAGS {
        let message =
            "the pool's filesystem does not do direct I/O with 4096-byte blocks; move the pool to one that does";
        return Err(Error::new(Reason::Internal, format!("{message} (flags {:#x})", status.lo_flags)));
    }
    Ok(attached)
}

fn status(device: &File) -> Result<loop_info64, Errno> {
    // SAFETY: the opcode fills a `loop_info64`.
    unsafe { rustix::ioctl::ioctl(device, Getter::<{ loop_device::LOOP_GET_STATUS64 as Opcode }, loop_info64>::new()) }
}

/// Every attached loop device, with the path that the kernel shows for its file.
pub(super) fn all() -> Result<Vec<(String, Option<PathBuf>)>> {
    let failed = |cause: io::Error| Error::new(Reason::Internal, "/sys/block cannot be listed").caused_by(cause);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let shown = Path::new("/sys/block").join(&name).join("loop/backing_file");
        if name.starts_with("loop") && shown.exists() {
            let text = std::fs::read_to_string(shown).ok();
            let path = text.map(|text| PathBuf::from(text.trim_end_matches('\n').trim_end_matches(" (deleted)")));
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the loop device `name` sits on the file `found`.
pub(super) fn sits_on(name: &str, found: &Metadata) -> Result<bool> {
    let failed =
        |cause: io::Error| Error::new(Reason::Internal, format!("/dev/{name} cannot be asked")).caused_by(cause);
    let asked = File::open(Path::new("/dev").join(name)).and_then(|device| Ok(status(&device)?));
    match asked {
        Ok(status) => Ok((status.lo_device, status.lo_inode) == identity(found)),
        // It was detached between the listing and now.
        Err(cause) if cause.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(false),
        Err(cause) => Err(failed(cause)),
    }
}

/// Detaches the loop device `node` and waits until it is gone. One with a device on it is left alone.
pub(super) fn clear(node: &Path) -> Result<()> {
    let name = node.file_name().unwrap_or_default();
    let sys = Path::new("/sys/block").join(name);
    let failed = |cause: io::Error| {
        Error::new(Reason::Internal, format!("{} could not be detached", node.display())).caused_by(cause)
    };
    if std::fs::read_dir(sys.join("holders")).map_err(failed)?.next().is_some() {
        return Ok(());
    }
    let device = File::open(node).map_err(failed)?;
    // SAFETY: the opcode takes no argument.
    match unsafe { rustix::ioctl::ioctl(&device, NoArg::<{ loop_device::LOOP_CLR_FD as Opcode }>::new()) } {
        Ok(()) | Err(Errno::NXIO) => drop(device),
        Err(errno) => return Err(failed(errno.into())),
    }
    // The kernel detaches when the last opener closes, and tells nobody.
    let deadline = Instant::now() + CLEAR_DEADLINE;
    while sys.join("loop/backing_file").exists() {
        if Instant::now() > deadline {
            let message = format!("{} is detached but still held open by a process", node.display());
            return Err(Error::new(Reason::Internal, message));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
