//! The untrusted bytes of a volume: a sparse image file on a loop device.
//!
//! Refuses: an image that is missing, short or not a plain file, and a loop device that is not exactly what was
//! asked for (without direct I/O every page would be cached twice, and nobody would notice).

mod loops;

use std::fs::File;
use std::fs::Metadata;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::fs::OFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Shape;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// A loop device over a volume's image. It goes away when this value and the mapper over it are gone.
#[derive(Debug)]
pub struct Attached {
    /// The open device node. I/O bypasses the page cache: offsets, lengths and buffers are multiples of 4096.
    pub device: File,
    /// Its path.
    pub path: PathBuf,
}

/// With less room than this a pool counts as full: filesystems keep a few blocks for themselves.
const FULL_BYTES: u64 = 4 << 20;

/// How the bytes of a new image are promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// When they are written.
    Sparse,
    /// At once: a full pool under it would be an error of the device for good.
    Reserved,
}

/// Makes the image at `path`, which must not exist, and makes its length durable. The directory entry is made durable by
/// whoever owns the directory.
///
/// # Errors
/// `NoSpace`, `SizeOutOfRange` if the filesystem has no files of that size, `PoolMissing` if it is read-only; otherwise
/// `Internal`.
pub fn create(path: &Path, backing_bytes: u64, allocation: Allocation) -> Result<()> {
    let failed = |cause: io::Error| {
        let reason = match cause.kind() {
            io::ErrorKind::FileTooLarge => Reason::SizeOutOfRange,
            _ => Reason::of_write(&cause),
        };
        Error::new(reason, format!("the image {} could not be made", path.display())).caused_by(cause)
    };
    let image = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    if allocation == Allocation::Reserved {
        // What is reserved and not written reads as a hole: the image still holds no data.
        rustix::fs::fallocate(&image, FallocateFlags::empty(), 0, backing_bytes)
            .map_err(|errno| failed(errno.into()))?;
    }
    image.set_len(backing_bytes).and_then(|()| image.sync_all()).map_err(failed)
}

/// Whether the image holds any data at all. A filesystem that cannot tell where some is has the whole image looked at.
///
/// Zeros are none: what was reserved and not written counts as data to a filesystem as soon as somebody has read it.
///
/// # Errors
/// Those of [`open`]; `DeviceUnreadable` if it cannot be read.
pub fn holds_data(path: &Path) -> Result<bool> {
    let (image, _) = open(path, OpenOptions::new().read(true))?;
    find_data(&image).map_err(|cause| unreadable(path, cause))
}

fn find_data(image: &File) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let Some(data) = data_from(image, offset)? else { return Ok(false) };
        offset = data;
        let length = image.read_at(&mut buffer, offset)?;
        // It was cut short meanwhile.
        if length == 0 {
            return Ok(false);
        }
        if buffer[..length].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        offset += length as u64;
    }
}

/// Where the first data at or behind `offset` begins.
fn data_from(image: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(image, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Overwrites the keyslots, gives the space back and removes the image. Absent is fine.
///
/// On a copy-on-write disk the old keyslots may survive: only destroying the secret is certain.
///
/// # Errors
/// Those of [`open`]; `Internal` if it cannot be written or removed.
pub fn erase(path: &Path) -> Result<()> {
    let (image, found) = match open(path, OpenOptions::new().read(true).write(true)) {
        Err(error) if is_absent(path) && error.reason() == Reason::DeviceMissing => return Ok(()),
        opened => opened?,
    };
    let failed = |cause: io::Error| {
        Error::new(Reason::Internal, format!("the image {} could not be erased", path.display())).caused_by(cause)
    };
    overwrite_data(&image, DATA_OFFSET_BYTES.min(found.len())).map_err(failed)?;
    let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(&image, holes, 0, found.len().max(1)) {
        // Some filesystems have no holes; unlinking gives the space back as well.
        Ok(()) | Err(Errno::OPNOTSUPP) => image.sync_all().map_err(failed)?,
        Err(errno) => return Err(failed(errno.into())),
    }
    std::fs::remove_file(path).map_err(failed)
}

/// How much is overwritten, or looked at, at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Random bytes over what there is below `end_bytes`, on the disk before this returns. Holes have nothing to hide, and a full
/// pool has no room to fill them.
fn overwrite_data(image: &File, end_bytes: u64) -> io::Result<()> {
    let mut noise = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while let Some(data) = data_from(image, offset)?.filter(|data| *data < end_bytes) {
        let hole = rustix::fs::seek(image, SeekFrom::Hole(data))?.min(end_bytes);
        let length = usize::try_from(hole - data).map_or(noise.len(), |left| left.min(noise.len()));
        getrandom::fill(&mut noise).map_err(io::Error::other)?;
        image.write_all_at(&noise[..length], data)?;
        offset = data + length as u64;
    }
    image.sync_all()
}

fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|cause| cause.kind() == io::ErrorKind::NotFound)
}

