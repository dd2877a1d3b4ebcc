//! The LUKS2 header as hostile input: parsed by our own code, compared with the profile, authenticated by the seal.

use std::os::fd::OwnedFd;

use uuid::Uuid;

use super::Shape;
use super::backing::Attached;
use crate::volume::{Result, SecretBytes};

/// Everything on a backing before the payload: [`crate::volume::DATA_OFFSET_BYTES`] bytes, read once or made here.
#[derive(Clone)]
pub struct Image {}

/// A sealed in-memory file that holds one verified header in both places. Nothing can change it any more.
#[derive(Debug)]
pub struct Frozen(pub(super) OwnedFd);

/// A header that passed every check.
#[derive(Debug)]
pub struct Verified {
    /// What libcryptsetup may read.
    pub frozen: Frozen,
    /// SHA-256 of the text that the seal authenticates.
    pub digest: [u8; 32],
}

#[allow(missing_docs, unused_variables, clippy::missing_errors_doc)]
impl Image {
    pub fn read(attached: &Attached) -> Result<Self> {
        unimplemented!()
    }
    pub fn write(&self, attached: &Attached) -> Result<()> {
        unimplemented!()
    }
    #[must_use]
    pub fn uuid_matches(&self, uuid: &Uuid) -> bool {
        unimplemented!()
    }
    #[must_use]
    pub fn may_be_overwritten(&self, uuid: &Uuid) -> bool {
        unimplemented!()
    }
    pub fn verify(&self, shape: &Shape, seal: &SecretBytes) -> Result<Verified> {
        unimplemented!()
    }
    #[must_use]
    pub fn has_digest(&self, shape: &Shape, digest: &[u8; 32]) -> bool {
        unimplemented!()
    }
    pub fn frozen(&self) -> Result<Frozen> {
        unimplemented!()
    }
}
