//! The one device-mapper table that each layer of a volume may have, and whether the kernel's says the same.

use std::collections::BTreeSet;

use crate::device::Shape;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::JOURNAL_SECTION_SECTORS;
use crate::volume::JOURNAL_SECTIONS;
use crate::volume::LOG2_RUN_SECTORS;
use crate::volume::Profile;
use crate::volume::SECTOR_512;
use crate::volume::SECTOR_BYTES;
use crate::volume::TAG_BYTES;

/// A device number: major and minor.
pub(super) type DeviceNumber = (u32, u32);
/// One line of a table: first sector, number of sectors, target, parameters.
pub(super) type Line = (u64, u64, String, String);

/// How many words of the parameters of each target stand before its options.
const CRYPT_WORDS: usize = 6;
const INTEGRITY_WORDS: usize = 5;

/// The table of the volume itself over `base`, the backing or the layer that keeps the tags
/// (`Documentation/admin-guide/device-mapper/dm-crypt.rst`). The key is named, not given: libcryptsetup put it into this
/// thread's keyring under this description.
pub(super) fn crypt(shape: &Shape, base: DeviceNumber) -> Line {
    let (major, minor) = base;
    let (cipher, offset, options) = match shape.profile {
        Profile::Xts1 => ("aes-xts-plain64", DATA_OFFSET_BYTES / SECTOR_512, crypt_options([])),
        Profile::Aead1 => {
            let integrity = format!("integrity:{TAG_BYTES}:aead");
            ("capi:authenc(hmac(sha256),xts(aes))-plain64", 0, crypt_options([integrity]))
        }
    };
    let (bytes, uuid) = (shape.profile.volume_key_bytes(), shape.luks_uuid.hyphenated());
    let key = format!(":{bytes}:logon:cryptsetup:{uuid}-d0");
    let parameters = format!("{cipher} {key} 0 {major}:{minor} {offset} {} {}", options.len(), options.join(" "));
    (0, shape.payload_bytes / SECTOR_512, "crypt".to_owned(), parameters)
}

/// Both workqueues are left out of the way: on the node's own disks they only add latency.
fn crypt_options<const N: usize>(more: [String; N]) -> Vec<String> {
    let sector_size = format!("sector_size:{SECTOR_BYTES}");
    more.into_iter().chain(["no_read_workqueue".to_owned(), "no_write_workqueue".to_owned(), sector_size]).collect()
}

/// The table of the layer that keeps the tags, over the backing (`dm-integrity.rst` beside it). Every option is given
/// as the kernel shows it, so that nothing depends on its defaults.
pub(super) fn integrity(shape: &Shape, backing: DeviceNumber) -> Line {
    let (major, minor) = backing;
    let options = [
        format!("block_size:{SECTOR_BYTES}"),
        format!("journal_sectors:{}", JOURNAL_SECTIONS * JOURNAL_SECTION_SECTORS),
        format!("interleave_sectors:{}", 1 << LOG2_RUN_SECTORS),
        "buffer_sectors:128".to_owned(),
        "journal_watermark:50".to_owned(),
        "commit_time:10000".to_owned(),
        "fix_padding".to_owned(),
    ];
    let offset = DATA_OFFSET_BYTES / SECTOR_512;
    let parameters = format!("{major}:{minor} {offset} {TAG_BYTES} J {} {}", options.len(), options.join(" "));
    (0, shape.payload_bytes / SECTOR_512, "integrity".to_owned(), parameters)
}