/// Attaches the image of `shape` to a loop device of its own.
///
/// # Errors
/// Those of [`open`]; `DeviceTruncated` if it is too short, `ForeignDevice` if the kernel attached something else,
/// `Internal` if it cannot attach with direct I/O.
pub fn attach(shape: &Shape) -> Result<Attached> {
    let path = &shape.backing;
    let (image, found) = open(path, OpenOptions::new().read(true).write(true))?;
    let needed = shape.profile.backing_bytes(shape.payload_bytes);
    if found.len() < needed {
        let message = format!("{} has {} bytes, the record says {needed}; restore it", path.display(), found.len());
        return Err(Error::new(Reason::DeviceTruncated, message));
    }
    loops::configure(&image, &found)
}

/// Loop devices that sit on the image at `path`.
///
/// # Errors
/// `DeviceUnreadable` if the image cannot be looked at, `Internal` if the kernel cannot be asked.
pub fn loops_on(path: &Path) -> Result<Vec<PathBuf>> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => Some(found),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => return Err(unreadable(path, cause)),
    };
    loops::all()?
        .into_iter()
        .filter_map(|(name, shown)| match &found {
            Some(found) => loops::sits_on(&name, found).map(|sits| sits.then_some(name)).transpose(),
            // The image is gone, but a loop may hold what it was: the kernel still shows the path.
            None => (shown.as_deref() == Some(path)).then_some(Ok(name)),
        })
        .map(|name| name.map(|name| Path::new("/dev").join(name)))
        .collect()
}

/// Detaches `loops`, as far as no device stands on them.
///
/// # Errors
/// `Internal` if the kernel refuses, or a process keeps one open.
pub fn detach(loops: &[PathBuf]) -> Result<()> {
    loops.iter().try_for_each(|node| loops::clear(node))
}

/// Whether the filesystem under the image that carries the device-mapper device `node` has no room left: the loop
/// driver turns that into plain I/O errors.
#[must_use]
pub fn pool_is_full(node: &Path) -> bool {
    let slaves = Path::new("/sys/block").join(node.file_name().unwrap_or_default()).join("slaves");
    let loops = std::fs::read_dir(slaves).into_iter().flatten().filter_map(std::result::Result::ok);
    let mut images = loops.filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    images.any(|image| {
        let space = rustix::fs::statvfs(image.trim_end_matches('\n'));
        space.is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < FULL_BYTES)
    })
}

/// Opens the plain file at `path`.
///
/// # Errors
/// `DeviceMissing` if there is none or something else, `DeviceUnreadable` if it cannot be opened.
pub fn open(path: &Path, options: &mut OpenOptions) -> Result<(File, Metadata)> {
    // A FIFO in the image's place would block the open.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let image = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(|cause| unreadable(path, cause))?;
    let found = image.metadata().map_err(|cause| unreadable(path, cause))?;
    if !found.is_file() {
        return Err(Error::new(
            Reason::DeviceMissing,
            format!("{} is not a plain file; restore the image", path.display()),
        ));
    }
    Ok((image, found))
}

