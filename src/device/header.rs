//! The LUKS2 header as hostile input: parsed by our own code, compared with the profile, authenticated by the seal.

/// A sealed in-memory file that holds one verified header in both places. Nothing can change it any more.
#[derive(Debug)]
pub struct Frozen(pub(super) std::os::fd::OwnedFd);
