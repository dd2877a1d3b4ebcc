//! What a `VolumeCapability` asks for. A volume is on one node: the modes for several nodes are parsed, so that each
//! RPC can refuse them with its own code, and never honoured.

use super::field;
use super::proto::csi::VolumeCapability;
use super::proto::csi::volume_capability::AccessType;
use super::proto::csi::volume_capability::access_mode::Mode;
use crate::device::MountOptions;
use crate::device::mount;
use crate::lifecycle::Sharing;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Reason;
use crate::volume::Result;

/// One checked capability.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Access<'a> {
    kind: Kind,
    mode: Mode,
    mount_flags: &'a [String],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    /// `None` leaves the choice to us.
    Filesystem(Option<FsType>),
}

impl<'a> Access<'a> {
    /// Checks the form of `capability`; what the volume can do is asked with the other functions.
    pub(super) fn parse(field: &str, capability: Option<&'a VolumeCapability>) -> Result<Self> {
        let capability = field::present(field, capability)?;
        let number = field::present(&format!("{field}.access_mode"), capability.access_mode.as_ref())?.mode;
        let mode = match Mode::try_from(number) {
            Ok(Mode::Unknown) | Err(_) => {
                return Err(Error::invalid(&format!("{field}.access_mode"), format!("mode {number} is not known")));
            }
            Ok(mode) => mode,
        };
        match field::present(&format!("{field}.access_type"), capability.access_type.as_ref())? {
            AccessType::Block(_) => Ok(Self { kind: Kind::Block, mode, mount_flags: &[] }),
            AccessType::Mount(mount) => {
                if !mount.volume_mount_group.is_empty() {
                    return Err(Error::invalid(
                        &format!("{field}.mount.volume_mount_group"),
                        "is not offered; leave it empty",
                    ));
                }
                if mount.mount_flags.iter().map(String::len).sum::<usize>() > field::MAP_BYTES {
                    return Err(Error::invalid(&format!("{field}.mount.mount_flags"), "are larger than 4096 bytes"));
                }
                let kind = Kind::Filesystem(fs_type(&format!("{field}.mount.fs_type"), &mount.fs_type)?);
                Ok(Self { kind, mode, mount_flags: &mount.mount_flags })
            }
        }
    }

