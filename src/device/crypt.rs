//! Formats, seals and opens LUKS2 volumes: libcryptsetup on in-memory files, our own device-mapper tables.
#![allow(missing_docs, unused_variables)]

use std::path::PathBuf;

use super::backing::Attached;
use super::header::Frozen;
use super::header::Image;
use super::{Mapper, Shape};
use crate::volume::{Result, SecretBytes, VolumeId};

pub fn format(shape: &Shape, passphrase: &SecretBytes) -> Result<Image> {
    unimplemented!()
}

pub fn seal(image: Image, shape: &Shape, seal: &SecretBytes) -> Result<(Image, [u8; 32])> {
    unimplemented!()
}

pub fn open(shape: &Shape, attached: &Attached, header: &Frozen, passphrase: &SecretBytes) -> Result<()> {
    unimplemented!()
}

pub fn close(id: &VolumeId) -> Result<()> {
    unimplemented!()
}

/// `backings`: device numbers (major, minor) of every loop device on the volume's image.
pub fn look(id: &VolumeId, shape: Option<&Shape>, backings: impl IntoIterator<Item = (u32, u32)>) -> Result<Mapper> {
    unimplemented!()
}

pub fn device_node(id: &VolumeId) -> Result<PathBuf> {
    unimplemented!()
}
