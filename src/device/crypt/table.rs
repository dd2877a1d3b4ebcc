//! The device-mapper device of an open volume: loaded by us, with the size from the record, and read back.
//!
//! Refuses a live device under our name that has another UUID, another backing or another table, and never touches
//! one. udev is told not to scan: what is inside the volume is nobody's business but the mount's.
//!
//! Where this process sees udev's socket, `/run/udev/control`, the crate `devicemapper` waits for udev after resume and
//! removal by a System V semaphore. A container that has the socket must share the node's IPC namespace too.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid};
use rustix::fs::{major, makedev, minor};
use rustix::io::Errno;
use uuid::Uuid;

use super::SECTOR_512;
use super::VOLUME_KEY_BYTES;
use crate::device::Mapper;
use crate::device::Shape;
use crate::device::backing::Attached;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;
use crate::volume::VolumeId;

/// A device number: major and minor.
pub(super) type DeviceNumber = (u32, u32);
/// One line of a table: first sector, number of sectors, target, parameters.
type Line = (u64, u64, String, String);

/// The options of every table, in any order. Both workqueues are left out of the way: on the node's own disks they
/// only add latency.
fn options() -> BTreeSet<String> {
    let sector_size = format!("sector_size:{SECTOR_BYTES}");
    BTreeSet::from(["no_read_workqueue".to_owned(), "no_write_workqueue".to_owned(), sector_size])
}

/// The table of `shape` over `backing` (`Documentation/admin-guide/device-mapper/dm-crypt.rst`). The key is named, not
/// given: libcryptsetup put it into this thread's keyring under this description.
fn line(shape: &Shape, backing: DeviceNumber) -> Line {
    let (major, minor) = backing;
    let uuid = shape.luks_uuid.hyphenated();
    let key = format!(":{VOLUME_KEY_BYTES}:logon:cryptsetup:{uuid}-d0");
    let offset = DATA_OFFSET_BYTES / SECTOR_512;
    let options: Vec<_> = options().into_iter().collect();
    let parameters =
        format!("aes-xts-plain64 {key} 0 {major}:{minor} {offset} {} {}", options.len(), options.join(" "));
    (0, shape.payload_bytes / SECTOR_512, "crypt".to_owned(), parameters)
}

/// Whether the kernel's `found` says the same as `expected`; options may stand in any order.
fn same(found: &[Line], expected: &Line) -> bool {
    let [(start, length, target, parameters)] = found else { return false };
    let split = |text: &str| {
        let mut words: Vec<_> = text.split_ascii_whitespace().map(str::to_owned).collect();
        let last = words.split_off(words.len().min(6));
        let unique: BTreeSet<_> = last.iter().cloned().collect();
        (words, last.len(), unique)
    };
    (*start, *length, target) == (expected.0, expected.1, &expected.2) && split(parameters) == split(&expected.3)
}

/// The device-mapper UUID that libcryptsetup would give the device too.
fn mapper_uuid(id: &VolumeId, luks: &Uuid) -> String {
    format!("CRYPT-LUKS2-{}-{}", luks.simple(), id.mapper_name())
}

fn is_our_uuid(id: &VolumeId, text: &str) -> bool {
    let luks = text.strip_prefix("CRYPT-LUKS2-").and_then(|rest| rest.strip_suffix(&format!("-{}", id.mapper_name())));
    luks.and_then(|digits| Uuid::try_parse(digits).ok()).is_some_and(|luks| mapper_uuid(id, &luks) == text)
}

/// Loads and reads back the table of `shape` on the calling thread, whose keyring holds the volume key.
pub(super) fn load(shape: &Shape, attached: &Attached) -> Result<()> {
    let control = Control::new(&shape.id)?;
    let device = attached.device.metadata().map_err(|error| control.failed("stat the backing", error))?.rdev();
    let backing = (major(device), minor(device));
    control.create(&mapper_uuid(&shape.id, &shape.luks_uuid))?;
    let opened =
        control.activate(line(shape, backing)).and_then(|()| match control.look(Some((shape, &[backing])))? {
            Mapper::Live => node(&shape.id).map(drop),
            other => Err(foreign(&shape.id, &format!("the kernel shows another table than was loaded ({other:?})"))),
        });
    opened.inspect_err(|_| {
        if let Err(error) = control.remove() {
            tracing::warn!(volume = %shape.id, %error, "a table that was refused stays loaded");
        }
    })
}

/// What stands under the name; see [`super::look`].
pub(super) fn look(id: &VolumeId, expected: Option<(&Shape, &[DeviceNumber])>) -> Result<Mapper> {
    Control::new(id)?.look(expected)
}

