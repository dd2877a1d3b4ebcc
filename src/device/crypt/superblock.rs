//! The superblock of dm-integrity, in front of the payload of `aead-1`: a second header that the disk may have changed.
//!
//! The kernel believes it: a size, a number of journal sections or flags that somebody wrote there are taken over, and
//! a blank one is made anew without a word. So it is compared with the one that the volume must have before the kernel
//! sees it, and what the kernel took is read back. Layout: `struct superblock` in `drivers/md/dm-integrity.c`; numbers
//! are little endian.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::device::Shape;
use crate::device::aligned::Aligned;
use crate::device::backing::Attached;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::JOURNAL_SECTIONS;
use crate::volume::LOG2_RUN_SECTORS;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_512;
use crate::volume::TAG_BYTES;

/// What the kernel reserves for it.
const BYTES: usize = 4096;

const MAGIC: Range<usize> = 0..8;
const VERSION: Range<usize> = 8..9;
const RUN: Range<usize> = 9..10;
const TAG: Range<usize> = 10..12;
const SECTIONS: Range<usize> = 12..16;
const SECTORS: Range<usize> = 16..24;
const FLAGS: Range<usize> = 24..28;
const BLOCK: Range<usize> = 28..29;
const BITMAP: Range<usize> = 29..30;
const REST: Range<usize> = 30..BYTES;

/// The version that the kernel writes for a table with `fix_padding`.
const FIXED_PADDING_VERSION: u8 = 4;
/// `SB_FLAG_FIXED_PADDING`, and no other: no recalculation, no dirty bitmap, no MAC of its own.
const FIXED_PADDING: u32 = 8;
/// log2 of 512-byte sectors in a block of 4096 bytes.
const LOG2_SECTORS_PER_BLOCK: u8 = 3;
/// What the kernel writes for the bitmap, which the journal's mode does not use.
const LOG2_BLOCKS_PER_BIT: u8 = 12;

/// Checks the superblock on the backing of `shape`. Only where the volume `is_new` it may be blank: then the kernel
/// makes it.
///
/// # Errors
/// `HeaderMissing` if it is blank, `HeaderTampered` if it is another one, `DeviceUnreadable` if it cannot be read.
pub(super) fn check(shape: &Shape, attached: &Attached, is_new: bool) -> Result<()> {
    let mut block = Aligned::zeroed(BYTES);
    attached.device.read_exact_at(&mut block, DATA_OFFSET_BYTES).map_err(|cause| {
        let path = attached.path.display();
        Error::new(Reason::DeviceUnreadable, format!("the superblock of dm-integrity on {path} cannot be read"))
            .caused_by(cause)
    })?;
    let is_blank = block.iter().all(|byte| *byte == 0);
    let advice = "nothing was changed; put the volume's own backing back, or delete the volume";
    match defect(&block, shape.payload_bytes / SECTOR_512) {
        None => Ok(()),
        Some(_) if is_new && is_blank => Ok(()),
        Some(_) if is_blank => {
            let text = format!("{} has no superblock of dm-integrity, but zeros: {advice}", shape.id);
            Err(Error::new(Reason::HeaderMissing, text))
        }
        Some(field) => {
            let text = format!("the superblock of dm-integrity of {} has another {field}: {advice}", shape.id);
            Err(Error::new(Reason::HeaderTampered, text))
        }
    }
}

/// Makes the superblock blank, so that the kernel makes a new one with a new journal.
pub(super) fn clear(device: &File) -> io::Result<()> {
    device.write_all_at(&Aligned::zeroed(BYTES), DATA_OFFSET_BYTES)?;
    device.sync_all()
}

/// What the kernel writes on a blank backing of `shape`.
#[cfg(any(test, feature = "dev"))]
pub(super) fn of(shape: &Shape) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    for (_, range, value) in fields(shape.payload_bytes / SECTOR_512) {
        bytes[range].copy_from_slice(&value);
    }
    bytes
}

/// The first field that is not the one of a volume with `payload` sectors.
fn defect(found: &[u8], payload: u64) -> Option<&'static str> {
    fields(payload).into_iter().find(|(_, range, value)| found[range.clone()] != **value).map(|(name, ..)| name)
}

/// Every byte of the superblock of a volume with `payload` sectors.
fn fields(payload: u64) -> [(&'static str, Range<usize>, Vec<u8>); 10] {
    [
        ("magic", MAGIC, b"integrt\0".to_vec()),
        ("version", VERSION, vec![FIXED_PADDING_VERSION]),
        ("interleaving", RUN, vec![LOG2_RUN_SECTORS]),
        ("tag size", TAG, TAG_BYTES.to_le_bytes().to_vec()),
        ("journal size", SECTIONS, JOURNAL_SECTIONS.to_le_bytes().to_vec()),
        ("data size", SECTORS, payload.to_le_bytes().to_vec()),
        ("set of flags", FLAGS, FIXED_PADDING.to_le_bytes().to_vec()),
        ("block size", BLOCK, vec![LOG2_SECTORS_PER_BLOCK]),
        ("bitmap scale", BITMAP, vec![LOG2_BLOCKS_PER_BIT]),
        ("padding", REST, vec![0; REST.len()]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.12 wrote for a payload of 1 GiB.
    const RECORDED: [u8; 32] = [
        0x69, 0x6e, 0x74, 0x65, 0x67, 0x72, 0x74, 0x00, 0x04, 0x0f, 0x20, 0x00, 0x3e, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x03, 0x0c, 0x00, 0x00,
    ];

    #[test]
    fn the_kernels_own_superblock_is_the_expected_one_and_no_changed_byte_is() {
        let mut recorded = vec![0; BYTES];
        recorded[..RECORDED.len()].copy_from_slice(&RECORDED);
        assert_eq!(defect(&recorded, 1 << 21), None);
        assert_eq!(defect(&recorded, (1 << 21) + 8), Some("data size"));
        for at in 0..BYTES {
            let mut changed = recorded.clone();
            changed[at] ^= 0x10;
            assert!(defect(&changed, 1 << 21).is_some(), "byte {at}");
        }
    }
}