fn unreadable(path: &Path, cause: io::Error) -> Error {
    let (reason, what) = match Errno::from_io_error(&cause) {
        Some(Errno::NOENT) => (Reason::DeviceMissing, "is gone; restore it"),
        Some(Errno::LOOP) => (Reason::DeviceMissing, "is a symbolic link; restore the image itself"),
        Some(Errno::ISDIR | Errno::NXIO) => (Reason::DeviceMissing, "is not a plain file; restore the image"),
        Some(Errno::ROFS) => (Reason::PoolMissing, "lies on a filesystem that is read-only"),
        _ => (Reason::DeviceUnreadable, "cannot be opened or read"),
    };
    Error::new(reason, format!("the image {} {what}", path.display())).caused_by(cause)
}

/// What tells one file from another: device and inode, as the loop driver reports them.
fn identity(found: &Metadata) -> (u64, u64) {
    let (major, minor) = (u64::from(rustix::fs::major(found.dev())), u64::from(rustix::fs::minor(found.dev())));
    // new_encode_dev of include/linux/kdev_t.h, which is not how the C library encodes a dev_t.
    ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backing");
        create(&path, bytes, Allocation::Sparse).expect("made");
        (directory, path)
    }

    #[test]
    fn a_new_image_is_long_and_empty_and_made_once() {
        let (_directory, path) = image(64 << 20);
        let found = std::fs::metadata(&path).expect("there");
        assert_eq!((found.len(), found.blocks(), found.mode() & 0o777), (64 << 20, 0, 0o600));
        assert!(!holds_data(&path).expect("readable"));
        assert!(create(&path, 1, Allocation::Sparse).is_err());
    }

    #[test]
    fn reserved_space_is_taken_and_holds_no_data() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backing");
        create(&path, 8 << 20, Allocation::Reserved).expect("made");
        assert!(std::fs::metadata(&path).expect("there").blocks() * 512 >= 8 << 20);
        assert!(!holds_data(&path).expect("readable"));
        std::fs::read(&path).expect("readable");
        assert!(!holds_data(&path).expect("readable"), "somebody has read it");
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_all_at(b"x", (8 << 20) - 1).expect("written");
        assert!(holds_data(&path).expect("readable"));
    }

    #[test]
    fn one_byte_anywhere_is_data() {
        let (_directory, path) = image(64 << 20);
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_all_at(b"x", (64 << 20) - 1).expect("written");
        assert!(holds_data(&path).expect("readable"));
    }

    #[test]
    fn erasing_overwrites_removes_and_may_be_repeated() {
        let (directory, path) = image(64 << 20);
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        let slots = [32_768, 1 << 20];
        for slot in slots {
            file.write_all_at(&[7; 4096], slot).expect("written");
        }
        let blocks = file.metadata().expect("open").blocks();
        overwrite_data(&file, DATA_OFFSET_BYTES).expect("overwritten");
        for slot in slots {
            let mut found = [0; 4096];
            file.read_exact_at(&mut found, slot).expect("read");
            assert!(found.iter().any(|&byte| byte != found[0]), "noise stands where the keyslot was");
        }
        assert_eq!(file.metadata().expect("open").blocks(), blocks, "a full pool has no room for more");
        erase(&path).expect("erased");
        assert_eq!(file.metadata().expect("still open").blocks(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0);
        erase(&path).expect("absent is fine");
    }

    #[test]
    fn what_is_not_a_plain_file_is_refused_by_name() {
        let (directory, path) = image(4096);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        for (path, word) in [
            (link.as_path(), "symbolic link"),
            (directory.path(), "plain file"),
            (&directory.path().join("none"), "gone"),
        ] {
            let error = holds_data(path).expect_err(word);
            assert_eq!(error.reason(), Reason::DeviceMissing);
            assert!(error.explanation().contains(word), "{error}");
        }
        assert!(erase(&link).is_err() && link.is_symlink());
    }
}