/// Removes what this driver made under the name, live or not.
pub(super) fn remove(id: &VolumeId) -> Result<()> {
    let control = Control::new(id)?;
    match control.look(None)? {
        Mapper::Absent => Ok(()),
        Mapper::HalfMade | Mapper::Live => control.remove(),
        Mapper::Foreign(found) => Err(foreign(id, &found)),
    }
}

/// The device node of the open volume.
pub(super) fn node(id: &VolumeId) -> Result<PathBuf> {
    let control = Control::new(id)?;
    let info = control.info()?.ok_or_else(|| Error::new(Reason::Internal, format!("{id} is not open")))?;
    let number = info.device();
    let path = PathBuf::from(format!("/dev/dm-{}", number.minor));
    // The kernel makes the node before the table becomes live; there is nothing to wait for.
    let is_it = |data: &std::fs::Metadata| {
        data.file_type().is_block_device() && data.rdev() == makedev(number.major, number.minor)
    };
    match std::fs::symlink_metadata(&path) {
        Ok(data) if is_it(&data) => Ok(path),
        _ => {
            let text = format!("{} is not the device of {id}: /dev must be the node's own", path.display());
            Err(Error::new(Reason::Internal, text))
        }
    }
}

fn foreign(id: &VolumeId, found: &str) -> Error {
    let name = id.mapper_name();
    let text = format!(
        "device-mapper device {name}: {found}; it was left as it is: see `dmsetup table {name}`, remove it if it is yours"
    );
    Error::new(Reason::ForeignDevice, text)
}

/// The device-mapper control node, for one name.
struct Control<'a> {
    dm: DM,
    id: &'a VolumeId,
    name: String,
}

impl<'a> Control<'a> {
    fn new(id: &'a VolumeId) -> Result<Self> {
        let dm = DM::new().map_err(|error| {
            Error::new(
                Reason::Internal,
                "/dev/mapper/control cannot be opened: load the kernel module dm_mod and run as root",
            )
            .caused_by(error)
        })?;
        Ok(Self { dm, id, name: id.mapper_name() })
    }

    fn dev_id(&self) -> DevId<'_> {
        DevId::Name(DmName::new(&self.name).expect("a volume id is short and plain"))
    }

    /// The device under the name, if there is one.
    fn info(&self) -> Result<Option<DeviceInfo>> {
        match self.dm.device_info(&self.dev_id()) {
            Ok(info) => Ok(Some(info)),
            Err(error) if is(&error, Errno::NXIO) => Ok(None),
            Err(error) => Err(self.failed("look up", error)),
        }
    }

    fn look(&self, expected: Option<(&Shape, &[DeviceNumber])>) -> Result<Mapper> {
        let Some(info) = self.info()? else { return Ok(Mapper::Absent) };
        let flags = info.flags();
        let uuid = info.uuid().map(ToString::to_string).unwrap_or_default();
        let live = flags.contains(DmFlags::DM_ACTIVE_PRESENT);
        let of_us = is_our_uuid(self.id, &uuid);
        if !live && (of_us || uuid.is_empty()) {
            return Ok(Mapper::HalfMade);
        }
        let ours = live && expected.map_or(of_us, |(shape, _)| uuid == mapper_uuid(self.id, &shape.luks_uuid));
        if !ours {
            return Ok(Mapper::Foreign(format!("its UUID is {uuid:?}")));
        }
        if flags.intersects(DmFlags::DM_SUSPEND | DmFlags::DM_READONLY | DmFlags::DM_INACTIVE_PRESENT) {
            return Ok(Mapper::Foreign("it is suspended, read-only, or about to get another table".to_owned()));
        }
        let Some((shape, backings)) = expected else { return Ok(Mapper::Live) };
        let query = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH);
        let (_, found) =
            self.dm.table_status(&self.dev_id(), query).map_err(|e| self.failed("read the table of", e))?;
        if backings.iter().any(|backing| same(&found, &line(shape, *backing))) {
            return Ok(Mapper::Live);
        }
        // A key in the table would be a secret: only the part in front of it is shown.
        let shown = found.iter().map(|(start, length, target, text)| {
            let cipher = text.split(' ').next().unwrap_or_default();
            format!("{start} {length} {target} {cipher} …")
        });
        let shown = shown.collect::<Vec<_>>().join("; ");
        Ok(Mapper::Foreign(format!("its table is not the volume's over the volume's own image: {shown}")))
    }

    fn create(&self, uuid: &str) -> Result<()> {
        let name = DmName::new(&self.name).expect("a volume id is short and plain");
        let uuid = DmUuid::new(uuid).expect("the prefix, a UUID and a name fit into 128 bytes");
        match self.dm.device_create(name, Some(uuid), DmOptions::private()) {
            Ok(_) => Ok(()),
            Err(error) if is(&error, Errno::BUSY) => {
                Err(foreign(self.id, "its name or its UUID is taken").caused_by(error))
            }
            Err(error) => Err(self.failed("create", error)),
        }
    }

    fn activate(&self, line: Line) -> Result<()> {
        let id = self.dev_id();
        self.dm
            .table_load(&id, &[line], DmOptions::private())
            .map_err(|error| self.failed("load the table of", error))?;
        // Without the suspend flag the call resumes: the loaded table becomes the live one.
        self.dm.device_suspend(&id, DmOptions::private()).map_err(|error| self.failed("start", error))?;
        Ok(())
    }

    /// The crate repeats a removal that meets a short-lived opener (EBUSY) five times within a second.
    fn remove(&self) -> Result<()> {
        match self.dm.device_remove(&self.dev_id(), DmOptions::private()) {
            Ok(_) => Ok(()),
            Err(error) if is(&error, Errno::NXIO) => Ok(()),
            Err(error) if is(&error, Errno::BUSY) => {
                let text = format!("{} is still in use and cannot be closed; the call will be repeated", self.name);
                Err(Error::new(Reason::Internal, text).caused_by(error))
            }
            Err(error) => Err(self.failed("remove", error)),
        }
    }

    fn failed(&self, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(Reason::Internal, format!("device-mapper cannot {what} {}", self.name)).caused_by(error)
    }
}

