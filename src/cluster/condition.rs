//! The conditions of a volume: what its node says, and others read.

/// Whether the node has made the volume.
pub const PROVISIONED: &str = "Provisioned";
/// Whether the last stage opened the volume.
pub const OPENED: &str = "Opened";
/// Whether the volume has followed the last change of `spec.keyUri`.
pub const KEY_ROTATED: &str = "KeyRotated";
/// Whether nothing is wrong with the volume.
pub const HEALTHY: &str = "Healthy";
/// Whether nothing of a deleted volume is left.
pub const ERASED: &str = "Erased";
