//! The words of the house: what a volume is called, what it is made of, and what can be wrong with it.
//!
//! Nothing here does I/O. Every floor above speaks in these types; none of them knows proto, Kubernetes or a kernel.

mod erasure;
mod error;
mod health;
mod key_uri;
mod message;
mod place;
mod pool_name;
mod profile;
mod secret;

pub use erasure::{ERASURE, erasure_receipt};
pub use error::{Error, Reason, Result};
pub use health::{HealthEntry, HealthStatus};
pub use key_uri::{Claim, KeyUri, KeyUriTemplate};
pub use message::{MESSAGE_BYTES, shortened};
pub use place::{Place, Whereabouts};
pub use pool_name::PoolName;
pub use profile::{DATA_OFFSET_BYTES, SECTOR_512, SECTOR_BYTES};
pub use profile::{Init, Profile};
pub use profile::{JOURNAL_SECTION_SECTORS, JOURNAL_SECTIONS, LOG2_RUN_SECTORS, TAG_BYTES};
pub use secret::{SecretBytes, wiping_the_stack};

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of the driver, wherever one is named.
pub const DRIVER_NAME: &str = "csi.coffer.dev";

/// Prefix of every volume id that this driver makes.
const ID_PREFIX: &str = "cv-";
/// Hexadecimal digits after [`ID_PREFIX`]: half of a SHA-256.
const ID_DIGITS: usize = 32;

/// The name of a volume everywhere: directory, mapper, key derivation.
///
/// It is a pure function of the name in `CreateVolume`, so that creating twice is creating once. Only strings of
/// this exact form ever become part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of the volume that `CreateVolume` calls `name`.
    #[must_use]
    pub fn for_name(name: &str) -> Self {
        let digest = hex::encode(Sha256::digest(name.as_bytes()));
        Self(format!("{ID_PREFIX}{}", &digest[..ID_DIGITS]))
    }

    /// `text` as an id, or `None` if this driver never made it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(ID_PREFIX)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (digits.len() == ID_DIGITS && digits.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device-mapper name of the opened volume.
    #[must_use]
    pub fn mapper_name(&self) -> String {
        format!("coffer-{}", self.0)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for VolumeId {
    type Error = &'static str;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a volume id is cv- and 32 hexadecimal digits in lower case")
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.0
    }
}

/// The filesystems that can be made in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// The name for `mount(2)` and in a StorageClass.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// What the payload is: chosen at creation, kept in the record, never guessed from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// A raw block device for the pod.
    Block,
    /// A filesystem that this driver makes and mounts.
    #[serde(untagged)]
    Filesystem(FsType),
}

impl Content {
    /// The smallest payload, in bytes: below 8 MiB mkfs.ext4 makes no journal, below 300 MiB mkfs.xfs refuses.
    #[must_use]
    pub fn minimum_bytes(self) -> u64 {
        match self {
            Self::Filesystem(FsType::Ext4) => 16 << 20,
            Self::Filesystem(FsType::Xfs) => 300 << 20,
            Self::Block => 1 << 20,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filesystem(fs) => fs.as_str(),
            Self::Block => "block",
        })
    }
}

/// What `CreateVolume` asks for, checked and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The name that the caller gave; [`VolumeSpec::id`] is derived from it.
    pub name: String,
    /// The pool that shall hold it.
    pub pool: PoolName,
    /// Size of the mapped device.
    pub payload_bytes: u64,
    /// Filesystem or raw block.
    pub content: Content,
    /// Cryptographic parameters.
    pub profile: Profile,
    /// Which sectors get their tags before the volume is used.
    pub init: Init,
    /// Where the secret is, with every variable expanded.
    pub key_uri: KeyUri,
    /// The claim behind the volume, if the provisioner told us.
    pub claim: Option<Claim>,
}

impl VolumeSpec {
    /// The volume's id.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        VolumeId::for_name(&self.name)
    }

    /// Whether `other` asks for this very volume. Who claims it makes no difference to it, nor does where its secret is:
    /// a rotation moves that, and the class goes on naming the old place.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let comparable = |spec: &Self| Self { claim: None, key_uri: self.key_uri.clone(), ..spec.clone() };
        comparable(self) == comparable(other)
    }

    /// Why `asked` cannot have the volume that exists as `self` says.
    #[must_use]
    pub fn conflict(&self, asked: &Self) -> Error {
        let message =
            format!("volume {} exists with {}; this request asks for {}", self.name, self.outline(), asked.outline());
        Error::new(Reason::AlreadyExists, message)
    }

    /// What [`Self::is_same_as`] compares beside the name, for messages.
    #[must_use]
    pub fn outline(&self) -> String {
        let (profile, init) = (self.profile.as_str(), self.init.as_str());
        format!("{} bytes, {}, {profile}, init {init}, pool {}", self.payload_bytes, self.content, self.pool)
    }
}

/// A volume that exists: what was asked for, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The volume. Not derived from the name that the spec says now: a record may have been changed.
    pub id: VolumeId,
    /// What was asked for.
    pub spec: VolumeSpec,
    /// The node that has it.
    pub place: Place,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_pure_function_of_the_name() {
        let id = VolumeId::for_name("pvc-1");
        assert_eq!(id, VolumeId::for_name("pvc-1"));
        assert_ne!(id, VolumeId::for_name("pvc-2"));
        assert_eq!(VolumeId::parse(id.as_str()), Some(id));
    }

    #[test]
    fn only_our_exact_form_is_an_id() {
        let long = "a".repeat(500);
        let upper = format!("cv-{}", "A".repeat(32));
        for text in ["", "cv-", "../../etc", "cv-../../../../../../../../../../e", "cv-0", &upper, &long] {
            assert_eq!(VolumeId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_id_is_not_repeated() {
        let error = serde_json::from_str::<VolumeId>(r#""cv-\u001b[2Jcanary""#).expect_err("refused").to_string();
        assert!(error.contains("32 hexadecimal digits") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn content_is_one_word_in_json() {
        for (content, json) in [
            (Content::Filesystem(FsType::Ext4), "\"ext4\""),
            (Content::Filesystem(FsType::Xfs), "\"xfs\""),
            (Content::Block, "\"block\""),
        ] {
            assert_eq!(serde_json::to_string(&content).expect("serialises"), json);
            assert_eq!(serde_json::from_str::<Content>(json).expect("parses"), content);
        }
    }
}