    /// Whether the mode wants the volume on several nodes.
    pub(super) fn is_multi_node(&self) -> bool {
        matches!(self.mode, Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
    }

    /// Whether mode or mount flags forbid writing.
    pub(super) fn is_reader(&self) -> bool {
        self.mode == Mode::SingleNodeReaderOnly || self.mount_flags.iter().any(|flag| flag == "ro")
    }

    /// The mount flags, which must be on the allow-list.
    pub(super) fn mount_options(&self) -> Result<MountOptions> {
        mount::check_flags(self.mount_flags)?;
        Ok(MountOptions { flags: self.mount_flags.to_vec() })
    }

    /// Whether several target paths may show the volume at once (CSI, `NodePublishVolume`).
    pub(super) fn sharing(&self) -> Sharing {
        if self.mode == Mode::SingleNodeMultiWriter { Sharing::MultiWriter } else { Sharing::SingleWriter }
    }

    /// What a volume with `existing` content becomes through this capability, or why it cannot.
    pub(super) fn of_volume(&self, existing: Content) -> Result<Content> {
        let refuse = |text: String| Err(Error::new(Reason::CapabilityExceeded, text));
        if self.is_multi_node() {
            return refuse(format!("access mode {} needs several nodes; {ONE_NODE}", self.mode.as_str_name()));
        }
        match (self.kind, existing) {
            (Kind::Block, Content::Block) => Ok(existing),
            (Kind::Filesystem(None), Content::Filesystem(_)) => Ok(existing),
            (Kind::Filesystem(Some(wanted)), Content::Filesystem(fs)) if wanted == fs => Ok(existing),
            (Kind::Block, _) => {
                refuse(format!("the volume was made with {existing}; raw block access is not possible"))
            }
            (_, Content::Block) => refuse("the volume was made for raw block access; it has no filesystem".into()),
            (Kind::Filesystem(wanted), _) => {
                let wanted = wanted.map_or("a filesystem", FsType::as_str);
                refuse(format!("the volume was made with {existing}, not with {wanted}"))
            }
        }
    }
}

const ONE_NODE: &str = "a volume of this driver lives on one node (use ReadWriteOnce or ReadWriteOncePod)";

/// The content that all `capabilities` of a new volume agree on.
pub(super) fn content_of(capabilities: &[VolumeCapability]) -> Result<Content> {
    const FIELD: &str = "volume_capabilities";
    let mut content = None;
    for capability in capabilities {
        let access = Access::parse(FIELD, Some(capability))?;
        if access.is_multi_node() {
            return Err(Error::invalid(
                FIELD,
                format!("access mode {} is not offered: {ONE_NODE}", access.mode.as_str_name()),
            ));
        }
        access.mount_options()?;
        let wanted = match access.kind {
            Kind::Block => Content::Block,
            Kind::Filesystem(fs) => Content::Filesystem(fs.unwrap_or(FsType::Ext4)),
        };
        if *content.get_or_insert(wanted) != wanted {
            return Err(Error::invalid(FIELD, "must agree on raw block or on one filesystem"));
        }
    }
    content.ok_or_else(|| Error::invalid(FIELD, "at least one is required"))
}

fn fs_type(field: &str, text: &str) -> Result<Option<FsType>> {
    match text {
        "" => Ok(None),
        "ext4" => Ok(Some(FsType::Ext4)),
        "xfs" => Ok(Some(FsType::Xfs)),
        other => Err(Error::invalid(field, format!("{other:?} is not offered; ext4 (the default) and xfs are"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::csi::volume_capability::AccessMode;
    use crate::grpc::proto::csi::volume_capability::BlockVolume;
    use crate::grpc::proto::csi::volume_capability::MountVolume;

    fn capability(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }
    }

    fn mount(fs_type: &str) -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..Default::default() }))
    }

    fn block() -> Option<AccessType> {
        Some(AccessType::Block(BlockVolume {}))
    }

    #[test]
    fn every_single_node_mode_is_honoured_and_no_other() {
        for mode in 0..=9 {
            let expected = matches!(mode, 1 | 2 | 6 | 7);
            assert_eq!(content_of(&[capability(mount(""), mode)]).is_ok(), expected, "mode {mode}");
        }
    }

    #[test]
    fn capabilities_agree_on_one_content() {
        assert_eq!(
            content_of(&[capability(mount(""), 1), capability(mount("ext4"), 7)]).ok(),
            Some(Content::Filesystem(FsType::Ext4))
        );
        assert_eq!(content_of(&[capability(block(), 1)]).ok(), Some(Content::Block));
        assert!(content_of(&[]).is_err());
        assert!(content_of(&[capability(mount(""), 1), capability(block(), 1)]).is_err());
        assert!(content_of(&[capability(mount("xfs"), 1), capability(mount("ext4"), 1)]).is_err());
        assert!(content_of(&[capability(mount("btrfs"), 1)]).is_err());
        assert!(content_of(&[capability(None, 1)]).is_err());
        assert!(content_of(&[VolumeCapability { access_type: block(), access_mode: None }]).is_err());
    }

    #[test]
    fn what_a_volume_is_decides_what_it_can_do() {
        let xfs = Content::Filesystem(FsType::Xfs);
        for (access_type, existing, fits) in [
            (mount(""), xfs, true),
            (mount("xfs"), xfs, true),
            (mount("ext4"), xfs, false),
            (mount(""), Content::Block, false),
            (block(), Content::Block, true),
            (block(), xfs, false),
        ] {
            let capability = capability(access_type, 1);
            let access = Access::parse("volume_capability", Some(&capability)).expect("well formed");
            assert_eq!(access.of_volume(existing).ok(), fits.then_some(existing), "{capability:?} on {existing}");
        }
    }
}
