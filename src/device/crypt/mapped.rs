//! One device-mapper device under a name of ours: made, looked at and removed by our own calls.
//!
//! udev is told not to scan: what is inside a volume is nobody's business but the mount's. Where this process sees udev's
//! socket, `/run/udev/control`, the crate `devicemapper` waits for udev after resume and removal by a System V
//! semaphore. A container that has the socket must share the node's IPC namespace too.

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid};
use rustix::io::Errno;
use uuid::Uuid;

use super::line::{DeviceNumber, Line};
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Which device of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// The volume: what is read and written here is plaintext.
    Crypt,
    /// What keeps the tags of the volume's sectors, below it.
    Integrity,
}

impl Layer {
    /// The name that libcryptsetup would give the device too.
    fn name(self, id: &VolumeId) -> String {
        match self {
            Self::Crypt => id.mapper_name(),
            Self::Integrity => format!("{}_dif", id.mapper_name()),
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Crypt => "CRYPT-LUKS2-",
            Self::Integrity => "CRYPT-INTEGRITY-",
        }
    }

    /// The device-mapper UUID that libcryptsetup would give the device too.
    fn uuid(self, id: &VolumeId, luks: &Uuid) -> String {
        format!("{}{}-{}", self.prefix(), luks.simple(), self.name(id))
    }

    fn is_uuid(self, id: &VolumeId, text: &str) -> bool {
        let luks = text.strip_prefix(self.prefix()).and_then(|rest| rest.strip_suffix(&format!("-{}", self.name(id))));
        luks.and_then(|digits| Uuid::try_parse(digits).ok()).is_some_and(|luks| self.uuid(id, &luks) == text)
    }
}

/// What stands under the name of a device.
#[derive(Debug)]
pub(super) enum Seen {
    Absent,
    /// What a killed call leaves: no live table.
    HalfMade,
    /// A live device with a UUID of ours, and its table.
    Live(DeviceNumber, Vec<Line>),
    /// Something else; the text says what.
    Foreign(String),
}

/// The device-mapper control node, for one name.
pub(super) struct Mapped<'a> {
    dm: DM,
    id: &'a VolumeId,
    layer: Layer,
    name: String,
}

impl<'a> Mapped<'a> {
    pub(super) fn new(id: &'a VolumeId, layer: Layer) -> Result<Self> {
        let dm = DM::new().map_err(|error| {
            Error::new(
                Reason::Internal,
                "/dev/mapper/control cannot be opened: load the kernel module dm_mod and run as root",
            )
            .caused_by(error)
        })?;
        Ok(Self { dm, id, layer, name: layer.name(id) })
    }

    /// What stands under the name; with `luks`, a live device of another volume's UUID is foreign.
    pub(super) fn look(&self, luks: Option<&Uuid>) -> Result<Seen> {
        let Some(info) = self.info()? else { return Ok(Seen::Absent) };
        let flags = info.flags();
        let uuid = info.uuid().map(ToString::to_string).unwrap_or_default();
        let live = flags.contains(DmFlags::DM_ACTIVE_PRESENT);
        let of_us = self.layer.is_uuid(self.id, &uuid);
        if !live && (of_us || uuid.is_empty()) {
            return Ok(Seen::HalfMade);
        }
        let ours = live && luks.map_or(of_us, |luks| uuid == self.layer.uuid(self.id, luks));
        if !ours {
            return Ok(Seen::Foreign(format!("the UUID of {} is {uuid:?}", self.name)));
        }
        if flags.intersects(DmFlags::DM_SUSPEND | DmFlags::DM_READONLY | DmFlags::DM_INACTIVE_PRESENT) {
            let text = format!("{} is suspended, read-only, or about to get another table", self.name);
            return Ok(Seen::Foreign(text));
        }
        let query = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH);
        let (_, table) =
            self.dm.table_status(&self.dev_id(), query).map_err(|error| self.failed("read the table of", error))?;
        Ok(Seen::Live(number(&info), table))
    }

    /// Makes the device of the volume with the UUID `luks`, and starts it with `line`. Nothing of it is left after an error.
    pub(super) fn start(&self, luks: &Uuid, line: Line) -> Result<DeviceNumber> {
        self.create(&self.layer.uuid(self.id, luks))?;
        self.activate(line).and_then(|()| self.number()).inspect_err(|_| self.discard())
    }

    /// The number of the device, which must be there.
    pub(super) fn number(&self) -> Result<DeviceNumber> {
        let info = self.info()?.ok_or_else(|| Error::new(Reason::Internal, format!("{} is not open", self.id)))?;
        Ok(number(&info))
    }

    /// Removes the device. Absent is fine. The crate repeats a removal that meets a short-lived opener (EBUSY) five times
    /// within a second.
    pub(super) fn remove(&self) -> Result<()> {
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

    /// Removes the device after a refusal that is told already.
    pub(super) fn discard(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!(volume = %self.id, error = error.chain(), "a device that was refused stays");
        }
    }

    /// The refusal of what is not ours.
    pub(super) fn foreign(&self, found: &str) -> Error {
        let name = &self.name;
        let text = format!(
            "device-mapper device {name}: {found}; it was left as it is: see `dmsetup table {name}`, remove it if it is yours"
        );
        Error::new(Reason::ForeignDevice, text)
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

    fn create(&self, uuid: &str) -> Result<()> {
        let name = DmName::new(&self.name).expect("a volume id is short and plain");
        let uuid = DmUuid::new(uuid).expect("the prefix, a UUID and a name fit into 128 bytes");
        match self.dm.device_create(name, Some(uuid), DmOptions::private()) {
            Ok(_) => Ok(()),
            Err(error) if is(&error, Errno::BUSY) => {
                Err(self.foreign("its name or its UUID is taken").caused_by(error))
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

    fn failed(&self, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(Reason::Internal, format!("device-mapper cannot {what} {}", self.name)).caused_by(error)
    }
}

fn number(info: &DeviceInfo) -> DeviceNumber {
    let number = info.device();
    (number.major, number.minor)
}

fn is(error: &DmError, errno: Errno) -> bool {
    matches!(error, DmError::Core(CoreError::Ioctl(_, _, _, found)) if **found as i32 == errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_form_of_a_mapper_uuid_is_ours() {
        let (id, luks) = (VolumeId::for_name("x"), Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555));
        for layer in [Layer::Crypt, Layer::Integrity] {
            let ours = layer.uuid(&id, &luks);
            assert!(layer.is_uuid(&id, &ours));
            for text in ["", "LVM-x", &ours[1..], &ours.replace("CRYPT", "CRIPT"), &ours.replace("1111", "1-11")] {
                assert!(!layer.is_uuid(&id, text), "{text}");
            }
            assert!(!layer.is_uuid(&VolumeId::for_name("y"), &ours));
        }
        assert!(!Layer::Crypt.is_uuid(&id, &Layer::Integrity.uuid(&id, &luks)));
    }
}
