//! Named, versioned cryptographic parameters, and the bytes that they cost.

use serde::{Deserialize, Serialize};

use super::Content;
use super::FsType;

/// Where the payload begins on the backing: 32 KiB of headers, 1 MiB of keyslots, the rest zero.
pub const DATA_OFFSET_BYTES: u64 = 2 << 20;

/// Sector size of every profile. Payloads are multiples of it.
pub const SECTOR_BYTES: u64 = 4096;

/// The unit in which the kernel counts sectors, whatever their size.
pub const SECTOR_512: u64 = 512;

/// Bytes of one tag of `aead-1`: HMAC-SHA256.
pub const TAG_BYTES: u16 = 32;
/// dm-integrity's journal of 8 MiB in sections. It is kept in the kernel's memory, so that a larger one would be felt with
/// many volumes.
pub const JOURNAL_SECTIONS: u32 = 62;
/// Sectors in one section of the journal (`drivers/md/dm-integrity.c`, `calculate_journal_section_size`).
pub const JOURNAL_SECTION_SECTORS: u32 = 264;
/// log2 of the sectors in one run of data. Each lies behind the tags of its blocks.
pub const LOG2_RUN_SECTORS: u8 = 15;
/// The superblock of dm-integrity in front of its journal (`SB_SECTORS` in the same file).
const SUPERBLOCK_SECTORS: u64 = 8;

/// Named, versioned cryptographic parameters. The driver knows the exact header that each one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// LUKS2, aes-xts-plain64 with a 512-bit key and 4096-byte sectors; confidentiality only.
    #[serde(rename = "xts-1")]
    Xts1,
    /// LUKS2, aes-xts-plain64 with hmac(sha256) over each sector, tags kept by dm-integrity with a journal of 8 MiB: a
    /// changed sector is an error for its reader. A sector that was put back as it once was is not noticed.
    #[serde(rename = "aead-1")]
    Aead1,
}

impl Profile {
    /// Every profile, for messages that name the accepted ones.
    pub const ALL: [Self; 2] = [Self::Xts1, Self::Aead1];

    /// The name in a StorageClass, in the record and in the seal.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xts1 => "xts-1",
            Self::Aead1 => "aead-1",
        }
    }

    /// Whether each sector has a tag: then nothing can be read that was not written under the volume's key.
    #[must_use]
    pub fn has_tags(self) -> bool {
        self == Self::Aead1
    }

    /// Size of the volume key: two AES-256 keys for XTS, and for `aead-1` one of HMAC.
    #[must_use]
    pub fn volume_key_bytes(self) -> usize {
        match self {
            Self::Xts1 => 64,
            Self::Aead1 => 64 + 32,
        }
    }

    /// Bytes of the backing that a payload of `payload_bytes` needs, exactly.
    #[must_use]
    pub fn backing_bytes(self, payload_bytes: u64) -> u64 {
        DATA_OFFSET_BYTES
            + match self {
                Self::Xts1 => payload_bytes,
                Self::Aead1 => integrity_sectors(payload_bytes / SECTOR_512) * SECTOR_512,
            }
    }
}

/// What dm-integrity needs for `payload` sectors. The last run is only as long as it must be; its tags are not.
fn integrity_sectors(payload: u64) -> u64 {
    let journal = u64::from(JOURNAL_SECTIONS * JOURNAL_SECTION_SECTORS);
    let run_blocks = (SECTOR_512 << LOG2_RUN_SECTORS) / SECTOR_BYTES;
    let run_tags = run_blocks * u64::from(TAG_BYTES) / SECTOR_512;
    SUPERBLOCK_SECTORS + journal + payload.div_ceil(1 << LOG2_RUN_SECTORS) * run_tags + payload
}

/// Which sectors of a new volume get their tags before it is used. Without tags a sector cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Those that making and checking the filesystem reads before it writes them; the others get theirs when they are
    /// written.
    #[default]
    Seeded,
    /// All of them: the whole volume is written once.
    Full,
}

impl Init {
    /// Every way, for messages that name the accepted ones.
    pub const ALL: [Self; 2] = [Self::Seeded, Self::Full];

    /// The name in a StorageClass.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seeded => "seeded",
            Self::Full => "full",
        }
    }

    /// What a volume gets for which `self` was asked. Who reads a raw block device may read any sector, and XFS reads what
    /// it never wrote: both need all tags.
    #[must_use]
    pub fn of(self, profile: Profile, content: Content) -> Self {
        match (profile, content) {
            (Profile::Aead1, Content::Block | Content::Filesystem(FsType::Xfs)) => Self::Full,
            _ => self,
        }
    }

    /// Whether it is the default, which need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_has_the_size_that_the_kernel_asks_for() {
        // Seen on a kernel: one sector less is refused by dm-integrity.
        for (payload_sectors, backing_sectors) in
            [(8, 20_736), (16, 20_744), (32_768, 53_496), (32_776, 53_760), (65_536, 86_520), (2_097_152, 2_134_008)]
        {
            assert_eq!(Profile::Aead1.backing_bytes(payload_sectors * 512), backing_sectors * 512);
        }
        assert_eq!(Profile::Xts1.backing_bytes(1 << 30), (1 << 30) + (2 << 20));
    }

    #[test]
    fn whoever_may_read_what_was_never_written_gets_every_tag() {
        let [ext4, xfs, block] = [Content::Filesystem(FsType::Ext4), Content::Filesystem(FsType::Xfs), Content::Block];
        for (profile, content, asked, given) in [
            (Profile::Aead1, ext4, Init::Seeded, Init::Seeded),
            (Profile::Aead1, ext4, Init::Full, Init::Full),
            (Profile::Aead1, xfs, Init::Seeded, Init::Full),
            (Profile::Aead1, block, Init::Seeded, Init::Full),
            (Profile::Xts1, block, Init::Seeded, Init::Seeded),
        ] {
            assert_eq!(asked.of(profile, content), given, "{profile:?} {content}");
        }
    }
}
