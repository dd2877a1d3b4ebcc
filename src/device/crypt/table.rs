//! The device-mapper devices of an open volume: loaded by us, with the size from the record, and read back.
//!
//! ```text
//! xts-1    coffer-<id>  dm-crypt ---------------------------------> loop device
//! aead-1   coffer-<id>  dm-crypt --> coffer-<id>_dif  dm-integrity --> loop device
//! ```
//! Refuses a live device under our names that has another UUID, another backing or another table, and never touches
//! one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{major, makedev, minor};

use super::line;
use super::line::{DeviceNumber, Line};
use super::mapped::{Layer, Mapped, Seen};
use crate::device::Mapper;
use crate::device::Shape;
use crate::device::backing::Attached;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Loads and reads back the tables of `shape` on the calling thread, whose keyring holds the volume key. The volume may be
/// new: then the kernel makes the superblock of its tags.
pub(super) fn load(shape: &Shape, attached: &Attached, is_new: bool) -> Result<()> {
    let device = attached.device.metadata().map_err(|cause| {
        Error::new(Reason::Internal, format!("{} cannot be looked up", attached.path.display())).caused_by(cause)
    })?;
    let backing = (major(device.rdev()), minor(device.rdev()));
    super::check_tags(shape, attached, is_new)?;
    if !shape.profile.has_tags() {
        return load_crypt(shape, backing, backing);
    }
    let below = Mapped::new(&shape.id, Layer::Integrity)?;
    let base = below.start(&shape.luks_uuid, line::integrity(shape, backing))?;
    load_crypt(shape, base, backing).inspect_err(|_| below.discard())
}

/// Loads the volume's own table over `base`, and reads back everything down to `backing`.
fn load_crypt(shape: &Shape, base: DeviceNumber, backing: DeviceNumber) -> Result<()> {
    let volume = Mapped::new(&shape.id, Layer::Crypt)?;
    volume.start(&shape.luks_uuid, line::crypt(shape, base))?;
    let read_back = look(&shape.id, Some((shape, &[backing]))).and_then(|seen| match seen {
        Mapper::Live => node(&shape.id).map(drop),
        other => Err(volume.foreign(&format!("the kernel shows another table than was loaded ({other:?})"))),
    });
    read_back.inspect_err(|_| volume.discard())
}

/// What stands under the names; see [`super::look`].
pub(super) fn look(id: &VolumeId, expected: Option<(&Shape, &[DeviceNumber])>) -> Result<Mapper> {
    let luks = expected.map(|(shape, _)| &shape.luks_uuid);
    let volume = Mapped::new(id, Layer::Crypt)?.look(luks)?;
    let below = Mapped::new(id, Layer::Integrity)?.look(luks)?;
    Ok(match (volume, below, expected) {
        (Seen::Foreign(found), ..) | (_, Seen::Foreign(found), _) => Mapper::Foreign(found),
        (Seen::Absent, Seen::Absent, _) => Mapper::Absent,
        (Seen::Absent | Seen::HalfMade, ..) => Mapper::HalfMade,
        (Seen::Live(..), _, None) => Mapper::Live,
        (Seen::Live(_, table), below, Some((shape, backings))) => compare(shape, &table, &below, backings),
    })
}

/// Whether the tables of a live volume are those of `shape` over one of `backings`.
fn compare(shape: &Shape, table: &[Line], below: &Seen, backings: &[DeviceNumber]) -> Mapper {
    let is_over_a_backing = |table: &[Line], expected: fn(&Shape, DeviceNumber) -> Line| {
        backings.iter().any(|backing| line::same(table, &expected(shape, *backing)))
    };
    let wrong = match (shape.profile.has_tags(), below) {
        (false, Seen::Absent) => (!is_over_a_backing(table, line::crypt)).then_some(table),
        (true, Seen::Live(_, tags)) if !is_over_a_backing(tags, line::integrity) => Some(tags.as_slice()),
        (true, Seen::Live(base, _)) => (!line::same(table, &line::crypt(shape, *base))).then_some(table),
        _ => return Mapper::Foreign("the layer that keeps tags is there without need, or missing".to_owned()),
    };
    match wrong {
        None => Mapper::Live,
        Some(table) => {
            Mapper::Foreign(format!("its table is not the volume's over the volume's own image: {}", shown(table)))
        }
    }
}

/// A key in the table would be a secret: only the part in front of it is shown.
fn shown(table: &[Line]) -> String {
    let shown = table.iter().map(|(start, length, target, text)| {
        let first = text.split(' ').next().unwrap_or_default();
        format!("{start} {length} {target} {first} …")
    });
    shown.collect::<Vec<_>>().join("; ")
}

/// Removes what this driver made under the names, live or not, from the top.
pub(super) fn remove(id: &VolumeId) -> Result<()> {
    for layer in [Layer::Crypt, Layer::Integrity] {
        let device = Mapped::new(id, layer)?;
        match device.look(None)? {
            Seen::Absent => {}
            Seen::HalfMade | Seen::Live(..) => device.remove()?,
            Seen::Foreign(found) => return Err(device.foreign(&found)),
        }
    }
    Ok(())
}

/// The device node of the open volume.
pub(super) fn node(id: &VolumeId) -> Result<PathBuf> {
    let (major, minor) = Mapped::new(id, Layer::Crypt)?.number()?;
    let path = PathBuf::from(format!("/dev/dm-{minor}"));
    // The kernel makes the node before the table becomes live; there is nothing to wait for.
    let is_it = |data: &std::fs::Metadata| data.file_type().is_block_device() && data.rdev() == makedev(major, minor);
    match std::fs::symlink_metadata(&path) {
        Ok(data) if is_it(&data) => Ok(path),
        _ => {
            let text = format!("{} is not the device of {id}: /dev must be the node's own", path.display());
            Err(Error::new(Reason::Internal, text))
        }
    }
}
