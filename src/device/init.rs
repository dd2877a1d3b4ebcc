//! The first tags of a new volume. A sector that has none cannot be read, and whoever tries finds an attack in the
//! kernel's log: so those that somebody may read are written once, before anybody does.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::ioctl::{IntegerSetter, ioctl};

use super::Progress;
use super::aligned::Aligned;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;

/// Blocks in one group of an ext4 filesystem with blocks of 4096 bytes: a bitmap of one block.
const GROUP_BLOCKS: u64 = 8 * SECTOR_BYTES;
/// What blkid(8) and udev look at for signatures: this many blocks at the beginning,
const PROBED_FRONT_BLOCKS: u64 = 1056;
/// and at the end.
const PROBED_END_BLOCKS: u64 = 512;
/// How much is written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// How much is written again at most if the work is cut off.
const PROGRESS_BYTES: u64 = 256 << 20;

/// `BLKRASET` of include/uapi/linux/fs.h: read-ahead in sectors of 512 bytes.
const BLKRASET: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 98);
/// The kernel's default.
const READ_AHEAD_SECTORS: usize = 256;

/// Writes zeros where `mkfs.ext4` and what probes devices read before they write.
///
/// # Errors
/// `DeviceUnreadable` if the volume cannot be written.
pub fn seed(node: &Path, payload_bytes: u64) -> Result<()> {
    let zeros = Aligned::zeroed(CHUNK_BYTES);
    let device = open(node)?;
    let blocks = payload_bytes / SECTOR_BYTES;
    let front = 0..PROBED_FRONT_BLOCKS.min(blocks);
    let end = blocks.saturating_sub(PROBED_END_BLOCKS)..blocks;
    let backups = superblocks(blocks).map(|block| block..block + 1);
    for run in [front, end].into_iter().chain(backups) {
        write_zeros(&zeros, &device, run.start * SECTOR_BYTES, run.end * SECTOR_BYTES)
            .map_err(|cause| failed(node, cause))?;
    }
    device.sync_data().map_err(|cause| failed(node, cause))
}

/// Writes zeros to all of the volume from `from_bytes` on, and tells `progress` what has reached the disk.
///
/// # Errors
/// `DeviceUnreadable` if the volume cannot be written; what `progress` refuses.
pub fn fill(node: &Path, payload_bytes: u64, from_bytes: u64, progress: &mut Progress<'_>) -> Result<()> {
    let zeros = Aligned::zeroed(CHUNK_BYTES);
    let device = open(node)?;
    let mut done_bytes = from_bytes;
    while done_bytes < payload_bytes {
        let next_bytes = payload_bytes.min(done_bytes + PROGRESS_BYTES);
        write_zeros(&zeros, &device, done_bytes, next_bytes)
            .and_then(|()| device.sync_data())
            .map_err(|cause| failed(node, cause))?;
        progress(next_bytes)?;
        done_bytes = next_bytes;
    }
    Ok(())
}

/// Does `work` while nothing reads ahead on `node`.
///
/// # Errors
/// `DeviceUnreadable` if there is no such device, `Internal` if it cannot be set; those of `work`.
pub fn without_read_ahead<T>(node: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let device = open(node)?;
    set_read_ahead(node, &device, 0)?;
    let done = work();
    set_read_ahead(node, &device, READ_AHEAD_SECTORS)?;
    done
}

fn set_read_ahead(node: &Path, device: &File, sectors: usize) -> Result<()> {
    // SAFETY: the opcode takes its argument as an integer and writes nothing.
    let set = unsafe { ioctl(device, IntegerSetter::<BLKRASET>::new_usize(sectors)) };
    set.map_err(|errno| {
        Error::new(Reason::Internal, format!("the read-ahead of {} cannot be set", node.display())).caused_by(errno)
    })
}

/// The first blocks of the groups that hold a superblock or a copy of it (ext4's `sparse_super`): group 0, and every
/// power of 3, 5 and 7.
fn superblocks(blocks: u64) -> impl Iterator<Item = u64> {
    let groups = blocks.div_ceil(GROUP_BLOCKS);
    let powers = [3, 5, 7].into_iter().flat_map(move |base: u64| {
        std::iter::successors(Some(1), move |power: &u64| power.checked_mul(base))
            .take_while(move |power| *power < groups)
    });
    std::iter::once(0).chain(powers).map(|group| group * GROUP_BLOCKS)
}

fn write_zeros(zeros: &[u8], device: &File, from_bytes: u64, to_bytes: u64) -> io::Result<()> {
    let mut offset = from_bytes;
    while offset < to_bytes {
        let length = usize::try_from(to_bytes - offset).map_or(zeros.len(), |left| left.min(zeros.len()));
        device.write_all_at(&zeros[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}

fn open(node: &Path) -> Result<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(direct).open(node).map_err(|cause| failed(node, cause))
}

fn failed(node: &Path, cause: io::Error) -> Error {
    Error::new(Reason::DeviceUnreadable, format!("{} cannot be written", node.display())).caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB_BLOCKS: u64 = (1 << 30) / SECTOR_BYTES;

    #[test]
    fn superblocks_are_where_sparse_super_puts_them() {
        let groups = |blocks| {
            let mut groups: Vec<u64> = superblocks(blocks).map(|block| block / GROUP_BLOCKS).collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        assert_eq!(groups(1), [0]);
        assert_eq!(groups(GROUP_BLOCKS), [0]);
        assert_eq!(groups(GROUP_BLOCKS + 1), [0, 1]);
        assert_eq!(groups(10 * GIB_BLOCKS), [0, 1, 3, 5, 7, 9, 25, 27, 49]);
    }

    #[test]
    fn a_fill_goes_on_where_it_was_cut_off_and_tells_what_is_done() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        let bytes = PROGRESS_BYTES + (1 << 20);
        file.as_file().set_len(bytes).expect("long enough");
        file.as_file().write_all_at(b"kept", 0).expect("written");
        file.as_file().write_all_at(b"gone", bytes - 4).expect("written");
        let mut told = Vec::new();
        fill(file.path(), bytes, 4096, &mut |done| {
            told.push(done);
            Ok(())
        })
        .expect("filled");
        assert_eq!(told, [PROGRESS_BYTES + 4096, bytes]);
        let mut found = [0; 4];
        file.as_file().read_exact_at(&mut found, 0).expect("read");
        assert_eq!(&found, b"kept");
        file.as_file().read_exact_at(&mut found, bytes - 4).expect("read");
        assert_eq!(found, [0; 4]);
        let refused = fill(file.path(), bytes, 0, &mut |_| Err(Error::new(Reason::NoSpace, "no")));
        assert_eq!(refused.expect_err("ended").reason(), Reason::NoSpace);
    }
}
