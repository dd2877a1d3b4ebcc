//! What the kernel tells of integrity errors: which sectors of a volume do not hold what was written there.
//!
//! dm-crypt finds them when they are read, and keeps no count; dm-integrity below it only keeps the tags. It tells of them
//! - in the kernel log: ten in five seconds at most, for the whole machine, and until the log is overwritten;
//! - where auditing is on, in one audit record for each. Records reach only who listens at that moment, and in the node's
//!   own network namespace: a pod that has another hears none.
//!
//! So both are read. What is told twice is one bad sector, and the bad sectors that are known are a floor.
//!
//! The kernel names the volume's device or the one below it, which differs between versions, by a number that is another
//! device's as soon as it is free. What it told is held against a volume only if the volume's device is now the one that
//! the volume's [`Opening`] names, and it was told after that opening. A line of the log has its place in the log for
//! that; a record has the time of day.

mod listener;
mod text;

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

use crate::volume::VolumeId;

pub use listener::Listener;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How the name of the device ends that keeps a volume's tags, with the volume's device above it.
const BELOW: &str = "_dif";

/// From when on what the kernel tells of a device is told of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The boot and, in it, the number of the disk, of which each is given once.
    pub(super) disk: String,
    /// The last line of the kernel log.
    pub(super) line: u64,
    /// The time, in milliseconds since 1970.
    pub(super) milliseconds: u64,
}

/// A sector of a volume that does not hold what was written there, as the kernel told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSector {
    /// The volume that has the device's number now.
    pub id: VolumeId,
    /// Which sector of the payload, in units of [`SECTOR_BYTES`](crate::volume::SECTOR_BYTES).
    pub sector: u64,
    /// The disk, as in [`Opening`].
    pub(super) disk: String,
    pub(super) when: Moment,
}

/// When the kernel told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// In this line of its log.
    Line(u64),
    /// At this time, in milliseconds since 1970.
    Time(u64),
}

/// What the kernel told, in its own terms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    /// The device's directory in sysfs.
    device: PathBuf,
    sector: u64,
    when: Moment,
}

impl Opening {
    /// The device at `node`, `/dev/dm-N`, from now on.
    ///
    /// # Errors
    /// If the kernel log cannot be read, or the kernel is older than 5.15 and does not number its disks.
    pub fn of(node: &Path) -> io::Result<Self> {
        let name = node.file_name().unwrap_or_default();
        let disk = disk(&Path::new("/sys/block").join(name))?;
        let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        Ok(Self { disk, line: listener::last_line()?, milliseconds })
    }

    /// Whether it is of the same disk.
    #[must_use]
    pub fn is_of_the_disk_of(&self, other: &Self) -> bool {
        self.disk == other.disk
    }

    /// Whether `bad` was told of the volume, and not of another that had its device's number before.
    #[must_use]
    pub fn is_before(&self, bad: &BadSector) -> bool {
        let is_later = match bad.when {
            Moment::Line(line) => line > self.line,
            Moment::Time(milliseconds) => milliseconds > self.milliseconds,
        };
        self.disk == bad.disk && is_later
    }
}

impl Told {
    /// The sector of the volume whose device it is now; `None` if it is no volume's.
    fn of_a_volume(self, sys: &Path) -> Option<BadSector> {
        let mut device = sys.join(self.device);
        if mapper_name(&device)?.ends_with(BELOW) {
            // Nothing but the volume's device stands on it.
            device = fs::read_dir(device.join("holders")).ok()?.next()?.ok()?.path();
        }
        let id = VolumeId::parse(mapper_name(&device)?.strip_prefix("coffer-")?)?;
        Some(BadSector { id, sector: self.sector, disk: disk(&device).ok()?, when: self.when })
    }
}

/// What the device mapper calls the device that has the directory `device` in sysfs.
fn mapper_name(device: &Path) -> Option<String> {
    let name = fs::read_to_string(device.join("dm/name")).ok()?;
    Some(name.trim_end().to_owned())
}

/// A name for the disk that has the directory `device` in sysfs which no other disk ever has.
fn disk(device: &Path) -> io::Result<String> {
    let (boot, number) = (fs::read_to_string(BOOT_ID)?, fs::read_to_string(device.join("diskseq"))?);
    Ok(format!("{}/{}", boot.trim_end(), number.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs in which `dm-3` has this name and is the `number`th disk.
    fn sysfs(name: &str, number: u64) -> tempfile::TempDir {
        let sys = tempfile::tempdir().expect("a directory");
        let device = sys.path().join("block/dm-3");
        fs::create_dir_all(device.join("dm")).expect("made");
        fs::write(device.join("dm/name"), format!("{name}\n")).expect("written");
        fs::write(device.join("diskseq"), format!("{number}\n")).expect("written");
        sys
    }

    fn told(when: Moment) -> Told {
        Told { device: "block/dm-3".into(), sector: 257, when }
    }

    #[test]
    fn a_device_is_a_volumes_by_its_name_or_that_of_what_stands_on_it() {
        let id = VolumeId::for_name("x");
        let sys = sysfs(&id.mapper_name(), 9);
        let bad = told(Moment::Line(1)).of_a_volume(sys.path()).expect("a volume's");
        assert_eq!((&bad.id, bad.sector), (&id, 257));

        let below = sys.path().join("block/dm-2");
        fs::create_dir_all(below.join("dm")).and_then(|()| fs::create_dir(below.join("holders"))).expect("made");
        fs::write(below.join("dm/name"), format!("{}_dif\n", id.mapper_name())).expect("written");
        let told_below = || Told { device: "block/dm-2".into(), ..told(Moment::Line(1)) };
        assert_eq!(told_below().of_a_volume(sys.path()), None, "it is not open yet");
        std::os::unix::fs::symlink("../../dm-3", below.join("holders/dm-3")).expect("linked");
        assert_eq!(told_below().of_a_volume(sys.path()), Some(bad));

        for other in ["vg-root", "coffer-x", "coffer-cv-"] {
            assert_eq!(told(Moment::Line(1)).of_a_volume(sysfs(other, 9).path()), None, "{other}");
        }
        assert_eq!(Told { device: "block/dm-4".into(), ..told(Moment::Line(1)) }.of_a_volume(sys.path()), None, "gone");
    }

    #[test]
    fn what_was_told_of_an_earlier_device_of_the_same_number_is_not_held_against_a_volume() {
        let name = VolumeId::for_name("x").mapper_name();
        let sys = sysfs(&name, 9);
        let disk = disk(&sys.path().join("block/dm-3")).expect("a disk");
        let opening = Opening { disk, line: 100, milliseconds: 5000 };
        for (when, number, is_its_own) in [
            (Moment::Line(101), 9, true),
            (Moment::Line(100), 9, false),
            (Moment::Line(99), 9, false),
            (Moment::Time(5001), 9, true),
            (Moment::Time(5000), 9, false),
            // The volume was closed and opened again: the number is a later disk's, whose opening is not noted.
            (Moment::Line(101), 10, false),
            (Moment::Time(5001), 10, false),
        ] {
            let bad = told(when).of_a_volume(sysfs(&name, number).path()).expect("a volume's");
            assert_eq!(opening.is_before(&bad), is_its_own, "{when:?} of disk {number}");
        }
        let other_boot = Opening { disk: "another-boot/9".into(), ..opening };
        let bad = told(Moment::Line(101)).of_a_volume(sys.path()).expect("a volume's");
        assert!(!other_boot.is_before(&bad));
    }
}