fn is(error: &DmError, errno: Errno) -> bool {
    matches!(error, DmError::Core(CoreError::Ioctl(_, _, _, found)) if **found as i32 == errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Profile;

    fn shape() -> Shape {
        Shape {
            id: VolumeId::for_name("x"),
            profile: Profile::Xts1,
            payload_bytes: 62 << 20,
            luks_uuid: Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555),
            backing: PathBuf::new(),
        }
    }

    #[test]
    fn the_table_is_the_documented_one() {
        let (start, length, target, parameters) = line(&shape(), (7, 0));
        assert_eq!((start, length, target.as_str()), (0, 126_976, "crypt"));
        assert_eq!(
            parameters,
            "aes-xts-plain64 :64:logon:cryptsetup:11111111-2222-3333-4444-555555555555-d0 0 7:0 4096 3 \
             no_read_workqueue no_write_workqueue sector_size:4096"
        );
    }

    #[test]
    fn any_other_field_in_the_kernels_table_is_noticed() {
        let expected = line(&shape(), (7, 0));
        assert!(same(std::slice::from_ref(&expected), &expected));
        let reordered =
            expected.3.replace("no_read_workqueue no_write_workqueue", "no_write_workqueue no_read_workqueue");
        assert!(same(&[(0, 126_976, "crypt".into(), reordered)], &expected));
        for (from, to) in [
            ("aes-xts-plain64", "cipher_null-ecb"),
            (":64:", ":32:"),
            ("logon", "user"),
            ("11111111", "11111112"),
            ("7:0", "7:1"),
            ("4096 3", "0 3"),
            ("sector_size:4096", "sector_size:512"),
            ("3 no_read_workqueue", "3 allow_discards"),
            ("3 no_read_workqueue no_write_workqueue", "2"),
            ("no_read_workqueue no_write_workqueue", "no_read_workqueue no_read_workqueue"),
        ] {
            let changed = expected.3.replace(from, to);
            assert_ne!(changed, expected.3);
            assert!(!same(&[(0, 126_976, "crypt".into(), changed)], &expected), "{from} -> {to}");
        }
        for (start, length, target) in [(8, 126_976, "crypt"), (0, 126_975, "crypt"), (0, 126_976, "linear")] {
            assert!(!same(&[(start, length, target.into(), expected.3.clone())], &expected));
        }
        assert!(!same(&[expected.clone(), expected.clone()], &expected));
        assert!(!same(&[], &expected));
    }

    #[test]
    fn only_our_form_of_a_mapper_uuid_is_ours() {
        let shape = shape();
        let ours = mapper_uuid(&shape.id, &shape.luks_uuid);
        assert!(is_our_uuid(&shape.id, &ours));
        for text in ["", "LVM-x", &ours[1..], &ours.replace("LUKS2", "LUKS1"), &ours.replace("1111", "1-11")] {
            assert!(!is_our_uuid(&shape.id, text), "{text}");
        }
        assert!(!is_our_uuid(&VolumeId::for_name("y"), &ours));
    }
}