/// Whether the kernel's `found` says the same as `expected`; options may stand in any order.
pub(super) fn same(found: &[Line], expected: &Line) -> bool {
    let [(start, length, target, parameters)] = found else { return false };
    let fixed = if expected.2 == "crypt" { CRYPT_WORDS } else { INTEGRITY_WORDS };
    let split = |text: &str| {
        let mut words: Vec<_> = text.split_ascii_whitespace().map(str::to_owned).collect();
        let last = words.split_off(words.len().min(fixed));
        let unique: BTreeSet<_> = last.iter().cloned().collect();
        (words, last.len(), unique)
    };
    (*start, *length, target) == (expected.0, expected.1, &expected.2) && split(parameters) == split(&expected.3)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use uuid::Uuid;

    use super::*;
    use crate::volume::VolumeId;

    fn shape(profile: Profile) -> Shape {
        Shape {
            id: VolumeId::for_name("x"),
            profile,
            payload_bytes: 62 << 20,
            luks_uuid: Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555),
            backing: PathBuf::new(),
        }
    }

    #[test]
    fn each_table_is_the_documented_one() {
        for (line, target, parameters) in [
            (
                crypt(&shape(Profile::Xts1), (7, 0)),
                "crypt",
                "aes-xts-plain64 :64:logon:cryptsetup:11111111-2222-3333-4444-555555555555-d0 0 7:0 4096 3 \
                 no_read_workqueue no_write_workqueue sector_size:4096",
            ),
            (
                crypt(&shape(Profile::Aead1), (253, 0)),
                "crypt",
                "capi:authenc(hmac(sha256),xts(aes))-plain64 \
                 :96:logon:cryptsetup:11111111-2222-3333-4444-555555555555-d0 0 253:0 0 4 \
                 integrity:32:aead no_read_workqueue no_write_workqueue sector_size:4096",
            ),
            (
                integrity(&shape(Profile::Aead1), (7, 0)),
                "integrity",
                "7:0 4096 32 J 7 block_size:4096 journal_sectors:16368 interleave_sectors:32768 \
                 buffer_sectors:128 journal_watermark:50 commit_time:10000 fix_padding",
            ),
        ] {
            assert_eq!(line, (0, 126_976, target.to_owned(), parameters.to_owned()));
        }
    }

    #[test]
    fn any_other_field_in_the_kernels_table_is_noticed() {
        let [xts, aead] = [Profile::Xts1, Profile::Aead1].map(shape);
        let crypt_changes: &[(&str, &str)] = &[
            ("aes", "cipher_null"),
            ("-plain64", "-plain"),
            ("logon", "user"),
            ("11111111", "11111112"),
            ("7:0", "7:1"),
            (" 0 7:0", " 1 7:0"),
            ("sector_size:4096", "sector_size:512"),
            ("no_read_workqueue", "allow_discards"),
            ("no_read_workqueue no_write_workqueue", "no_read_workqueue no_read_workqueue"),
            (" sector_size:4096", ""),
        ];
        let integrity_changes: &[(&str, &str)] = &[
            ("7:0", "7:1"),
            (" 4096 ", " 8 "),
            (" 32 ", " 16 "),
            (" J ", " D "),
            ("block_size:4096", "block_size:512"),
            ("journal_sectors:16368", "journal_sectors:16632"),
            ("interleave_sectors:32768", "interleave_sectors:16384"),
            (" fix_padding", ""),
            ("commit_time:10000", "allow_discards"),
        ];
        for (expected, changes) in [
            (crypt(&xts, (7, 0)), crypt_changes),
            (crypt(&aead, (7, 0)), crypt_changes),
            (integrity(&aead, (7, 0)), integrity_changes),
        ] {
            assert!(same(std::slice::from_ref(&expected), &expected));
            let (start, length, target, parameters) = expected.clone();
            let mut words: Vec<_> = parameters.split(' ').collect();
            let last = words.len() - 1;
            words.swap(last, last - 1);
            assert!(same(&[(start, length, target.clone(), words.join(" "))], &expected), "the order of options");
            for (from, to) in changes {
                let changed = parameters.replacen(from, to, 1);
                assert_ne!(changed, parameters, "{from}");
                assert!(!same(&[(start, length, target.clone(), changed)], &expected), "{from} -> {to}");
            }
            for (start, length, target) in
                [(8, length, target.as_str()), (0, length - 8, &target), (0, length, "linear")]
            {
                assert!(!same(&[(start, length, target.into(), parameters.clone())], &expected));
            }
            assert!(!same(&[expected.clone(), expected.clone()], &expected));
            assert!(!same(&[], &expected));
        }
    }
}
