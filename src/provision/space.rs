//! How much a pool can promise. Images are sparse, so what counts is what was promised, not what is written.
//!
//! Two ledgers, and the smaller remainder holds:
//! - payloads: their sum stays below the filesystem's size less a reserve. This one is advertised, because it is
//!   additive: N volumes of S fit exactly if N × S does. The reserve pays for headers and the pool's own metadata.
//! - bytes: promised and not yet written, plus one more header, stay below what is free now.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::fs::statvfs;
use rustix::io::Errno;
use uuid::Uuid;

use super::failed;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// The part of the filesystem that is never promised: 1/10.
const RESERVE_DIVISOR: u64 = 10;

/// What a pool can still promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Sum of the payloads that can still be created.
    pub available_bytes: u64,
    /// The largest payload that can be created now.
    pub maximum_volume_bytes: u64,
    /// Sum of the payloads that were promised.
    pub promised_bytes: u64,
    /// The part of the pool's filesystem that is never promised.
    pub reserve_bytes: u64,
}

impl Capacity {
    /// Sum of the payloads that fit, promised or not.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.promised_bytes + self.available_bytes
    }
}

/// What is in a pool, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Ledger {
    size: u64,
    free: u64,
    /// Allocated by everything under the pool's directory.
    allocated: u64,
    /// Sum of all payloads.
    payloads: u64,
    /// Promised to images and not yet allocated.
    outstanding: u64,
}

impl Ledger {
    fn read(pool: &Path) -> Result<Self> {
        let space = statvfs(pool).map_err(|error| failed("cannot read the pool's free space", error.into()))?;
        let mut ledger =
            Self { size: space.f_blocks * space.f_frsize, free: space.f_bavail * space.f_frsize, ..Self::default() };
        ledger.add_tree(pool).map_err(|error| failed("cannot add up what the pool has promised", error))?;
        Ok(ledger)
    }

    fn add_tree(&mut self, pool: &Path) -> std::io::Result<()> {
        self.allocated += allocated(pool)?;
        for entry in std::fs::read_dir(pool)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            self.allocated += allocated(&entry.path())?;
            if VolumeId::parse(name.trim_start_matches("creating-").trim_start_matches("deleting-")).is_some() {
                self.add_volume(&entry.path())?;
            }
        }
        Ok(())
    }

    fn add_volume(&mut self, directory: &Path) -> std::io::Result<()> {
        for file in std::fs::read_dir(directory)? {
            let file = file?;
            let allocated = allocated(&file.path())?;
            self.allocated += allocated;
            if file.file_name() == super::BACKING_FILE {
                let length = file.metadata()?.len();
                self.payloads += length.saturating_sub(DATA_OFFSET_BYTES);
                self.outstanding += length.saturating_sub(allocated);
            }
        }
        Ok(())
    }

    fn reserve(&self) -> u64 {
        self.size / RESERVE_DIVISOR
    }

    fn remaining(&self) -> u64 {
        let promisable = (self.free + self.allocated).saturating_sub(self.reserve());
        let by_payload = promisable.saturating_sub(self.payloads);
        let by_bytes = self.free.saturating_sub(self.outstanding + DATA_OFFSET_BYTES);
        by_payload.min(by_bytes) / SECTOR_BYTES * SECTOR_BYTES
    }
}

fn allocated(path: &Path) -> std::io::Result<u64> {
    Ok(std::fs::symlink_metadata(path)?.blocks() * 512)
}

/// What the pool at `path` can still promise.
pub(super) fn capacity(path: &Path) -> Result<Capacity> {
    let ledger = Ledger::read(path)?;
    let remaining = ledger.remaining();
    Ok(Capacity {
        available_bytes: remaining,
        maximum_volume_bytes: remaining,
        promised_bytes: ledger.payloads,
        reserve_bytes: ledger.reserve(),
    })
}

/// Refuses `spec` if its payload would be promised twice.
pub(super) fn admit(path: &Path, spec: &VolumeSpec) -> Result<()> {
    let remaining = Ledger::read(path)?.remaining();
    // The header is paid for by the reserve; tags are not.
    let needed = spec.profile.backing_bytes(spec.payload_bytes) - DATA_OFFSET_BYTES;
    if needed <= remaining {
        return Ok(());
    }
    Err(Error::new(
        Reason::NoSpace,
        format!(
            "the volume needs {needed} bytes and the pool {} can promise {remaining} more (what sparse images were promised counts, and 1/{RESERVE_DIVISOR} is kept in reserve): delete volumes or enlarge the pool",
            path.display(),
        ),
    ))
}

/// Refuses a pool that cannot be written to.
pub(super) fn refuse_read_only(path: &Path) -> Result<()> {
    let space = statvfs(path).map_err(|error| failed("cannot read the pool's mount flags", error.into()))?;
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let message = format!("{} is mounted read-only: check its disk and mount it writable", path.display());
        return Err(Error::new(Reason::PoolMissing, message));
    }
    Ok(())
}

/// The UUID of the filesystem that holds `path`; `None` where the kernel or the filesystem cannot tell.
pub(super) fn filesystem_uuid(path: &Path) -> Result<Option<Uuid>> {
    let directory = File::open(path).map_err(|error| {
        Error::new(Reason::PoolMissing, format!("cannot open the pool {}", path.display())).caused_by(error)
    })?;
    // SAFETY: FS_IOC_GETFSUUID writes one `struct fsuuid2` and reads nothing.
    let answer = unsafe { rustix::ioctl::ioctl(&directory, rustix::ioctl::Getter::<FS_IOC_GETFSUUID, FsUuid>::new()) };
    match answer {
        Ok(FsUuid { length: 16, uuid }) => Ok(Some(Uuid::from_bytes(uuid))),
        Ok(_) | Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(failed("cannot read the UUID of the pool's filesystem", error.into())),
    }
}

/// `struct fsuuid2` of include/uapi/linux/fs.h (Linux 6.9).
#[repr(C)]
struct FsUuid {
    length: u8,
    uuid: [u8; 16],
}

/// include/uapi/linux/fs.h: `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<FsUuid>(0x15, 0);

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_number_of_equal_volumes_fits_exactly_if_their_sum_does() {
        let mut ledger = Ledger { size: 1000 * MIB, free: 950 * MIB, ..Ledger::default() };
        let promised = ledger.remaining() / (100 * MIB);
        let mut created = 0;
        while ledger.remaining() >= 100 * MIB {
            ledger.payloads += 100 * MIB;
            ledger.outstanding += 100 * MIB + DATA_OFFSET_BYTES;
            created += 1;
        }
        assert_eq!(created, promised);
        assert_eq!(created, 8);
    }

    #[test]
    fn what_is_written_is_not_counted_twice() {
        let before =
            Ledger { size: 1000 * MIB, free: 900 * MIB, payloads: 200 * MIB, outstanding: 200 * MIB, allocated: 0 };
        let after = Ledger { free: 800 * MIB, outstanding: 100 * MIB, allocated: 100 * MIB, ..before };
        assert_eq!(before.remaining(), after.remaining());
    }

    #[test]
    fn a_pool_that_others_have_filled_promises_nothing() {
        let ledger = Ledger { size: 1000 * MIB, free: 50 * MIB, ..Ledger::default() };
        assert_eq!(ledger.remaining(), 0);
    }
}
