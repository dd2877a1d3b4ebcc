//! Lines of the kernel log and audit records as text: pure parsers.
//!
//! What they do not understand is not about integrity. A line that a program wrote into the kernel log, or a record of
//! another kind, says nothing, whatever its text.

use std::path::PathBuf;

use super::Moment;
use super::Told;
use crate::volume::SECTOR_512;
use crate::volume::SECTOR_BYTES;

/// What dm-crypt writes (`drivers/md/dm-crypt.c`). What stands before differs between kernels, but for the device.
const LOG_MARK: &str = "INTEGRITY AEAD ERROR, sector ";
/// `AUDIT_DM_EVENT` of `linux/audit.h`.
const DM_EVENT: u16 = 1339;
/// Bytes of a `struct nlmsghdr`; its type is at 4.
const NETLINK_HEADER_BYTES: usize = 16;

/// The number and the text of a record of `/dev/kmsg` that the kernel itself has written
/// (`Documentation/ABI/testing/dev-kmsg`).
fn kernel_line(record: &str) -> Option<(u64, &str)> {
    let (prefix, rest) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let line = fields.next()?.parse().ok()?;
    // Above the three bits of the level is the facility; only the kernel's own is 0, and no program can write with it.
    let is_of_kernel = priority >> 3 == 0;
    is_of_kernel.then(|| (line, rest.lines().next().unwrap_or_default()))
}

/// The number of a record of `/dev/kmsg`, whoever has written it.
pub(super) fn line_number(record: &[u8]) -> Option<u64> {
    let field = record.split(|&byte| byte == b',').nth(1)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// What a record of `/dev/kmsg` tells of a bad sector.
pub(super) fn in_log(record: &[u8]) -> Option<Told> {
    let (line, text) = kernel_line(std::str::from_utf8(record).ok()?)?;
    let (before, after) = text.split_once(LOG_MARK)?;
    let number = |word: &str| word.strip_prefix("dm-")?.parse::<u32>().ok();
    let minor = before.split([' ', ':']).filter_map(number).next_back()?;
    let digits = after.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some(Told { device: format!("block/dm-{minor}").into(), sector: sector(digits)?, when: Moment::Line(line) })
}

/// What a message of the audit system tells of a bad sector.
pub(super) fn in_audit(message: &[u8]) -> Option<Told> {
    let (header, text) = message.split_at_checked(NETLINK_HEADER_BYTES)?;
    if u16::from_ne_bytes([header[4], header[5]]) != DM_EVENT {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?.trim_end_matches('\0');
    let (stamp, fields) = text.strip_prefix("audit(")?.split_once("): ")?;
    let field = |name: &str| fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    if field("op") != Some("integrity-aead") {
        return None;
    }
    let (seconds, milliseconds) = stamp.split_once(':')?.0.split_once('.')?;
    let when = seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(milliseconds.parse().ok()?)?;
    let (major, minor) = field("dev")?.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    let device = PathBuf::from(format!("dev/block/{major}:{minor}"));
    Some(Told { device, sector: sector(field("sector")?)?, when: Moment::Time(when) })
}

/// The sector of ours that the kernel's sector `digits` is in.
fn sector(digits: &str) -> Option<u64> {
    Some(digits.parse::<u64>().ok()? / (SECTOR_BYTES / SECTOR_512))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, text: &str) -> Vec<u8> {
        let mut message = vec![0; NETLINK_HEADER_BYTES];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(text.as_bytes());
        message
    }

    #[test]
    fn a_line_of_the_kernel_names_the_sector_whatever_stands_before_it() {
        for (text, minor, sector) in [
            // As its source has it.
            ("3,1301,98112345,-;device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056\n", 1, 257),
            ("4,1301,98112345,-,caller=T7;device-mapper: crypt: dm-12: INTEGRITY AEAD ERROR, sector 0\n", 12, 0),
            // Linux 6.12: the prefix of a header has crept in.
            ("3,7,1,-;trusted_key: device-mapper: crypt: dm-0: INTEGRITY AEAD ERROR, sector 12664\n", 0, 1583),
            ("3,7,1,-;dm-crypt: dm-3: INTEGRITY AEAD ERROR, sector 8, again\n SUBSYSTEM=block\n", 3, 1),
            ("3,7,1,-;coffer-cv-1: dm-2: crypt: dm-3: INTEGRITY AEAD ERROR, sector 11031354368", 3, 1_378_919_296),
        ] {
            let line = text.split(',').nth(1).expect("a number").parse().expect("a number");
            let told = in_log(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(told, Told { device: format!("block/dm-{minor}").into(), sector, when: Moment::Line(line) });
            assert_eq!(line_number(text.as_bytes()), Some(line));
        }
    }

    #[test]
    fn what_the_kernel_did_not_write_or_does_not_name_a_sector_is_not_believed() {
        for text in [
            // A program that wrote to /dev/kmsg.
            "11,1301,98112345,-;device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056\n",
            "3,1301,98112345,-;a line\n TEXT=device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 2056\n",
            // Linux 4 named no device.
            "3,1301,98112345,-;device-mapper: crypt: INTEGRITY AEAD ERROR, sector 2056\n",
            "3,1301,98112345,-;device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector \n",
            "3,1301,98112345,-;device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 99999999999999999999\n",
            "3,1301,98112345,-;device-mapper: crypt: dm-x: INTEGRITY AEAD ERROR, sector 8\n",
            "4,1302,98112345,-;crypt_convert_block_aead: 12 callbacks suppressed\n",
            "3,1303,98112345,-;Buffer I/O error on dev dm-1, logical block 257, async page read\n",
            "no record at all",
            "",
        ] {
            assert_eq!(in_log(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_audit_record_names_the_sector_and_the_time() {
        let text = "audit(1764037001.043:17): module=crypt op=integrity-aead dev=254:1 sector=2056 res=0";
        let expected = Told { device: "dev/block/254:1".into(), sector: 257, when: Moment::Time(1_764_037_001_043) };
        assert_eq!(in_audit(&record(DM_EVENT, text)), Some(expected.clone()));
        assert_eq!(in_audit(&record(DM_EVENT, &format!("{text}\0\0"))), Some(expected));
        assert_eq!(in_audit(&record(DM_EVENT - 1, text)), None, "a table was loaded");
        assert_eq!(in_audit(&record(1112, text)), None, "a program has said so");
        for (from, to) in [
            ("integrity-aead", "integrity-checksum"),
            ("dev=254:1", "dev=254"),
            ("dev=254:1", "dev=../../x:1"),
            ("sector=2056", "sector=-1"),
            ("1764037001.043", "now"),
            ("1764037001", "18446744073709551615"),
            ("audit(", ""),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            assert_eq!(in_audit(&record(DM_EVENT, &changed)), None, "{changed}");
        }
        assert_eq!(in_audit(b"short"), None);
    }
}
